"""The cache of SCFE inputs: the same bits as without it, never stale rows, whole or not there."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset import load_source, load_split, packed_batch
from tests import tiny
from utils import cache
from utils.cache import FileHashes, Rows, cached_rows
from utils.errors import InputError
from utils.scfe import scfe_input

ROOT = Path(cache.__file__).parent.parent


@pytest.fixture
def root(tmp_path):
    return tiny.write(tmp_path / "data")


def split_of(root, cache_dir, **how):
    return load_split(load_source("Tiny", str(root), cache_dir=cache_dir, **how), "train", lambda line: None)


def folders(cache_dir):
    return sorted(p for p in cache_dir.iterdir() if p.is_dir())


def test_rows_are_the_same_bits_with_and_without_the_cache(root, tmp_path):
    live, kept = split_of(root, None), split_of(root, tmp_path / "cache")
    again = split_of(root, tmp_path / "cache")
    for other in (kept, again):
        np.testing.assert_array_equal(other.rows.video_mean, live.rows.video_mean)
        np.testing.assert_array_equal(other.rows.num_snippets, live.rows.num_snippets)
        inputs = [packed_batch(split, [3, 1], torch.device("cpu"))[0] for split in (live, other)]
        assert torch.equal(inputs[0].rows, inputs[1].rows) and torch.equal(inputs[0].index, inputs[1].index)
    assert len(folders(tmp_path / "cache")) == 1


def test_repeated_proposals_share_a_row_and_every_row_is_its_proposals(root, tmp_path):
    split = split_of(root, tmp_path / "cache")
    for v, video in enumerate(split.videos):
        features = torch.from_numpy(np.load(root / "Tiny-I3D-JOINTFeatures" / f"{video}.npy"))
        expected = scfe_input(features, split.proposals[v])
        assert split.rows.size[v] == len(np.unique(split.proposals[v], axis=0)) == 8
        assert torch.equal(split.rows.gather([v])[torch.from_numpy(split.rows.index[v])], expected)


def test_a_finished_cache_needs_no_features(root, tmp_path, monkeypatch):
    first = split_of(root, tmp_path / "cache")
    time.sleep(0.01)
    monkeypatch.setattr(cache, "SETTLED_S", 0.0)
    split_of(root, tmp_path / "cache")  # the content hashes are remembered from here on

    def refuse(self, video):
        raise AssertionError("features were opened")

    monkeypatch.setattr("utils.features.Features.load", refuse)
    monkeypatch.setattr("utils.cache.file_hash", refuse)
    assert torch.equal(split_of(root, tmp_path / "cache").rows.gather([0]), first.rows.gather([0]))


def change_features(root, keep_times=False):
    path = root / "Tiny-I3D-JOINTFeatures" / "video_00.npy"
    before = path.stat()
    np.save(path, np.load(path) + 1)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def change_proposals(root):
    path = root / "Proposals_Tiny_train.json"
    document = json.loads(path.read_text())
    document["results"]["video_00"][0]["segment"][1] += 0.3
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("change", [change_features, lambda root: change_features(root, True), change_proposals])
def test_changed_inputs_never_serve_stale_rows(root, tmp_path, change):
    before = split_of(root, tmp_path / "cache").rows.gather([0])
    change(root)
    after = split_of(root, tmp_path / "cache").rows.gather([0])
    assert len(folders(tmp_path / "cache")) == 2
    assert before.shape != after.shape or not torch.equal(before, after)
    assert torch.equal(after, split_of(root, None).rows.gather([0]))


@pytest.mark.parametrize("how", [{"roi_size": 24}, {"cache_dtype": "float16"}])
def test_another_roi_size_or_dtype_has_a_cache_of_its_own(root, tmp_path, how):
    plain, other = split_of(root, tmp_path / "cache"), split_of(root, tmp_path / "cache", **how)
    assert len(folders(tmp_path / "cache")) == 2
    a, b = plain.rows.gather([0]), other.rows.gather([0])
    assert b.dtype == torch.float32 and not torch.equal(a, b)
    if "cache_dtype" in how:
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_build_that_fails_leaves_nothing_and_the_next_one_starts_clean(root, tmp_path):
    bad = root / "Tiny-I3D-JOINTFeatures" / "video_03.npy"
    good = np.load(bad)
    np.save(bad, good * np.nan)
    with pytest.raises(InputError, match="video_03"):
        split_of(root, tmp_path / "cache")
    assert folders(tmp_path / "cache") == []
    np.save(bad, good)
    scratch = tmp_path / "cache"
    split_of(root, scratch)
    stale = folders(scratch)[0]
    stale.rename(stale.with_name(stale.name + ".building"))  # what kill -9 leaves
    split_of(root, scratch)
    assert [p.name for p in folders(scratch)] == [stale.name]


def _open(root, cache_dir, queue):
    rows = split_of(Path(root), Path(cache_dir)).rows
    queue.put(float(rows.gather([0, 1]).double().sum()))


def test_two_runs_that_start_at_once_share_one_cache(root, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    both = [context.Process(target=_open, args=(str(root), str(tmp_path / "cache"), queue)) for _ in range(2)]
    for p in both:
        p.start()
    sums = {queue.get(timeout=120) for _ in both}
    for p in both:
        p.join(60)
    assert [p.exitcode for p in both] == [0, 0] and len(sums) == 1
    assert len(folders(tmp_path / "cache")) == 1


def test_the_memory_map_is_opened_anew_before_it_fills_the_memory(root, tmp_path, monkeypatch):
    split = split_of(root, tmp_path / "cache")
    expected = [split.rows.gather([v]) for v in range(5)]
    opened = []
    real = cache.load_array
    monkeypatch.setattr(cache, "load_array", lambda path, **how: opened.append(path) or real(path, **how))
    monkeypatch.setattr(cache, "MAPPED_BYTES", 1)
    for _ in range(2):
        for v in range(5):
            assert torch.equal(split.rows.gather([v]), expected[v])
    assert len(opened) >= 9


def test_a_file_that_just_changed_is_hashed_again(tmp_path, monkeypatch):
    path, memo = tmp_path / "a", tmp_path / "memo.json"
    path.write_bytes(b"one")
    hashes = FileHashes(memo)
    first = hashes(path)
    hashes.save()
    assert not memo.exists() and hashes.known == {}
    monkeypatch.setattr(cache, "SETTLED_S", -1.0)
    assert hashes(path) == first and len(hashes.known) == 1
    path.write_bytes(b"two")
    assert hashes(path) != first
    memo.write_text("no json")
    assert FileHashes(memo)(path) == hashes(path)


def test_videos_without_proposals_keep_their_mean_and_take_no_rows(tmp_path):
    features = {"a": np.ones((4, 6), np.float32), "b": np.full((3, 6), 2, np.float32)}
    proposals = [np.zeros((0, 2)), np.asarray([[0.0, 2.0]])]
    rows, _ = cached_rows(tmp_path, "x", ["a", "b"], proposals, features.__getitem__, "s")
    assert rows.size.tolist() == [0, 1] and rows.gather([1]).shape == (1, 18)
    np.testing.assert_array_equal(rows.video_mean, [[1] * 6, [2] * 6])
    assert isinstance(rows, Rows)


def test_a_lock_that_comes_free_within_a_second_is_taken_and_another_is_not(tmp_path):
    import threading

    path, held = tmp_path / "lock", threading.Event()

    def hold(seconds):
        with cache.locked(path):
            held.set()
            time.sleep(seconds)

    for seconds, free in ((0.3, True), (3.0, False)):
        held.clear()
        holder = threading.Thread(target=hold, args=(seconds,))
        holder.start()
        held.wait(10)
        if free:
            with cache.locked(path, wait=False):
                pass
        else:
            with pytest.raises(BlockingIOError), cache.locked(path, wait=False):
                pass
        holder.join()


PEAK = """
import sys
from pathlib import Path
import numpy as np
from utils import cache

cache.MAPPED_BYTES = 1 << 23
number = int(sys.argv[1])
videos = [str(i) for i in range(number)]
proposals = [np.sort(np.random.default_rng(i).uniform(0, 40, (20, 2)), 1) for i in range(number)]
load = lambda video: np.random.default_rng(int(video)).random((40, 512), dtype=np.float32)
rows, folder = cache.cached_rows(Path(sys.argv[2]), "x", videos, proposals, load, "s")
total = sum(float(rows.gather([v]).mean()) for v in range(number))
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))  # of this process alone
print((folder / "rows.npy").stat().st_size, int(peak) * 1024, total)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak from")
def test_memory_does_not_grow_with_the_number_of_videos(tmp_path):
    size, peak = {}, {}
    for number in (150, 1500):
        words = [sys.executable, "-c", PEAK, str(number), str(tmp_path / str(number))]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True, timeout=120)
        size[number], peak[number], _ = map(float, done.stdout.split())
    assert size[1500] - size[150] > 150e6
    assert 100e6 < peak[1500] < peak[150] + 50e6
