from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import soft_nms as module
from eval.soft_nms import soft_nms

METHODS = {
    "gaussian_sigma01": {"method": "gaussian", "sigma": 0.1},
    "gaussian_sigma03": {"method": "gaussian", "sigma": 0.3},
    "linear": {"method": "linear", "threshold": 0.7},
    "hard": {"method": "hard", "threshold": 0.7},
}
few = settings(max_examples=25, deadline=None, derandomize=True)


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


def some_segments(rng, number, length, grid=0.25):
    start = np.round(rng.uniform(0, length, number) / grid) * grid
    return np.stack([start, start + np.round(rng.uniform(0, 8, number) / grid) * grid], axis=1)


@pytest.fixture(params=["rounds", "dense"])
def way(request, monkeypatch):
    """Both ways to the same numbers."""
    if request.param == "dense":
        monkeypatch.setattr(module, "PAIRS_AT_ONCE", -1)


@pytest.mark.parametrize("name", METHODS)
def test_golden_rows_and_their_order(golden, way, name):
    file = np.load(golden / "soft_nms.npz")
    rows, kept = file["dets"], file[name]
    scores = soft_nms(rows[:, :2], rows[:, 3], **METHODS[name])
    order = np.argsort(-scores, kind="stable")
    ours = np.column_stack([rows[order, :3], scores[order]])
    alive = kept[:, 3] > 0  # the order among suppressed rows means nothing
    np.testing.assert_allclose(ours[alive], kept[alive], rtol=0, atol=1e-9)
    assert (ours[~alive, 3] == 0).all()


@few
@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.sampled_from([1, 2, 17, 60, 250]),
    classes=st.integers(1, 3),
    length=st.sampled_from([5.0, 100.0, 2000.0]),
    name=st.sampled_from(sorted(METHODS)),
)
def test_any_input_agrees_with_choosing_one_by_one(seed, number, classes, length, name):
    rng = np.random.default_rng(seed)
    segments, scores = some_segments(rng, number, length), rng.random((number, classes))
    scores[rng.random(scores.shape) < 0.1] = 0
    expected = np.stack([one_by_one(segments, column, **METHODS[name]) for column in scores.T], axis=1)
    np.testing.assert_allclose(soft_nms(segments, scores, **METHODS[name]), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("number, classes", [(40, 2), (120, 12)])
def test_equal_scores_go_to_the_earlier_row(way, number, classes):
    rng = np.random.default_rng(3)
    segments = some_segments(rng, number, number / 4)
    for scores in (rng.choice([0.25, 0.5, 1.0], (number, classes)), np.full((number, classes), 0.5)):
        expected = np.stack([one_by_one(segments, column, "hard", threshold=0.3) for column in scores.T], axis=1)
        np.testing.assert_array_equal(soft_nms(segments, scores, method="hard", threshold=0.3), expected)


def test_a_repeated_segment_falls_by_a_factor_each_time(way):
    scores = soft_nms(np.tile([[3.0, 9.5]], (5, 1)), np.full(5, 0.8), sigma=0.1)
    np.testing.assert_allclose(scores, 0.8 * np.exp(-10.0 * np.arange(5)), rtol=1e-12)


def test_what_overlaps_nothing_keeps_its_score_exactly():
    start = np.arange(0, 600, 3.0)
    scores = np.random.default_rng(0).random((200, 2))
    np.testing.assert_array_equal(soft_nms(np.stack([start, start + 1.9], axis=1), scores), scores)


@pytest.mark.parametrize("at_once", [4_000_000, 50, -1])
def test_groups_and_classes_never_meet(monkeypatch, at_once):
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", at_once)
    rng = np.random.default_rng(1)
    segments, scores, group = some_segments(rng, 150, 20), rng.random((150, 3)), rng.integers(-2, 6, 150)
    together = soft_nms(segments, scores, group)
    for g in np.unique(group):
        for k in range(3):
            mine = group == g
            alone = soft_nms(segments[mine], scores[mine, k])
            np.testing.assert_allclose(together[mine, k], alone, rtol=1e-12)


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(2)
    segments, scores, order = some_segments(rng, 400, 60), rng.random((400, 2)), rng.permutation(400)
    np.testing.assert_allclose(soft_nms(segments[order], scores[order]), soft_nms(segments, scores)[order], rtol=1e-10)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)])
def test_nothing_in_nothing_out(shape):
    assert soft_nms(np.zeros((shape[0], 2)), np.zeros(shape)).shape == shape


@pytest.mark.parametrize(
    "segments, scores, how",
    [
        ([[0, 1]], [0.5, 0.5], {}),
        ([[0, 1, 2]], [0.5], {}),
        ([[2, 1]], [0.5], {}),
        ([[0, np.nan]], [0.5], {}),
        ([[0, 1]], [-0.1], {}),
        ([[0, 1]], [np.nan], {}),
        ([[0, 1]], [0.5], {"method": "soft"}),
        ([[0, 1]], [0.5], {"sigma": 0}),
        ([[0, 1]], [0.5], {"group": np.zeros(2)}),
    ],
)
def test_input_that_does_not_fit_is_refused(segments, scores, how):
    with pytest.raises(ValueError):
        soft_nms(np.asarray(segments), np.asarray(scores), **how)
