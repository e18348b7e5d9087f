"""Writing: a reader finds the old file or the new one, whole, whatever happens to the writer."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.errors import os_error_line
from utils.files import (
    atomic,
    content_hash,
    file_hash,
    load_array,
    load_checkpoint,
    load_json,
    locked,
    save_array,
    save_checkpoint,
    sweep,
    write_json,
    write_text,
)

ROOT = Path(__file__).resolve().parent.parent
WRITERS = {
    "write_text": lambda path: write_text(path, "new" * 10_000),
    "write_json": lambda path: write_json(path, {"new": list(range(10_000))}),
    "save_array": lambda path: save_array(path, np.arange(10_000)),
    "save_checkpoint": lambda path: save_checkpoint(path, {"new": torch.zeros(10_000)}),
}


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    return path


def test_a_write_appears_at_once_and_alone(old):
    with atomic(old) as scratch:
        assert scratch.parent == old.parent and scratch.name == f".results.json.{os.getpid()}.tmp"
        scratch.write_text("new")
        assert old.read_text() == "old"
    assert old.read_text() == "new" and os.listdir(old.parent) == ["results.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(old, error):
    with pytest.raises(error):
        with atomic(old) as scratch:
            scratch.write_text("half")
            raise error
    assert old.read_text() == "old" and os.listdir(old.parent) == ["results.json"]


@pytest.mark.parametrize("writer", WRITERS)
def test_folders_are_made_and_old_files_replaced(tmp_path, writer):
    path = tmp_path / "a" / "b" / "file"
    WRITERS[writer](path)
    first = path.read_bytes()
    path.write_text("old")
    WRITERS[writer](path)
    assert path.read_bytes() == first and os.listdir(path.parent) == ["file"]


def test_names_as_long_as_the_system_allows(tmp_path):
    for name in ("x" * 255, "視" * 85):
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_writer_leaves_the_old_file_and_sweep_removes_the_rest(old):
    code = (
        "import os, signal, sys; from utils.files import atomic\n"
        "with atomic(sys.argv[1]) as scratch:\n"
        "    scratch.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(old)], cwd=ROOT).returncode == -signal.SIGKILL
    mine = old.with_name(".keep.tmp")
    mine.write_text("not of this program")
    assert old.read_text() == "old" and len(os.listdir(old.parent)) == 3
    assert sweep(old.parent) == 1 and sorted(os.listdir(old.parent)) == [".keep.tmp", "results.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_device_is_an_error_that_names_the_file(old):
    with pytest.raises(OSError) as caught:
        with atomic(old) as scratch:
            scratch.symlink_to("/dev/full")
            scratch.write_text("new")
    assert caught.value.errno == errno.ENOSPC and str(old) in os_error_line(caught.value)
    assert old.read_text() == "old" and os.listdir(old.parent) == ["results.json"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_fills_while_it_writes_leaves_the_old_file(old, writer, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        WRITERS[writer](old)
    line = os_error_line(caught.value)
    assert str(old) in line and "disk space" in line and "\n" not in line
    assert old.read_text() == "old" and os.listdir(old.parent) == ["results.json"]


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
    done = subprocess.run([sys.executable, "-c", code, str(old)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{name} True" for name in WRITERS], done.stderr
    assert old.read_text() == "old" and os.listdir(old.parent) == ["results.json"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_place_that_cannot_be_written_is_an_oserror(old, writer):
    with pytest.raises(OSError):
        WRITERS[writer](old / "below a file")
    with pytest.raises(OSError):
        WRITERS[writer](old.parent)  # a folder
    assert old.read_text() == "old" and os.listdir(old.parent) == ["results.json"]


# ---- what is written ------------------------------------------------------------------------------------------------


def test_json_comes_back_and_non_finite_numbers_are_null(tmp_path):
    path = tmp_path / "a.json"
    value = {"map": 0.1 + 0.2, "é\ud800": [1, None, True], "array": np.eye(2), "number": np.float32(0.5)}
    write_json(path, value)
    expected = {"map": 0.1 + 0.2, "é\ud800": [1, None, True], "array": [[1, 0], [0, 1]], "number": 0.5}
    assert path.read_bytes().endswith(b"\n") and path.read_bytes().isascii()
    del value["é\ud800"], expected["é\ud800"]
    write_json(path, value, indent=1)
    assert load_json(path) == expected
    bad = {
        "a": [float("nan"), np.float32("inf")],
        "b": (-np.inf, 1.5),
        "c": np.array([np.nan, 2]),
        "d": np.float64("nan"),
    }
    write_json(path, bad)
    assert load_json(path) == {"a": [None, None], "b": [None, 1.5], "c": [None, 2.0], "d": None}


def test_what_has_no_form_leaves_the_old_file(old):
    for write in (
        lambda: write_json(old, {"a": object()}),
        lambda: write_json(old, {"a": [object(), float("nan")]}),
        lambda: save_array(old, np.array([1, "a"], dtype=object)),
        lambda: save_checkpoint(old, {"a": lambda: 0}),
    ):
        with pytest.raises((TypeError, ValueError, AttributeError, RuntimeError)):
            write()
        assert old.read_text() == "old" and os.listdir(old.parent) == ["results.json"]


def test_arrays_and_objects_come_back(tmp_path):
    array = np.empty(2, object)
    array[:] = [np.ones((2, 3), np.float32), ["a"]]
    save_array(tmp_path / "a", array, objects=True)
    assert load_array(tmp_path / "a", objects=True)[0].tolist() == [[1, 1, 1]] * 2
    save_array(tmp_path / "b.npy", np.arange(3))
    assert load_array(tmp_path / "b.npy").tolist() == [0, 1, 2]


def test_one_value_gives_the_same_bytes_under_any_name(tmp_path):
    value = {"w": torch.arange(5.0), "epoch": 3}
    save_checkpoint(tmp_path / "best_model.pkl", value)
    save_checkpoint(tmp_path / "last_state.pt", value)
    assert (tmp_path / "best_model.pkl").read_bytes() == (tmp_path / "last_state.pt").read_bytes()
    assert torch.equal(load_checkpoint(tmp_path / "last_state.pt")["w"], value["w"])


# ---- hashes ---------------------------------------------------------------------------------------------------------


def test_equal_content_has_one_hash_and_different_content_another(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for other in (array.copy(order="F"), np.repeat(array, 2, axis=0)[::2]):
        assert content_hash(other) == content_hash(array)
    zeros = np.zeros((2, 3), np.float32)
    parts = [(), ("ab",), ("a", "b"), ("", "ab"), (("a", "b"),), (1,), (1.0,), (True,), ("1",), (None,), (zeros,)]
    parts += [(zeros.T,), (zeros.ravel(),), (zeros.astype(np.int32),), (zeros + 1,), (zeros[0], zeros[1])]
    assert len({content_hash(*part) for part in parts}) == len(parts)


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 70_000  # more than one piece
    (tmp_path / "a").write_bytes(data)
    assert file_hash(tmp_path / "a") == hashlib.blake2b(data, digest_size=16).hexdigest()


LOCKER = """
import sys
from utils.files import locked
try:
    with locked(sys.argv[1], wait=False):
        print("free")
except BlockingIOError as error:
    print("taken", error.filename)
"""


def test_a_lock_is_held_by_one_process_and_freed_when_it_ends(tmp_path):
    path = tmp_path / "run.lock"

    def attempt():
        done = subprocess.run([sys.executable, "-c", LOCKER, str(path)], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.split()

    with locked(path):
        assert attempt() == ["taken", str(path)]
    assert attempt() == ["free"]
