"""Video classification: mean average precision of the video scores and two accuracies."""

from __future__ import annotations

from typing import Optional, Tuple

import numpy as np


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> Optional[float]:
    """Mean over the classes that occur of the (not interpolated) average precision, a fraction; None without labels.

    scores: [V, C] video scores. labels: [V, C] multi-hot. Equal scores count in the order of the videos.
    """
    scores, labels = _checked(scores, labels)
    hit = np.take_along_axis(labels, np.argsort(-scores, axis=0, kind="stable"), axis=0)
    positives = labels.sum(axis=0)
    occurs = positives > 0
    precision = np.cumsum(hit, axis=0) / np.arange(1, len(hit) + 1)[:, None]
    average = (precision * hit).sum(axis=0)[occurs] / positives[occurs]
    return float(average.mean()) if occurs.any() else None


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> Optional[float]:
    """Accuracy as the authors count it: share of all videos whose predicted set of classes equals their labels.

    predicted: bool [V, C], ``postprocess.predicted_classes`` of each video; none for a video without proposals.
    labels: [V, C] multi-hot. A video without labels counts and is wrong, since the authors always predict a class.
    None when no video is labelled.
    """
    predicted, labels = _checked(predicted, labels)
    equal = (predicted.astype(bool) == labels).all(axis=1) & labels.any(axis=1)
    return float(equal.mean()) if labels.any() else None


def top1_accuracy(scores: np.ndarray, labels: np.ndarray) -> Optional[float]:
    """Share of the labelled videos whose best class is one of their labels; None when no video is labelled.

    scores: [V, C] video scores, all 0 for a video without proposals, which names no class. labels: [V, C] multi-hot.
    """
    scores, labels = _checked(scores, labels)
    if not labels.any():
        return None
    hit = np.take_along_axis(labels, scores.argmax(axis=1)[:, None], axis=1)[:, 0] & scores.any(axis=1)
    return float(hit[labels.any(axis=1)].mean())


def _checked(scores: np.ndarray, labels: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels) > 0
    if scores.ndim != 2 or scores.shape != labels.shape or np.isnan(scores).any():
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must be [videos, classes], without NaN")
    return scores, labels
