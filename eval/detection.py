"""Temporal action detection: mean average precision in three protocols (``python -m eval.detection --help``)."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

if __name__ == "__main__":  # python eval/detection.py finds the project as python -m eval.detection does
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from eval.average_precision import Columns, average_precision
from options import Parser
from utils.datasets.annotations import Annotations, read_annotations
from utils.datasets.profile import PROFILES, THUMOS_TIOU, Profile, annotations_path, dataset_root, load_profile
from utils.errors import InputError, raise_first, run_command, some
from utils.files import load_json, write_json
from utils.run.report import aligned, rounding_lines
from utils.segments import Segments, check_units, spelled, to_snippets

PROTOCOLS = {
    "wtal": "snippets, instances rounded to whole ones where the profile says so, as P-MIL, CO2-Net and SEAL",
    "exact": "seconds, no rounding",
    "exact210": "exact, without video_test_0000270 and video_test_0001496 (LAC)",
}
NOT_IN_210 = ("video_test_0000270", "video_test_0001496")
AVERAGES = ((0.1, 0.5), (0.3, 0.7), (0.1, 0.7))  # of THUMOS14; other thresholds get one average over all


def default_protocol(profile: Profile) -> str:
    """``wtal`` where the literature rounds instances to whole snippets, else ``exact``."""
    return "wtal" if profile.round_ground_truth else "exact"


def evaluate_detections(
    truth: Segments, found: Segments, profile: Profile, protocol: str = "wtal"
) -> Dict[str, object]:
    """Score detections against instances at the profile's tIoU thresholds. Classes and videos meet by name.

    ``wtal`` compares in snippets, instances rounded to whole ones, where the profile's ``round_ground_truth`` is true;
    elsewhere it is the same as ``exact``. Detections in videos and of classes that the truth does not have are ignored.
    Returns {"protocol", "videos": how many, "tiou", "mAP", "AP": {class: [fraction per threshold]}, "average"} and,
    where instances are rounded, "rounding" as from ``rounding``. A class without instances has no AP and no part in the
    mean, and without any, mAP and averages are None. Raises ValueError for an unknown protocol.
    """
    truth = in_protocol(truth, protocol)
    metrics = {"protocol": protocol, "videos": len(truth.videos), **_score(truth, found, profile, protocol)}
    if protocol == "wtal" and profile.round_ground_truth:
        metrics["rounding"] = rounding(truth, profile)
    return metrics


def rounding(truth: Segments, profile: Profile) -> Dict[str, object]:
    """What rounding to whole snippets costs.

    {"instances": how many, "emptied": how many of them lose their length, "perfect": {span: average mAP of a detector
    that finds each instance exactly}}. For profiles with one rate.
    """
    rounded = comparable(truth, truth, profile, "wtal").truth.segment
    emptied = (rounded[:, 0] == rounded[:, 1]) & (truth.segment_s[:, 0] < truth.segment_s[:, 1])
    perfect = replace(truth, score=np.ones(len(truth.video)))
    average = _score(truth, perfect, profile, "wtal")["average"]
    return {"instances": len(truth.video), "emptied": int(emptied.sum()), "perfect": average}


def in_protocol(truth: Segments, protocol: str) -> Segments:
    """The instances of the videos that a protocol counts. ValueError for an unknown protocol."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
    return truth.keep([v for v in truth.videos if v not in NOT_IN_210]) if protocol == "exact210" else truth


class Comparable(NamedTuple):
    """Instances and detections with the truth's numbers of videos and classes, in the unit of time of a protocol."""

    truth: Columns
    found: Columns
    score: np.ndarray  # of the detections


