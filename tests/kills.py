"""Kill -9 of a training at many seeded moments, each followed by ``--resume``: ``python tests/kills.py --kills 2000``.

The program is imported once and each attempt runs in a forked child, so that a kill costs a fraction of a second. A
chain of attempts in one folder ends with one that is left alone; what it leaves must equal, bit for bit, what a run
that was never disturbed left. After every kill each file in the folder must be whole.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from tqdm import tqdm

import descriptors
import main
from tests import changes, tiny
from utils import files
from utils.datasets import rows
from utils.run import experiment

WRITING = {module.__file__ for module in (descriptors, experiment, files, rows)}  # where kills are aimed at
BITS = ("results.json", "mAP-results.log", "detections.json", "ckpt/last_model.pkl", "ckpt/best_model.pkl")


def arguments(root: Path, place: Path, *more: object, save_seconds: float = 0) -> list:
    return changes.arguments(root, place, *more, max_epoch=5, interval=2, save_seconds=save_seconds)


def left_by(exp_dir: Path) -> dict:
    """All that must be equal, by name; events in order, as TensorBoard's own reader sees them."""
    found = {name: (exp_dir / name).read_bytes() for name in BITS}
    state = files.load_checkpoint(exp_dir / "ckpt" / "last_state.pt")
    found.update({f"state, {part}": _bits(state[part]) for part in ("model", "optimizer", "epoch", "step", "history")})
    events = EventAccumulator(str(exp_dir / "logs"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    tags = events.Reload().Tags()
    found.update({tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]})
    found.update({tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]})
    found.update({tag: {e.step for e in events.Tensors(tag)} for tag in tags["tensors"]})  # texts: it never purges them
    found["files"] = sorted(p.name for p in exp_dir.rglob("*") if p.is_file() and "tfevents" not in p.name)
    return found


def _bits(value):
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return [(key, _bits(item)) for key, item in value.items()]
    return [_bits(item) for item in value] if isinstance(value, (list, tuple)) else value


def differences(found: dict, expected: dict) -> list:
    return [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]


def all_whole(exp_dir: Path) -> None:
    """Every file under its final name can be read; InputError otherwise."""
    for path in exp_dir.rglob("*"):
        if path.suffix in (".pkl", ".pt"):
            files.load_checkpoint(path)
        elif path.suffix == ".json":
            files.load_json(path)


def watch(do) -> None:
    """``do()`` at every call and return, in Python or into C, of the files that write."""
    sys.setprofile(lambda frame, *_: do() if frame.f_code.co_filename in WRITING else None)


def attempt(argv: list, log: Path, second: int, event: int = 0, number: int = signal.SIGKILL) -> int:
    """Run the program in a forked child; returns its exit status, or minus the signal that ended it.

    second: by which the child names its event file; no person resumes within one. event: at which of those that are
    watched it gets the signal; 0: never.
    """
    child = os.fork()
    if child == 0:
        status, left = 70, itertools.count(event, -1)
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1), os.dup2(handle, 2)
            event_file_writer.time = SimpleNamespace(time=lambda: 1e9 + second)
            if event:
                watch(lambda: next(left) == 1 and os.kill(os.getpid(), number))
            status = main.main(argv)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def survive(kills: int, seed: int, folder: Path, more: list) -> dict:
    """Make so many kills of runs with ``more`` options; AssertionError at the first thing that is torn or differs."""
    torch.set_num_threads(1)
    changes.no_pictures(pytest.MonkeyPatch())
    tqdm.monitor_interval = 0  # no thread that a fork would lose
    tqdm.set_lock(threading.RLock())  # its own lock is shared between processes: a killed child would keep it
    root, log, seconds = tiny.write(folder / "tiny", videos=12), folder / "child.log", itertools.count()
    events, done = itertools.count(), Counter()
    watch(lambda: next(events))
    assert main.main(arguments(root, folder / "calm", *more)) == 0  # here, so that children find all imported
    sys.setprofile(None)
    expected, events = left_by(folder / "calm" / "run"), next(events)
    gc.freeze()  # children share what is there
    while done["kills"] < kills:
        random, place = np.random.default_rng([seed, done["chains"]]), folder / f"chain-{done['chains']}"
        for left in range(int(random.integers(2, 9)), -1, -1):  # the last attempt is left alone
            had_state = (place / "run/ckpt/last_state.pt").exists()
            argv = arguments(root, place, "--resume", *more, save_seconds=float(random.choice([0, 0, 60])))
            number = signal.SIGTERM if random.random() < 0.2 else signal.SIGKILL
            event = 1 + int(events * random.random() ** 1.5) if left else 0
            status = attempt(argv, log, next(seconds), event, number)
            what = f"chain {done['chains']}, event {event} of {events}: status {status}\n{log.read_text()}"
            assert status in ((0, -signal.SIGKILL, -signal.SIGTERM, 130) if left else (0,)), what
            all_whole(place / "run")
            done.update({"kills": status < 0, "stops": status > 0, "resumed from a state": had_state})
        assert not (found := differences(left_by(place / "run"), expected)), f"{found}, {what}"
        done["chains"] += 1
    return dict(done)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options, more = parser.parse_known_args()  # what it does not know are options of the training
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # fsync costs nothing there
    with tempfile.TemporaryDirectory(dir=memory) as where:
        print(json.dumps(survive(options.kills, options.seed, Path(where), more)))
