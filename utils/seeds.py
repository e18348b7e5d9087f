"""Every random draw comes from a stream that has a name: (seed, purpose, numbers such as epoch and step).

Streams do not share state, so drawing from one cannot change another, and any step of a run can be entered anew.
"""

from __future__ import annotations

import zlib
from typing import Union

import numpy as np
import torch


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The numpy stream of this purpose; equal arguments give equal draws."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])


def torch_stream(seed: int, purpose: str, *numbers: int, device: Union[str, torch.device] = "cpu") -> torch.Generator:
    """The torch stream of this purpose, on a device."""
    return torch.Generator(device).manual_seed(int(stream(seed, purpose, *numbers).integers(2**62)))
