"""Runs, the outer-inner contrast and the rest of what both proposal makers share, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from generators.lac import upsample
from generators.shared import as_input, classes_of, contrast, find_runs, mean_of_top, prefix_sums
from utils.errors import InputError


def plain_contrast(x, start, end):
    span = end - start
    outer = [*x[max(0, start - math.ceil(span / 4)) : start], *x[end : end + span // 4]]
    return np.mean(x[start:end]) - (np.mean(outer) if outer else 0)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13, 30])
def test_contrast_of_every_segment(length):
    x = np.random.default_rng(length).standard_normal((2, length))
    row, start, end = np.array([(r, s, e) for r in (0, 1) for s in range(length) for e in range(s + 1, length + 1)]).T
    expected = [plain_contrast(x[r], s, e) for r, s, e in zip(row, start, end)]
    np.testing.assert_allclose(contrast(prefix_sums(x), row, start, end), expected, atol=1e-13)


def test_a_short_run_has_one_snippet_on_its_left_and_none_on_its_right():
    x = np.array([[0.25, 1.0, 0.5]])
    one = np.array([0]), np.array([1]), np.array([2])
    assert contrast(prefix_sums(x), *one) == 0.75


@pytest.mark.parametrize("faithful", [False, True])
def test_runs_of_random_masks(faithful):
    rng = np.random.default_rng(0)
    for length in [*range(1, 9), 40]:
        mask = rng.random((20, length)) < 0.5
        mask[0], mask[1], mask[2] = False, True, np.arange(length) == 0
        runs = find_runs(mask, faithful)
        found = np.zeros(mask.shape, int)
        for row, start, end in zip(*runs):
            found[row, start:end] += 1
            assert (start == 0 or not mask[row, start - 1]) and (end == length or not mask[row, end])
        alone = mask[:, :1] & ~mask[:, 1:].any(axis=1, keepdims=True)
        np.testing.assert_array_equal(found, mask & ~(alone & faithful))
        assert (np.diff(runs.row * 1000 + runs.start) > 0).all()


def test_classes_that_pass_or_the_best_one():
    assert classes_of(np.array([0.1, 0.6, 0.5]), 0.5).tolist() == [1, 2]
    assert classes_of(np.array([0.1, 0.3, 0.2]), 0.5).tolist() == [1]


def test_top_mean_takes_at_least_one():
    x = torch.arange(10.0)[:, None]
    assert mean_of_top(x, 8).tolist() == [9] and mean_of_top(x, 3).tolist() == [8]
    assert mean_of_top(x[:1], 8).tolist() == [0]


@pytest.mark.parametrize("shape", [(0, 4), (3, 5), (3,)])
def test_foreign_features_are_refused_in_one_line(shape):
    with pytest.raises(InputError, match="T of 1 or more"):
        as_input(np.zeros(shape), 4, torch.device("cpu"))


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_the_fine_grid_is_centred_and_stays_within_the_values(length):
    x = np.random.default_rng(length).random((length, 2))
    fine = upsample(x)
    assert fine.shape == (24 * length, 2)
    np.testing.assert_allclose(upsample(x[::-1])[::-1], fine, atol=1e-15)
    assert (fine.min(0) >= x.min(0)).all() and (fine.max(0) <= x.max(0)).all()
    times = (np.arange(24 * length) + 0.5) / 24
    expected = [np.interp(times, np.arange(length) + 0.5, column) for column in x.T]
    np.testing.assert_allclose(fine, np.stack(expected, axis=1), atol=1e-14)
    assert np.isfinite(upsample(x, faithful=True)).all()
