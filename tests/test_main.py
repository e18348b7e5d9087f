"""Training and testing end to end on a tiny dataset: the files, the same bits, resuming, provenance, errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from eval import detection, inference
from options import Recipe
from tests import tiny
from tests.changes import hurry
from tests.outcome import outcome, read_scalars, refused
from tests.runs import arguments, read, run, same, same_files, test_of, weights_of, without_test_videos
from utils.errors import InputError
from utils.files import load_checkpoint
from utils.run.experiment import experiment


@pytest.fixture(scope="module", autouse=True)
def hurried():
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        patch.setattr(main, "pictures", inference.pictures)  # a pixel each
        patch.setattr(inference, "timeline", lambda *what: None)
        patch.setattr(inference, "figure_to_array", lambda figure: np.zeros((1, 1, 3), np.uint8))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("data") / "tiny", videos=12)


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    return run(root, tmp_path_factory.mktemp("runs") / "a")


def main_refuses(words, *says):
    return refused(outcome(main.main, words), *says)


# ---- what a run leaves


def test_a_run_leaves_every_file_it_promises(finished):
    names = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    assert {
        "opt.txt", "options.json", "environment.json", "ckpt/last_model.pkl", "ckpt/best_model.pkl",
        "ckpt/last_state.pt", "mAP-results.log", "results.json", "detections.json",
    } <= names  # fmt: skip
    assert not [n for n in names if n.endswith(".tmp")]
    results = read(finished)
    assert results["last"]["epoch"] == 4 and results["best"]["epoch"] in (2, 4)
    for metrics in results.values():
        assert metrics["protocol"] == "wtal" and len(metrics["mAP"]) == 7
        assert set(metrics["average"]) == {"0.1:0.5", "0.3:0.7", "0.1:0.7"}
        np.testing.assert_allclose(metrics["average"]["0.1:0.7"], np.mean(metrics["mAP"]))
        np.testing.assert_allclose(np.mean(list(metrics["AP"].values()), axis=0), metrics["mAP"])
    environment = read(finished, "environment")
    assert environment["seed"] == 0 and environment["torch"] == torch.__version__ and environment["inputs"]


def test_the_columns_of_the_log_are_the_authors(finished):
    lines = [line.split() for line in (finished / "mAP-results.log").read_text().splitlines()]
    tious = [f"mAP@0.{n}" for n in range(1, 8)]
    averages = ["AVG(0.1:0.5)", "AVG(0.3:0.7)", "AVG(0.1:0.7)"]
    assert lines[0] == ["epoch", *tious, *averages, "cls-mAP", "cls-acc"]
    assert [line[0] for line in lines[1:]] == ["2", "4"] and {len(line) for line in lines} == {13}
    last = read(finished)["last"]
    numbers = [*last["mAP"], *last["average"].values(), last["classification_mAP"], last["classification_accuracy"]]
    assert lines[2][1:] == [f"{100 * n:.2f}" for n in numbers]


def test_tensorboard_has_the_authors_tags_and_the_schedule(finished):
    scalars, last = read_scalars(finished / "logs"), read(finished)["last"]
    losses = ("loss_total", "loss_prop_mil_orig", "loss_prop_mil_supp", "SME_loss", "PC_loss", "SC_loss")
    for tag in losses:
        assert sorted(scalars[f"loss/{tag}"]) == [1, 2, 3, 4]
    at = [f"0.{n}" for n in range(1, 8)] + ["0.1 : 0.5", "0.3 : 0.7", "0.1 : 0.7"]
    expected = dict(zip((f"test_mAP/Detection mAP @ IoU = {x}" for x in at), [*last["mAP"], *last["average"].values()]))
    expected["test_mAP/Classification mAP"] = last["classification_mAP"]
    expected["test_mAP/Classification acc"] = last["classification_accuracy"]
    expected["test_mAP/Classification top-1"] = last["classification_top1"]
    assert {tag for tag in scalars if tag.startswith("test_mAP")} == set(expected)
    for tag, value in expected.items():
        assert scalars[tag][4] == pytest.approx(100 * value, rel=1e-6)
    assert [scalars[f"weight/lambda_{name}"][3] for name in ("pc", "sme")] == pytest.approx([1.5, 0.9])
    assert scalars["optimizer/learning_rate"][1] == pytest.approx(1e-3)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "logs"))
    events.Reload()
    images = [tag for tag in events.Tags()["images"] if tag.startswith("timeline/video_")]
    assert images and [e.step for e in events.Images(images[0])] == [2, 4]
    assert any("options" in tag for tag in events.Tags()["tensors"])


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
        out = test_of(finished / "ckpt" / f"{name}_model.pkl", root, tmp_path / "t")
        expected = read(finished)[name]
        assert expected.pop("epoch") and read(out) == expected
    assert "protocol wtal" in capsys.readouterr().out
    inputs = read(out, "environment")["inputs"]
    assert sorted(inputs) == ["checkpoint", "features", "ground_truth", "proposals"]


def test_a_folder_holds_one_kind_of_run_and_a_test_is_never_told_to_resume(root, finished, tmp_path):
    before = (finished / "results.json").read_text()
    line = main_refuses(arguments(root, finished), "already holds a run", "add --resume")
    checkpoint = finished / "ckpt" / "last_model.pkl"
    words = arguments(root, finished, "--pretrained_ckpt", checkpoint, run_type="test")
    line = main_refuses(words, "already holds a run of another kind (train)", "name another --exp_dir")
    assert "--resume" not in line and (finished / "results.json").read_text() == before
    line = main_refuses(arguments(root, test_of(checkpoint, root, tmp_path / "t")), "already holds a run")
    assert "--resume" not in line


def test_a_test_says_what_trained_its_checkpoint(root, tmp_path, capsys):
    chosen = {"gamma": 0.5, "lambda_pc": 2.5, "sme_labels": "high", "descriptor_level": "segment", "recipe": "release"}
    out = run(root, tmp_path / "a", *(x for k, v in chosen.items() for x in (f"--{k}", v)), epochs=2)
    lines = dict(line.split(None, 1) for line in (out / "opt.txt").read_text().splitlines())
    assert lines["gamma"] == "0.5" and lines["sc_until"] == "70"
    capsys.readouterr()
    test_of(out / "ckpt" / "last_model.pkl", root, tmp_path / "t", "--lr", 1)
    trained, tested = read(out, "options"), read(tmp_path / "t", "options")
    assert {name: tested[name] for name in chosen} == chosen and tested["pc_penalty"] == 9.0
    for name in ("losses", "roi_size", "lr", "batch_size", "max_epoch", "seed", *Recipe._fields):
        assert tested[name] == trained[name]
    said = capsys.readouterr().err
    assert all(text in said for text in ("which hold here", "gamma 0.5", "lr 0.001", "sme_labels high"))


@pytest.mark.parametrize("more", [["--losses", "sme,sc"], ["--pc_centre", "0", "--pc_penalty", "0"]])
def test_an_untrained_process_branch_does_not_enter_the_scores(root, tmp_path, more):
    out = run(root, tmp_path / "a", *more, epochs=2)
    state = weights_of(out)
    for name in state:  # whatever that branch says, nothing changes
        if "prop_completeness" in name:
            state[name].normal_(generator=torch.Generator().manual_seed(0))
    torch.save(state, tmp_path / "other.pkl")
    test_of(tmp_path / "other.pkl", root, tmp_path / "b")
    assert read(out, "detections")["results"] == read(tmp_path / "b", "detections")["results"]


def test_simulated_features_are_named_and_have_no_published_row_beside_them(root, tmp_path, capsys):
    copy = Path(shutil.copytree(root, tmp_path / "tiny"))
    for path in [*copy.glob("Tiny*"), *copy.glob("Proposals_Tiny*")]:
        path.rename(copy / path.name.replace("Tiny", "Thumos14reduced"))
    name = ["--dataset_name", "Thumos14reduced"]
    run(copy, tmp_path / "real", *name, epochs=1)
    assert "SEAL, paper (AAAI 2025), wtal" in capsys.readouterr().out
    (copy / "SIMULATED.txt").write_text("")
    out = run(copy, tmp_path / "simulated", *name, epochs=1)
    said = capsys.readouterr().out
    assert "SIMULATED features" in said and "SEAL, paper" not in said and read(out)["last"]["simulated"] is True


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
    n = len(np.load(folder / "videoname.npy"))
    rng = np.random.default_rng(9)
    np.save(folder / "segments.npy", tiny.objects([np.sort(rng.uniform(0, 5, (3, 2))).tolist() for _ in range(n)]))
    np.save(folder / "labels.npy", tiny.objects([["throw", "jump", "throw"]] * n))
    nonsense = run(copy, tmp_path / "b")
    assert same(weights_of(finished), weights_of(nonsense))
    assert read(finished)["last"]["mAP"] != read(nonsense)["last"]["mAP"]


# ---- stopping and resuming


def test_a_stopped_run_resumes_to_the_same_bits_and_no_step_is_logged_twice(root, finished, tmp_path, monkeypatch):
    out, real, taken = tmp_path / "b", main.Run.take_step, []

    def stop_in_step_5(self, videos):
        taken.append(1)
        if len(taken) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, videos)

    monkeypatch.setattr(main.Run, "take_step", stop_in_step_5)
    assert main.main(arguments(root, out)) == 130
    assert load_checkpoint(out / "ckpt" / "last_state.pt")["step"] == 1 and read(out)["last"]["epoch"] == 2
    monkeypatch.undo()
    run(root, out, "--resume")
    assert same(weights_of(finished), weights_of(out)) and same_files(finished, out)
    assert read_scalars(out / "logs") == read_scalars(finished / "logs")


def test_resuming_needs_the_same_options_and_inputs_but_not_the_same_places(root, finished, tmp_path):
    main_refuses(arguments(root, finished, "--resume", "--lr", "0.002"), "lr was 0.001 and is 0.002")
    copy = Path(shutil.copytree(root, tmp_path / "tiny"))
    before = (finished / "results.json").read_text()
    run(copy, finished, "--resume", "--no_cache", "--descriptors_root", tmp_path / "d", "--device", "auto")
    assert (finished / "results.json").read_text() == before
    path = copy / "Tiny-Annotations" / "labels_all.npy"
    labels = np.load(path, allow_pickle=True)
    labels[0] = ["throw", "jump"]
    np.save(path, labels)
    main_refuses(arguments(copy, finished, "--resume"), "inputs differ: ", "train_labels was")


@pytest.mark.parametrize("change", [{"feature_fps": 24}, {"tiou_thresholds": [0.5]}, {"excluded_videos": ["video_09"]}])
def test_resuming_under_another_profile_is_refused(root, finished, tmp_path, change):
    copy = Path(shutil.copytree(root, tmp_path / "tiny"))
    (copy / "dataset.json").write_text(json.dumps({"proposals_root": ".", **change}))
    main_refuses(arguments(copy, finished, "--resume", "--fix_proposals"), "differ")


def test_results_weights_and_detections_on_disk_belong_together(root, tmp_path, monkeypatch):
    real = main.Run.take_step

    def fail(self, videos):
        if self.epoch == 4:
            raise InputError("power cut")
        real(self, videos)

    monkeypatch.setattr(main.Run, "take_step", fail)
    main_refuses(arguments(root, tmp_path / "b"), "power cut")
    assert read(tmp_path / "b")["last"]["epoch"] == 2
    test_of(tmp_path / "b" / "ckpt" / "last_model.pkl", root, tmp_path / "t")
    assert same_files(tmp_path / "t", tmp_path / "b", ["detections.json"])


def test_a_second_run_on_one_folder_is_refused(root, tmp_path):
    with experiment(str(tmp_path / "b"), "train", "unused"):
        main_refuses(arguments(root, tmp_path / "b"), "another run is writing here", "name another --exp_dir")


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


OUT_OF_MEMORY = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 8000 bytes. Error code 12 (Cannot allocate memory)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you tried ..."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 7.79 GiB"),
    MemoryError("Unable to allocate 7.45 TiB for an array with shape (1000, 1000) and data type float64"),
]  # fmt: skip


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_out_of_memory_is_one_line_that_names_what_to_lower(root, tmp_path, monkeypatch, error):
    def fail(*args, **how):
        raise error

    monkeypatch.setattr(main, "train_step", fail)
    main_refuses(arguments(root, tmp_path / "b"), "out of memory", "--batch_size", "--max_proposal")


def test_a_defect_of_the_program_keeps_its_traceback(root, tmp_path, monkeypatch):
    monkeypatch.setattr(main, "train_step", lambda *args, **how: torch.ones(2) + torch.ones(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        outcome(main.main, arguments(root, tmp_path / "b"))


@pytest.mark.parametrize(
    "words, says",
    [
        (["--no_such_option"], "unrecognized arguments"),
        (["--dataset_root", "no/such/folder"], "no such dataset folder"),
        (["--dataset_name", "Thumos14Reduced"], "no such dataset folder"),
        (["--run_type", "test", "--pretrained_ckpt", "no_such.pkl"], "no_such.pkl"),
    ],
)
def test_wrong_commands_end_in_one_line_and_status_2(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main_refuses(words, says)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]


def test_the_file_itself_is_the_command(tmp_path):
    words = [sys.executable, str(Path(main.__file__)), "--run_type", "predict"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: --run_type predict needs") and not done.stdout
