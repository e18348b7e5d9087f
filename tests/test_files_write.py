"""Writing: a reader finds the old file or the new one, whole, whatever happens to the writer. Locks and hashes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.make_files import same
from utils import files

ROOT = Path(__file__).resolve().parent.parent
WRITERS = {
    "write_text": lambda path: files.write_text(path, "new" * 10_000),
    "write_json": lambda path: files.write_json(path, {"new": list(range(10_000))}),
    "save_array": lambda path: files.save_array(path, np.arange(10_000)),
    "save_checkpoint": lambda path: files.save_checkpoint(path, {"new": torch.zeros(10_000)}),
}


def python(code: str, *arguments: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    yield path
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["results.json"]


def test_a_write_appears_at_once_and_alone(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with files.atomic(path) as scratch:
        assert scratch.parent == path.parent and scratch.name == f".results.json.{os.getpid()}.tmp"
        scratch.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize("writer", WRITERS)
def test_folders_are_made_and_old_files_replaced(tmp_path, writer):
    path = tmp_path / "a" / "b" / "file"
    WRITERS[writer](path)
    first = path.read_bytes()
    path.write_text("old")
    WRITERS[writer](path)
    assert path.read_bytes() == first and os.listdir(path.parent) == ["file"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_writer_leaves_the_old_file_and_sweep_removes_the_rest(tmp_path):
    old, other = tmp_path / "results.json", tmp_path / ".keep.tmp"
    old.write_text("old")
    other.write_text("not of this program")
    code = (
        "import os, signal, sys; from utils.files import atomic\n"
        "with atomic(sys.argv[1]) as scratch:\n"
        "    scratch.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert python(code, old).returncode == -signal.SIGKILL
    assert old.read_text() == "old" and len(os.listdir(tmp_path)) == 3
    assert files.sweep(tmp_path) == 1 and sorted(os.listdir(tmp_path)) == [".keep.tmp", "results.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs the limits of POSIX")
def test_every_writer_meets_a_limit_of_the_system_with_oserror(old):
    code = (
        "import resource, sys\n"
        "from tests.test_files_write import WRITERS\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "for name, write in WRITERS.items():\n"
        "    try:\n"
        "        write(sys.argv[1])\n"
        "    except OSError as error:\n"
        "        print(name, error.filename == sys.argv[1])\n"
    )
    done = python(code, old)
    assert done.stdout.splitlines() == [f"{name} True" for name in WRITERS], done.stderr


def test_what_has_no_form_leaves_the_old_file(old):
    for write, value in (
        (files.write_json, {"a": object()}),
        (files.save_array, np.array([1, "a"], dtype=object)),
        (files.save_checkpoint, {"a": lambda: 0}),
    ):
        with pytest.raises((TypeError, ValueError, AttributeError, RuntimeError)):
            write(old, value)
    with pytest.raises(KeyboardInterrupt), files.atomic(old) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt


# ---- what is written ------------------------------------------------------------------------------------------------


def test_json_comes_back_and_non_finite_numbers_are_null(tmp_path):
    path, value = tmp_path / "a.json", {"map": 0.1 + 0.2, "é": [1, None, True]}
    files.write_json(path, value, indent=1)
    assert files.load_json(path) == value and path.read_bytes().isascii() and path.read_bytes().endswith(b"\n")
    files.write_json(path, {"a": [float("nan"), np.float32("inf")], "b": (-np.inf, 1.5), "c": np.array([np.nan, 2])})
    assert files.load_json(path) == {"a": [None, None], "b": [None, 1.5], "c": [None, 2.0]}


def test_arrays_and_checkpoints_come_back_and_the_bytes_do_not_depend_on_the_name(tmp_path):
    array = np.empty(2, object)
    array[:] = [np.ones((2, 3), np.float32), ["a"]]
    files.save_array(tmp_path / "a", array, objects=True)
    assert same(files.load_array(tmp_path / "a", objects=True), array)
    value = {"w": torch.arange(5.0), "epoch": 3}
    files.save_checkpoint(tmp_path / "best_model.pkl", value)
    files.save_checkpoint(tmp_path / "last_state.pt", value)
    assert (tmp_path / "best_model.pkl").read_bytes() == (tmp_path / "last_state.pt").read_bytes()
    assert torch.equal(files.load_checkpoint(tmp_path / "last_state.pt")["w"], value["w"])


# ---- hashes and locks -----------------------------------------------------------------------------------------------


def test_equal_content_has_one_hash_and_different_content_another(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for other in (array.copy(order="F"), np.repeat(array, 2, axis=0)[::2]):
        assert files.content_hash(other) == files.content_hash(array)
    zeros = np.zeros((2, 3), np.float32)
    parts = [(), ("ab",), ("a", "b"), ("", "ab"), (("a", "b"),), (1,), (1.0,), (True,), ("1",), (None,), (zeros,)]
    parts += [(zeros.T,), (zeros.ravel(),), (zeros.astype(np.int32),), (zeros + 1,), (zeros[0], zeros[1])]
    assert len({files.content_hash(*part) for part in parts}) == len(parts)
    data = bytes(range(256)) * 70_000  # more than one piece
    (tmp_path / "a").write_bytes(data)
    assert files.file_hash(tmp_path / "a") == hashlib.blake2b(data, digest_size=16).hexdigest()


def test_a_lock_is_held_by_one_process_and_freed_when_it_ends(tmp_path):
    path = tmp_path / "run.lock"
    code = (
        "import sys; from utils.files import locked\n"
        "try:\n"
        "    with locked(sys.argv[1], wait=False): print('free')\n"
        "except BlockingIOError as error: print('taken', error.filename)\n"
    )
    with files.locked(path):
        assert python(code, path).stdout.split() == ["taken", str(path)]
    assert python(code, path).stdout.split() == ["free"]
