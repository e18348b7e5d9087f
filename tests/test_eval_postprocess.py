from __future__ import annotations

import json
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import postprocess as module
from eval.postprocess import Candidates, ambiguous, candidates, detect, fuse, predicted_classes, soft_nms

RATE = 25 / 16
METHODS = {
    "gaussian_sigma01": {"method": "gaussian", "sigma": 0.1},
    "gaussian_sigma03": {"method": "gaussian", "sigma": 0.3},
    "linear": {"method": "linear", "threshold": 0.7},
    "hard": {"method": "hard", "threshold": 0.7},
}


def outputs(rng, proposals, classes):
    return rng.normal(size=(proposals, classes + 1)), rng.random(proposals), rng.random(proposals)


# ---- fusion ---------------------------------------------------------------------------------------------------------


def test_scores_of_proposals_and_video_follow_their_formulas():
    s_base, attention, s_pc = outputs(np.random.default_rng(0), 7, 3)
    power = np.exp(s_base)
    attended = (power / power.sum(axis=1, keepdims=True))[:, :3] * attention[:, None]
    for factor, expected in ((s_pc, attended * s_pc[:, None]), (None, attended)):  # None: trained without PC
        scores, video = fuse(s_base, attention, factor)
        np.testing.assert_allclose(scores, expected, rtol=1e-12)
        np.testing.assert_allclose(video, attended.sum(axis=0) / (attention.sum() + 1e-6), rtol=1e-12)


def test_extreme_logits_and_no_attention_stay_finite():
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], dtype=np.float32)
    scores, video = fuse(logits, np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32))
    assert (scores == 0).all() and (video == 0).all()
    scores, _ = fuse(logits, np.ones(2), np.ones(2))
    np.testing.assert_allclose(scores, [[1, 0], [1 / 3, 1 / 3]])


@pytest.mark.parametrize("scores, how, classes", [
    ([0.25, 0.2, 0.5], {}, [0, 2]), ([0.1, 0.2, 0.15], {}, [1]), ([0.1, 0.2, 0.15], {"threshold": 0.15}, [1, 2]),
])  # fmt: skip
def test_classes_from_the_threshold_on_else_the_best_one(scores, how, classes):
    assert predicted_classes(np.array(scores), **how).tolist() == classes


def test_fusion_refuses_shapes_that_do_not_fit():
    s_base, attention, s_pc = outputs(np.random.default_rng(1), 5, 3)
    for bad in ((s_base[0], attention, s_pc), (s_base, attention[:4], s_pc), (s_base, attention, s_pc[:, None])):
        with pytest.raises(ValueError):
            fuse(*bad)


# ---- soft-NMS -------------------------------------------------------------------------------------------------------


def one_by_one(segments, scores, method="gaussian", sigma=0.1, threshold=0.7):
    """Soft-NMS as it is usually written, for one class: choose the best, lower the others, repeat."""
    scores, left = scores.copy(), list(range(len(scores)))
    while left:
        best = max(left, key=lambda i: (scores[i], -i))
        left.remove(best)
        for i in left:
            (a, b), (c, d) = segments[best], segments[i]
            overlap = max(min(b, d) - max(a, c) + 1, 0)
            tiou = overlap / ((b - a + 1) + (d - c + 1) - overlap)
            if method == "gaussian":
                scores[i] *= np.exp(-tiou * tiou / sigma)
            elif tiou > threshold:
                scores[i] *= 1 - tiou if method == "linear" else 0
    return scores


def by_class(segments, scores, **how):
    return np.stack([one_by_one(segments, column, **how) for column in scores.T], axis=1)


def some_segments(rng, number, length, grid=0.25):
    start = np.round(rng.uniform(0, length, number) / grid) * grid
    return np.stack([start, start + np.round(rng.uniform(0, 8, number) / grid) * grid], axis=1)


