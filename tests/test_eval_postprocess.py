from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.detections import Detections
from eval.postprocess import Candidates, ambiguous, candidates, detect, fuse, predicted_classes
from eval.soft_nms import soft_nms
from utils.errors import InputError

RATE = 25 / 16


def outputs(rng, proposals, classes):
    return rng.normal(size=(proposals, classes + 1)), rng.random(proposals), rng.random(proposals)


def test_scores_of_proposals_and_video_follow_their_formulas():
    s_base, attention, s_pc = outputs(np.random.default_rng(0), 7, 3)
    power = np.exp(s_base)
    probability = power / power.sum(axis=1, keepdims=True)
    scores, video = fuse(s_base, attention, s_pc)
    for i in range(7):
        for c in range(3):
            assert scores[i, c] == pytest.approx(probability[i, c] * attention[i] * s_pc[i])
    for c in range(3):
        weighted = sum(probability[i, c] * attention[i] for i in range(7))
        assert video[c] == pytest.approx(weighted / (sum(attention) + 1e-6))


def test_a_model_without_pc_leaves_its_score_out():
    s_base, attention, s_pc = outputs(np.random.default_rng(1), 5, 3)
    without, video = fuse(s_base, attention)
    with_pc, same_video = fuse(s_base, attention, s_pc)
    np.testing.assert_allclose(with_pc, without * s_pc[:, None])
    np.testing.assert_array_equal(video, same_video)


def test_extreme_logits_and_no_attention_stay_finite():
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], dtype=np.float32)
    scores, video = fuse(logits, np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32))
    assert (scores == 0).all() and (video == 0).all()
    scores, _ = fuse(logits, np.ones(2), np.ones(2))
    np.testing.assert_allclose(scores, [[1, 0], [1 / 3, 1 / 3]])


def test_classes_from_the_threshold_on_else_the_best_one():
    assert predicted_classes(np.array([0.25, 0.2, 0.5])).tolist() == [0, 2]
    assert predicted_classes(np.array([0.1, 0.2, 0.15])).tolist() == [1]
    assert predicted_classes(np.array([0.1, 0.2, 0.15]), threshold=0.15).tolist() == [1, 2]


def test_shapes_that_do_not_fit_are_refused():
    s_base, attention, s_pc = outputs(np.random.default_rng(1), 5, 3)
    for bad in ((s_base[0], attention, s_pc), (s_base, attention[:4], s_pc), (s_base, attention, s_pc[:, None])):
        with pytest.raises(ValueError):
            fuse(*bad)


def test_golden_ambiguous_filter(shared):
    intervals_s = {}
    path = shared / "data/Thumos14reduced/Thumos14reduced-Annotations/Ambiguous_test.txt"
    for video, start, end in map(str.split, path.read_text().splitlines()):
        intervals_s.setdefault(video, []).append((float(start), float(end)))
    file = json.loads((shared / "golden/ambiguous_filter.json").read_text())
    dropped = 0
    for video, rows, kept in zip(file["video"], file["segments"], file["kept"]):
        rows = np.asarray(rows)
        hidden = ambiguous(rows[:, :2], np.asarray(intervals_s[video]), RATE)
        np.testing.assert_array_equal(rows[~hidden], np.asarray(kept).reshape(-1, 4))
        dropped += hidden.sum()
    assert dropped == 44


