"""Arrays, archives, pickles, checkpoints and JSON come out as they were saved; damaged ones are one line."""

from __future__ import annotations

import json
import os
import pickle
import struct
import warnings

import numpy as np
import pytest
import torch

from tests.make_files import npy, object_npy, objects, refusal, same, saved, zipped
from utils.errors import InputError
from utils.files import child, load_array, load_checkpoint, load_json, load_npz, load_pickle, load_torch


def test_every_real_file_equals_what_numpy_and_json_load(shared):
    paths = sorted((shared / "data").rglob("*.npy"))
    assert len(paths) > 20
    for path in paths:
        assert same(load_array(path, objects=True), np.load(path, allow_pickle=True)), path
    for path in (shared / "data").rglob("[!.]*.json"):
        assert load_json(path) == json.loads(path.read_text()), path


PLAIN = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "float16 big-endian": np.arange(4).astype(">f2"),
    "int64 scalar": np.array(7),
    "bool": np.array([True, False]),
    "bytes": np.array([b"a", b"video_1"]),
    "text": np.array(["a", "vidéo", "視"]),
    "text big-endian": np.array(["a", "é"]).astype(">U2"),
    "empty": np.zeros((0, 2048), np.float32),
}


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_arrays_equal_numpy_and_torch_may_share_them(tmp_path, name, mmap, version):
    path = tmp_path / "a.npy"
    path.write_bytes(npy(PLAIN[name], version))
    array = load_array(path, mmap=mmap)
    assert same(np.asarray(array), PLAIN[name]) and np.isfortran(array) == np.isfortran(PLAIN[name])
    mapped = mmap and array.size and array.dtype.kind != "U"
    assert isinstance(array, np.memmap) == bool(mapped) and array.flags.writeable != bool(mapped)


NESTED = objects(
    *(["a", "é", b"\xff"], [[0.5, 1], (2, None)], {"k": [1, 2]}, {3: (b"x",)}, objects([1], "x")),
    *(np.float32(1.5), np.str_("é"), np.bool_(True), np.arange(3.0), np.arange(6, dtype="i2").reshape(2, 3).T),
    *(1 << 100, -1.5, True, b"", np.zeros((0, 4), np.float32), objects([np.ones(2)] * 2, [[3], [4]])),
)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_objects_of_every_pickle_protocol_and_numpy(tmp_path, protocol, core):
    pickled = pickle.dumps(NESTED, protocol=protocol)
    if protocol < 4:  # in text, so that the name of the other numpy can be put in
        pickled = pickled.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", core + b".")
    path = tmp_path / "a.npy"
    path.write_bytes(object_npy(pickled, f"({len(NESTED)},)"))
    assert same(load_array(path, objects=True), pickle.loads(pickled))
    path.write_bytes(pickled)
    assert same(load_pickle(path), pickle.loads(pickled))
    grid = np.asfortranarray(np.array([[1, 2, 3], ["a", "b", "c"]], dtype=object))
    path.write_bytes(npy(grid))
    assert same(load_array(path, objects=True), grid)


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


