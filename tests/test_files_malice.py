"""Malice: files that try to run code or to eat the machine are refused, name what they asked for, and have not run."""

from __future__ import annotations

import contextlib
import copyreg
import io
import pickle
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.make_files import npy, object_npy, objects, refusal, saved, zipped
from utils import unpickle
from utils.files import load_array, load_checkpoint, load_npz

# ---- pickles that ask for code: each makes the file "marker" where it can --------------------------------------------


class Code(bytes):
    """Opcodes. Their pieces are joined with +, and a plain value becomes opcodes with ``value``."""


def value(item) -> bytes:
    return item if isinstance(item, Code) else pickle.dumps(item, protocol=2)[2:-1]


def name(module: str, attribute: str) -> Code:
    return Code(f"c{module}\n{attribute}\n".encode())


def dotted(module: str, attribute: str) -> Code:
    """STACK_GLOBAL, whose attribute may hold dots."""
    return Code(
        b"\x80\4" + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)) + b"\x93"
    )


def apply(function: bytes, *args) -> Code:
    return Code(function + b"(" + b"".join(map(value, args)) + b"tR")


def call(module: str, attribute: str, *args) -> Code:
    return apply(name(module, attribute), *args)


NP = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
TOUCH, CODE = "touch marker", "open('marker', 'w').close()"
SYSTEM = name("posix", "system")
EVIL = apply(SYSTEM, TOUCH)
NESTED = b"\x80\2" + EVIL + b"."
PATH = call("pathlib", "PosixPath", "marker")
MODULE = call("importlib", "import_module", "os")
OBJECT = name("builtins", "object")

