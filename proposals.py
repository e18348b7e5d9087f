"""Candidate proposals: reading, checking and counting them. Only their time stamps are used, never label or score.

``python proposals.py stats --dataset_name NAME`` prints what the proposals of a dataset allow: their class-agnostic
recall is the ceiling of any scoring of them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from options import Parser
from utils.datasets.annotations import WHERE_FROM, read_annotations
from utils.datasets.profile import annotations_path, dataset_root, load_profile, proposals_file
from utils.errors import InputError, raise_first, run_command
from utils.files import load_json
from utils.run.report import some
from utils.segments import Segments, tiou, to_snippets

FORM = '{"results": {VIDEO: [{"segment": [start_s, end_s]}]}}'
SLACK_S = 0.01  # a proposal may stick out of its video by so much: both are rounded, by different tools


class Proposals(NamedTuple):
    """What a proposals file holds for some videos."""

    segments_s: Dict[str, np.ndarray]  # float64 [M, 2] seconds of each video that has any
    notes: List[str]  # what was left out or changed
    problems: List[InputError]  # what is wrong, a line a video and kind


def read_results(path: Path) -> Dict[str, Any]:
    """What a proposals file lists for each video, unchecked. Raises InputError for a file of another form."""
    document = load_json(path, todo=WHERE_FROM, allow_nan=True)
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(results, dict):
        raise InputError("no 'results' of videos", path, f"expected {FORM}")
    return results


def load_proposals(
    path: Path, length_s: Mapping[str, float], fix: bool = False, results: Optional[Mapping[str, Any]] = None
) -> Proposals:
    """Read the proposals of some videos, in seconds.

    length_s: length in seconds of each known video (NaN: unknown); videos of the file beyond these are counted and
    ignored. A proposal that is not two finite numbers with 0 <= start < end, or that ends beyond its video (by more
    than SLACK_S), is a problem that names file, video and index; with ``fix`` it is clipped or, where nothing is left,
    dropped. results: ``read_results`` of the file, if done already. Raises InputError for a file of another form.
    """
    results = read_results(path) if results is None else results
    found: Dict[str, np.ndarray] = {}
    problems: List[InputError] = []
    dropped = clipped = 0
    for video in results:
        if video not in length_s:
            continue
        where, end_s = f"{path}, {video}", length_s[video]
        segment_s = _pairs(results[video])
        if segment_s is None:
            problems.append(InputError("not a list of proposals", where, f"expected {FORM}"))
            continue
        end_s = end_s if np.isfinite(end_s) else np.inf
        start, end = segment_s.T
        inside = np.isfinite(segment_s).all(1) & (start >= 0) & (end > start) & (end <= end_s + SLACK_S)
        if fix:
            kept = np.clip(segment_s[np.isfinite(segment_s).all(1)], 0, end_s)
            kept = kept[kept[:, 1] > kept[:, 0]]
            dropped += len(segment_s) - len(kept)
            clipped += int((~inside).sum()) - (len(segment_s) - len(kept))
            segment_s = kept
        elif not inside.all():
            bad = np.flatnonzero(~inside)
            of = "its video" if np.isinf(end_s) else f"a video of {end_s:.3f} s"
            what = f"proposal {segment_s[bad[0]].tolist()} is no segment of {of}"
            where = f"{where}, index {some([str(i) for i in bad])}"
            problems.append(InputError(what, where, "--fix_proposals clips what sticks out and drops the rest"))
            segment_s = segment_s[inside]
        if len(segment_s):
            found[video] = segment_s
    unknown = [video for video in results if video not in length_s]
    notes = (
        (len(unknown), f"videos with proposals are not in the annotations and are ignored: {some(unknown)}"),
        (dropped, "proposals were dropped (--fix_proposals)"),
        (clipped, "proposals were clipped to their video (--fix_proposals)"),
    )
    return Proposals(found, [f"{path}: {count} {text}" for count, text in notes if count], problems)


def _pairs(entries: object) -> Optional[np.ndarray]:
    """float64 [M, 2] seconds of the entries of one video, NaN for what is no pair of numbers; None for no list."""
    if not isinstance(entries, list):
        return None
    pairs = [entry.get("segment") if isinstance(entry, dict) else None for entry in entries]
    good = [isinstance(p, list) and len(p) == 2 and all(type(x) in (int, float) for x in p) for p in pairs]
    seconds = [[float(min(max(x, -1e300), 1e300)) for x in p] if ok else [np.nan] * 2 for p, ok in zip(pairs, good)]
    return np.asarray(seconds, dtype=np.float64).reshape(-1, 2)


def duplicates(proposals: Sequence[np.ndarray]) -> int:
    """How many proposals repeat an earlier one of their video."""
    return sum(len(p) - len(np.unique(p, axis=0)) for p in proposals)


def recall(proposals_s: Mapping[str, np.ndarray], truth: Segments, rate: Optional[float], tious) -> np.ndarray:
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


def stats(name: str, root: Path, proposals_root: Optional[str], fix: bool = False) -> str:
    """A table of either split's proposals: how many there are, how many repeat one, and what they allow."""
    profile = load_profile(name, root)
    annotations, instances, _, problems, _ = read_annotations(annotations_path(name, root, profile))
    raise_first(problems)
    duration_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    columns, notes = {}, []
    for split, subset in (("train", profile.train_subset), ("test", profile.test_subset)):
        path = proposals_file(name, profile, split, proposals_root)
        truth = instances.keep([annotations.videos[i] for i in annotations.of(subset)])
        found = load_proposals(path, {v: duration_s[v] for v in truth.videos}, fix)
        raise_first(found.problems)
        columns[split] = dict(_column(found.segments_s, truth, profile.snippets_per_second, profile.tiou_thresholds))
        notes += [f"{split}: {path}", *(f"note: {note}" for note in found.notes)]
    return "\n".join([*notes, pd.DataFrame(columns).to_string()])


