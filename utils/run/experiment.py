"""The folder of a run: one run at a time, whole files, and everything needed to say where a number came from."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Dict, Iterator, Mapping, Optional

import numpy as np
import pandas as pd
import torch

from options import DEFAULTS
from utils.errors import InputError, printable
from utils.files import load_checkpoint, load_json, locked, sweep, write_json, write_text
from utils.run.report import log

# options that cannot change a result, or whose content is hashed: a run may be resumed with others
FREE = {"exp_dir", "resume", "cache_dir", "no_cache", "save_seconds", "pretrained_ckpt", "seeds", "jobs",
        "pictures", "dataset_root", "proposals_root", "descriptors_root"}  # fmt: skip
# what last_state.pt holds
STATE = {"model": dict, "optimizer": dict, "options": dict, "inputs": dict, "epoch": int, "step": int, "records": list,
         "term_names": list, "history": list}  # fmt: skip


def pick_device(name: str, tf32: bool = False) -> torch.device:
    """``auto``, ``cuda`` or ``cpu`` as a device; TF32 is off unless asked for. InputError where there is no CUDA."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32  # convolutions: of I3D
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if name == "cuda":
        raise InputError("--device cuda, but torch sees no CUDA device", None, "use --device cpu or check the driver")
    return torch.device("cpu")


@contextmanager
def experiment(folder: Optional[str], run_type: str, default: str, resume: bool = False) -> Iterator[Path]:
    """Make, lock and yield the folder of a run.

    folder: as the user names it; None takes output/DEFAULT or the next free number after it. A test or a prediction
    replaces one of its kind; any other run that is there is refused, unless ``resume``, as is a folder in which another
    run writes. Raises InputError.
    """
    paths = (Path("output") / (default if number == 1 else f"{default}-{number}") for number in count(1))
    path = Path(folder) if folder else next(p for p in paths if not (p / "options.json").exists())
    path.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path / ".lock", wait=False):
            if (path / "options.json").exists() and not resume:
                options = load_json(path / "options.json")
                there = options.get("run_type") if isinstance(options, dict) else None
                if there != run_type:
                    what = f"this folder already holds a run of another kind ({there})"
                    raise InputError(what, path, "name another --exp_dir")
                if run_type in ("train", "make"):
                    raise InputError("this folder already holds a run", path, "add --resume, or name another --exp_dir")
            for part in (path, path / "ckpt", path / "logs"):
                sweep(part)
            yield path
    except BlockingIOError:
        raise InputError("another run is writing here", path, "wait for it, or name another --exp_dir") from None


def plain(options: object) -> Dict[str, object]:
    """Options as data: tuples become lists."""
    return json.loads(json.dumps(vars(options)))


def record(folder: Path, options: Mapping[str, object], device: torch.device, inputs: Mapping[str, object]) -> None:
    """Write opt.txt to read and options.json to load, and environment.json: versions, device, seed, commit of the code,
    and hashes of the inputs."""
    width = max(map(len, options))
    lines = [f"{k:<{width}}  {printable(str(v))}\n" for k, v in sorted(options.items())]  # a path may be no UTF-8
    write_text(folder / "opt.txt", "".join(lines))
    write_json(folder / "options.json", options)
    git = ["git", "-C", str(Path(__file__).resolve().parents[2]), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        commit = None
    found = {
        "python": platform.python_version(),
        **{package.__name__: package.__version__ for package in (torch, np, pd)},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "seed": options["seed"],
        "commit": commit,
        "inputs": dict(inputs),
        "command": sys.argv,
    }
    write_json(folder / "environment.json", found)


def load_state(
    path: Path, options: Mapping[str, object], inputs: Mapping[str, object], form: Mapping[str, type] = STATE
) -> Optional[Dict]:
    """What ``--resume`` continues from; None where nothing is saved yet. form: what it holds, with "options", "inputs".

    Raises InputError for a foreign file, or if options or inputs that change the result differ.
    """
    if not path.exists():
        log(f"{path} is not there yet: starting from the beginning")
        return None
    state = load_checkpoint(path)
    if not isinstance(state, dict) or not all(isinstance(state.get(key), kind) for key, kind in form.items()):
        raise InputError("not the state of a run", path, "restore the file, or delete it to start this run again")
    for name, new in (("options", options), ("inputs", inputs)):
        unchanged(path, name, state[name], new)
    return state


def unchanged(path: Path, name: str, old: Mapping[str, object], new: Mapping[str, object]) -> None:
    """Raise InputError where options or inputs (``name``) that change the result differ from those in ``path``; an
    option that came after them had its default."""
    then = DEFAULTS if name == "options" else {}
    differ = [k for k in sorted({*old, *new}) if k not in FREE and old.get(k, then.get(k)) != new.get(k)]
    if differ:
        texts = ", ".join(f"{k} was {old.get(k, then.get(k))} and is {new.get(k)}" for k in differ)
        raise InputError(f"{name} differ: {texts}", path, "resume with the same, or name another --exp_dir")


class Stop:
    """Ctrl-C and SIGTERM ask for a stop after the step; a second one stops at once (but for torchrun's own, which
    follows the terminal's within moments)."""

    def __init__(self) -> None:
        self.asked, self.since = False, 0.0

    def _ask(self, number: int, frame: object) -> None:
        if self.asked and time.monotonic() - self.since > 1:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.since = True, time.monotonic()
            log("finishing the step, then saving")

    def __enter__(self) -> Stop:
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Board:
    """TensorBoard's files of a run below ``folder``; what earlier files hold from ``purge_step`` on no longer counts.

    What could not be written (a full disk) is an OSError at the next ``flush``.
    """

    def __init__(self, folder: Path, purge_step: Optional[int] = None):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only a training run needs it

        threading.excepthook = lambda args: None  # tensorboard's writing thread: its exception comes back in flush
        try:
            self.writer = SummaryWriter(str(folder), purge_step=purge_step or 0)
        except UnicodeEncodeError:
            todo = "name another --exp_dir"
            raise InputError("TensorBoard cannot write to a folder whose name is no UTF-8", folder, todo) from None

    def text(self, name: str, values: Mapping[str, object]) -> None:
        """Values as text, once, brought to the file."""
        self.writer.add_text(name, "```\n" + json.dumps(values, indent=1, default=str) + "\n```", 0)
        self.writer.flush()

    def scalars(self, values: Mapping[str, float], step: int, group: str = "") -> None:
        """``group/name`` for each value, or its name alone."""
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}" if group else name, value, step)

    def image(self, tag: str, image, step: int) -> None:
        """A picture, uint8 [H, W, 3]."""
        self.writer.add_image(tag, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Bring everything to the file. Raises OSError where that failed."""
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
