"""Kill -9 of a training at many seeded moments, each followed by ``--resume``: ``python tests/kills.py --kills 2000``.

The program is imported once and each attempt runs in a forked child, so that a kill costs a fraction of a second. A
chain of attempts in one folder ends with one that is left alone; what it leaves must equal, bit for bit, what a run
that was never disturbed left. After every kill each file in the folder must be whole.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from tqdm import tqdm

import main
from eval import inference
from tests import tiny
from utils import files

EPOCHS = 5
# where a kill is worth aiming at: inputs kept between runs, then writes of checkpoints, results and event files
EARLY = ("utils.cache.Rows.build", "utils.cache.FileHashes.save", "main.load_or_make", "main.write_environment")
LATE = ("utils.files._write", "main.Run.save_state", "main.Run.evaluate", "main.save_model", "utils.board.take_back")


def arguments(root: Path, exp_dir: Path, save_seconds: float, *more: str) -> list:
    options = {
        "dataset_name": "Tiny", "dataset_root": root, "exp_dir": exp_dir, "device": "cpu", "batch_size": 3,
        "descriptors_root": exp_dir.parent / "descriptors", "cache_dir": exp_dir.parent / "cache", "lr": 1e-3,
        "max_epoch": EPOCHS, "interval": 2, "save_seconds": save_seconds,
    }  # fmt: skip
    return [text for key, value in options.items() for text in (f"--{key}", str(value))] + list(more)


def events_of(folder: Path) -> dict:
    """Everything in the event files, in order: scalars and pictures with values, texts by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    tags = found.Tags()
    scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]}
    images = {tag: [(e.step, e.encoded_image_string) for e in found.Images(tag)] for tag in tags["images"]}
    return {**scalars, **images, **{tag: [e.step for e in found.Tensors(tag)] for tag in tags["tensors"]}}


def left_by(exp_dir: Path) -> dict:
    """All that must be equal, by name."""
    names = ("results.json", "mAP-results.log", "detections.json", "ckpt/last_model.pkl", "ckpt/best_model.pkl")
    found = {name: (exp_dir / name).read_bytes() for name in names}
    state = files.load_checkpoint(exp_dir / "ckpt" / "last_state.pt")
    for part in ("model", "optimizer", "epoch", "step", "history"):
        found[f"last_state.pt, {part}"] = repr(_bits(state[part]))
    found.update({f"logs, {tag}": values for tag, values in events_of(exp_dir / "logs").items()})
    found["half-built caches"] = sorted(p.name for p in exp_dir.parent.glob("cache/*.building"))
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


def torn(exp_dir: Path) -> list:
    """Files under their final names that cannot be read."""
    broken = []
    for path in exp_dir.rglob("*"):
        try:
            if path.suffix in (".pkl", ".pt"):
                files.load_checkpoint(path)
            elif path.suffix == ".json":
                files.load_json(path)
            elif path.suffix in (".log", ".txt") and not path.read_text().endswith("\n"):
                broken.append(f"{path.name}: no end of line")
        except Exception as error:
            broken.append(f"{path.name}: {error}")
    return broken


# ---- one attempt


def in_pieces(path, data, pieces=5) -> None:
    """utils.files._write in several writes, so that a kill can fall between them."""
    data = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    with files.atomic(path) as scratch, open(scratch, "wb", buffering=0) as handle:
        for part in np.array_split(np.arange(len(data)), pieces):
            handle.write(data[part[0] : part[-1] + 1] if len(part) else b"")


def die_at(event: int) -> None:
    """SIGKILL to oneself at the given call or return from now on, in Python or into C."""
    left = event

    def count(frame, what, argument):
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def aim(target: str, call: int, event: int) -> None:
    """Die at an event inside the given call of a function."""
    module, _, name = target.partition(".") if target.startswith("main.") else _split(target)
    holder, *_ = owners = [importlib.import_module(module)]
    *path, name = name.split(".")
    for part in path:
        owners.append(getattr(owners[-1], part))
    holder = owners[-1]
    real, calls = getattr(holder, name), 0

    @functools.wraps(real)
    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            die_at(event)
        try:
            return real(*args, **kwargs)
        finally:
            if calls == call:
                sys.setprofile(None)

    setattr(holder, name, counted)


def _split(target: str):
    parts = target.split(".")
    return ".".join(parts[:2]), ".", ".".join(parts[2:])


