"""Training learns: on a small demo, a few epochs find far more than the untrained network or shuffled labels do."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import main
from tests.changes import arguments, hurry
from tests.runs import read
from utils.datasets.simulate import make_demo

EPOCHS = 12


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "Demo"
    make_demo(root, videos=(40, 20), width=48)
    return root


@pytest.fixture(scope="module")
def shuffled(demo, tmp_path_factory):
    """The same videos; each training video has the weak labels of another."""
    copy = shutil.copytree(demo, tmp_path_factory.mktemp("shuffled") / "Demo")
    folder = copy / "Demo-Annotations"
    labels, subset = (np.load(folder / f"{name}.npy", allow_pickle=True) for name in ("labels_all", "subset"))
    train = np.flatnonzero(subset.astype(str) == "validation")
    labels[train] = labels[np.random.default_rng(0).permutation(train)]
    np.save(folder / "labels_all.npy", labels)
    return copy


def score(root, place, recipe, epochs=EPOCHS, lr=2e-3):
    options = {"dataset_name": "Demo", "cache_dir": root.parent / "cache", "recipe": recipe, "lr": lr, "batch_size": 4,
               "max_epoch": epochs, "interval": epochs, "max_proposal": 40}  # fmt: skip
    assert main.main(arguments(root, place, **options)) == 0
    last = read(place / "run")["last"]
    return last["average"]["0.1:0.7"], last["classification_mAP"]


@pytest.mark.parametrize("recipe", ["release", "paper"])
def test_training_finds_far_more_than_no_training_or_shuffled_labels(demo, shuffled, tmp_path, monkeypatch, recipe):
    hurry(monkeypatch)
    average, classification = score(demo, tmp_path / "right", recipe)
    assert average > 0.2 and classification > 0.75
    for root, epochs, lr in ((demo, 1, 1e-12), (shuffled, EPOCHS, 2e-3)):
        found = score(root, tmp_path / f"without{epochs}", recipe, epochs, lr)
        assert found[0] < average / 5 and found[1] < 0.5
