"""Optical flow as 8-bit numbers, snippets of a stream of frames, and the crops of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from utils.errors import InputError
from utils.video.flow import flow_method, quantise
from utils.video.snippets import count, crops, snippets


def textured(shift_x: int = 0, shift_y: int = 0) -> np.ndarray:
    """A smooth random picture uint8 [96, 128, 3] whose content lies further right and further down by the shifts."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV (requirements-video.txt) is not installed")
    noise = np.random.default_rng(3).uniform(0, 255, (160, 192)).astype(np.float32)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    part = smooth[32 - shift_y : 128 - shift_y, 32 - shift_x : 160 - shift_x]
    return np.repeat(part[:, :, None], 3, 2)


def test_quantised_flow_is_clipped_and_rounded():
    flow = np.array([-1000, -20, -19.95, -0.1, 0, 0.1, 1, 19.8, 20, 1000], np.float32)
    assert quantise(flow).tolist() == [0, 0, 1, 127, 128, 129, 134, 254, 255, 255]
    assert quantise(flow).dtype == np.uint8


@pytest.mark.parametrize("method", ["tvl1", "dis"])
def test_flow_goes_from_a_frame_to_the_next(method):
    first = textured()
    flow = flow_method(method)
    for x, y in [(3, 0), (0, -2)]:
        inside = flow(first, textured(x, y))[20:-20, 20:-20].astype(float)
        pixels = (np.median(inside, (0, 1)) - 128) * 40 / 255
        np.testing.assert_allclose(pixels, (x, y), atol=0.3)
    assert (flow(first, first) == 128).all()
    assert np.abs(flow(first, first.copy()).astype(int) - 128).max() <= 1  # what the shortcut stands for


def test_flow_is_the_same_from_several_threads():
    frames = [textured(x) for x in range(5)]
    flow = flow_method("tvl1")
    alone = [flow(a, b) for a, b in zip(frames, frames[1:])]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(flow, frames, frames[1:]))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))


def test_an_opencv_without_tvl1_is_named(monkeypatch):
    cv2 = pytest.importorskip("cv2", reason="OpenCV (requirements-video.txt) is not installed")
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(InputError, match="opencv-contrib-python-headless"):
        flow_method("tvl1")
    flow_method("dis")


# ---- snippets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames, expected", [(1, 1), (15, 1), (16, 1), (17, 1), (31, 1), (32, 2), (33, 2), (160, 10)])
def test_snippets_of_any_number_of_frames(frames, expected):
    found = list(snippets(range(frames), lambda a, b: (a, b)))
    assert len(found) == count(frames) == expected
    for index, (images, flows) in enumerate(found):
        own = [min(16 * index + k, frames - 1) for k in range(16)]
        assert images == own
        last = max(frames - 2, 0)  # the frame whose flow the last one takes
        assert flows == [(min(k, last), min(k + 1, frames - 1)) if k <= last else (last, frames - 1) for k in own]
    assert [s.flows for s in snippets(range(frames))] == [[]] * expected


def test_no_frames_are_no_snippets_and_frames_are_not_hoarded():
    assert list(snippets([])) == []
    taken = []
    stream = snippets(taken.append(k) or k for k in range(1000))
    next(stream)
    assert len(taken) == 17


def test_the_centre_crop_and_its_range():
    clips = torch.randint(0, 256, (2, 16, 256, 340, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = crops(clips)
    assert found.shape == (2, 3, 16, 224, 224) and found.dtype == torch.float32
    expected = clips[:, :, 16:240, 58:282].permute(0, 4, 1, 2, 3).float() * 2 / 255 - 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.min() >= -1 and found.max() <= 1


@pytest.mark.parametrize("flow", [False, True])
def test_ten_crops_and_their_mirror_images(flow):
    channels = 2 if flow else 3
    clips = torch.zeros(2, 16, 256, 340, channels, dtype=torch.uint8)
    clips[..., 0] = torch.arange(340) % 256
    clips[..., 1] = torch.arange(256).view(-1, 1)
    found = crops(clips, oversample=True, flow=flow).unflatten(0, (2, 10))
    assert found.shape == (2, 10, channels, 16, 224, 224)
    for index, (y, x) in enumerate([(0, 0), (0, 116), (32, 0), (32, 116), (16, 58)]):
        plain, mirrored = found[1, index, :, 0], found[1, index + 5, :, 0]
        expected = clips[1, 0, y : y + 224, x : x + 224].permute(2, 0, 1).float()
        torch.testing.assert_close(plain, expected * 2 / 255 - 1, rtol=0, atol=1e-6)
        expected = expected.flip(2)
        if flow:  # what moved to the right moves to the left in a mirror; up stays up
            expected[0] = (256 - expected[0]).clamp(max=255)
        torch.testing.assert_close(mirrored, expected * 2 / 255 - 1, rtol=0, atol=1e-6)
