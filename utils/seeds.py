"""Every random draw comes from a stream that has a name: (seed, purpose, numbers such as epoch and step).

Streams do not share state, so drawing from one cannot change another, and a run can be entered at any step.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The numpy stream of this purpose; equal arguments give equal draws."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])


def torch_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for torch's generators: ``torch.manual_seed(torch_seed(seed, "dropout", epoch, step))``."""
    return int(stream(seed, purpose, *numbers).integers(2**62))


def torch_stream(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """The torch stream of this purpose, on the CPU."""
    return torch.Generator().manual_seed(torch_seed(seed, purpose, *numbers))
