"""What can go wrong around a run: kills, signals, full disks, a second run, pipes, places that cannot be written.

Each ends in the right result or in one clear line and exit status 2, with all that was written before still whole.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.summary.writer import event_file_writer

import main
from tests import changes
from tests.kills import BITS, all_whole, arguments, differences, left_by
from tests.outcome import outcome, refused
from tests.runs import before_step, same_files, signalled
from utils import files

ROOT = Path(main.__file__).parent
ONE_CORE = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def train(root, place, *more):
    return outcome(main.main, arguments(root, place, *more))


@pytest.fixture(scope="module", autouse=True)
def calm(root, tmp_path_factory):
    """What a run leaves that nothing disturbs."""
    place, seconds = tmp_path_factory.mktemp("calm"), itertools.count(10**9)
    with pytest.MonkeyPatch.context() as patch:
        changes.no_pictures(patch)  # event files are named by the second, and no person resumes within one:
        patch.setattr(event_file_writer, "time", SimpleNamespace(time=seconds.__next__))
        assert train(root, place).status == 0
        yield left_by(place / "run")


def goes_on_to_the_same_bits(root, place, calm, *more):
    found = train(root, place, "--resume", *more)
    assert found.status == 0, found.log
    assert not differences(left_by(place / "run"), calm)


def test_a_run_killed_at_many_moments_ends_with_the_bits_of_one_that_was_not():
    command = [sys.executable, str(ROOT / "tests" / "kills.py"), "--kills", "25", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, env=ONE_CORE, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] >= 25 and counts["resumed from a state"] >= 10 and counts["chains"] >= 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_is_resumed(root, tmp_path, calm, monkeypatch, number):
    before_step(monkeypatch, 5, signalled(number))
    found, run = train(root, tmp_path), tmp_path / "run"
    assert found.status == 130 and "stopped in epoch 3; continue" in found.log and "--resume" in found.log
    assert files.load_checkpoint(run / "ckpt/last_state.pt")["step"] == 1
    test = ["--run_type", "test", "--pretrained_ckpt", run / "ckpt/last_model.pkl", "--exp_dir", tmp_path / "test"]
    assert train(root, tmp_path, *test).status == 0  # the model of the last evaluation, not of the stop
    assert same_files(tmp_path / "test", run, ["detections.json"])
    goes_on_to_the_same_bits(root, tmp_path, calm)


def test_a_model_whose_scores_are_not_finite_does_not_replace_a_good_one(root, tmp_path, monkeypatch):
    """Its weights are finite, but too large."""
    scored, large = main.evaluate, []

    def evaluate(model, *how):
        for p in model.parameters() if large else ():
            p.data.fill_(1e30)
        large.append(1)
        return scored(model, *how)

    monkeypatch.setattr(main, "evaluate", evaluate)
    refused(train(root, tmp_path), "scores that are not finite")
    first = json.loads((tmp_path / "run" / "results.json").read_text())["last"]["epoch"]
    for name in ("last", "best"):
        model = files.load_checkpoint(tmp_path / "run" / "ckpt" / f"{name}_model.pkl")
        assert all(float(p.abs().max()) < 10 for p in model.values()) and len(large) == 2 and first < 6


def test_what_a_kill_left_half_written_goes_and_a_run_without_its_state_starts_over(root, tmp_path, calm):
    assert train(root, tmp_path).status == 0
    for name in (".results.json.123.tmp", "ckpt/.last_state.pt.123.tmp", "logs/.events.out.123.tmp"):
        (tmp_path / "run" / name).write_text("half")
    goes_on_to_the_same_bits(root, tmp_path, calm)
    (tmp_path / "run/ckpt/last_state.pt").unlink()
    goes_on_to_the_same_bits(root, tmp_path, calm)


# ---- the disk


@pytest.mark.parametrize("limit", [300, 3_000, 20_000])
def test_a_limit_on_the_size_of_files_is_one_line(root, tmp_path, calm, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        found = train(root, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(found, "File too large", str(tmp_path))
    all_whole(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    goes_on_to_the_same_bits(root, tmp_path, calm)


@pytest.mark.parametrize("option", ["--exp_dir", "--cache_dir", "--descriptors_root"])
@pytest.mark.parametrize("place", ["/proc/nowhere", "file", "file/deeper", "read-only/new"])
def test_a_place_that_cannot_be_written_is_one_line(root, tmp_path, option, place):
    (tmp_path / "file").write_text("here already\n")
    (tmp_path / "read-only").mkdir(mode=0o500)
    folder = tmp_path / place
    if os.access(folder.parent, os.W_OK) and folder.name == "new":
        pytest.skip("permissions do not bind this user")
    assert folder.name in refused(train(root, tmp_path, option, folder))
    assert (tmp_path / "file").read_text() == "here already\n"


# ---- other data, other runs, pipes


def test_a_folder_in_use_by_another_run_is_refused_and_left_alone(root, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with files.locked(run / ".lock"):
        refused(train(root, tmp_path, "--resume"), "another run is writing here", str(run))
        assert [p.name for p in run.iterdir()] == [".lock"]
    assert train(root, tmp_path).status == 0
    refused(train(root, tmp_path), "already holds a run", "--resume")


def test_a_run_goes_on_when_nobody_reads_what_it_says(root, tmp_path, calm):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(ROOT / "main.py"), *arguments(root, tmp_path)]
    assert subprocess.run(command, env=ONE_CORE, timeout=120, stdout=write, stderr=write).returncode == 0
    os.close(write)
    assert all(left_by(tmp_path / "run")[name] == calm[name] for name in BITS)


def test_output_to_a_full_disk_is_one_line(root):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    command = [sys.executable, ROOT / "proposals.py", "stats", "--dataset_name", "Tiny", "--dataset_root", root]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=ONE_CORE, stdout=full, stderr=subprocess.PIPE, timeout=60, text=True)
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: No space left on device")
        and done.stderr.count("\n") == 1
    )
