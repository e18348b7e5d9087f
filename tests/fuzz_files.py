"""Mutations of every kind of input file: each must load to a plain value or be refused in one line.

``python -m tests.fuzz_files --cases 100000 --seed 0`` runs it for longer; ``--keep FILE`` keeps the file that failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import pickle
import pickletools
import random
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, Callable, Counter, Iterator, List, NamedTuple

import numpy as np
import torch

from tests.make_files import npy, object_npy, objects, saved, zipped
from utils.errors import InputError
from utils.files import load_array, load_checkpoint, load_json, load_npz

MEMORY = 1 << 30  # bytes of addresses that one load may take; the files have a few kilobytes
_OPCODES = [ord(opcode.code) for opcode in pickletools.opcodes]
_NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1]
_WORDS = [
    b"NaN",
    b"1e999",
    b"\\ud800",
    b"[" * 80,
    b'"a":1,"a":2',
    b"<U9",
    b"|O",
    b"(-1,)",
    b"cos\nsystem\n",
    b"\0" * 64,
]

_ITEMS = objects(
    *(["Diving", "é", b"\xff"], [[0.5, 1.5], (2, None)], {"k": [1, 2]}, np.float32(1), np.arange(6.0).reshape(2, 3)),
    *(objects([1], "x"), 1 << 70, -1.5, True, np.array(["é", "b"])),
)
_STATE = {
    "model": collections.OrderedDict(weight=torch.ones(3, 4), bias=torch.arange(3.0)),
    "optimiser": {"state": {0: {"step": torch.tensor(1.0), "mean": torch.ones(3, 4)[:, 1:]}}, "groups": [{"lr": 5e-5}]},
    "random": torch.arange(20, dtype=torch.uint8),
    "options": {"name": "é", "epoch": 3},
}
_STATE["model"]._metadata = collections.OrderedDict({"": {"version": 1}})
_JSON = {
    "version": "1.3",
    "results": {"v_é\\": [{"segment": [0.5, 20.25], "score": -3e-7, "label": "a b"}], "w": [None, True]},
}
_ARRAYS = [npy(np.arange(12, dtype=kind).reshape(3, 4)) for kind in ("<f4", ">f8", "<i2")]
_ARRAYS += [npy(np.array(items)) for items in (["é", "video"], [b"a", b"bc"], [True, False], 1.5)]
_CHECKPOINT = saved(_STATE)


def _members(archive: bytes) -> dict:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


class Kind(NamedTuple):
    seeds: List[bytes]  # good files, or the part of one that is mutated
    load: Callable[[Path], Any]
    wrap: Callable[[bytes], bytes] = bytes  # from that part to the file
    reference: Callable[[Path], Any] = lambda path: None  # what the value must equal, if it gives one


KINDS = {
    "npy": Kind(_ARRAYS, load_array, reference=lambda path: np.load(path, allow_pickle=False)),
    "mapped npy": Kind(_ARRAYS, lambda path: load_array(path, mmap=True)),
    "object npy": Kind(
        [object_npy(pickle.dumps(_ITEMS, protocol=p), f"({len(_ITEMS)},)") for p in range(6)],
        lambda path: load_array(path, objects=True),
    ),
    "npz": Kind(
        [
            zipped({"a.npy": _ARRAYS[0], "b.npy": _ARRAYS[3]}, method)
            for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        ],
        load_npz,
    ),
    "npz member": Kind(_ARRAYS, load_npz, lambda data: zipped({"a.npy": data}, zipfile.ZIP_DEFLATED)),
    "json": Kind(
        [
            json.dumps(_JSON, indent=indent, ensure_ascii=ascii).encode()
            for indent in (None, 1)
            for ascii in (True, False)
        ],
        load_json,
        reference=lambda path: json.loads(path.read_text("utf-8-sig")),
    ),
    "checkpoint": Kind([_CHECKPOINT], load_checkpoint),
    "checkpoint pickle": Kind(
        [_members(_CHECKPOINT)["archive/data.pkl"]],
        load_checkpoint,
        lambda data: zipped({**_members(_CHECKPOINT), "archive/data.pkl": data}),
    ),
}


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """One to five changes: bits, bytes, opcodes, numbers, words; pieces cut, doubled, moved or taken from ``other``."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, 16, 100))
        piece = data[at : at + length]
        way = rng.randrange(11)
        if way == 0 and piece:
            data[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif way == 2:
            data[at : at + 1] = bytes([rng.choice(_OPCODES)])
        elif way == 3:
            data[at:at] = bytes([rng.choice(_OPCODES)])
        elif way == 4:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(_NUMBERS) & ((1 << 8 * size) - 1)
            data[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
        elif way == 5:
            del data[at : at + length]
        elif way == 6:
            data[at:at] = piece * rng.choice((1, 2, 50))
        elif way == 7:
            to = rng.randrange(len(data) + 1)
            data[to : to + length] = piece
        elif way == 8:
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        elif way == 9:
            data[at : at + rng.choice((0, length))] = rng.choice(_WORDS)
        else:
            del data[rng.choice((at, len(data) - length)) :]
    return bytes(data)


def check_plain(value: Any, depth: int = 0) -> None:
    """AssertionError unless ``value`` is made of plain types that can be used and printed."""
    assert depth <= 64, "too deep"
    if isinstance(value, dict):
        for key in value:
            check_plain(key, depth + 1)
            check_plain(value[key], depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)) or (isinstance(value, np.ndarray) and value.dtype.hasobject):
        for item in value.ravel().tolist() if isinstance(value, np.ndarray) else value:
            check_plain(item, depth + 1)
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        repr(value.tolist())
    elif isinstance(value, (str, np.str_)):
        value.encode("utf-8")
    else:
        assert value is None or isinstance(value, (bool, int, float, complex, bytes, bytearray, np.generic)), type(
            value
        )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Allocations beyond MEMORY fail inside the block, where the system can do that."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def try_case(kind: Kind, data: bytes, path: Path) -> str:
    """ "loaded" or "refused"; anything else is an AssertionError."""
    path.write_bytes(data)
    try:
        value = kind.load(path)
    except InputError as error:
        line = str(error)
        assert line.isprintable() and len(line) < 600 + len(str(path)), f"no readable line: {line!r}"
        return "refused"
    except MemoryError:  # a number that lies about a size
        return "refused"
    check_plain(value)
    expected = kind.reference(path)
    assert expected is None or same(value, expected), "another value than the reference"
    return "loaded"


def fuzz(cases: int, seed: int, keep: str = "", only: str = "") -> Counter:
    """Run ``cases`` mutations over all kinds; {(kind, outcome): count}. AssertionError at the first failure."""
    outcomes: Counter = collections.Counter()
    names = [name for name in KINDS if only in ("", name)]
    with tempfile.TemporaryDirectory() as folder, limited_memory():
        for case in range(cases):
            name = names[case % len(names)]
            kind = KINDS[name]
            rng = random.Random(f"{seed}/{case}")
            data = kind.wrap(mutate(rng, rng.choice(kind.seeds), rng.choice(kind.seeds)))
            try:
                outcomes[name, try_case(kind, data, Path(folder) / "file")] += 1
            except Exception as error:
                if keep:
                    Path(keep).write_bytes(data)
                raise AssertionError(f"{name}, seed {seed}, case {case}: {type(error).__name__}: {error}") from error
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", choices=["", *KINDS], help="one kind of file")
    parser.add_argument("--keep", default="", help="where to write the file that failed")
    args = parser.parse_args()
    start = time.perf_counter()
    outcomes = fuzz(args.cases, args.seed, args.keep, args.only)
    for name in KINDS:
        print(f"{name:18} {outcomes[name, 'loaded']:8} loaded {outcomes[name, 'refused']:8} refused")
    print(f"{sum(outcomes.values())} cases survived in {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
