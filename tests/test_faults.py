"""What can go wrong around a run: kills, full disks, files that vanish, a second run, clocks, pipes, damaged caches.

Each ends in the right result or in one clear line and exit status 2, with all that was written before still whole.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import main
from tests import tiny
from tests.changes import no_drawing
from tests.kills import arguments, differences, left_by, torn
from tests.outcome import outcome, refused
from utils import files
from utils.cache import locked

ROOT = Path(main.__file__).parent
ONE_CORE = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("data") / "tiny", videos=12)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    no_drawing(monkeypatch)


def train(root, exp_dir, *more, save_seconds=0):
    return outcome(main.main, arguments(root, exp_dir, save_seconds, *map(str, more)))


@pytest.fixture(scope="module")
def calm(root, tmp_path_factory):
    """What a run leaves that nothing disturbs."""
    exp_dir = tmp_path_factory.mktemp("calm") / "run"
    with pytest.MonkeyPatch.context() as patch:
        no_drawing(patch)
        assert train(root, exp_dir).status == 0
    return left_by(exp_dir)


def goes_on_to_the_same_bits(root, exp_dir, calm):
    found = train(root, exp_dir, "--resume")
    assert found.status == 0, found.log
    assert not differences(left_by(exp_dir), calm)


# ---- stopping


def test_a_run_killed_at_many_moments_ends_with_the_bits_of_one_that_was_not(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "kills.py"), "--kills", "30", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, env=ONE_CORE, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] >= 30 and counts["resumed from a state"] >= 10 and counts["chains"] >= 5


def test_a_kill_leaves_nothing_half_written_once_the_run_is_resumed(root, tmp_path, calm):
    """What a killed process could not remove: temporary files of a checkpoint, of results and of events."""
    assert train(root, tmp_path / "run").status == 0
    for name in (".results.json.123.tmp", "ckpt/.last_state.pt.123.tmp", "logs/.events.out.123.tmp"):
        (tmp_path / "run" / name).write_text("half")
    goes_on_to_the_same_bits(root, tmp_path / "run", calm)


# ---- the disk


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a tmpfs of so many KiB and returns its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kib, how="size"):
        options = f"remount,size={kib}k" if how == "grow" else f"size={kib}k"
        try:
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True)
        except OSError:
            pytest.skip("no mount command")
        if done.returncode:
            pytest.skip("this user cannot mount a small disk")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@pytest.mark.parametrize("kib", [4, 12, 20, 28, 44, 60, 76, 92, 108])
def test_a_disk_that_fills_up_is_one_line_and_more_room_ends_in_the_same_bits(root, tmp_path, calm, small_disk, kib):
    disk = small_disk(kib)
    exp_dir = disk / "run"
    refused(train(root, exp_dir), "No space left on device", str(disk), "free some disk space")
    assert not torn(exp_dir) and not list(exp_dir.rglob("*.tmp"))
    small_disk(8192, "grow")
    goes_on_to_the_same_bits(root, exp_dir, calm)


@pytest.mark.parametrize("kib", [4, 8, 12, 16, 20, 24])
def test_a_disk_that_fills_up_during_the_cache_leaves_no_part_of_one(root, tmp_path, small_disk, kib):
    cache = small_disk(kib) / "cache"
    refused(train(root, tmp_path / "run", "--cache_dir", cache), "No space left on device", str(cache))
    assert not list(cache.glob("*.building"))
    left = {p.relative_to(cache): p.read_bytes() for p in cache.glob("*/*.npy")}  # a split that fitted is whole
    assert len(left) in (0, 3)
    small_disk(8192, "grow")
    assert train(root, tmp_path / "run", "--cache_dir", cache).status == 0
    assert train(root, tmp_path / "calm", "--cache_dir", tmp_path / "whole").status == 0
    assert all((tmp_path / "whole" / path).read_bytes() == data for path, data in left.items())


def test_every_write_that_fails_is_one_line_and_the_run_goes_on_from_there(root, tmp_path, calm, monkeypatch):
    """The disk is full at the n-th file that is written, for n all over a run; it has room again for the next try."""
    real, number = files._sync, 0

    def full(path):
        nonlocal number
        number -= 1
        if number == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path)

    monkeypatch.setattr(files, "_sync", full)
    failed = 0
    for number in range(1, 60, 4):
        at, number = number, number
        found = train(root, tmp_path / "run", "--resume")
        if found.status == 0:
            break
        refused(found, "No space left on device", str(tmp_path))
        assert not torn(tmp_path / "run") and not list(tmp_path.rglob("*.tmp")), at
        failed += 1
    assert failed >= 5
    number = 0
    goes_on_to_the_same_bits(root, tmp_path / "run", calm)


@pytest.mark.parametrize("limit", [300, 2000, 20_000])
def test_a_limit_on_the_size_of_files_is_one_line(root, tmp_path, calm, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        found = train(root, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(found, "File too large", str(tmp_path))
    assert not torn(tmp_path / "run") and not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob("*.building"))
    goes_on_to_the_same_bits(root, tmp_path / "run", calm)


@pytest.mark.parametrize("option", ["--exp_dir", "--cache_dir", "--descriptors_root"])
@pytest.mark.parametrize("place", ["/proc/nowhere", "/sys/nowhere", "a file", "in a file", "read-only"])
def test_a_place_that_cannot_be_written_is_one_line(root, tmp_path, option, place):
    folder = Path(place)
    if place.startswith("/") and not folder.parent.is_dir():
        pytest.skip(f"no {folder.parent} here")
    if place == "read-only":
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("permissions do not bind this user")
        folder = folder / "new"
    elif not place.startswith("/"):
        folder = tmp_path / "file"
        folder.write_text("here already\n")
        folder = folder / "deeper" if place == "in a file" else folder
    found = train(root, tmp_path / "run", option, folder)
    assert str(folder.name) in refused(found)
    if (tmp_path / "file").exists():
        assert (tmp_path / "file").read_text() == "here already\n"


# ---- files that change under a run


def test_a_feature_file_removed_while_training_without_cache_is_named(root, tmp_path, calm, monkeypatch):
    data = shutil.copytree(root, tmp_path / "tiny")
    features = data / "Tiny-I3D-JOINTFeatures"
    real, steps = main.Run.take_step, []

    def remove_in_the_fifth(self, videos):
        steps.append(videos)
        if len(steps) == 5:
            for path in features.glob("*.npy"):
                path.unlink()
        return real(self, videos)

    monkeypatch.setattr(main.Run, "take_step", remove_in_the_fifth)
    line = refused(train(data, tmp_path / "run", "--no_cache"), "no such file", str(features / "video_"))
    assert "README" in line or "-" in line
    assert not torn(tmp_path / "run") and files.load_checkpoint(tmp_path / "run/ckpt/last_state.pt")["epoch"] == 3
    monkeypatch.undo()
    shutil.rmtree(data)
    shutil.copytree(root, data)
    found = train(data, tmp_path / "run", "--resume")  # now with a cache: the same bits
    assert found.status == 0, found.log
    left = left_by(tmp_path / "run")
    assert all(left[name] == calm[name] for name in ("ckpt/last_model.pkl", "results.json", "detections.json"))


def test_a_finished_cache_trains_on_when_the_features_are_removed_on_the_way(root, tmp_path, calm, monkeypatch):
    data = shutil.copytree(root, tmp_path / "tiny")
    real = main.Run.take_step

    def without_features(self, videos):
        shutil.rmtree(data / "Tiny-I3D-JOINTFeatures", ignore_errors=True)
        return real(self, videos)

    monkeypatch.setattr(main.Run, "take_step", without_features)
    assert train(data, tmp_path / "run").status == 0
    assert not differences(left_by(tmp_path / "run"), calm)


@pytest.mark.parametrize("what", ["features", "labels", "proposals", "ground truth"])
def test_a_run_is_not_resumed_on_other_data(root, tmp_path, what):
    data = shutil.copytree(root, tmp_path / "tiny")
    assert train(data, tmp_path / "run").status == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.suffix != ".lock"}
    annotations = data / "Tiny-Annotations"
    if what == "features":
        path = next((data / "Tiny-I3D-JOINTFeatures").glob("*.npy"))
        np.save(path, np.load(path) + 1)
    elif what == "labels":
        np.save(annotations / "labels_all.npy", tiny.objects([["throw"], ["jump"]] * 6))
    elif what == "ground truth":
        segments = np.load(annotations / "segments.npy", allow_pickle=True)
        np.save(annotations / "segments.npy", tiny.objects([[[0.5, 1.5]] * len(s) for s in segments]))
    else:
        path = data / "Proposals_Tiny_train.json"
        document = json.loads(path.read_text())
        document["results"]["video_00"].pop()
        path.write_text(json.dumps(document))
    refused(train(data, tmp_path / "run", "--resume"), "inputs differ", "last_state.pt")
    assert before == {p: p.read_bytes() for p in before}


def test_a_folder_in_use_by_another_run_is_refused_and_left_alone(root, tmp_path):
    exp_dir = tmp_path / "run"
    exp_dir.mkdir()
    with locked(exp_dir / ".lock"):
        for more in ((), ("--resume",)):
            refused(train(root, exp_dir, *more), "another run is writing here", str(exp_dir))
        assert [p.name for p in exp_dir.iterdir()] == [".lock"]
    assert train(root, exp_dir).status == 0


def test_a_lock_that_a_killed_run_leaves_for_a_moment_is_waited_for(root, tmp_path):
    """A child that was forked and has not begun its own program yet still holds what its parent held."""
    exp_dir = tmp_path / "run"
    exp_dir.mkdir()
    code = "import fcntl, os, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(flush=True); "
    code += "time.sleep(0.2); os._exit(0)"
    with subprocess.Popen([sys.executable, "-c", code, exp_dir / ".lock"], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert train(root, exp_dir).status == 0


# ---- clocks and pipes


def test_nothing_depends_on_a_clock_that_jumps(root, tmp_path, calm, monkeypatch):
    """Every reading of the clock is years before or after the last; the run is stopped and goes on in its past."""
    random = np.random.default_rng(4)
    latest = 2_000_000_000

    def reading():
        return float(random.uniform(latest - 500_000_000, latest))

    monkeypatch.setattr(time, "time", reading)
    monkeypatch.setattr(time, "time_ns", lambda: int(reading() * 1e9))
    real, steps = main.Run.take_step, []

    def stop_in_the_sixth(self, videos):
        steps.append(videos)
        if len(steps) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, videos)

    monkeypatch.setattr(main.Run, "take_step", stop_in_the_sixth)
    assert train(root, tmp_path / "run").status == 130
    latest -= 600_000_000
    goes_on_to_the_same_bits(root, tmp_path / "run", calm)
    goes_on_to_the_same_bits(root, tmp_path / "run", calm)


def test_a_run_goes_on_when_nobody_reads_what_it_says(root, tmp_path, calm):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(ROOT / "main.py"), *arguments(root, tmp_path / "run", 0)]
    assert subprocess.run(command, env=ONE_CORE, timeout=120, stdout=write, stderr=write).returncode == 0
    os.close(write)
    left = left_by(tmp_path / "run")
    assert all(left[name] == calm[name] for name in ("ckpt/last_model.pkl", "results.json", "detections.json"))


def test_output_to_a_full_disk_is_one_line(root, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    command = [sys.executable, str(ROOT / "proposals.py"), "stats", "--dataset_name", "Tiny", "--dataset_root", root]
    with open("/dev/full", "w") as full:
        done = subprocess.run([str(x) for x in command], env=ONE_CORE, stdout=full, stderr=subprocess.PIPE, timeout=60)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: No space left on device")


# ---- what is kept between runs


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-5])


def nonsense(path):
    path.write_bytes(b"\x93NUMPY nonsense")


def other_shape(path):
    np.save(path, np.zeros((3, 3), np.float32))


@pytest.mark.parametrize("damage", [cut_short, nonsense, other_shape, Path.unlink])
@pytest.mark.parametrize("name", ["rows.npy", "num_snippets.npy", "video_mean.npy"])
def test_a_damaged_cache_is_built_anew(root, tmp_path, calm, name, damage):
    assert train(root, tmp_path / "first").status == 0
    for path in (tmp_path / "cache").glob(f"*/{name}"):
        damage(path)
    found = train(root, tmp_path / "run")
    assert found.status == 0, found.log
    assert found.log.count("the cache is damaged, building it anew: ") == 2
    shutil.rmtree(tmp_path / "first")
    assert not differences(left_by(tmp_path / "run"), calm)


def test_a_cache_that_a_kill_left_half_built_is_built_anew(root, tmp_path, calm):
    assert train(root, tmp_path / "first").status == 0
    for folder in [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]:
        (folder / "num_snippets.npy").unlink()
        folder.rename(folder.with_name(folder.name + ".building"))
    assert train(root, tmp_path / "run").status == 0
    assert not differences(left_by(tmp_path / "run"), calm)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"/x": 3}', '{"/x": [1, 2]}', "\0"])
def test_damaged_memory_of_hashes_costs_a_reading_and_nothing_else(root, tmp_path, calm, text):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "hashes.json").write_text(text)
    assert train(root, tmp_path / "run").status == 0
    assert not differences(left_by(tmp_path / "run"), calm)


def test_descriptors_are_made_anew_when_a_kill_came_between_them_and_their_note(root, tmp_path, monkeypatch):
    """Else the next features would be met with descriptors of the last."""
    import descriptors

    data = shutil.copytree(root, tmp_path / "tiny")
    where = tmp_path / "descriptors"
    for fail_at in range(1, 4):
        shutil.rmtree(where, ignore_errors=True)
        writes = []

        def killed(write, writes=writes, fail_at=fail_at):
            def wrapped(*args, **kwargs):
                writes.append(1)
                if len(writes) == fail_at:
                    raise KeyboardInterrupt
                return write(*args, **kwargs)

            return wrapped

        with monkeypatch.context() as patch:
            for name in ("save_array", "write_json"):
                patch.setattr(descriptors, name, killed(getattr(descriptors, name)))
            assert train(data, tmp_path / f"a{fail_at}").status == 130
        for path in (data / "Tiny-I3D-JOINTFeatures").glob("*.npy"):
            np.save(path, np.load(path)[:, ::-1].copy())
        assert train(data, tmp_path / f"b{fail_at}").status == 0
        found = [np.load(where / f"general_{name}_descriptors.npy") for name in ("appearance", "motion")]
        assert train(data, tmp_path / f"c{fail_at}", "--descriptors_root", tmp_path / f"fresh{fail_at}").status == 0
        for name, values in zip(("appearance", "motion"), found):
            fresh = np.load(tmp_path / f"fresh{fail_at}" / f"general_{name}_descriptors.npy")
            np.testing.assert_array_equal(values, fresh)


@pytest.mark.parametrize("how, step", [("killed", 3), ("killed", 17), ("stopped", 12)])
def test_a_run_over_seeds_goes_on_in_the_seed_it_had_reached(root, tmp_path, monkeypatch, step, how):
    """10 steps a seed: the third is in the first seed, the others are in the second."""
    seeds = ["--seeds", 3, 4]
    assert train(root, tmp_path / "calm", *seeds).status == 0
    real, steps = main.Run.take_step, []

    def disturbed(self, videos):
        steps.append(videos)
        if len(steps) == step:
            if how == "killed":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, videos)

    with monkeypatch.context() as patch:
        patch.setattr(main.Run, "take_step", disturbed)
        assert train(root, tmp_path / "run", *seeds).status == 130
    found = train(root, tmp_path / "run", "--resume", *seeds)
    assert found.status == 0, found.log
    for name in ("results.json", "seed3/results.json", "seed4/detections.json", "seed3/ckpt/last_model.pkl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes(), name
