"""From the network's outputs to detections: fusion of scores, soft-NMS, and the filter of ambiguous intervals."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from utils.segments import Segments

TABLE_UP_TO = 1000  # proposals of a video whose overlaps are computed at once; of more, row by row is faster


class Candidates(NamedTuple):
    """The proposals of one video, scored in its predicted classes."""

    segments: np.ndarray  # float64 [M, 2], snippets
    scores: np.ndarray  # float64 [M, K]
    labels: np.ndarray  # int64 [K]


def fuse(s_base: np.ndarray, attention: np.ndarray, s_pc: Optional[np.ndarray] = None) -> Tuple[np.ndarray, np.ndarray]:
    """Scores of the M proposals and of their video in the C classes: (float64 [M, C], float64 [C]).

    s_base: [M, C + 1] logits, background last. attention, s_pc: [M] in [0, 1]; s_pc is None for a model that was
    trained without the PC loss. A proposal scores softmax(s_base) A s_pc; the video, the mean of softmax(s_base)
    weighted with A, and 0 when it has no proposal. Raises ValueError for shapes that do not fit.
    """
    if s_base.ndim != 2 or any(x is not None and x.shape != s_base.shape[:1] for x in (attention, s_pc)):
        raise ValueError("s_base must be [M, C + 1], attention and s_pc [M]")
    s_base, attention = s_base.astype(np.float64), attention.astype(np.float64)
    power = np.exp(s_base - s_base.max(axis=1, keepdims=True))
    attended = (power / power.sum(axis=1, keepdims=True))[:, :-1] * attention[:, None]
    video_score = attended.sum(axis=0) / (attention.sum() + 1e-6)
    return attended if s_pc is None else attended * s_pc[:, None], video_score


def predicted_classes(video_score: np.ndarray, threshold: float = 0.25) -> np.ndarray:
    """Classes whose video score reaches the threshold, else the best one: int64 [K], K >= 1."""
    above = np.flatnonzero(video_score >= threshold)
    return above if len(above) else video_score.argmax(keepdims=True)


def candidates(
    s_base: np.ndarray, attention: np.ndarray, s_pc: Optional[np.ndarray], segments: np.ndarray, threshold: float = 0.25
) -> Tuple[Candidates, np.ndarray]:
    """A video's proposals ``segments`` in its predicted classes, and its video score [C]; arguments as of ``fuse``."""
    scores, video_score = fuse(s_base, attention, s_pc)
    labels = predicted_classes(video_score, threshold)
    return Candidates(np.asarray(segments, dtype=np.float64), scores[:, labels], labels), video_score


def soft_nms(
    segments: np.ndarray, scores: np.ndarray, method: str = "gaussian", sigma: float = 0.1, threshold: float = 0.7
) -> np.ndarray:
    """Scores [M, K] of one video's proposals after soft-NMS (Bodla et al., ICCV 2017), each class for itself.

    segments: [M, 2] snippets. scores: [M, K] >= 0. The best proposal of a class is settled, the others of that class
    are multiplied by a factor of their tIoU with it, and so on; of equal scores the earlier row comes first. As in
    the released code, a length is e - s + 1 and an overlap + 1. Factors: "gaussian" exp(-tIoU^2 / sigma); above
    ``threshold``, "linear" 1 - tIoU and "hard" 0. Raises ValueError for bad shapes or values.
    """
    segments, scores = np.asarray(segments, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or segments.shape != (len(scores), 2):
        raise ValueError(f"segments {segments.shape} and scores {scores.shape} must be [M, 2] and [M, K]")
    if not ((segments[:, 1] >= segments[:, 0]).all() and ((scores >= 0) & (scores < np.inf)).all()):
        raise ValueError("a segment ends before its start, or a score is negative or not finite")
    start, end = segments[:, 0], segments[:, 1] + 1

    def factors(rows: np.ndarray) -> np.ndarray:
        """[len(rows), M] what choosing each of the rows does to the score of every proposal."""
        overlap = np.maximum(np.minimum(end[rows, None], end) - np.maximum(start[rows, None], start), 0)
        tiou = overlap / ((end - start)[rows, None] + (end - start) - overlap)
        if method == "gaussian":
            return np.exp(-tiou * tiou / sigma)
        return np.where(tiou > threshold, np.maximum(1 - tiou, 0) if method == "linear" else 0.0, 1.0)

    (M, K), every = scores.shape, np.arange(scores.shape[1])
    table = factors(np.arange(M)) if M <= TABLE_UP_TO else None
    left, kept = scores.T.copy(), np.zeros((K, M))
    for _ in range(M if K else 0):
        best = left.argmax(axis=1)
        kept[every, best] = np.maximum(kept[every, best], left[every, best])  # a settled row is left at -1 … -0
        left *= factors(best) if table is None else table[best]
        left[every, best] = -1.0
    return kept.T


def ambiguous(segments: np.ndarray, intervals_s: np.ndarray, rate: float) -> np.ndarray:
    """bool [N]: detections that share a whole snippet with an interval.

    segments: [N, 2] snippets, taken as integers int(s) … int(e) - 1. intervals_s: [K, 2] seconds of the same video,
    taken as round(a * rate) … round(b * rate) - 1. rate: snippets per second.
    """
    start, end = np.trunc(np.asarray(segments, dtype=np.float64).reshape(-1, 2)).T
    first, last = np.round(np.asarray(intervals_s, dtype=np.float64).reshape(-1, 2) * rate).T
    return (np.maximum(start[:, None], first) < np.minimum(end[:, None], last)).any(axis=1)


def detect(
    classes: Sequence[str],
    videos: Sequence[str],
    found: Sequence[Tuple[int, Candidates]],
    ambiguous_s: Mapping[str, np.ndarray],
    rate: np.ndarray,
    sigma: float = 0.1,
) -> Segments:
    """Detections of many videos: Gaussian soft-NMS per video and class, then the filter of ambiguous intervals.

    found: (index into videos, its candidates), each video at most once. ambiguous_s: video -> [K, 2] seconds. rate:
    float64 [V], snippets per second of each video. Detections come video by video, by falling score; times are
    seconds rounded to the microsecond.
    """
    none = np.zeros(0, dtype=np.int64)
    parts = [(none, np.zeros((0, 2)), none, np.zeros(0))]
    for v, (segments, scores, labels) in sorted(found, key=lambda pair: pair[0]):
        hidden = ambiguous(segments, ambiguous_s.get(videos[v], ()), rate[v])
        kept = soft_nms(segments, scores, sigma=sigma)[~hidden]
        row, column = np.divmod(np.argsort(-kept, axis=None, kind="stable"), len(labels))
        segment_s = np.round(segments[~hidden][row] / rate[v], 6)
        parts.append((np.full(len(row), v), segment_s, labels[column], kept[row, column]))
    return Segments(tuple(classes), tuple(videos), *map(np.concatenate, zip(*parts)))
