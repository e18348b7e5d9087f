"""Profiles: built in, from dataset.json, where the files of a dataset are, and whether its rate fits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from utils.datasets.profile import PROFILES, Profile, annotations_path, load_profile, proposals_file
from utils.datasets.rates import check_rate, fitting
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
    *({"annotations": 4}, {"proposals_root": ["a"]}, {"rescaled": 1}, {"modalities": 3}, {"modalities": True}),
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


# ---- rates


def test_one_rate_a_rate_a_video_or_rows_over_the_whole_video(tmp_path):
    videos, snippets, seconds = ("a", "b"), np.asarray([100, 100]), np.asarray([50.0, 20.0])
    assert Profile(feature_fps=30, snippet_stride=15).rates(videos, snippets, seconds).tolist() == [2, 2]
    (tmp_path / "fps.json").write_text('{"a": 32, "b": 24}')
    profile = load_profile("Own", given(tmp_path, feature_fps="fps.json"))
    assert profile.rates(videos, snippets, seconds).tolist() == [2, 1.5]
    with pytest.raises(InputError, match="no feature_fps of 1 videos: c"):
        profile.rates(("a", "c"), snippets, seconds)
    with pytest.raises(ValueError):
        profile.snippets_per_second  # noqa: B018
    (tmp_path / "fps.json").write_text('{"a": "fast"}')
    with pytest.raises(InputError, match="feature_fps"):
        load_profile("Own", tmp_path)
    rescaled = load_profile("Own", given(tmp_path, rescaled=True))
    assert rescaled.rates(videos, snippets, seconds).tolist() == [2, 5]
    with pytest.raises(InputError, match="duration of 1 videos is unknown: b"):
        rescaled.rates(videos, snippets, np.asarray([50, np.nan]))


VIDEOS, SECONDS = [f"v{i}" for i in range(9)], np.linspace(16, 60, 9)
RATES = [
    (25 / 16, Profile(), None),
    (7.5, Profile(), '"feature_fps": 120 or "snippet_stride": 3.333 .*; this looks like stride 4 at 30 fps'),
    (25 / 8, Profile(), '"feature_fps": 50 or "snippet_stride": 8 .*; this looks like stride 8 at 25 fps'),
    (15.0, Profile(feature_fps=15.0), '"feature_fps": 240 or "snippet_stride": 1 .*looks like stride 1 at 15 fps'),
    (7.77, Profile(), '"feature_fps": 124 or "snippet_stride": 3.22. in dataset.json would fit$'),
    (1.5, Profile(feature_fps=dict.fromkeys(VIDEOS, 48.0)), '"snippet_stride": 32 in dataset.json would fit'),
    (3.0, Profile(feature_fps=dict.fromkeys(VIDEOS, 48.0)), None),
]


@pytest.mark.parametrize("rate, profile, words", RATES)
def test_the_rate_that_would_fit_is_named(rate, profile, words):
    found = check_rate(VIDEOS, np.floor(SECONDS * rate).astype(int), SECONDS, profile)
    assert (found.problem is None) == (words is None) and "should be 1" in found.summary
    if words:
        line = str(found.problem)
        assert re.search(words, line) and "9 of 9 videos are off" in line and found.problem.todo and len(found.off) == 9


def test_rates_that_cannot_be_compared_or_fit_nowhere():
    snippets = np.floor(SECONDS * 25 / 16).astype(int)
    assert check_rate(VIDEOS, snippets, np.full(9, np.nan), Profile()) is None
    assert check_rate(VIDEOS, snippets * 0 + 100, SECONDS, Profile(rescaled=True)) is None
    snippets[2] *= 2  # one video is no error
    found = check_rate(VIDEOS, snippets, SECONDS, Profile())
    assert found.problem is None and [line.split()[0] for line in found.off] == ["v2"]
    assert '"rescaled": true' in str(check_rate(VIDEOS, snippets * 0 + 100, SECONDS, Profile()).problem)
    assert "no one rate fits" in str(check_rate(VIDEOS, snippets[::-1] * 3, SECONDS, Profile()).problem)
    assert "stride 4" in fitting(Profile(), 0.25)
