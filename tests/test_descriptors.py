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

CLASSES, NAMES = ["a", "b"], ("appearance", "motion")
LENGTHS, LABELS = np.asarray([3, 9, 4, 5]), np.asarray([[1, 0], [1, 1], [0, 1], [0, 0]], np.float32)
FILES = [np.random.default_rng(i).random((t, 6), dtype=np.float32) for i, t in enumerate(LENGTHS)]
MEANS = np.stack([f.mean(0) for f in FILES])
KNOWN = (MEANS, LENGTHS, LABELS, CLASSES)


def test_video_level_is_the_mean_of_means_and_segment_level_of_all_snippets():
    found = descriptors(*KNOWN)
    np.testing.assert_allclose(found[0], (FILES[0].mean(0) + FILES[1].mean(0)) / 2, rtol=1e-5)
    np.testing.assert_allclose(found[1], (FILES[1].mean(0) + FILES[2].mean(0)) / 2, rtol=1e-5)
    found = descriptors(*KNOWN, "segment")
    np.testing.assert_allclose(found[0], np.concatenate(FILES[:2]).mean(0), rtol=1e-5)
    np.testing.assert_allclose(found[1], np.concatenate(FILES[1:3]).mean(0), rtol=1e-5)
    assert found.dtype == np.float32 and found.shape == (2, 6)


def test_a_class_without_a_training_video_is_named():
    with pytest.raises(InputError, match="class 'c' has no training video"):
        descriptors(MEANS, LENGTHS, np.c_[LABELS, np.zeros(4)], ["a", "b", "c"])


def test_missing_files_are_made_and_ours_are_made_again_when_what_they_came_from_changes(tmp_path):
    path = tmp_path / "general_appearance_descriptors.npy"
    for known in (KNOWN, (MEANS * 2, *KNOWN[1:]), (MEANS, LENGTHS, LABELS[:, ::-1], ["b", "a"])):
        found = load_or_make(tmp_path, *known)
        np.testing.assert_array_equal(np.concatenate(found, axis=1), descriptors(*known))
        np.testing.assert_array_equal(np.load(path), found[0])
    segment = load_or_make(tmp_path, *KNOWN, "segment")
    assert not np.allclose(segment[0], found[0]) and (tmp_path / "segment" / path.name).exists()
    assert [d.shape for d in load_or_make(tmp_path / "rgb", *KNOWN, widths=(6, 0))] == [(2, 6), (2, 0)]


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("replaced", [["appearance"], ["motion"], NAMES])
def test_files_from_elsewhere_are_used_whatever_the_features_and_only_missing_ones_made(tmp_path, ours, replaced):
    if ours:  # what was made here first, before the user put files in place
        load_or_make(tmp_path, *KNOWN)
    for name in replaced:
        np.save(tmp_path / f"general_{name}_descriptors.npy", np.full((2, 3), 7.5))
    new = np.split(descriptors(MEANS * 3, *KNOWN[1:]), 2, axis=1)
    for _ in range(2):
        for name, got, made in zip(NAMES, load_or_make(tmp_path, MEANS * 3, *KNOWN[1:]), new):
            np.testing.assert_array_equal(got, np.full((2, 3), 7.5) if name in replaced else made)


@pytest.mark.parametrize("at", range(4))
def test_a_kill_between_the_writes_leaves_nothing_stale(tmp_path, monkeypatch, at):
    """Else the next features would be met with descriptors of the last."""
    load_or_make(tmp_path, *KNOWN)
    writes = []

    def killed(write):
        def wrapped(*args):
            writes.append(args)
            if len(writes) > at:
                raise KeyboardInterrupt
            write(*args)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("save_array", "write_json"):
            patch.setattr(module, name, killed(getattr(module, name)))
        with pytest.raises(KeyboardInterrupt) if at < 3 else monkeypatch.context():
            load_or_make(tmp_path, MEANS * 2, *KNOWN[1:])
    found = load_or_make(tmp_path, MEANS * 3, *KNOWN[1:])
    np.testing.assert_array_equal(np.concatenate(found, axis=1), descriptors(MEANS * 3, *KNOWN[1:]))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_finished_files_are_read_where_nothing_can_be_written(tmp_path, monkeypatch, number):
    made = load_or_make(tmp_path, *KNOWN)

    def refuse(path):
        raise OSError(number, "no", str(path))

    monkeypatch.setattr(module, "locked", refuse)
    np.testing.assert_array_equal(load_or_make(tmp_path, *KNOWN), made)


@pytest.mark.parametrize("wrong", [np.zeros((2, 4), np.float32), np.zeros((2, 3), int), np.full((2, 3), np.nan)])
def test_files_of_another_shape_are_refused(tmp_path, wrong):
    for name in NAMES:
        np.save(tmp_path / f"general_{name}_descriptors.npy", wrong)
    with pytest.raises(InputError, match="general_appearance_descriptors.npy"):
        load_or_make(tmp_path, *KNOWN)


def test_the_command_reads_training_videos_only(tmp_path, capsys):
    root, out = tiny.write(tmp_path / "data"), tmp_path / "out"
    arguments = ["--dataset_name", "Tiny", "--dataset_root", str(root), "--descriptors_root", str(out)]
    module.main(arguments)
    first = (out / "general_motion_descriptors.npy").read_bytes()
    assert "float32 [2, 4] from 5 training videos" in capsys.readouterr().out
    for i in (5, 6, 7):  # the test videos
        array(f"{FEATURES}/video_{i:02d}.npy", lambda a: a * 7)(root)
    module.main(arguments)
    assert (out / "general_motion_descriptors.npy").read_bytes() == first
