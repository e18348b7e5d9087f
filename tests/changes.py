"""Small datasets with one thing wrong, for tables of cases: how to change a file, and how a run on it must end."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Callable, NamedTuple, Sequence

import numpy as np
import pytest

import main
from dataset import load_dataset
from losses import TERMS
from options import parse
from tests import tiny
from tests.outcome import outcome, refused
from utils import files
from utils.seeds import stream

ANNOTATIONS, FEATURES = "Tiny-Annotations", "Tiny-I3D-JOINTFeatures"
TRAIN, TEST, PROFILE = "Proposals_Tiny_train.json", "Proposals_Tiny_test.json", "dataset.json"
VIDEOS, SEGMENTS, DURATION = (f"{ANNOTATIONS}/{name}.npy" for name in ("videoname", "segments", "duration"))
FEATURE = f"{FEATURES}/video_01.npy"


def no_pictures(monkeypatch) -> None:
    """Drawing would take most of the time."""
    monkeypatch.setattr(main, "pictures", lambda *args: [("timeline", np.zeros((2, 2, 3), np.uint8))])


def hurry(monkeypatch) -> None:
    """Neither pictures nor fsync."""
    no_pictures(monkeypatch)
    monkeypatch.setattr(files, "_sync", lambda path: None)


def arguments(root: Path, place: Path, *more: object, **options: object) -> list:
    """The command line of a short training on a tiny dataset; all that it writes is below ``place``."""
    options = {
        "dataset_name": "Tiny", "dataset_root": root, "exp_dir": place / "run", "cache_dir": place / "cache",
        "descriptors_root": place / "descriptors", "device": "cpu", "batch_size": 3, "max_epoch": 1, "lr": 1e-3,
        **options,
    }  # fmt: skip
    return [str(x) for k, v in options.items() for x in (f"--{k}", v)] + [str(x) for x in more]


def train(root: Path, place: Path, *more: object, **options: object):
    return outcome(main.main, arguments(root, place, *more, **options))


def split_of(root: Path, place: Path = None, split: str = "train", *more: object):
    """A split of a tiny dataset, its rows cached below ``place``, or live."""
    args = parse(arguments(root, place or root, *([] if place else ["--no_cache"]), *more), tuple(TERMS))
    return getattr(load_dataset(args, [split]), split)


def results(place: Path) -> dict:
    """The last evaluation; every number is finite and a fraction."""
    found = json.loads((place / "run" / "results.json").read_text())
    found = found.get("last", found)
    numbers = [*found["mAP"], *found["average"].values(), *sum(found["AP"].values(), []), found["classification_mAP"]]
    assert all(0 <= x <= 1 for x in numbers)
    detections = json.loads((place / "run" / "detections.json").read_text())["results"]
    entries = [e for entries in detections.values() for e in entries]
    assert entries and all(math.isfinite(e["score"]) and e["segment"][0] <= e["segment"][1] for e in entries)
    return {k: v for k, v in found.items() if k != "epoch"}


class Sound(NamedTuple):
    """A dataset without a fault, where it was trained on, and its results."""

    root: Path
    place: Path
    results: dict


def make_sound(place: Path) -> Sound:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        root = tiny.write(place / "tiny", videos=6)
        found = train(root, place)
        assert found.status == 0, found.log
        return Sound(root, place, results(place))


class Case(NamedTuple):
    """What is changed, and the words of the error it ends in; without words it trains."""

    change: Callable[[Path], object]
    words: Sequence[str]
    log: Sequence[str]  # what a run that trains must say
    same: bool  # its results are those of the sound dataset
    more: Sequence[object]  # options


def case(name, change, *words, log=(), same=False, more=()):
    """One row of a table."""
    return pytest.param(Case(change, words, log, same, more), id=name)


def ends_well(found, sound: Sound, place: Path, case: Case) -> None:
    """A run ended as its row of the table says."""
    if case.words:
        refused(found, *case.words)
        assert not (place / "run" / "results.json").exists()
        return
    assert found.status == 0, found.log
    assert all(word in found.log for word in case.log), found.log
    assert all(line.isprintable() for line in found.log.splitlines()) and "Warning" not in found.log
    after = results(place)
    assert not case.same or after == sound.results


def trains_well(sound: Sound, place: Path, case: Case) -> None:
    """Train on the changed dataset, and look at how it ended."""
    root = Path(shutil.copytree(sound.root, place / "tiny"))
    case.change(root)
    ends_well(train(root, place, *case.more), sound, place, case)


# ---- ways to change a file


def remove(path):
    return lambda root: (root / path).unlink()


def write(path, data):
    return lambda root: (root / path).write_bytes(data if isinstance(data, bytes) else data.encode())


def cut(path):
    """Cut a file short at a seeded place."""

    def change(root):
        data = (root / path).read_bytes()
        (root / path).write_bytes(data[: int(stream(0, path).integers(1, len(data)))])

    return change


def array(path, how):
    """Replace the array of a .npy file by what ``how`` makes of it."""

    def change(root):
        np.save(root / path, how(np.load(root / path, allow_pickle=True)), allow_pickle=True)

    return change


def every_feature(how):
    return lambda root: [array(path, how)(root) for path in sorted((root / FEATURES).iterdir())]


def document(path, how):
    """Change a JSON file through a function that works on its value in place, or returns another."""

    def change(root):
        value = json.loads((root / path).read_text())
        made = how(value)
        (root / path).write_text(json.dumps(value if made is None else made))

    return change


def setting(**values):
    return document(PROFILE, lambda d: d.update(values))


def all_of(*changes):
    return lambda root: [change(root) for change in changes]


def joint(root):
    """Features as one object array instead of a folder."""
    found = [np.load(root / FEATURES / f"{v}.npy") for v in np.load(root / VIDEOS).tolist()]
    shutil.rmtree(root / FEATURES)
    np.save(root / f"{FEATURES}.npy", tiny.objects(found), allow_pickle=True)
