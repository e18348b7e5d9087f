"""Training and testing end to end on a tiny dataset: the files, the same bits, resuming, provenance, errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from eval import detection, inference
from options import Recipe
from tests import tiny
from tests.changes import array, document, hurry, setting
from tests.outcome import read_scalars
from tests.runs import arguments, main_refuses, read, run, run_test, same, weights_of, without_test_videos
from tests.tiny import FEATURE, TRAIN, WEAK
from utils.files import load_checkpoint


@pytest.fixture(scope="module", autouse=True)
def hurried():
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        patch.setattr(main, "pictures", inference.pictures)  # a pixel each
        patch.setattr(inference, "timeline", lambda *what: None)
        patch.setattr(inference, "figure_to_array", lambda figure: np.zeros((1, 1, 3), np.uint8))
        yield


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    return run(root, tmp_path_factory.mktemp("runs") / "a")


# ---- what a run leaves


def test_a_run_leaves_every_file_it_promises_and_the_columns_of_its_log_are_the_authors(finished):
    names = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    files = "opt.txt options.json environment.json mAP-results.log results.json detections.json".split()
    assert {*files, *(f"ckpt/{name}" for name in ("last_model.pkl", "best_model.pkl", "last_state.pt"))} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    environment, last = read(finished, "environment"), read(finished)["last"]
    assert environment["seed"] == 0 and environment["torch"] == torch.__version__ and environment["inputs"]
    assert (last["epoch"], last["protocol"], len(last["mAP"])) == (4, "wtal", 7)
    lines = [line.split() for line in (finished / "mAP-results.log").read_text().splitlines()]
    averages = ["AVG(0.1:0.5)", "AVG(0.3:0.7)", "AVG(0.1:0.7)"]
    assert lines[0] == ["epoch", *(f"mAP@0.{n}" for n in range(1, 8)), *averages, "cls-mAP", "cls-acc"]
    numbers = [*last["mAP"], *last["average"].values(), last["classification_mAP"], last["classification_accuracy"]]
    assert lines[1][0] == "2" and lines[2:] == [["4", *(f"{100 * n:.2f}" for n in numbers)]]


def test_tensorboard_has_the_authors_tags_and_the_schedule(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars, last = read_scalars(finished / "logs"), read(finished)["last"]
    for term in ("loss_total", "loss_prop_mil_orig", "loss_prop_mil_supp", "SME_loss", "PC_loss", "SC_loss"):
        assert sorted(scalars[f"loss/{term}"]) == [1, 2, 3, 4]
    at = [*(f"0.{n}" for n in range(1, 8)), "0.1 : 0.5", "0.3 : 0.7", "0.1 : 0.7"]
    expected = dict(zip((f"Detection mAP @ IoU = {x}" for x in at), [*last["mAP"], *last["average"].values()]))
    for name, key in (("mAP", "mAP"), ("acc", "accuracy"), ("top-1", "top1")):
        expected[f"Classification {name}"] = last[f"classification_{key}"]
    found = {tag[9:]: values[4] for tag, values in scalars.items() if tag.startswith("test_mAP/")}
    assert found == pytest.approx({name: 100 * value for name, value in expected.items()}, rel=1e-6)
    assert [scalars[f"weight/lambda_{name}"][3] for name in ("pc", "sme")] == pytest.approx([1.5, 0.9])
    assert scalars["optimizer/learning_rate"][1] == pytest.approx(1e-3)
    events = EventAccumulator(str(finished / "logs")).Reload()
    images = [tag for tag in events.Tags()["images"] if tag.startswith("timeline/video_")]
    assert images and [e.step for e in events.Images(images[0])] == [4]
    assert any("options" in tag for tag in events.Tags()["tensors"])


def test_every_evaluation_has_its_pictures_where_that_is_asked_for(root, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run(root, tmp_path / "a", "--pictures", "all") / "logs")).Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("timeline/video_")]
    assert tags and [e.step for e in events.Images(tags[0])] == [2, 4]


def test_detections_of_a_run_score_as_its_results_say(root, finished, tmp_path):
    data = ["--dataset_name", "Tiny", "--dataset_root", str(root), "--protocol", "wtal"]
    detection.main(["--detections", str(finished / "detections.json"), *data, "--output", str(tmp_path / "m.json")])
    np.testing.assert_allclose(read(tmp_path, "m")["mAP"], read(finished)["last"]["mAP"], atol=1e-6)


def test_without_test_videos_it_trains_and_says_so(root, tmp_path, capsys):
    out = run(without_test_videos(root, tmp_path / "tiny"), tmp_path / "b", epochs=2)
    said = capsys.readouterr()
    assert "no test videos" in said.err and said.out == ""
    assert sorted(p.name for p in (out / "ckpt").iterdir()) == ["last_model.pkl", "last_state.pt"]
    assert not (out / "results.json").exists() and not (out / "detections.json").exists()


# ---- testing a checkpoint


def test_testing_a_checkpoint_gives_the_numbers_of_its_training(root, finished, tmp_path, capsys):
    for name in ("last", "best"):  # into one folder: the second test replaces the first
        out = run_test(finished / "ckpt" / f"{name}_model.pkl", root, tmp_path / "t")
        expected = read(finished)[name]
        assert expected.pop("epoch") and read(out) == expected
    assert "protocol wtal" in capsys.readouterr().out
    inputs = read(out, "environment")["inputs"]
    assert sorted(inputs) == ["checkpoint", "features", "ground_truth", "proposals"]


def test_a_folder_holds_one_kind_of_run_and_a_test_is_never_told_to_resume(root, finished, tmp_path):
    before = (finished / "results.json").read_text()
    main_refuses(arguments(root, finished), "already holds a run", "add --resume")
    checkpoint = finished / "ckpt" / "last_model.pkl"
    words = arguments(root, finished, "--pretrained_ckpt", checkpoint, run_type="test")
    line = main_refuses(words, "already holds a run of another kind (train)", "name another --exp_dir")
    assert "--resume" not in line and (finished / "results.json").read_text() == before
    line = main_refuses(arguments(root, run_test(checkpoint, root, tmp_path / "t")), "already holds a run")
    assert "--resume" not in line


def test_a_test_says_what_trained_its_checkpoint(root, tmp_path, capsys):
    chosen = {"gamma": 0.5, "lambda_pc": 2.5, "sme_labels": "high", "descriptor_level": "segment", "recipe": "release"}
    out = run(root, tmp_path / "a", *(x for k, v in chosen.items() for x in (f"--{k}", v)), epochs=2)
    lines = dict(line.split(None, 1) for line in (out / "opt.txt").read_text().splitlines())
    assert lines["gamma"] == "0.5" and lines["sc_until"] == "70"
    capsys.readouterr()
    run_test(out / "ckpt" / "last_model.pkl", root, tmp_path / "t", "--lr", 1)
    trained, tested = read(out, "options"), read(tmp_path / "t", "options")
    assert {name: tested[name] for name in chosen} == chosen and tested["pc_penalty"] == 9.0
    for name in ("losses", "roi_size", "lr", "batch_size", "max_epoch", "seed", *Recipe._fields):
        assert tested[name] == trained[name]
    said = capsys.readouterr().err
    assert all(text in said for text in ("own options hold here", "gamma 0.5", "lr 0.001", "sme_labels high"))


def test_an_untrained_process_branch_does_not_enter_the_scores(root, tmp_path):
    out = run(root, tmp_path / "a", "--pc_centre", 0, "--pc_penalty", 0, epochs=2)  # what is left has no gradient
    state = weights_of(out)
    for name in state:  # whatever that branch says, nothing changes
        if "prop_completeness" in name:
            state[name].normal_(generator=torch.Generator().manual_seed(0))
    torch.save(state, tmp_path / "other.pkl")
    run_test(tmp_path / "other.pkl", root, tmp_path / "b")
    assert read(out, "detections")["results"] == read(tmp_path / "b", "detections")["results"]


# ---- the same bits


@pytest.mark.parametrize("more", [[], ["--no_cache"], ["--interval", "3"], ["--interval", "1", "--save_seconds", "0"]])
def test_the_same_seed_gives_the_same_bits_whatever_cache_and_evaluation(root, finished, tmp_path, more):
    assert same(weights_of(finished), weights_of(run(root, tmp_path / "b", *more)))


@pytest.mark.parametrize(
    "more", [["--seed", "1"], ["--losses", "none"], ["--recipe", "release"], ["--gamma", "1"], ["--max_proposal", "3"]]
)
def test_what_should_change_training_does(root, finished, tmp_path, more):
    assert not same(weights_of(finished), weights_of(run(root, tmp_path / "b", *more)))


@pytest.mark.parametrize(
    "more",
    [["--share_rows"], ["--amp", "bf16"], ["--cache_dtype", "float16"], ["--tf32"], ["--descriptor_level", "segment"],
     ["--sme_labels", "high"], ["--recipe", "release", "--dropout_ratio", "0"]],
)  # fmt: skip
def test_options_run(root, tmp_path, more):
    out = run(root, tmp_path / "b", *more, epochs=2)
    assert torch.get_float32_matmul_precision() == ("high" if more == ["--tf32"] else "highest")
    torch.set_float32_matmul_precision("highest")
    assert np.isfinite(read(out)["last"]["mAP"]).all()


def test_training_cannot_reach_time_stamps(root, finished, tmp_path):
    """The same bits when segments.npy and labels.npy are nonsense: labels_all is all that training reads."""
    copy = Path(shutil.copytree(root, tmp_path / "tiny"))
    folder = copy / "Tiny-Annotations"
    np.save(folder / "segments.npy", tiny.objects([[[0, 1], [2, 4], [3, 5]]] * 12))
    np.save(folder / "labels.npy", tiny.objects([["throw", "jump", "throw"]] * 12))
    nonsense = run(copy, tmp_path / "b")
    assert same(weights_of(finished), weights_of(nonsense))
    assert read(finished)["last"]["mAP"] != read(nonsense)["last"]["mAP"]


# ---- stopping and resuming


def test_resuming_needs_the_same_options_and_inputs_but_not_the_same_places(root, finished, tmp_path):
    main_refuses(arguments(root, finished, "--resume", "--lr", "0.002"), "lr was 0.001 and is 0.002")
    before = {name: (finished / f"{name}.json").read_text() for name in ("results", "detections")}
    changed = {
        "profile": setting(excluded_videos=["video_09"]),
        "train_labels": array(WEAK, lambda a: tiny.objects([["throw", "jump"], *a[1:]])),
        "train_proposals": document(TRAIN, lambda d: d["results"].pop("video_00") and None),
        "train_features": array(FEATURE, lambda a: a + 1),
    }
    for name, change in {"as it is": lambda root: None, **changed}.items():
        copy = Path(shutil.copytree(root, tmp_path / name))
        change(copy)
        words = arguments(copy, finished, "--resume", "--no_cache", "--descriptors_root", tmp_path / f"{name} means")
        if name in changed:
            main_refuses(words, "inputs differ: ", f"{name} was")
        else:
            assert main.main([*words, "--device", "auto"]) == 0
    assert all((finished / f"{name}.json").read_text() == text for name, text in before.items())


# ---- errors


def test_a_loss_that_is_not_finite_stops_with_epoch_videos_and_term(root, tmp_path, monkeypatch):
    real = main.seal_terms

    def spoil(outputs, batch, recipe, epoch, *rest):
        terms = real(outputs, batch, recipe, epoch, *rest)
        if epoch == 3:  # as a loss does that is not finite: the sum is not, either
            terms["PC_loss"] = terms["PC_loss"] * float("nan")
            terms["loss_total"] = terms["loss_total"] + terms["PC_loss"]
        return terms

    monkeypatch.setattr(main, "seal_terms", spoil)
    words = arguments(root, tmp_path / "b", "--save_seconds", "0")
    main_refuses(words, "PC_loss is nan in epoch 3, step 1 (videos video_", "lower --lr")
    state = load_checkpoint(tmp_path / "b" / "ckpt" / "last_state.pt")
    assert state["epoch"] == 3 and all(v.isfinite().all() for v in state["model"].values())
    assert same(state["model"], {k: v.reshape(state["model"][k].shape) for k, v in weights_of(tmp_path / "b").items()})


@pytest.mark.parametrize("epoch", [3, 4])  # without an evaluation at its end, and with one
def test_weights_that_are_not_finite_are_never_saved(root, tmp_path, monkeypatch, epoch):
    real = main.Run.take_step

    def overflow(self, videos):
        real(self, videos)
        if self.epoch == epoch:
            self.model.prop_fused_backbone.prop_attention[2].bias.data[0] = float("inf")  # scores stay finite

    monkeypatch.setattr(main.Run, "take_step", overflow)
    words = arguments(root, tmp_path / "b", "--save_seconds", "0", "--batch_size", "8")
    main_refuses(words, "weights that are not finite (epoch 4")
    state = load_checkpoint(tmp_path / "b" / "ckpt" / "last_state.pt")["model"]
    assert all(v.isfinite().all() for s in (state, weights_of(tmp_path / "b")) for v in s.values())


def test_a_checkpoint_from_before_a_new_number_can_still_be_tested(root, finished, tmp_path):
    """A loss that somebody adds brings a number; what was trained without it does not state it."""
    checkpoint = load_checkpoint(finished / "ckpt" / "last_model.pkl")
    del checkpoint._metadata["seal"]["options"]["pc_penalty"]
    torch.save(checkpoint, tmp_path / "older.pkl")
    run_test(tmp_path / "older.pkl", root, tmp_path / "t")
    assert read(tmp_path / "t", "options")["pc_penalty"] == read(finished, "options")["pc_penalty"]
