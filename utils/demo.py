"""Simulated two-stream features on disk: good for trying the program, worthless as a result (see utils/simulation.py).

``make_demo`` invents a small data set, ``simulate`` invents features (and proposals) for annotations that exist. Both
write the layout of THUMOS14, so that what runs on them runs on real data. As a command:

    python -m utils.demo --out DIR                                     the data set Demo
    python -m utils.demo --annotations NAME-Annotations --out DIR      features for these annotations
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, Optional, Sequence, Tuple

import numpy as np

from options import Parser, number
from utils.annotations import Annotations, Instances, read_ambiguous, read_instances, read_weak_labels
from utils.errors import InputError, run_command
from utils.files import child, write_json, write_text
from utils.profile import PROFILES, Profile, load_profile, proposals_file
from utils.simulation import Plan, generator, invent, make_features, make_proposals, make_world, spread, subset_of, walk

NAME = "Demo"
NOTE = """SIMULATED. No camera has seen these videos: utils/demo.py drew their features from random numbers (seed {}).
Good for trying the program; a number measured on them says nothing about real videos.
"""


def make_demo(
    root: Path,
    seed: int = 0,
    proposals_root: Optional[Path] = None,
    progress: bool = True,
    videos: Tuple[int, int] = (100, 50),
    width: int = 64,
    dtype: str = "float16",
) -> None:
    """Write the data set Demo into the new folder ``root``, its proposals into ``proposals_root`` (default: root).

    videos: how many to train and to test on, of 60 to 240 snippets with 2 * ``width`` values each. ``root`` appears
    last and whole, so that what is there can be used; a copy that another process made meanwhile stays as it is.
    Raises InputError where ``root`` is there already.
    """
    root, profile = Path(root), PROFILES[NAME]
    refuse_existing(root)
    plan, ambiguous_s = invent(seed, videos, profile)
    with new_folder(root) as folder:
        wanted = Path(proposals_root or root)
        proposals_folder = folder if wanted.resolve() == root.resolve() else wanted
        write_annotations(folder / f"{NAME}-Annotations", plan.annotations, plan.instances, ambiguous_s)
        write_features(folder / f"{NAME}-I3D-JOINTFeatures", plan, width, dtype, progress)
        write_proposals(proposals_folder, NAME, plan, 115)
        if proposals_folder is folder:
            write_json(folder / "dataset.json", {"proposals_root": "."})
        write_text(folder / "SIMULATED.txt", NOTE.format(seed))


def simulate(
    annotations_path: Path,
    out: Path,
    width: int = 1024,
    seed: int = 0,
    dtype: str = "float16",
    limit: Optional[int] = None,
    proposals: int = 0,
    progress: bool = True,
    name: Optional[str] = None,
) -> Tuple[str, Profile]:
    """Write OUT/NAME-I3D-JOINTFeatures/VIDEO.npy [T, 2 * width], T = floor(duration * fps / stride), for annotations
    that exist, and a copy of these beside it, so that training can run on OUT. Returns NAME and its profile.

    name: default, that of a folder NAME-Annotations, else of ``out``. The profile is that of OUT/dataset.json, else of
    the one beside the annotations, else the built-in one of NAME, else the default; OUT/dataset.json says what NAME
    does not. limit: so many videos, spread over the list, such that no class loses all of its training videos.
    proposals: so many a video, on average, are simulated too. One video is in memory at a time. Raises InputError where
    features are there already, a subset is empty, a duration is unknown, ``limit`` is too small for the classes, or a
    name cannot be a file's.
    """
    source, out, mark = Path(annotations_path), Path(out), "-Annotations"
    name = name or (source.name[: -len(mark)] if source.name.endswith(mark) else out.resolve().name)
    target, features = child(out, name, mark), child(out, name, "-I3D-JOINTFeatures")
    in_place = target.exists() and target.samefile(source)
    for path in (features,) if in_place else (features, target):
        refuse_existing(path)
    stated = [folder for folder in (out, source.parent) if (folder / "dataset.json").exists()]
    profile = load_profile(name, stated[0]) if stated else PROFILES.get(name, Profile())
    annotations = read_weak_labels(source)
    plan = Plan(annotations, read_instances(source, annotations), profile, seed)
    for subset in (profile.train_subset, profile.test_subset):
        if not len(annotations.of(subset)):
            todo = (
                f"subsets are {sorted(set(annotations.subset))}: choose --name of {', '.join(PROFILES)}, or write them"
            )
            raise InputError(f"no video in subset {subset!r}", source, f"{todo} into {out / 'dataset.json'}")
    unknown = np.flatnonzero(~(np.isfinite(annotations.duration_s) & (annotations.duration_s > 0)))
    if len(unknown):
        where = f"{source}, {annotations.videos[unknown[0]]}"
        raise InputError(f"{len(unknown)} videos without a duration", where, "add the durations in seconds")
    if limit is not None and limit < len(annotations.videos):
        plan, in_place = subset_of(plan, spread(plan, limit, source)), False
        refuse_existing(target)
    if not in_place:
        with new_folder(target) as folder:
            if plan.annotations is annotations and source.is_dir():
                shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
            else:
                ambiguous_s = read_ambiguous(source / "Ambiguous_test.txt", plan.annotations.videos)
                write_annotations(folder, plan.annotations, plan.instances, ambiguous_s)
    if proposals:
        write_proposals(out, name, plan, proposals)
    with new_folder(features) as folder:
        write_features(folder, plan, width, dtype, progress)
        write_text(folder / "SIMULATED.txt", NOTE.format(seed))
    root = str(Path(profile.proposals_root).resolve()) if profile.proposals_root and not proposals else None
    written = dataclasses.replace(profile, annotations=None, features=None, proposals_root="." if proposals else root)
    if profile != PROFILES.get(name) and not (out / "dataset.json").exists():
        write_json(out / "dataset.json", {k: v for k, v in dataclasses.asdict(written).items() if v is not None})
    return name, profile


def write_annotations(
    folder: Path, annotations: Annotations, instances: Instances, ambiguous_s: Dict[str, np.ndarray]
) -> None:
    """Write W-TALC's files into ``folder``; ambiguous_s: video -> [K, 2] seconds, for Ambiguous_test.txt."""
    classes, n = annotations.classes, len(annotations.videos)
    own = [np.flatnonzero(instances.video == i) for i in range(n)]

    def column(values: Sequence) -> np.ndarray:
        array = np.empty(n, dtype=object)
        array[:] = values
        return array

    arrays = {
        "classlist": np.array(classes),
        "videoname": np.array(annotations.videos),
        "subset": np.array(annotations.subset),
        "duration": annotations.duration_s,
        "labels_all": column([[classes[c] for c in weak] for weak in annotations.labels]),
        "labels": column([[classes[c] for c in instances.label[rows]] for rows in own]),
        "segments": column([instances.segment_s[rows].tolist() for rows in own]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
    if ambiguous_s:
        lines = [f"{video} {start:g} {end:g}\n" for video, times in ambiguous_s.items() for start, end in times]
        write_text(folder / "Ambiguous_test.txt", "".join(lines))


def write_features(folder: Path, plan: Plan, width: int, dtype: str, progress: bool) -> None:
    """Write FOLDER/VIDEO.npy, ``dtype`` [T, 2 * width], for every video of the plan."""
    from tqdm import tqdm

    world = make_world(plan.seed, len(plan.annotations.classes), width)
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(
        walk(plan),
        "simulating features",
        len(plan.annotations.videos),
        unit="video",
        disable=None if progress else True,
    )
    for video, _, length, _, events in bar:
        features = make_features(generator(plan.seed, video, "features"), length, events, world)
        np.save(child(folder, video, ".npy"), features.astype(dtype))


def write_proposals(folder: Path, name: str, plan: Plan, mean_count: int) -> None:
    """Write FOLDER/Proposals_NAME_{train,test}.json with 0.7 to 1.3 times ``mean_count`` proposals a video."""
    profile, splits = plan.profile, {}
    for subset in (profile.train_subset, profile.test_subset):
        splits[subset] = {}
    for subset, (video, duration_s, _, segments_s, events) in zip(plan.annotations.subset, walk(plan)):
        if subset in splits:
            rng = generator(plan.seed, video, "proposals")
            distractors_s = (
                np.stack([events.start, events.end], axis=1)[events.distractor] / profile.snippets_per_second
            )
            count = max(1, int(rng.integers(round(0.7 * mean_count), round(1.3 * mean_count) + 1)))
            snippet_s = 1 / profile.snippets_per_second
            boxes = make_proposals(rng, duration_s, segments_s, distractors_s, count, snippet_s)
            splits[subset][video] = [{"segment": box, "label": "", "score": 0.0} for box in boxes.tolist()]
    for split, results in zip(("train", "test"), splits.values()):
        write_json(folder / f"Proposals_{name}_{split}.json", {"version": "simulated", "results": results})


def refuse_existing(path: Path) -> None:
    """Raise InputError where something stands that would be overwritten; an empty folder may stand."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError("exists already", path, "remove it or choose another folder")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` to write into; it takes that name when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        try:
            os.replace(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another process was faster: keep its folder
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


EXAMPLES = """examples:
  python -m utils.demo --out data/Demo
      the data set Demo; main.py --dataset_name Demo makes it by itself where it is missing
  python -m utils.demo --annotations DIR/Thumos14reduced-Annotations --out data/Thumos14reduced
      THUMOS14 at full size, for its real proposals
  python -m utils.demo --annotations DIR/activity_net.v1-2.min-missing-removed.json --out data/ActivityNet1.2 \\
                       --limit 300 --width 128 --proposals 30
      a part of ActivityNet1.2 with simulated proposals"""


def main() -> None:
    """The command line of this module."""
    parser = Parser(
        prog="python -m utils.demo",
        description="Simulated two-stream features: for trying the program, not for results.",
        epilog=EXAMPLES,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what to make").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write into; it is made if need be")
    text = "folder, JSON or CSV: simulate features for these (default: invent the small data set Demo)"
    add("--annotations", type=Path, metavar="PATH", help=text)
    text = (
        "of the data set (default: that of a folder NAME-Annotations, else of DIR, as data/NAME is where it is sought)"
    )
    add("--name", metavar="NAME", help=text)
    text = "only so many of the annotated videos, at least one to train on for each class (default: all)"
    add("--limit", type=number(int, 1), metavar="N", help=text)
    text = "simulate so many proposals a video (default: 0, as real ones are to be had; Demo always has 115)"
    add("--proposals", type=number(int, 0), default=0, metavar="N", help=text)
    add = parser.add_argument_group("how").add_argument
    text = "values of one modality (default: 1024 as I3D's; Demo 64, to train in two minutes)"
    add("--width", type=number(int, 1), metavar="D", help=text)
    text = "default: float16, as released features are, and half the size"
    add("--dtype", choices=("float16", "float32"), default="float16", help=text)
    text = "another seed, other data (default: 0, so that all see the same)"
    add("--seed", type=number(int, 0), default=0, metavar="N", help=text)
    args = parser.parse_args()
    if args.annotations is None and (args.name or args.limit or args.proposals):
        parser.error("--name, --limit and --proposals are for --annotations")
    name, profile = NAME, PROFILES[NAME]
    if args.annotations is None:
        make_demo(args.out, args.seed, width=args.width or 64, dtype=args.dtype)
    else:
        how = (args.width or 1024, args.seed, args.dtype, args.limit, args.proposals)
        name, profile = simulate(args.annotations, args.out, *how, name=args.name)
    print(f"SIMULATED features of {name} are in {args.out}: for trying the program, not for results.")
    line = ["python", "main.py", "--run_type", "train", "--dataset_name", name, "--dataset_root", str(args.out)]
    if args.annotations is None or args.proposals:
        line += ["--proposals_root", str(args.out)]
    elif not proposals_file(name, profile, "train").exists():
        place = proposals_file(name, profile, "{train,test}")
        print(f"Training needs {place.name} in {place.parent}; --proposals 100 simulates them.")
    print(shlex.join(line))


if __name__ == "__main__":
    run_command(main)
