"""What a dataset's files do not say of themselves: subsets, frame rate, stride, thresholds, and where the files are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from utils.errors import InputError, some
from utils.files import load_json

THUMOS_TIOU = tuple(np.linspace(0.1, 0.7, 7).tolist())
MAKER_SETTINGS = ("thumos14", "activitynet", "demo")
ACTIVITYNET_TIOU = tuple(np.linspace(0.5, 0.95, 10).tolist())
SETTINGS = "features.json"  # beside features of ours: how they were made
STATED = ("feature_fps", "snippet_stride", "modalities")  # there
WHERE_FROM = "README, 'THUMOS14 from download to table' or 'Own data', says where each file comes from"


@dataclass(frozen=True)
class Profile:
    """One dataset. ``dataset.json`` in its root gives or overrides any field; paths in it are relative to that root."""

    train_subset: str = "validation"
    test_subset: str = "test"
    feature_fps: Union[float, Dict[str, float]] = 25.0  # frames a second that features were extracted at, or by video
    snippet_stride: float = 16.0  # frames a snippet
    rescaled: bool = False  # rows span the whole video, whatever its length: rate = rows / duration
    modalities: Optional[int] = None  # 2: RGB and flow, halves of a row; 1: one stream; None: 2, not stated
    tiou_thresholds: Tuple[float, ...] = THUMOS_TIOU
    stated_subsets: bool = True  # whether anyone said which subsets; dataset.json does by naming one
    excluded_videos: Tuple[str, ...] = ()  # left out of evaluation
    round_ground_truth: bool = False  # protocol wtal rounds ground truth to whole snippets
    proposals_root: Optional[str] = None  # folder of Proposals_NAME_{train,test}.json
    annotations: Optional[str] = None  # folder, JSON or CSV; default NAME-Annotations, else the root's one JSON or CSV
    features: Optional[Tuple[str, ...]] = None  # one source or (RGB, flow); default NAME-I3D-JOINTFeatures
    maker_settings: str = "thumos14"  # how proposal makers train: as published for that dataset, or as for the demo

    @property
    def snippets_per_second(self) -> float:
        """The one rate of every video; ValueError where each has its own (then: ``rates``)."""
        if self.rescaled or isinstance(self.feature_fps, dict):
            raise ValueError("each video has its own rate")
        return self.feature_fps / self.snippet_stride

    def rates(self, videos: Sequence[str], num_snippets: np.ndarray, duration_s: np.ndarray) -> np.ndarray:
        """Snippets per second of each video, float64 [V]; InputError where what it takes is not known.

        num_snippets: T, int [V]. duration_s: float [V], NaN where unknown. Both are needed for rescaled features alone.
        """
        if self.rescaled:
            unknown = [video for video, seconds in zip(videos, duration_s) if not 0 < seconds < np.inf]
            if unknown:
                what = f"features are rescaled, and the duration of {len(unknown)} videos is unknown: {some(unknown)}"
                raise InputError(what, None, "add durations to the annotations")
            return np.asarray(num_snippets, dtype=np.float64) / np.asarray(duration_s, dtype=np.float64)
        if isinstance(self.feature_fps, dict):
            unknown = [video for video in videos if video not in self.feature_fps]
            if unknown:
                what = f"no feature_fps of {len(unknown)} videos: {some(unknown)}"
                raise InputError(what, None, "add them to the file that dataset.json names")
            return np.asarray([self.feature_fps[video] for video in videos]) / self.snippet_stride
        return np.full(len(videos), self.snippets_per_second)


_ACTIVITYNET = Profile(
    "training", "validation", modalities=2, tiou_thresholds=ACTIVITYNET_TIOU, maker_settings="activitynet"
)
PROFILES = {
    "Thumos14reduced": Profile(modalities=2, proposals_root="proposals4Thumos14", round_ground_truth=True),
    "ActivityNet1.2": _ACTIVITYNET,
    "ActivityNet1.3": _ACTIVITYNET,
    "Demo": Profile(modalities=2, round_ground_truth=True, maker_settings="demo"),
}


def dataset_root(name: str, root: Optional[str] = None) -> Path:
    """The dataset's folder: data/NAME unless given."""
    return Path(root) if root else Path("data") / name


def settings_of(folders: Sequence[Path]) -> Dict[str, float]:
    """What features.json beside features states of feature_fps, snippet_stride, modalities; empty without one.

    folders: one of both streams together, or one of RGB and one of flow. Raises InputError for another file.
    """
    found = {path: load_json(path) for path in (folder / SETTINGS for folder in folders) if path.is_file()}
    for path, said in found.items():
        if not isinstance(said, dict) or not all(said.get(f) and _RULES[f][0](said[f]) for f in STATED):
            raise InputError(f"no {', '.join(STATED)}", path, "extract the features again, or delete the file")
    streams = {"modalities": len(folders)} if len(folders) > 1 else {}
    return {field: {**said, **streams}[field] for said in found.values() for field in STATED}


