"""The one type of labelled segments: columns that fit, parts of it, and the document on disk."""

from __future__ import annotations

import json
from contextlib import nullcontext

import numpy as np
import pytest

from utils.errors import InputError
from utils.segments import Segments, check_units, spelled, tiou, to_snippets


def segments(**changes) -> Segments:
    columns = {
        "classes": ("jump", "run"),
        "videos": ("a", "b", "c"),
        "video": np.asarray([0, 2, 0]),
        "segment_s": np.asarray([[0, 1], [2, 3.5], [1, 4]]),
        "label": np.asarray([1, 0, 0]),
        "score": np.asarray([0.5, 0.25, 0.125]),
    }
    return Segments(**{**columns, **changes})


@pytest.mark.parametrize(
    "changes",
    [{"label": np.zeros(2)}, {"segment_s": np.zeros((3, 3))}, {"score": np.zeros(4)}]
    + [{"segment_s": np.full((3, 2), np.nan)}, {"score": np.full(3, np.inf)}],
)
def test_columns_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValueError):
        segments(**changes)


def test_of_and_keep_give_the_segments_of_some_videos():
    segment_s, label, score = segments().of("a")
    assert segment_s.tolist() == [[0, 1], [1, 4]] and label.tolist() == [1, 0] and score.tolist() == [0.5, 0.125]
    assert len(segments().of("b")[0]) == len(segments().of("unknown")[0]) == 0
    kept = segments().keep(["c", "unknown", "a"])
    assert kept.videos == ("c", "a") and kept.video.tolist() == [1, 0, 1] and kept.score.tolist() == [0.5, 0.25, 0.125]
    assert segments(score=None).keep(["b"]).score is None and segments(score=None).of("a")[2] is None


def test_the_hash_depends_on_everything():
    changes = [{"classes": ("jump", "walk")}, {"videos": ("a", "b", "d")}, {"video": np.asarray([0, 1, 0])}]
    changes += [{"label": np.asarray([0, 0, 0])}, {"score": None}, {"segment_s": np.zeros((3, 2))}, {}]
    assert len({segments(**change).hash() for change in changes}) == len(changes)
    assert segments().hash() == segments().hash()


def test_json_comes_back_and_has_the_fields_of_the_official_evaluator():
    document = json.loads(json.dumps(segments().to_json("SEAL")))
    assert set(document) == {"version", "results", "external_data"} and document["results"]["b"] == []
    again, unknown = Segments.from_json(document, ("run",))
    assert unknown == {"jump": 2} and again.videos == ("a", "b", "c") and again.segment_s.tolist() == [[0, 1]]
    again, unknown = Segments.from_json(document, ("jump", "run"))
    assert not unknown and again.keep(("a", "b", "c")).score.tolist() == [0.5, 0.125, 0.25]


GOOD = {"segment": [0, 1], "label": "run", "score": 1}
WRONG = [None, {}, {**GOOD, "segment": [2, 1]}, {**GOOD, "score": "1"}, {**GOOD, "segment": [0, float("inf")]}]


@pytest.mark.parametrize("entry", [*WRONG, {**GOOD, "segment": [0, 10**400]}, {**GOOD, "label": 3}])
def test_a_malformed_detection_is_named(entry):
    with pytest.raises(InputError, match="file.json, v, index 1"):
        Segments.from_json({"results": {"v": [GOOD, entry]}}, ("run",), "file.json")


@pytest.mark.parametrize("document", [None, [], {"results": []}, {"results": {"v": {}}}])
def test_a_document_of_another_form_is_refused(document):
    with pytest.raises(InputError, match="file.json"):
        Segments.from_json(document, ("run",), "file.json")


def test_snippets_and_tiou():
    assert to_snippets([[1, 2.222]], 25 / 16).tolist() == [[1.56, 3.47]]
    a, b = np.asarray([[0, 2], [5, 5]]), np.asarray([[1, 3], [0, 2], [5, 5]])
    np.testing.assert_allclose(tiou(a, b), [[1 / 3, 1, 0], [0, 0, 0]])


def test_names_are_bridged_with_and_without_v():
    assert spelled(["v_a", "b", "v_c", "d"], ("a", "v_b", "v_c")) == {"v_a": "a", "b": "v_b", "v_c": "v_c", "d": "d"}
    with pytest.raises(InputError, match="one video under two names, a and v_a"):
        spelled(["a", "v_a"], ("a",), "file.json")


TIMES = np.asarray([[2, 4.5], [6, 8.5], [10, 12.5]] * 4)  # in videos of 20 s


@pytest.mark.parametrize(
    "segment_s, words",
    [
        (TIMES, None),
        (TIMES * 30, "100 % of 12 instances end after their video .a.csv. - are these frames"),
        (np.r_[TIMES[:-1] * 30, TIMES[-1:]], "92 % of 12"),
        (np.r_[TIMES[:-2] * 30, TIMES[-2:]], None),  # a few are not this function's matter
        (TIMES / 20, "all 12 instances are in the first second of videos of 20 s .a.csv. - are these fractions"),
        (TIMES[:3] / 20, None),  # three short actions may well be
        (TIMES * 0 + (19, 20.5), None),
        (TIMES[:0], None),
    ],
)
def test_times_that_cannot_be_seconds(segment_s, words):
    with pytest.raises(InputError, match=words) if words else nullcontext():
        check_units(segment_s, np.full(len(segment_s), 20.0), "instances", "a.csv")
    check_units(segment_s, np.full(len(segment_s), np.nan), "instances", "a.csv")