def attempt(argv: list, log: Path, prepare=None, after_s=None, number=signal.SIGKILL) -> int:
    """Run the program in a forked child; returns its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1), os.dup2(handle, 2)
            files._write = in_pieces
            if prepare is not None:
                prepare()
            status = main.main(argv)
        except BaseException as error:
            sys.setprofile(None)
            import traceback

            print(f"error: {error}", file=sys.stderr)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_events(argv: list, log: Path) -> int:
    """How many events ``die_at`` would count in a whole run."""
    note = log.with_suffix(".events")

    def prepare():
        count = 0

        def tick(frame, what, argument):
            nonlocal count
            count += 1

        sys.setprofile(tick)
        real = os._exit

        def leave(status):
            sys.setprofile(None)
            note.write_text(str(count))
            real(status)

        os._exit = leave

    assert attempt(argv, log, prepare) == 0, log.read_text()
    return int(note.read_text())


# ---- chains of attempts


def survive(kills: int, seed: int, folder: Path, more: list) -> dict:
    """Make so many kills of runs with ``more`` options; AssertionError at the first thing that is torn or differs."""
    torch.set_num_threads(1)
    inference.timeline = lambda *what: None  # to draw would take most of the time
    inference.figure_to_array = lambda figure: np.zeros((2, 2, 3), np.uint8)
    tqdm.monitor_interval = 0  # no thread that a fork would lose
    tqdm.set_lock(threading.RLock())  # its own lock is shared between processes: a killed child would keep it
    root = tiny.write(folder / "tiny", videos=12)
    log = folder / "child.log"
    status = main.main(
        arguments(root, folder / "calm" / "run", 0, *more)
    )  # in this process: children find all imported
    assert status == 0
    expected = left_by(folder / "calm" / "run")
    gc.freeze()  # children share what is there
    began = time.monotonic()
    assert attempt(arguments(root, folder / "again" / "run", 60, *more), log) == 0, log.read_text()
    run_s = time.monotonic() - began
    assert not (found := differences(left_by(folder / "again" / "run"), expected)), found
    total = count_events(arguments(root, folder / "counted" / "run", 0, *more), log)

    done: Counter = Counter()
    chain = 0
    while done["kills"] < kills:
        random = np.random.default_rng([seed, chain])
        place = folder / f"chain-{chain}"
        exp_dir = place / "run"
        for _ in range(int(random.integers(2, 12))):
            argv = arguments(root, exp_dir, float(random.choice([0, 0, 0.05, 60])), "--resume", *more)
            how = random.choice(["moment", "event", "inside", "inside", "stop"])
            had_state = (exp_dir / "ckpt" / "last_state.pt").exists()
            if how in ("moment", "stop"):
                number = signal.SIGKILL if how == "moment" else signal.SIGTERM
                status = attempt(argv, log, None, float(random.uniform(0, 0.9 * run_s)), number)
            elif how == "event":
                status = attempt(argv, log, lambda r=random: die_at(int(r.integers(1, total))))
            else:
                how = str(random.choice(LATE if had_state else EARLY + LATE[:-1]))
                call, event = int(random.geometric(0.6)), int(10 ** random.uniform(0, 2.3))
                status = attempt(argv, log, functools.partial(aim, how, call, event))
            what = f"chain {chain}, {how}"
            assert status in (0, -signal.SIGKILL, -signal.SIGTERM, 130), f"{what}: status {status}\n{log.read_text()}"
            assert not (broken := torn(exp_dir)), f"{what}: {broken}"
            if status:
                done.update({"kills": 1, how: 1, "resumed from a state": int(had_state)})
            else:
                done["finished before the kill"] += 1
                break
        for again in range(1 + int(random.random() < 0.3)):  # a finished run that is resumed stays as it is
            assert attempt(arguments(root, exp_dir, 60, "--resume", *more), log) == 0, (
                f"chain {chain}: {log.read_text()}"
            )
            found = differences(left_by(exp_dir), expected)
            assert not found, f"chain {chain}, resumed {again + 1} times at the end: {found}, see {exp_dir}"
        shutil.rmtree(place)
        chain += 1
    done["chains"] = chain
    return dict(done)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    options, more = parser.parse_known_args()  # what it does not know are options of the training
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # fsync costs nothing there
    where = options.folder or Path(tempfile.mkdtemp(dir=memory))
    began_s = time.monotonic()
    counts = survive(options.kills, options.seed, where, more)
    print(json.dumps({**counts, "seconds": round(time.monotonic() - began_s, 1)}))
    if options.folder is None:
        shutil.rmtree(where)
