"""Small datasets with one thing wrong, for tables of cases: how to change a file, and how a run on it must end."""

from __future__ import annotations

import json
import math
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import main
from dataset import load_dataset
from losses import TERMS
from options import parse
from tests import tiny
from tests.outcome import outcome, refused
from tests.tiny import FEATURES, PROFILE, VIDEOS
from utils import files

Sound = namedtuple("Sound", "root place results")  # a dataset without a fault, what a run on it left, and its results


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


def data_of(root: Path, place: Path = None, *more: object, splits=("train", "test")):
    """A tiny dataset as a run loads it, its rows cached below ``place``, or live."""
    words = arguments(root, place or root, *([] if place else ["--no_cache"]), *more)
    return load_dataset(parse(words, tuple(TERMS)), splits)


def split_of(root: Path, place: Path = None, *more: object):
    return data_of(root, place, *more, splits=["train"]).train


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


def make_sound(place: Path) -> Sound:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        root = tiny.write(place / "tiny", videos=6)
        found = train(root, place)
        assert found.status == 0, found.log
        return Sound(root, place, results(place))


def case(name, change, *words, more=(), **how):
    """One row of a table: what is changed, the words of the error it ends in, and options of the command."""
    return pytest.param(change, more, {"words": words, **how}, id=name)


def ends_well(found, sound: Sound, place: Path, words=(), log=(), same=False) -> None:
    """A run ended in an error of one line with these words; without words it trained, said so much, and gave
    the ``same`` results as the sound dataset."""
    if words:
        refused(found, *words)
        assert not (place / "run" / "results.json").exists()
        return
    assert found.status == 0, found.log
    assert all(word in found.log for word in log), found.log
    assert all(line.isprintable() for line in found.log.splitlines()) and "Warning" not in found.log
    after = results(place)
    assert not same or after == sound.results


# ---- ways to change a file: each gives a function of the folder


def remove(path):
    return lambda root: (root / path).unlink()


def write(path, data):
    return lambda root: (root / path).write_bytes(data if isinstance(data, bytes) else data.encode())


def cut(path):
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:-7])


def array(path, how):
    """Replace the array of a .npy file by what ``how`` makes of it."""
    return lambda root: np.save(root / path, how(np.load(root / path, allow_pickle=True)), allow_pickle=True)


def every_feature(how):
    return lambda root: [array(path, how)(root) for path in sorted((root / FEATURES).iterdir())]


def document(path, how):
    """Change a JSON file through a function that works on its value in place, or returns another dict."""

    def change(root):
        value = json.loads((root / path).read_text())
        made = how(value)
        (root / path).write_text(json.dumps(made if isinstance(made, dict) else value))

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
