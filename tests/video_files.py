"""Small videos for tests, made by PyAV: each frame says its number, and its four quarters say which way is up."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
import torch

from utils.video.i3d import I3D

STEP = 12  # of brightness between two frames: far more than what compression loses
QUARTERS = (2, 0, 1, 0)  # channel that is bright: blue top left, red top right, green bottom left, red bottom right


def picture(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Frame ``number``, uint8 [height, width, 3]: a square in the middle whose grey is 20 + 12 (number % 18)."""
    image = np.full((height, width, 3), 40, np.uint8)
    for index, channel in enumerate(QUARTERS):
        y, x = divmod(index, 2)
        image[y * height // 2 : (y + 1) * height // 2, x * width // 2 : (x + 1) * width // 2, channel] = 200
    image[height // 4 : -height // 4, width // 4 : -width // 4] = 20 + STEP * (number % 18)
    return image


def number(image: np.ndarray) -> int:
    """The number (modulo 18) that ``picture`` wrote into a frame, whatever its size is now."""
    height, width = image.shape[:2]
    grey = image[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8].mean()
    return round((float(grey) - 20) / STEP)


def bright(image: np.ndarray) -> list:
    """The brightest channel of each corner: top left, top right, bottom left, bottom right."""
    corners = [image[:12, :12], image[:12, -12:], image[-12:, :12], image[-12:, -12:]]
    return [int(corner.mean((0, 1)).argmax()) for corner in corners]


def make_video(
    path: Path,
    frames: int,
    rate: int = 25,
    times_ms: Optional[Sequence[int]] = None,
    size: Sequence[int] = (96, 128),
    sound_only: bool = False,
    options: Optional[dict] = None,
) -> Path:
    """Write a video of ``picture(0)``, ``picture(1)`` … at ``rate``, or each at its time of ``times_ms``."""
    import av

    with av.open(str(path), "w", options=options or {}) as container:
        if sound_only:
            stream = container.add_stream("pcm_s16le" if path.suffix == ".mkv" else "aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
            return path
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        base = Fraction(1, 1000) if times_ms is not None else Fraction(1, rate)
        stream.codec_context.time_base = base
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.pts, frame.time_base = (index if times_ms is None else times_ms[index]), base
            container.mux(stream.encode(frame))
        if frames:
            container.mux(stream.encode(None))
        else:
            container.start_encoding()  # the header alone
    return path


def rotate(path: Path, quarter_turns: int) -> Path:
    """Have players turn an .mp4 so many quarters clockwise: the matrix in its track header, as phones write it."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix, of which 16.16 and 2.30 numbers
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns % 4]
    one = 1 << 16
    data[place : place + 36] = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    return path


def random_weights(path: Path, channels: int, classes: int = 0) -> Path:
    """A file of random weights of I3D under piergiaj's names; batch norm has no effect but the bias of its units."""
    torch.manual_seed(channels)
    state = {}
    for name, value in I3D(channels, classes).state_dict().items():
        unit, _, part = name.rpartition(".conv3d.")
        if part == "weight":
            ones = torch.ones(len(value))
            state[name] = value * (2 / value[0].numel()) ** 0.5 / value.std()
            norm = {"weight": ones, "running_mean": 0 * ones, "running_var": ones}
            state.update({f"{unit}.bn.{key}": x for key, x in norm.items()})
        elif part == "bias":
            state[f"{unit}.bn.bias"] = value
        else:
            shape = value.shape if value.ndim == 1 else (*value.shape, 1, 1, 1)
            state[name.replace("logits.", "logits.conv3d.")] = value.reshape(shape)
    torch.save(state, path)
    return path
