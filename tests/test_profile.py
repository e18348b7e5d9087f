"""Profiles: built in, from dataset.json, and where the files of a dataset are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from utils.datasets.profile import PROFILES, annotations_path, load_profile, proposals_file
from utils.errors import InputError


def given(root: Path, **fields) -> Path:
    (root / "dataset.json").write_text(json.dumps(fields))
    return root


def test_dataset_json_overrides_the_profile_of_that_name(tmp_path):
    given(tmp_path, proposals_root="p", features="x", tiou_thresholds=[0.5], feature_fps=30)
    profile = load_profile("Thumos14reduced", tmp_path)
    assert profile.round_ground_truth and profile.features == ("x",) and profile.snippets_per_second == 30 / 16
    assert profile.proposals_root == str(tmp_path / "p") and profile.tiou_thresholds == (0.5,)
    assert not load_profile("Own", tmp_path).round_ground_truth
    assert [name for name, built_in in PROFILES.items() if built_in.round_ground_truth] == ["Thumos14reduced", "Demo"]


WRONG = [
    *({"no_such_field": 1}, {"feature_fps": 0}, {"feature_fps": True}, {"snippet_stride": "16"}),
    *({"tiou_thresholds": []}, {"tiou_thresholds": [2]}, {"tiou_thresholds": [0.5, 0.1]}, {"train_subset": 3}),
    *({"excluded_videos": [1]}, {"features": ["a", "b", "c"]}, {"features": []}, {"round_ground_truth": 1}),
    *({"annotations": 4}, {"proposals_root": ["a"]}),
]


@pytest.mark.parametrize("fields", WRONG, ids=json.dumps)
def test_a_wrong_profile_is_refused(tmp_path, fields):
    with pytest.raises(InputError, match=f"{next(iter(fields))}.*dataset.json"):
        load_profile("Own", given(tmp_path, **fields))


def test_a_dataset_without_profile_is_refused_whatever_its_name_contains(tmp_path):
    with pytest.raises(InputError, match="no built-in profile"):
        load_profile("Thumos14reduced-mine", tmp_path)
    with pytest.raises(InputError, match="no such dataset folder"):
        load_profile("Thumos14reduced", tmp_path / "none")


def test_annotations_are_a_folder_or_the_only_file_that_is_not_hidden(tmp_path):
    profile = load_profile("Own", given(tmp_path))
    with pytest.raises(InputError, match="no .json or .csv either"):
        annotations_path("Own", tmp_path, profile)
    for name in ("._a.csv", "a.csv", "Proposals_Own_train.json"):
        (tmp_path / name).write_text("")
    assert annotations_path("Own", tmp_path, profile) == tmp_path / "a.csv"
    (tmp_path / "b.json").write_text("")
    with pytest.raises(InputError, match="a.csv, b.json"):
        annotations_path("Own", tmp_path, profile)
    (tmp_path / "Own-Annotations").mkdir()
    assert annotations_path("Own", tmp_path, profile) == tmp_path / "Own-Annotations"
    profile = load_profile("Own", given(tmp_path, annotations="b.json"))
    assert annotations_path("Own", tmp_path, profile) == tmp_path / "b.json"


def test_proposals_are_in_the_folder_given_or_the_profiles_or_the_default(tmp_path):
    profile = load_profile("Own", given(tmp_path))
    assert proposals_file("Own", profile, "test", "x") == Path("x/Proposals_Own_test.json")
    assert proposals_file("Own", profile, "test") == Path("proposals4Own/Proposals_Own_test.json")
    profile = load_profile("Own", given(tmp_path, proposals_root="."))
    assert proposals_file("Own", profile, "train") == tmp_path / "Proposals_Own_train.json"