def comparable(truth: Segments, found: Segments, profile: Profile, protocol: str) -> Comparable:
    """Bring both into the protocol's unit; detections of unknown videos and classes are left out."""
    video = _places(found.videos, truth.videos)[found.video]
    label = _places(found.classes, truth.classes)[found.label]
    known = (video >= 0) & (label >= 0)
    score = np.ones(len(known)) if found.score is None else found.score
    instances, segment = truth.segment_s, found.segment_s[known]
    if protocol == "wtal" and profile.round_ground_truth:
        rate = profile.rates(truth.videos, np.zeros(len(truth.videos)), np.full(len(truth.videos), np.nan))[:, None]
        instances, segment = np.round(instances * rate[truth.video]), to_snippets(segment, rate[video[known]])
    detections = Columns(video[known], segment, label[known])
    return Comparable(Columns(truth.video, instances, truth.label), detections, score[known])


def _places(names: Sequence[str], among: Sequence[str]) -> np.ndarray:
    """Index of every name in another list of names, -1 where it is not there."""
    place = {name: i for i, name in enumerate(among)}
    return np.asarray([place.get(name, -1) for name in names], dtype=np.int64)


def _score(truth: Segments, found: Segments, profile: Profile, protocol: str) -> Dict[str, object]:
    tious = list(profile.tiou_thresholds)
    ap = average_precision(*comparable(truth, found, profile, protocol), len(truth.classes), tious)
    scored = ~np.isnan(ap).all(axis=0)
    mean = ap[:, scored].mean(axis=1) if scored.any() else None
    thumos = len(tious) == len(THUMOS_TIOU) and np.allclose(tious, THUMOS_TIOU)
    spans = [f"{low:g}:{high:g}" for low, high in (AVERAGES if thumos else ((tious[0], tious[-1]),))]
    return {
        "tiou": tious,
        "mAP": [None] * len(tious) if mean is None else mean.tolist(),
        "AP": {truth.classes[c]: ap[:, c].tolist() for c in np.flatnonzero(scored)},
        "average": {span: None if mean is None else float(mean[within(tious, span)].mean()) for span in spans},
    }


def within(tious: Sequence[float], span: str) -> np.ndarray:
    """bool [T]: thresholds inside a span such as "0.3:0.7". linspace's 0.30000000000000004 is 0.3."""
    low, high = map(float, span.split(":"))
    return (np.asarray(tious) > low - 1e-6) & (np.asarray(tious) < high + 1e-6)


def detection_table(metrics: Dict, per_class: bool = False) -> str:
    """mAP in percent at every threshold and on average; the protocol, the videos and the cost of rounding are named."""

    def cells(name: str, values: Sequence[Optional[float]]) -> List[str]:
        return [name] + ["-" if v is None else f"{100 * v:.2f}" for v in values]

    spans = list(metrics["average"])
    rows = [["tIoU"] + [f"{t:g}" for t in metrics["tiou"]] + [f"avg {span}" for span in spans]]
    rows.append(cells("mAP (%)", metrics["mAP"] + list(metrics["average"].values())))
    for name, values in sorted(metrics["AP"].items()) if per_class else ():
        averages = [float(np.mean(np.asarray(values)[within(metrics["tiou"], span)])) for span in spans]
        rows.append(cells(name, values + averages))
    head = f"protocol {metrics['protocol']}: {PROTOCOLS[metrics['protocol']]}; {metrics['videos']} videos"
    return "\n".join([head, *rounding_lines(metrics), *aligned(rows)])


def add_data_options(parser: Parser) -> None:
    """The options that say which detections meet which instances; ``read_data`` reads them."""
    parser.add_argument("--detections", required=True, metavar="FILE.json", help="the detections, times in seconds")
    parser.add_argument("--dataset_name", required=True, metavar="NAME", help=f"{', '.join(PROFILES)}, or your own")
    parser.add_argument("--dataset_root", metavar="DIR", help="folder of its annotations (default: data/NAME)")
    parser.add_argument("--subset", metavar="S", help="part of the dataset (default: its test subset)")
    text = "default: wtal where the dataset's profile rounds instances (Thumos14reduced, Demo), else exact"
    parser.add_argument("--protocol", choices=list(PROTOCOLS), help=text)
    parser.add_argument(
        "--allow_empty", action="store_true", help="score even a file without a single usable detection"
    )


