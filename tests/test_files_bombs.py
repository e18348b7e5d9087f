"""Pickles that lie about their sizes, eat the machine or make no sense are refused, and cost next to nothing."""

from __future__ import annotations

import struct

import pytest

from tests.make_files import apply, call, cheaply, in_array, name, npy, objects, refusal, value
from utils import unpickle
from utils.errors import InputError
from utils.files import load_array

DTYPE = call("numpy", "dtype", "f4", False, True)
OBJECTS = call("numpy", "dtype", "O8", False, True)
ARRAY = name("numpy", "ndarray")
RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")
SCALAR = name("numpy.core.multiarray", "scalar")
EMPTY = apply(RECONSTRUCT, ARRAY, (0,), b"b")
MEGABYTE = b"B" + struct.pack("<I", 1 << 20) + b"\0" * (1 << 20)


def filled(dtype: bytes, shape, raw: bytes) -> bytes:
    return EMPTY + b"(K\1" + value(shape) + dtype + b"\x89" + raw + b"tb"


def laughs(start: bytes, end: bytes) -> bytes:
    """Thirty levels, each holding the one before twice: 2^30 leaves in 200 bytes."""
    levels = (start + b"h%ch%c" % (level - 1, level - 1) + end + b"q%c" % level for level in range(0x41, 0x5F))
    return b"](" + value("ha") + b"q\x40" + b"".join(levels) + b"e"


BOMBS = {
    # arrays that declare more than is there
    "_reconstruct of a huge shape": (apply(RECONSTRUCT, ARRAY, (10**12,), b"b"), "unusual"),
    "a call of ndarray": (apply(ARRAY, (10**12,)), "calls numpy.ndarray"),
    "an array of a huge shape": (filled(DTYPE, (10**12,), value(b"abcd")), "does not fit"),
    "an array of a negative shape": (filled(DTYPE, (-1, -1), value(b"abcd")), "shape"),
    "an overflowing shape": (filled(DTYPE, (1 << 32, 1 << 32), b"C\0"), "does not fit"),
    "objects from bytes": (filled(OBJECTS, (1,), value(b"\x41" * 8)), "does not fit"),
    "an object scalar": (apply(SCALAR, OBJECTS, b"\x41" * 8), "does not fit"),
    "a huge scalar": (apply(SCALAR, call("numpy", "dtype", "S99999999"), b"a"), "does not fit"),
    "a buffer of objects": (
        call("numpy.core.numeric", "_frombuffer", bytearray(8), OBJECTS, (1,), "C"),
        "bytearray",
    ),
    "raw memory": (call("numpy", "dtype", "V10000000000"), "neither number nor text"),
    "a record": (call("numpy", "dtype", [("a", "O")]), "neither number nor text"),
    "a dtype with fields": (DTYPE + value((3, "<", None, ("a",), {"a": 1}, 4, 1, 0)) + b"b", "unusual state"),
    "a dtype of another size": (
        call("numpy", "dtype", "S1") + value((3, "|", None, None, None, 1 << 40, 1, 0)) + b"b",
        "unusual state",
    ),
    "a dtype with metadata": (DTYPE + value((4, "<", None, None, None, -1, -1, 0, {"a": 1})) + b"b", "no sense"),
    "one string, ten thousand arrays": (
        b"](" + DTYPE + b"q\x50" + MEGABYTE + b"q\x51"
        + filled(b"h\x50", (1 << 18,), b"h\x51") * 10_000
        + b"e",
        "larger than the file",
    ),
    "one text, ten thousand times encoded": (
        b"](" + b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x50" + value("latin1") + b"q\x51"
        + (name("_codecs", "encode") + b"h\x50h\x51\x86R") * 10_000 + b"e",
        "larger than the file",
    ),
    "one list, ten thousand sets": (
        b"](" + b"](" + b"N" * (1 << 20) + b"eq\x50" + (name("builtins", "set") + b"h\x50\x85R") * 10_000 + b"e",
        "larger than the file",
    ),
    "one list, ten thousand object arrays": (
        b"](" + OBJECTS + b"q\x50](" + b"N" * (1 << 18) + b"eq\x51"
        + filled(b"h\x50", (1 << 18,), b"h\x51") * 10_000
        + b"e",
        "larger than the file",
    ),
    # nesting
    "lists within lists": (b"]" * 20_000 + b"a" * 19_999, "nested"),
    "tuples within tuples": (b")" + b"\x85" * 20_000, "nested"),
    "dicts within dicts": (b"](}q\x50" + b"}K\1h\x50sq\x50" * 20_000 + b"e", "without end"),
    "object arrays within object arrays": (
        b"](" + value("x") + (b"q\x50" + filled(OBJECTS, (1,), b"]h\x50a")) * 5000 + b"e",
        "without end",
    ),
    "a list in itself": (b"]q\x50h\x50a", "nested"),
    "a dict in itself": (b"}q\x50K\1h\x50s", "nested"),
    "a billion laughs, lists": (laughs(b"](", b"e"), "without end"),
    "a billion laughs, tuples": (laughs(b"(", b"t"), "without end"),
    "a billion laughs, dicts": (laughs(b"}K\1(", b"ls"), "without end"),
    # opcodes that allocate ahead
    "4 GB of bytes": (b"B\xff\xff\xff\xff", "early"),
    "2^60 bytes": (b"\x8e" + struct.pack("<Q", 1 << 60), "early"),
    "2^60 of text": (b"\x8d" + struct.pack("<Q", 1 << 60), "early"),
    "2^60 in a bytearray": (b"\x96" + struct.pack("<Q", 1 << 60), "early"),
    "an integer of 2 GB": (b"\x8b\xff\xff\xff\x7f", "early"),
    "an integer of a million digits": (b"\x8b" + struct.pack("<i", 400_000) + b"\x7f" * 400_000, "bits"),
    "an integer as text": (b"L" + b"9" * 1_000_000 + b"L\n", "no sense"),
    # keys that collide or recurse
    "colliding keys": (b"}(" + b"".join(value(n * (2**61 - 1)) + b"N" for n in range(1, 2000)) + b"u", "key"),
    "a deep tuple as a key": (b"}" + b")" + b"\x85" * 10_000 + b"Ns", "key"),
    "a list as a key": (b"}]Ns", "key"),
    "an object as an element": (b"\x8f(" + ARRAY + b"\x90", "element of a set"),
    # sense
    "an empty stack": (b"00", "POP"),
    "a mark too many": (b"(((", "no sense"),
    "REDUCE of a string": (value("os.system") + value(("touch marker",)) + b"R", "calls something"),
    "REDUCE of a stand-in's result": (DTYPE + b")R", "calls something"),
    "REDUCE without a tuple": (name("numpy", "dtype") + value(["f4"]) + b"R", "calls numpy.dtype"),
    "BUILD of a list": (b"]" + value({"a": 1}) + b"b", "state of a list"),
    "BUILD of a function": (name("numpy", "dtype") + value({"__call__": 1}) + b"b", "state of a Asked"),
    "items added to an array": (EMPTY + value(1) + b"a", "items to a ndarray"),
    "a function as a value": (name("numpy", "dtype"), "numpy.dtype where data"),
    "a dtype as a value": (DTYPE, "DType where data"),
    "a persistent id": (value("x") + b"Q", "BINPERSID"),
    "a persistent id as text": (b"Pos.system\n", "PERSID os.system"),
    "a buffer out of band": (b"\x97", "NEXT_BUFFER"),
    "half a surrogate pair": (b"X\3\0\0\0\xed\xa0\x80", "no Unicode"),
    "STACK_GLOBAL of no text": (value(("os",)) + value(("system",)) + b"\x93", "no name"),
    "DUP": (b"]2a", "DUP"),
}  # fmt: skip


