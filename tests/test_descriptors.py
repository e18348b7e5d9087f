"""Descriptors, Eq. (1)-(4): by hand, from training videos only, read, written, and refused."""

from __future__ import annotations

import numpy as np
import pytest

import descriptors as module
from descriptors import descriptors, load_or_make
from tests import tiny
from utils.errors import InputError


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    features = [rng.random((t, 6), dtype=np.float32) for t in (3, 9, 4, 5)]
    labels = np.asarray([[1, 0], [1, 1], [0, 1], [0, 0]], dtype=np.float32)
    means = np.stack([f.mean(0) for f in features])
    return features, means, np.asarray([3, 9, 4, 5]), labels


def test_video_level_is_the_mean_of_means_and_segment_level_of_all_snippets(case):
    features, means, lengths, labels = case
    appearance, motion = descriptors(means, lengths, labels, ["a", "b"])
    np.testing.assert_allclose(appearance[0], (features[0].mean(0) + features[1].mean(0))[:3] / 2, rtol=1e-5)
    np.testing.assert_allclose(motion[1], (features[1].mean(0) + features[2].mean(0))[3:] / 2, rtol=1e-5)
    appearance, motion = descriptors(means, lengths, labels, ["a", "b"], "segment")
    np.testing.assert_allclose(appearance[0], np.concatenate(features[:2]).mean(0)[:3], rtol=1e-5)
    np.testing.assert_allclose(motion[1], np.concatenate(features[1:3]).mean(0)[3:], rtol=1e-5)
    assert appearance.dtype == np.float32 and appearance.shape == (2, 3)


def test_a_class_without_a_training_video_is_named(case):
    _, means, lengths, labels = case
    with pytest.raises(InputError, match="'nobody' has no training video"):
        descriptors(means, lengths, np.c_[labels, np.zeros(4)], ["a", "b", "nobody"])


def test_missing_files_are_made_and_ours_are_remade_when_what_they_came_from_changes(case, tmp_path):
    _, means, lengths, labels = case
    made = load_or_make(tmp_path, means, lengths, labels, ["a", "b"])
    path = tmp_path / "general_appearance_descriptors.npy"
    np.testing.assert_array_equal(np.load(path), made[0])
    for changed in ((means * 2, lengths, labels, ["a", "b"]), (means, lengths, labels[:, ::-1], ["b", "a"])):
        expected = descriptors(*changed)
        np.testing.assert_array_equal(load_or_make(tmp_path, *changed)[0], expected[0])
    segment = load_or_make(tmp_path, means, lengths, labels, ["a", "b"], "segment")
    assert not np.allclose(segment[0], made[0]) and (tmp_path / "segment" / path.name).exists()


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("replaced", [["appearance"], ["motion"], ["appearance", "motion"]])
def test_files_from_elsewhere_are_used_whatever_the_features_and_only_missing_ones_made(case, tmp_path, ours, replaced):
    _, means, lengths, labels = case
    names = ("appearance", "motion")
    if ours:  # what was made here first, before the user put files in place
        load_or_make(tmp_path, means, lengths, labels, ["a", "b"])
    for name, values in zip(names, descriptors(means, lengths, labels, ["a", "b"])):
        if name in replaced:
            np.save(tmp_path / f"general_{name}_descriptors.npy", values + 2)
    new = descriptors(means * 3, lengths, labels, ["a", "b"])
    for _ in range(2):
        found = load_or_make(tmp_path, means * 3, lengths, labels, ["a", "b"])
        for name, got, made in zip(names, found, new):
            np.testing.assert_array_equal(got, made / 3 + 2 if name in replaced else made)


@pytest.mark.parametrize("wrong", [np.zeros((2, 4), np.float32), np.zeros((2, 3), np.int64), np.full((2, 3), np.nan)])
def test_files_of_another_shape_are_refused(case, tmp_path, wrong):
    _, means, lengths, labels = case
    for name in ("appearance", "motion"):
        np.save(tmp_path / f"general_{name}_descriptors.npy", wrong)
    with pytest.raises(InputError, match="general_appearance_descriptors.npy"):
        load_or_make(tmp_path, means, lengths, labels, ["a", "b"])


def test_the_command_reads_training_videos_only(tmp_path, capsys):
    root = tiny.write(tmp_path / "data")
    out = tmp_path / "out"
    arguments = ["--dataset_name", "Tiny", "--dataset_root", str(root), "--descriptors_root", str(out)]
    module.main(arguments)
    first = np.load(out / "general_motion_descriptors.npy")
    assert "float32 [2, 4] from 5 training videos" in capsys.readouterr().out
    for i in (5, 6, 7):  # the test videos
        path = root / "Tiny-I3D-JOINTFeatures" / f"video_{i:02d}.npy"
        np.save(path, np.load(path) * 7)
    module.main(arguments)
    np.testing.assert_array_equal(np.load(out / "general_motion_descriptors.npy"), first)
