"""Training and testing end to end on a tiny dataset: the files, the same bits, resuming, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from tests import tiny
from tests.outcome import read_scalars
from utils.errors import InputError
from utils.files import load_checkpoint

ROOT = Path(main.__file__).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("data") / "tiny", videos=12)


def arguments(root, exp_dir, *more, epochs=4, run_type="train"):
    base = {
        "run_type": run_type, "dataset_name": "Tiny", "dataset_root": root, "exp_dir": exp_dir, "device": "cpu",
        "descriptors_root": exp_dir.parent / "descriptors", "cache_dir": exp_dir.parent / "cache", "batch_size": 3,
        "max_epoch": epochs, "interval": 2, "lr": 1e-3,
    }  # fmt: skip
    return [x for k, v in base.items() for x in (f"--{k}", str(v))] + [str(m) for m in more]


def run(root, exp_dir, *more, **how):
    status = main.main(arguments(root, exp_dir, *more, **how))
    assert status == 0
    return exp_dir


def weights_of(exp_dir, name="last"):
    return load_checkpoint(exp_dir / "ckpt" / f"{name}_model.pkl")


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values())) and list(a) == list(b)


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    return run(root, tmp_path_factory.mktemp("runs") / "a")


def test_a_run_leaves_every_file_it_promises(finished):
    names = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    assert {
        "opt.txt", "options.json", "environment.json", "ckpt/last_model.pkl", "ckpt/best_model.pkl",
        "ckpt/last_state.pt", "mAP-results.log", "results.json", "detections.json",
    } <= names  # fmt: skip
    assert not [n for n in names if n.endswith(".tmp")]
    results = json.loads((finished / "results.json").read_text())
    assert results["last"]["epoch"] == 4 and results["best"]["epoch"] in (2, 4)
    for metrics in results.values():
        assert metrics["protocol"] == "wtal" and len(metrics["mAP"]) == 7
        assert set(metrics["average"]) == {"0.1:0.5", "0.3:0.7", "0.1:0.7"}
        np.testing.assert_allclose(metrics["average"]["0.1:0.7"], np.mean(metrics["mAP"]))
        np.testing.assert_allclose(np.mean(list(metrics["AP"].values()), axis=0), metrics["mAP"])
    lines = (finished / "mAP-results.log").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "2", "4"]
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["seed"] == 0 and environment["torch"] == torch.__version__ and environment["inputs"]


def test_tensorboard_reads_losses_weights_and_maps_back(finished):
    scalars = read_scalars(finished / "logs")
    assert sorted(scalars["loss/loss_total"]) == [1, 2, 3, 4]
    for tag in ("loss/loss_prop_mil_orig", "loss/loss_prop_mil_supp", "loss/SME_loss", "loss/PC_loss", "loss/SC_loss"):
        assert len(scalars[tag]) == 4
    assert scalars["weight/lambda_pc"][3] == pytest.approx(1.5)
    assert scalars["optimizer/learning_rate"][1] == pytest.approx(1e-3)
    results = json.loads((finished / "results.json").read_text())
    assert scalars["test_mAP/mAP@0.1"][4] == pytest.approx(100 * results["last"]["mAP"][0], rel=1e-6)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "logs"))
    events.Reload()
    images = [tag for tag in events.Tags()["images"] if tag.startswith("timeline/video_")]
    assert images and [e.step for e in events.Images(images[0])] == [2, 4]
    assert any("options" in tag for tag in events.Tags()["tensors"])


def test_testing_a_checkpoint_gives_the_numbers_of_its_training(root, finished, capsys):
    for name in ("last", "best"):
        out = finished.parent / f"test-{name}"
        checkpoint = finished / "ckpt" / f"{name}_model.pkl"
        run(root, out, "--pretrained_ckpt", checkpoint, run_type="test")
        metrics = json.loads((out / "results.json").read_text())
        expected = json.loads((finished / "results.json").read_text())[name]
        assert {k: v for k, v in expected.items() if k != "epoch"} == {k: v for k, v in metrics.items() if k != "epoch"}
    assert "protocol wtal" in capsys.readouterr().out


def test_detections_of_a_run_score_as_its_results_say(root, finished, tmp_path):
    from eval import detection

    output = tmp_path / "metrics.json"
    detection.main(
        ["--detections", str(finished / "detections.json"), "--dataset_name", "Tiny", "--dataset_root", str(root)]
        + ["--output", str(output)]
    )
    found, expected = json.loads(output.read_text()), json.loads((finished / "results.json").read_text())["last"]
    np.testing.assert_allclose(found["mAP"], expected["mAP"], atol=1e-6)


@pytest.mark.parametrize("more", [[], ["--no_cache"], ["--interval", "3"], ["--interval", "1"]])
def test_the_same_seed_gives_the_same_bits_whatever_cache_and_interval(root, finished, tmp_path, more):
    again = run(root, tmp_path / "b", *more)
    assert same(weights_of(finished), weights_of(again))


@pytest.mark.parametrize("more", [["--seed", "1"], ["--losses", "none"], ["--recipe", "release"], ["--gamma", "0.5"]])
def test_what_should_change_training_does(root, finished, tmp_path, more):
    assert not same(weights_of(finished), weights_of(run(root, tmp_path / "b", *more)))


@pytest.mark.parametrize(
    "more", [["--share_rows"], ["--amp", "bf16"], ["--cache_dtype", "float16"], ["--max_proposal", "3"]]
)
def test_options_of_speed_train_too(root, tmp_path, more):
    results = json.loads((run(root, tmp_path / "b", *more) / "results.json").read_text())
    assert np.isfinite(results["last"]["mAP"]).all()


def test_training_cannot_reach_time_stamps(root, finished, tmp_path):
    """The same bits when segments.npy and labels.npy are nonsense: labels_all is all that training reads."""
    import shutil

    copy = tmp_path / "tiny"
    shutil.copytree(root, copy)
    folder = copy / "Tiny-Annotations"
    n = len(np.load(folder / "videoname.npy"))
    rng = np.random.default_rng(9)
    np.save(folder / "segments.npy", tiny.objects([np.sort(rng.uniform(0, 5, (3, 2))).tolist() for _ in range(n)]))
    np.save(folder / "labels.npy", tiny.objects([["throw", "jump", "throw"]] * n))
    nonsense = run(copy, tmp_path / "b")
    assert same(weights_of(finished), weights_of(nonsense))
    before, after = (json.loads((d / "results.json").read_text())["last"]["mAP"] for d in (finished, nonsense))
    assert before != after


def test_a_stopped_run_resumes_to_the_same_bits_and_steps_are_not_doubled(root, finished, tmp_path, monkeypatch):
    out = tmp_path / "b"
    real, taken = main.Run.take_step, []

    def stop_in_step_6(self, videos):
        taken.append(1)
        if len(taken) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, videos)

    monkeypatch.setattr(main.Run, "take_step", stop_in_step_6)
    assert main.main(arguments(root, out)) == 130
    assert not (out / "results.json").exists() or json.loads((out / "results.json").read_text())["last"]["epoch"] == 2
    monkeypatch.undo()
    run(root, out, "--resume")
    assert same(weights_of(finished), weights_of(out))
    for name in ("results.json", "mAP-results.log", "detections.json"):
        assert (out / name).read_text() == (finished / name).read_text()
    assert read_scalars(out / "logs") == read_scalars(finished / "logs")


def test_resuming_with_options_that_change_the_result_is_refused(root, finished):
    with pytest.raises(InputError, match="lr was 0.001 and is 0.002"):
        main.main(arguments(root, finished, "--resume", "--lr", "0.002"))


def test_a_folder_that_holds_a_run_is_not_overwritten(root, finished):
    before = (finished / "results.json").read_text()
    with pytest.raises(InputError, match="holds a run already"):
        main.main(arguments(root, finished))
    assert (finished / "results.json").read_text() == before


def test_a_loss_that_is_not_finite_stops_with_epoch_videos_and_term(root, tmp_path, monkeypatch):
    real = main.seal_terms

    def spoil(outputs, batch, recipe, epoch, *rest):
        terms = real(outputs, batch, recipe, epoch, *rest)
        if epoch == 3:  # as a loss does that is not finite: the sum is not, either
            terms["PC_loss"] = terms["PC_loss"] * float("nan")
            terms["loss_total"] = terms["loss_total"] + terms["PC_loss"]
        return terms

    monkeypatch.setattr(main, "seal_terms", spoil)
    with pytest.raises(InputError, match="PC_loss is nan in epoch 3, step 1 .videos video_"):
        main.main(arguments(root, tmp_path / "b", "--save_seconds", "0"))
    state = load_checkpoint(tmp_path / "b" / "ckpt" / "last_state.pt")
    assert state["epoch"] == 3 and all(v.isfinite().all() for v in state["model"].values())
    assert same(state["model"], {k: v.reshape(state["model"][k].shape) for k, v in weights_of(tmp_path / "b").items()})


def test_the_last_evaluated_weights_and_detections_stand_beside_their_results(root, finished, tmp_path, monkeypatch):
    real = main.Run.take_step

    def fail(self, videos):
        if self.epoch == 4:
            raise InputError("power cut")
        real(self, videos)

    monkeypatch.setattr(main.Run, "take_step", fail)
    with pytest.raises(InputError, match="power cut"):
        main.main(arguments(root, tmp_path / "b"))
    monkeypatch.undo()
    assert json.loads((tmp_path / "b" / "results.json").read_text())["last"]["epoch"] == 2
    checkpoint = tmp_path / "b" / "ckpt" / "last_model.pkl"
    run(root, tmp_path / "t", "--pretrained_ckpt", checkpoint, run_type="test")
    assert (tmp_path / "t" / "detections.json").read_text() == (tmp_path / "b" / "detections.json").read_text()


def test_a_test_run_has_the_recipe_of_its_checkpoint(root, tmp_path):
    trained = run(root, tmp_path / "a", "--recipe", "release", epochs=2)
    run(root, tmp_path / "t", "--pretrained_ckpt", trained / "ckpt" / "last_model.pkl", run_type="test")
    options = json.loads((tmp_path / "t" / "options.json").read_text())
    assert (options["recipe"], options["lambda_pc"]) == ("release", 3.4)
    inputs = json.loads((tmp_path / "t" / "environment.json").read_text())["inputs"]
    assert sorted(inputs) == ["checkpoint", "ground_truth", "test_features", "test_proposals"]


def test_flags_that_disagree_with_the_checkpoint_are_refused(root, finished, tmp_path):
    checkpoint = finished / "ckpt" / "last_model.pkl"
    for more in (["--roi_size", "6"], ["--losses", "sme,sc"], ["--recipe", "release"]):
        with pytest.raises(InputError, match=f"{more[0]} is not what the checkpoint was trained with"):
            run(root, tmp_path / "t", "--pretrained_ckpt", checkpoint, *more, run_type="test")


def test_the_options_written_are_the_numbers_used(root, tmp_path):
    out = run(root, tmp_path / "b", "--recipe", "release", "--gamma", "0.7")
    options = json.loads((out / "options.json").read_text())
    assert (options["gamma"], options["lambda_pc"], options["st_first_class"]) == (0.7, 3.4, True)
    lines = dict(line.split(None, 1) for line in (out / "opt.txt").read_text().splitlines())
    assert (lines["gamma"].strip(), lines["lambda_pc"].strip()) == ("0.7", "3.4")


def command(*words, cwd=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / words[0]), *map(str, words[1:])], capture_output=True, text=True, env=environment,
        cwd=cwd, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stderr.strip().splitlines()


@pytest.mark.parametrize(
    "words, says",
    [
        (["--no_such_option"], "unrecognized arguments"),
        (["--run_type", "test"], "needs --pretrained_ckpt"),
        (["--resume"], "needs --exp_dir"),
        (["--pretrained_ckpt", "x"], "is for test and predict"),
        (["--run_type", "predict", "--pretrained_ckpt", "x"], "needs --features"),
        (["--seeds", "1", "1"], "stands twice"),
        (["--losses", "sme,xyz"], "no subset of sme,pc,sc"),
        (["--roi_size", "7"], "no multiple of 6"),
        (["--roi_size", "6000000000"], "not in [6, 1200]"),
        (["--k", "9" * 30], "is not in [1, 2147483647]"),
        (["--seeds", "1", "2", "--seed", "3"], "beside --seed"),
        (["--run_type", "test", "--pretrained_ckpt", "x", "--seeds", "1"], "--seeds is for --run_type train"),
        (["--run_type", "test", "--pretrained_ckpt", "x", "--exp_dir", "y", "--resume"], "is for --run_type train"),
        (["--features", "x"], "--features is for --run_type predict"),
        (["--lr", "nan"], "nan is not in"),
        (["--dataset_root", "no/such/folder"], "no such dataset folder"),
        (["--dataset_name", "Thumos14Reduced"], "no such dataset folder"),
    ],
)
def test_wrong_commands_end_in_one_line_and_status_2(words, says, tmp_path):
    status, lines = command("main.py", *words, cwd=tmp_path)
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0]


def test_a_second_run_on_one_folder_is_refused(root, tmp_path):
    first = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *arguments(root, tmp_path / "b", epochs=100000)],
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "b" / "options.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        status, lines = command("main.py", *arguments(root, tmp_path / "b"))
        assert status == 2 and "another run is writing here" in lines[-1]
    finally:
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 130


def test_resuming_on_changed_inputs_is_refused(root, tmp_path):
    import shutil

    copy = tmp_path / "tiny"
    shutil.copytree(root, copy)
    out = run(copy, tmp_path / "b")
    path = copy / "Tiny-Annotations" / "labels_all.npy"
    labels = np.load(path, allow_pickle=True)
    labels[0] = ["throw", "jump"]
    np.save(path, labels)
    with pytest.raises(InputError, match="inputs differ: .*train_labels was"):
        main.main(arguments(copy, out, "--resume"))


def test_a_run_may_be_resumed_from_files_that_have_moved(root, finished, tmp_path):
    """Their content counts, not their place."""
    import shutil

    before = (finished / "results.json").read_text()
    shutil.copytree(root, tmp_path / "tiny")
    run(tmp_path / "tiny", finished, "--resume", "--descriptors_root", tmp_path / "d", "--device", "auto")
    assert (finished / "results.json").read_text() == before


@pytest.mark.parametrize("epoch", [3, 4])  # without an evaluation at its end, and with one
def test_weights_that_are_not_finite_are_never_saved(root, tmp_path, monkeypatch, epoch):
    real = main.Run.take_step

    def overflow(self, videos):
        real(self, videos)
        if self.epoch == epoch:
            self.model.prop_fused_backbone.prop_attention[2].bias.data[0] = float("inf")  # scores stay finite

    monkeypatch.setattr(main.Run, "take_step", overflow)
    with pytest.raises(InputError, match="weights that are not finite .epoch 4"):
        main.main(arguments(root, tmp_path / "b", "--save_seconds", "0", "--batch_size", "8"))
    state = load_checkpoint(tmp_path / "b" / "ckpt" / "last_state.pt")["model"]
    assert all(v.isfinite().all() for s in (state, weights_of(tmp_path / "b")) for v in s.values())


@pytest.mark.parametrize("alone, value", [("RANK", "1"), ("WORLD_SIZE", "2"), ("WORLD_SIZE", "two")])
def test_half_of_what_torchrun_sets_is_no_run_of_several_processes(root, tmp_path, alone, value):
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
    environment.update({alone: value, "OMP_NUM_THREADS": "1"})
    words = [sys.executable, str(ROOT / "main.py"), *arguments(root, tmp_path / "b", epochs=1)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    if alone == "RANK":
        assert done.returncode == 0 and "protocol wtal" in done.stdout
    else:
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "start with torchrun" in done.stderr


def test_a_run_may_be_resumed_without_the_cache(root, finished):
    before = (finished / "results.json").read_text()
    run(root, finished, "--resume", "--no_cache")
    assert (finished / "results.json").read_text() == before


@pytest.mark.parametrize(
    "more", [["--losses", "sme,sc"], ["--lambda_pc", "0"], ["--pc_centre", "0", "--pc_penalty", "0"]]
)
def test_an_untrained_process_branch_does_not_enter_the_scores(root, tmp_path, more):
    plain = run(root, tmp_path / "a", *more)
    state = weights_of(plain)
    for name in state:  # whatever that branch says, nothing changes
        if "prop_completeness" in name:
            state[name].normal_(generator=torch.Generator().manual_seed(0))
    torch.save(state, tmp_path / "other.pkl")
    run(root, tmp_path / "b", "--pretrained_ckpt", tmp_path / "other.pkl", run_type="test")
    a, b = (json.loads((tmp_path / d / "detections.json").read_text()) for d in "ab")
    assert a["results"] == b["results"]


def test_simulated_features_are_named_and_stand_beside_no_published_row(root, tmp_path, capsys):
    import shutil

    copy = tmp_path / "tiny"
    shutil.copytree(root, copy)
    for name in ("Tiny-Annotations", "Tiny-I3D-JOINTFeatures"):
        (copy / name).rename(copy / name.replace("Tiny", "Thumos14reduced"))
    for split in ("train", "test"):
        (copy / f"Proposals_Tiny_{split}.json").rename(copy / f"Proposals_Thumos14reduced_{split}.json")
    words = arguments(copy, tmp_path / "real")
    words[words.index("Tiny")] = "Thumos14reduced"
    main.main(words)
    assert "SEAL, paper (AAAI 2025), wtal" in capsys.readouterr().out
    (copy / "SIMULATED.txt").write_text("")
    words[words.index(str(tmp_path / "real"))] = str(tmp_path / "simulated")
    main.main(words)
    out = capsys.readouterr().out
    assert "SIMULATED features" in out and "SEAL, paper" not in out
    assert json.loads((tmp_path / "simulated" / "results.json").read_text())["last"]["simulated"] is True


@pytest.mark.parametrize("change", [{"feature_fps": 24}, {"tiou_thresholds": [0.5]}, {"excluded_videos": ["video_09"]}])
def test_resuming_under_another_profile_is_refused(root, tmp_path, change):
    import shutil

    copy = tmp_path / "tiny"
    shutil.copytree(root, copy)
    out = run(copy, tmp_path / "b")
    (copy / "dataset.json").write_text(json.dumps({"proposals_root": ".", **change}))
    with pytest.raises(InputError, match="inputs differ"):
        main.main(arguments(copy, out, "--resume"))
