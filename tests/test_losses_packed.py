"""Packed rows (utils/packed.py) against plain loops over the videos."""

from __future__ import annotations

import pytest
import torch

from utils import packed
from utils.packed import distance_to_mean, expect, first_rows, pad, segment_max, segment_mean, segment_sum

COUNTS = (3, 1, 5)
VIDEO = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))


@pytest.mark.parametrize("trailing", [(), (4,), (2, 3)])
def test_sums_means_maxima_and_padding_are_those_of_each_video(trailing):
    x = torch.randn(9, *trailing, generator=torch.Generator().manual_seed(0)) - 3  # a fill of 0 would be the maximum
    videos = x.split(COUNTS)
    torch.testing.assert_close(segment_sum(x, VIDEO, 3), torch.stack([v.sum(0) for v in videos]))
    torch.testing.assert_close(segment_mean(x, VIDEO, 3), torch.stack([v.mean(0) for v in videos]))
    assert torch.equal(segment_max(x, VIDEO, COUNTS), torch.stack([v.amax(0) for v in videos]))
    assert torch.equal(pad(x, VIDEO, COUNTS, 7), torch.nn.utils.rnn.pad_sequence(videos, True, 7))
    assert first_rows(VIDEO, 3).tolist() == [0, 3, 4]


def test_a_segment_without_rows_is_zero():
    x, segment = torch.ones(2, 3), torch.tensor([2, 2])
    assert segment_sum(x, segment, 4).sum(1).tolist() == [0, 0, 6, 0]
    assert segment_mean(x, segment, 4).sum(1).tolist() == [0, 0, 3, 0]


@pytest.mark.parametrize("block", [1, 30, 1 << 20])
def test_distance_to_mean_is_what_autograd_makes_of_it(monkeypatch, block):
    monkeypatch.setattr(packed, "BLOCK", block)
    draw = torch.Generator().manual_seed(0)
    f = torch.randn(12, 5, generator=draw, dtype=torch.float64)
    f[3] = f[4]
    f.requires_grad_()
    group = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 0, 3, 3, 0])  # group 2 is empty, group 3 is nobody's
    measured = torch.stack([torch.randint(4, (12,), generator=draw), group])
    weight = torch.randn(2, 12, generator=draw, dtype=torch.float64)
    mean = torch.stack([f[group == g].sum(0) / max(1, (group == g).sum()) if g < 3 else 0 * f[0] for g in range(4)])
    expected = torch.linalg.vector_norm(f - mean[measured], dim=2)
    actual = distance_to_mean(f, group, measured, 4)
    assert actual[1, 3] == actual[1, 4] == 0  # rows that are their own mean
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad((d * weight).sum(), f)[0] for d in (actual, expected)))


def test_expect_says_which_tensor_is_wrong_and_how():
    x = torch.zeros(4, 3)
    expect((3, 1), x=(x, "N C"), y=(x, "N C"))
    with pytest.raises(ValueError, match=r"y has shape \[4, 3\], expected \[N=4, C=3, D\]"):
        expect((3, 1), x=(x, "N C"), y=(x, "N C D"))
    with pytest.raises(ValueError, match=r"x has shape \[4, 3\], expected \[N=5, C\]"):
        expect((3, 2), x=(x, "N C"))
    with pytest.raises(ValueError, match=r"expected \[N=4, 2\]"):
        expect(x=(x, "N 2"))
    for counts in ((), (3, 0, 1)):
        with pytest.raises(ValueError, match="at least one proposal"):
            expect(counts, x=(x, "N C"))