# title: (opcodes, the name that the refusal must give). LIVE are those that run here when nothing holds them back.
ATTACKS = {
    # the shell and the interpreter
    "os.system": (call("os", "system", TOUCH), "os.system"),
    "posix.system": (EVIL, "posix.system"),
    "posix.execve": (call("posix", "execve", "/bin/true", ["true"], {}), "posix.execve"),
    "os.popen": (call("os", "popen", TOUCH), "os.popen"),
    "subprocess.call": (call("subprocess", "call", ["touch", "marker"]), "subprocess.call"),
    "subprocess.Popen": (call("subprocess", "Popen", ["touch", "marker"]), "subprocess.Popen"),
    "pty.spawn": (call("pty", "spawn", ["touch", "marker"]), "pty.spawn"),
    "eval": (call("builtins", "eval", CODE), "builtins.eval"),
    "exec": (call("builtins", "exec", CODE), "builtins.exec"),
    "eval of Python 2": (call("__builtin__", "eval", CODE), "__builtin__.eval"),
    "open": (call("builtins", "open", "marker", "w"), "builtins.open"),
    "getattr": (
        apply(call("builtins", "getattr", call("builtins", "__import__", "os"), "system"), TOUCH),
        "builtins.getattr",
    ),
    "a dotted name": (apply(dotted("builtins", "object.__subclasses__")), "object.__subclasses__"),
    "a method": (apply(dotted("pathlib", "Path.touch"), PATH), "Path.touch"),
    "runpy": (call("runpy", "run_path", "script.py"), "runpy.run_path"),
    "timeit": (call("timeit", "timeit", "pass", CODE), "timeit.timeit"),
    "types.FunctionType": (call("types", "FunctionType", None, {}), "types.FunctionType"),
    "types.CodeType": (call("types", "CodeType", 0), "types.CodeType"),
    "marshal": (call("marshal", "loads", b"N"), "marshal.loads"),
    "sys.exit": (call("sys", "exit", 3), "sys.exit"),
    "ctypes": (call("ctypes", "CDLL", "libc.so.6"), "ctypes.CDLL"),
    # ways round a list of forbidden names
    "importlib": (MODULE, "importlib.import_module"),
    "functools.partial": (apply(call("functools", "partial", SYSTEM, TOUCH)), "functools.partial"),
    "operator.attrgetter": (
        apply(apply(call("operator", "attrgetter", "system"), MODULE), TOUCH),
        "operator.attrgetter",
    ),
    "operator.methodcaller": (apply(call("operator", "methodcaller", "touch"), PATH), "operator.methodcaller"),
    "map": (call("builtins", "list", call("builtins", "map", SYSTEM, [TOUCH])), "builtins.list"),
    "weakref": (call("weakref", "finalize", SYSTEM, SYSTEM, TOUCH), "weakref.finalize"),
    "copyreg._reconstructor": (call("copyreg", "_reconstructor", OBJECT, OBJECT, None), "copyreg._reconstructor"),
    "copyreg.__newobj__": (call("copyreg", "__newobj__", OBJECT), "copyreg.__newobj__"),
    "copy_reg of Python 2": (call("copy_reg", "_reconstructor", OBJECT, OBJECT, None), "copy_reg._reconstructor"),
    "pickle.loads": (call("_pickle", "loads", NESTED), "_pickle.loads"),
    "codecs.open": (call("codecs", "open", "marker", "w"), "codecs.open"),
    "_codecs.decode": (call("_codecs", "decode", b"61", "hex"), "_codecs.decode"),
    "_codecs.encode, another codec": (call("_codecs", "encode", "x", "idna"), "_codecs.encode to idna"),
    # files as a side effect
    "logging": (call("logging", "FileHandler", "marker"), "logging.FileHandler"),
    "zipfile": (call("zipfile", "ZipFile", "marker", "w"), "zipfile.ZipFile"),
    "shutil.rmtree": (call("shutil", "rmtree", "marker"), "shutil.rmtree"),
    "socket": (call("socket", "create_connection", ("localhost", 1)), "socket.create_connection"),
    # numpy's own
    "numpy.load": (call("numpy", "load", "array.npy", None, True), "numpy.load"),
    "numpy.memmap": (call("numpy", "memmap", "marker", "uint8", "w+", 0, (1,)), "numpy.memmap"),
    "numpy.memmap by _reconstruct": (
        call(f"{NP}.multiarray", "_reconstruct", name("numpy", "memmap"), (1,), b"b"),
        "numpy.memmap|_reconstruct",
    ),
    "numpy.savetxt": (call("numpy", "savetxt", "marker", [1.0]), "numpy.savetxt"),
    "numpy.fromfile": (call("numpy", "fromfile", "/etc/passwd", "u1"), "numpy.fromfile"),
    "numpy.ndarray.tofile": (
        apply(dotted("numpy", "ndarray.tofile"), call("numpy", "zeros", 1), "marker"),
        "ndarray.tofile",
    ),
    "numpy.testing": (
        call("numpy.testing._private.utils", "runstring", CODE, {}),
        "numpy.testing._private.utils.runstring",
    ),
    "numpy.f2py": (call("numpy.f2py.crackfortran", "myeval", CODE), "numpy.f2py.crackfortran.myeval"),
    "numpy._core._internal": (call(f"{NP}._internal", "_newnames", None, None), f"{NP}._internal._newnames"),
    "numpy ufuncs": (call(NP, "_ufunc_reconstruct", "os", "system"), f"{NP}._ufunc_reconstruct"),
    "numpy.random": (
        call("numpy.random._pickle", "__bit_generator_ctor", "MT19937"),
        "numpy.random._pickle.__bit_generator_ctor",
    ),
    "numpy.ma": (
        call("numpy.ma.core", "_mareconstruct", name("numpy.ma.core", "MaskedArray"), None, (0,), b"b"),
        "numpy.ma.core._mareconstruct",
    ),
    "numpy.rec": (
        call(f"{NP}.multiarray", "_reconstruct", name("numpy.rec", "recarray"), (0,), b"b"),
        "numpy.rec.recarray|_reconstruct",
    ),
    "numpy.DataSource": (call("numpy.lib.npyio", "DataSource", "x"), "numpy.lib.npyio.DataSource"),
    "pandas": (call("pandas", "read_pickle", "inner.pkl"), "pandas.read_pickle"),
    "joblib": (call("joblib", "load", "inner.pkl"), "joblib.load"),
    # torch's own
    "torch.load": (call("torch", "load", "inner.pkl"), "torch.load"),
    "torch.storage._load_from_bytes": (
        call("torch.storage", "_load_from_bytes", NESTED),
        "torch.storage._load_from_bytes",
    ),
    "torch, a reducer of subclasses": (
        call("torch._tensor", "_rebuild_from_type_v2", SYSTEM, name("builtins", "int"), (TOUCH,), {}),
        "torch._tensor._rebuild_from_type_v2",
    ),
    "torch, a reducer of wrappers": (
        call("torch._utils", "_rebuild_wrapper_subclass", name("torch", "Tensor")),
        "torch._utils._rebuild_wrapper_subclass",
    ),
    "torch, a reducer of arrays": (
        call("torch._utils", "_rebuild_device_tensor_from_numpy", None, None, "cpu", False),
        "torch._utils._rebuild_device_tensor_from_numpy",
    ),
    "torch.jit": (call("torch.jit._serialization", "load", "inner.pkl"), "torch.jit._serialization.load"),
    "torch.hub": (call("torch.hub", "load", "a/b", "c"), "torch.hub.load"),
    "torch.fx": (
        call("torch.fx.graph_module", "reduce_graph_module", {"_code": CODE}, "import os"),
        "torch.fx.graph_module.reduce_graph_module",
    ),
    "torch.ops": (apply(dotted("torch", "ops.load_library"), "inner.pkl"), "torch.ops.load_library"),
    # other opcodes that call
    "INST": (b"(" + value(TOUCH) + b"iposix\nsystem\n", "posix.system"),
    "OBJ": (b"(" + SYSTEM + value(TOUCH) + b"o", "posix.system"),
    "NEWOBJ": (name("pathlib", "PosixPath") + value(("marker",)) + b"\x81", "pathlib.PosixPath"),
    "NEWOBJ_EX": (name("types", "SimpleNamespace") + b")" + value({"a": 1}) + b"\x92", "types.SimpleNamespace"),
    "__setstate__": (name("logging", "Formatter") + b")\x81" + value({"_fmt": "x"}) + b"b", "logging.Formatter"),
    "inside an item": (b"](" + value("plain") + EVIL + b"e", "posix.system"),
    "dropped again": (EVIL + b"0" + value([1]), "posix.system"),
    "EXT1": (b"\x82\x07" + b"(" + value(TOUCH) + b"tR", "EXT1 7"),
    "EXT4": (b"\x84\x07\0\0\0" + b"(" + value(TOUCH) + b"tR", "EXT4 7"),
}
LIVE = [
    "os.system", "posix.system", "subprocess.call", "eval", "exec", "eval of Python 2", "open", "getattr", "a method",
    "runpy", "timeit", "functools.partial", "operator.attrgetter", "operator.methodcaller", "map", "pickle.loads",
    "codecs.open", "logging", "zipfile", "numpy.load", "numpy.memmap", "numpy.savetxt", "numpy.ndarray.tofile",
    "numpy.testing", "numpy.f2py", "torch, a reducer of subclasses", "INST", "OBJ", "inside an item", "dropped again",
    "EXT1", "EXT4",
]  # fmt: skip


