"""What a dataset is: its profile, where its files stand, and the ground truth that evaluation alone reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple

import numpy as np

from utils.annotations import WHERE_FROM, Annotations, read_ambiguous, read_instances, read_weak_labels
from utils.errors import InputError
from utils.files import content_hash, load_json

THUMOS_TIOU = tuple(np.linspace(0.1, 0.7, 7).tolist())
ACTIVITYNET_TIOU = tuple(np.linspace(0.5, 0.95, 10).tolist())


@dataclass(frozen=True)
class Profile:
    """What a dataset's files do not say of themselves. ``dataset.json`` in its root gives or overrides any field."""

    train_subset: str = "validation"
    test_subset: str = "test"
    feature_fps: float = 25.0  # frames a second of the video as features were extracted from it
    snippet_stride: float = 16.0  # frames a snippet
    tiou_thresholds: Tuple[float, ...] = THUMOS_TIOU
    excluded_videos: Tuple[str, ...] = ()  # left out of evaluation
    round_ground_truth: bool = True  # protocol wtal rounds ground truth to whole snippets
    proposals_root: Optional[str] = None  # folder of Proposals_NAME_{train,test}.json
    annotations: Optional[str] = None  # folder, JSON or CSV; default NAME-Annotations, else the root's one JSON or CSV
    features: Optional[Tuple[str, ...]] = None  # one source or (RGB, flow); default NAME-I3D-JOINTFeatures

    @property
    def snippets_per_second(self) -> float:
        return self.feature_fps / self.snippet_stride


_ACTIVITYNET = Profile("training", "validation", tiou_thresholds=ACTIVITYNET_TIOU, round_ground_truth=False)
PROFILES = {
    "Thumos14reduced": Profile(proposals_root="proposals4Thumos14"),
    "ActivityNet1.2": _ACTIVITYNET,
    "ActivityNet1.3": _ACTIVITYNET,
    "Demo": Profile(),
}


def dataset_root(name: str, root: Optional[str] = None) -> Path:
    """The dataset's folder: data/NAME unless given."""
    return Path(root) if root else Path("data") / name


