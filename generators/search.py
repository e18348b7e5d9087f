"""LAC's seeds and its optimal sequence search (Lee & Byun, ICCV 2021): from points to a label for every snippet.

T snippets of one video, C action classes. ``fused`` [T, C+1] are the network's scores in [0, 1], background last.
"""

from __future__ import annotations

from typing import List, NamedTuple, Tuple

import numpy as np

from generators.shared import contrast, find_runs, prefix_sums

BACKGROUND_FROM = 0.95  # a snippet with so much background is a background seed
ACTION_UP_TO = 0.1  # a snippet next to an action seed with so little background becomes one
BUDGET = 25  # hypotheses that go on
FLOOR = 0.1  # a hypothesis of lower score goes on only as the best one


def background_seeds(background: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """bool [T]: the pseudo-background of a video with points (LAC, 2021, spec 2.3).

    background float [T], the background column of ``fused``; labelled bool [T]. In every gap between labelled snippets
    all from the first to the last snippet that reaches 0.95, or else the best one; before the first point from the
    video's start, after the last to its end. Without a point or a gap nothing is background.
    """
    seeds = np.zeros(len(background), bool)
    gaps = find_runs(~labelled[None])
    if not labelled.any():
        return seeds
    for start, end in zip(gaps.start, gaps.end):
        gap = background[start:end]
        sure = np.flatnonzero(gap >= BACKGROUND_FROM)
        first, last = (sure[0], sure[-1]) if len(sure) else (gap.argmax(), gap.argmax())
        seeds[start if start == 0 else start + first : end if end == len(seeds) else start + last + 1] = True
    return seeds


def action_seeds(background: np.ndarray, points: np.ndarray, is_background: np.ndarray) -> np.ndarray:
    """bool [T, C]: ``points`` bool [T, C], extended to both sides over snippets with little background (spec 2.3).

    background float [T]; is_background bool [T] of ``background_seeds``. An added snippet has all classes of the point
    that it was reached from; a point keeps its own and ends the extension of another.
    """
    seeds = points.copy()
    labelled = points.any(axis=1)
    free = (background <= ACTION_UP_TO) & ~is_background & ~labelled
    for point in np.flatnonzero(labelled):
        for step in (-1, 1):
            t = point + step
            while 0 <= t < len(seeds) and free[t]:
                seeds[t] = points[point]
                t += step
    return seeds


class Transcript(NamedTuple):
    """The alternating parts of one class in a video: their labels and what is fixed of each."""

    labels: np.ndarray  # int64 [n], 0 background, 1 action
    ranges: np.ndarray  # int64 [n + 1, 2], first and last snippet of the fixed part; the last row is T, T


def transcript(action: np.ndarray, background: np.ndarray) -> Transcript:
    """The transcript of one class from its seeds bool [T] and those of all else bool [T] (no snippet is both).

    The gap between two fixed parts of one kind belongs to them. The outer parts reach the ends of the video.
    """
    known = np.flatnonzero(action | background)
    label = action[known].astype(np.int64)
    turns = np.flatnonzero(np.diff(label)) + 1
    first, last = np.append(0, turns), np.append(turns, len(known)) - 1
    ranges = np.stack([known[first], known[last]], axis=1)
    labels = label[first]
    ranges[0, 0], ranges[-1, 1] = 0, len(action) - 1
    return Transcript(labels, np.concatenate([ranges, np.full((1, 2), len(action))]))


class _Beam(NamedTuple):
    """Hypotheses that all stand in the same part."""

    score: np.ndarray  # float64 [h] mean contrast of the finished parts, +inf before the first
    borders: np.ndarray  # int64 [h, i + 1], where the parts begin that are finished or open, 0 first


def _advance(beam: _Beam, scores: np.ndarray, first: int, budget: int) -> _Beam:
    """Close the open part of every hypothesis at one of m snippets, pruning after each as the beam search does.

    scores [h, m]: what hypothesis h becomes by closing at snippet ``first`` + column; the last column is forced.
    """
    kept_score, kept_parent = beam.score, np.arange(len(beam.score))
    kept_at = np.full(len(beam.score), -1)  # column at which it was closed, -1: still open
    best_new = scores.max(axis=0).tolist()
    cut, last = -np.inf, scores.shape[1] - 1
    for column, best in enumerate(best_new):
        if best < cut and column < last:
            continue  # nothing that closes here would be kept
        still_open = kept_at < 0
        parents = kept_parent[still_open]
        stays = slice(None) if column < last else ~still_open
        kept_score = np.concatenate([kept_score[stays], scores[parents, column]])
        kept_parent = np.concatenate([kept_parent[stays], parents])
        kept_at = np.concatenate([kept_at[stays], np.full(len(parents), column)])
        cut = min(FLOOR, kept_score.max())
        keep = kept_score >= cut
        if np.count_nonzero(keep) > budget:
            cut = np.partition(kept_score, -budget)[-budget]
            keep = kept_score >= cut
        kept_score, kept_parent, kept_at = kept_score[keep], kept_parent[keep], kept_at[keep]
    return _Beam(kept_score, np.column_stack([beam.borders[kept_parent], first + kept_at]))


def best_sequence(x: np.ndarray, parts: Transcript, budget: int = BUDGET) -> Tuple[np.ndarray, float]:
    """The 0/1 sequence of one class, bool [T], and its score: beam search over the borders (LAC, 2021, spec 2.4).

    x float [T] in [0, 1], the class's fused score; an action is scored on x, background on 1 - x. A hypothesis is the
    mean contrast of its finished parts; after every snippet those below 0.1 (but the best) and those after the best
    ``budget`` (but ties) end. Borders move inside gaps between fixed parts only, so all of a gap is scored at once.
    """
    sums = prefix_sums(np.stack([1 - x, x]).astype(np.float64))
    beam = _Beam(np.array([np.inf]), np.zeros((1, 1), np.int64))
    for i, label in enumerate(parts.labels[:-1]):
        ends = np.arange(parts.ranges[i, 1] + 1, parts.ranges[i + 1, 0] + 1)
        start, end = np.repeat(beam.borders[:, -1], len(ends)), np.tile(ends, len(beam.score))
        closed = contrast(sums, label, start, end).reshape(len(beam.score), len(ends))
        done = i * beam.score if i else np.zeros(1)  # before the first end the score is +inf and counts nothing
        beam = _advance(beam, (done[:, None] + closed) / (i + 1), ends[0], budget)
    begins = beam.borders
    ends = np.column_stack([begins[:, 1:], np.full(len(begins), len(x))])
    rows = np.broadcast_to(parts.labels, begins.shape)
    final = contrast(sums, rows.ravel(), begins.ravel(), ends.ravel()).reshape(begins.shape).mean(axis=1)
    best = len(final) - 1 - final[::-1].argmax()
    return np.repeat(parts.labels > 0, (ends - begins)[best]), float(final[best])


def search_labels(fused: np.ndarray, points: np.ndarray, budget: int = BUDGET) -> Tuple[np.ndarray, float]:
    """Dense labels bool [T, C] of one video and the mean score over the classes searched (0 where there is none).

    fused [T, C+1] without dropout; points bool [T, C]. A class without a point has no snippet; a video of nothing but
    points has just these.
    """
    background = fused[:, -1]
    is_background = background_seeds(background, points.any(axis=1))
    seeds = action_seeds(background, points, is_background)
    dense = np.zeros_like(points)
    scores: List[float] = []
    others = is_background | seeds.any(axis=1)
    for c in np.flatnonzero(seeds.any(axis=0)):
        parts = transcript(seeds[:, c], others & ~seeds[:, c])
        dense[:, c], score = best_sequence(fused[:, c], parts, budget)
        scores.append(score)
    return dense, float(np.mean(scores)) if scores else 0.0
