"""Soft-NMS (Bodla et al., ICCV 2017) along time, for all classes and all videos at once.

The score of a candidate falls by a factor for every better candidate of its class that overlaps it. In logarithms,
factors are penalties that add up, equal for all classes, so they are computed once for each overlapping pair of
segments. Repeated choice of the best candidate is not needed either: a candidate above all that it overlaps can lose
no more, whatever happens elsewhere, so all such candidates are settled in one round.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

PAIRS_AT_ONCE = 4_000_000  # overlapping pairs held in memory, about 100 bytes each
METHODS = ("gaussian", "linear", "hard")
ZERO = -750.0  # exp of it is 0, and all that a candidate below it could lower is below it too


def soft_nms(
    segments: np.ndarray,
    scores: np.ndarray,
    group: Optional[np.ndarray] = None,
    method: str = "gaussian",
    sigma: float = 0.1,
    threshold: float = 0.7,
) -> np.ndarray:
    """Scores after soft-NMS, in the released convention: snippets, length e - s + 1, overlap + 1.

    segments: [M, 2] snippets. scores: [M, K] >= 0, every column (class) for itself, or [M]. group: int [M], e.g. the
    video; candidates of different groups never meet. method: "gaussian" multiplies by exp(-tIoU^2 / sigma); above
    ``threshold``, "linear" multiplies by 1 - tIoU and "hard" by 0. Returns float64 of the shape of ``scores``;
    a stable sort by falling result is the order in which the released loop keeps rows, the earlier row first among
    equal scores. Raises ValueError for bad shapes or values.
    """
    segments, scores = np.asarray(segments, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    group = np.zeros(len(segments), dtype=np.int64) if group is None else np.asarray(group)
    if segments.shape != (len(scores), 2) or scores.ndim not in (1, 2) or group.shape != (len(scores),):
        raise ValueError(f"segments {segments.shape}, scores {scores.shape}, group {group.shape} do not fit")
    if not np.isfinite(segments).all() or (segments[:, 1] < segments[:, 0]).any():
        raise ValueError("segments must be finite, with end >= start")
    if not ((scores >= 0) & (scores < np.inf)).all():
        raise ValueError("scores must be finite and not negative")
    if method not in METHODS or not sigma > 0:
        raise ValueError(f"method {method!r} of {METHODS}, sigma {sigma}")
    if not scores.size:
        return scores.copy()

    def penalty(tiou: np.ndarray) -> np.ndarray:
        if method == "gaussian":
            return tiou * tiou / sigma
        with np.errstate(divide="ignore"):
            fall = -np.log1p(-np.minimum(tiou, 1)) if method == "linear" else np.inf
        return np.where(tiou > threshold, fall, 0.0)

    order = np.lexsort((segments[:, 0], group))
    table = scores.reshape(len(scores), -1)
    with np.errstate(divide="ignore"):
        logs = np.log(table[order].T)  # [K, M]
    settled = _solve(segments[order], logs, group[order], order, penalty)
    kept = np.zeros(table.shape)
    kept[order] = np.exp(np.subtract(settled, logs, out=np.zeros_like(logs), where=logs > -np.inf)).T
    return (table * kept).reshape(scores.shape)


def _solve(segments, logs, group, rank, penalty) -> np.ndarray:
    """Choose the way: all groups at once, in two halves when that is too much, or densely. Sorted input, [K, M]."""
    (K, M), place = logs.shape, np.arange(len(rank))
    # complex numbers sort by group, then time: hi[i] is the first candidate that begins after i has ended
    hi = np.searchsorted(group + 1j * segments[:, 0], group + 1j * (segments[:, 1] + 1))
    ahead = np.maximum(hi - place - 1, 0)
    pairs = int(ahead.sum())
    one = group[0] == group[-1]
    if not one and pairs > PAIRS_AT_ONCE:
        cut = np.searchsorted(group, group[M // 2])
        cut = cut if cut else np.searchsorted(group, group[M // 2], side="right")
        halves = (slice(cut), slice(cut, None))
        return np.hstack([_solve(segments[h], logs[:, h], group[h], rank[h], penalty) for h in halves])
    settled = None
    # nanoseconds, as measured: few pairs are settled in rounds, many by M plain choices
    if pairs <= PAIRS_AT_ONCE and not (one and pairs * (200 + 30 * K) > M * (35e3 + 3.5 * K * M)):
        settled = _rounds(segments, logs.ravel(), rank, ahead, penalty, K)
    if settled is None:
        starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1], True])
        parts = [slice(a, b) for a, b in zip(starts, starts[1:])]
        settled = np.hstack([_dense(segments[x], logs[:, x], rank[x], penalty) for x in parts])
    return settled.reshape(K, M)


def _tiou(start, end, other_start, other_end) -> np.ndarray:
    overlap = np.minimum(end, other_end) - np.maximum(start, other_start) + 1
    np.maximum(overlap, 0, out=overlap)
    return overlap / ((end - start + 1) + (other_end - other_start + 1) - overlap)


def _ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, … (count[0] of them), start[1], …"""
    return np.arange(count.sum()) + np.repeat(start - np.cumsum(count) + count, count)


