"""A long training in one process: ``python tests/soak.py``. Memory, open files and time for 100 epochs stay flat.

Prints a row for every 100 epochs and ends with status 1 if anything grows.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

import main
from tests import tiny

COLUMNS = ("epochs", "RSS MB", "open files", "threads", "Python objects", "seconds")


def measure() -> list:
    """RSS in MB, open file handles, threads, and objects that Python's collector knows."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    handles = len(os.listdir("/proc/self/fd"))
    return [pages * os.sysconf("SC_PAGE_SIZE") / 1e6, handles, threading.active_count(), len(gc.get_objects())]


def soak(epochs: int, every: int, videos: int, width: int, interval: int) -> list:
    """Train and return a row for every so many epochs."""
    folder = Path(tempfile.mkdtemp())
    root = tiny.write(folder / "tiny", videos=videos, width=width, proposals=30, snippets=60)
    rows, real, began = [], main.Run.batches, time.perf_counter()
    print("".join(f"{name:>16}" for name in COLUMNS))

    def batches(run):
        nonlocal began
        if run.step == 0 and run.epoch % every == 1 and run.epoch > len(rows) * every + 1:
            rows.append([run.epoch - 1, *measure(), time.perf_counter() - began])
            print("".join(f"{value:16.1f}" for value in rows[-1]), flush=True)
            began = time.perf_counter()
        return real(run)

    main.Run.batches = batches
    options = {
        "dataset_name": "Tiny", "dataset_root": root, "exp_dir": folder / "run", "cache_dir": folder / "cache",
        "descriptors_root": folder / "descriptors", "device": "cpu", "max_epoch": epochs + 1, "interval": interval,
        "save_seconds": 0,
    }  # fmt: skip
    status = main.main([str(text) for key, value in options.items() for text in (f"--{key}", value)])
    size = {p.name: p.stat().st_size for p in (folder / "run").rglob("*") if p.is_file()}
    print("files of the run, MB:", {name: round(n / 1e6, 2) for name, n in sorted(size.items()) if n > 1e5})
    shutil.rmtree(folder)
    assert status == 0 and len(rows) == epochs // every
    return rows


def grows(rows: list) -> list:
    """What grew after the first rows, in which buffers fill: columns whose later half lies above the earlier one."""
    table = np.asarray(rows)[1:]
    early, late = table[: len(table) // 2], table[len(table) // 2 :]
    most = {"RSS MB": 3.0, "open files": 0, "threads": 0, "Python objects": 2000}
    found = [
        name
        for name in most
        if np.median(late, 0)[COLUMNS.index(name)] > np.median(early, 0)[COLUMNS.index(name)] + most[name]
    ]
    slower = np.median(late, 0)[-1] > 1.25 * np.median(early, 0)[-1]
    return found + ["seconds"] * bool(slower)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--interval", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = grows(soak(options.epochs, options.every, options.videos, options.width, options.interval))
    print(f"grows: {', '.join(found)}" if found else "flat")
    sys.exit(bool(found))
