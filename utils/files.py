"""The one door through which files enter and leave the program.

No file can run code, and whatever is wrong with one is one InputError. What leaves is written under a temporary name
and renamed, so that a reader finds the old file or the new one, whole. Errors of the system (permissions, a full disk)
stay OSError.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
import zipfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Dict, Iterator, Optional, Union

import numpy as np
from filelock import FileLock, Timeout

from utils.errors import InputError, printable
from utils.pickles import Refused, check_unicode, plain_dtype, unpickle

PathLike = Union[str, "os.PathLike[str]"]
AGAIN = "get or make the file again"

# ---- reading --------------------------------------------------------------------------------------------------------


def load_array(path: PathLike, *, mmap: bool = False, objects: bool = False, todo: Optional[str] = None) -> np.ndarray:
    """The array of a .npy file: booleans, numbers, bytes or text; with ``objects`` also object arrays of plain data.

    ``mmap`` maps arrays of numbers read-only instead of reading them. The header must account for every byte of the
    file. Raises InputError; ``todo`` is the advice for a missing file. Format: numpy.lib.format versions 1 to 3.
    """
    with _open(path, todo) as handle, _reading("not a .npy file that can be read", path):
        size, form = os.fstat(handle.fileno()).st_size, np.lib.format
        if handle.read(6) != b"\x93NUMPY":
            raise Refused("not a .npy file" if size else "an empty file")
        handle.seek(0)
        first = form.read_magic(handle) == (1, 0)
        shape, fortran, dtype = (form.read_array_header_1_0 if first else form.read_array_header_2_0)(handle)
        left, expected, order = size - handle.tell(), math.prod(shape) * dtype.itemsize, "F" if fortran else "C"
        if plain_dtype(dtype).hasobject:
            if not objects:
                raise Refused("an object array where plain numbers or text should be")
            array = unpickle(handle)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
                raise Refused("an object array that does not fit its header")
        elif left != expected:
            kind = "cut short" if left < expected else "with bytes after its end"
            raise Refused(f"an array {kind}: {left} bytes where shape {shape} of {dtype} has {expected}")
        elif mmap and expected and dtype.kind != "U":
            array = np.memmap(handle, dtype, "r", handle.tell(), shape, order)
        else:
            array = check_unicode(np.fromfile(handle, dtype, math.prod(shape)).reshape(shape, order=order))
        return array


def load_npz(path: PathLike, *, todo: Optional[str] = None) -> Dict[str, Any]:
    """The arrays of a .npz file by name, without objects; other members are bytes. Raises InputError."""
    with _open(path, todo) as handle, _reading("not a .npz archive that can be read", path):
        zipfile.ZipFile(handle)  # numpy would take other files, too
        handle.seek(0)
        with np.load(handle, allow_pickle=False) as archive:
            return dict(archive)


def load_pickle(path: PathLike, *, todo: Optional[str] = None) -> Any:
    """The value of a pickle of plain data and numpy arrays, of any protocol. Never runs code. Raises InputError."""
    with _open(path, todo) as handle, _reading("not a pickle that can be read", path):
        return unpickle(handle)


def load_torch(path: PathLike, *, todo: Optional[str] = None) -> Any:
    """What torch.save wrote (since torch 1.6), on the CPU: tensors and plain data. Never runs code. Raises InputError.

    Refuses TorchScript, and tensors that are complex or not dense.
    """
    import torch  # here, since commands that only read annotations should not wait for it

    with _open(path, todo) as handle, _reading("not a checkpoint that can be read", path):
        members = zipfile.ZipFile(handle).namelist() if zipfile.is_zipfile(handle) else []
        if not any(name.endswith("/data.pkl") for name in members) or any("constants.pkl" in name for name in members):
            raise Refused("no checkpoint of torch 1.6 or newer, or one cut short or of code (TorchScript)")
        handle.seek(0)
        try:
            value = torch.load(handle, map_location="cpu", weights_only=True)
        except Exception as error:  # not quoted: torch advises to load such files with weights_only=False
            asked = re.search(r"(?:GLOBAL|[Cc]lass|[Ff]unction) ([\w.]+\.\w+)", str(error))
            reason = f"asks for {asked[1]}, and a file may hold tensors and plain data only" if asked else "damaged"
            raise Refused(f"a checkpoint that torch {torch.__version__} cannot read: {reason}") from error
        items = [value]
        while items:
            item = items.pop()
            if isinstance(item, torch.Tensor) and (item.is_complex() or item.layout != torch.strided):
                raise Refused(f"a tensor that is {item.dtype}, {item.layout}")
            items += item.values() if isinstance(item, dict) else item if isinstance(item, (list, tuple)) else ()
    return value


def load_checkpoint(path: PathLike, *, todo: Optional[str] = None) -> Dict[str, Any]:
    """``load_torch`` of a dict of named tensors and nested plain data. Raises InputError."""
    value = load_torch(path, todo=todo)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError("a checkpoint that is no dict of named tensors", path, "save the state_dict with torch.save")
    return value


def load_json(path: PathLike, *, todo: Optional[str] = None, allow_nan: bool = False) -> Any:
    """The value of a JSON file in UTF-8. InputError, too, for a key given twice, and for NaN unless ``allow_nan``."""

    def refuse(literal: str) -> None:
        raise Refused(f"the number {literal}, which JSON cannot hold")

    def unique(pairs: list) -> dict:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            raise Refused(f"a key given twice: {next(key for key in keys if keys.count(key) > 1)!r}")
        return value

    with _open(path, todo) as handle, _reading("not a JSON file that can be read", path):
        text = handle.read().decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=float if allow_nan else refuse)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # half a surrogate pair could be neither printed nor written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def child(folder: PathLike, name: str, suffix: str = "") -> Path:
    """The path ``folder/name + suffix`` for a name read from a file, which must not leave the folder (InputError)."""
    file = name + suffix
    unsafe = name in ("", "..") or re.search(r"[/\\\0]", name) or file in (".", "..") or os.path.splitdrive(name)[0]
    with contextlib.suppress(UnicodeEncodeError):
        if not unsafe and len(os.fsencode(file)) <= 255:
            return Path(folder) / file
    raise InputError(f"the name {name[:100]!r} is no file name", folder, "rename it in the annotations")


def _open(path: PathLike, todo: Optional[str]) -> BinaryIO:
    """Open a regular file; anything else (a folder, a pipe that would block) is an InputError."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("no such file", path, todo) from None
    except ValueError:
        raise InputError("no file can have this name", str(path)) from None
    if not stat.S_ISREG(mode):
        raise InputError("a folder where a file should be" if stat.S_ISDIR(mode) else "not a regular file", path, todo)
    return open(path, "rb")


