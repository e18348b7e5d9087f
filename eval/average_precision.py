"""Average precision of temporal detections, for all classes and thresholds at once (ActivityNet protocol).

Per class and threshold, detections by falling score each take the free instance of their video with the highest tIoU.
That greedy rule is the only stable matching between detections (which prefer high tIoU) and instances (which prefer
high scores), so proposals and rejections (Gale and Shapley, 1962) reach it for everything in parallel.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence, Tuple

import numpy as np
import pandas as pd

PAIRS_AT_ONCE = 2_000_000  # pairs of a detection and an instance compared at once


class Columns(NamedTuple):
    """Instances or detections, as columns."""

    video: np.ndarray  # int [N]
    segment: np.ndarray  # float [N, 2], any unit of time
    label: np.ndarray  # int [N], in 0 … C - 1


def average_precision(
    truth: Columns, found: Columns, score: np.ndarray, num_class: int, tious: Sequence[float]
) -> np.ndarray:
    """Interpolated AP, float64 [len(tious), num_class], fractions; NaN for a class without instances. See ``match``."""
    _, rank = match(truth, found, score, num_class, tious)
    positives = np.bincount(truth.label, minlength=num_class)
    precision = interpolated(hits(rank, truth.label, num_class))
    with np.errstate(invalid="ignore"):
        return precision.sum(axis=2) / np.where(positives, positives, np.nan)


def match(
    truth: Columns, found: Columns, score: np.ndarray, num_class: int, tious: Sequence[float]
) -> Tuple[np.ndarray, np.ndarray]:
    """Which detection takes each instance: (order int64 [N], rank float64 [len(tious), G]).

    truth: G instances. found, score: N detections, in the same unit of time; equal scores count in the order given,
    and of equal tIoUs a detection takes the later instance, as in all evaluators of the field. Two empty segments have
    tIoU 0. order: the detections by class, then falling score. rank: place, among the detections of its class in that
    order, of the one that takes the instance; infinity where none does. Raises ValueError for shapes or labels that do
    not fit, thresholds outside (0, 1] and NaN.
    """
    tious = np.asarray(tious, dtype=np.float64)
    if not ((tious > 0) & (tious <= 1)).all():
        raise ValueError(f"tIoU thresholds {tious} are not in (0, 1]")
    for video, segment, label in (truth, found):
        if segment.shape != (len(label), 2) or len(video) != len(label) or np.isnan(segment).any():
            raise ValueError("columns do not fit, or a time is NaN")
        if not ((label >= 0) & (label < num_class)).all():
            raise ValueError(f"a label is outside 0 … {num_class - 1}")
    if len(score) != len(found.label) or np.isnan(score).any():
        raise ValueError("one score for each detection, none NaN")
    order = np.lexsort((-score, found.label))  # stable
    found = Columns(*(column[order] for column in found))
    taker = _stable_matching(truth, found, tious)
    begin = np.searchsorted(found.label, np.arange(num_class))
    return order, np.where(taker < len(order), taker - begin[truth.label], np.inf)


def hits(rank: np.ndarray, label: np.ndarray, num_class: int) -> np.ndarray:
    """The true positives of each class: float64 [T, num_class, most], rising ranks, then infinity.

    rank: float64 [T, G] as from ``match``; label: int64 [G], class of each instance.
    """
    slot = pd.Series(label).groupby(label).cumcount().to_numpy()  # instances of the class before this one
    found = np.full((len(rank), num_class, slot.max(initial=-1) + 1), np.inf)
    found[:, label, slot] = rank
    return np.sort(found, axis=2)


def interpolated(hits: np.ndarray, weight: object = 1.0) -> np.ndarray:
    """Best precision from each true positive on: float64, shape of ``hits`` [T, C, K]; 0 for an instance missed.

    weight: what a true positive counts against a false one, a number or one for each class, as [C, 1].
    """
    positive = weight * np.arange(1, hits.shape[2] + 1)
    precision = positive / (positive + hits - np.arange(hits.shape[2]))  # rank - k false positives come before
    return np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]


def pairs(
    truth_key: np.ndarray, truth: np.ndarray, found_key: np.ndarray, found: np.ndarray, least: float
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(detection, instance, tIoU) of all that have one key and tIoU >= least > 0; by detection, best first.

    truth, found: segments [G, 2] and [N, 2] in one unit of time. truth_key, found_key: int [G] and [N], e.g. the video.
    Of equal tIoUs the later instance comes first.
    """
    by_key = np.argsort(truth_key, kind="stable")
    begin = np.searchsorted(truth_key[by_key], found_key)
    count = np.searchsorted(truth_key[by_key], found_key, side="right") - begin
    total = np.cumsum(count)
    cuts = np.searchsorted(total, np.arange(PAIRS_AT_ONCE, total[-1] if len(total) else 0, PAIRS_AT_ONCE))
    parts = []
    for a, b in zip(np.r_[0, cuts], np.r_[cuts, len(count)]):
        n = count[a:b]
        d = np.repeat(np.arange(a, b), n)
        g = by_key[np.arange(n.sum()) + np.repeat(begin[a:b] - np.cumsum(n) + n, n)]
        (start, end), (start_g, end_g) = found[d].T, truth[g].T
        shared = np.minimum(end, end_g) - np.maximum(start, start_g)
        union = (end - start) + (end_g - start_g) - shared
        near = np.flatnonzero((shared > 0) & (shared >= least * union * (1 - 1e-9)))
        parts.append((d[near], g[near], shared[near] / union[near]))
    d, g, tiou = (np.concatenate(column) for column in zip(*parts))
    order = np.lexsort((-g, -tiou, d))
    return d[order], g[order], tiou[order]


def _stable_matching(truth: Columns, found: Columns, tious: np.ndarray) -> np.ndarray:
    """[T, G] the detection that takes each instance, N where none does. Detections are sorted, best first."""
    videos = 1 + max(truth.video.max(initial=0), found.video.max(initial=0))
    truth_key, found_key = (part.label * videos + part.video for part in (truth, found))
    detection, instance, tiou = pairs(truth_key, truth.segment, found_key, found.segment, tious.min())
    G, N = len(truth.label), len(found.label)
    detection, tiou = np.append(detection, -1), np.append(tiou, -1.0)  # a sentinel ends the last list
    first = np.flatnonzero(np.diff(detection, prepend=-1)[:-1] > 0)
    taker = np.full(len(tious) * G, N, dtype=np.int64)
    asked_by = np.zeros(len(tious) * G, dtype=np.int64)  # place in its list from which the taker asked
    level, at = np.divmod(np.arange(len(tious) * len(first)), max(len(first), 1))
    at = first[at]
    asker = detection[at]
    while True:  # each asker tries the next instance of its list that is still above the threshold
        open_ = (detection[at] == asker) & (tiou[at] >= tious[level])
        asker, level, at = asker[open_], level[open_], at[open_]
        if not len(asker):
            return taker.reshape(len(tious), G)
        key = level * G + instance[at]
        before, place_before = taker[key], asked_by[key]
        np.minimum.at(taker, key, asker)
        won = taker[key] == asker
        asked_by[key[won]] = at[won]
        out = won & (before < N)  # who had it before must ask on
        asker = np.concatenate([asker[~won], before[out]])
        at = np.concatenate([at[~won], place_before[out]]) + 1
        level = np.concatenate([level[~won], level[out]])