def in_array(code: bytes) -> bytes:
    """An object .npy of one item, the opcodes."""
    plain = pickle.dumps(objects("ITEM"), protocol=2)
    assert plain.count(b"X\4\0\0\0ITEM") == 1
    return object_npy(plain.replace(b"X\4\0\0\0ITEM", code), "(1,)")


def in_dict(code: bytes) -> bytes:
    return b"\x80\2}X\1\0\0\0w" + code + b"s."


def in_new_form(code: bytes) -> bytes:
    return zipped({"archive/data.pkl": in_dict(code), "archive/byteorder": b"little", "archive/version": b"3\n"})


def in_old_form(code: bytes, storages: bytes = b"") -> bytes:
    start = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    return start + in_dict(code) + (storages or pickle.dumps([], protocol=2))


FORMS = {
    "object .npy": (in_array, lambda path: load_array(path, objects=True)),
    "new checkpoint": (in_new_form, load_checkpoint),
    "old checkpoint": (in_old_form, load_checkpoint),
    "bare pickle": (lambda code: b"\x80\2" + code + b".", load_checkpoint),
}


@pytest.fixture
def bait(tmp_path, monkeypatch):
    """A folder to be attacked in, with what the attacks need."""
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(CODE)
    Path("inner.pkl").write_bytes(NESTED)
    Path("array.npy").write_bytes(object_npy(NESTED, "(1,)"))
    copyreg.add_extension("posix", "system", 7)
    yield Path("bait")
    copyreg.remove_extension("posix", "system", 7)
    copyreg.clear_extension_cache()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("title", ATTACKS)
def test_code_is_refused_by_name_and_has_not_run(bait, title, form):
    code, asked = ATTACKS[title]
    wrap, load = FORMS[form]
    bait.write_bytes(wrap(code))
    line = refusal(load, bait)
    assert any(word in line for word in asked.split("|"))
    assert not Path("marker").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(sys.platform == "win32", reason="the attacks are made for POSIX")
