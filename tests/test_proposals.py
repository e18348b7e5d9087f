"""Proposals: real counts and recall, units, and every way a proposals file can be wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

import proposals
from utils.datasets.proposals import load_proposals, recall, tiou, to_snippets
from utils.errors import InputError
from utils.profile import GroundTruth, load_ground_truth, load_profile


def written(tmp_path, results):
    path = tmp_path / "Proposals_X_train.json"
    path.write_text(results if isinstance(results, str) else json.dumps({"version": "", "results": results}))
    return path


def test_real_p_w_proposals_have_the_stated_counts_and_recall(shared):
    root = shared / "data" / "Thumos14reduced"
    profile = load_profile("Thumos14reduced", root)
    truth = load_ground_truth("Thumos14reduced", root, profile, "test")
    found, _ = load_proposals(
        root / "proposals_P_w" / "Proposals_Thumos14reduced_test.json", dict.fromkeys(truth.videos, np.nan)
    )
    assert len(truth.videos) == len(found) == 212
    assert sum(map(len, found.values())) == 31587
    assert proposals.duplicates(list(found.values())) == 14305
    tious = (0.1, 0.3, 0.5, 0.7)
    np.testing.assert_allclose(recall(found, truth, None, tious), [0.905, 0.803, 0.637, 0.415], atol=5e-4)
    np.testing.assert_allclose(recall(found, truth, 25 / 16, tious), [0.901, 0.807, 0.677, 0.431], atol=5e-4)


def test_stats_prints_every_figure_of_both_splits(shared, capsys):
    root = shared / "data" / "Thumos14reduced"
    arguments = ["stats", "--dataset_root", str(root), "--proposals_root", str(root / "proposals_P_w")]
    proposals.main(arguments)
    out = capsys.readouterr().out
    for piece in ("33,895", "31,587", "14,305 (45.3 %)", "min 4, median 108, max 1005", "0.905", "0.901"):
        assert piece in out


def test_seconds_become_snippets_rounded_to_a_hundredth():
    np.testing.assert_array_equal(to_snippets(np.asarray([[19.2, 24.32]]), 25 / 16), [[30.0, 38.0]])
    np.testing.assert_array_equal(to_snippets(np.asarray([[1.0, 2.001]]), 25 / 16), [[1.56, 3.13]])


def test_tiou_by_hand_and_zero_for_empty_segments():
    a = np.asarray([[0.0, 10.0], [3.0, 3.0]])
    b = np.asarray([[5.0, 15.0], [20.0, 30.0], [0.0, 10.0], [3.0, 3.0]])
    np.testing.assert_allclose(tiou(a, b), [[1 / 3, 0, 1, 0], [0, 0, 0, 0]])


def test_recall_counts_instances_of_videos_without_proposals():
    truth = GroundTruth(("c",), ("a", "b"), np.asarray([0, 1]), np.asarray([[0.0, 1.0]] * 2), np.asarray([0, 0]), {})
    np.testing.assert_allclose(recall({"a": np.asarray([[0.0, 1.0]])}, truth, None, (0.5,)), [0.5])


def test_only_time_stamps_are_read_and_unknown_videos_are_counted(tmp_path):
    entries = [{"segment": [0, 1.5], "label": "no such class", "score": None}, {"segment": [1, 2]}]
    found, counts = load_proposals(written(tmp_path, {"v": entries, "stranger": [], "w": []}), {"v": 3.0, "w": 1.0})
    assert list(found) == ["v"] and counts.unknown_videos == 1
    np.testing.assert_array_equal(found["v"], [[0, 1.5], [1, 2]])


BAD = {
    "reversed": [2, 1],
    "empty": [1, 1],
    "negative": [-0.1, 1],
    "beyond the video": [0, 11],
    "a little beyond the video": [0, 10.02],
    "not numbers": ["0", "1"],
    "booleans": [False, True],
    "one number": [1],
    "three numbers": [1, 2, 3],
    "null": None,
    "a huge integer": [0, 10**400],
    "NaN": [0, float("nan")],
    "infinite": [0, float("inf")],
}


@pytest.mark.parametrize("segment", BAD.values(), ids=BAD)
def test_a_bad_proposal_is_named_by_file_video_and_index(tmp_path, segment):
    path = written(tmp_path, {"v": [{"segment": [0, 1]}, {"segment": segment}]})
    with pytest.raises(InputError, match="Proposals_X_train.json") as error:
        load_proposals(path, {"v": 10.0})
    text = str(error.value)
    assert "\n" not in text and "index 1" in text


def test_fix_proposals_clips_and_drops_with_counts(tmp_path):
    segments = ([-1, 4], [2, 1], [3, 99], [50, 60], [1, 2], [float("nan"), 3], [0, float("inf")], None, [1])
    path = written(tmp_path, {"v": [{"segment": s} for s in segments]})
    found, counts = load_proposals(path, {"v": 10.0}, fix=True)
    np.testing.assert_array_equal(found["v"], [[0, 4], [3, 10], [1, 2]])
    assert (counts.dropped, counts.clipped) == (6, 2)


@pytest.mark.parametrize(
    "text", ["[]", '{"results": []}', '{"version": 1}', '{"results": {"v": 3}}', '{"results": {"v": [3]}}']
)
def test_a_file_of_another_form_is_refused(tmp_path, text):
    with pytest.raises(InputError):
        load_proposals(written(tmp_path, text), {"v": 1.0})
