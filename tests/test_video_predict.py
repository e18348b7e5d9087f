"""Prediction from videos: their features are made first, features.json says the rate, and timelines are drawn."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import main
import proposals
from eval.inference import TRAINED_WITH
from generators.lac import LAC, Settings
from model import SEAL, save_model
from options import parse
from tests import tiny
from tests.outcome import outcome, refused
from tests.runs import read
from tests.video_files import make_video, random_weights
from utils.datasets.profile import load_profile
from utils.files import save_checkpoint
from utils.run.experiment import plain
from utils.tools import check, extract

RATE = {"feature_fps": 25, "snippet_stride": 16, "modalities": 1}
OPTIONS = plain(parse(["--run_type", "train"], ("sme", "pc", "sc")))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return random_weights(tmp_path_factory.mktemp("weights") / "rgb.pt", 3, 5)


def checkpoint(path: Path, width: int = 1024) -> Path:
    info = {"classes": ["jump", "throw"], **RATE, "epoch": 1, "options": {n: OPTIONS[n] for n in TRAINED_WITH}}
    save_model(path, SEAL(width, 2, 0.5, 0), info)
    return path


def proposal_maker(path: Path) -> Path:
    info = {"method": "lac", "dataset": "Tiny", "classes": ["jump", "throw"], "settings": asdict(Settings()), **RATE}
    info.update(simulated=[], trained_on={"features": "0"})
    save_checkpoint(path, {"maker": info, "network": LAC(1024, 2).state_dict()})
    return path


def predict(folder: Path, model: Path, *more):
    words = ["--run_type", "predict", "--pretrained_ckpt", model, "--exp_dir", folder / "out", "--device", "cpu"]
    return outcome(main.main, [*words, *more])


def test_from_videos_to_pictures(weights, tmp_path):
    for name in ("av", "cv2"):
        pytest.importorskip(name, reason="PyAV and OpenCV (requirements-video.txt) are not installed")
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "a.mp4", 64)
    make_video(tmp_path / "videos" / "b.mp4", 16)
    (tmp_path / "videos" / "page.mp4").write_text("<html>not found</html>")
    model = checkpoint(tmp_path / "m.pkl")
    words = ["--videos", tmp_path / "videos", "--rgb_weights", weights, "--proposals", "windows"]
    done = predict(tmp_path, model, *words, "--features_out", tmp_path / "f")
    assert done.status == 2 and "page is left out" in done.errors[0] and "25 frames a second" in done.log
    found = read(tmp_path / "out", "detections")["results"]
    assert list(found) == ["a", "b"] and max(d["segment"][1] for d in found["a"]) <= 2.56
    assert len(list((tmp_path / "out" / "timelines").glob("[ab].png"))) == 2
    words[1] = tmp_path / "videos" / "b.mp4"  # of what is there, only what is asked for
    done = predict(tmp_path, model, *words, "--features_out", tmp_path / "f")
    assert done.status == 0 and "1 of 1 videos have their features already" in done.log and "left out" not in done.log
    assert [p.name for p in (tmp_path / "out" / "timelines").iterdir()] == ["b.png"]
    words[4:] = ["--proposals_ckpt", proposal_maker(tmp_path / "maker.pkl")]
    assert predict(tmp_path, model, *words, "--features_out", tmp_path / "f").status == 0
    assert list(read(tmp_path / "out", "detections")["results"]) == ["b"]
    words[4:] = ["--proposals", "windows"]
    how = ["windows", "--features", tmp_path / "f", "--output", tmp_path / "p.json"]
    assert "of 2 videos" in outcome(proposals.main, how).out
    words[-1:] = [tmp_path / "p.json", "--features_out", tmp_path / "f"]
    assert "left out" not in predict(tmp_path, model, *words).log
    assert list(read(tmp_path / "out", "detections")["results"]) == ["b"]
    (tmp_path / "p.json").write_text('{"results": {"a": [{"segment": [0, 1]}], "c": [{"segment": [0, 1]}]}}')
    words[1:2] = [tmp_path / "videos" / name for name in ("a.mp4", "b.mp4")]
    done = predict(tmp_path, model, *words)
    assert done.status == 0 and "1 videos have no proposals and are left out: b" in done.log
    words[1:3] = [tmp_path / "videos" / "b.mp4"]
    how = ["--videos", words[1], "--out", tmp_path / "f", "--rgb_weights", weights, "--device", "cpu"]
    done = outcome(extract.main, [*how, "--classes", "2", "--attention", model])
    assert done.status == 0 and (tmp_path / "f" / "classes" / "b.png").stat().st_size > 1000
    for name, shape in (("a", (4,)), ("b", (1,))):
        (_, attention), (title, score) = extract.attention(model, tmp_path / "f", ["a", "b"])[name].items()
        assert title in ("score by SEAL: jump", "score by SEAL: throw") and attention.shape == score.shape == shape
        assert ((0 < score) & (score < attention) & (attention < 1)).all()
    refused(outcome(extract.main, [*how, "--attention", model]), "--attention without --classes")


def test_a_model_of_other_features_is_refused_before_the_work(tmp_path):
    line = ["--videos", tmp_path, "--proposals", "windows"]
    refused(predict(tmp_path, checkpoint(tmp_path / "m.pkl", 2048), *line), "width 2048", "1024", "--flow_weights")
    refused(predict(tmp_path, checkpoint(tmp_path / "n.pkl"), *line[:-1], tmp_path / "no.json"), "no.json")
    refused(predict(tmp_path, tmp_path / "n.pkl", *line, "--features", tmp_path), "--videos, one of them")
    line[2:] = ["--proposals_ckpt", tmp_path / "no.pkl"]
    refused(predict(tmp_path, tmp_path / "n.pkl", *line), "no.pkl")
    refused(predict(tmp_path, tmp_path / "n.pkl", *line, "--proposals", "windows"), "--proposals_ckpt, one of them")
    refused(predict(tmp_path, tmp_path / "n.pkl", "--features", *line[1:], "--features_out", "o"), "go with --videos")


def test_the_rate_is_said_beside_the_features(tmp_path):
    model, folder = checkpoint(tmp_path / "m.pkl"), tmp_path / "f"
    folder.mkdir()
    np.save(folder / "v.npy", np.ones((8, 1024), np.float32))
    words = ["--features", folder, "--proposals", "windows"]
    (folder / "features.json").write_text(json.dumps({**RATE, "feature_fps": 50}))
    done = predict(tmp_path, model, *words)
    assert done.status == 0 and "50 frames a second" in done.log and "trained at 25 and 16" in done.log
    done = predict(tmp_path, model, *words, "--feature_fps", "10")
    assert "10 frames a second" in done.log and "says feature_fps 50: the command line says otherwise" in done.log
    maker, made = proposal_maker(tmp_path / "maker.pkl"), tmp_path / "p.json"  # nor is features.json a video to it
    done = predict(tmp_path, model, *words[:2], "--proposals_ckpt", maker)
    assert done.status == 0 and "50 frames a second" in done.log and "left out" not in done.log
    how = ["--checkpoint", maker, "--features", folder, "--output", made, "--device", "cpu"]
    assert "50 frames a second" in outcome(proposals.main, ["generate", *how]).log
    assert list(json.loads(made.read_text())["results"]) == ["v"]
    (folder / "features.json").write_text(json.dumps({**RATE, "modalities": 2}))
    refused(predict(tmp_path, model, *words), "features of 2 streams for a checkpoint of 1")
    (folder / "features.json").write_text('{"feature_fps": "fast"}')
    refused(predict(tmp_path, model, *words), "features.json", "feature_fps")


def test_a_dataset_takes_what_it_does_not_state_from_beside_its_features(tmp_path):
    root = tiny.write(tmp_path / "tiny")
    (root / "Tiny-I3D-JOINTFeatures" / "features.json").write_text(json.dumps({**RATE, "feature_fps": 30}))
    profile = load_profile("Tiny", root)
    assert (profile.feature_fps, profile.snippet_stride, profile.modalities) == (30, 16, 1)
    command = ["--dataset_name", "Tiny", "--dataset_root", root]
    assert "30 frames a second" in outcome(check.main, command).out
    (root / "dataset.json").write_text('{"proposals_root": ".", "feature_fps": 25}')
    assert load_profile("Tiny", root).feature_fps == 25
    (line,) = [x for x in outcome(check.main, command).out.splitlines() if "features.json" in x]
    assert line.startswith("note") and "says feature_fps 30: dataset.json says otherwise, and holds" in line
