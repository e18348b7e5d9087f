"""Several seeds in one command, one after the other or side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

import main
from tests.runs import (
    arguments,
    before_step,
    main_refuses,
    read,
    run,
    same,
    same_files,
    signalled,
    weights_of,
    without_test_videos,
)
from utils.errors import InputError

pytestmark = pytest.mark.usefixtures("hurried")


def test_seeds_end_with_mean_and_deviation(root, tmp_path, capsys):
    (root / "SIMULATED.txt").write_text("")
    out = run(root, tmp_path / "runs", "--seeds", 4, 0, 2)
    (root / "SIMULATED.txt").unlink()
    table = capsys.readouterr().out
    results, each = read(out), [read(out / f"seed{n}") for n in (4, 0, 2)]
    assert results["seeds"] == [4, 0, 2] and "SIMULATED" in table and results["last"]["mean"]["simulated"] is True
    for kind in ("last", "best"):
        values = np.asarray([r[kind]["mAP"] for r in each])
        np.testing.assert_allclose(results[kind]["mean"]["mAP"], values.mean(0))
        np.testing.assert_allclose(results[kind]["std"]["mAP"], values.std(0, ddof=1))
        assert f"{kind}, mean of 3 seeds" in table and f"{kind}, std of 3 seeds" in table
    assert same(weights_of(run(root, tmp_path / "alone", "--seed", 2)), weights_of(out / "seed2"))


def test_a_run_of_seeds_that_failed_resumes(root, tmp_path, monkeypatch):
    whole = run(root, tmp_path / "whole", "--seeds", 0, 1)
    before_step(monkeypatch, 11, Mock(side_effect=InputError("power cut")))
    words = arguments(root, tmp_path / "cut", "--seeds", 0, 1, "--save_seconds", 0)
    main_refuses(words, "power cut")
    monkeypatch.undo()
    assert main.main([*words, "--resume"]) == 0
    assert same_files(tmp_path / "cut", whole, ["results.json", "seed1/results.json", "seed1/detections.json"])


def test_a_stop_says_how_to_go_on_and_seeds_can_be_added_but_not_removed(root, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cut"
    before_step(monkeypatch, 3, signalled(signal.SIGINT))
    assert main.main(arguments(root, folder, "--seeds", 0, 1)) == 130
    assert f"--resume --exp_dir {folder}" in capsys.readouterr().err and not (folder / "seed1").exists()
    run(root, folder, "--seeds", 0, 1, "--resume")
    before = {name: read(folder, name) for name in ("options", "results")}
    assert before["options"]["seeds"] == [0, 1]
    main_refuses(arguments(root, folder, "--seeds", 1, "--resume"), "seeds [0] are in this run", "not removed")
    main_refuses(arguments(root, folder, "--seeds", 0, 1, "--resume", "--lr", 1), "lr was 0.001 and is 1.0")
    assert before == {name: read(folder, name) for name in before}
    run(root, folder, "--seeds", 0, 1, 2, "--resume")
    assert read(folder)["seeds"] == [0, 1, 2]


def test_side_by_side_gives_the_bits_of_one_after_the_other_also_after_a_stop(root, tmp_path):
    copy = without_test_videos(root, tmp_path / "tiny")
    calm = run(copy, tmp_path / "calm", "--seeds", 0, 1, epochs=60)
    words = arguments(copy, tmp_path / "jobs", "--seeds", 0, 1, "--jobs", 2, "--resume", epochs=60)
    command = [sys.executable, str(Path(main.__file__)), *words]
    states = [tmp_path / "jobs" / f"seed{n}" / "ckpt" / "last_state.pt" for n in (0, 1)]
    started = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not all(path.exists() for path in states) and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: to all of its processes
    said = started.communicate(timeout=300)[1]
    assert "Traceback" not in said and "interrupted" not in said, said
    assert started.returncode == (130 if "stopped in epoch" in said else 0), said  # one may have been through already
    run(copy, tmp_path / "jobs", "--seeds", 0, 1, "--resume", epochs=60)
    for n in (0, 1):
        assert same(weights_of(calm / f"seed{n}"), weights_of(tmp_path / "jobs" / f"seed{n}"))
