"""Descriptors, Eq. (1)-(4): by hand, from training videos only, read, written, and refused."""

from __future__ import annotations

import errno

import numpy as np
import pytest

import descriptors as module
from descriptors import descriptors, load_or_make
from tests import tiny
from tests.changes import array
from tests.tiny import FEATURES
from utils.errors import InputError

NAMES = [f"general_{name}_descriptors.npy" for name in ("appearance", "motion")]
LENGTHS, LABELS = np.asarray([3, 9, 4, 5]), np.asarray([[1, 0], [1, 1], [0, 1], [0, 0]], np.float32)
FILES = [np.random.default_rng(i).random((t, 6), dtype=np.float32) for i, t in enumerate(LENGTHS)]
MEANS = np.stack([f.mean(0) for f in FILES])
KNOWN = (LENGTHS, LABELS, ["a", "b"])


def as_made_from(found, *known):
    np.testing.assert_array_equal(np.concatenate(found, axis=1), descriptors(*known))


def test_video_level_is_the_mean_of_means_and_segment_level_of_all_snippets():
    found = descriptors(MEANS, *KNOWN)
    np.testing.assert_allclose(found, [(FILES[i].mean(0) + FILES[i + 1].mean(0)) / 2 for i in (0, 1)], rtol=1e-5)
    assert found.dtype == np.float32 and found.shape == (2, 6)
    found = descriptors(MEANS, *KNOWN, "segment")
    np.testing.assert_allclose(found, [np.concatenate(FILES[i : i + 2]).mean(0) for i in (0, 1)], rtol=1e-5)
    with pytest.raises(InputError, match="class 'c' has no training video"):
        descriptors(MEANS, LENGTHS, np.c_[LABELS, np.zeros(4)], ["a", "b", "c"])


@pytest.mark.parametrize("note", [None, "[]", '{"source": 3}'])
def test_missing_files_are_made_and_ours_are_made_again_when_what_they_came_from_changes(tmp_path, note):
    for known in ((MEANS, *KNOWN), (MEANS * 2, *KNOWN), (MEANS, LENGTHS, LABELS[:, ::-1], ["b", "a"])):
        found = load_or_make(tmp_path, *known)
        as_made_from(found, *known)
        np.testing.assert_array_equal(np.load(tmp_path / NAMES[0]), found[0])
    segment = load_or_make(tmp_path, MEANS, *KNOWN, "segment")
    assert not np.allclose(segment[0], found[0]) and (tmp_path / "segment" / NAMES[0]).exists()
    if note:  # without ours, the files are from elsewhere
        (tmp_path / "made_from.json").write_text(note)
        np.testing.assert_array_equal(load_or_make(tmp_path, MEANS * 3, *KNOWN), found)


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("replaced", [NAMES[:1], NAMES[1:], NAMES])
def test_files_from_elsewhere_are_used_whatever_the_features_and_only_missing_ones_made(tmp_path, ours, replaced):
    if ours:  # what was made here first, before the user put files in place
        load_or_make(tmp_path, MEANS, *KNOWN)
    for name in replaced:
        np.save(tmp_path / name, np.full((2, 3), 7.5))
    new = np.split(descriptors(MEANS * 3, *KNOWN), 2, axis=1)
    for _ in range(2):
        for name, got, made in zip(NAMES, load_or_make(tmp_path, MEANS * 3, *KNOWN), new):
            np.testing.assert_array_equal(got, np.full((2, 3), 7.5) if name in replaced else made)


@pytest.mark.parametrize("at", range(3))
def test_a_kill_between_the_writes_leaves_nothing_stale(tmp_path, monkeypatch, at):
    """Else the next features would be met with descriptors of the last."""
    load_or_make(tmp_path, MEANS, *KNOWN)
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        left = iter(range(at))
        for name in ("save_array", "write_json"):
            real = getattr(module, name)
            patch.setattr(module, name, lambda *args, real=real: (next(left), real(*args)))
        load_or_make(tmp_path, MEANS * 2, *KNOWN)
    as_made_from(load_or_make(tmp_path, MEANS * 3, *KNOWN), MEANS * 3, *KNOWN)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_finished_files_are_read_where_nothing_can_be_written(tmp_path, monkeypatch, number):
    def refuse(path):
        raise OSError(number, "no", str(path))

    load_or_make(tmp_path, MEANS, *KNOWN)
    monkeypatch.setattr(module, "locked", refuse)
    as_made_from(load_or_make(tmp_path, MEANS, *KNOWN), MEANS, *KNOWN)


@pytest.mark.parametrize("wrong", [np.zeros((2, 4), np.float32), np.zeros((2, 3), int), np.full((2, 3), np.nan)])
def test_files_of_another_shape_are_refused(tmp_path, wrong):
    np.save(tmp_path / NAMES[1], wrong)
    with pytest.raises(InputError, match=NAMES[1]):
        load_or_make(tmp_path, MEANS, *KNOWN)


def test_the_command_reads_training_videos_only(tmp_path, capsys):
    root, path, found = tiny.write(tmp_path / "data"), tmp_path / "out" / NAMES[1], []
    for video in (7, 0, 0):  # 5, 6 and 7 are the test videos
        module.main(["--dataset_name", "Tiny", "--dataset_root", str(root), "--descriptors_root", str(path.parent)])
        assert "float32 [2, 4] from 5 training videos" in capsys.readouterr().out
        found.append(path.read_bytes())
        array(f"{FEATURES}/video_{video:02d}.npy", lambda f: f * 7)(root)
    assert found[0] == found[1] != found[2]