def read_truth(name: str, root: Path, profile: Profile, subset: str) -> Tuple[Annotations, Segments]:
    """The annotations, and the instances of one subset without the profile's excluded videos; prints notes.

    Raises InputError for what is wrong with the annotations, and for times that cannot be seconds.
    """
    path = annotations_path(name, root, profile)
    annotations, instances, _, problems, notes = read_annotations(path, profile)
    raise_first(problems)
    videos = [annotations.videos[i] for i in annotations.of(subset)]
    if not videos:
        subsets = ", ".join(sorted(set(annotations.subset)))
        raise InputError(f"no video in subset {subset!r}", path, f"subsets are {subsets}")
    truth = instances.keep([v for v in videos if v not in profile.excluded_videos])
    _check_units(truth, annotations, "instances", path)
    print(*notes, sep="\n", end="\n" if notes else "")
    return annotations, truth


def read_data(args: Namespace) -> Tuple[Profile, Annotations, Segments, Segments]:
    """Profile, annotations, instances of the subset and detections; prints what is not scored. Raises InputError."""
    root = dataset_root(args.dataset_name, args.dataset_root)
    profile = load_profile(args.dataset_name, root)
    annotations, truth = read_truth(args.dataset_name, root, profile, args.subset or profile.test_subset)
    document = load_json(args.detections, todo="give the JSON file of detections")
    found, unknown = Segments.from_json(document, truth.classes, args.detections)
    found = replace(found, videos=tuple(spelled(found.videos, set(annotations.videos), args.detections).values()))
    notes = []
    if unknown:
        text = f"{sum(unknown.values()):,} detections have labels outside the class list and are not scored"
        notes.append(f"{text}: {some(sorted(unknown))}")
    outside = np.flatnonzero(_places(found.videos, truth.videos) < 0)
    strangers = np.isin(found.video, outside)
    if len(outside):
        text = f"{strangers.sum():,} detections in {len(outside)} videos outside the subset are not scored"
        notes.append(f"{text}: {some([found.videos[v] for v in outside])}")
    if strangers.all() and not args.allow_empty:  # also where there is none
        todo = "check dataset, subset and names, or add --allow_empty"
        raise InputError("; ".join(["no detection to score", *notes]), args.detections, todo)
    _check_units(found, annotations, "detections", args.detections)
    silent = len(truth.videos) - len(set(truth.videos) & {found.videos[v] for v in np.unique(found.video)})
    if silent:
        notes.append(f"{silent} of {len(truth.videos)} videos have no detections")
    print(*notes, sep="\n", end="\n" if notes else "")
    return profile, annotations, truth, found


def _check_units(segments: Segments, annotations: Annotations, what: str, where: object) -> None:
    duration_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    length_s = np.asarray([duration_s.get(video, np.nan) for video in segments.videos])
    raise_first([check_units(segments.segment_s, length_s[segments.video], what, where)])


def _parser() -> Parser:
    protocols = "\n".join(f"  {name:9} {text}" for name, text in PROTOCOLS.items())
    text = f"""Score a detections file, from any method, against a dataset's instances. No features are needed.

FILE.json: {{"results": {{VIDEO: [{{"segment": [start_s, end_s], "label": CLASS, "score": number}}, …]}}}}

Per class, detections by falling score each take the free instance of their video with the highest tIoU, if that
reaches the threshold; average precision is interpolated; mAP is the mean over the classes with instances.

protocols (they differ by more than a point, so name yours):
{protocols}
"""
    parser = Parser("python -m eval.detection", description=text)
    add_data_options(parser)
    parser.add_argument("--output", metavar="METRICS.json", help="also write the metrics, as fractions")
    parser.add_argument("--per_class", action="store_true", help="one more row for each class")
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command; raises InputError for bad input."""
    args = _parser().parse_args(arguments)
    profile, _, truth, found = read_data(args)
    metrics = evaluate_detections(truth, found, profile, args.protocol or default_protocol(profile))
    print(detection_table(metrics, args.per_class))
    if args.output:
        write_json(args.output, metrics)
    return 0


if __name__ == "__main__":
    run_command(main)
