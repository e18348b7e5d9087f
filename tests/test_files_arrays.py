"""Arrays and archives of them come out as NumPy sees them; damaged ones are one line, before memory is taken."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from tests.make_files import cheaply, npy, object_npy, objects, refusal, same, zipped
from utils.errors import InputError
from utils.files import child, load_array, load_checkpoint, load_json, load_npz

# ---- arrays ---------------------------------------------------------------------------------------------------------


def test_every_real_array_equals_what_numpy_loads(shared):
    paths = sorted((shared / "data").rglob("*.npy"))
    assert len(paths) > 20
    for path in paths:
        assert same(load_array(path, objects=True), np.load(path, allow_pickle=True)), path


PLAIN = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "float16 big-endian": np.arange(4).astype(">f2"),
    "int64 scalar": np.array(7),
    "complex": np.array([1 + 2j]),
    "bool": np.array([True, False]),
    "bytes": np.array([b"a", b"video_1"]),
    "text": np.array(["a", "vidéo", "視"]),
    "text big-endian": np.array(["a", "é"]).astype(">U2"),
    "empty": np.zeros((0, 2048), np.float32),
    "uint8": np.arange(256, dtype=np.uint8),
}


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_arrays_equal_numpy_and_torch_may_share_them(tmp_path, name, mmap, version):
    path = tmp_path / "a.npy"
    path.write_bytes(npy(PLAIN[name], version))
    array = load_array(path, mmap=mmap)
    assert array.dtype == PLAIN[name].dtype and array.shape == PLAIN[name].shape
    assert array.tolist() == PLAIN[name].tolist()
    assert np.isfortran(array) == np.isfortran(PLAIN[name])
    mapped = mmap and array.size and array.dtype.kind not in "Ub"
    assert isinstance(array, np.memmap) == bool(mapped) and array.flags.writeable != bool(mapped)


def test_headers_of_other_writers_are_read(tmp_path):
    path = tmp_path / "a.npy"
    for header in (
        "{'shape':(2L, 3L), 'fortran_order':False, 'descr':'<f4'}",
        "{'descr': '<f4','fortran_order': False,'shape': (2,3),   }",
    ):
        path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 24)
        assert load_array(path).shape == (2, 3)


NESTED = objects(
    *(["a", "é", b"\xff"], [[0.5, 1], (2, None)], {"k": {1, 2}}, {3: frozenset([b"x"])}, objects([1], "x")),
    *(np.float32(1.5), np.str_("é"), np.bool_(True), np.arange(3.0), np.arange(6, dtype=">i2").reshape(2, 3).T),
    *(1 << 100, -1.5, 2j, True, b"", np.zeros((0, 4), np.float32)),
)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_object_arrays_of_every_pickle_protocol_and_numpy(tmp_path, protocol, core):
    pickled = pickle.dumps(NESTED, protocol=protocol)
    if protocol < 4:  # in text, so that the name of the other numpy can be put in
        pickled = pickled.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", core + b".")
    path = tmp_path / "a.npy"
    path.write_bytes(object_npy(pickled, f"({len(NESTED)},)"))
    assert same(load_array(path, objects=True), pickle.loads(pickled))


def test_object_array_in_fortran_order(tmp_path):
    array = np.asfortranarray(np.array([[1, 2, 3], ["a", "b", "c"]], dtype=object))
    path = tmp_path / "a.npy"
    path.write_bytes(npy(array))
    assert same(load_array(path, objects=True), array)


def python2_pickle(array: np.ndarray) -> bytes:
    """An object array of ``array`` and the text "Diving", as numpy under Python 2 pickled it (protocol 2)."""

    def string(data: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(data)) + data

    def rebuilt(dtype: bytes, order: bytes, flags: bytes, shape: bytes, body: bytes) -> bytes:
        kind = b"cnumpy\ndtype\n(" + string(dtype) + b"K\0K\1tR(K\3" + string(order) + b"NNN"
        kind += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK" + flags + b"tb"
        made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t" + string(b"b") + b"tR"
        return made + b"(K\1" + shape + kind + b"\x89" + body + b"tb"

    rows = b"(" + b"".join(b"K" + bytes([n]) for n in array.shape) + b"t"
    inner = rebuilt(array.dtype.str[1:].encode(), b"<", b"\0", rows, string(array.tobytes()))
    return b"\x80\2" + rebuilt(b"O8", b"|", b"?", b"(K\2t", b"](" + inner + string(b"Diving") + b"e") + b"."


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype=np.float32).reshape(2, 3) - 2.7, np.frombuffer(b"ascii!!!", "<f4")],
    ids=["bytes", "ascii"],
)
def test_pickles_of_python_2_hold_arrays_as_strings(tmp_path, array):
    path = tmp_path / "a.npy"
    path.write_bytes(object_npy(python2_pickle(array), "(2,)"))
    expected = np.load(path, allow_pickle=True, encoding="latin1")
    assert same(load_array(path, objects=True), expected) and same(expected[0], array) and expected[1] == "Diving"


def test_python_2_text_that_is_not_ascii_stays_bytes(tmp_path):
    path = tmp_path / "a.npy"
    pickled = pickle.dumps(objects("X"), protocol=2).replace(b"X\1\0\0\0X", b"U\2\xc3\xa9")
    path.write_bytes(object_npy(pickled, "(1,)"))
    assert load_array(path, objects=True)[0] == "é".encode()


FLOATS = npy(np.arange(6, dtype=np.float32))


def with_header(text: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + body


def header(descr="'<f4'", shape="(6,)", fortran="False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


BAD_ARRAYS = {
    "empty file": (b"", "empty file"),
    "text": (b"hello", "not a .npy"),
    "a zip": (b"PK\3\4" + b"\0" * 100, "not a .npy"),
    "a bare pickle": (pickle.dumps([1]), "not a .npy"),
    "version 9": (b"\x93NUMPY\x09\0" + FLOATS[8:], "not a .npy"),
    "cut in the header": (FLOATS[:40], "header"),
    "cut in the body": (FLOATS[:-1], "cut short"),
    "junk after the end": (FLOATS + b"\0", "after its end"),
    "absurd shape": (with_header(header(shape="(1000000000000, 1000000000000)"), b"\0" * 8), "cut short"),
    "shape of 40 digits": (with_header(header(shape="(" + "9" * 40 + ",)")), "cut short"),
    "overflowing shape": (with_header(header(shape="(4294967296, 4294967296)")), "cut short"),
    "33 dimensions": (with_header(header(shape="(" + "1," * 33 + ")"), b"\0" * 4), "shape"),
    "endless and empty": (with_header(header(shape="(1000000000000, 0)")), "empty array"),
    "negative shape": (with_header(header(shape="(-1,)")), "header"),
    "no comma between the entries": (with_header(header().replace(", 's", " 's"), b"\0" * 24), "header"),
    "a number for a shape": (with_header(header(shape="(6)"), b"\0" * 24), "header"),
    "a leading zero": (with_header(header(shape="(06,)"), b"\0" * 24), "header"),
    "no comma in the shape": (with_header(header(shape="(2 3)"), b"\0" * 24), "header"),
    "strings of no length": (with_header(header("'|S0'", "(1000000000000,)")), "type"),
    "giant strings": (with_header(header("'<U99999999'", "(9,)")), "cut short"),
    "records": (with_header(header("[('a', '<f4'), ('b', '|O')]", "(1,)"), b"\0" * 12), "neither number nor text"),
    "raw memory": (with_header(header("'|V8'", "(1,)"), b"\0" * 8), "neither number nor text"),
    "times": (with_header(header("'<M8[s]'", "(1,)"), b"\0" * 8), "neither number nor text"),
    "code in the header": (with_header("__import__('os').system('true')"), "header"),
    "deep header": (with_header("(" * 5000), "header"),
    "slow header": (with_header("{'descr': " + "[" * 4000 + "]" * 4000), "header"),
    "header of 4 GB": (b"\x93NUMPY\2\0\xff\xff\xff\xff" + b" " * 100, "header"),
    "key twice": (with_header("{'descr': '<f4', 'descr': '<f4', 'shape': (1,)}", b"\0" * 4), "header"),
    "no Unicode": (with_header(header("'<U1'", "(1,)"), b"\xff\xff\xff\xff"), "no Unicode"),
    "half a surrogate pair": (with_header(header("'<U1'", "(1,)"), b"\0\xd8\0\0"), "no Unicode"),
    "boolean of 2": (with_header(header("'|b1'", "(1,)"), b"\2"), "neither 0 nor 1"),
    "object array where numbers belong": (npy(objects([1])), "object array"),
    "terminal codes": (with_header(header("'\x1b[31mred'", "(1,)")), "type"),
}


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_one_line(tmp_path, name, mmap):
    path = tmp_path / "a.npy"
    data, word = BAD_ARRAYS[name]
    path.write_bytes(data)
    assert word in refusal(load_array, path, mmap=mmap)


def test_object_arrays_must_fit_their_header(tmp_path):
    path = tmp_path / "a.npy"
    pickled = pickle.dumps(objects([1], [2]), protocol=4)
    for data in (
        object_npy(pickled, "(3,)"),
        object_npy(pickled, "(2, 1)"),
        object_npy(pickled + b"junk", "(2,)"),
        object_npy(pickled[:-1], "(2,)"),
        object_npy(pickle.dumps([[1], [2]]), "(2,)"),
        object_npy(pickle.dumps(np.zeros(2)), "(2,)"),
    ):
        path.write_bytes(data)
        refusal(load_array, path, objects=True)


def test_missing_files_folders_and_pipes_are_one_line(tmp_path):
    assert refusal(load_array, tmp_path / "none.npy", todo="see the README").endswith("- see the README")
    assert "folder" in refusal(load_json, tmp_path)
    (tmp_path / "file").write_text("")
    assert "no such file" in refusal(load_npz, tmp_path / "file" / "below.npz")
    with pytest.raises(InputError, match="name"):
        load_checkpoint("a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "regular" in refusal(load_array, tmp_path / "pipe")


# ---- archives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_equals_numpy(tmp_path, save):
    arrays = {"rgb": PLAIN["float32"], "name": PLAIN["text"], "a/b": PLAIN["bool"], "none": PLAIN["empty"]}
    save(tmp_path / "a.npz", **arrays)
    assert same(load_npz(tmp_path / "a.npz"), arrays)


GOOD_NPZ = zipped({"a.npy": FLOATS})


def overlapping() -> bytes:
    """100 entries of a directory that all point at one member."""
    end = GOOD_NPZ.index(b"PK\5\6")
    start = GOOD_NPZ.index(b"PK\1\2")
    entry = GOOD_NPZ[start:end]
    entries = b"".join(entry.replace(b"a.npy", b"%05d" % i) for i in range(100))
    tail = bytearray(GOOD_NPZ[end:])
    tail[8:16] = struct.pack("<HHL", 100, 100, len(entries))
    return GOOD_NPZ[:start] + entries + bytes(tail)


def declaring(size: int, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The one member of the archive declares ``size`` bytes."""
    data = bytearray(zipped({"a.npy": FLOATS}, method))
    at = data.index(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<L", size)
    return bytes(data)


NOISE = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
BAD_ARCHIVES = {
    "no archive": (FLOATS, "zip"),
    "empty": (b"", "zip"),
    "cut": (GOOD_NPZ[:-30], "zip"),
    "a bomb of zeros": (zipped({"a.npy": npy(np.zeros(1 << 26, np.uint8))}, zipfile.ZIP_DEFLATED), "unpack to"),
    "many small bombs": (
        zipped({f"{i}.npy": npy(np.zeros(1 << 20, np.uint8)) for i in range(40)}, zipfile.ZIP_DEFLATED),
        "unpack to",
    ),
    "a bomb beside honest bytes": (
        zipped({"a.npy": npy(NOISE), "b.npy": npy(np.zeros(1 << 26, np.uint8))}, zipfile.ZIP_DEFLATED),
        "unpack to",
    ),
    "a declared size of 4 GB": (declaring(0xFFFFFFF0), "unpack to"),
    "a declared size that is too large": (declaring(len(FLOATS) + 8), "after its end"),
    "a declared size that is too small": (declaring(len(FLOATS) - 8), "CRC"),
    "stored, and larger than it is": (declaring(len(FLOATS) + 8, zipfile.ZIP_STORED), "unusual"),
    "a name with an end inside": (zipped({"a.npyXb": FLOATS}).replace(b"npyX", b"npy\0"), "unusual"),
    "absurd shape in a member": (zipped({"a.npy": with_header(header(shape="(1000000000000,)"))}), "cut short"),
    "wrong checksum": (GOOD_NPZ.replace(FLOATS, FLOATS[:-1] + b"\x01"), "CRC"),
    "one name twice": (zipped([("a.npy", FLOATS), ("a.npy", FLOATS)]), "twice"),
    "overlapping members": (overlapping(), "overlap"),
    "path upwards": (zipped({"../../a.npy": FLOATS}), "no array"),
    "absolute path": (zipped({"/etc/a.npy": FLOATS}), "no array"),
    "path of another system": (zipped({"..\\a.npy": FLOATS}), "no array"),
    "not an array": (zipped({"a.txt": b"hello"}), "no array"),
    "text called .npy": (zipped({"a.npy": b"hello"}), "not a .npy"),
    "objects": (zipped({"a.npy": npy(objects([1]))}), "object array"),
    "lzma": (zipped({"a.npy": FLOATS}, zipfile.ZIP_LZMA), "unusual"),
    "encrypted": (GOOD_NPZ.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"), "unusual"),
}


@pytest.mark.parametrize("name", BAD_ARCHIVES)
def test_bad_archives_are_one_line(tmp_path, name):
    path = tmp_path / "a.npz"
    data, word = BAD_ARCHIVES[name]
    path.write_bytes(data)
    assert word in refusal(load_npz, path)


def test_where_one_array_is_wanted_others_are_refused_unread(tmp_path):
    path, large = tmp_path / "a.npz", npy(np.zeros(1 << 22, np.uint8))
    for count in (0, 2, 3):
        path.write_bytes(zipped({f"{i}.npy": large for i in range(count)}, zipfile.ZIP_DEFLATED))
        with cheaply(2):
            assert f"{count} arrays in one file" in refusal(load_npz, path, one=True)
    path.write_bytes(zipped({"a.npy": FLOATS}))
    assert list(load_npz(path, one=True)) == ["a"]


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_stay_in_their_folder(tmp_path):
    for name in ("video_1", "v_--abc", "vidéo 視", ".hidden", "a..b", "~", "$HOME", "x" * 251):
        path = child(tmp_path, name, ".npy")
        assert path.parent == tmp_path and path.name == name + ".npy"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "../../x", "/etc/passwd", "a/b", "a\\b", "..\\x", "a\0b", "x" * 256, "視" * 90, "\ud800"],
)
def test_names_that_would_leave_their_folder_are_refused(tmp_path, name):
    with pytest.raises(InputError):
        child(tmp_path, name)
