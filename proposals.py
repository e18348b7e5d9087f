"""Candidate proposals: reading, checking and counting them. Only their time stamps are used, never label or score.

``python proposals.py stats --dataset_name NAME`` prints what the proposals of a dataset allow: their class-agnostic
recall is the ceiling of any scoring of them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from options import Parser
from utils.annotations import WHERE_FROM
from utils.errors import InputError, run_command, stop
from utils.files import load_json
from utils.profile import (
    GroundTruth,
    dataset_root,
    load_annotations,
    load_ground_truth,
    load_profile,
    proposals_file,
)
from utils.report import some

FIX = "--fix_proposals clips what sticks out and drops the rest"
SLACK_S = 0.01  # a proposal may stick out of its video by so much: both are rounded, by different tools


def to_snippets(seconds: np.ndarray, snippets_per_second: float) -> np.ndarray:
    """Seconds to snippets, rounded to 0.01 as the literature's proposals are."""
    return np.round(np.asarray(seconds, dtype=np.float64) * snippets_per_second, 2)


@dataclass
class Counts:
    """What reading a proposals file passed over."""

    unknown: List[str] = field(default_factory=list)  # videos
    dropped: int = 0
    clipped: int = 0

    @property
    def unknown_videos(self) -> int:
        return len(self.unknown)

    def lines(self) -> List[str]:
        names = some(self.unknown)
        texts = (
            (self.unknown_videos, f"videos with proposals are not in the annotations and were passed over: {names}"),
            (self.dropped, "proposals were dropped (--fix_proposals)"),
            (self.clipped, "proposals were clipped to their video (--fix_proposals)"),
        )
        return [f"{number} {text}" for number, text in texts if number]


def read_results(path: Path) -> Dict[str, Any]:
    """What a proposals file lists for each video, unchecked. Raises InputError for a file of another form."""
    document = load_json(path, todo=WHERE_FROM, allow_nan=True)
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(results, dict):
        raise InputError("no 'results' of videos", path, 'expected {"results": {VIDEO: [{"segment": [s, e]}]}}')
    return results


def load_proposals(
    path: Path,
    length_s: Mapping[str, float],
    fix: bool = False,
    problem: Callable[[InputError], None] = stop,
    results: Optional[Mapping[str, Any]] = None,
) -> Tuple[Dict[str, np.ndarray], Counts]:
    """Read ``{"results": {VIDEO: [{"segment": [start_s, end_s]}, …]}}``: video -> float64 [M, 2] seconds.

    length_s: length in seconds of each known video (NaN: unknown); videos of the file beyond these are counted and
    passed over, videos with an empty list are left out. A proposal that is not two finite numbers with
    0 <= start < end, or that ends beyond its video (by more than SLACK_S), raises InputError naming file, video and
    index; with ``fix`` it is clipped or, where nothing is left, dropped. ``problem`` may do something else with that
    error: then the video's other proposals are read on. results: ``read_results`` of the file, if done already.
    """
    results = read_results(path) if results is None else results
    counts = Counts([v for v in results if v not in length_s])
    found = {}
    for video, entries in results.items():
        if video not in length_s:
            continue
        segment_s, index = _segments(entries, f"{path}, {video}", fix, counts, problem)
        end_s = length_s[video] if np.isfinite(length_s[video]) else np.inf
        where = f"{path}, {video}"
        inside = _inside(segment_s, end_s)
        if fix and not inside.all():
            segment_s = _clipped(segment_s, end_s, counts)
        elif not inside.all():
            check_segments(segment_s, end_s, where, index, problem)
            segment_s = segment_s[inside]
        if len(segment_s):
            found[video] = segment_s
    return found, counts


def _segments(entries: object, where: str, fix: bool, counts: Counts, problem) -> Tuple[np.ndarray, np.ndarray]:
    """float64 [M, 2] seconds of the entries that are pairs of numbers, and the index of each in the list."""
    form = 'each is {"segment": [start_s, end_s]}'
    if not isinstance(entries, list):
        problem(InputError("not a list of proposals", where, form))
        entries = []
    pairs = [entry.get("segment") if isinstance(entry, dict) else None for entry in entries]
    good = [isinstance(p, list) and len(p) == 2 and all(type(x) in (int, float) for x in p) for p in pairs]
    if fix:
        counts.dropped += good.count(False)
    elif not all(good):
        problem(InputError("not a proposal", _indices(where, np.flatnonzero(~np.asarray(good))), form))
    kept = np.flatnonzero(good)
    seconds = [[min(max(x, -1e18), 1e18) if x == x else x for x in pairs[i]] for i in kept]  # int may outgrow float64
    return np.asarray(seconds, dtype=np.float64).reshape(-1, 2), kept


def _indices(where: str, bad: np.ndarray) -> str:
    return f"{where}, index {some([str(i) for i in bad])}"


def _inside(segment_s: np.ndarray, end_s: float) -> np.ndarray:
    """bool [M]: finite, 0 <= start < end, and no further beyond the end of the video than SLACK_S."""
    start, end = segment_s[:, 0], segment_s[:, 1]
    with np.errstate(invalid="ignore"):
        return (np.abs(segment_s) < 1e18).all(axis=1) & (start >= 0) & (end > start) & (end <= end_s + SLACK_S)


