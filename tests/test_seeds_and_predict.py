"""Several seeds in one command, and prediction for videos without annotations."""

from __future__ import annotations

import json
import os
import shutil
import signal

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


def test_a_stopped_run_of_several_seeds_says_how_to_go_on_and_seeds_may_join_but_not_leave(
    root, tmp_path, monkeypatch, capsys
):
    real, taken = main.Run.take_step, []

    def stop(self, videos):
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, videos)

    monkeypatch.setattr(main.Run, "take_step", stop)
    folder = tmp_path / "cut"
    assert main.main(arguments(root, folder, "--seeds", "0")) == 130
    assert capsys.readouterr().err.strip().endswith(f"--resume --exp_dir {folder}")
    run(root, folder, "--seeds", "0", "1", "--resume")
    before = {name: (folder / name).read_text() for name in ("options.json", "results.json")}
    assert json.loads(before["options.json"])["seeds"] == [0, 1]
    with pytest.raises(InputError, match=r"seeds \[0\] are in this run"):
        main.main(arguments(root, folder, "--seeds", "1", "--resume"))
    with pytest.raises(InputError, match="lr was 0.001 and is 1.0"):
        main.main(arguments(root, folder, "--seeds", "0", "1", "--resume", "--lr", "1"))
    assert before == {name: (folder / name).read_text() for name in before}
    run(root, folder, "--seeds", "0", "1", "2", "--resume", "--device", "auto")
    with pytest.raises(InputError, match=r"seeds \[2\] are in this run"):
        main.main(arguments(root, folder, "--seeds", "0", "1", "--resume"))
    assert json.loads((folder / "results.json").read_text())["seeds"] == [0, 1, 2]


def test_several_seeds_on_simulated_features_say_so(root, tmp_path, capsys):
    copy = tmp_path / "tiny"
    shutil.copytree(root, copy)
    (copy / "SIMULATED.txt").write_text("")
    out = run(copy, tmp_path / "b", "--seeds", "0", "1", epochs=2)
    assert "SIMULATED" in capsys.readouterr().out
    assert json.loads((out / "results.json").read_text())["last"]["mean"]["simulated"] is True


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


def test_prediction_takes_a_folder_of_each_modality_and_reads_what_can_be_fixed(root, trained, tmp_path, capsys):
    files = features_and_proposals(root, tmp_path)
    expected = predict(tmp_path, trained / "ckpt" / "last_model.pkl", *files)
    shutil.rmtree(tmp_path / "out")
    for name, half in (("rgb", slice(4)), ("flow", slice(4, 8))):
        (tmp_path / name).mkdir()
        for path in (tmp_path / "features").iterdir():
            np.save(tmp_path / name / path.name, np.load(path)[:, half])
    document = json.loads((tmp_path / "p.json").read_text())
    next(iter(document["results"].values())).append({"segment": [0, float("nan")]})
    document["results"]["video_77"] = [{"segment": [0, 1]}]
    (tmp_path / "p.json").write_text(json.dumps(document))
    words = ["--features", tmp_path / "rgb", tmp_path / "flow", "--proposals", tmp_path / "p.json", "--fix_proposals"]
    assert predict(tmp_path, trained / "ckpt" / "last_model.pkl", *words) == expected
    said = capsys.readouterr().err
    assert "1 proposals were dropped" in said and "missing: video_77" in said


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
        (lambda d: (d / "p.json").write_text('{"results": {"video_08": []}}'), "no proposals"),
    ],
)
def test_bad_input_to_prediction_is_named(root, trained, tmp_path, spoil, words):
    files = features_and_proposals(root, tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=words):
        predict(tmp_path, trained / "ckpt" / "last_model.pkl", *files)