@pytest.mark.parametrize("title", LIVE)
def test_the_attacks_are_real(bait, title):
    bait.write_bytes(in_array(ATTACKS[title][0]))
    with contextlib.suppress(Exception):
        np.load(bait, allow_pickle=True)
    assert Path("marker").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", ATTACKS)
def test_the_second_door_of_torch_holds_too(bait, title):
    with contextlib.suppress(Exception):
        torch.load(io.BytesIO(in_new_form(ATTACKS[title][0])), weights_only=True)
        assert title == "_codecs.encode, another codec", "torch let it in"
    assert not Path("marker").exists()


def test_objects_in_an_archive_are_refused_unread(bait):
    bait.write_bytes(zipped({"a.npy": in_array(EVIL)}))
    assert "object array" in refusal(load_npz, bait)
    assert not Path("marker").exists()


def test_bytes_that_happen_to_be_an_evil_pickle_are_only_bytes(bait):
    bait.write_bytes(npy(objects(NESTED, [NESTED])))
    assert load_array(bait, objects=True).tolist() == [NESTED, [NESTED]]
    assert not Path("marker").exists()


def test_the_old_tar_form_is_refused_unopened(bait):
    with tarfile.open(bait, "w") as archive:
        for member in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(member)
            info.size = len(NESTED)
            archive.addfile(info, io.BytesIO(NESTED))
    assert "tar form" in refusal(load_checkpoint, bait)
    assert not Path("marker").exists()


def test_a_script_archive_is_refused(bait):
    bait.write_bytes(zipped({"a/data.pkl": in_dict(b"N"), "a/constants.pkl": NESTED, "a/code/x.py": b""}))
    assert "TorchScript" in refusal(load_checkpoint, bait)


# ---- pickles that lie or eat the machine ----------------------------------------------------------------------------

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
    "REDUCE of a string": (value("os.system") + value((TOUCH,)) + b"R", "calls something"),
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


@contextlib.contextmanager
def cheaply(megabytes: int):
    """At most so much memory at any moment, and no hang."""
    start = time.process_time()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes << 20
    assert time.process_time() - start < 30  # minutes without the limits; a few tenths of a second with them


@pytest.mark.parametrize("title", BOMBS)
def test_bombs_and_nonsense_are_refused_cheaply(tmp_path, title):
    code, word = BOMBS[title]
    path = tmp_path / "a.npy"
    path.write_bytes(in_array(code))
    with cheaply(64):
        assert word in refusal(lambda path: load_array(path, objects=True), path)


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


# ---- checkpoints that lie -------------------------------------------------------------------------------------------


def storage(count: int, kind: str = "Float", key: str = "0", *view) -> bytes:
    reference = (value(part) for part in ("storage", name("torch", f"{kind}Storage"), key, "cpu", count, *view))
    return b"(" + b"".join(reference) + b"tQ"


def tensor(storage: bytes, offset=0, size=(2,), stride=(1,), grad=False, hooks=None) -> bytes:
    hooks = hooks or call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", Code(storage), offset, size, stride, grad, hooks)


def checkpoint(code: bytes, **records: bytes) -> bytes:
    data = {f"archive/data/{key[1:]}": record for key, record in (records or {"_0": b"\0" * 8}).items()}
    return zipped({"archive/data.pkl": in_dict(code), **data, "archive/version": b"3\n"})


