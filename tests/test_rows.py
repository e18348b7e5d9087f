"""The cache of SCFE inputs: the same bits as without it, never stale rows, whole or not there."""

from __future__ import annotations

import os
import resource
import threading
import time

import numpy as np
import pytest
import torch

from dataset import packed_batch
from tests import tiny
from tests.changes import array, document, split_of
from tests.tiny import FEATURE, FEATURES, TRAIN
from utils.datasets import rows as module
from utils.datasets.rows import cached_rows
from utils.datasets.scfe import scfe_input


@pytest.fixture
def root(tmp_path):
    return tiny.write(tmp_path / "data")


def rows_of(split, video=1):
    return split.rows.gather([video], [np.arange(split.rows.size[video])])


def folders(place):
    return [p for p in (place / "cache").glob("*") if p.is_dir()]


def same(a, b):
    assert torch.equal(rows_of(a, 2), rows_of(b, 2))
    for x, y in ((a.rows.video_mean, b.rows.video_mean), (a.num_snippets, b.num_snippets)):
        np.testing.assert_array_equal(x, y)


def test_rows_are_the_same_bits_with_and_without_the_cache(root, tmp_path, monkeypatch):
    live, device = split_of(root), torch.device("cpu")
    inputs, _ = packed_batch(live, [3, 1], device)
    first = split_of(root, tmp_path)
    monkeypatch.setattr("utils.datasets.features.Features._raw", lambda *args, **how: pytest.fail("features were read"))
    for kept in (first, split_of(root, tmp_path)):  # a finished cache needs no feature
        same(kept, first)
        assert all(torch.equal(a, b) for a, b in zip(inputs, packed_batch(kept, [3, 1], device)[0]))
    monkeypatch.undo()
    same(live, first)
    for v, video in enumerate(live.videos):  # repeated proposals share a row
        features = torch.from_numpy(np.load(root / FEATURES / f"{video}.npy"))
        assert live.rows.size[v] == len(np.unique(live.proposals[v], axis=0)) == 8
        assert torch.equal(rows_of(live, v)[live.rows.index[v]], scfe_input(features, live.proposals[v]))
    assert len(folders(tmp_path)) == 1


def longer(results):
    results["results"]["video_01"][0]["segment"][0] /= 2


@pytest.mark.parametrize(
    "change, more",
    [
        (array(FEATURE, lambda a: np.concatenate([a, a + 1])), []),
        (document(TRAIN, longer), []),
        (lambda root: None, ["--roi_size", 24]),
        (lambda root: None, ["--cache_dtype", "float16"]),
        (lambda root: None, ["--amp", "bf16"]),
    ],
)
def test_other_inputs_have_a_cache_of_their_own(root, tmp_path, change, more):
    before = rows_of(split_of(root, tmp_path))
    change(root)
    kept, live = split_of(root, tmp_path, *more), split_of(root, None, *more)
    after = rows_of(kept)
    half = "bf16" in more
    assert len(folders(tmp_path)) == 2 and not torch.equal(before, after.float())
    assert after.dtype == (torch.bfloat16 if half else torch.float32)
    assert not half or torch.equal(after, before.bfloat16())
    torch.testing.assert_close(after, rows_of(live), rtol=0, atol=1e-3 * ("float16" in more))
    np.testing.assert_array_equal(kept.num_snippets, live.num_snippets)


def test_the_index_is_written_last_and_a_build_that_fails_leaves_nothing(root, tmp_path, monkeypatch):
    real, seen = module.write_json, []

    def write_json(path, value):
        seen.extend(os.listdir(path.parent))
        if len(seen) == 6:
            raise KeyboardInterrupt
        real(path, value)

    monkeypatch.setattr(module, "write_json", write_json)
    with pytest.raises(KeyboardInterrupt):
        split_of(root, tmp_path)
    assert sorted(seen) == [*(f"{v:06d}.npy" for v in range(5)), "video_mean.npy"] and not folders(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large.*cache"):
            split_of(root, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not folders(tmp_path)
    same(split_of(root, tmp_path), split_of(root))


DAMAGE = [
    *[(name, data) for name in ("*/000002.npy", "*/video_mean.npy", "Tiny-train-*.npy") for data in (None, b"", b"[]")],
    *[("*/index.json", data) for data in (None, b"", b"[]", b'{"bytes": 3}', b'{"bytes": [1]}')],
]


@pytest.mark.parametrize("name, data", DAMAGE)
def test_a_damaged_or_incomplete_cache_is_rebuilt(root, tmp_path, name, data):
    before = split_of(root, tmp_path)
    (path,) = (tmp_path / "cache").glob(name)
    path.unlink() if data is None else path.write_bytes(data)
    same(split_of(root, tmp_path), before)


def test_two_that_start_at_once_build_one_cache_and_videos_without_proposals_take_no_rows(tmp_path):
    loaded, found = [], []

    def load(video):
        loaded.append(video)
        time.sleep(0.05)
        return np.full((4, 6), float(video), np.float32)

    def build():
        found.append(cached_rows(tmp_path, "x", ["1", "2"], [np.zeros((0, 2)), np.asarray([[0.0, 2.0]])], load, "s"))

    both = [threading.Thread(target=build) for _ in range(2)]
    for do in (threading.Thread.start, threading.Thread.join):
        list(map(do, both))
    assert loaded == ["1", "2"] and len(found) == 2
    for rows in found:
        assert rows.size.tolist() == [0, 1] and rows.gather([1], [[0]]).shape == (1, 18)
        np.testing.assert_array_equal(rows.video_mean, [[1] * 6, [2] * 6])