def check_segments(
    segment_s: np.ndarray,
    end_s: float,
    where: str,
    index: Optional[np.ndarray] = None,
    problem: Callable[[InputError], None] = stop,
) -> None:
    """Raise InputError, or hand it to ``problem``, unless all segments [M, 2] lie in a video that ends at ``end_s``.

    index: int [M], place of each in its list, if that is not its row.
    """
    bad = np.flatnonzero(~_inside(segment_s, end_s))
    if len(bad):
        of = "its video" if np.isinf(end_s) else f"a video of {end_s:.3f} s"
        what = f"proposal {segment_s[bad[0]].tolist()} is no segment of {of}"
        problem(InputError(what, _indices(where, bad if index is None else index[bad]), FIX))


def _clipped(segment_s: np.ndarray, end_s: float, counts: Counts) -> np.ndarray:
    """What is left of the segments inside the video."""
    kept = segment_s[(np.abs(segment_s) < 1e18).all(axis=1)]
    clipped = np.clip(kept, 0.0, end_s)
    real = clipped[:, 1] > clipped[:, 0]
    counts.dropped += len(segment_s) - int(real.sum())
    counts.clipped += int((clipped[real] != kept[real]).any(axis=1).sum())
    return clipped[real]


def duplicates(proposals: Sequence[np.ndarray]) -> int:
    """How many proposals repeat an earlier one of their video."""
    return sum(len(p) - len(np.unique(p, axis=0)) for p in proposals)


def tiou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Temporal IoU of every segment in a [M, 2] with every one in b [G, 2], in any one unit; 0 where both are empty."""
    shared = np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0])
    shared = np.maximum(shared, 0.0)
    union = (a[:, 1] - a[:, 0])[:, None] + (b[:, 1] - b[:, 0])[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def recall(proposals_s: Mapping[str, np.ndarray], truth: GroundTruth, rate: Optional[float], tious) -> np.ndarray:
    """Share of instances that some proposal of their video meets with tIoU >= each threshold, classes ignored.

    rate: None compares exact seconds; snippets per second compares in snippets, instances rounded to whole ones.
    """
    best = np.zeros(len(truth.video))
    for index, video in enumerate(truth.videos):
        mine = np.flatnonzero(truth.video == index)
        if video in proposals_s and len(mine):
            segments, instances = proposals_s[video], truth.segment_s[mine]
            if rate is not None:
                segments, instances = to_snippets(segments, rate), np.round(instances * rate)
            best[mine] = tiou(segments, instances).max(axis=0)
    return np.asarray([(best >= t).mean() if len(best) else np.nan for t in tious])


def stats(args: argparse.Namespace) -> None:
    """Print, per split, how many proposals there are, how many repeat one, and what they allow."""
    root = dataset_root(args.dataset_name, args.dataset_root)
    profile = load_profile(args.dataset_name, root)
    tious = profile.tiou_thresholds
    rate = profile.snippets_per_second
    annotations = load_annotations(args.dataset_name, root, profile)
    duration_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    for split, subset in (("train", profile.train_subset), ("test", profile.test_subset)):
        path = proposals_file(args.dataset_name, profile, split, args.proposals_root)
        truth = load_ground_truth(args.dataset_name, root, profile, subset)
        found, counts = load_proposals(path, {v: duration_s[v] for v in truth.videos}, args.fix_proposals)
        number = np.asarray([len(p) for p in found.values()] or [0])
        total, repeated = int(number.sum()), duplicates(list(found.values()))
        length_s = np.concatenate([p[:, 1] - p[:, 0] for p in found.values()] or [np.zeros(1)])
        print(f"{split}: {path}")
        print(f"  videos with proposals  {len(found):,} of {len(truth.videos):,} in subset {subset!r}")
        print(f"  proposals              {total:,}")
        print(f"  per video              min {number.min()}, median {np.median(number):g}, max {number.max()}")
        print(f"  duplicates             {repeated:,} ({100 * repeated / max(total, 1):.1f} %)")
        print(f"  mean length            {length_s.mean():.2f} s")
        for line in counts.lines():
            print(f"  note                   {line}")
        print("  recall at tIoU        " + "".join(f"{t:7.2f}" for t in tious))
        for name, unit in (("exact seconds", None), ("whole snippets", rate)):
            values = recall(found, truth, unit, tious)
            print(f"    {name:<20}" + "".join(f"{v:7.3f}" for v in values))


STATS = """Print for either split how many proposals there are, how many repeat another of their video, how long they
are, and their recall: the share of instances that some proposal meets with at least that tIoU, whatever its class.
No scoring of these proposals can find more. It stands there twice:
  exact seconds    proposals and instances as the files have them: the ceiling in the protocols exact and exact210
  whole snippets   instances rounded to whole snippets, proposals to 0.01: the ceiling in the protocol wtal (but
                   where a profile rounds no ground truth, as ActivityNet's, wtal is exact too)"""


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command line of this module."""
    parser = Parser(prog="proposals.py", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser(
        "stats",
        help="counts, duplicates and class-agnostic recall of each split",
        description=STATS,
        epilog="Example:  python proposals.py stats --dataset_name Thumos14reduced --proposals_root proposals4Thumos14",
        allow_abbrev=False,
    )
    add = sub.add_argument_group("data", "files as in the README; neither features nor a model are needed").add_argument
    text = "default: Thumos14reduced, the paper's main set"
    add("--dataset_name", default="Thumos14reduced", metavar="NAME", help=text)
    add("--dataset_root", metavar="DIR", help="folder of the dataset (default: data/NAME, where main.py looks too)")
    text = "folder of Proposals_NAME_{train,test}.json (default: the profile's, else proposals4NAME)"
    add("--proposals_root", metavar="DIR", help=text)
    text = "clip or drop bad proposals, with counts (default: stop at the first, as it may be a sign of wrong files)"
    add("--fix_proposals", action="store_true", help=text)
    stats(parser.parse_args(argv))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
