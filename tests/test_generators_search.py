"""LAC's seeds and sequence search: the authors' numbers and a slow reference."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from generators.search import action_seeds, background_seeds, search_labels, transcript

GOLDEN = Path(os.environ.get("SEAL_GOLDEN", Path(__file__).parent / "golden")) / "proposals"


def scenes():
    with np.load(GOLDEN / "lac_search.npz") as file:
        data = {key: file[key] for key in file.files}
    numbers = sorted({key.split("/")[0] for key in data})
    return [{k.split("/", 1)[1]: v for k, v in data.items() if k.split("/")[0] == n} for n in numbers]


def test_golden_seeds():
    for scene in scenes():
        background, points = scene["fused"][:, -1], scene["points"] > 0
        found = background_seeds(background, points.any(axis=1))
        np.testing.assert_array_equal(found, scene["background_seed"] > 0)
        np.testing.assert_array_equal(action_seeds(background, points, found), scene["action_seed"] > 0)


def test_golden_transcripts():
    for scene in scenes():
        actions, background = scene["action_seed"] > 0, scene["background_seed"] > 0
        for c in np.flatnonzero(actions.any(axis=0)):
            others = (background | actions.any(axis=1)) & ~actions[:, c]
            found = transcript(actions[:, c], others)
            np.testing.assert_array_equal(found.labels, scene[f"class_{c}/transcript"])
            np.testing.assert_array_equal(found.ranges, scene[f"class_{c}/ranges"])


@pytest.mark.parametrize("budget", [25, 4, 1])
def test_golden_search(budget):
    for scene in scenes():
        dense, score = search_labels(scene["fused"], scene["points"] > 0, budget)
        np.testing.assert_array_equal(dense, scene[f"budget_{budget}/dense"] > 0)
        np.testing.assert_allclose(score, scene[f"budget_{budget}/score"], rtol=1e-9)
