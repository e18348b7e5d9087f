"""Candidate proposals as commands: ``python proposals.py stats --dataset_name NAME`` prints what the proposals of a
dataset allow; their class-agnostic recall is the ceiling of any scoring of them. ``windows`` writes windows as some.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import List, Mapping, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from options import Parser
from utils.datasets.annotations import read_annotations
from utils.datasets.feature_files import list_files
from utils.datasets.features import Features
from utils.datasets.profile import Profile, annotations_path, dataset_root, load_profile, proposals_file, settings_of
from utils.datasets.proposals import duplicates, load_proposals, recall, windows
from utils.errors import raise_first, run_command
from utils.files import write_json
from utils.segments import Segments


def stats(name: str, root: Path, proposals_root: Optional[str], fix: bool = False) -> str:
    """A table of either split's proposals: how many there are, how many repeat one, and what they allow."""
    profile = load_profile(name, root)
    annotations, instances, _, problems, _ = read_annotations(annotations_path(name, root, profile), profile)
    raise_first(problems)
    duration_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    columns, notes = {}, []
    for split, subset in (("train", profile.train_subset), ("test", profile.test_subset)):
        path = proposals_file(name, profile, split, proposals_root)
        truth = instances.keep([annotations.videos[i] for i in annotations.of(subset)])
        found = load_proposals(path, {v: duration_s[v] for v in truth.videos}, fix)
        raise_first(found.problems)
        rate = profile.snippets_per_second if profile.round_ground_truth else None
        columns[split] = dict(_column(found.segments_s, truth, rate, profile.tiou_thresholds))
        notes += [f"{split}: {path}", *(f"note: {note}" for note in found.notes)]
    return "\n".join([*notes, pd.DataFrame(columns).to_string()])


def _column(found: Mapping[str, np.ndarray], truth: Segments, rate: Optional[float], tious) -> List[Tuple[str, str]]:
    number = pd.Series([len(p) for p in found.values()] or [0])
    length_s = np.concatenate([p[:, 1] - p[:, 0] for p in found.values()] or [np.zeros(1)])
    rows = [
        ("videos with proposals", f"{len(found):,} of {len(truth.videos):,}"),
        ("proposals", f"{number.sum():,}"),
        ("per video: min, median, max", f"{number.min()}, {number.median():g}, {number.max()}"),
        ("duplicates", f"{duplicates(list(found.values())):,}"),
        ("mean length, seconds", f"{length_s.mean():.2f}"),
    ]
    for unit, its_rate in (("exact seconds", None), ("whole snippets", rate))[: 1 + (rate is not None)]:
        values = recall(found, truth, its_rate, tious)
        rows += [(f"recall, {unit}, tIoU {t:.2f}", f"{v:.3f}") for t, v in zip(tious, values)]
    return rows


def write_windows(folder: Path, output: Path) -> str:
    """Write multi-scale windows (``utils.datasets.proposals.windows``) of every video in a folder of features, whose
    features.json says the rate (without one: 25 frames a second, 16 a snippet). Returns a line of what there is."""
    rate = Profile(**settings_of([folder])).snippets_per_second
    features = Features([folder], sorted({name for files in list_files(folder) for name in files}), modalities=1)
    found = {video: (windows(features.length(video)) / rate).round(4).tolist() for video in features.videos}
    write_json(output, {"results": {v: [{"segment": segment} for segment in mine] for v, mine in found.items()}})
    return f"{sum(map(len, found.values())):,} windows of {len(found)} videos: {output}"


WINDOWS = """Write windows of 2, 4, 8 … snippets, each half a window after the one before, and the whole video, as
proposals: what there is where nothing was trained to propose."""
STATS = """Print for either split how many proposals there are, how many repeat another of their video, how long they
are, and their recall: the share of instances that some proposal meets with at least that tIoU, whatever its class.
No scoring of these proposals can find more. Where the dataset's protocol rounds, recall is given twice:
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
    sub = commands.add_parser("windows", help="windows of every video as proposals", description=WINDOWS)
    sub.add_argument("--features", type=Path, required=True, metavar="DIR", help="folder of per-video features")
    sub.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON to write")
    args = parser.parse_args(argv)
    if args.command == "windows":
        print(write_windows(args.features, args.output))
        return
    root = dataset_root(args.dataset_name, args.dataset_root)
    print(stats(args.dataset_name, root, args.proposals_root, args.fix_proposals))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
