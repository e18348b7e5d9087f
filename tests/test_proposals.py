"""Proposals: real counts and recall, and every way a proposals file can be wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

import proposals
from utils.datasets.proposals import load_proposals, read_results, recall
from utils.errors import InputError
from utils.segments import Segments

NAN = float("nan")


def written(tmp_path, results):
    path = tmp_path / "Proposals_X_train.json"
    path.write_text(results if isinstance(results, str) else json.dumps({"version": "", "results": results}))
    return path


def test_the_real_proposals_have_the_stated_counts_and_recall(shared, capsys):
    root = shared / "data" / "Thumos14reduced"
    proposals.main(["stats", "--dataset_root", str(root), "--proposals_root", str(root / "proposals_P_w")])
    lines = capsys.readouterr().out.splitlines()
    for name, *values in (
        ("videos with proposals", "200 of 200", "212 of 212"),
        ("proposals", "33,895", "31,587"),
        ("per video: min, median, max", "4, 108, 1005"),
        ("duplicates", "14,305"),
        *((f"recall, exact seconds, tIoU {t}", r) for t, r in zip(("0.10", "0.50"), ("0.905", "0.637"))),
        *((f"recall, whole snippets, tIoU {t}", r) for t, r in zip(("0.10", "0.50"), ("0.901", "0.677"))),
    ):
        assert all(value in next(line for line in lines if line.startswith(name)) for value in values), lines


def test_recall_counts_instances_of_videos_without_proposals_and_rounds_in_snippets():
    times = np.asarray([[0.0, 1.0], [0.0, 1.0], [0.4, 1.4]])
    truth = Segments(("c",), ("a", "b"), np.asarray([0, 1, 0]), times, np.zeros(3, int))
    np.testing.assert_allclose(recall({"a": times[:1]}, truth, None, (0.5, 0.4)), [1 / 3, 2 / 3])
    np.testing.assert_allclose(recall({"a": times[:1]}, truth, 1.0, (0.5, 0.4)), [2 / 3, 2 / 3])  # [0.4, 1.4] is [0, 1]


def test_only_time_stamps_are_read_and_unknown_videos_are_counted(tmp_path):
    entries = [{"segment": [0, 1.5], "label": "no such class", "score": None}, {"segment": [1, 2]}]
    found = load_proposals(written(tmp_path, {"v": entries, "stranger": "?", "w": []}), {"v": 3.0, "w": 1.0})
    assert list(found.segments_s) == ["v"] and found.segments_s["v"].tolist() == [[0, 1.5], [1, 2]]
    assert not found.problems and "1 videos with proposals are not in the annotations" in found.notes[0]


BAD = {
    "reversed": [2, 1], "empty": [1, 1], "negative": [-0.1, 1], "beyond the video": [0, 10.02], "text": ["0", "1"],
    "booleans": [False, True], "three numbers": [1, 2, 3], "null": None, "NaN": [0, NAN], "huge": [0, 10**400],
}  # fmt: skip


@pytest.mark.parametrize("segment", BAD.values(), ids=BAD)
def test_a_bad_proposal_is_named_by_file_video_and_index(tmp_path, segment):
    path = written(tmp_path, {"v": [{"segment": [0, 10.009]}, {"segment": segment}], "w": 3})
    found = load_proposals(path, {"v": 10.0, "w": NAN})  # all of the file is heard before anything is raised
    first, second = map(str, found.problems)
    assert f"({path}, v, index 1)" in first and "--fix_proposals" in first and "\n" not in first
    assert f"not a list of proposals ({path}, w)" in second and len(found.segments_s["v"]) == 1


def test_fix_proposals_clips_and_drops_with_counts(tmp_path):
    segments = ([-1, 4], [2, 1], [3, 99], [50, 60], [1, 2], [NAN, 3], [0, float("inf")], None, [1], [0, 10.005])
    found = load_proposals(written(tmp_path, {"v": [{"segment": s} for s in segments]}), {"v": 10.0}, fix=True)
    np.testing.assert_array_equal(found.segments_s["v"], [[0, 4], [3, 10], [1, 2], [0, 10]])
    assert not found.problems
    assert [note.split(": ")[1][:24] for note in found.notes] == [
        "6 proposals were dropped",
        "2 proposals were clipped",
    ]


@pytest.mark.parametrize("text", ["[]", '{"results": []}', '{"version": 1}', '{"results": {}, "results": {}}'])
def test_a_file_of_another_form_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="Proposals_X_train.json"):
        read_results(written(tmp_path, text))
