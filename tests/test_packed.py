"""Packed rows (utils/packed.py) against plain loops over the videos."""

from __future__ import annotations

import pytest
import torch

from utils.packed import expect, group_sum, join, pack, pad, part, send, video_mean


def test_a_packing_says_where_the_rows_of_each_video_are():
    packing = pack((3, 1, 2))
    assert (packing.counts, packing.videos) == ((3, 1, 2), 3)
    assert packing.video.tolist() == [0, 0, 0, 1, 2, 2]
    assert packing.slot.tolist() == [0, 1, 2, 3, 6, 7]
    assert packing.first.tolist() == [0, 3, 4] and packing.size.tolist() == [3, 1, 2]
    for counts in ((), (3, 0, 1), (-1,)):
        with pytest.raises(ValueError, match="at least one proposal"):
            pack(counts)


@pytest.mark.parametrize("trailing", [(), (4,), (2, 3)])
def test_sums_means_and_padding_are_those_of_each_video(trailing):
    packing = pack((3, 1, 5))
    x = torch.randn(9, *trailing, generator=torch.Generator().manual_seed(0)) - 3  # a fill of 0 would be the maximum
    videos = x.split(packing.counts)
    torch.testing.assert_close(group_sum(x, packing.video, 3), torch.stack([v.sum(0) for v in videos]))
    torch.testing.assert_close(video_mean(x, packing), torch.stack([v.mean(0) for v in videos]))
    assert torch.equal(pad(x, packing, 7), torch.nn.utils.rnn.pad_sequence(videos, True, 7))
    assert group_sum(torch.ones(2, 3), torch.tensor([2, 2]), 4).sum(1).tolist() == [0, 0, 6, 0]  # no rows: 0


def test_draws_stand_behind_the_rows_once_a_video_and_weigh_what_is_missing():
    packing = pack((3, 1), draws=2)
    assert packing.draws == 2 and pack((3, 1)).draws == 0
    assert packing.padded_row.tolist() == [0, 1, 2, 3, 4, 5, 4, 5]
    assert packing.padded_video.tolist() == [0, 0, 0, 1, 0, 0, 1, 1]
    assert packing.padded_weight.tolist() == [1, 1, 1, 1, 0, 0, 1, 1]
    assert pack((3, 1)).padded_row.tolist() == [0, 1, 2, 3]


def test_tensors_of_any_type_and_shape_travel_in_one_buffer():
    given = [torch.arange(3), torch.rand(5, 2), torch.zeros(0, 4), torch.tensor([True]), torch.rand(3).double()]
    buffer = join(given)
    assert buffer.dtype == torch.uint8 and len(buffer) == 24 + 40 + 0 + 8 + 24
    for x, y in zip(given, part(buffer, given)):
        assert x.dtype == y.dtype and torch.equal(x, y)
    sent = send(given, torch.device("meta"))
    assert [(x.shape, x.dtype, x.device.type) for x in sent] == [(x.shape, x.dtype, "meta") for x in given]


def test_expect_says_which_tensor_is_wrong_and_how():
    x = torch.zeros(4, 3)
    expect(pack((3, 1)), x=(x, "N C"), y=(x, "N C"))
    expect(pack((3, 1)), labels=(x[:2], "B C"))
    for packing, given, message in (
        (pack((3, 1)), {"x": (x, "N C"), "y": (x, "N C D")}, r"y has shape \[4, 3\], expected \[N=4, C=3, D\]"),
        (pack((3, 2)), {"x": (x, "N C")}, r"x has shape \[4, 3\], expected \[N=5, C\]"),
        (pack((3, 1)), {"x": (x[:1], "N C")}, r"x has shape \[1, 3\], expected \[N=4, C\]"),
        (pack((3, 1)), {"x": (x, "B C")}, r"expected \[B=2, C\]"),
        (None, {"x": (x, "N 2")}, r"expected \[N=4, 2\]"),
        (None, {"x": (x, "N"), "y": (x, "N")}, r"x has shape \[4, 3\], expected \[N\]"),
    ):
        with pytest.raises(ValueError, match=message):
            expect(packing, **given)