def load_profile(name: str, root: Path) -> Profile:
    """The built-in profile of that exact name, overridden by ROOT/dataset.json. Raises InputError."""
    if not root.is_dir():
        raise InputError("no such dataset folder", root, WHERE_FROM)
    path = root / "dataset.json"
    if not path.exists():
        if name not in PROFILES:
            todo = f"use one of {', '.join(PROFILES)} or write that file, README 'Own data'"
            raise InputError(f"dataset {name!r} has no built-in profile and no dataset.json", path, todo)
        return PROFILES[name]
    given = load_json(path)
    fields = {f.name for f in dataclasses.fields(Profile)}
    if not isinstance(given, dict) or not set(given) <= fields:
        unknown = sorted(set(given) - fields) if isinstance(given, dict) else "no JSON object"
        raise InputError(f"unknown fields {unknown}", path, f"known: {', '.join(sorted(fields))}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    if isinstance(values.get("features"), str):
        values["features"] = (values["features"],)
    if isinstance(values.get("proposals_root"), str):
        values["proposals_root"] = str(root / values["proposals_root"])
    profile = dataclasses.replace(PROFILES.get(name, Profile()), **values)
    _check_profile(profile, path)
    return profile


def _check_profile(profile: Profile, path: Path) -> None:
    def require(good: bool, field: str, should_be: str) -> None:
        if not good:
            raise InputError(f"{field} is {getattr(profile, field)!r}", path, f"{field} must be {should_be}")

    for field in ("feature_fps", "snippet_stride"):
        value = getattr(profile, field)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(number and 1e-3 <= value < 1e6, field, "a number of 0.001 or more")
    tiou = profile.tiou_thresholds
    good = isinstance(tiou, tuple) and len(tiou) > 0 and all(type(t) in (int, float) and 0 < t <= 1 for t in tiou)
    require(good and list(tiou) == sorted(set(tiou)), "tiou_thresholds", "a list of rising numbers in (0, 1]")
    for field in ("train_subset", "test_subset"):
        require(isinstance(getattr(profile, field), str), field, "a string")
    for field in ("annotations", "proposals_root"):
        require(isinstance(getattr(profile, field), (str, type(None))), field, "a path")
    require(isinstance(profile.round_ground_truth, bool), "round_ground_truth", "true or false")
    for field, most in (("excluded_videos", None), ("features", 2)):
        value = getattr(profile, field)
        value = () if value is None and field == "features" else value
        good = isinstance(value, tuple) and all(isinstance(v, str) for v in value)
        require(
            good and (most is None or len(value) <= most), field, "a list of strings" + (", RGB and flow" * bool(most))
        )


def annotations_path(name: str, root: Path, profile: Profile) -> Path:
    """NAME-Annotations, or the profile's, or the root's only JSON or CSV that is no profile and no proposals."""
    if profile.annotations is not None:
        return root / profile.annotations
    folder = root / f"{name}-Annotations"
    if folder.is_dir():
        return folder
    files = [p for p in sorted(root.iterdir()) if p.suffix.lower() in (".json", ".csv")]
    files = [p for p in files if p.name != "dataset.json" and not p.name.startswith("Proposals_")]
    if len(files) != 1:
        found = ", ".join(p.name for p in files) or "no .json or .csv either"
        todo = "name the annotations in dataset.json; " + WHERE_FROM
        raise InputError(f"no annotations: found {found}", folder, todo)
    return files[0]


def proposals_file(name: str, profile: Profile, split: str, root: Optional[str] = None) -> Path:
    """Proposals_NAME_{train,test}.json in the given folder, the profile's, or proposals4NAME."""
    folder = Path(root or profile.proposals_root or f"proposals4{name}")
    return folder / f"Proposals_{name}_{split}.json"


@dataclass(frozen=True)
class GroundTruth:
    """The instances of one subset, in seconds, and every video of it (also those without any instance)."""

    classes: Tuple[str, ...]
    videos: Tuple[str, ...]
    video: np.ndarray  # int64 [G], index into videos
    segment_s: np.ndarray  # float64 [G, 2]
    label: np.ndarray  # int64 [G], index into classes
    ambiguous_s: Dict[str, np.ndarray]  # video -> float64 [K, 2]

    def hash(self) -> str:
        """Hash of everything in it."""
        ambiguous = [x for pair in sorted(self.ambiguous_s.items()) for x in pair]
        names = ("\0".join(self.classes), "\0".join(self.videos))
        return content_hash(*names, self.video, self.segment_s, self.label, *ambiguous)

    def keep(self, videos: Sequence[str]) -> GroundTruth:
        """The ground truth of some of the videos, in the order given; names it does not know are passed over."""
        old = {v: i for i, v in enumerate(self.videos)}
        videos = tuple(v for v in videos if v in old)
        new = np.full(len(self.videos), -1, dtype=np.int64)
        new[[old[v] for v in videos]] = np.arange(len(videos))
        kept = new[self.video] >= 0
        video = new[self.video][kept]
        return GroundTruth(self.classes, videos, video, self.segment_s[kept], self.label[kept], self.ambiguous_s)


def load_annotations(name: str, root: Path, profile: Profile) -> Annotations:
    """Videos, subsets, durations and weak labels: all that training may read. Raises InputError."""
    return read_weak_labels(annotations_path(name, root, profile))


def load_ground_truth(name: str, root: Path, profile: Profile, subset: str) -> GroundTruth:
    """The instances of one subset for evaluation, without the profile's excluded videos. Raises InputError."""
    path = annotations_path(name, root, profile)
    annotations = read_weak_labels(path)
    instances = read_instances(path, annotations)
    early = np.flatnonzero(instances.segment_s[:, 0] < 0)
    if len(early):
        where = f"{path}, {annotations.videos[instances.video[early[0]]]}"
        raise InputError("an instance that starts before its video", where, "times are seconds from its start")
    videos = [annotations.videos[i] for i in annotations.of(subset)]
    if not videos:
        raise InputError(f"no video in subset {subset!r}", path, f"subsets are {sorted(set(annotations.subset))}")
    folder = path if path.is_dir() else root
    ambiguous_s = read_ambiguous(folder / "Ambiguous_test.txt", videos)
    truth = GroundTruth(
        annotations.classes, annotations.videos, instances.video, instances.segment_s, instances.label, ambiguous_s
    )
    return truth.keep([v for v in videos if v not in profile.excluded_videos])
