"""The one door through which files enter and leave the program.

What enters is looked through before memory is taken, and whatever is wrong with it is one InputError; no file can run
code. What leaves is written under a temporary name and renamed, so that a reader finds the old file or the new one,
whole. Errors of the system itself (permissions, a full disk) stay OSError.
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
import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Dict, Iterator, Optional, Union

import numpy as np

from utils.errors import InputError
from utils.npy import CHUNK, read_npy
from utils.scan import members, scan_checkpoint
from utils.strict_json import read_json
from utils.unpickle import Refused, shown

PathLike = Union[str, "os.PathLike[str]"]

# ---- reading --------------------------------------------------------------------------------------------------------


def load_array(path: PathLike, *, mmap: bool = False, objects: bool = False, todo: Optional[str] = None) -> np.ndarray:
    """The array of a .npy file: booleans, numbers, bytes or text; with ``objects`` also object arrays of plain data.

    ``mmap`` maps arrays of numbers read-only instead of reading them. The header must account for every byte of the
    file. Strings of Python 2 come as str where they are ASCII, else as bytes. Raises InputError; ``todo`` is the
    advice for a missing file. Format: numpy.lib.format versions 1 to 3.
    """
    with _open(path, todo) as handle, _reading("not a .npy file that can be read", path):
        return read_npy(handle, os.fstat(handle.fileno()).st_size, mmap=mmap, objects=objects)


def load_npz(path: PathLike, *, one: bool = False, todo: Optional[str] = None) -> Dict[str, np.ndarray]:
    """The arrays of a .npz file by name, under the rules of ``load_array`` without objects.

    With ``one``, other than one array is refused before any is read. Members may be stored or deflated; each, and all
    together, unpack to at most 100 times their bytes plus 16 MiB. Raises InputError.
    """
    arrays = {}
    with _open(path, todo) as handle, _reading("not a .npz archive that can be read", path):
        size = os.fstat(handle.fileno()).st_size
        with zipfile.ZipFile(handle) as archive:
            infos = members(archive, size, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            if one and len(infos) != 1:
                raise InputError(f"{len(infos)} arrays in one file", path, "one array a file, [T, 2D]")
            for info in infos:
                name = info.filename
                if not name.endswith(".npy") or re.search(r"^/|//|\\|(^|/)\.\.?/", name):
                    raise Refused(f"an archive with a member that is no array: {shown(name)}")
                where = f"{path}, {shown(name)}"
                with _reading("not an array that can be read", where), archive.open(info) as stream:
                    arrays[name[: -len(".npy")]] = read_npy(stream, info.file_size)
                    stream.read(1)  # the end of a member is where its checksum is compared
    return arrays


def load_json(path: PathLike, *, max_bytes: int = 1 << 28, todo: Optional[str] = None, allow_nan: bool = False) -> Any:
    """The value of a JSON file in UTF-8, read as ``utils.strict_json`` does. InputError, too, beyond ``max_bytes``."""
    with _open(path, todo) as handle, _reading("not a JSON file that can be read", path):
        if os.fstat(handle.fileno()).st_size > max_bytes:
            raise Refused(f"a JSON file of more than {max_bytes} bytes", "leave out what is not read")
        raw = handle.read()
    return read_json(raw, path, allow_nan)


def load_checkpoint(path: PathLike, *, todo: Optional[str] = None) -> Dict[str, Any]:
    """What torch.save wrote, on the CPU: a dict of tensors and nested plain data. Never runs code.

    The file is looked through first (utils.scan), then read by torch.load(weights_only=True). Raises InputError.
    """
    import torch  # here, since commands that only read annotations should not wait for it

    with _open(path, todo) as handle, _reading("not a checkpoint that can be read", path):
        scan_checkpoint(handle, os.fstat(handle.fileno()).st_size)
        handle.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                value = torch.load(handle, map_location="cpu", weights_only=True)
            except Exception as error:  # not quoted: torch advises to load such files with weights_only=False
                if isinstance(error, OSError) and error.errno:
                    raise
                raise Refused(f"a checkpoint that torch {torch.__version__} cannot read") from error
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise Refused("a checkpoint that is no dict of named tensors", "save the state_dict with torch.save")
    return value


def child(folder: PathLike, name: str, suffix: str = "") -> Path:
    """The path ``folder/name + suffix`` for a name read from a file, which must not leave the folder (InputError)."""
    unsafe = not name or re.search(r"[/\\\0]", name) or name == ".." or os.path.splitdrive(name)[0]
    try:
        unsafe = unsafe or name + suffix in (".", "..") or len(os.fsencode(name + suffix)) > 255
    except UnicodeEncodeError:
        unsafe = True
    if unsafe:
        raise InputError(f"the name {shown(name)!r} is no file name", folder, "rename it in the annotations")
    return Path(folder) / (name + suffix)


def _open(path: PathLike, todo: Optional[str]) -> BinaryIO:
    """Open a regular file; anything else (a folder, a pipe that would block) is an InputError."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("no such file", path, todo) from None
    except ValueError:
        raise InputError("no file can have this name", shown(str(path))) from None
    if not stat.S_ISREG(mode):
        raise InputError("a folder where a file should be" if stat.S_ISDIR(mode) else "not a regular file", path, todo)
    return open(path, "rb")


@contextlib.contextmanager
def _reading(what: str, where: object) -> Iterator[None]:
    """Whatever a parser raises on hostile bytes becomes one InputError; only the system's own errors stay."""
    try:
        yield
    except InputError:
        raise
    except Refused as error:
        raise InputError(str(error), where, error.todo) from error.__cause__
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # those two are seeks to nowhere, not failures of the disk
            raise
        raise InputError(f"{what}: {shown(error)}", where, "get or make the file again") from error
    except Exception as error:  # zipfile, torch and the pickle machine raise a dozen types
        detail = shown(str(error).strip().split("\n")[0]) or type(error).__name__
        raise InputError(f"{what}: {detail}", where, "get or make the file again") from error


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
    descriptor = os.open(path, os.O_RDONLY)
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
        text = json.dumps(value, allow_nan=False, default=_plain, indent=indent)
    except ValueError:  # a number that JSON lacks; rare, so the slow way is taken only then
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


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _finite(value: Any) -> Any:
    """``value`` with numpy turned into Python and every non-finite number into None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- hashing --------------------------------------------------------------------------------------------------------


def content_hash(*parts: Any) -> str:
    """Hex BLAKE2b (128 bits) of arrays (type, shape, values), bytes, str, numbers, None, and Paths (their content)."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        part = part.item() if isinstance(part, np.generic) else part
        if isinstance(part, np.ndarray):
            if part.dtype.hasobject:
                raise TypeError("an object array has no bytes of its own: hash its items")
            kind, data = f"array {part.dtype.str} {part.shape}", np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        elif isinstance(part, Path):
            kind, data = "file", file_hash(part).encode()
        elif isinstance(part, bytes):
            kind, data = "bytes", part
        elif part is None or isinstance(part, (str, bool, int, float)):
            kind, data = type(part).__name__, repr(part).encode("utf-8", "backslashreplace")
        else:
            raise TypeError(f"no hash for {type(part).__name__}")
        digest.update(f"{kind} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def file_hash(path: PathLike, *, todo: Optional[str] = None) -> str:
    """Hex BLAKE2b (128 bits) of a file's bytes, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with _open(path, todo) as handle:
        for piece in iter(lambda: handle.read(CHUNK), b""):
            digest.update(piece)
    return digest.hexdigest()