def _column(found: Mapping[str, np.ndarray], truth: Segments, rate: float, tious) -> List[Tuple[str, str]]:
    number = pd.Series([len(p) for p in found.values()] or [0])
    length_s = np.concatenate([p[:, 1] - p[:, 0] for p in found.values()] or [np.zeros(1)])
    rows = [
        ("videos with proposals", f"{len(found):,} of {len(truth.videos):,}"),
        ("proposals", f"{number.sum():,}"),
        ("per video: min, median, max", f"{number.min()}, {number.median():g}, {number.max()}"),
        ("duplicates", f"{duplicates(list(found.values())):,}"),
        ("mean length, seconds", f"{length_s.mean():.2f}"),
    ]
    for unit, its_rate in (("exact seconds", None), ("whole snippets", rate)):
        values = recall(found, truth, its_rate, tious)
        rows += [(f"recall, {unit}, tIoU {t:.2f}", f"{v:.3f}") for t, v in zip(tious, values)]
    return rows


STATS = """Print for either split how many proposals there are, how many repeat another of their video, how long they
are, and their recall: the share of instances that some proposal meets with at least that tIoU, whatever its class.
No scoring of these proposals can find more. Recall is given twice:
  exact seconds    proposals and instances as the files have them: the ceiling in the protocols exact and exact210
  whole snippets   instances rounded to whole snippets, proposals to 0.01: the ceiling in the protocol wtal"""


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command line of this module."""
    parser = Parser(prog="proposals.py", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser(
        "stats",
        help="counts, duplicates and class-agnostic recall of each split",
        description=STATS,
        epilog="Example:  python proposals.py stats --dataset_name Thumos14reduced --proposals_root proposals4Thumos14",
    )
    add = sub.add_argument_group("data", "files as in the README; neither features nor a model are needed").add_argument
    add("--dataset_name", default="Thumos14reduced", metavar="NAME", help="default: %(default)s, the paper's main set")
    add("--dataset_root", metavar="DIR", help="folder of the dataset (default: data/NAME, as for main.py)")
    text = "folder of Proposals_NAME_{train,test}.json (default: the profile's, else proposals4NAME)"
    add("--proposals_root", metavar="DIR", help=text)
    text = "clip or drop bad proposals, with counts (default: stop at the first, as it may be a sign of wrong files)"
    add("--fix_proposals", action="store_true", help=text)
    args = parser.parse_args(argv)
    root = dataset_root(args.dataset_name, args.dataset_root)
    print(stats(args.dataset_name, root, args.proposals_root, args.fix_proposals))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
