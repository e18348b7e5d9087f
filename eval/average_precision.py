"""Average precision of temporal detections, for all classes and thresholds at once (ActivityNet protocol).

Per class and threshold, detections by falling score each take the free ground truth of their video with the highest
tIoU. That greedy rule is the only stable matching between detections (which prefer high tIoU) and ground truth (which
prefers high scores), so proposals and rejections (Gale and Shapley, 1962) reach it for everything in parallel.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence, Tuple

import numpy as np

PAIRS_AT_ONCE = 2_000_000  # pairs of a detection and a ground truth compared at once


class Segments(NamedTuple):
    """Columns of ground truth or detections."""

    video: np.ndarray  # int [N]
    segment: np.ndarray  # float [N, 2], any unit of time
    label: np.ndarray  # int [N], in 0 … C - 1


def average_precision(
    truth: Segments, found: Segments, score: np.ndarray, num_class: int, tious: Sequence[float]
) -> np.ndarray:
    """Interpolated AP, float64 [len(tious), num_class], fractions; NaN for a class without ground truth.

    truth: G instances. found, score: N detections, in the same unit of time; equal scores count in the order given,
    equal tIoUs go to the later ground truth, as in all evaluators of the field. Two empty segments have tIoU 0. Raises ValueError for shapes or labels
    that do not fit, thresholds outside (0, 1] and NaN.
    """
    tious = np.asarray(tious, dtype=np.float64)
    if tious.ndim != 1 or not ((tious > 0) & (tious <= 1)).all():
        raise ValueError(f"tIoU thresholds {tious} are not in (0, 1]")
    for name, part in (("truth", truth), ("found", found)):
        n = len(part.label)
        if part.segment.shape != (n, 2) or part.video.shape != (n,) or np.isnan(part.segment).any():
            raise ValueError(f"{name}: shapes do not fit, or a time is NaN")
        if n and not (0 <= part.label.min() and part.label.max() < num_class):
            raise ValueError(f"{name}: a label is outside 0 … {num_class - 1}")
    if score.shape != found.label.shape or np.isnan(score).any():
        raise ValueError("one score for each detection, none NaN")
    positives = np.bincount(truth.label, minlength=num_class)
    if not len(tious) or not len(truth.label):
        return np.full((len(tious), num_class), np.nan)

    order = np.lexsort((-score, found.label))  # by class, then falling score; stable
    found = Segments(*(column[order] for column in found))
    taker = _match(truth, found, tious)  # [T, G], position in this order
    begin = np.searchsorted(found.label, np.arange(num_class))
    rank = taker - begin[truth.label]
    # rank of the k-th true positive of each class: precision there is (k + 1) / (rank + 1), infinity when missed
    place = np.lexsort((truth.label,))
    slot = np.empty(len(place), dtype=np.int64)
    slot[place] = np.arange(len(place)) - (np.cumsum(positives) - positives)[truth.label[place]]
    hits = np.full((len(tious), num_class, positives.max()), np.inf)
    hits[:, truth.label, slot] = np.where(taker < len(order), rank, np.inf)
    hits.sort(axis=2)
    precision = np.arange(1, hits.shape[2] + 1) / (hits + 1)
    best_from_here = np.maximum.accumulate(precision[:, :, ::-1], axis=2)
    with np.errstate(invalid="ignore"):
        return best_from_here.sum(axis=2) / np.where(positives, positives, np.nan)


def _match(truth: Segments, found: Segments, tious: np.ndarray) -> np.ndarray:
    """[T, G] the detection that takes each ground truth, N where none does. Detections are sorted, best first."""
    detection, instance, tiou = _pairs(truth, found, tious.min())
    G, N = len(truth.label), len(found.label)
    detection, tiou = np.append(detection, -1), np.append(tiou, -1.0)  # a sentinel ends the last list
    first = np.flatnonzero(np.diff(detection, prepend=-1)[:-1] > 0)
    taker = np.full(len(tious) * G, N, dtype=np.int64)
    asked_by = np.zeros(len(tious) * G, dtype=np.int64)  # place in its list from which the taker asked
    level, at = np.divmod(np.arange(len(tious) * len(first)), max(len(first), 1))
    at = first[at]
    asker = detection[at]
    while True:  # each asker tries the next ground truth of its list that is still above the threshold
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


def _pairs(truth: Segments, found: Segments, least: float) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(detection, ground truth, tIoU) for all of one video and class with tIoU >= least, by detection, best first."""
    videos = 1 + max(truth.video.max(initial=0), found.video.max(initial=0))
    by_key = np.argsort(truth.label * videos + truth.video, kind="stable")
    keys = (truth.label * videos + truth.video)[by_key]
    wanted = found.label * videos + found.video
    begin = np.searchsorted(keys, wanted)
    count = np.searchsorted(keys, wanted, side="right") - begin
    total = np.cumsum(count)
    cuts = np.searchsorted(total, np.arange(PAIRS_AT_ONCE, total[-1] if len(total) else 0, PAIRS_AT_ONCE))
    parts = []
    for a, b in zip(np.r_[0, cuts], np.r_[cuts, len(count)]):
        n = count[a:b]
        d = np.repeat(np.arange(a, b), n)
        g = by_key[np.arange(n.sum()) + np.repeat(begin[a:b] - np.cumsum(n) + n, n)]
        (start, end), (start_g, end_g) = found.segment[d].T, truth.segment[g].T
        shared = np.minimum(end, end_g) - np.maximum(start, start_g)
        union = (end - start) + (end_g - start_g) - shared
        near = np.flatnonzero((shared > 0) & (shared >= least * union * (1 - 1e-9)))
        d, g, tiou = d[near], g[near], shared[near] / union[near]
        parts.append((d, g, tiou))
    d, g, tiou = (np.concatenate(column) for column in zip(*parts))
    order = np.lexsort((-g, -tiou, d))
    return d[order], g[order], tiou[order]
