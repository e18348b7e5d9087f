"""NumPy's .npy format and the pickles inside it: the header must account for every byte before memory is taken.

Source: numpy.lib.format, versions 1 to 3; __reduce__ of numpy.ndarray, numpy.dtype and NumPy's scalars.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any, BinaryIO

import numpy as np

from utils.unpickle import Machine, Refused, Rules, Window, encode_bytes, load_pickle, plain_keys, shown

MAX_EMPTY = 1 << 20  # length of a dimension whose array holds nothing: looping over it must end
MAX_NESTED = 1000  # object arrays right inside one another: numpy frees such a chain by recursion in C
CHUNK = 1 << 24  # bytes per read: a compressed member of an archive is never unpacked in one piece

_DESCR = re.compile(r"[<>|=]?(?:[iu][1248]|f[248]|c8|c16|b1|\?|[SU][1-9][0-9]{0,7}|O[48]?)")


class _DType:
    """Stand-in of numpy.dtype: pickle makes it first and sets its byte order afterwards."""

    def __init__(self, descr: object):
        self.value = plain_dtype(descr)


def plain_dtype(descr: object) -> np.dtype:
    """Booleans, numbers, bytes, text and object; Refused for records, times, raw memory and strings of no length."""
    text = descr.decode("latin-1") if isinstance(descr, bytes) else descr
    if not isinstance(text, str) or not _DESCR.fullmatch(text):
        raise Refused(f"values of type {shown(text)}, which is neither number nor text")
    return np.dtype("O") if "O" in text else np.dtype(text)


def body_bytes(dtype: np.dtype, shape: tuple) -> int:
    """Bytes of an array of that type and shape (tuple of int); Refused where numpy or a loop could not cope."""
    if type(shape) is not tuple or len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape):
        raise Refused(f"an array of shape {shown(shape)}")
    if not prod(shape) and max(shape) > MAX_EMPTY:
        raise Refused(f"an empty array of shape {shown(shape)}")
    return prod(shape) * dtype.itemsize


def check_values(raw: Any, dtype: np.dtype) -> None:
    """Refuse bytes that are no booleans or no Unicode: numpy takes them, and fails or lies when they are used."""
    if dtype.kind == "b" and (np.frombuffer(raw, np.uint8) > 1).any():
        raise Refused("booleans that are neither 0 nor 1")
    if dtype.kind == "U":
        codes = np.frombuffer(raw, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if ((codes > 0x10FFFF) | (codes >> 11 == 0xD800 >> 11)).any():
            raise Refused("text that is no Unicode")


def _bytes(machine: Machine, raw: object, dtype: np.dtype, shape: tuple) -> bytes:
    """``raw`` as the bytes of such an array; Python 2 gives them as text where they happen to be ASCII."""
    raw = raw.encode("latin-1") if isinstance(raw, str) else raw
    if type(raw) not in (bytes, bytearray) or len(raw) != body_bytes(dtype, shape) or dtype.hasobject:
        raise Refused(f"an array of shape {shown(shape)} and type {dtype} that does not fit its bytes")
    machine.spend(len(raw))
    check_values(raw, dtype)
    return raw


def _new_dtype(machine: Machine, descr: object, align: object = False, copy: object = True) -> _DType:
    if align not in (0, False) or copy not in (0, 1, False, True):
        raise Refused("a dtype with options")
    return _DType(descr)


def _new_array(machine: Machine, subtype: object, shape: object, typecode: object) -> np.ndarray:
    """numpy's _reconstruct: always an empty array, which BUILD fills."""
    if getattr(subtype, "name", None) != "numpy.ndarray" or shape != (0,) or typecode not in (b"b", "b"):
        raise Refused(f"an array made in an unusual way: {shown(getattr(subtype, 'name', subtype))}, {shown(shape)}")
    return np.zeros(0, np.int8)


def _scalar(machine: Machine, dtype: _DType, raw: object) -> np.generic:
    return np.frombuffer(_bytes(machine, raw, dtype.value, ()), dtype.value)[0]