def contradictions(profile: Profile, folders: Sequence[Path], holds: str) -> List[str]:
    """A line to log where ``profile`` differs from the features' own features.json; holds: who stated what is taken."""
    said, taken = settings_of(folders), vars(profile)
    differ = [f"{field} {said[field]:g}" for field in said if taken[field] != said[field]]
    return [f"{folders[0] / SETTINGS} says {', '.join(differ)}: {holds} says otherwise, and holds"] if differ else []


def load_profile(name: str, root: Path) -> Profile:
    """The built-in profile of that exact name, overridden by features.json beside the features, and that by
    ROOT/dataset.json. Raises InputError."""
    if not root.is_dir():
        raise InputError("no such dataset folder", root, WHERE_FROM)
    path, joint = root / "dataset.json", root / f"{name}-I3D-JOINTFeatures"
    if not path.exists():
        if name not in PROFILES:
            todo = f"use one of {', '.join(PROFILES)} or write that file, README 'Own data'"
            raise InputError(f"dataset {name!r} has no built-in profile and no dataset.json", path, todo)
        return dataclasses.replace(PROFILES[name], **settings_of([joint]))
    given = load_json(path)
    if not isinstance(given, dict):
        raise InputError("no JSON object", path, "expected {\"field\": value, …}, README 'Own data'")
    unknown = sorted(set(given) - set(_RULES))
    if unknown:
        raise InputError(f"unknown fields {unknown}", path, f"known: {', '.join(sorted(_RULES))}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    if isinstance(values.get("features"), str):
        values["features"] = (values["features"],)
    if isinstance(values.get("feature_fps"), str):
        values["feature_fps"] = load_json(root / values["feature_fps"], todo="it holds {VIDEO: frames a second}")
    for field, value in values.items():
        good, should_be = _RULES[field]
        if not good(value):
            raise InputError(f"{field} is {str(given[field])[:80]!r}", path, f"{field} must be {should_be}")
    if values.get("proposals_root") is not None:
        values["proposals_root"] = str(root / values["proposals_root"])
    folders = [root / source for source in values.get("features") or ()] or [joint]
    stated = name in PROFILES or not {"train_subset", "test_subset"}.isdisjoint(given)
    values = {**settings_of(folders), **values, "stated_subsets": stated}
    profile = dataclasses.replace(PROFILES.get(name, Profile()), **values)
    if profile.round_ground_truth and (profile.rescaled or isinstance(profile.feature_fps, dict)):
        raise InputError("round_ground_truth needs one rate for all videos", path, "leave it out")
    return profile


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 1e-3 <= value < 1e6


def _are(value: object, *types: type) -> bool:
    """Whether a value is a list (here a tuple) of values of these types."""
    return isinstance(value, tuple) and all(type(item) in types for item in value)


_FPS = "a number of 0.001 or more, or a JSON file of such numbers {VIDEO: frames a second}"
_RULES = {
    **dict.fromkeys(("train_subset", "test_subset"), (lambda v: isinstance(v, str), "a string")),
    **dict.fromkeys(("rescaled", "round_ground_truth"), (lambda v: isinstance(v, bool), "true or false")),
    **dict.fromkeys(("annotations", "proposals_root"), (lambda v: v is None or isinstance(v, str), "a path")),
    "features": (lambda v: v is None or _are(v, str) and len(v) in (1, 2), "a path, or [RGB, flow]"),
    "feature_fps": (lambda v: all(map(_is_number, v.values() if isinstance(v, dict) else [v])), _FPS),
    "snippet_stride": (_is_number, "a number of 0.001 or more"),
    "maker_settings": (lambda v: v in MAKER_SETTINGS, f"one of {', '.join(MAKER_SETTINGS)}"),
    "modalities": (lambda v: v is None or type(v) is int and v in (1, 2), "1 or 2"),
    "excluded_videos": (lambda v: _are(v, str), "a list of strings"),
    "tiou_thresholds": (
        lambda v: _are(v, int, float) and len(v) and list(v) == sorted(set(v)) and 0 < v[0] and v[-1] <= 1,
        "a list of rising numbers in (0, 1]",
    ),
}


def annotations_path(name: str, root: Path, profile: Profile) -> Path:
    """NAME-Annotations, or the profile's, or the root's only JSON or CSV that is no profile and no proposals."""
    if profile.annotations is not None:
        return root / profile.annotations
    folder = root / f"{name}-Annotations"
    if folder.is_dir():
        return folder
    others = ("Proposals_", ".", "dataset.json", SETTINGS)
    files = [p for p in sorted(root.iterdir()) if p.suffix.lower() in (".json", ".csv")]
    files = [p for p in files if not p.name.startswith(others)]
    if len(files) != 1:
        names = ", ".join(p.name for p in files) or "no .json or .csv either"
        raise InputError(f"no annotations: found {names}", folder, "name them in dataset.json; " + WHERE_FROM)
    return files[0]


def proposals_file(name: str, profile: Profile, split: str, root: Optional[str] = None) -> Path:
    """Proposals_NAME_{train,test}.json in the given folder, the profile's, or proposals4NAME."""
    return Path(root or profile.proposals_root or f"proposals4{name}") / f"Proposals_{name}_{split}.json"