times = st.floats(0, 12).map(lambda x: round(x, 1))
pairs = st.lists(st.tuples(times, times).map(sorted), max_size=6).map(lambda x: np.reshape(x, (-1, 2)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(segments=pairs, intervals_s=pairs)
def test_any_common_integer_hides_a_detection(segments, intervals_s):
    def shares(segment, interval):
        theirs = range(round(interval[0] * RATE), round(interval[1] * RATE))
        return bool(set(range(int(segment[0]), int(segment[1]))) & set(theirs))

    expected = [any(shares(segment, interval) for interval in intervals_s) for segment in segments]
    assert ambiguous(segments, intervals_s, RATE).tolist() == expected


def made_candidates(rng, videos):
    found = []
    for v in range(videos):
        segments = np.sort(np.round(rng.uniform(0, 60, (rng.integers(1, 30), 2)), 2), axis=1)
        found.append((v, candidates(*outputs(rng, len(segments), 4), segments, threshold=0.22)[0]))
    return found


def test_many_videos_at_once_equal_each_alone():
    found = made_candidates(np.random.default_rng(0), 9)
    classes, videos = tuple("abcd"), tuple(f"video_{i}" for i in range(10))  # the last has no proposals
    intervals_s = {"video_5": np.array([[5.0, 15.0]])}
    detections = detect(classes, videos, found, intervals_s, RATE)
    assert 0 < len(detections.of("video_5")[2]) < found[5][1].scores.size, "some are hidden"
    assert {len(c.labels) for _, c in found} >= {1, 2}, "videos with one and with more predicted classes"
    for v, c in found:
        hidden = ambiguous(c.segments, intervals_s[videos[v]], RATE) if videos[v] in intervals_s else False
        expected = [
            (*np.round(segment / RATE, 6), label, score)
            for k, label in enumerate(c.labels)
            for segment, score, drop in zip(
                c.segments, soft_nms(c.segments, c.scores[:, k]), hidden | np.zeros(len(c.segments), bool)
            )
            if not drop
        ]
        segment_s, label, score = detections.of(videos[v])
        assert (np.diff(score) <= 0).all()
        rows = sorted(zip(*segment_s.T, label, score))
        np.testing.assert_allclose(rows, sorted(expected), rtol=1e-10)
    assert len(detections.of("video_9")[2]) == 0 and len(detections.of("unheard of")[2]) == 0


def test_no_candidates_no_detections():
    empty = Candidates(np.zeros((0, 2)), np.zeros((0, 1)), np.array([0]))
    for found in ([], [(0, empty)]):
        assert len(detect(("a",), ("v",), found, {}, RATE).score) == 0


def test_detections_come_back_from_json_as_they_went():
    made = detect(tuple("abcd"), ("v0", "v1", "v2"), made_candidates(np.random.default_rng(5), 3), {}, RATE)
    document = json.loads(json.dumps(made.to_json("Demo")))
    back, unknown = Detections.from_json(document, made.classes)
    assert document["version"] == "Demo" and not unknown
    assert back.videos == made.videos and back.classes == made.classes
    for name in ("video", "segment_s", "label", "score"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name))


def test_labels_outside_the_class_list_are_counted_not_kept():
    entry = {"segment": [1, 2.5], "score": 1}
    results = {"v": [{**entry, "label": name} for name in ("jump", "swim", "swim")], "w": []}
    found, unknown = Detections.from_json({"results": results}, ["run", "jump"])
    assert unknown == {"swim": 2}
    assert found.videos == ("v", "w") and found.label.tolist() == [1] and found.segment_s.tolist() == [[1.0, 2.5]]


GOOD = {"segment": [0.0, 1.0], "label": "jump", "score": 0.5}


@pytest.mark.parametrize(
    "bad",
    [
        {**GOOD, "score": float("nan")},
        {**GOOD, "score": "0.5"},
        {**GOOD, "score": None},
        {**GOOD, "score": 10**400},
        {**GOOD, "label": 3},
        {**GOOD, "label": ["jump"]},
        {**GOOD, "segment": [0.0, float("inf")]},
        {**GOOD, "segment": [2.0, 1.0]},
        {**GOOD, "segment": [0.0]},
        {**GOOD, "segment": [0.0, 1.0, 2.0]},
        {**GOOD, "segment": [True, 1.0]},
        {**GOOD, "segment": "01"},
        {"segment": [0.0, 1.0], "label": "jump"},
        [0.0, 1.0],
        None,
    ],
)
def test_a_malformed_detection_is_named_by_file_video_and_index(bad):
    with pytest.raises(InputError, match=r"\(found.json, video_7, index 1\)"):
        Detections.from_json({"results": {"video_7": [GOOD, bad]}}, ["jump"], "found.json")


@pytest.mark.parametrize("document", [None, [], {}, {"results": []}, {"results": {"v": GOOD}}, {"results": {"v": 3}}])
def test_a_document_of_another_form_is_refused(document):
    with pytest.raises(InputError, match="found.json"):
        Detections.from_json(document, ["jump"], "found.json")


def test_columns_that_do_not_fit_are_refused():
    def made(segment_s, score):
        return Detections(("a",), ("v",), np.zeros(1, int), segment_s, np.zeros(1, int), score)

    assert made(np.zeros((1, 2)), np.ones(1)).score == 1
    for segment_s, score in ((np.zeros((1, 3)), np.ones(1)), (np.zeros((1, 2)), np.full(1, np.nan))):
        with pytest.raises(ValueError):
            made(segment_s, score)
