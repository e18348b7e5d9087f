"""Temporal action detection: mean average precision in three protocols (``python -m eval.detection --help``)."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple

if __name__ == "__main__":  # python eval/detection.py finds the project as python -m eval.detection does
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd

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
AVERAGES = ("0.1:0.5", "0.3:0.7", "0.1:0.7")  # of THUMOS14; other thresholds get one average over all
ABOUT = """Score a detections file, from any method, against a dataset's instances. No features are needed.

FILE.json: {"results": {VIDEO: [{"segment": [start_s, end_s], "label": CLASS, "score": number}, …]}}

Per class, detections by falling score each take the free instance of their video with the highest tIoU, if that
reaches the threshold; average precision is interpolated; mAP is the mean over the classes with instances.

protocols (they differ by more than a point, so name yours):
""" + "\n".join(f"  {name:9} {text}" for name, text in PROTOCOLS.items())


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
    where instances are rounded, "rounding": {"instances": how many, "emptied": how many lose their length, "perfect":
    average of a detector that finds each exactly}. A class without instances has no AP and no part in the mean, and
    without any, mAP and averages are None. Raises ValueError for an unknown protocol.
    """
    truth = in_protocol(truth, protocol)
    metrics = {"protocol": protocol, "videos": len(truth.videos), **_score(truth, found, profile, protocol)}
    if protocol == "wtal" and profile.round_ground_truth:
        rounded = comparable(truth, truth, profile, protocol)[0].segment
        emptied = (rounded[:, 0] == rounded[:, 1]) & (truth.segment_s[:, 0] < truth.segment_s[:, 1])
        perfect = _score(truth, truth, profile, protocol)["average"]  # without scores, all count alike
        metrics["rounding"] = {"instances": len(emptied), "emptied": int(emptied.sum()), "perfect": perfect}
    return metrics


