from __future__ import annotations

import numpy as np
import pytest

from eval.classification import accuracy, mean_average_precision, top1_accuracy


def test_golden_classification_map(golden):
    file = np.load(golden / "classification_map.npz")
    assert mean_average_precision(file["scores"], file["labels"]) == pytest.approx(float(file["cmap"]) / 100, abs=1e-9)


def test_map_agrees_with_precision_at_every_hit():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((30, 4)), rng.random((30, 4)) < 0.3
    expected = []
    for c in range(4):
        ranking = sorted(range(30), key=lambda v: -scores[v, c])
        hits = [labels[v, c] for v in ranking]
        expected.append(np.mean([sum(hits[: k + 1]) / (k + 1) for k in range(30) if hits[k]]))
    assert mean_average_precision(scores, labels) == pytest.approx(np.mean(expected), abs=1e-12)


def test_map_and_top1_pass_over_classes_that_do_not_occur_and_videos_without_label():
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.2, 0.7]])
    labels = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert mean_average_precision(scores, labels) == 1
    assert top1_accuracy(scores, labels) == 1
    assert top1_accuracy(scores, labels[[1, 0, 2]]) == 0


def test_top1_is_right_with_any_of_several_labels_and_wrong_without_proposals():
    assert top1_accuracy(np.array([[0.1, 0.9, 0.3], [0.5, 0.2, 0.1]]), np.array([[0, 1, 1], [0, 1, 1]])) == 0.5
    assert top1_accuracy(np.zeros((1, 2)), np.array([[1, 0]])) == 0


def test_accuracy_counts_videos_whose_set_of_classes_is_exactly_right():
    labels = np.array([[1, 0], [1, 1], [1, 0], [0, 1], [0, 0]])
    predicted = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [0, 0]])
    right = [set(np.flatnonzero(p)) == set(np.flatnonzero(y)) != set() for p, y in zip(predicted, labels)]
    assert accuracy(predicted, labels) == np.mean(right) == 1 / 5


def test_without_labels_there_is_no_number():
    for measure in (mean_average_precision, accuracy, top1_accuracy):
        assert measure(np.ones((3, 2)), np.zeros((3, 2))) is None
        assert measure(np.ones((0, 2)), np.zeros((0, 2))) is None


def test_shapes_that_do_not_fit_and_nan_are_refused():
    for scores in (np.zeros((3, 2)), np.full((3, 4), np.nan)):
        for measure in (mean_average_precision, accuracy, top1_accuracy):
            with pytest.raises(ValueError):
                measure(scores, np.ones((3, 4)))
