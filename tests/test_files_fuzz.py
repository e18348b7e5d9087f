"""Mutations of every kind of input file: each loads to a value that can be used, or is refused in one line."""

from __future__ import annotations

import json
import pickle
import pickletools
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.make_files import npy, object_npy, objects, saved, zipped
from utils.errors import InputError
from utils.files import load_array, load_checkpoint, load_json, load_npz, load_pickle

WORDS = [b"NaN", b"1e999", b"\\ud800", b"[" * 80, b'"a":1,"a":2', b"<U9", b"|O", b"cos\nsystem\n", b"\0" * 64]
WORDS += [bytes([ord(opcode.code)]) for opcode in pickletools.opcodes]
WORDS += [(n & ((1 << 64) - 1)).to_bytes(8, "little")[:k] for n in (-1, 0, 1 << 31, 1 << 62) for k in (1, 2, 4, 8)]
ITEMS = objects(["Diving", "é", b"\xff"], [[0.5, 1.5], (2, None)], {"k": [1]}, np.float32(1), np.ones((2, 3)), 1 << 70)
STATE = {"w": torch.ones(3, 4), "o": {"state": {0: torch.ones(2)}, "lr": 5e-5}, "name": "é"}
DOCUMENT = {"version": "1.3", "results": {"v_é\\": [{"segment": [0.5, 20.25], "score": -3e-7, "label": "a"}], "w": []}}
PICKLES = [pickle.dumps(ITEMS, protocol=p) for p in range(6)]
ARRAYS = [npy(np.arange(12, dtype=kind).reshape(3, 4)) for kind in ("<f4", ">f8", "<i2")] + [npy(np.array(["é", "v"]))]
KINDS = {  # good files, and how they are read
    "npy": (ARRAYS, load_array),
    "mapped npy": (ARRAYS, lambda path: load_array(path, mmap=True)),
    "object npy": ([object_npy(p, f"({len(ITEMS)},)") for p in PICKLES], lambda path: load_array(path, objects=True)),
    "pickle": (PICKLES, load_pickle),
    "npz": ([zipped({"a.npy": array}) for array in ARRAYS], load_npz),
    "json": ([json.dumps(DOCUMENT, ensure_ascii=ascii).encode() for ascii in (True, False)], load_json),
    "checkpoint": ([saved(STATE)], load_checkpoint),
}


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """One to three changes: bits, bytes, words; pieces cut, doubled, or taken from another file."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, length, start = rng.randrange(len(data) + 1), rng.choice((1, 2, 8, 100)), rng.randrange(len(other))
        word, piece = rng.choice(WORDS), bytes(data[at : at + length])
        changes = [(1, bytes([rng.randrange(256)])), (len(word), word), (0, word), (length, b""), (0, piece * 3)]
        changes += [(length, other[start : start + length]), (len(data), b"")]
        cut, new = rng.choice(changes)
        data[at : at + cut] = new
    return bytes(data)


def outcome(load, path: Path) -> str:
    """ "loaded" or "refused"; anything else is an exception."""
    try:
        repr(load(path))
        return "loaded"
    except MemoryError:  # a number that lies about a size
        return "refused"
    except InputError as error:
        assert str(error).isprintable() and len(str(error)) < 800, error
        return "refused"


@pytest.mark.filterwarnings("ignore")  # torch's, of odd pickles
@pytest.mark.parametrize("name", KINDS)
def test_every_mutation_loads_or_is_refused(tmp_path, name):
    files, load = KINDS[name]
    for data in files:
        (tmp_path / "file").write_bytes(data)
        assert outcome(load, tmp_path / "file") == "loaded"
    outcomes = set()
    for case in range(150):
        rng = random.Random(case)
        (tmp_path / "file").write_bytes(mutate(rng, rng.choice(files), rng.choice(files)))
        outcomes.add(outcome(load, tmp_path / "file"))
    assert outcomes == {"loaded", "refused"}
