"""Features in every layout and form: the same arrays from each, odd ones understood or named by file and video."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import changes, tiny
from tests.tiny import FEATURES
from utils.datasets.annotations import read_annotations
from utils.datasets.features import Features, open_features
from utils.datasets.profile import load_profile
from utils.errors import InputError


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
    return {path.stem: np.load(path) for path in sorted((root / FEATURES).iterdir())}


def rewrite(root, arrays, save, folder=FEATURES):
    """Every file of a folder, written in another way: save(folder, video, array)."""
    for path in (root / FEATURES).iterdir():
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
        assert features.length(video) == len(array)


def save_csv(folder, video, array, head=None):
    np.savetxt(folder / f"{video}.csv", array, "%.9g", ",", header=head or "", comments="")


def save_pickle(folder, video, value):
    (folder / f"{video}.pkl").write_bytes(pickle.dumps(value))


FORMS = {
    "as it is": lambda folder, video, a: np.save(folder / f"{video}.npy", a),
    "[2D, T]": lambda folder, video, a: np.save(folder / f"{video}.npy", a.T),
    "v_ before the name": lambda folder, video, a: np.save(folder / f"v_{video}.npy", a),
    "dict in .npy": lambda folder, video, a: np.save(folder / f"{video}.npy", {"f": a, "fps": 25}, allow_pickle=True),
    ".npz": lambda folder, video, a: np.savez_compressed(folder / f"{video}.npz", feature=a),
    ".pkl": save_pickle,
    "dict in .pkl": lambda folder, video, a: save_pickle(folder, video, {"feature": a, "name": video}),
    ".pt": lambda folder, video, a: torch.save(torch.from_numpy(a), folder / f"{video}.pt"),
    "dict in .pt": lambda folder, video, a: torch.save({"x": torch.from_numpy(a)}, folder / f"{video}.pt"),
    ".csv with a head": lambda folder, video, a: save_csv(folder, video, a, ",".join(f"f{i}" for i in range(8))),
    ".csv with a head of numbers": lambda folder, video, a: save_csv(folder, video, a, "0,1,2,3,4,5,6,7"),
    "another name": lambda folder, video, a: np.save(folder / f"{video}_i3d.npy", a),
    "v_VIDEO.mp4.npy": lambda folder, video, a: np.save(folder / f"v_{video}.mp4.npy", a),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_arrays(root, arrays, form):
    rewrite(root, arrays, FORMS[form])
    features = opened(root)
    assert_same(features, arrays)
    named = [note for note in features.notes if "named" in note]
    assert bool(named) == (form in ("another name", "v_VIDEO.mp4.npy"))
    assert not named or form.split(".npy")[0] in named[0] or "VIDEO_i3d.npy" in named[0]


NESTED = [("{split}",), ("{stream}",), ("{split}", "{stream}"), ("{stream}", "{split}"), ("{Stream}", "{split}")]


@pytest.mark.parametrize("parts", NESTED)
def test_subfolders_of_splits_and_streams_in_any_nesting(root, arrays, parts):
    def save(folder, video, array):
        split = "train" if video < "video_05" else "test"
        for stream, half in (("rgb", array[:, :4]), ("flow", array[:, 4:])):
            inside = "/".join(parts).format(split=split, stream=stream, Stream=stream.upper())
            (folder / inside).mkdir(parents=True, exist_ok=True)
            np.save(folder / inside / f"{video}.npy", half if "tream" in "".join(parts) else array)

    rewrite(root, arrays, save)
    features = opened(root)
    assert_same(features, arrays)
    assert features.parts == (1 if parts == ("{split}",) else 2) and not features.unused()
    assert any("first half" in note for note in features.notes) == (features.parts == 1)


def streams(root, arrays, rgb, flow):
    for folder, change in (("rgb", rgb), ("flow", flow)):
        (root / folder).mkdir(exist_ok=True)
        for video, array in arrays.items():
            np.save(root / folder / f"{video}.npy", change(array))
    return opened(root, features=["rgb", "flow"])


def test_one_stream_longer_by_up_to_two_rows_is_cut(root, arrays):
    features = streams(root, arrays, lambda a: a[:, :4], lambda a: a[:-2, 4:])
    assert_same(features, {video: array[:-2] for video, array in arrays.items()})
    assert features.cut == dict.fromkeys(arrays, 2) and "8 videos" in features.notes[-1]
    with pytest.raises(InputError, match="RGB has .* snippets and flow .*video_00"):
        streams(root, arrays, lambda a: a[:-3, :4], lambda a: a[:, 4:]).load("video_00")
    with pytest.raises(InputError, match="flow of width 2 and RGB of width 4.*video_00"):
        streams(root, arrays, lambda a: a[:, :4], lambda a: a[:, 4:6]).load("video_00")


def test_one_modality_may_be_of_odd_width(root, arrays):
    rewrite(root, {video: array[:, :7] for video, array in arrays.items()}, FORMS["as it is"])
    with pytest.raises(InputError, match="odd width 7.*modalities"):
        opened(root).load("video_00")
    features = opened(root, modalities=1)
    assert features.load("video_00").shape[1] == 7 and not features.notes
    assert not opened(root, modalities=2).notes


def test_a_joint_array(root, arrays):
    changes.joint(root)
    features = opened(root, feature_size=8)
    assert_same(features, arrays)
    features.release()
    assert_same(features, arrays)
    with pytest.raises(InputError, match="leave out --feature_size"):
        opened(root, feature_size=6).load("video_00")
    np.save(root / f"{FEATURES}.npy", tiny.objects(list(arrays.values())[:-1]), allow_pickle=True)
    with pytest.raises(InputError, match="features of 7 videos, annotations of 8"):
        opened(root).load("video_00")


def test_files_of_no_video_are_named_with_the_forms_that_are_read(root, arrays):
    rewrite(root, arrays, lambda folder, video, a: (folder / f"{video[-1]}xyz.mat").write_text(""))
    with pytest.raises(InputError, match=r"found 0xyz.mat, 1xyz.mat.*\.npy \.npz \.pkl.*\.h5"):
        opened(root)
    for path in (root / FEATURES).iterdir():
        path.unlink()
    with pytest.raises(InputError, match="found nothing"):
        opened(root)


def test_hdf5_where_its_package_is_installed(root, arrays, monkeypatch):
    class File(dict):  # as much of h5py as is used
        def __init__(self, path, mode):
            super().__init__(feature=np.load(path))

        __enter__, __exit__ = lambda self: self, lambda self, *error: None

        def visititems(self, visit):
            visit("feature", self["feature"])

    for path in (root / FEATURES).iterdir():
        path.rename(path.with_suffix(".h5"))
    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=File))
    assert_same(opened(root), arrays)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="video_00.h5.*pip install h5py"):
        opened(root).load("video_00")


NO_ARRAY = r"not a \[T, 2D\] array of numbers"
SPOILED = [
    (lambda a: np.where(np.arange(8) == 3, np.nan, a), "NaN or Inf"),
    (lambda a: a.astype(float) * 1e300, "NaN or Inf"),
    (lambda a: a[:0], "T = 0"),
    *((how, NO_ARRAY) for how in (lambda a: a[0], lambda a: a + 1j, lambda a: a > 1, lambda a: a.astype(object))),
    (lambda a: a[:, :6], "width 6, not 8"),
    (lambda a: {"a": np.ones((3, 8)), "b": np.ones(1)}, "2 arrays in one file: a, b"),
    (lambda a: {"fps": 25}, "0 arrays in one file"),
]


@pytest.mark.parametrize("change, words", SPOILED)
def test_bad_features_are_named_by_video(root, change, words):
    changes.array(f"{FEATURES}/video_00.npy", change)(root)
    with pytest.raises(InputError, match=f"{words}.*video_00"):
        opened(root).load("video_00")
    assert len(opened(root).load("video_01"))


def test_what_cannot_be_told_apart_is_refused(root):
    for path in (root / FEATURES).iterdir():
        np.save(path, np.zeros((8, 8), dtype=np.float32))
    for size in (None, 8):
        with pytest.raises(InputError, match="cannot be told apart"):
            opened(root, feature_size=size).load("video_00")
    for i, path in enumerate((root / FEATURES).iterdir()):
        np.save(path, np.zeros((4 + i, 8 + i), dtype=np.float32))
    with pytest.raises(InputError, match="--feature_size"):
        opened(root).load("video_00")


def test_missing_and_needless_files_are_known(root, arrays):
    (root / FEATURES / "video_02.npy").unlink()
    (root / FEATURES / "._video_02.npy").write_bytes(b"")
    (root / FEATURES / "other.npy").write_bytes(b"")
    features = opened(root)
    assert "video_02" not in features.videos and features.unused() == ("other.npy",)
    (root / FEATURES / "video_01.npz").write_bytes(b"")
    with pytest.raises(InputError, match="two files of one video"):
        opened(root)


def test_the_signature_follows_the_files_and_reads_none_of_them(root, arrays, monkeypatch):
    monkeypatch.setattr(Features, "_raw", lambda *args, **how: pytest.fail("features were read"))
    first = opened(root).signature(["video_00", "video_01"])
    assert first == opened(root).signature(["video_00", "video_01"]) != opened(root).signature(["video_00"])
    assert first != opened(root, feature_size=8).signature(["video_00", "video_01"])
    os.utime(root / FEATURES / "video_00.npy", ns=(1, 1))
    assert first != opened(root).signature(["video_00", "video_01"])
