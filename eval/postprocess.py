"""From the network's outputs to detections: fusion of scores, soft-NMS, and the filter of ambiguous intervals."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from eval.detections import Detections
from eval.soft_nms import soft_nms


class Candidates(NamedTuple):
    """The proposals of one video, scored in its predicted classes."""

    segments: np.ndarray  # float64 [M, 2], snippets
    scores: np.ndarray  # float64 [M, K]
    labels: np.ndarray  # int64 [K]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64."""
    logits = np.asarray(logits, dtype=np.float64)
    power = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return power / power.sum(axis=-1, keepdims=True)


def fuse(s_base: np.ndarray, attention: np.ndarray, s_pc: Optional[np.ndarray] = None) -> Tuple[np.ndarray, np.ndarray]:
    """Scores of the M proposals and of their video in the C classes: (float64 [M, C], float64 [C]).

    s_base: [M, C + 1] logits, background last. attention, s_pc: [M] in [0, 1]; s_pc is None for a model that was
    trained without the PC loss. A proposal scores softmax(s_base) A s_pc; the video, the mean of softmax(s_base)
    weighted with A, and 0 when it has no proposal. Raises ValueError for shapes that do not fit.
    """
    if s_base.ndim != 2 or any(x is not None and x.shape != s_base.shape[:1] for x in (attention, s_pc)):
        raise ValueError("s_base must be [M, C + 1], attention and s_pc [M]")
    attention = np.asarray(attention, dtype=np.float64)
    attended = softmax(s_base)[:, :-1] * attention[:, None]
    video_score = attended.sum(axis=0) / (attention.sum() + 1e-6)
    return attended if s_pc is None else attended * np.asarray(s_pc, dtype=np.float64)[:, None], video_score


def predicted_classes(video_score: np.ndarray, threshold: float = 0.25) -> np.ndarray:
    """Classes whose video score reaches the threshold, else the best one: int64 [K], K >= 1."""
    above = np.flatnonzero(video_score >= threshold)
    return above if len(above) else video_score.argmax(keepdims=True)


def candidates(
    s_base: np.ndarray,
    attention: np.ndarray,
    s_pc: Optional[np.ndarray],
    segments: np.ndarray,
    threshold: float = 0.25,
) -> Tuple[Candidates, np.ndarray]:
    """One video's proposals in its predicted classes, and its video score [C]; shapes as in ``fuse``.

    segments: [M, 2] snippets.
    """
    scores, video_score = fuse(s_base, attention, s_pc)
    labels = predicted_classes(video_score, threshold)
    return Candidates(np.asarray(segments, dtype=np.float64), scores[:, labels], labels), video_score


def ambiguous(segments: np.ndarray, intervals_s: np.ndarray, snippets_per_second: float) -> np.ndarray:
    """bool [N]: detections that share a whole snippet with an interval.

    segments: [N, 2] snippets, taken as integers int(s) … int(e) - 1. intervals_s: [K, 2] seconds of the same video,
    taken as round(a * rate) … round(b * rate) - 1.
    """
    start, end = np.trunc(np.asarray(segments, dtype=np.float64).reshape(-1, 2)).T
    first, last = np.round(np.asarray(intervals_s, dtype=np.float64).reshape(-1, 2) * snippets_per_second).T
    return (np.maximum(start[:, None], first) < np.minimum(end[:, None], last)).any(axis=1)


def detect(
    classes: Sequence[str],
    videos: Sequence[str],
    found: Sequence[Tuple[int, Candidates]],
    ambiguous_s: Mapping[str, np.ndarray],
    snippets_per_second: float,
    sigma: float = 0.1,
) -> Detections:
    """Detections of many videos: Gaussian soft-NMS per video and class, all at once, then the ambiguous filter.

    found: (index into videos, its candidates), each video at most once. ambiguous_s: video -> [K, 2] seconds. A
    video's detections come by falling score; times are seconds rounded to the microsecond.
    """
    found = [(v, c) for v, c in found if len(c.segments)]
    size = np.asarray([len(c.segments) for _, c in found], dtype=np.int64)
    ends = np.cumsum(size)
    segments = np.concatenate([c.segments for _, c in found]) if found else np.zeros((0, 2))
    scores = np.full((len(segments), max((len(c.labels) for _, c in found), default=0)), -1.0)
    labels = np.zeros(scores.shape, dtype=np.int64)
    hidden = np.zeros(len(segments), dtype=bool)
    for (v, c), stop in zip(found, ends):
        rows = slice(stop - len(c.segments), stop)
        scores[rows, : len(c.labels)], labels[rows, : len(c.labels)] = c.scores, c.labels
        if videos[v] in ambiguous_s:
            hidden[rows] = ambiguous(c.segments, ambiguous_s[videos[v]], snippets_per_second)
    video = np.repeat(np.asarray([v for v, _ in found], dtype=np.int64), size)
    kept = soft_nms(segments, np.maximum(scores, 0), video, sigma=sigma)
    row, column = np.nonzero((scores >= 0) & ~hidden[:, None])
    order = np.lexsort((-kept[row, column], video[row]))
    row, column = row[order], column[order]
    segment_s = np.round(segments[row] / snippets_per_second, 6)
    return Detections(tuple(classes), tuple(videos), video[row], segment_s, labels[row, column], kept[row, column])