@pytest.mark.parametrize("name", METHODS)
def test_golden_soft_nms_rows_and_their_order(golden, name):
    file = np.load(golden / "soft_nms.npz")
    rows, kept = file["dets"], file[name]
    scores = soft_nms(rows[:, :2], rows[:, 3:], **METHODS[name])[:, 0]
    order = np.argsort(-scores, kind="stable")
    ours = np.column_stack([rows[order, :3], scores[order]])
    alive = kept[:, 3] > 0  # the order among suppressed rows means nothing
    np.testing.assert_allclose(ours[alive], kept[alive], rtol=0, atol=1e-9)
    assert (ours[~alive, 3] == 0).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.sampled_from([1, 2, 17, 60, 120]),
    classes=st.integers(1, 3),
    length=st.sampled_from([5.0, 100.0, 2000.0]),
    name=st.sampled_from(sorted(METHODS)),
    values=st.sampled_from([3, 10**9]),  # few: equal scores, of which the earlier row comes first
    table=st.booleans(),
)
def test_soft_nms_agrees_with_choosing_one_by_one(seed, number, classes, length, name, values, table):
    rng = np.random.default_rng(seed)
    segments, scores = some_segments(rng, number, length), rng.integers(0, values, (number, classes)) / values
    scores[rng.random(scores.shape) < 0.1] = 0
    expected = by_class(segments, scores, **METHODS[name])
    with patch.object(module, "TABLE_UP_TO", 1000 if table else 0):  # both ways to the same numbers
        np.testing.assert_allclose(soft_nms(segments, scores, **METHODS[name]), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_soft_nms_of_nothing_is_nothing(shape):
    assert soft_nms(np.zeros((shape[0], 2)), np.zeros(shape)).shape == shape


@pytest.mark.parametrize("segments, scores", [
    ([[0, 1]], [[0.5], [0.5]]), ([[0, 1, 2]], [[0.5]]), ([[0, 1]], [0.5]), ([[2, 1]], [[0.5]]),
    ([[0, np.nan]], [[0.5]]), ([[0, 1]], [[-0.1]]), ([[0, 1]], [[np.nan]]),
])  # fmt: skip
def test_soft_nms_refuses_input_that_does_not_fit(segments, scores):
    with pytest.raises(ValueError):
        soft_nms(np.asarray(segments), np.asarray(scores))


# ---- the ambiguous filter -------------------------------------------------------------------------------------------


def test_golden_ambiguous_filter(shared, golden_thumos):
    intervals_s = {}
    path = shared / "data/Thumos14reduced/Thumos14reduced-Annotations/Ambiguous_test.txt"
    for video, start, end in map(str.split, path.read_text().splitlines()):
        intervals_s.setdefault(video, []).append((float(start), float(end)))
    file = json.loads((golden_thumos / "ambiguous_filter.json").read_text())
    dropped = 0
    for video, rows, kept in zip(file["video"], file["segments"], file["kept"]):
        rows = np.asarray(rows).reshape(-1, 4)
        hidden = ambiguous(rows[:, :2], np.asarray(intervals_s[video]), RATE)
        np.testing.assert_array_equal(rows[~hidden], np.asarray(kept).reshape(-1, 4))
        dropped += hidden.sum()
    assert dropped > 0


def shares_an_integer(segment, interval_s, rate=RATE):
    theirs = range(round(interval_s[0] * rate), round(interval_s[1] * rate))
    return bool(set(range(int(segment[0]), int(segment[1]))) & set(theirs))


times = st.floats(0, 12).map(lambda x: round(x, 1))
pairs = st.lists(st.tuples(times, times).map(sorted), max_size=6).map(lambda x: np.reshape(x, (-1, 2)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(segments=pairs, intervals_s=pairs)
def test_any_common_integer_hides_a_detection(segments, intervals_s):
    expected = [any(shares_an_integer(segment, interval) for interval in intervals_s) for segment in segments]
    assert ambiguous(segments, intervals_s, RATE).tolist() == expected


# ---- all together ---------------------------------------------------------------------------------------------------


def made_candidates(rng, videos):
    found = []
    for v in range(videos):
        segments = np.sort(np.round(rng.uniform(0, 60, (rng.integers(1, 30), 2)), 2), axis=1)
        found.append((v, candidates(*outputs(rng, len(segments), 4), segments, threshold=0.22)[0]))
    return found


def test_detections_are_what_each_video_and_class_gives_alone():
    found = made_candidates(np.random.default_rng(0), 9)
    rate = np.array([RATE, 1.0, 2.5] * 3 + [1.0])  # a rate for each video; the last has no proposals
    videos = tuple(f"video_{i}" for i in range(10))
    intervals_s = {"video_5": np.array([[5.0, 15.0]])}
    detections = detect(tuple("abcd"), videos, found[::-1], intervals_s, rate)
    assert 0 < len(detections.of("video_5")[2]) < found[5][1].scores.size, "some are hidden"
    assert {len(c.labels) for _, c in found} >= {1, 2}, "videos with one and with more predicted classes"
    for v, c in found:
        expected = [
            (*np.round(segment / rate[v], 6), label, score)
            for k, label in enumerate(c.labels)
            for segment, score in zip(c.segments, one_by_one(c.segments, c.scores[:, k]))
            if not any(shares_an_integer(segment, i, rate[v]) for i in intervals_s.get(videos[v], ()))
        ]
        segment_s, label, score = detections.of(videos[v])
        assert (np.diff(score) <= 0).all()
        np.testing.assert_allclose(sorted(zip(*segment_s.T, label, score)), sorted(expected), rtol=1e-10)
    assert len(detections.of("video_9")[2]) == 0
    assert (np.diff(detections.video) >= 0).all()


def test_no_candidates_no_detections():
    empty = Candidates(np.zeros((0, 2)), np.zeros((0, 1)), np.array([0]))
    for found in ([], [(0, empty)]):
        assert len(detect(("a",), ("v",), found, {}, np.ones(1)).score) == 0