def _from_buffer(machine: Machine, raw: object, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
    """numpy's _frombuffer (protocol 5). A copy, since torch wants arrays that may be written to."""
    raw = _bytes(machine, raw, dtype.value, shape)
    return np.frombuffer(raw, dtype.value).copy().reshape(shape, order="F" if order == "F" else "C")


def _set(machine: Machine, items: list) -> set:
    machine.spend(len(items))
    return set(plain_keys(items))


def _build_array(machine: Machine, made: Any, state: Any) -> None:
    if type(made) is np.ndarray:
        _, shape, dtype, fortran, raw = state
        dtype = dtype.value
        if dtype.hasobject:
            if type(raw) is not list or len(raw) * dtype.itemsize != body_bytes(dtype, shape):
                raise Refused(f"an object array of shape {shown(shape)} that does not fit its items")
            machine.spend(len(raw))
            machine.nested += any(type(item) is np.ndarray and item.dtype.hasobject for item in raw)
            if machine.nested > MAX_NESTED:
                raise Refused("object arrays inside object arrays without end")
        else:
            raw = _bytes(machine, raw, dtype, shape)
        made.__setstate__((1, shape, dtype, bool(fortran), raw))
    elif type(made) is _DType:
        _, order, subdtype, names, fields, itemsize, _, flags = state
        order = order.decode("ascii") if isinstance(order, bytes) else order
        expected = made.value.itemsize if made.value.kind in "SU" else -1
        record = any(part is not None for part in (subdtype, names, fields))
        if order not in ("<", ">", "=", "|") or itemsize != expected or type(flags) is not int or record:
            raise Refused("a dtype with an unusual state")
        made.value = made.value.newbyteorder(order)
    else:
        raise Refused(f"sets the state of a {type(made).__name__.lstrip('_')}")


_CALLS = {
    "numpy ndarray": None,
    "numpy dtype": _new_dtype,
    "_codecs encode": encode_bytes,
}
for _module in ("__builtin__", "builtins"):  # pickle protocols below 4 have no opcodes for these
    _CALLS[f"{_module} bytes"] = lambda machine: b""
    _CALLS[f"{_module} set"] = _set
    _CALLS[f"{_module} frozenset"] = lambda machine, items: frozenset(_set(machine, items))
    _CALLS[f"{_module} complex"] = lambda machine, real, imag: complex(real, imag)
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    _CALLS[f"{_core}.multiarray _reconstruct"] = _new_array
    _CALLS[f"{_core}.multiarray scalar"] = _scalar
    _CALLS[f"{_core}.numeric _frombuffer"] = _from_buffer
ARRAYS = Rules(_CALLS, _build_array, "do not trust this file; get it as plain arrays")

_LENGTH = r" *(?:0|[1-9][0-9]{0,39})L?"  # Python 2 wrote an L
_HEADER = re.compile(
    r"\{ *(?:(?:'descr' *: *(?P<descr>'[^']*'|\[[^\n]*?\])|'fortran_order' *: *(?P<fortran>True|False)"
    rf"|'shape' *: *\((?P<shape>(?:(?:{_LENGTH} *,)+(?:{_LENGTH})?)?) *\))(?: *, *(?=')|(?: *,)? *(?=\}}))){{3}}\}}"
)


def read_npy(stream: BinaryIO, size: int, *, mmap: bool = False, objects: bool = False) -> np.ndarray:
    """The array of the ``size`` bytes of .npy that ``stream`` holds; Refused where header and size disagree.

    ``mmap`` maps arrays of numbers read-only (``stream`` is then a file), ``objects`` admits object arrays.
    """
    magic = stream.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise Refused("not a .npy file" if size else "an empty file")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    text = stream.read(min(length, 10_000)).decode("latin-1")  # numpy's own limit
    header = _HEADER.fullmatch(text.rstrip(" \n"))
    if not header or len(text) < length or None in header.group("descr", "fortran", "shape"):
        raise Refused(f"a .npy file with a damaged header: {shown(text.strip())}")
    dtype = plain_dtype(header["descr"].strip("'"))
    shape = tuple(int(n) for n in re.findall("[0-9]+", header["shape"]))
    order = "F" if header["fortran"] == "True" else "C"
    left, expected = size - 8 - width - length, body_bytes(dtype, shape)
    if dtype.hasobject:
        if not objects:
            raise Refused("an object array where plain numbers or text should be", "save it with a plain dtype")
        window = Window(stream, left)
        array = load_pickle(window, ARRAYS)
        if type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape or window.left:
            raise Refused("an object array that does not fit its header")
        return array
    if left != expected:
        kind = "cut short" if left < expected else "with bytes after its end"
        raise Refused(f"an array {kind}: {left} bytes where shape {shape} of {dtype} has {expected}")
    if mmap and expected and dtype.kind not in "Ub":  # those two are read, since their values must be checked
        return np.memmap(stream, dtype, "r", offset=stream.tell(), shape=shape, order=order)
    values = np.empty(prod(shape), dtype)
    raw, done = memoryview(values.view(np.uint8)), 0
    while done < expected:
        got = stream.readinto(raw[done : done + CHUNK])
        if not got:
            raise Refused("an array cut short while it was read")
        done += got
    check_values(raw, dtype)
    return values.reshape(shape, order=order)
