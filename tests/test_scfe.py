"""SCFE input: golden numbers, a brute-force reference, and rows that depend on their own proposal alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.datasets import scfe


def brute_force(features: np.ndarray, proposals: np.ndarray, roi_size: int) -> np.ndarray:
    """RoIAlign sample by sample, as the contract words it."""
    padded = np.concatenate([np.zeros((1, features.shape[1])), features, np.zeros((1, features.shape[1]))])

    def at(y):
        low = int(np.floor(y))
        a, b = (padded[np.clip(i + 1, 0, len(padded) - 1)] for i in (low, low + 1))
        return (1 - (y - low)) * a + (y - low) * b

    rows = []
    for start, end in proposals:
        length = end - start
        height, origin = max(1.5 * length, 1), start - 0.25 * length - 0.5
        width, g = height / roi_size, int(np.ceil(height / roi_size))
        bins = [np.mean([at(origin + (b + (k + 0.5) / g) * width) for k in range(g)], axis=0) for b in range(roi_size)]
        rows.append(bins)
    return np.asarray(rows)


def test_golden_roi_align_and_scfe_input(golden):
    z = np.load(golden / "scfe.npz")
    features, proposals = torch.from_numpy(z["features"]), z["proposals"].astype(np.float64)
    np.testing.assert_allclose(scfe.roi_align(features, proposals), z["roi"], rtol=1e-4, atol=1e-5)
    left, centre, right = z["roi"][:, :2].max(1), z["roi"][:, 2:10].max(1), z["roi"][:, 10:].max(1)
    np.testing.assert_allclose(z["pooled"], np.concatenate([centre - left, centre, centre - right], 1), atol=1e-6)
    np.testing.assert_allclose(scfe.scfe_input(features, proposals), z["pooled"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("roi_size", [6, 12, 24])
def test_equals_brute_force(roi_size):
    rng = np.random.default_rng(roi_size)
    features = rng.standard_normal((40, 5))
    edges = np.sort(rng.uniform(0, 40, (60, 2)), axis=1)
    start = rng.uniform(0, 16, 60).round(2)  # lengths at which g steps, as decimal seconds give them
    steps = np.stack([start, (start + 8 * rng.integers(1, 4, 60)).round(2)], 1)
    proposals = np.concatenate([edges, steps, [[0, 40], [0, 0.01], [39.99, 40], [7, 7.3], [3, 19], [0, 8]]])
    expected = brute_force(features, proposals, roi_size)
    np.testing.assert_allclose(scfe.roi_align(torch.from_numpy(features), proposals, roi_size), expected, atol=1e-10)


def test_rows_do_not_depend_on_other_proposals_or_on_the_block_size(monkeypatch):
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.standard_normal((300, 8), dtype=np.float32))
    proposals = np.sort(rng.uniform(0, 300, (200, 2)), axis=1)
    together = scfe.scfe_input(features, proposals)
    alone = torch.cat([scfe.scfe_input(features, p[None]) for p in proposals])
    assert torch.equal(together, alone)
    monkeypatch.setattr(scfe, "MAX_WEIGHTS", 64)
    assert torch.equal(scfe.scfe_input(features, proposals), together)


def test_memory_stays_bounded_for_a_long_video():
    features = torch.zeros(20_000, 4)
    proposals = np.tile([[0.0, 20_000.0]], (30, 1))
    blocks = list(scfe._blocks(proposals, 12))
    assert len(blocks) >= 4 and sum(b.stop - b.start for b in blocks) == 30
    assert scfe.scfe_input(features, proposals).shape == (30, 12)


@pytest.mark.parametrize(
    "features, proposals, roi_size",
    [
        (torch.zeros(0, 4), np.zeros((1, 2)), 12),
        (torch.zeros(3, 4), np.zeros((2, 3)), 12),
        (torch.zeros(3, 4), np.zeros((2, 2)), 10),
    ],
)
def test_shapes_are_checked(features, proposals, roi_size):
    with pytest.raises(ValueError):
        scfe.scfe_input(features, proposals, roi_size)


def test_no_proposal_gives_no_row():
    assert scfe.scfe_input(torch.zeros(3, 4), np.zeros((0, 2))).shape == (0, 12)
