"""LAC's seeds and sequence search: the authors' numbers and a slow reference."""

from __future__ import annotations

import numpy as np
import pytest

from generators.search import action_seeds, background_seeds, best_sequence, search_labels, transcript
from tests.golden_makers import numbers, part, read


def scenes():
    data = read("lac_search")
    return [part(data, number) for number in numbers(data)]


def test_golden_seeds():
    for scene in scenes():
        background, points = scene["fused"][:, -1], scene["points"] > 0
        found = background_seeds(background, points.any(axis=1))
        np.testing.assert_array_equal(found, scene["background_seed"] > 0)
        np.testing.assert_array_equal(action_seeds(background, points, found), scene["action_seed"] > 0)


def test_golden_transcripts():
    for scene in scenes():
        actions, background = scene["action_seed"] > 0, scene["background_seed"] > 0
        for c in np.flatnonzero(actions.any(axis=0)):
            others = (background | actions.any(axis=1)) & ~actions[:, c]
            found = transcript(actions[:, c], others)
            np.testing.assert_array_equal(found.labels, scene[f"class_{c}/transcript"])
            np.testing.assert_array_equal(found.ranges, scene[f"class_{c}/ranges"])


@pytest.mark.parametrize("budget", [25, 4, 1])
def test_golden_search(budget):
    for scene in scenes():
        dense, score = search_labels(scene["fused"], scene["points"] > 0, budget)
        np.testing.assert_array_equal(dense, scene[f"budget_{budget}/dense"] > 0)
        np.testing.assert_allclose(score, scene[f"budget_{budget}/score"], rtol=1e-9)


def contrast(x, start, end):
    span = end - start
    outer = np.append(x[max(0, start - -(-span // 4)) : start], x[end : end + span // 4])
    return x[start:end].mean() - (outer.mean() if len(outer) else 0)


def slow_search(x, parts, budget):
    """The beam search as it is described, one snippet and one hypothesis after the other."""
    values, labels, ranges = (1 - x, x), parts.labels, parts.ranges
    beam = [((), np.inf)]
    for t in range(1, len(x)):
        after = []
        for ends, score in beam:
            i = len(ends)
            closed = contrast(values[labels[i]], ends[-1] if ends else 0, t)
            moved = (*ends, t), closed if i == 0 else (i * score + closed) / (i + 1)
            if t == ranges[i + 1][0]:
                after.append(moved)
            elif t <= ranges[i][1] or i == len(labels) - 1:
                after.append((ends, score))
            else:
                after += [(ends, score), moved]
        after.sort(key=lambda h: -h[1])
        after = after[:1] + [h for h in after[1:] if h[1] >= 0.1]
        beam = [h for h in after if len(after) <= budget or h[1] >= after[budget - 1][1]]

    def final(ends):
        borders = [0, *ends, len(x)]
        return np.mean([contrast(values[k], a, b) for k, a, b in zip(labels, borders, borders[1:])])

    best = max(beam, key=lambda h: final(h[0]))[0]
    return np.repeat(labels, np.diff([0, *best, len(x)])) > 0, final(best)


def scene(rng, length, num_class=3):
    """Random scores and points; scores are smooth, noisy or nearly flat, and some are saturated."""
    smooth = np.cumsum(rng.standard_normal((length, num_class + 1)), axis=0) * rng.choice([0.02, 0.5, 3])
    fused = 1 / (1 + np.exp(-smooth - rng.normal(0, 1, num_class + 1)))
    points = rng.random((length, num_class)) < rng.choice([0.02, 0.1, 0.4])
    points[rng.integers(length), rng.integers(num_class)] = True
    return fused, points


@pytest.mark.parametrize("budget", [25, 7, 1])
def test_search_equals_the_slow_one(budget):
    rng = np.random.default_rng(budget)
    searched = 0
    for length in [*range(1, 9), *rng.integers(9, 90, 60)]:
        fused, points = scene(rng, length)
        background = background_seeds(fused[:, -1], points.any(axis=1))
        seeds = action_seeds(fused[:, -1], points, background)
        for c in np.flatnonzero(seeds.any(axis=0)):
            parts = transcript(seeds[:, c], (background | seeds.any(axis=1)) & ~seeds[:, c])
            dense, score = best_sequence(fused[:, c], parts, budget)
            expected, best = slow_search(fused[:, c], parts, budget)
            np.testing.assert_allclose(score, best, atol=1e-12)
            np.testing.assert_array_equal(dense, expected)
            searched += 1
    assert searched > 80


@pytest.mark.parametrize("length", range(1, 9))
def test_labels_of_short_videos_hold_the_points_and_no_background(length):
    rng = np.random.default_rng(length)
    for _ in range(50):
        fused, points = scene(rng, length)
        background = background_seeds(fused[:, -1], points.any(axis=1))
        dense, score = search_labels(fused, points)
        assert np.isfinite(score) and dense[points].all() and not dense[background].any()


def test_every_snippet_labelled_or_none():
    fused = np.random.default_rng(0).random((6, 3))
    every = np.ones((6, 2), bool)
    every[::2, 1] = False
    dense, score = search_labels(fused, every)
    assert np.isfinite(score) and (dense == every).all()
    none = np.zeros((6, 2), bool)
    assert not background_seeds(fused[:, -1], none.any(axis=1)).any()
    dense, score = search_labels(fused, none)
    assert not dense.any() and score == 0


def test_saturated_scores_end_with_a_label_for_every_snippet():
    fused = np.zeros((20, 3))
    points = np.zeros((20, 2), bool)
    points[[4, 12], 0] = True
    for value in (0.0, 1.0):
        fused[:, -1] = value
        dense, score = search_labels(fused, points)
        assert np.isfinite(score) and dense[points].all()


def test_a_point_keeps_its_class_beside_another():
    points = np.zeros((8, 2), bool)
    points[3, 0] = points[4, 1] = True
    seeds = action_seeds(np.full(8, 0.05), points, np.isin(np.arange(8), [0, 7]))
    assert seeds[:, 0].nonzero()[0].tolist() == [1, 2, 3] and seeds[:, 1].nonzero()[0].tolist() == [4, 5, 6]
