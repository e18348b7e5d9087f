"""The folder of a run: one run at a time, whole files, and everything needed to say where a number came from."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Dict, Iterator, Mapping, Optional

import torch

from utils.cache import locked
from utils.errors import InputError, printable
from utils.files import sweep, write_json, write_text
from utils.parallel import Group
from utils.report import log


@contextmanager
def experiment(folder: Optional[str], default: str, resume: bool, group: Group) -> Iterator[Path]:
    """Make, lock and yield the folder of a run.

    folder: as the user names it; None takes output/DEFAULT or the next free number after it. A folder that holds a
    run is refused unless ``resume``, as is one that another run holds. Raises InputError.
    """
    path = group.tell(Path(folder) if folder else _free(Path("output") / default))
    with ExitStack() as stack:
        problem = None
        if group.first:
            try:
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(path / ".lock", wait=False))
                if not resume and (path / "options.json").exists():
                    problem = InputError("this folder holds a run already", path, "add --resume or another --exp_dir")
                else:
                    for part in (path, path / "ckpt", path / "logs"):
                        sweep(part)
            except BlockingIOError:
                problem = InputError("another run is writing here", path, "wait for it, or name another --exp_dir")
            except OSError as error:
                problem = error
        problem = group.tell(problem)  # a refusal is everyone's, or the others would wait for ever
        if problem is not None:
            raise problem
        yield path


def _free(path: Path) -> Path:
    number, candidate = 1, path
    while (candidate / "options.json").exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def plain(args: object) -> Dict[str, object]:
    """Options as data: tuples become lists."""
    return json.loads(json.dumps(vars(args)))


def write_options(folder: Path, options: Mapping[str, object]) -> None:
    """opt.txt to read, options.json to load."""
    width = max(map(len, options))
    lines = [f"{k:<{width}}  {printable(str(v))}\n" for k, v in sorted(options.items())]  # a path may be no UTF-8
    write_text(folder / "opt.txt", "".join(lines))
    write_json(folder / "options.json", options)


def write_environment(folder: Path, device: torch.device, seed: int, hashes: Mapping[str, str]) -> None:
    """environment.json: versions, device, seed, commit of the code and hashes of the inputs."""
    import numpy
    import pandas

    root = Path(__file__).resolve().parent.parent
    try:
        git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        commit = None
    write_json(
        folder / "environment.json",
        {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "pandas": pandas.__version__,
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {os.cpu_count()} cores",
            "threads": torch.get_num_threads(),
            "seed": seed,
            "commit": commit,
            "inputs": dict(hashes),
            "command": sys.argv,
        },
    )


class Stop:
    """Ctrl-C and SIGTERM ask for a stop after the step; a second one, not the same one passed on (torchrun sends its
    own after the terminal's), stops at once."""

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
