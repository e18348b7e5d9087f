"""Files made by hand, good and bad, for the tests of utils.files."""

from __future__ import annotations

import io
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


def object_npy(pickled: bytes, shape: str, fortran: str = "False", descr: str = "'|O'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + pickled


def objects(*items) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def zipped(members: dict, method=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names given twice
        for name, data in members.items() if isinstance(members, dict) else members:
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