def _rounds(segments, logs, rank, ahead, penalty, K) -> Optional[np.ndarray]:
    """Settle the best candidates first, many at a time. logs: flat [K * M]. None: too many equal scores for it.

    Candidate k * M + i is segment i in class k. A phase takes the candidates at or above a level tau, settles each
    that stays there, in rounds over the pairs among them alone, and then lowers all that the settled ones overlap.
    """
    M, place = len(segments), np.arange(len(segments))
    a = np.repeat(place, ahead)
    b = _ranges(place + 1, ahead)
    cost = penalty(_tiou(*segments[a].T, *segments[b].T))  # [pairs], sorted by a, then b
    first = np.cumsum(ahead) - ahead
    both = np.concatenate([a, b])
    by_one = np.argsort(both.astype(np.uint16) if M < 65536 else both, kind="stable")  # 16 bits: radix sort
    other, toll = np.concatenate([b, a])[by_one], np.concatenate([cost, cost])[by_one]
    degree = np.bincount(both, minlength=M)
    begin = np.cumsum(degree) - degree

    logs = logs.copy()
    settled = np.full(len(logs), -np.inf)
    aim = max(128, len(logs) * M // max(len(both), 1))  # then one meets about one other of its phase
    step = max(1, len(logs) // 1024)
    for phase in range(len(logs) + 1):
        sample = logs[phase % step :: step]
        beyond = len(sample) - max(1, aim // step)
        tau = np.partition(sample, beyond)[beyond] if beyond > 0 else -np.inf
        active = np.flatnonzero(logs >= tau) if tau > -np.inf else np.flatnonzero(logs > -np.inf)
        if not len(active):
            return settled
        if len(active) > 16 * aim:
            return None
        i = active % M
        ahead_here = np.searchsorted(active, active + ahead[i], side="right") - np.arange(1, len(active) + 1)
        x = np.repeat(np.arange(len(active)), ahead_here)
        y = _ranges(np.arange(1, len(active) + 1), ahead_here)
        loss = cost[np.repeat(first[i] - i - 1, ahead_here) + i[y]]
        level, free = logs[active], np.ones(len(active), dtype=bool)
        while len(x):
            level_x, level_y = level[x], level[y]
            above = level_x > level_y
            tie = np.flatnonzero(level_x == level_y)
            above[tie] = rank[i[x[tie]]] < rank[i[y[tie]]]  # the first of the two in the caller's order
            high, low = np.where(above, x, y), np.where(above, y, x)
            live = np.maximum(level_x, level_y) >= tau
            free[low] = False
            won = live & free[high]
            free[:] = True
            hit, left = np.flatnonzero(won), np.flatnonzero(live & ~won)  # indices: faster than masks of few
            np.subtract.at(level, low[hit], loss[hit])
            x, y, loss = x[left], y[left], loss[left]
        done = np.flatnonzero((level >= tau) & (level > -np.inf))
        settled[active[done]] = level[done]
        i, shift = i[done], (active - i)[done]
        reach = _ranges(begin[i], degree[i])
        np.subtract.at(logs, other[reach] + np.repeat(shift, degree[i]), toll[reach])
        logs[active[done]] = -np.inf
    raise AssertionError("a phase settles at least its best candidate")


def _dense(segments, logs, rank, penalty) -> np.ndarray:
    """One group where nearly all overlap: choose the best of every class at once, M times. logs: [K, M]."""
    K, M = logs.shape
    caller = np.argsort(rank)
    row, left, logs = np.arange(K), np.tile(caller, (K, 1)), logs[:, caller]
    start, end = segments[left, 0], segments[left, 1]
    settled = np.full((K, M), -np.inf)
    for t in range(M):
        if t % min(256, max(16, left.shape[1] // 8)) == 0:  # drop what is settled
            alive = logs > ZERO
            keep = np.argsort(~alive, axis=1, kind="stable")[:, : alive.sum(axis=1).max()]
            logs, left, start, end = (np.take_along_axis(z, keep, axis=1) for z in (logs, left, start, end))
            if not logs.size:
                break
        best = logs.argmax(axis=1)
        chosen = left[row, best]
        settled[row, chosen] = np.maximum(settled[row, chosen], logs[row, best])
        logs -= penalty(_tiou(segments[chosen, :1], segments[chosen, 1:], start, end))
        logs[row, best] = -np.inf
    return settled
