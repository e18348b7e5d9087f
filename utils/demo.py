"""Simulated two-stream features on disk: good for trying the program, worthless as a result (see utils/simulation.py).

``make_demo`` invents a small data set, ``simulate`` invents features (and proposals) for annotations that exist. Both
write the layout of THUMOS14, so that what runs on them runs on real data. As a command:

    python -m utils.demo --out DIR                                     the data set Demo
    python -m utils.demo --annotations NAME-Annotations --out DIR      features for these annotations
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from options import Parser
from utils.annotations import Annotations, Instances, read_ambiguous, read_instances, read_weak_labels
from utils.errors import InputError, run_command
from utils.files import child, write_json, write_text
from utils.profile import PROFILES, Profile, load_profile
from utils.simulation import generator, make_events, make_features, make_instances, make_proposals, make_world

NAME = "Demo"
CLASSES = (  # the first two look alike, the next two move alike, and so on
    "HighJump",
    "PoleVault",
    "CliffDiving",
    "TrampolineJump",
    "TennisServe",
    "TennisForehand",
    "FrisbeeThrow",
    "DiscusThrow",
)
NOTE = """SIMULATED. No camera has seen these videos: utils/demo.py drew their features from random numbers (seed {}).
Good for trying the program; a number measured on them says nothing about real videos.
"""


class Plan(NamedTuple):
    """The videos to simulate: what is known of them and how they are sampled."""

    annotations: Annotations
    instances: Instances
    profile: Profile
    seed: int


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
    plan, ambiguous_s = _invent(seed, videos, profile)
    with new_folder(root) as folder:
        wanted = Path(proposals_root or root)
        proposals_folder = folder if wanted.resolve() == root.resolve() else wanted
        write_annotations(folder / f"{NAME}-Annotations", plan.annotations, plan.instances, ambiguous_s)
        write_features(folder / f"{NAME}-I3D-JOINTFeatures", plan, width, dtype, progress)
        write_proposals(proposals_folder, NAME, plan, 115)
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
) -> str:
    """Write OUT/NAME-I3D-JOINTFeatures/VIDEO.npy [T, 2 * width], T = floor(duration * fps / stride), for annotations
    that exist, and a copy of these beside it. Returns NAME, which is their own name without "-Annotations".

    fps and stride are the profile's, 25 and 16 without one. limit: so many videos, spread over the list. proposals: so
    many a video, on average, are simulated too. One video is in memory at a time. Raises InputError where features are
    there already, a duration is unknown, or a name cannot be a file's.
    """
    source, out = Path(annotations_path), Path(out)
    name = source.name[: -len("-Annotations")] if source.name.endswith("-Annotations") else source.stem
    target, features = out / f"{name}-Annotations", out / f"{name}-I3D-JOINTFeatures"
    in_place = target.exists() and target.samefile(source)
    for path in (features,) if in_place else (features, target):
        refuse_existing(path)
    known = name in PROFILES or (source.parent / "dataset.json").exists()
    annotations = read_weak_labels(source)
    plan = Plan(
        annotations,
        read_instances(source, annotations),
        load_profile(name, source.parent) if known else Profile(),
        seed,
    )
    unknown = np.flatnonzero(~(np.isfinite(annotations.duration_s) & (annotations.duration_s > 0)))
    if len(unknown):
        where = f"{source}, {annotations.videos[unknown[0]]}"
        raise InputError(f"{len(unknown)} videos without a duration", where, "add the durations in seconds")
    if limit is not None and limit < len(annotations.videos):
        kept = np.linspace(0, len(annotations.videos) - 1, limit).round().astype(np.int64)
        plan, in_place = _subset(plan, kept), False
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
    return name


def _invent(seed: int, videos: Tuple[int, int], profile: Profile) -> Tuple[Plan, Dict[str, np.ndarray]]:
    """Annotations of the data set Demo and its ambiguous intervals."""
    rate = profile.snippets_per_second
    names, subset, duration_s, segments_s, labels, ambiguous_s = [], [], [], [], [], {}
    splits = (("train", profile.train_subset), ("test", profile.test_subset))
    for (split, subset_name), count in zip(splits, videos):
        for i in range(count):
            video = f"demo_{split}_{i + 1:04d}"
            rng = generator(seed, video, "annotations")
            length = int(rng.integers(60, 241))
            segments, label = make_instances(rng, length, len(CLASSES))
            names.append(video)
            subset.append(subset_name)
            duration_s.append(round((length + rng.uniform(0.1, 0.9)) / rate, 2))
            segments_s.append((segments / rate).round(2))
            labels.append(label)
            start_s = rng.uniform(0, 0.8) * length / rate
            if split == "test" and i % 10 == 0:
                ambiguous_s[video] = np.array([[start_s, start_s + rng.uniform(1, 5)]]).round(1)
    weak = tuple(tuple(dict.fromkeys(label.tolist())) for label in labels)
    annotations = Annotations(CLASSES, tuple(names), tuple(subset), np.array(duration_s), weak)
    video = np.repeat(np.arange(len(names)), [len(label) for label in labels])
    instances = Instances(video, np.concatenate(segments_s), np.concatenate(labels))
    return Plan(annotations, instances, profile, seed), ambiguous_s


def _subset(plan: Plan, kept: np.ndarray) -> Plan:
    """The plan for the videos ``kept`` (indices) alone."""
    full, instances = plan.annotations, plan.instances
    videos, subset, labels = (tuple(x[i] for i in kept) for x in (full.videos, full.subset, full.labels))
    new = np.full(len(full.videos), -1)
    new[kept] = np.arange(len(kept))
    rows = new[instances.video] >= 0
    return plan._replace(
        annotations=Annotations(full.classes, videos, subset, full.duration_s[kept], labels),
        instances=Instances(new[instances.video[rows]], instances.segment_s[rows], instances.label[rows]),
    )


def _walk(plan: Plan) -> Iterator[Tuple]:
    """(video, duration in seconds, T, segments [n, 2] in seconds, events) of each video in turn."""
    annotations, instances, rate = plan.annotations, plan.instances, plan.profile.snippets_per_second
    order = np.argsort(instances.video, kind="stable")
    bounds = np.searchsorted(instances.video[order], np.arange(len(annotations.videos) + 1))
    for i, (video, duration_s) in enumerate(zip(annotations.videos, annotations.duration_s.tolist())):
        rows = order[bounds[i] : bounds[i + 1]]
        segments_s, label = instances.segment_s[rows], instances.label[rows]
        length = max(1, int(duration_s * rate + 1e-6))
        rng = generator(plan.seed, video, "events")
        yield (
            video,
            duration_s,
            length,
            segments_s,
            make_events(rng, length, segments_s * rate, label, len(annotations.classes)),
        )


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
        _walk(plan),
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
    for subset, (video, duration_s, _, segments_s, events) in zip(plan.annotations.subset, _walk(plan)):
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


def main() -> None:
    parser = Parser(description="Simulated two-stream features: for trying the program, not for results.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into; it is made if need be")
    parser.add_argument(
        "--annotations", type=Path, help="simulate features for these; default: invent the Demo data set"
    )
    parser.add_argument("--width", type=int, help="values of one modality; default: 1024, Demo 64")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default: float16")
    parser.add_argument("--limit", type=int, help="only so many of the annotated videos, spread over their list")
    parser.add_argument("--proposals", type=int, default=0, help="simulate so many proposals a video too; default: 0")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other data; default: 0")
    args = parser.parse_args()
    for flag, least in (("width", 1), ("limit", 1), ("proposals", 0), ("seed", 0)):
        value = getattr(args, flag)
        if value is not None and value < least:
            raise InputError(f"--{flag} {value}", None, f"give {least} or more")
    name = NAME
    if args.annotations is None:
        make_demo(args.out, args.seed, width=args.width or 64, dtype=args.dtype)
    else:
        width = args.width or 1024
        name = simulate(args.annotations, args.out, width, args.seed, args.dtype, args.limit, args.proposals)
    print(f"SIMULATED features of {name} are in {args.out}: for trying the program, not for results.")
    folder = f" --proposals_root {args.out}" if args.annotations is None or args.proposals else ""
    print(f"python main.py --run_type train --dataset_name {name} --dataset_root {args.out}{folder}")


if __name__ == "__main__":
    run_command(main)
