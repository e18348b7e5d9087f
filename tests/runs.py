"""Runs on the tiny dataset, in this process or in several, and what they leave."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import socket
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from tests import changes
from tests.outcome import Outcome, outcome, refused
from utils.errors import run_command
from utils.files import load_checkpoint
from utils.run import report


def arguments(root, exp_dir, *more, epochs=4, run_type="train"):
    options = {"run_type": run_type, "exp_dir": exp_dir, "max_epoch": epochs, "interval": 2}
    return changes.arguments(root, exp_dir.parent, *more, **options, recipe="paper", protocol="wtal")


def run(root, exp_dir, *more, **how):
    assert main.main(arguments(root, exp_dir, *more, **how)) == 0
    return exp_dir


def main_refuses(words, *says):
    return refused(outcome(main.main, words), *says)


def before_step(patch, number, do):
    """Call ``do(run)`` before the given step, counted over all runs of this process from now on."""
    real, steps = main.Run.take_step, count(1)

    def take_step(self, videos):
        if next(steps) == number:
            do(self)
        real(self, videos)

    patch.setattr(main.Run, "take_step", take_step)


def signalled(number):
    """For ``before_step``: a signal to this process, the first of those of its run."""
    return lambda run: run.group.rank or os.kill(os.getpid(), number)


def run_test(checkpoint, root, exp_dir, *more):
    return run(root, exp_dir, "--pretrained_ckpt", checkpoint, *more, run_type="test")


def read(exp_dir, name="results"):
    return json.loads((exp_dir / f"{name}.json").read_text())


def weights_of(exp_dir, name="last"):
    return load_checkpoint(exp_dir / "ckpt" / f"{name}_model.pkl")


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values())) and list(a) == list(b)


def same_files(a, b, names=("results.json", "mAP-results.log", "detections.json")):
    return all((a / name).read_text() == (b / name).read_text() for name in names)


def without_test_videos(root, place):
    """A copy of the dataset whose annotations have training videos alone."""
    copy = Path(shutil.copytree(root, place))
    path = copy / "Tiny-Annotations" / "subset.npy"
    np.save(path, np.full_like(np.load(path), "validation"))
    (copy / "Proposals_Tiny_test.json").unlink()
    return copy


# ---- several processes


def _process(rank: int, size: int, port: int, place: Path, argv, change) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    report.FIRST = rank == 0
    with (
        (place / f"out{rank}").open("w") as out,
        (place / f"log{rank}").open("w") as log,
        pytest.MonkeyPatch.context() as patch,
    ):
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(log):
            changes.hurry(patch)
            if change:
                change(patch)
            run_command(lambda: main.main(argv))


def in_processes(size, place, argv, change=None):
    """Run main.py as torchrun would start it, on the loopback interface. change: a function of the module of a test,
    called in each process with a MonkeyPatch. The processes are forked from one that has read the program already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["main", "tests.runs", "torch.utils.tensorboard"])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    place.mkdir(exist_ok=True)
    started = [context.Process(target=_process, args=(r, size, port, place, argv, change)) for r in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    texts = [[(place / f"{kind}{rank}").read_text() for kind in ("log", "out")] for rank in range(size)]
    return [Outcome(process.exitcode, [], *said) for process, said in zip(started, texts)]
