"""Temporal action detection: mean average precision in three protocols (``python -m eval.detection --help``)."""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence

import numpy as np

from eval.average_precision import Segments, average_precision
from eval.detections import Detections
from options import Parser
from utils.errors import InputError, run_command
from utils.files import load_json, write_json
from utils.profile import PROFILES, THUMOS_TIOU, GroundTruth, Profile, dataset_root, load_ground_truth, load_profile
from utils.report import aligned

PROTOCOLS = {
    "wtal": "snippets, ground truth in whole ones, as P-MIL, CO2-Net and SEAL (ActivityNet: as exact)",
    "exact": "seconds, no rounding",
    "exact210": "exact, without video_test_0000270 and video_test_0001496 (LAC)",
}
NOT_IN_210 = ("video_test_0000270", "video_test_0001496")
AVERAGES = ((0.1, 0.5), (0.3, 0.7), (0.1, 0.7))  # of THUMOS14; other thresholds get one average over all


def evaluate_detections(
    truth: GroundTruth, detections: Detections, profile: Profile, protocol: str = "wtal"
) -> Dict[str, object]:
    """Score detections against the ground truth at the profile's tIoU thresholds. Classes and videos meet by name.

    ``wtal`` compares in snippets, ground truth rounded to whole ones; where the profile's ``round_ground_truth`` is
    false (ActivityNet, whose literature rounds nothing) it is the same as ``exact``. Detections in videos that the
    ground truth does not have, and of classes that it does not have, are passed over.
    Returns {"protocol", "videos": how many, "tiou", "mAP", "AP": {class: [fraction per threshold]}, "average"}; a
    class without ground truth has no AP and no part in the mean, and without any, mAP and averages are None.
    """
    truth = in_protocol(truth, protocol)
    columns = (_places(detections.videos, truth.videos)[detections.video], detections.segment_s)
    columns += (_places(detections.classes, truth.classes)[detections.label],)
    known = (columns[0] >= 0) & (columns[2] >= 0)
    found, score = Segments(*(c[known] for c in columns)), detections.score[known]
    instances = Segments(truth.video, truth.segment_s, truth.label)
    if protocol == "wtal" and profile.round_ground_truth:
        rate = profile.snippets_per_second
        found = found._replace(segment=np.round(found.segment * rate, 2))
        instances = instances._replace(segment=np.round(instances.segment * rate))

    tious = list(profile.tiou_thresholds)
    ap = average_precision(instances, found, score, len(truth.classes), tious)
    scored = ~np.isnan(ap).all(axis=0)
    means = ap[:, scored].mean(axis=1).tolist() if scored.any() else [None] * len(tious)
    spans = AVERAGES if profile.tiou_thresholds == THUMOS_TIOU else ((tious[0], tious[-1]),)
    average = {}
    for low, high in spans:
        within = [m for m, t in zip(means, tious) if low <= t <= high]
        average[f"{low:g}:{high:g}"] = float(np.mean(within)) if scored.any() else None
    per_class = {truth.classes[c]: ap[:, c].tolist() for c in np.flatnonzero(scored)}
    head = {"protocol": protocol, "videos": len(truth.videos), "tiou": tious, "mAP": means}
    return {**head, "AP": per_class, "average": average}


def in_protocol(truth: GroundTruth, protocol: str) -> GroundTruth:
    """The ground truth of the videos that a protocol counts. ValueError for an unknown protocol."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
    return truth.keep([v for v in truth.videos if v not in NOT_IN_210]) if protocol == "exact210" else truth


def _places(names: Sequence[str], among: Sequence[str]) -> np.ndarray:
    """Index of every name in another list of names, -1 where it is not there."""
    place = {name: i for i, name in enumerate(among)}
    return np.asarray([place.get(name, -1) for name in names], dtype=np.int64)


def detection_table(metrics: Dict, per_class: bool = False) -> str:
    """mAP in percent at every threshold and on average, the protocol and the number of videos named."""

    def cells(name: str, values: Sequence[Optional[float]]) -> List[str]:
        return [name] + ["-" if v is None else f"{100 * v:.2f}" for v in values]

    spans = list(metrics["average"])
    rows = [["tIoU"] + [f"{t:g}" for t in metrics["tiou"]] + [f"avg {span}" for span in spans]]
    rows.append(cells("mAP (%)", metrics["mAP"] + list(metrics["average"].values())))
    for name, values in sorted(metrics["AP"].items()) if per_class else ():
        within = [[v for v, t in zip(values, metrics["tiou"]) if _inside(t, span)] for span in spans]
        rows.append(cells(name, values + [float(np.mean(w)) for w in within]))
    title = f"protocol {metrics['protocol']}: {PROTOCOLS[metrics['protocol']]}; {metrics['videos']} videos"
    return "\n".join([title] + aligned(rows))


def _inside(tiou: float, span: str) -> bool:
    low, high = map(float, span.split(":"))
    return low <= tiou <= high


def _parser() -> Parser:
    protocols = "\n".join(f"  {name:9} {text}" for name, text in PROTOCOLS.items())
    text = f"""Score a detections file, from any method, against a dataset's ground truth. No features are needed.

FILE.json holds seconds: {{"results": {{VIDEO: [{{"segment": [start, end], "label": CLASS, "score": number}}, …]}}}}

Per class, detections by falling score each take the free ground truth of their video with the highest tIoU, if
that reaches the threshold; average precision is interpolated; mAP is the mean over classes with ground truth.

protocols (they differ by more than a point, so name yours):
{protocols}
"""
    parser = Parser("python -m eval.detection", description=text)
    parser.add_argument("--detections", required=True, metavar="FILE.json", help="what to score")
    parser.add_argument("--dataset_name", required=True, metavar="NAME", help=f"{', '.join(PROFILES)}, or your own")
    parser.add_argument("--dataset_root", metavar="DIR", help="where its annotations stand (default: data/NAME)")
    parser.add_argument("--subset", metavar="S", help="part of the dataset (default: its test subset)")
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="wtal", help="default: %(default)s")
    parser.add_argument("--output", metavar="METRICS.json", help="also write the metrics, as fractions")
    parser.add_argument("--per_class", action="store_true", help="one more row for each class")
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command; raises InputError for bad input."""
    args = _parser().parse_args(arguments)
    root = dataset_root(args.dataset_name, args.dataset_root)
    profile = load_profile(args.dataset_name, root)
    truth = load_ground_truth(args.dataset_name, root, profile, args.subset or profile.test_subset)
    document = load_json(args.detections, todo="give the JSON file of detections")
    detections, unknown = Detections.from_json(document, truth.classes, args.detections)
    if unknown:
        names = ", ".join(sorted(unknown)[:5]) + (", …" if len(unknown) > 5 else "")
        print(f"{sum(unknown.values())} detections have labels outside the class list and are not scored: {names}")
    outside = sorted(set(detections.videos) - set(truth.videos))
    if outside:
        count = int(np.isin(detections.video, np.flatnonzero(_places(detections.videos, truth.videos) < 0)).sum())
        print(f"{count} detections in {len(outside)} videos outside the subset are not scored: {outside[0]}, …")
    if not set(detections.videos) & set(truth.videos):
        raise InputError("detections for no video of the subset", args.detections, "check dataset, subset and names")
    missing = len(set(truth.videos) - set(detections.videos))
    if missing:
        print(f"{missing} of {len(truth.videos)} videos have no detections")
    metrics = evaluate_detections(truth, detections, profile, args.protocol)
    print(detection_table(metrics, args.per_class))
    if args.output:
        write_json(args.output, metrics)
    return 0


if __name__ == "__main__":
    run_command(main)
