"""Simulated datasets on disk, in the layout of THUMOS14: good for trying the program, worthless as a result.

``make_demo`` invents a small dataset, ``simulate`` invents features (and proposals) for annotations that exist.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Dict, Iterator, NamedTuple, Optional, Tuple

import numpy as np
from tqdm import tqdm

from utils.datasets import world
from utils.datasets.annotations import Annotations, read_annotations, write_annotations
from utils.datasets.profile import PROFILES, Profile, load_profile
from utils.errors import InputError, raise_first
from utils.files import child, write_json, write_text
from utils.segments import Segments

DEMO = "Demo"
# the first two look alike, the next two move alike, and so on
ALIKE = "HighJump PoleVault CliffDiving TrampolineJump TennisServe TennisForehand FrisbeeThrow DiscusThrow"
CLASSES = tuple(ALIKE.split())
RESCALED = 100  # snippets of every video where the profile says that features are rescaled
NOTE = """SIMULATED. No camera has seen these videos: their features are random numbers drawn by
utils/datasets/world.py from seed {}. Good for trying the program; a number measured on them says
nothing about real videos.
"""


class Plan(NamedTuple):
    """The videos to simulate: what is known of them and how they are sampled."""

    annotations: Annotations
    instances: Segments
    profile: Profile
    seed: int

    def walk(self) -> Iterator[Tuple[str, float, float, int, np.ndarray, world.Events]]:
        """(video, duration in seconds, snippets per second, T, segments [n, 2] in seconds, events) of each video."""
        videos, duration_s = self.annotations.videos, self.annotations.duration_s
        rates = self.profile.rates(videos, np.full(len(videos), RESCALED), duration_s)
        num_class = len(self.annotations.classes)
        for video, seconds, rate in zip(videos, duration_s.tolist(), rates.tolist()):
            (segment_s, label, _), length = self.instances.of(video), max(1, int(seconds * rate + 1e-6))
            rng = world.generator(self.seed, video, "events")
            events = world.make_events(rng, length, segment_s * rate, label, num_class)
            yield video, seconds, rate, length, segment_s, events


def make_demo(
    root: Path,
    seed: int = 0,
    proposals_root: Optional[Path] = None,
    videos: Tuple[int, int] = (100, 50),
    width: int = 64,
    dtype: str = "float16",
) -> None:
    """Write the dataset Demo into the new folder ``root``, its proposals into ``proposals_root`` (default: root).

    videos: how many to train and to test on, of 60 to 240 snippets with 2 * ``width`` values each. ``root`` appears
    last and whole. Raises InputError where it exists.
    """
    root = Path(root)
    plan, ambiguous_s = _invent(seed, videos)
    with new_folder(root) as folder:
        inside = proposals_root is None or Path(proposals_root).resolve() == root.resolve()
        write_annotations(folder / f"{DEMO}-Annotations", plan.annotations, plan.instances, ambiguous_s)
        _write_features(folder / f"{DEMO}-I3D-JOINTFeatures", plan, width, dtype)
        _write_proposals(folder if inside else Path(proposals_root), DEMO, plan, 115)
        if inside:
            write_json(folder / "dataset.json", {"proposals_root": "."})
        write_text(folder / "SIMULATED.txt", NOTE.format(seed))


def _invent(seed: int, videos: Tuple[int, int]) -> Tuple[Plan, Dict[str, np.ndarray]]:
    """Annotations of the dataset Demo and its ambiguous intervals."""
    profile, rate = PROFILES[DEMO], PROFILES[DEMO].snippets_per_second
    rows, segments_s, labels, ambiguous_s = [], [], [], {}
    for split, subset, count in zip(("train", "test"), (profile.train_subset, profile.test_subset), videos):
        for i in range(count):
            video = f"demo_{split}_{i + 1:04d}"
            rng = world.generator(seed, video, "annotations")
            length = int(rng.integers(60, 241))
            segments, label = world.make_instances(rng, length, len(CLASSES))
            duration_s = round((length + rng.uniform(0.1, 0.9)) / rate, 2)
            rows.append((video, subset, duration_s, tuple(dict.fromkeys(label.tolist()))))
            segments_s.append((segments / rate).round(2))
            labels.append(label)
            start_s = rng.uniform(0, 0.8) * length / rate
            if split == "test" and i % 10 == 0:
                ambiguous_s[video] = np.array([[start_s, start_s + rng.uniform(1, 5)]]).round(1)
    names, subsets, durations, weak = zip(*rows)
    annotations = Annotations(CLASSES, names, subsets, np.array(durations), weak)
    video_of = np.repeat(np.arange(len(names)), [len(label) for label in labels])
    instances = Segments(CLASSES, names, video_of, np.concatenate(segments_s), np.concatenate(labels))
    return Plan(annotations, instances, profile, seed), ambiguous_s


def simulate(
    source: Path,
    out: Path,
    width: int = 1024,
    seed: int = 0,
    dtype: str = "float16",
    proposals: int = 0,
) -> Tuple[str, Profile]:
    """Write OUT/NAME-I3D-JOINTFeatures/VIDEO.npy [T, 2 * width], T = floor(duration * fps / stride), for the
    annotations ``source``, and a copy of these as OUT/NAME-Annotations. Returns NAME and its profile.

    NAME is that of a folder NAME-Annotations, else of ``out``; its profile is built in or in OUT/dataset.json.
    proposals: mean number to simulate for each video. Raises InputError where features exist already or nothing can be
    simulated.
    """
    source, out, mark = Path(source), Path(out), "-Annotations"
    name = source.name[: -len(mark)] if source.name.endswith(mark) else out.resolve().name
    target, features = child(out, name, mark), child(out, name, "-I3D-JOINTFeatures")
    out.mkdir(parents=True, exist_ok=True)
    profile = load_profile(name, out)
    read = read_annotations(source, profile)
    raise_first(read.problems)
    plan = Plan(read.annotations, read.instances, profile, seed)
    _check(plan, source)
    with ExitStack() as stack:
        folder = stack.enter_context(new_folder(features))
        if not (target.exists() and target.samefile(source)):
            copy = stack.enter_context(new_folder(target))
            write_annotations(copy, plan.annotations, plan.instances, read.ambiguous_s)
        _write_features(folder, plan, width, dtype)
        write_text(folder / "SIMULATED.txt", NOTE.format(seed))
        if proposals:
            _write_proposals(out, name, plan, proposals)
    return name, profile


def _check(plan: Plan, source: Path) -> None:
    """Raise InputError for annotations that nothing can be simulated for."""
    annotations = plan.annotations
    for subset in (plan.profile.train_subset, plan.profile.test_subset):
        if subset not in annotations.subset:
            todo = f"subsets are {sorted(set(annotations.subset))}: say which in dataset.json"
            raise InputError(f"no video in subset {subset!r}", source, todo)
    unknown = np.flatnonzero(~(np.isfinite(annotations.duration_s) & (annotations.duration_s > 0)))
    if len(unknown):
        where = f"{source}, {annotations.videos[unknown[0]]}"
        raise InputError(f"{len(unknown)} videos without a duration", where, "add the durations in seconds")


def _write_features(folder: Path, plan: Plan, width: int, dtype: str) -> None:
    """Write FOLDER/VIDEO.npy, ``dtype`` [T, 2 * width], for every video of the plan."""
    shared = world.make_world(plan.seed, len(plan.annotations.classes), width)
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(plan.walk(), "simulating features", len(plan.annotations.videos), unit="video", disable=None)
    for video, _, _, length, _, events in bar:
        features = world.make_features(world.generator(plan.seed, video, "features"), length, events, shared)
        np.save(child(folder, video, ".npy"), features.astype(dtype))


def _write_proposals(folder: Path, name: str, plan: Plan, mean_count: int) -> None:
    """Write FOLDER/Proposals_NAME_{train,test}.json with 0.7 to 1.3 times ``mean_count`` proposals a video."""
    splits: Dict[str, Dict] = {plan.profile.train_subset: {}, plan.profile.test_subset: {}}
    for subset, (video, duration_s, rate, _, segments_s, events) in zip(plan.annotations.subset, plan.walk()):
        if subset in splits:
            rng = world.generator(plan.seed, video, "proposals")
            distractors_s = np.stack([events.start, events.end], axis=1)[events.distractor] / rate
            count = max(1, int(rng.integers(round(0.7 * mean_count), round(1.3 * mean_count) + 1)))
            boxes = world.make_proposals(rng, duration_s, segments_s, distractors_s, count, 1 / rate)
            splits[subset][video] = [{"segment": box, "label": "", "score": 0.0} for box in boxes.tolist()]
    for split, results in zip(("train", "test"), splits.values()):
        write_json(folder / f"Proposals_{name}_{split}.json", {"version": "simulated", "results": results})


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` to write into; it takes that name when the block ends without an error.

    Raises InputError where ``path`` exists; an empty folder may.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError("exists already", path, "remove it or choose another place")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