@pytest.mark.parametrize("title", BOMBS)
def test_bombs_and_nonsense_are_refused_cheaply(tmp_path, title):
    code, word = BOMBS[title]
    path = tmp_path / "a.npy"
    path.write_bytes(in_array(code))
    with cheaply(64):
        assert word in refusal(lambda path: load_array(path, objects=True), path)


SMALL = {  # a few bytes of pickle that take many of memory
    "sets": b"\x8f",
    "sets, remembered": b"\x8f\x94",
    "sets of one": b"\x8f(K\1\x90",
    "lists": b"]",
    "lists of one": b"]Na",
    "dicts": b"}",
    "dicts of one": b"}K\1Ns",
    "tuples": b"N\x85",
    "marks": b"(",
    "a number, remembered": b"K\7\x94",
    "nothing": b"N",
    "text": b"\x8c\3\xe2\x82\xac",
    "large numbers": b"J\1\2\3\4",
    "arrays": b"h\x50h\x51R",
}


@pytest.mark.parametrize("title", SMALL)
def test_memory_is_a_small_multiple_of_the_pickle(tmp_path, monkeypatch, title):
    """Without the fixed part of the limit, so that a short pickle shows what a long one would take."""
    size, path = 300_000, tmp_path / "a.npy"
    code = SMALL[title]
    parts = RECONSTRUCT + b"q\x50(" + ARRAY + value((0,)) + value(b"b") + b"tq\x51" if title == "arrays" else b""
    path.write_bytes(in_array(b"](" + parts + code * (size // len(code)) + b"e"))
    monkeypatch.setattr(unpickle, "FLOOR", 0, raising=False)
    with cheaply(15):
        try:
            load_array(path, objects=True)
        except InputError as error:
            assert "more memory than its bytes" in str(error) or "no sense" in str(error)


def test_a_million_sets_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(in_array(b"](" + b"\x8f" * 1_200_000 + b"e"))
    assert "more memory than its bytes" in refusal(lambda path: load_array(path, objects=True), path)


def test_a_memo_index_costs_nothing(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(in_array(b"K\7r\xff\xff\xff\x7f"))  # entry 2^31 - 1: other unpicklers take 16 GB for it
    with cheaply(1):
        assert load_array(path, objects=True).tolist() == [7]


def test_long_pickles_end(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_STEPS", 1000)
    path = tmp_path / "a.npy"
    path.write_bytes(npy(objects(*range(1000))))
    assert "1000 steps" in refusal(lambda path: load_array(path, objects=True), path)
