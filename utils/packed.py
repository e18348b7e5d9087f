"""Packed rows: the proposals of all videos of a batch one after the other, and what can be said of each video.

Nothing here waits for the device: shapes follow from ``Packing.counts`` (host) and the number of rows alone.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 20  # pairs of proposals that are compared at once
Outputs = Dict[str, Tensor]  # what the network says of each proposal: s_base, attention, s_pc, f_prop (model.py)


class Packing(NamedTuple):
    """Which of N = sum(counts) rows belong to which of B videos; made once, on the host (``pack``).

    Behind the N rows are K draws of the row that pads a batch, which stand for all that pad it (losses.py): R = N + B K
    rows, in which each video has its own and after those of all videos the K draws again, B times.
    """

    counts: Tuple[int, ...]  # rows of each video, each at least 1
    video: Tensor  # int64 [N], 0..B-1, never falling
    slot: Tensor  # int64 [N], place of each row in [B * max(counts)] padded rows
    first: Tensor  # int64 [B], the row at which each video begins
    size: Tensor  # int64 [B], counts on the device
    padded_row: Tensor  # int64 [R], 0..N+K-1
    padded_video: Tensor  # int64 [R]
    padded_weight: Tensor  # float64 [R]: 1, and for a video's draws together as many as pad it

    @property
    def videos(self) -> int:
        return len(self.counts)

    @property
    def draws(self) -> int:
        return (len(self.padded_row) - len(self.video)) // self.videos


class Batch(NamedTuple):
    """What is known of the videos of a batch and of their N proposals."""

    proposals: Tensor  # float32 [N, 2] start, end in snippets
    packing: Packing
    labels: Tensor  # float32 [B, C] multi-hot
    pseudo_label: Tensor  # int64 [B], Eq. (7)
    confidence: Tensor  # int64 [B]: 0 none, 1 moderate, 2 high
    names: Tuple[str, ...] = ()  # of the videos, for messages


def pack(counts: Tuple[int, ...], draws: int = 0) -> Packing:
    """The packing of videos with these numbers of rows, on the CPU. ValueError unless each is at least 1.

    draws: K, how many draws of the row that pads a batch follow after the rows.
    """
    if min(counts, default=0) < 1:
        raise ValueError(f"every video needs at least one proposal, not {list(counts)}")
    size, videos = np.asarray(counts, dtype=np.int64), np.arange(len(counts))
    first, video, rows = np.cumsum(size) - size, np.repeat(videos, size), np.arange(size.sum())
    slot = rows - first[video] + video * size.max()
    row = np.concatenate([rows, np.tile(np.arange(len(rows), len(rows) + draws), len(size))])
    weight = np.concatenate([np.ones(len(rows)), np.repeat((size.max() - size) / max(draws, 1), draws)])
    padded = (row, np.concatenate([video, np.repeat(videos, draws)]), weight)
    return Packing(tuple(counts), *map(torch.from_numpy, (video, slot, first, size, *padded)))


def part(buffer: Tensor, tensors: Sequence[Tensor]) -> List[Tensor]:
    """``buffer`` (uint8) cut into tensors of these types and shapes, each from a multiple of 8 bytes on."""
    sizes = [x.numel() * x.element_size() for x in tensors]
    parts = buffer.split([-(-size // 8) * 8 for size in sizes])
    return [p[:size].view(x.dtype).view(x.shape) for p, size, x in zip(parts, sizes, tensors)]


def join(tensors: Sequence[Tensor], pinned: bool = False) -> Tensor:
    """The bytes of these CPU tensors in one buffer, from which ``part`` gets them back."""
    sizes = (x.numel() * x.element_size() for x in tensors)
    buffer = torch.empty(sum(-(-size // 8) * 8 for size in sizes), dtype=torch.uint8, pin_memory=pinned)
    for place, x in zip(part(buffer, tensors), tensors):
        place.copy_(x)
    return buffer


def send(tensors: Sequence[Tensor], device: torch.device) -> List[Tensor]:
    """These CPU tensors on the device, by one copy that the host does not wait for."""
    if device.type == "cpu":
        return list(tensors)
    return part(join(tensors, device.type == "cuda").to(device, non_blocking=True), tensors)


def expect(packing: Optional[Packing] = None, **named: Tuple[Tensor, str]) -> None:
    """Raise ValueError unless every tensor has the axes it is said to have and equal names are equal sizes.

    ``expect(packing, scores=(scores, "N K"), labels=(labels, "B K"))``: N and B come from ``packing`` where it is
    given, and N+K, with the draws behind the N rows; the axis "2" is two.
    """
    sizes = {"2": 2}
    if packing is not None:
        rows = len(packing.video)
        sizes.update({"N": rows, "B": packing.videos, "N+K": rows + packing.draws})
    for name, (tensor, axes) in named.items():
        names = axes.split()
        if tensor.ndim != len(names) or any(sizes.setdefault(a, n) != n for a, n in zip(names, tensor.shape)):
            known = ", ".join(a if a == "2" or a not in sizes else f"{a}={sizes[a]}" for a in names)
            raise ValueError(f"{name} has shape {list(tensor.shape)}, expected [{known}]")


def group_sum(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """[N, ...] rows and the group of each, int64 [N] -> their sums [groups, ...]; 0 where there is no row."""
    return x.new_zeros((groups, *x.shape[1:])).index_add_(0, group, x)


def video_mean(x: Tensor, packing: Packing) -> Tensor:
    """[N, ...] packed rows -> the mean of each video [B, ...]."""
    return group_sum(x, packing.video, packing.videos) / packing.size.reshape(-1, *[1] * (x.ndim - 1))


def pad(x: Tensor, packing: Packing, fill: float) -> Tensor:
    """[N, ...] packed rows -> [B, max(counts), ...], ``fill`` after the last proposal of each video."""
    longest = max(packing.counts)
    padded = x.new_full((packing.videos * longest, *x.shape[1:]), fill)
    return padded.index_copy_(0, packing.slot, x).reshape(packing.videos, longest, *x.shape[1:])
