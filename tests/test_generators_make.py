"""The commands of the proposal makers: what they write, resume to the same bits, what they never read, bad input."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import main
import proposals
from dataset import open_source
from generators import co2net, lac, make
from tests import tiny
from tests.changes import array, write
from tests.tiny import ANNOTATIONS, FEATURE, FEATURES, SEGMENTS, WEAK
from utils.datasets.proposals import load_proposals
from utils.errors import InputError
from utils.files import load_checkpoint
from utils.tools import benchmark

METHODS = pytest.mark.parametrize("method", ["co2net", "lac"])


@pytest.fixture(scope="module", autouse=True)
def small():
    """Published settings would draw 500 rows of videos of 30."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(make.SETTINGS["co2net"], "thumos14", co2net.Settings(lr=1e-2, rows=20))
        patch.setitem(make.SETTINGS["lac"], "thumos14", lac.Settings(lr=1e-2, batch=3, search_every=2))
        yield


@pytest.fixture
def root(tmp_path):
    root = tiny.write(tmp_path / "data", proposals=2)
    rows = ["video,label,time", *(f"video_{i:02d},{['jump', 'throw'][i % 2]},{t}" for i in range(5) for t in (1.3, 5))]
    (root / "points.csv").write_text("\n".join(rows))
    return root


def run(root, out, method="co2net", *more, iterations=4, status=0):
    """``make`` into ``out``; returns the two files of proposals as bytes and what they hold."""
    words = f"make --method {method} --dataset_name Tiny --dataset_root {root} --proposals_root {out / 'p'}".split()
    words += f"--iterations {iterations} --exp_dir {out / 'run'} --device cpu".split() + list(more)
    words += ["--points", root / "points.csv"] * (method == "lac" and "--simulate_points" not in more)
    assert proposals.main([str(w) for w in words]) == status
    paths = [out / "p" / f"Proposals_Tiny_{split}.json" for split in ("train", "test")]
    found = [path.read_bytes() for path in paths if path.exists()]
    return found, [json.loads(text) for text in found]


@METHODS
def test_make_writes_whole_proposals_of_both_splits_and_ends_with_the_table(root, tmp_path, method, capsys):
    _, (train, test) = run(root, tmp_path, method)
    assert [list(found["results"]) for found in (train, test)] == [
        [f"video_{i:02d}" for i in part] for part in (range(5), range(5, 8))
    ]
    assert all(p["label"] == ["jump", "throw"][i % 2] for i in range(5) for p in train["results"][f"video_{i:02d}"])
    duration_s = {v: len(np.load(root / "Tiny-I3D-JOINTFeatures" / f"{v}.npy")) * 0.64 for v in test["results"]}
    read = load_proposals(tmp_path / "p" / "Proposals_Tiny_test.json", duration_s)
    assert not read.problems and sum(map(len, read.segments_s.values())) > 3
    assert train["maker"]["background_runs"] and not test["maker"]["background_runs"]
    assert train["maker"]["true_labels"] and not test["maker"]["true_labels"]
    assert train["maker"]["method"] == method and train["maker"]["settings"]["iterations"] == 4
    assert train["maker"]["points"] == {"co2net": None, "lac": "points.csv"}[method]
    assert train["maker"]["features"] == train["maker"]["trained_on"]["features"] != test["maker"]["features"]
    assert train["version"] == f"{method} trained on Tiny" and train["maker"]["simulated"] == []
    said = capsys.readouterr()
    assert "recall, exact seconds, tIoU 0.50" in said.out and "iteration 4/4: " in said.err and " s left" in said.err
    assert list((tmp_path / "run" / "logs").glob("events*")) and (tmp_path / "run" / "environment.json").exists()