GOOD = checkpoint(tensor(storage(2)))
NEW = saved({"w": torch.ones(8)})
OLD_STORAGE = pickle.dumps(["0"], protocol=2)
LIES = {
    "a storage larger than its record": (checkpoint(tensor(storage(10**12))), "declares"),
    "a storage smaller than its record": (checkpoint(tensor(storage(1), size=(1,))), "declares"),
    "a storage of another type": (checkpoint(tensor(storage(2, "Double"))), "declares"),
    "a storage without a record": (checkpoint(tensor(storage(2, "Float", "7"))), "storages"),
    "a storage of a path": (checkpoint(tensor(storage(2, "Float", "../../x"))), "storages"),
    "a negative storage": (checkpoint(tensor(storage(-2))), "not made as torch"),
    "a storage of objects": (checkpoint(tensor(storage(2, "Object"))), "torch.ObjectStorage"),
    "a module as a storage": (checkpoint(b"(" + value("module") + b"NNNNtQ"), "not made as torch"),
    "a number as a storage": (checkpoint(value(7) + b"Q"), "no sense"),
    "a tensor beyond its storage": (checkpoint(tensor(storage(2), size=(3,))), "in a storage of 2"),
    "a tensor that starts too late": (checkpoint(tensor(storage(2), offset=1)), "in a storage of 2"),
    "a tensor with a huge stride": (checkpoint(tensor(storage(2), stride=(1 << 40,))), "in a storage of 2"),
    "a tensor that repeats one value": (checkpoint(tensor(storage(2), size=(10**6, 9), stride=(0, 0))), "in a storage"),
    "a negative offset": (checkpoint(tensor(storage(2), offset=-4)), "unusual shape"),
    "a negative stride": (checkpoint(tensor(storage(2), offset=1, stride=(-1,))), "unusual shape"),
    "a tensor with hooks": (checkpoint(tensor(storage(2), hooks={1: 2})), "hooks"),
    "a tensor without a storage": (checkpoint(tensor(value("x"))), "not made as torch"),
    "a parameter of no tensor": (checkpoint(call("torch._utils", "_rebuild_parameter", [1], True, {})), "parameter"),
    "BUILD of a tensor": (checkpoint(tensor(storage(2)) + value((1,)) + b"b"), "state of a Judged"),
    "methods of a dict": (checkpoint(call("collections", "OrderedDict") + value({"items": 1}) + b"b"), "state of"),
    "odd metadata": (checkpoint(call("collections", "OrderedDict") + value({"_metadata": [1]}) + b"b"), "metadata"),
    "a pickle with a tail": (zipped({"a/data.pkl": in_dict(b"N") + b"tail"}), "bytes"),
    "no pickle": (zipped({"a/data/0": b""}), "without tensors"),
    "members of two archives": (zipped({"a/data.pkl": in_dict(b"N"), "b/version": b"3"}), "torch.save"),
    "a pickle twice": (zipped([("a/data.pkl", in_dict(b"N")), ("a/data.pkl", in_dict(EVIL))]), "twice"),
    "a pickle twice, in capitals": (zipped([("a/data.pkl", in_dict(b"N")), ("a/DATA.PKL", in_dict(EVIL))]), "twice"),
    "a packed member": (zipped({"a/data.pkl": in_dict(b"N")}, zipfile.ZIP_DEFLATED), "unusual"),
    "a comment at the end": (GOOD[:-2] + b"\4\0junk", "torch.save"),
    "another archive in front": (GOOD + GOOD, "torch.save"),
    "a directory that two readers see differently": (NEW[:-34] + struct.pack("<Q", 0) + NEW[-26:], "torch.save"),
    "an old storage larger than the file": (
        in_old_form(tensor(storage(10**12, "Float", "0", None)), OLD_STORAGE + struct.pack("<q", 10**12) + b"\0" * 8),
        "not there",
    ),
    "an old storage of another length": (
        in_old_form(tensor(storage(2, "Float", "0", None)), OLD_STORAGE + struct.pack("<q", 3) + b"\0" * 8),
        "not there",
    ),
    "an old storage with a view": (
        in_old_form(tensor(storage(2, "Float", "0", ("v", 0, 1))), OLD_STORAGE + struct.pack("<q", 2) + b"\0" * 8),
        "not made as torch",
    ),
    "an old storage that is not listed": (in_old_form(tensor(storage(2, "Float", "0", None))), "list of storages"),
    "an old storage in two sizes": (
        in_old_form(b"](" + tensor(storage(2, "Float", "0", None)) + tensor(storage(3, "Float", "0", None)) + b"e"),
        "declares",
    ),
}  # fmt: skip


@pytest.mark.parametrize("title", LIES)
def test_checkpoints_that_lie_are_refused_cheaply(tmp_path, title):
    data, word = LIES[title]
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    with cheaply(32):
        assert word in refusal(load_checkpoint, path)


def test_hand_made_checkpoints_load_when_they_do_not_lie(tmp_path):
    path = tmp_path / "a.pt"
    old = OLD_STORAGE + struct.pack("<q", 2) + b"\0" * 8
    for data in (GOOD, in_old_form(tensor(storage(2, "Float", "0", None)), old)):
        path.write_bytes(data)
        assert torch.equal(load_checkpoint(path)["w"], torch.zeros(2))


def test_the_corpus_is_large_enough():
    assert len(ATTACKS) >= 40 and len(LIVE) >= 30
