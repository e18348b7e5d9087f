"""Golden numbers of the two proposal makers, and how near ours must be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(os.environ.get("SEAL_GOLDEN") or Path(__file__).parent / "golden") / "proposals"
EXACT = {"rtol": 1e-9, "atol": 1e-11}
SINGLE = {"rtol": 1e-4, "atol": 1e-5}


def read(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def part(data, prefix):
    """What is below ``prefix/``."""
    return {key[len(prefix) + 1 :]: value for key, value in data.items() if key.startswith(f"{prefix}/")}


def numbers(data):
    """The videos or cases of a file: what stands before the first / and is a number."""
    return sorted({key.split("/")[0] for key in data if key[0].isdigit()})


def state(data):
    return {key: torch.from_numpy(value) for key, value in part(data, "state").items()}


def compare(found, expected, **tolerance):
    np.testing.assert_allclose(found.detach().numpy(), expected.reshape(found.shape), **tolerance)