@METHODS
def test_a_stopped_run_resumes_to_the_same_bits(root, tmp_path, method, monkeypatch):
    whole, _ = run(root, tmp_path / "whole", method, iterations=6)

    class Stop(make.Stop):
        asks = 0

        @property
        def asked(self):
            self.asks += 1
            return self.asks == 3

        asked = asked.setter(lambda self, value: None)

    with monkeypatch.context() as patch:
        patch.setattr(make, "Stop", Stop)
        assert run(root, tmp_path / "parts", method, iterations=6, status=130) == ([], [])
    assert load_checkpoint(tmp_path / "parts" / "run" / "ckpt" / "last_state.pt")["iteration"] == 3
    with pytest.raises(InputError, match="seed was 0 and is 1"):
        run(root, tmp_path / "parts", method, "--resume", "--seed", 1, iterations=6)
    with pytest.raises(InputError, match="iterations was 6 and is 7"):
        run(root, tmp_path / "parts", method, "--resume", iterations=7)
    features = (root / FEATURE).read_bytes()
    array(FEATURE, lambda a: a + 1)(root)
    with pytest.raises(InputError, match="inputs differ: features was"):
        run(root, tmp_path / "parts", method, "--resume", iterations=6)
    write(FEATURE, features)(root)
    assert run(root, tmp_path / "parts", method, "--resume", iterations=6)[0] == whole
    models = [(tmp_path / part / "run" / "ckpt" / "last_model.pkl").read_bytes() for part in ("whole", "parts")]
    assert models[0] == models[1]


@METHODS
def test_neither_times_nor_test_labels_change_anything(root, tmp_path, method):
    first, _ = run(root, tmp_path / "a", method)
    array(WEAK, lambda a: tiny.objects([*a[:5], *([["jump", "throw"]] * 3)]))(root)
    array(SEGMENTS, lambda a: tiny.objects([[[0.1, 0.2], [0.2, 0.3]]] * 8))(root)
    write(f"{ANNOTATIONS}/Ambiguous_test.txt", "video_06 0 9\n")(root)
    assert run(root, tmp_path / "b", method)[0] == first


def test_proposals_that_are_there_and_a_folder_with_a_run_are_refused(root, tmp_path):
    run(root, tmp_path)
    with pytest.raises(InputError, match="proposals are here already.*--replace"):
        run(root, tmp_path)
    with pytest.raises(InputError, match="already holds a run"):
        run(root, tmp_path, "co2net", "--replace")
    shutil.rmtree(tmp_path / "run")
    _, (train, _) = run(root, tmp_path, "co2net", "--replace", "--no_background_runs")
    assert not train["maker"]["background_runs"]


def unseen(root, tmp_path):
    """The test videos' features alone."""
    folder = tmp_path / "unseen"
    folder.mkdir()
    for i in (5, 6, 7):
        shutil.copy(root / "Tiny-I3D-JOINTFeatures" / f"video_{i:02d}.npy", folder)
    return folder


def generate(checkpoint, output, *features):
    words = ["generate", "--checkpoint", checkpoint, "--output", output, "--device", "cpu", "--features", *features]
    assert proposals.main([str(w) for w in words]) == 0
    return json.loads(output.read_text())


