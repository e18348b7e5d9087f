"""Several seeds in one command, and prediction for videos without annotations."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import main
from tests import tiny
from tests.test_main import arguments, run, same, weights_of
from utils.errors import InputError
from utils.files import load_checkpoint


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("data") / "tiny", videos=12)


def test_seeds_run_one_after_the_other_and_end_with_mean_and_deviation(root, tmp_path, capsys):
    out = run(root, tmp_path / "runs", "--seeds", "4", "0", "2")
    table = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    each = [json.loads((out / f"seed{n}" / "results.json").read_text()) for n in (4, 0, 2)]
    assert results["seeds"] == [4, 0, 2]
    for kind in ("last", "best"):
        values = np.asarray([r[kind]["mAP"] for r in each])
        np.testing.assert_allclose(results[kind]["mean"]["mAP"], values.mean(0))
        np.testing.assert_allclose(results[kind]["std"]["mAP"], values.std(0, ddof=1))
        averages = [r[kind]["average"]["0.1:0.7"] for r in each]
        np.testing.assert_allclose(results[kind]["mean"]["average"]["0.1:0.7"], np.mean(averages))
        assert f"{kind}, mean of 3 seeds" in table and f"{kind}, std of 3 seeds" in table
    alone = run(root, tmp_path / "alone", "--seed", "2")
    assert same(weights_of(alone), weights_of(out / "seed2"))


def test_seeds_that_were_stopped_resume(root, tmp_path, monkeypatch):
    whole = run(root, tmp_path / "whole", "--seeds", "0", "1")
    real, taken = main.Run.take_step, []

    def fail(self, videos):
        taken.append(1)
        if len(taken) == 11:
            raise InputError("power cut")
        return real(self, videos)

    monkeypatch.setattr(main.Run, "take_step", fail)
    with pytest.raises(InputError, match="power cut"):
        main.main(arguments(root, tmp_path / "cut", "--seeds", "0", "1", "--save_seconds", "0"))
    monkeypatch.undo()
    run(root, tmp_path / "cut", "--seeds", "0", "1", "--save_seconds", "0", "--resume")
    assert (tmp_path / "cut" / "results.json").read_text() == (whole / "results.json").read_text()


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    return run(root, tmp_path_factory.mktemp("trained") / "a")


def features_and_proposals(root, folder):
    """The test videos' features and proposals, and no annotation at all."""
    (folder / "features").mkdir()
    document = json.loads((root / "Proposals_Tiny_test.json").read_text())
    for video in document["results"]:
        shutil.copy(root / "Tiny-I3D-JOINTFeatures" / f"{video}.npy", folder / "features" / f"{video}.npy")
    (folder / "p.json").write_text(json.dumps(document))
    return ["--features", folder / "features", "--proposals", folder / "p.json"]


def predict(folder, checkpoint, *more):
    words = [
        "--run_type",
        "predict",
        "--pretrained_ckpt",
        checkpoint,
        "--exp_dir",
        folder / "out",
        "--device",
        "cpu",
        *more,
    ]
    assert main.main([str(w) for w in words]) == 0
    return json.loads((folder / "out" / "detections.json").read_text())["results"]


def test_predictions_without_annotations_are_the_detections_of_training(root, trained, tmp_path):
    files = features_and_proposals(root, tmp_path)
    found = predict(tmp_path, trained / "ckpt" / "last_model.pkl", *files)
    expected = json.loads((trained / "detections.json").read_text())["results"]
    assert list(found) == list(expected)
    for video in found:
        assert [d["label"] for d in found[video]] == [d["label"] for d in expected[video]]
        np.testing.assert_allclose([d["score"] for d in found[video]], [d["score"] for d in expected[video]], rtol=1e-4)
        np.testing.assert_array_equal([d["segment"] for d in found[video]], [d["segment"] for d in expected[video]])


def test_prediction_clips_and_drops_proposals_if_asked_and_says_how_many(root, trained, tmp_path, capsys):
    files = features_and_proposals(root, tmp_path)
    document = json.loads((tmp_path / "p.json").read_text())
    video = next(iter(document["results"]))
    document["results"][video] += [{"segment": [0, 999]}, {"segment": [3, 3]}]
    (tmp_path / "p.json").write_text(json.dumps(document))
    found = predict(tmp_path, trained / "ckpt" / "last_model.pkl", *files, "--fix_proposals")
    said = capsys.readouterr().err
    assert "1 proposals were dropped" in said and "1 proposals were clipped" in said
    length = len(np.load(tmp_path / "features" / f"{video}.npy")) * 0.64
    assert length <= max(d["segment"][1] for d in found[video]) <= length + 0.64
    inputs = json.loads((tmp_path / "out" / "environment.json").read_text())["inputs"]
    assert sorted(inputs) == ["checkpoint", "features", "proposals"]


def test_a_bare_checkpoint_takes_its_classes_from_the_dataset_it_is_for(root, trained, tmp_path):
    import torch

    state = dict(load_checkpoint(trained / "ckpt" / "last_model.pkl"))
    torch.save(state, tmp_path / "bare.pkl")
    files = features_and_proposals(root, tmp_path)
    found = predict(tmp_path, tmp_path / "bare.pkl", *files, "--dataset_name", "Tiny", "--dataset_root", root)
    assert {d["label"] for ds in found.values() for d in ds} <= {"jump", "throw"}


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda d: shutil.rmtree(d / "features"), "not a folder"),
        (lambda d: (d / "p.json").write_text('{"results": {}}'), "no proposals"),
        (lambda d: (d / "p.json").write_text('{"results": {"video_99": [{"segment": [0, 1]}]}}'), "none of the"),
        (
            lambda d: (d / "p.json").write_text('{"results": {"video_08": [{"segment": [0, 999]}]}}'),
            "999.*video_08, index 0",
        ),
        (lambda d: (d / "p.json").write_text("[]"), "results"),
    ],
)
def test_bad_input_to_prediction_is_named(root, trained, tmp_path, spoil, words):
    files = features_and_proposals(root, tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=words):
        predict(tmp_path, trained / "ckpt" / "last_model.pkl", *files)
