"""The loss terms of LAC (Lee & Byun, ICCV 2021) for one video, pure functions of tensors.

T snippets, C action classes, H embedding width; ``fused`` [T, C+1] in [0, 1], background last. A term with nothing to
act on is exactly 0 and so is its gradient. ``faithful=True`` is the published behaviour where this program deviates.
"""

from __future__ import annotations

from typing import Callable, List, NamedTuple, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from generators.shared import contrast_terms, mean_of_top
from utils.packed import expect

Draw = Callable[[np.ndarray, np.ndarray], np.ndarray]  # first and last snippets int64 [n, 3] -> one of each stretch


def video_scores(probability: Tensor, label: Tensor) -> Tensor:
    """Video score [C] in training: mean of the top T // 8 of P [T, C], of all T for absent classes (label [C] 0)."""
    expect(probability=(probability, "T C"), label=(label, "C"))
    return torch.where(label > 0, mean_of_top(probability, 8), probability.mean(0))


def video_loss(video_score: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy of the video score [C] in [0, 1] and the label [C] 0/1, mean over the classes."""
    expect(video_score=(video_score, "C"), label=(label, "C"))
    return F.binary_cross_entropy(video_score, label)


def focal_loss(fused: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
    """Focal cross-entropy of fused and target (0/1), both [T, K]: sum over K, mean over the snippets ``chosen``.

    chosen bool [T]. The focal weight ((1 - q) y + q (1 - y))^2 takes part in the gradient.
    """
    expect(fused=(fused, "T K"), target=(target, "T K"), chosen=(chosen, "T"))
    q, y = fused[chosen], target[chosen]
    weight = ((1 - q) * y + q * (1 - y)).square()
    return (weight * F.binary_cross_entropy(q, y, reduction="none")).sum() / max(len(q), 1)


class Instances(NamedTuple):
    """Runs of a class's dense labels in time, action and background alternating."""

    action: int  # number of the class
    start: np.ndarray  # int64 [n] snippets
    end: np.ndarray  # int64 [n], exclusive
    is_action: np.ndarray  # bool [n]


def find_instances(dense: np.ndarray, classes: Sequence[int], faithful: bool = False) -> List[Instances]:
    """The instances of each of ``classes`` whose dense labels (bool [T, C]) are neither all on nor all off.

    faithful: a run that reaches the end of the video loses its last snippet, and is skipped if that was all of it.
    """
    found = []
    for c in classes:
        on = dense[:, c]
        if on.all() or not on.any():
            continue
        start = np.flatnonzero(np.diff(on, prepend=~on[:1]))
        end = np.append(start[1:], len(on) - faithful)
        left = end > start
        found.append(Instances(c, start[left], end[left], on[start[left]]))
    return found


def score_losses(fused: Tensor, instances: Sequence[Instances]) -> List[Tensor]:
    """The two parts of the score loss: the mean of 1 - contrast over all action and over all background instances.

    An action instance is scored on its class's column of fused [T, C+1], a background one on 1 minus that.
    """
    expect(fused=(fused, "T K"))
    lost = [fused.new_zeros(0)] * 2
    if instances:
        classes = [group.action for group in instances]
        row = np.concatenate([np.full(len(group.start), i) for i, group in enumerate(instances)])
        start, end, is_action = (
            np.concatenate([getattr(group, name) for group in instances]) for name in ("start", "end", "is_action")
        )
        places, factors = (torch.from_numpy(a).to(fused.device) for a in contrast_terms(start, end, len(fused)))
        x = fused[:, classes].double()  # sums over a long video need more digits than float32 has
        sums = F.pad(torch.stack([1 - x, x]).cumsum(1), (0, 0, 1, 0))
        kind, row = (torch.from_numpy(a.astype(np.int64)).to(fused.device) for a in (is_action, row))
        loss = 1 - (factors * sums[kind, places, row]).sum(0)
        lost = [loss[kind == 1], loss[kind == 0]]
    return [(part.sum() / max(len(part), 1)).to(fused.dtype) for part in lost]


def thirds(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The thirds of segments int64 [n]: their first and last snippets, int64 [2, n, 3]; each holds at least one."""
    k, span = np.arange(3), (end - start)[:, None]
    first = (3 * start[:, None] + k * span) // 3
    return np.stack([first, np.maximum((3 * start[:, None] + (k + 1) * span) // 3 - 1, first)])


def feature_loss(embedded: Tensor, instances: Sequence[Instances], draw: Draw, faithful: bool = False) -> Tensor:
    """Action instances of a class resemble each other more than its background: contrastive loss, summed over classes.

    embedded [T, H]. An instance is the mean of three rows, one of each third as ``draw`` has it; S_ij = exp(cosine /
    0.1), S_ii = 0; a class with two or more action instances adds the mean over those, j, of -log(sum over actions i of
    S_ij / sum over all i of S_ij). faithful: of several such classes the last one alone counts.
    """
    expect(embedded=(embedded, "T H"))
    groups = [group for group in instances if group.is_action.sum() > 1]
    loss = embedded.new_zeros(())
    for group in groups:
        picks = draw(*thirds(group.start, group.end))
        if faithful and group is not groups[-1]:
            continue
        # One gather: its backward pass adds rows once, where picking them one by one fills [T, H] every time.
        rows = embedded.index_select(0, torch.from_numpy(picks.ravel()).to(embedded.device))
        features = F.normalize(rows.unflatten(0, picks.shape).mean(1), dim=1)
        is_action = torch.from_numpy(group.is_action).to(embedded.device)
        similar = (features @ features[is_action].T / 0.1).masked_fill(
            torch.eye(len(features), dtype=torch.bool, device=embedded.device)[:, is_action], -torch.inf
        )
        loss = loss + (similar.logsumexp(0) - similar[is_action].logsumexp(0)).mean()
    return loss