def in_protocol(truth: Segments, protocol: str) -> Segments:
    """The instances of the videos that a protocol counts. ValueError for an unknown protocol."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
    return truth.keep([v for v in truth.videos if v not in NOT_IN_210]) if protocol == "exact210" else truth


def comparable(
    truth: Segments, found: Segments, profile: Profile, protocol: str
) -> Tuple[Columns, Columns, np.ndarray]:
    """Instances, detections and their scores with the truth's numbers of videos and classes, in the protocol's unit of
    time; detections of unknown videos and classes are left out."""
    video = pd.Index(truth.videos).get_indexer(found.videos)[found.video]  # -1: not there
    label = pd.Index(truth.classes).get_indexer(found.classes)[found.label]
    known = (video >= 0) & (label >= 0)
    score = np.ones(len(known)) if found.score is None else found.score
    instances, segment = truth.segment_s, found.segment_s[known]
    if protocol == "wtal" and profile.round_ground_truth:  # and so the profile has one rate
        rate = profile.snippets_per_second
        instances, segment = np.round(instances * rate), to_snippets(segment, rate)
    detections = Columns(video[known], segment, label[known])
    return Columns(truth.video, instances, truth.label), detections, score[known]


def _score(truth: Segments, found: Segments, profile: Profile, protocol: str) -> Dict[str, object]:
    tious = list(profile.tiou_thresholds)
    ap = average_precision(*comparable(truth, found, profile, protocol), len(truth.classes), tious)
    scored = ~np.isnan(ap).all(axis=0)
    mean = ap[:, scored].mean(axis=1) if scored.any() else None
    thumos = len(tious) == len(THUMOS_TIOU) and np.allclose(tious, THUMOS_TIOU)
    spans = AVERAGES if thumos else (f"{tious[0]:g}:{tious[-1]:g}",)
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
    tious, average = metrics["tiou"], metrics["average"]
    rows = {"mAP (%)": [*metrics["mAP"], *average.values()]}
    for name, ap in sorted(metrics["AP"].items()) if per_class else ():
        rows[name] = [*ap, *(np.asarray(ap)[within(tious, span)].mean() for span in average)]
    lines = [["tIoU", *(f"{t:g}" for t in tious), *(f"avg {span}" for span in average)]]
    lines += [[name, *("-" if v is None else f"{100 * v:.2f}" for v in values)] for name, values in rows.items()]
    head = f"protocol {metrics['protocol']}: {PROTOCOLS[metrics['protocol']]}; {metrics['videos']} videos"
    return "\n".join([head, *rounding_lines(metrics), *aligned(lines)])


def add_data_options(parser: Parser) -> None:
    """The options that say which detections meet which instances; ``read_data`` reads them."""
    parser.add_argument("--detections", required=True, metavar="FILE.json", help="the detections, times in seconds")
    parser.add_argument("--dataset_name", required=True, metavar="NAME", help=f"{', '.join(PROFILES)}, or your own")
    parser.add_argument("--dataset_root", metavar="DIR", help="folder of its annotations (default: data/NAME)")
    parser.add_argument("--subset", metavar="S", help="part of the dataset (default: its test subset)")
    text = "default: wtal where the dataset's profile rounds instances (Thumos14reduced, Demo), else exact"
    parser.add_argument("--protocol", choices=list(PROTOCOLS), help=text)
    text = "score even a file without a single usable detection"
    parser.add_argument("--allow_empty", action="store_true", help=text)


def read_truth(name: str, root: Path, profile: Profile, subset: str) -> Tuple[Annotations, Segments]:
    """The annotations, and the instances of one subset without the profile's excluded videos; prints notes.
    Raises InputError for what is wrong with the annotations, and for times that cannot be seconds."""
    path = annotations_path(name, root, profile)
    annotations, instances, _, problems, notes = read_annotations(path, profile)
    raise_first(problems)
    videos = [annotations.videos[i] for i in annotations.of(subset)]
    if not videos:
        subsets = ", ".join(sorted(set(annotations.subset)))
        raise InputError(f"no video in subset {subset!r}", path, f"subsets are {subsets}")
    truth = instances.keep([v for v in videos if v not in profile.excluded_videos])
    _check_units(truth, annotations, "instances", path)
    for note in notes:
        print(note)
    return annotations, truth


def read_data(args: Namespace) -> Tuple[Profile, Annotations, Segments, Segments]:
    """Profile, annotations, instances of the subset and detections; prints what is not scored. Raises InputError."""
    root = dataset_root(args.dataset_name, args.dataset_root)
    profile = load_profile(args.dataset_name, root)
    annotations, truth = read_truth(args.dataset_name, root, profile, args.subset or profile.test_subset)
    document = load_json(args.detections, todo="give the JSON file of detections")
    if isinstance(document, dict) and "SIMULATED" in str(document.get("version")):
        print("SIMULATED features: these numbers say nothing about real videos")
    found, unknown = Segments.from_json(document, truth.classes, args.detections)
    found = replace(found, videos=tuple(spelled(found.videos, set(annotations.videos), args.detections).values()))
    inside = found.keep(truth.videos)
    outside = [video for video in found.videos if video not in inside.videos]
    silent = len(truth.videos) - len(np.unique(inside.video))
    labels = f"{sum(unknown.values()):,} detections have labels outside the class list and are not scored"
    strangers = f"{len(found.video) - len(inside.video):,} detections in {len(outside)} videos outside the subset"
    notes = [f"{labels}: {some(sorted(unknown))}"] if unknown else []
    notes += [f"{strangers} are not scored: {some(outside)}"] if outside else []
    if not len(inside.video) and not args.allow_empty:
        todo = "check dataset, subset and names, or add --allow_empty"
        raise InputError("; ".join(["no detection to score", *notes]), args.detections, todo)
    _check_units(found, annotations, "detections", args.detections, truth)
    notes += [f"{silent} of {len(truth.videos)} videos have no detections"] if silent else []
    for note in notes:
        print(note)
    return profile, annotations, truth, found


def _check_units(
    segments: Segments, annotations: Annotations, what: str, where: object, truth: Optional[Segments] = None
) -> None:
    length_s = pd.Series(annotations.duration_s, annotations.videos)
    if truth is not None:  # where a duration is unknown, the last instance stands for it
        length_s = length_s.fillna(truth.last_ends())
    length_s = length_s.reindex(list(segments.videos)).to_numpy()
    check_units(segments.segment_s, length_s[segments.video], what, where)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command; raises InputError for bad input."""
    parser = Parser("python -m eval.detection", description=ABOUT)
    add_data_options(parser)
    parser.add_argument("--output", metavar="METRICS.json", help="also write the metrics, as fractions")
    parser.add_argument("--per_class", action="store_true", help="one more row for each class")
    args = parser.parse_args(arguments)
    profile, _, truth, found = read_data(args)
    metrics = evaluate_detections(truth, found, profile, args.protocol or default_protocol(profile))
    print(detection_table(metrics, args.per_class))
    if args.output:
        write_json(args.output, metrics)
    return 0


if __name__ == "__main__":
    run_command(main)