@pytest.mark.parametrize("array", [np.arange(6, dtype="<f4").reshape(2, 3) - 2.7, np.frombuffer(b"ascii!!!", "<f4")])
def test_pickles_of_python_2_hold_arrays_as_strings(tmp_path, array):
    path = tmp_path / "a.npy"
    path.write_bytes(object_npy(python2_pickle(array), "(2,)"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.load(path, allow_pickle=True, encoding="latin1")
    loaded = load_array(path, objects=True)
    assert same(loaded, expected) and same(loaded[0], array) and loaded[1] == "Diving"


FLOATS = npy(np.arange(6, dtype=np.float32))


def with_header(descr="'<f4'", shape="(6,)", body: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + body


PICKLED = pickle.dumps(objects([1], [2]), protocol=4)
BAD = {
    load_array: {
        "empty file": (b"", "empty file"), "text": (b"hello", "not a .npy"),
        "version 9": (b"\x93NUMPY\x09\0" + FLOATS[8:], "not a .npy"), "cut in the header": (FLOATS[:40], "EOF"),
        "cut in the body": (FLOATS[:-1], "cut short"), "junk after the end": (FLOATS + b"\0", "after its end"),
        "absurd shape": (with_header(shape="(1000000000000, 1000000000000)", body=b"\0" * 8), "cut short"),
        "strings of no length": (with_header("'|S0'", "(9,)"), "type"),
        "records": (with_header("[('a', '<f4'), ('b', '|O')]", "(1,)", b"\0" * 12), "neither number nor text"),
        "code in the header": (with_header("__import__('os').system('true')"), "malformed"),
        "no Unicode": (with_header("'<U1'", "(1,)", b"\xff\xff\xff\xff"), ""),
        "half a surrogate pair": (with_header("'<U1'", "(1,)", b"\0\xd8\0\0"), "surrogate"),
        "objects where numbers belong": (npy(objects([1])), "object array"),
    },
    lambda path: load_array(path, objects=True): {
        "too few items": (object_npy(PICKLED, "(3,)"), "does not fit"),
        "another shape": (object_npy(PICKLED, "(2, 1)"), "does not fit"),
        "junk after the end": (object_npy(PICKLED + b"junk", "(2,)"), "after the end"),
        "a list": (object_npy(pickle.dumps([[1], [2]]), "(2,)"), "does not fit"),
    },
    load_npz: {
        "no archive": (FLOATS, "zip"), "cut": (zipped({"a.npy": FLOATS})[:-30], "zip"),
        "wrong checksum": (zipped({"a.npy": FLOATS}).replace(FLOATS, FLOATS[:-1] + b"\x01"), "CRC"),
        "objects": (zipped({"a.npy": npy(objects([1]))}), "Object arrays"),
    },
    load_pickle: {
        "empty": (b"", ""), "text": (b"hello", ""), "cut": (pickle.dumps(np.ones(3))[:-9], ""),
        "a class": (pickle.dumps(np.float32), "numpy.float32"),
        "a dtype": (pickle.dumps(np.dtype("f4")), "where data should be"),
        "a masked array": (pickle.dumps(np.ma.ones(2)), "numpy.ma.core._mareconstruct"),
    },
    load_checkpoint: {
        "empty": (b"", "no checkpoint"), "a bare pickle": (pickle.dumps({"w": [1.0]}), "no checkpoint"),
        "a plain archive": (zipped({"a.npy": FLOATS}), "no checkpoint"),
        "cut": (saved({"w": torch.ones(8)})[:-40], "no checkpoint"),
        "damaged": (saved({"w": torch.ones(8)}).replace(b"_rebuild", b"_rebuilt"), "cannot read"),
        "of torch 1.5": (saved({"w": torch.ones(8)}, _use_new_zipfile_serialization=False), "no checkpoint"),
        "a tensor": (saved(torch.ones(2)), "no dict"), "numbers for names": (saved({1: torch.ones(2)}), "no dict"),
        "a module": (saved({"m": torch.nn.Linear(1, 1)}), "torch.nn.modules.linear.Linear"),
        "a numpy array": (saved({"w": np.ones(2)}), "_reconstruct"),
        "a sparse tensor": (saved({"a": [{"w": torch.eye(2).to_sparse()}]}), "sparse"),
        "a complex tensor": (saved({"w": torch.ones(2, dtype=torch.complex64)}), "complex"),
    },
    load_json: {
        "empty": (b"", "line 1 column 1"), "cut": (b'{"a": [1,\n 2', "line 2 column 3"),
        "a key twice": (b'{"results": {"v": 1, "w": 2, "v": 3}}', "'v'"),
        "NaN": (b'{"NaN": "NaN",\n "a": NaN}', "the number NaN"), "very deep": (b'{"a":' * 100_000, ""),
        "latin-1": ('{"a":\n "é"}'.encode("latin-1"), "utf-8"), "half a surrogate pair": (b'["\\ud800"]', "surrogate"),
        "terminal codes in a key": (b'{"\\u001b[31m": 1, "\\u001b[31m": 2}', "x1b"),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "load, data, word",
    [
        pytest.param(load, *row, id=f"{getattr(load, '__name__', load)}: {name}")
        for load, rows in BAD.items()
        for name, row in rows.items()
    ],
)
def test_bad_files_are_one_line(tmp_path, load, data, word):
    path = tmp_path / "a"
    path.write_bytes(data)
    assert word in refusal(load, path)


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


def test_npz_equals_numpy(tmp_path):
    arrays = {"rgb": PLAIN["float32"], "name": PLAIN["text"], "none": PLAIN["empty"]}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    assert same(load_npz(tmp_path / "a.npz"), arrays)


def test_checkpoints_come_back_as_they_were(tmp_path):
    model = torch.nn.Linear(4, 3)
    value = {
        "model": model.state_dict(),
        "optimiser": torch.optim.Adam(model.parameters()).state_dict(),
        "random": torch.Generator().manual_seed(1).get_state(),
        "options": {"lr": 5e-5, "losses": ["sme", "pc"], "name": "é", "cache": None, "amp": False},
        "types": [torch.ones(2, dtype=kind) for kind in (torch.float16, torch.bfloat16, torch.int64, torch.bool)],
        "view": torch.arange(12.0).reshape(3, 4)[1:, ::2],
        "empty": torch.zeros(0, 5),
    }
    torch.save(value, tmp_path / "a.pt")
    torch.save(value["view"], tmp_path / "b.pt")
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert repr(loaded) == repr(value) and torch.equal(loaded["model"]["weight"], value["model"]["weight"])
    assert torch.equal(load_torch(tmp_path / "b.pt"), value["view"])


def test_the_released_form_of_a_checkpoint_loads(golden):
    weights = load_checkpoint(golden / "checkpoint.pkl")
    assert len(weights) == 14 and all(name.startswith("prop_fused_backbone.") for name in weights)
    assert weights["prop_fused_backbone.prop_fusion.0.bias"].dtype == torch.float32


def test_good_json(tmp_path):
    path = tmp_path / "a.json"
    for text in ('{"a": [1, -2.5e3, true, null, "\\ud83d\\ude00é", "{[\\"["]}', " 7 ", '[{}, ""]', "1" * 300):
        path.write_text(text, encoding="utf-8")
        assert load_json(path) == json.loads(text)
    path.write_bytes(b"\xef\xbb\xbf[1]")  # the mark that some editors put first
    assert load_json(path) == [1]
    path.write_text("[NaN]")
    assert np.isnan(load_json(path, allow_nan=True)[0])


def test_names_stay_in_their_folder(tmp_path):
    for name in ("video_1", "v_--abc", "vidéo 視", ".hidden", "a..b", "~", "$HOME", "x" * 251):
        path = child(tmp_path, name, ".npy")
        assert path.parent == tmp_path and path.name == name + ".npy"
    for name in ("", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "x" * 256, "視" * 90, "\ud800"):
        with pytest.raises(InputError):
            child(tmp_path, name)
