"""Features in every layout and form: the same arrays from each, odd ones understood or named by file and video."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from utils.datasets.annotations import read_annotations
from utils.datasets.features import Features, open_features
from utils.datasets.profile import load_profile
from utils.errors import InputError

FOLDER = "Tiny-I3D-JOINTFeatures"


def opened(root: Path, feature_size=None, **profile) -> Features:
    if profile:
        (root / "dataset.json").write_text(json.dumps(profile))
    annotations = read_annotations(root / "Tiny-Annotations").annotations
    return open_features("Tiny", root, load_profile("Tiny", root), annotations, feature_size)


@pytest.fixture
def root(tmp_path):
    return tiny.write(tmp_path / "data")


@pytest.fixture
def arrays(root):
    return {path.stem: np.load(path) for path in sorted((root / FOLDER).iterdir())}


def rewrite(root, arrays, save, folder=FOLDER):
    """Every file of a folder, written in another way: save(folder, video, array)."""
    for path in (root / FOLDER).iterdir():
        path.unlink()
    (root / folder).mkdir(parents=True, exist_ok=True)
    for video, array in arrays.items():
        save(root / folder, video, array)


def assert_same(features, arrays):
    assert features.videos == tuple(arrays)
    for video, array in arrays.items():
        loaded = features.load(video)
        assert loaded.dtype == np.float32 and loaded.flags.c_contiguous and loaded.flags.writeable
        np.testing.assert_array_equal(loaded, array)
        assert features.longest_s(video, 2.0) == (len(array) + 1) / 2


FORMS = {
    "as it is": lambda folder, video, a: np.save(folder / f"{video}.npy", a),
    "[2D, T]": lambda folder, video, a: np.save(folder / f"{video}.npy", a.T),
    "v_ before the name": lambda folder, video, a: np.save(folder / f"v_{video}.npy", a),
    ".npz": lambda folder, video, a: np.savez_compressed(folder / f"{video}.npz", feature=a),
    "float64, big-endian": lambda folder, video, a: np.save(folder / f"{video}.npy", a.astype(">f8")),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_arrays(root, arrays, form):
    rewrite(root, arrays, FORMS[form])
    assert_same(opened(root), arrays)


def test_a_joint_array_and_two_folders(root, arrays):
    for folder, part in (("rgb", slice(0, 4)), ("flow", slice(4, 8))):
        (root / folder).mkdir()
        for video, array in arrays.items():
            np.save(root / folder / f"{video}.npy", array[:, part])
    assert_same(opened(root, features=["rgb", "flow"]), arrays)
    for path in (root / FOLDER).iterdir():
        path.unlink()
    (root / FOLDER).rmdir()
    np.save(root / f"{FOLDER}.npy", tiny.objects(list(arrays.values())), allow_pickle=True)
    features = opened(root, feature_size=8, proposals_root=".")
    assert_same(features, arrays)
    features.release()
    assert_same(features, arrays)
    with pytest.raises(InputError, match="leave out --feature_size"):
        opened(root, feature_size=6).load("video_00")
    np.save(root / f"{FOLDER}.npy", tiny.objects(list(arrays.values())[:-1]), allow_pickle=True)
    with pytest.raises(InputError, match="features of 7 videos, annotations of 8"):
        opened(root).load("video_00")


def spoiled(change):
    return lambda path: np.save(path, change(np.load(path)), allow_pickle=True)


SPOILED = [
    (spoiled(lambda a: np.where(np.arange(8) == 3, np.nan, a)), "NaN or Inf"),
    (spoiled(lambda a: a.astype(float) * 1e300), "NaN or Inf"),
    (spoiled(lambda a: a[:0]), "T = 0"),
    (spoiled(lambda a: a[0]), r"not a \[T, 2D\] array of numbers but \(8,\)"),
    (spoiled(lambda a: a + 1j), r"not a \[T, 2D\] array"),
    (spoiled(lambda a: a > 1), r"not a \[T, 2D\] array"),
    (spoiled(lambda a: a.astype("U4")), r"not a \[T, 2D\] array"),
    (spoiled(lambda a: a[:, :6]), "width 6, not 8"),
    (spoiled(lambda a: a.astype(object)), "object array"),
    (lambda path: path.write_bytes(b"\x93NUMPY"), "cannot|can be read"),
    (lambda path: path.write_bytes(path.read_bytes()[:-5]), "cut short"),
]


@pytest.mark.parametrize("change, words", SPOILED)
def test_bad_features_are_named_by_video(root, change, words):
    change(root / FOLDER / "video_00.npy")
    with pytest.raises(InputError, match=words) as error:
        opened(root).load("video_00")
    assert "video_00" in str(error.value)
    assert len(opened(root).load("video_01"))


def test_what_cannot_be_told_apart_is_refused(root):
    for path in (root / FOLDER).iterdir():
        np.save(path, np.zeros((8, 8), dtype=np.float32))
    for size in (None, 8):
        with pytest.raises(InputError, match="cannot be told apart"):
            opened(root, feature_size=size).load("video_00")
    for i, path in enumerate((root / FOLDER).iterdir()):
        np.save(path, np.zeros((4 + i, 8 + i), dtype=np.float32))
    with pytest.raises(InputError, match="--feature_size"):
        opened(root).load("video_00")


def test_missing_and_needless_files_are_known(root, arrays):
    (root / FOLDER / "video_02.npy").unlink()
    (root / FOLDER / "._video_02.npy").write_bytes(b"")
    (root / FOLDER / "other.npy").write_bytes(b"")
    features = opened(root)
    assert "video_02" not in features.videos and features.unused() == ("other.npy",)
    (root / FOLDER / "video_01.npz").write_bytes(b"")
    with pytest.raises(InputError, match="two files of one video"):
        opened(root)


def test_the_signature_follows_the_files_and_reads_none_of_them(root, arrays, monkeypatch):
    monkeypatch.setattr(Features, "_raw", lambda *args, **how: pytest.fail("features were read"))
    first = opened(root).signature(["video_00", "video_01"])
    assert first == opened(root).signature(["video_00", "video_01"]) != opened(root).signature(["video_00"])
    assert first != opened(root, feature_size=8).signature(["video_00", "video_01"])
    os.utime(root / FOLDER / "video_00.npy", ns=(1, 1))
    assert first != opened(root).signature(["video_00", "video_01"])


def test_simulated_features_say_so(root):
    assert opened(root).simulated is None
    (root / FOLDER / "SIMULATED.txt").write_text("")
    assert opened(root).simulated == root / FOLDER / "SIMULATED.txt"
