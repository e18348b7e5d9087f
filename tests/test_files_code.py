"""Malice: files that try to run code are refused, name what they asked for, and have not run."""

from __future__ import annotations

import contextlib
import copyreg
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.make_files import (
    EVIL,
    NESTED,
    SYSTEM,
    TOUCH,
    apply,
    call,
    dotted,
    in_array,
    in_dict,
    in_new_form,
    name,
    npy,
    object_npy,
    objects,
    refusal,
    value,
    zipped,
)  # fmt: skip
from utils.files import load_array, load_checkpoint, load_npz, load_pickle

NP = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
CODE = "open('marker', 'w').close()"
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
    "_codecs.encode, another codec": (call("_codecs", "encode", "x", "idna"), "_codecs.encode"),
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
    "EXT1": (b"\x82\x07" + b"(" + value(TOUCH) + b"tR", "posix.system"),
    "EXT4": (b"\x84\x07\0\0\0" + b"(" + value(TOUCH) + b"tR", "posix.system"),
}
LIVE = [
    "os.system", "posix.system", "subprocess.call", "eval", "exec", "eval of Python 2", "open", "getattr", "a method",
    "runpy", "timeit", "functools.partial", "operator.attrgetter", "operator.methodcaller", "map", "pickle.loads",
    "codecs.open", "logging", "zipfile", "numpy.load", "numpy.memmap", "numpy.savetxt", "numpy.ndarray.tofile",
    "numpy.testing", "numpy.f2py", "torch, a reducer of subclasses", "INST", "OBJ", "inside an item", "dropped again",
    "EXT1", "EXT4",
]  # fmt: skip


FORMS = {
    "object .npy": (in_array, lambda path: load_array(path, objects=True)),
    "new checkpoint": (in_new_form, load_checkpoint),
    "pickle": (lambda code: b"\x80\2" + code + b".", load_pickle),
    "pickle as a checkpoint": (lambda code: b"\x80\2" + code + b".", load_checkpoint),
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
    if title == "_codecs.encode, another codec" and form == "new checkpoint":
        return  # torch lets a file name a codec, which runs nothing of the file's
    line = refusal(load, bait)
    if load is not load_checkpoint:  # torch does not always say
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


def test_objects_in_an_archive_are_refused_unread(bait):
    bait.write_bytes(zipped({"a.npy": in_array(EVIL)}))
    assert "Object arrays" in refusal(load_npz, bait)
    assert not Path("marker").exists()


def test_bytes_that_happen_to_be_an_evil_pickle_are_only_bytes(bait):
    bait.write_bytes(npy(objects(NESTED, [NESTED])))
    assert load_array(bait, objects=True).tolist() == [NESTED, [NESTED]]
    assert not Path("marker").exists()


def test_a_script_archive_is_refused(bait):
    bait.write_bytes(zipped({"a/data.pkl": in_dict(b"N"), "a/constants.pkl": NESTED, "a/code/x.py": b""}))
    assert "TorchScript" in refusal(load_checkpoint, bait)
