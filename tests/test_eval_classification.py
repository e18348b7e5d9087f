from __future__ import annotations

import numpy as np
import pytest

from eval.classification import accuracy, mean_average_precision


def test_golden_classification_map(golden):
    file = np.load(golden / "classification_map.npz")
    assert mean_average_precision(file["scores"], file["labels"]) == pytest.approx(float(file["cmap"]) / 100, abs=1e-9)


def test_agrees_with_precision_at_every_hit():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((30, 4)), rng.random((30, 4)) < 0.3
    expected = []
    for c in range(4):
        ranking = sorted(range(30), key=lambda v: -scores[v, c])
        hits = [labels[v, c] for v in ranking]
        expected.append(np.mean([sum(hits[: k + 1]) / (k + 1) for k in range(30) if hits[k]]))
    assert mean_average_precision(scores, labels) == pytest.approx(np.mean(expected), abs=1e-12)


def test_classes_that_do_not_occur_and_videos_without_label_count_for_nothing():
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.2, 0.7]])
    labels = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert mean_average_precision(scores, labels) == 1
    assert accuracy(scores, labels) == 1
    assert accuracy(scores, labels[[1, 0, 2]]) == 0
    assert mean_average_precision(scores, 0 * labels) is None
    assert accuracy(scores, 0 * labels) is None


def test_any_of_several_labels_is_right():
    assert accuracy(np.array([[0.1, 0.9, 0.3], [0.5, 0.2, 0.1]]), np.array([[0, 1, 1], [0, 1, 1]])) == 0.5


def test_shapes_that_do_not_fit_and_nan_are_refused():
    for scores in (np.zeros((3, 2)), np.full((3, 4), np.nan)):
        with pytest.raises(ValueError):
            mean_average_precision(scores, np.ones((3, 4)))
        with pytest.raises(ValueError):
            accuracy(scores, np.ones((3, 4)))