@contextlib.contextmanager
def _reading(what: str, where: object) -> Iterator[None]:
    """Whatever a parser raises on damaged bytes becomes one InputError; only the system's own errors stay."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Refused as error:
        raise InputError(str(error), where, AGAIN) from error.__cause__
    except Exception as error:  # zipfile, numpy, pickle and torch raise a dozen types
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # those two are seeks to nowhere
            raise
        detail = printable(str(error).strip().split("\n")[0][:200]) or type(error).__name__
        raise InputError(f"{what}: {detail}", where, AGAIN) from error


# ---- writing --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: PathLike) -> Iterator[Path]:
    """A temporary path beside ``path``, ``.NAME.PID.tmp``, that replaces it when the block ends well.

    The folder is made. On any exception the temporary file goes and the old file stays. Raises OSError, naming
    ``path``, where the system refuses.
    """
    path = Path(path)
    scratch = path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:200])}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        _sync(scratch)
        os.replace(scratch, path)
        with contextlib.suppress(OSError):  # not every file system can
            _sync(path.parent)  # the new name, too, should survive a loss of power
    except BaseException as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(scratch)):
            error.filename = str(path)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs no file open to read
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: PathLike) -> int:
    """Remove what killed runs left half-written in ``folder``. Returns how many. No other run may write there."""
    left = [path for path in Path(folder).glob(".*.tmp") if re.fullmatch(r"\..+\.[0-9]+\.tmp", path.name)]
    for path in left:
        path.unlink()
    return len(left)


def write_text(path: PathLike, text: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    _write(path, text.encode("utf-8"))


def write_json(path: PathLike, value: Any, *, indent: Optional[int] = None) -> None:
    """Write JSON, whole or not at all. Numpy values become numbers and lists, NaN and infinities become null."""
    try:
        text = json.dumps(value, allow_nan=False, indent=indent)
    except (TypeError, ValueError):  # numpy, or a number that JSON lacks; rare, so the slow way is taken only then
        text = json.dumps(_finite(value), allow_nan=False, indent=indent)
    _write(path, text.encode("utf-8") + b"\n")


def save_array(path: PathLike, array: np.ndarray, *, objects: bool = False) -> None:
    """Write a .npy file, whole or not at all; object arrays only with ``objects``."""
    with atomic(path) as scratch, open(scratch, "wb") as handle:
        # given a file itself, numpy would write past Python, and say nothing of a full disk but a number of items
        np.save(SimpleNamespace(write=handle.write), array, allow_pickle=objects)


def save_checkpoint(path: PathLike, value: Dict[str, Any]) -> None:
    """torch.save, whole or not at all; the same value gives the same bytes under any name.

    ``value``: a dict of tensors, containers, numbers and text. Bytes and numpy values would not load again.
    """
    import torch

    buffer = BytesIO()  # torch would write the temporary name into the file, and fail on a full disk without OSError
    torch.save(value, buffer)
    _write(path, buffer.getbuffer())


def _write(path: PathLike, data: Any) -> None:
    with atomic(path) as scratch, open(scratch, "wb") as handle:
        handle.write(data)


def _finite(value: Any) -> Any:
    """``value`` with numpy turned into Python and every non-finite number into None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def locked(path: PathLike, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock; the system frees it when the process ends, however it ends. BlockingIOError if taken.

    Without ``wait`` a taken lock is still tried for a second: a killed process may have been starting another one
    (git), which holds its files until it has begun.
    """
    lock = FileLock(str(path))
    try:
        lock.acquire(timeout=-1 if wait else 1)
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, "in use by another process", str(path)) from None
    try:
        yield
    finally:
        lock.release()


# ---- hashing --------------------------------------------------------------------------------------------------------


def content_hash(*parts: Any) -> str:
    """Hex BLAKE2b (128 bits) of arrays of numbers (type, shape, values), str, numbers, None and tuples of these."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            kind, data = f"array {part.dtype.str} {part.shape}", part.tobytes()
        else:
            kind, data = type(part).__name__, repr(part).encode("utf-8", "backslashreplace")
        digest.update(f"{kind} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def file_hash(path: PathLike, *, todo: Optional[str] = None) -> str:
    """Hex BLAKE2b (128 bits) of a file's bytes, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with _open(path, todo) as handle:
        for piece in iter(lambda: handle.read(1 << 24), b""):
            digest.update(piece)
    return digest.hexdigest()