@METHODS
def test_generate_gives_the_test_split_and_predict_takes_the_checkpoint(root, tmp_path, method, capsys):
    _, (_, test) = run(root, tmp_path, method, *["--simulate_points", "uniform"] * (method == "lac"))
    folder, checkpoint, seal = unseen(root, tmp_path), tmp_path / "run" / "ckpt" / "last_model.pkl", tmp_path / "seal"
    found = generate(checkpoint, tmp_path / "made" / "p.json", folder)
    for video, expected in test["results"].items():
        assert [p["label"] for p in found["results"][video]] == [p["label"] for p in expected]
        ours, theirs = ([[*p["segment"], p["score"]] for p in ps] for ps in (found["results"][video], expected))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    halves = [tmp_path / "rgb", tmp_path / "flow"]
    for half, part in zip(halves, (slice(4), slice(4, 8))):
        half.mkdir()
        for path in folder.iterdir():
            np.save(half / path.name, np.load(path)[:, part])
    assert generate(checkpoint, tmp_path / "two.json", *halves)["results"] == found["results"]
    simulated = ["points, drawn from the training times"] * (method == "lac")
    assert found["maker"]["simulated"] == simulated and ("SIMULATED" in found["version"]) == bool(simulated)

    words = f"--run_type train --dataset_name Tiny --dataset_root {root} --proposals_root {tmp_path / 'p'}".split()
    words += f"--max_epoch 1 --no_cache --descriptors_root {tmp_path / 'd'} --exp_dir {seal} --device cpu".split()
    assert main.main([str(w) for w in words]) == 0
    assert (f"made by {method} trained on Tiny SIMULATED (points" in capsys.readouterr().err) == bool(simulated)
    words = ["--run_type", "predict", "--features", folder, "--pretrained_ckpt", seal / "ckpt" / "last_model.pkl"]
    given = []
    for number, how in enumerate((["--proposals_ckpt", checkpoint], ["--proposals", tmp_path / "made" / "p.json"])):
        out = ["--device", "cpu", "--exp_dir", tmp_path / f"out{number}"]
        assert main.main([str(w) for w in [*words, *how, *out]]) == 0
        given.append((tmp_path / f"out{number}" / "detections.json").read_text())
    assert given[0] == given[1] and json.loads(given[0])["results"]

    def refused(match, **changes):
        state = load_checkpoint(checkpoint)
        torch.save({**state, **{k: {**state[k], **v} for k, v in changes.items()}}, tmp_path / "other.pkl")
        with pytest.raises(InputError, match=match):
            main.main([str(w) for w in [*words, "--proposals_ckpt", tmp_path / "other.pkl", *out]])

    refused("other classes than the model", maker={"classes": ["jump", "run"]})
    refused("not a checkpoint of a proposal maker", maker={"classes": ["jump"]})
    refused("not a checkpoint of a proposal maker", maker={"method": "lac" if method == "co2net" else "co2net"})
    name, value = next(iter(load_checkpoint(checkpoint)["network"].items()))
    refused("NaN or Inf in the weights", network={name: value * float("nan")})
    for wrong in (seal / "ckpt" / "last_model.pkl", tmp_path / "run" / "ckpt" / "last_state.pt"):
        with pytest.raises(InputError, match="not a checkpoint of a proposal maker"):
            generate(wrong, tmp_path / "x.json", folder)
    with pytest.raises(InputError, match="not a state_dict"):
        main.main([str(w) for w in [*words[:-1], checkpoint, *how, *out]])
    with pytest.raises(InputError, match="for features of width 8: features of shapes"):
        generate(checkpoint, tmp_path / "x.json", halves[0])
    with pytest.raises(InputError, match="not a folder"):
        generate(checkpoint, tmp_path / "x.json", tmp_path / "nowhere")


@METHODS
def test_videos_of_one_to_eight_snippets_work(tmp_path, method):
    root = tiny.write(tmp_path / "data", videos=14, snippets=16)
    for i, length in enumerate((1, 2, 3, 1, 7, 8, 5, 4, 6, 2, 1, 3, 2, 4)):
        array(f"{FEATURES}/video_{i:02d}.npy", lambda a, t=length: np.resize(a, (t, 8)))(root)
    (root / "points.csv").write_text("video,label,time\n" + "".join(f"video_{i:02d},jump,0.2\n" for i in range(6)))
    _, both = run(root, tmp_path, method, "--ignore_rate")
    assert sum(len(ps) for found in both for ps in found["results"].values()) > 5


def test_a_class_with_one_training_video_is_named(root, tmp_path):
    array(WEAK, lambda a: tiny.objects([a[0], ["jump"], *a[2:]]))(root)
    with pytest.raises(InputError, match="class throw has fewer than two training videos"):
        run(root, tmp_path)


@pytest.mark.parametrize(
    "words, said",
    [
        (["make", "--method", "lac"], "--points or --simulate_points"),
        (["make", "--method", "co2net", "--points", "x.csv"], "only lac takes them"),
        (["make", "--method", "co2net", "--resume"], "--resume needs --exp_dir"),
        (["make", "--method", "other"], "invalid choice"),
        (["make", "--method", "co2net", "--iterations", "0"], "--iterations"),
        (["generate", "--checkpoint", "x", "--output", "y", "--features", "a", "b", "c"], "one of RGB and one of flow"),
    ],
)
def test_wrong_flags_are_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        proposals.main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and error.count("\n") == 1


def test_the_profile_names_the_settings(root):
    (root / "dataset.json").write_text('{"maker_settings": "other"}')
    with pytest.raises(InputError, match="maker_settings must be one of thumos14, activitynet, demo"):
        open_source("Tiny", str(root))


def test_the_benchmark_has_rows_for_both_makers_and_the_search(capsys):
    benchmark.main("--generators --width 4 --repeats 1 --device cpu".split())
    out = capsys.readouterr().out
    assert all(name in out for name in ("step of CO2-Net", "step of LAC", "sequence search", "times the cost"))
