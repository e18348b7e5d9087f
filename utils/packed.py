"""Packed rows: the proposals of all videos of a batch one after the other, and what can be said of each video.

Nothing here waits for the device: shapes follow from ``counts`` (host) and N alone.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 20  # most elements of one block wherever pairs, or rows of features, are walked in blocks


class Outputs(NamedTuple):
    """What the network says of each proposal."""

    s_base: Tensor  # [N, C+1] logits, the last is background
    attention: Tensor  # [N] A, in (0, 1)
    s_pc: Tensor  # [N] process consistency, in (0, 1)
    f_prop: Tensor  # [N, 2D]


class Batch(NamedTuple):
    """What is known of the videos of a batch and of their N = sum(counts) proposals."""

    proposals: Tensor  # [N, 2] start, end in snippets
    video: Tensor  # int64 [N], 0..B-1, never falling
    counts: Tuple[int, ...]  # proposals per video, on the host, each at least 1
    labels: Tensor  # [B, C] multi-hot
    pseudo_label: Tensor  # int64 [B], Eq. (7)
    confidence: Tensor  # int64 [B]: 0 none, 1 moderate, 2 high
    names: Tuple[str, ...] = ()  # of the videos, for messages


def expect(counts: Optional[Sequence[int]] = None, **named: Tuple[Tensor, str]) -> None:
    """Raise ValueError unless every tensor has the axes it is said to have and equal names are equal sizes.

    ``expect(counts, scores=(scores, "N K"), labels=(labels, "B K"))``: N and B come from ``counts`` where it is
    given; the axis "2" is two.
    """
    sizes = {"2": 2}
    if counts is not None:
        if min(counts, default=0) < 1:
            raise ValueError(f"counts must hold at least one proposal for every video, not {list(counts)}")
        sizes.update(N=sum(counts), B=len(counts))
    for name, (tensor, axes) in named.items():
        names = axes.split()
        if tensor.ndim != len(names) or any(sizes.setdefault(a, n) != n for a, n in zip(names, tensor.shape)):
            known = ", ".join(a if a == "2" or a not in sizes else f"{a}={sizes[a]}" for a in names)
            raise ValueError(f"{name} has shape {list(tensor.shape)}, expected [{known}]")


def segment_sum(x: Tensor, segment: Tensor, segments: int) -> Tensor:
    """[N, ...] rows and their segment int64 [N] -> their sums [segments, ...]; 0 where there is no row."""
    return x.new_zeros((segments, *x.shape[1:])).index_add(0, segment, x)


def segment_mean(x: Tensor, segment: Tensor, segments: int) -> Tensor:
    """[N, ...] rows and their segment int64 [N] -> their means [segments, ...]; 0 where there is no row."""
    size = segment_sum(x.new_ones(len(x)), segment, segments).clamp(min=1)
    return segment_sum(x, segment, segments) / size.reshape(-1, *[1] * (x.ndim - 1))


def first_rows(video: Tensor, videos: int) -> Tensor:
    """int64 [B]: the row at which each video's proposals begin."""
    size = segment_sum(torch.ones_like(video), video, videos)
    return size.cumsum(0) - size


def pad(x: Tensor, video: Tensor, counts: Sequence[int], fill: float) -> Tensor:
    """[N, ...] packed rows -> [B, max(counts), ...], ``fill`` after the last proposal of each video."""
    place = torch.arange(len(x), device=x.device) - first_rows(video, len(counts)).index_select(0, video)
    longest = max(counts)
    padded = x.new_full((len(counts) * longest, *x.shape[1:]), fill)
    return padded.index_copy(0, video * longest + place, x).reshape(len(counts), longest, *x.shape[1:])


def segment_max(x: Tensor, video: Tensor, counts: Sequence[int]) -> Tensor:
    """[N, ...] packed rows -> the largest of each video [B, ...]."""
    return pad(x, video, counts, float("-inf")).amax(1)


def distance_to_mean(f: Tensor, group: Tensor, measured: Tensor, groups: int) -> Tensor:
    """||f_i - m_g||_2 with m_g the mean of the rows of group g, and every row measured from one or more groups.

    f [N, W], the group to whose mean each row belongs int64 [N], the groups from which it is measured int64 [R, N] ->
    [R, N]. The last group is nobody's: its mean is 0 and takes no gradient.
    """
    expect(f=(f, "N W"), group=(group, "N"), measured=(measured, "R N"))
    return _DistanceToMean.apply(f, group, measured, groups)


class _DistanceToMean(torch.autograd.Function):
    """By hand and in blocks of rows: autograd would fill and keep several [N, W] tensors for it."""

    @staticmethod
    def forward(ctx, f: Tensor, group: Tensor, measured: Tensor, groups: int) -> Tensor:
        size = segment_sum(f.new_ones(len(f)), group, groups).clamp(min=1)[:, None]
        mean = segment_sum(f, group, groups).div_(size)
        mean[-1].zero_()
        distance = torch.empty_like(measured, dtype=f.dtype)
        for rows in _blocks(f):
            for d, g in zip(distance[:, rows], measured[:, rows]):
                torch.linalg.vector_norm(f[rows] - mean.index_select(0, g), dim=1, out=d)
        ctx.save_for_backward(f, group, measured, size, mean, distance)
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tuple:
        f, group, measured, size, mean, distance = ctx.saved_tensors
        pull = (grad / distance).masked_fill_(distance == 0, 0)  # the norm has no slope at 0
        grad_f, grad_mean = torch.zeros_like(f), torch.zeros_like(mean)
        for rows in _blocks(f):
            for p, g in zip(pull[:, rows], measured[:, rows]):
                part = (f[rows] - mean.index_select(0, g)).mul_(p[:, None])
                grad_mean.index_add_(0, g, part, alpha=-1)
                grad_f[rows].add_(part)
        grad_mean.div_(size)[-1].zero_()
        for rows in _blocks(f):
            grad_f[rows].add_(grad_mean.index_select(0, group[rows]))
        return grad_f, None, None, None


def _blocks(f: Tensor) -> Sequence[slice]:
    """Slices over the rows of [N, W] of at most BLOCK elements each."""
    rows = max(1, BLOCK // max(1, f.shape[1]))
    return [slice(first, first + rows) for first in range(0, len(f), rows)]
