"""Files made by hand, good and bad, for the tests of utils.files."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch

from utils.errors import InputError


def npy(array: np.ndarray, version=None) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of versions 2 and 3
        np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


def object_npy(pickled: bytes, shape: str) -> bytes:
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + pickled


def objects(*items) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def zipped(members: dict) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def saved(value, **kwargs) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **kwargs)
    return buffer.getvalue()


def refusal(load, path, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **kwargs)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and line.isprintable()
    return line


def same(a, b) -> bool:
    """Equal values of equal types, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        if a.dtype.hasobject:
            return a.shape == b.shape and all(map(same, a.ravel().tolist(), b.ravel().tolist()))
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


# ---- pickles, opcode by opcode --------------------------------------------------------------------------------------


class Code(bytes):
    """Opcodes. Their pieces are joined with +, and a plain value becomes opcodes with ``value``."""


def value(item) -> bytes:
    return item if isinstance(item, Code) else pickle.dumps(item, protocol=2)[2:-1]


def name(module: str, attribute: str) -> Code:
    return Code(f"c{module}\n{attribute}\n".encode())


def dotted(module: str, attribute: str) -> Code:
    """STACK_GLOBAL, whose attribute may hold dots."""
    parts = (b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute))
    return Code(b"\x80\4" + b"".join(parts) + b"\x93")


def apply(function: bytes, *args) -> Code:
    return Code(function + b"(" + b"".join(map(value, args)) + b"tR")


def call(module: str, attribute: str, *args) -> Code:
    return apply(name(module, attribute), *args)


TOUCH = "touch marker"
SYSTEM = name("posix", "system")
EVIL = apply(SYSTEM, TOUCH)  # makes the file "marker" when it is unpickled
NESTED = b"\x80\2" + EVIL + b"."


def in_array(code: bytes) -> bytes:
    """An object .npy of one item, the opcodes."""
    plain = pickle.dumps(objects("ITEM"), protocol=2)
    assert plain.count(b"X\4\0\0\0ITEM") == 1
    return object_npy(plain.replace(b"X\4\0\0\0ITEM", code), "(1,)")


def in_dict(code: bytes) -> bytes:
    return b"\x80\2}X\1\0\0\0w" + code + b"s."


def in_new_form(code: bytes) -> bytes:
    return zipped({"archive/data.pkl": in_dict(code), "archive/byteorder": b"little", "archive/version": b"3\n"})
