"""Pickles of plain data and numpy arrays, read without importing or calling anything that a file names.

Python's own unpickler asks ``find_class`` for every global; here it gets stand-ins of numpy's type, array and scalar.
Source: __reduce__ of numpy.ndarray, numpy.dtype and numpy's scalars, pickle protocols 0 to 5, numpy 1 and 2.
"""

from __future__ import annotations

import pickle
from typing import Any, BinaryIO, Callable, Optional

import numpy as np


class Refused(Exception):
    """Content that is damaged or asks for more than plain data."""


class _Named:
    """The stand-in of what a pickle may name: it can be called and nothing else."""

    def __init__(self, call: Callable):
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __setstate__(self, state: Any) -> None:
        raise Refused("sets the state of a function")


class _DType:
    """Stand-in of numpy.dtype: pickle makes it first and sets its byte order afterwards."""

    def __init__(self, descr: Any, align: bool = False, copy: bool = False):
        self.value = plain_dtype(np.dtype(descr))

    def __setstate__(self, state: tuple) -> None:
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stand-in of numpy.ndarray until the pickle is read: pickle makes it empty, then gives it its state."""

    def __init__(self, *kind: Any):
        self.made: Optional[np.ndarray] = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, body = state
        if dtype.value.hasobject:  # the items stand in C's order, whatever the array's
            items = np.empty(len(body), dtype=object)
            items[:] = _finished(body)
            self.made = items.reshape(shape)
        else:
            self.made = _from_buffer(body, dtype, shape, "F" if fortran else "C")


def _from_buffer(body: Any, dtype: _DType, shape: tuple, order: str = "C") -> np.ndarray:
    body = body.encode("latin-1") if isinstance(body, str) else body  # as Python 2 wrote it
    array = np.frombuffer(body, dtype.value).reshape(shape, order=order)  # refuses object arrays, and other lengths
    return check_unicode(array.copy(order="K"))


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"asks for _codecs.encode to {encoding}")
    return text.encode("latin-1")


_NAMES = {
    "numpy.ndarray": _Named(_Array),
    "numpy.dtype": _Named(_DType),
    "numpy.core.multiarray._reconstruct": _Named(_Array),
    "numpy.core.multiarray.scalar": _Named(lambda dtype, body: _from_buffer(body, dtype, ())[()]),
    "numpy.core.numeric._frombuffer": _Named(_from_buffer),
    "_codecs.encode": _Named(_encode),  # how protocol 2 writes bytes, and, next, those that are empty
    "__builtin__.bytes": _Named(lambda: b""),
}


class _Unpickler(pickle.Unpickler):
    """Reads plain data and numpy arrays; nothing that a file names is ever imported or called."""

    def find_class(self, module: str, name: str) -> _Named:
        numpy_1 = module.replace("numpy._core", "numpy.core")
        if f"{numpy_1}.{name}" not in _NAMES:
            raise Refused(f"asks for {module}.{name}, and a file may hold plain arrays and data only")
        return _NAMES[f"{numpy_1}.{name}"]


def unpickle(handle: BinaryIO) -> Any:
    """The value of the one pickle that a file holds from here to its end. Raises Refused, or what pickle raises."""
    value = _finished(_Unpickler(handle, encoding="latin1").load())
    if handle.read(1):
        raise Refused("bytes after the end of the pickle in it")
    return value


def _finished(value: Any) -> Any:
    """``value`` with arrays in the place of their stand-ins; Refused for any other stand-in."""
    if isinstance(value, _Array):
        return value.made
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)([_finished(item) for item in value])
    if isinstance(value, dict):
        return {_finished(key): _finished(item) for key, item in value.items()}
    if isinstance(value, (_Named, _DType)):
        raise Refused("a type where data should be")
    if isinstance(value, str):
        value.encode("utf-8")  # half a surrogate pair could be neither printed nor written
    return value


def plain_dtype(dtype: np.dtype) -> np.dtype:
    if dtype.kind not in "biufcSUO" or dtype.itemsize == 0:
        raise Refused(f"values of type {dtype}, which is neither number nor text")
    return dtype


def check_unicode(array: np.ndarray) -> np.ndarray:
    """The array, if its text is Unicode: numpy takes any bytes, and fails when they are used."""
    if array.dtype.kind == "U":
        "".join(array.ravel().tolist()).encode("utf-8")
    return array
