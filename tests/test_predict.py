"""Prediction for videos without annotations."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
import torch

import main
from tests.changes import document, hurry
from tests.outcome import outcome, refused
from tests.runs import read, run
from utils.files import load_checkpoint


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        return run(root, tmp_path_factory.mktemp("trained") / "a", epochs=2)


@pytest.fixture
def unseen(root, tmp_path):
    """The test videos' features and proposals, and no annotation at all."""
    (tmp_path / "features").mkdir()
    shutil.copy(root / "Proposals_Tiny_test.json", tmp_path / "p.json")
    for video in read(root, "Proposals_Tiny_test")["results"]:
        shutil.copy(root / "Tiny-I3D-JOINTFeatures" / f"{video}.npy", tmp_path / "features")
    return tmp_path


def predict(folder, checkpoint, *more, features=("features",), proposals="p.json"):
    words = ["--run_type", "predict", "--pretrained_ckpt", checkpoint, "--exp_dir", folder / "out", "--device", "cpu"]
    words += ["--features", *(folder / name for name in features)]
    return outcome(main.main, [*words, "--proposals", folder / proposals if "." in proposals else proposals, *more])


def found_by(done, folder):
    assert done.status == 0, done.log
    return read(folder / "out", "detections")["results"]


def test_predictions_are_the_detections_of_training(trained, unseen):
    found = found_by(predict(unseen, trained / "ckpt" / "last_model.pkl"), unseen)
    expected = read(trained, "detections")["results"]
    assert list(found) == list(expected)
    for video in found:
        for key in ("label", "segment"):
            assert [d[key] for d in found[video]] == [d[key] for d in expected[video]]
        np.testing.assert_allclose([d["score"] for d in found[video]], [d["score"] for d in expected[video]], rtol=1e-4)
    assert sorted(read(unseen / "out", "environment")["inputs"]) == ["checkpoint", "features", "proposals"]
    options = read(unseen / "out", "options")
    assert (options["run_type"], options["recipe"], options["lr"]) == ("predict", "paper", 1e-3)


def test_proposals_are_clipped_and_dropped_if_asked_and_counted(trained, unseen):
    video = "video_08"
    document("p.json", lambda d: d["results"][video].extend([{"segment": [0, 999]}, {"segment": [3, 3]}]))(unseen)
    refused(predict(unseen, trained / "ckpt" / "last_model.pkl"), "999", video, "p.json", "--fix_proposals")
    done = predict(unseen, trained / "ckpt" / "last_model.pkl", "--fix_proposals")
    found = found_by(done, unseen)
    assert "1 proposals were dropped" in done.log and "1 proposals were clipped" in done.log
    length = len(np.load(unseen / "features" / f"{video}.npy")) * 0.64
    assert length <= max(d["segment"][1] for d in found[video]) <= length + 0.64


def test_a_folder_of_each_modality_and_what_is_left_out(trained, unseen):
    expected = found_by(predict(unseen, trained / "ckpt" / "last_model.pkl"), unseen)
    for name, half in (("rgb", slice(4)), ("flow", slice(4, 8))):
        (unseen / name).mkdir()
        for path in (unseen / "features").iterdir():
            np.save(unseen / name / path.name, np.load(path)[:, half])
    document("p.json", lambda d: d["results"].update(video_77=[{"segment": [0, 1]}]))(unseen)
    done = predict(unseen, trained / "ckpt" / "last_model.pkl", features=("rgb", "flow"))
    assert found_by(done, unseen) == expected
    assert "1 videos have no features and are left out: video_77" in done.log


def test_detections_as_csv(trained, unseen):
    checkpoint = trained / "ckpt" / "last_model.pkl"
    found = found_by(predict(unseen, checkpoint), unseen)
    assert predict(unseen, checkpoint, "--format", "csv").status == 0
    head, *lines = csv.reader((unseen / "out" / "detections.csv").read_text().splitlines())
    rows = [(v, d["label"], *d["segment"], d["score"]) for v, entries in found.items() for d in entries]
    assert head == ["video", "label", "start", "end", "score"]
    assert sorted((video, label, *map(float, numbers)) for video, label, *numbers in lines) == sorted(rows)


def test_windows_stand_in_for_proposals(trained, unseen):
    found = found_by(predict(unseen, trained / "ckpt" / "last_model.pkl", proposals="windows"), unseen)
    assert sorted(found) == sorted(p.stem for p in (unseen / "features").iterdir()) and all(found.values())


def test_a_bare_checkpoint_takes_its_classes_from_the_dataset_it_is_for(root, trained, unseen):
    torch.save(dict(load_checkpoint(trained / "ckpt" / "last_model.pkl")), unseen / "bare.pkl")
    data = ["--dataset_name", "Tiny", "--dataset_root", root]
    found = found_by(predict(unseen, unseen / "bare.pkl", *data), unseen)
    assert {d["label"] for ds in found.values() for d in ds} <= {"jump", "throw"}


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda d: shutil.rmtree(d / "features"), ["not a folder", "features"]),
        (lambda d: (d / "p.json").write_text('{"results": {"video_99": [{"segment": [0, 1]}]}}'), ["video"]),
        (lambda d: (d / "p.json").write_text("[]"), ["results", "p.json"]),
        (lambda d: (d / "p.json").write_text('{"results": {"video_08": []}}'), ["no proposals", "p.json"]),
        (lambda d: [np.save(p, np.ones((20, 6), np.float32)) for p in (d / "features").iterdir()], ["width 8", "6"]),
    ],
    ids=["no features", "other videos", "no document", "no proposals", "another width"],
)
def test_bad_input_is_one_line_and_leaves_no_detections(trained, unseen, spoil, words):
    spoil(unseen)
    refused(predict(unseen, trained / "ckpt" / "last_model.pkl"), *words)
    assert not (unseen / "out" / "detections.json").exists()
