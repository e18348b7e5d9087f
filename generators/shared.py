"""What both proposal makers share: runs, the outer-inner contrast, the score of a proposal, the training loop's step.

T snippets of one video, C action classes, segments half-open [start, end). Everything about proposals is numpy on one
video at a time; only ``Trainer`` and ``mean_of_top`` know torch. Nothing here reads or writes a file.

``faithful=True`` is the published behaviour wherever this program deviates from it on purpose.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import InputError
from utils.seeds import stream

Load = Callable[[int], np.ndarray]  # number of a video -> its features, float32 [T, 2D], RGB first
VIDEO_SCORE_WEIGHT = 0.2  # of the video score in the score of a proposal, both methods


class Runs(NamedTuple):
    """Maximal runs of passing snippets in K rows, by row and then by time."""

    row: np.ndarray  # int64 [n], 0..K-1
    start: np.ndarray  # int64 [n]
    end: np.ndarray  # int64 [n], exclusive


def find_runs(mask: np.ndarray, faithful: bool = False) -> Runs:
    """The maximal runs of True in each row of ``mask``, bool [K, T]; runs of one snippet count.

    faithful: a row in which only index 0 passes has no run, since both programs ask whether any index is non-zero.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must be [K, T], not {list(mask.shape)}")
    if faithful:
        mask = mask & mask[:, 1:].any(axis=1, keepdims=True)
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(edges == 1)
    return Runs(row, start, np.nonzero(edges == -1)[1])


def prefix_sums(x: np.ndarray) -> np.ndarray:
    """[K, T] -> float64 [K, T+1]: column t is the sum of the first t columns."""
    return np.pad(np.cumsum(x, axis=1, dtype=np.float64), ((0, 0), (1, 0)))


def contrast_terms(start: np.ndarray, end: np.ndarray, length: int) -> Tuple[np.ndarray, np.ndarray]:
    """The outer-inner contrast of segments as a combination of four prefix sums (AutoLoc, 2018; CO2-Net, LAC, 2021).

    start, end int64 [n] with 0 <= start < end <= length -> places int64 [4, n] and factors float64 [4, n]:
    contrast = sum over j of factors[j] * sums[places[j]], sums being ``prefix_sums`` of the values. It is the mean
    inside minus the mean of what lies ceil(L/4) before and floor(L/4) after, cut to the video; with no snippet outside
    the outer mean is 0.
    """
    span = end - start
    left, right = np.maximum(start - (span + 3) // 4, 0), np.minimum(end + span // 4, length)
    inner, outer = 1 / span, 1 / np.maximum(start - left + right - end, 1)
    return np.stack([left, start, end, right]), np.stack([outer, -inner - outer, inner + outer, -outer])


def contrast(sums: np.ndarray, row: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Outer-inner contrast float64 [n] of segments [start, end) on rows ``row`` of ``sums`` float64 [K, T+1]."""
    places, factors = contrast_terms(start, end, sums.shape[1] - 1)
    return (factors * sums[row, places]).sum(axis=0)


def proposals_of_class(
    sums: np.ndarray, runs: Runs, action: int, video_score: float, rows_share_values: bool = False
) -> np.ndarray:
    """Proposals float64 [n, 4] = start, end, class, score from ``runs`` on values with prefix sums [K, T+1].

    score = contrast + 0.2 * video score of the class. rows_share_values: sums is [1, T+1], the same for every row.
    """
    row = np.zeros_like(runs.row) if rows_share_values else runs.row
    score = contrast(sums, row, runs.start, runs.end) + VIDEO_SCORE_WEIGHT * video_score
    return np.stack([runs.start, runs.end, np.full(len(row), action), score], axis=1).astype(np.float64)


def classes_of(video_score: np.ndarray, threshold: float) -> np.ndarray:
    """int64 [n], rising: the classes whose score in ``video_score`` [C] reaches ``threshold``, else the best one."""
    passing = np.flatnonzero(video_score >= threshold)
    return passing if len(passing) else video_score.argmax(keepdims=True)


def mean_of_top(scores: Tensor, part: int) -> Tensor:
    """Mean over time of the largest max(1, T // part) values of each column: [..., T, K] -> [..., K]."""
    return scores.topk(max(1, scores.shape[-2] // part), dim=-2).values.mean(-2)


def as_input(features: np.ndarray, width: int, device: torch.device) -> Tensor:
    """Features of one video as a float32 tensor [T, 2D] on ``device``. InputError unless 2D = ``width`` and T > 0."""
    if features.ndim != 2 or features.shape[1] != width or not len(features):
        found = " x ".join(map(str, features.shape))
        raise InputError(f"features of {found}, not T x {width} with T of 1 or more", None, "extract them again")
    return torch.from_numpy(np.array(features, dtype=np.float32)).to(device)


def not_finite(what: str, iteration: int) -> InputError:
    """The error of training that has lost its numbers."""
    return InputError(
        f"{what} is not finite", f"iteration {iteration}", "lower the learning rate or check the features"
    )


class Trainer:
    """Adam over a network whose losses depend on (seed, iteration) alone, so that a resumed run gives the same bits.

    Subclasses give ``losses``. settings: with iterations, lr, weight_decay. Iterations count from 1; ``iteration`` is
    the number of those that are done.
    """

    def __init__(self, network: nn.Module, settings: Any, seed: int, device: Union[str, torch.device]):
        self.seed, self.device, self.settings = seed, torch.device(device), settings
        self.iterations, self.iteration = settings.iterations, 0
        self.network = network.to(self.device)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)

    def losses(self, iteration: int) -> Dict[str, Tensor]:
        """The terms of one iteration by name, scalars; "total" is the one to minimise."""
        raise NotImplementedError

    def step(self) -> Dict[str, float]:
        """One iteration -> its terms by name. Weights stay as they are where a term is not finite (InputError)."""
        iteration = self.iteration + 1
        self.network.train()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(stream(self.seed, "generator dropout", iteration).integers(2**62)))
            terms = self.losses(iteration)
        values = dict(zip(terms, torch.stack([term.detach().double() for term in terms.values()]).tolist()))
        wrong = [name for name, value in values.items() if not np.isfinite(value)]
        if wrong:
            raise not_finite(f"the loss {wrong[0]}", iteration)
        self.optimizer.zero_grad()
        terms["total"].backward()
        self.optimizer.step()
        self.iteration = iteration
        return values

    def state_dict(self) -> Dict[str, Any]:
        """Everything to resume from: tensors, numbers and plain containers."""
        return {
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Continue from ``state_dict`` of a trainer with the same data, seed and settings."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]
