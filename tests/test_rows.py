"""The cache of SCFE inputs: the same bits as without it, never stale rows, whole or not there."""

from __future__ import annotations

import json
import os
import resource
import threading
import time

import numpy as np
import pytest
import torch

from dataset import packed_batch
from tests import tiny
from tests.changes import FEATURES, TRAIN, array, document, split_of
from utils.datasets import rows as module
from utils.datasets.rows import cached_rows
from utils.datasets.scfe import scfe_input
from utils.errors import InputError

FEATURE = f"{FEATURES}/video_00.npy"


@pytest.fixture
def root(tmp_path):
    return tiny.write(tmp_path / "data")


def rows_of(split, video=0):
    return split.rows.gather([video], [np.arange(split.rows.size[video])])


def folders(place):
    return sorted(p for p in (place / "cache").glob("*") if p.is_dir())


def test_rows_are_the_same_bits_with_and_without_the_cache(root, tmp_path, monkeypatch):
    live, device = split_of(root), torch.device("cpu")
    inputs, _ = packed_batch(live, [3, 1], device)
    first = split_of(root, tmp_path)
    monkeypatch.setattr("utils.datasets.features.Features._raw", lambda *args, **how: pytest.fail("features were read"))
    for kept in (first, split_of(root, tmp_path)):  # a finished cache needs no feature
        assert all(torch.equal(a, b) for a, b in zip(inputs, packed_batch(kept, [3, 1], device)[0]))
        np.testing.assert_array_equal(kept.rows.video_mean, live.rows.video_mean)
        np.testing.assert_array_equal(kept.num_snippets, live.num_snippets)
    assert len(folders(tmp_path)) == 1


def test_repeated_proposals_share_a_row_and_every_row_is_its_proposals(root, tmp_path):
    split = split_of(root, tmp_path)
    for v, video in enumerate(split.videos):
        features = torch.from_numpy(np.load(root / FEATURES / f"{video}.npy"))
        assert split.rows.size[v] == len(np.unique(split.proposals[v], axis=0)) == 8
        assert torch.equal(rows_of(split, v)[split.rows.index[v]], scfe_input(features, split.proposals[v]))


def longer(results):
    results["results"]["video_00"][0]["segment"][1] += 0.3


@pytest.mark.parametrize("change", [array(FEATURE, lambda a: a + 1), document(TRAIN, longer)])
def test_changed_inputs_never_serve_stale_rows(root, tmp_path, change):
    before = rows_of(split_of(root, tmp_path))
    change(root)
    after = split_of(root, tmp_path)
    assert not torch.equal(before, rows_of(after)) and torch.equal(rows_of(after), rows_of(split_of(root)))
    assert len(folders(tmp_path)) == 2


@pytest.mark.parametrize("more", [["--roi_size", 24], ["--cache_dtype", "float16"]])
def test_another_roi_size_or_dtype_has_a_cache_of_its_own(root, tmp_path, more):
    plain, other = rows_of(split_of(root, tmp_path)), rows_of(split_of(root, tmp_path, "train", *more))
    assert len(folders(tmp_path)) == 2 and other.dtype == torch.float32 and not torch.equal(plain, other)
    assert "float16" not in more or torch.allclose(plain, other, rtol=1e-3, atol=1e-3)


def test_values_too_large_for_float16_are_refused_by_name(root, tmp_path):
    array(FEATURE, lambda a: a * 1e5)(root)
    with pytest.raises(InputError, match="too large for float16 .video_00. - use --cache_dtype float32"):
        split_of(root, tmp_path, "train", "--cache_dtype", "float16")
    assert not folders(tmp_path) and rows_of(split_of(root, tmp_path)).isfinite().all()


def test_the_index_is_written_last_and_a_build_that_fails_leaves_nothing(root, tmp_path, monkeypatch):
    real, seen = module.write_json, []
    monkeypatch.setattr(module, "write_json", lambda path, v: (seen.extend(os.listdir(path.parent)), real(path, v)))
    split_of(root, tmp_path)
    assert sorted(seen) == [*(f"{v:06d}.npy" for v in range(5)), "video_mean.npy"]
    for name in ("video_mean.npy", "index.json", "000004.npy"):  # what a kill can leave

        def killed(path, *args, name=name):
            raise KeyboardInterrupt

        (folders(tmp_path)[0] / name).unlink()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, "save_array", killed)
            split_of(root, tmp_path)
        assert not folders(tmp_path)
        assert torch.equal(rows_of(split_of(root, tmp_path)), rows_of(split_of(root)))


DAMAGE = [
    *[(name, data) for name in ("*/000002.npy", "*/video_mean.npy", "Tiny-train-*.npy") for data in (None, b"", b"[]")],
    *[("*/index.json", data) for data in (b"", b"[]", b'{"bytes": 3}', b'{"bytes": [1]}')],
]


@pytest.mark.parametrize("name, data", DAMAGE)
def test_a_damaged_cache_is_rebuilt(root, tmp_path, name, data):
    before = split_of(root, tmp_path)
    (path,) = (tmp_path / "cache").glob(name)
    path.unlink() if data is None else path.write_bytes(data)
    after = split_of(root, tmp_path)
    assert torch.equal(rows_of(after, 2), rows_of(before, 2))
    np.testing.assert_array_equal(after.rows.video_mean, before.rows.video_mean)
    np.testing.assert_array_equal(after.num_snippets, before.num_snippets)


def test_a_limit_of_the_system_gives_the_space_back_and_names_the_place(root, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large.*cache"):
            split_of(root, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not folders(tmp_path) and split_of(root, tmp_path)


def test_two_that_start_at_once_build_one_cache_and_videos_without_proposals_take_no_rows(tmp_path):
    features = {"a": np.ones((4, 6), np.float32), "b": np.full((3, 6), 2, np.float32)}
    loaded, found = [], []

    def load(video):
        loaded.append(video)
        time.sleep(0.05)
        return features[video]

    def build():
        found.append(cached_rows(tmp_path, "x", ["a", "b"], [np.zeros((0, 2)), np.asarray([[0.0, 2.0]])], load, "s"))

    both = [threading.Thread(target=build) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(60)
    assert loaded == ["a", "b"] and len(found) == 2
    for rows in found:
        assert rows.size.tolist() == [0, 1] and rows.gather([1], [[0]]).shape == (1, 18)
        np.testing.assert_array_equal(rows.video_mean, [[1] * 6, [2] * 6])
    assert json.loads(next(tmp_path.glob("*/index.json")).read_text())["videos"] == ["a", "b"]


@pytest.mark.parametrize("scale", [0.0, 1e-38, -1e4, 1e30])
def test_rows_at_the_limits_of_float32_are_finite(scale):
    features = torch.linspace(-1, 1, 160).reshape(40, 4) * scale
    rows = scfe_input(features, np.asarray([[0, 40], [5, 5.01], [39.9, 60], [-5, 0.5], [7, 30]]))
    assert rows.isfinite().all() and (rows.abs() <= 2 * features.abs().max() * (1 + 1e-5)).all()
