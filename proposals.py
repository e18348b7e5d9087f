"""Candidate proposals as commands: ``python proposals.py make`` trains a proposal maker and writes its proposals,
``generate`` writes those of unseen videos, ``windows`` writes windows as some, and ``stats`` prints what proposals
allow: their class-agnostic recall is the ceiling of any scoring of them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from generators.make import METHODS, generate, make
from generators.points import KINDS
from options import COUNT, POSITIVE, SEED, Parser
from utils.datasets.annotations import read_annotations
from utils.datasets.features import Features, feature_names
from utils.datasets.profile import Profile, annotations_path, dataset_root, load_profile, proposals_file, settings_of
from utils.datasets.proposals import duplicates, load_proposals, recall, windows
from utils.errors import raise_first, run_command
from utils.files import write_json
from utils.segments import Segments, check_units


def stats(name: str, root: Path, proposals_root: Optional[str], fix: bool = False) -> str:
    """A table of either split's proposals: how many there are, how many repeat one, and what they allow."""
    profile = load_profile(name, root)
    annotations, instances, _, problems, _ = read_annotations(annotations_path(name, root, profile), profile)
    raise_first(problems)
    duration_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    columns, notes = {}, []
    for split, subset in (("train", profile.train_subset), ("test", profile.test_subset)):
        if split == "test" and not len(annotations.of(subset)):
            continue
        path = proposals_file(name, profile, split, proposals_root)
        truth = instances.keep([annotations.videos[i] for i in annotations.of(subset)])
        found = load_proposals(path, {v: duration_s[v] for v in truth.videos}, fix)
        raise_first(found.problems)
        ends, some = truth.last_ends(), [v for v in found.segments_s if np.isnan(duration_s[v])]
        if some:  # without durations, the last instance of a video stands for it
            length_s = np.repeat([ends.get(v, np.nan) for v in some], [len(found.segments_s[v]) for v in some])
            times_s = np.concatenate([found.segments_s[v] for v in some])
            check_units(times_s, length_s, "proposals", path)
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
    features = Features([folder], feature_names(folder), modalities=1)
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


MAKE = """Train CO2-Net (video labels: the paper's P_w) or LAC (a point an instance: P_pw) on the training videos, then
write the raw proposals of both splits, Proposals_NAME_{train,test}.json. Settings are the published ones, those of the
demo are small. Nothing of the test videos is read but their features; no threshold or weight is chosen on them. Points
are a CSV with columns video,label,time (seconds), or LAC's point_labels.csv with fps_dict.json beside it."""


def _add_make(commands: Any) -> None:
    example = "Example:  python proposals.py make --method co2net --dataset_name Demo --proposals_root made/Demo"
    sub = commands.add_parser("make", help="train a maker, write its proposals", description=MAKE, epilog=example)
    add = sub.add_argument_group("what to make").add_argument
    add("--method", choices=METHODS, required=True, help="co2net needs video labels, lac needs points too")
    group = sub.add_argument_group("points, for lac").add_mutually_exclusive_group()
    group.add_argument("--points", metavar="FILE", help="CSV of points of the training videos")
    text = "draw a point in each training instance; everything made of them is marked SIMULATED"
    group.add_argument("--simulate_points", choices=KINDS, help=text)
    add("--iterations", type=COUNT, metavar="N", help="iterations of training (default: as published)")
    add("--seed", type=SEED, default=0, metavar="X", help="random seed (default: 0)")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: auto, CUDA if there is one")
    text = "leave out the runs of low attention, which co2net adds to the training proposals as the published file does"
    add("--no_background_runs", dest="background_runs", action="store_false", help=text)
    text = "add them (default for co2net; lac has none)"
    add("--background_runs", dest="background_runs", action="store_true", default=True, help=text)
    _add_data(sub)
    add = sub.add_argument_group("files").add_argument
    text = "folder of the run: checkpoint, state, logs (default: output/NAME-METHOD, next free number)"
    add("--exp_dir", metavar="DIR", help=text)
    add("--resume", action="store_true", help="continue from EXP_DIR/ckpt/last_state.pt, to the same bits")
    add("--replace", action="store_true", help="replace proposals that are in --proposals_root already")
    add("--ignore_rate", action="store_true", help="go on where most features do not fit the profile's rate")


def _add_generate(commands: Any) -> None:
    text = "Write raw proposals of every video in a folder of features. No annotation is read."
    sub = commands.add_parser("generate", help="proposals of unseen videos", description=text)
    sub.add_argument("--checkpoint", metavar="FILE", required=True, help="ckpt/last_model.pkl of a run of make")
    text = "folder of per-video features, or RGB and flow"
    sub.add_argument("--features", metavar="DIR", nargs="+", required=True, help=text)
    sub.add_argument("--output", metavar="FILE", required=True, help="JSON to write")
    for name in ("feature_fps", "snippet_stride"):
        unit = "second" if name == "feature_fps" else "snippet"
        text = f"frames a {unit} (default: as features.json beside the features says, else the checkpoint's)"
        sub.add_argument(f"--{name}", type=POSITIVE, metavar="X", help=text)
    sub.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: auto")


def _add_data(sub: Any) -> None:
    add = sub.add_argument_group("data", "files as in the README").add_argument
    add("--dataset_name", default="Thumos14reduced", metavar="NAME", help="default: %(default)s, the paper's main set")
    add("--dataset_root", metavar="DIR", help="folder of the dataset (default: data/NAME, as for main.py)")
    text = "folder of Proposals_NAME_{train,test}.json (default: the profile's, else proposals4NAME)"
    add("--proposals_root", metavar="DIR", help=text)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command line of this module; returns the exit status."""
    parser = Parser(prog="proposals.py", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    _add_make(commands)
    _add_generate(commands)
    sub = commands.add_parser(
        "stats",
        help="counts, duplicates and class-agnostic recall of each split",
        description=STATS,
        epilog="Example:  python proposals.py stats --dataset_name Thumos14reduced --proposals_root proposals4Thumos14",
    )
    _add_data(sub)
    text = "clip or drop bad proposals, with counts (default: stop at the first, as it may be a sign of wrong files)"
    sub.add_argument("--fix_proposals", action="store_true", help=text)
    sub = commands.add_parser("windows", help="windows of every video as proposals", description=WINDOWS)
    sub.add_argument("--features", type=Path, required=True, metavar="DIR", help="folder of per-video features")
    sub.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON to write")
    args = parser.parse_args(argv)
    if args.command == "windows":
        print(write_windows(args.features, args.output))
        return 0
    if args.command == "generate":
        if len(args.features) > 2:
            parser.error("argument --features: one folder, or one of RGB and one of flow")
        generate(args)
        return 0
    if args.command == "make":
        if (args.method == "lac") != bool(args.points or args.simulate_points):
            parser.error("--method lac needs --points or --simulate_points, and only lac takes them")
        if args.resume and not args.exp_dir:
            parser.error("--resume needs --exp_dir")
        if not make(args):
            return 130
    root = dataset_root(args.dataset_name, args.dataset_root)
    print(stats(args.dataset_name, root, args.proposals_root, getattr(args, "fix_proposals", False)))
    return 0


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
