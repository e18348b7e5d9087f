"""SCFE, the input of the network: surrounding contrastive features of a proposal (P-MIL, Ren et al., CVPR 2023).

Nothing here has a parameter, so for fixed features and proposals it is constant: ``utils.datasets.rows`` keeps it.
"""

from __future__ import annotations

from typing import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 0.25  # a proposal is extended by this share of its length on both sides
MAX_WEIGHTS = 1 << 18  # interpolation weights held at once
MAX_BINS = 1 << 11  # pooled bins held at once: 16 MB of float32 at 2D = 2048


def roi_align(features: Tensor, proposals: np.ndarray, roi_size: int = 12) -> Tensor:
    """RoIAlign along time (He et al., ICCV 2017, aligned form) of proposals extended by a quarter on both sides.

    features: [T, 2D], zero outside [0, T). proposals: [M, 2] start and end in snippets. Returns [M, roi_size, 2D].
    Bin b of a window of height h = max(1.5 L, 1) that begins at y1 = s - 0.25 L - 0.5 is the mean of
    g = ceil(h / R) linear interpolations at y1 + (b + (k + 0.5) / g) h / R.
    """
    start, length = proposals[:, 0], proposals[:, 1] - proposals[:, 0]
    height = np.maximum((1 + 2 * SIDE) * length, 1.0)
    samples = np.ceil(height / roi_size).astype(np.int64)
    # one flat list of (bin, sample) positions: samples[m] of them for each of the roi_size bins of proposal m
    per_bin = np.repeat(samples, roi_size)
    first = np.cumsum(per_bin) - per_bin
    k = np.arange(per_bin.sum()) - np.repeat(first, per_bin)
    bin_of = np.tile(np.arange(roi_size), len(proposals))
    step = np.repeat(height / roi_size, roi_size)
    origin = np.repeat(start - SIDE * length - 0.5, roi_size) + bin_of * step
    y = np.repeat(origin, per_bin) + (k + 0.5) * np.repeat(step / per_bin, per_bin)
    low = np.floor(y).astype(np.int64)
    snippet = np.stack([low, low + 1], axis=1)  # the two neighbours of a position, weighted by how near they are
    weight = np.stack([1 - (y - low), y - low], axis=1) / np.repeat(per_bin, per_bin)[:, None]
    weight[(snippet < 0) | (snippet >= len(features))] = 0.0
    pooled = F.embedding_bag(
        torch.from_numpy(snippet.clip(0, len(features) - 1).ravel()).to(features.device),
        features,
        torch.from_numpy(2 * first).to(features.device),
        mode="sum",
        per_sample_weights=torch.from_numpy(weight.ravel()).to(features),
    )
    return pooled.view(len(proposals), roi_size, features.shape[1])


def _blocks(proposals: np.ndarray, roi_size: int) -> Iterator[slice]:
    """Cut the proposals so that neither weights nor pooled bins outgrow their bounds, however long a proposal is."""
    weights = 2 * roi_size * np.ceil(np.maximum(1.5 * (proposals[:, 1] - proposals[:, 0]), 1.0) / roi_size)
    begin = 0
    while begin < len(proposals):
        fits = np.searchsorted(np.cumsum(weights[begin:]), MAX_WEIGHTS, side="right")
        end = begin + int(np.clip(fits, 1, max(1, MAX_BINS // roi_size)))
        yield slice(begin, end)
        begin = end


def scfe_input(features: Tensor, proposals: np.ndarray, roi_size: int = 12) -> Tensor:
    """Input of the fusion layer, spec of P-MIL's SCFE: concat(centre - left, centre, centre - right).

    features: [T, 2D] float, one row a snippet. proposals: [M, 2] float64, snippets. Returns [M, 6D] of the features'
    dtype. Left, centre and right are the maxima over the first sixth, the middle and the last sixth of the bins.
    A row depends on its own proposal alone. Memory beyond the result is bounded. Raises ValueError on other shapes.
    """
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features must be [T, 2D] with T > 0, not {tuple(features.shape)}")
    if proposals.ndim != 2 or proposals.shape[1] != 2:
        raise ValueError(f"proposals must be [M, 2], not {proposals.shape}")
    if roi_size < 6 or roi_size % 6:
        raise ValueError(f"roi_size must be a positive multiple of 6, not {roi_size}")
    width, side = features.shape[1], roi_size // 6
    rows = features.new_empty(len(proposals), 3, width)
    for block in _blocks(proposals, roi_size):
        bins = roi_align(features, proposals[block], roi_size)
        centre = bins[:, side:-side].amax(1)
        rows[block, 0] = centre - bins[:, :side].amax(1)
        rows[block, 1] = centre
        rows[block, 2] = centre - bins[:, -side:].amax(1)
    return rows.view(len(proposals), 3 * width)
