"""Malice: files that try to run code are refused, name what they asked for, and have not run."""

from __future__ import annotations

import copyreg
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
)
from utils.files import load_array, load_checkpoint, load_npz, load_pickle

NP = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
CODE = "open('marker', 'w').close()"
PATH = call("pathlib", "PosixPath", "marker")
OBJECT = name("builtins", "object")

# what a pickle calls: (module, name, arguments); the refusal names module.name
CALLS = [
    # the shell and the interpreter
    ("os", "system", TOUCH), ("posix", "system", TOUCH), ("posix", "execve", "/bin/true", ["true"], {}),
    ("os", "popen", TOUCH), ("subprocess", "call", ["touch", "marker"]), ("subprocess", "Popen", ["touch", "marker"]),
    ("pty", "spawn", ["touch", "marker"]), ("builtins", "eval", CODE), ("builtins", "exec", CODE),
    ("__builtin__", "eval", CODE), ("builtins", "open", "marker", "w"), ("runpy", "run_path", "script.py"),
    ("timeit", "timeit", "pass", CODE), ("types", "FunctionType", None, {}), ("types", "CodeType", 0),
    ("marshal", "loads", b"N"), ("sys", "exit", 3), ("ctypes", "CDLL", "libc.so.6"),
    # ways round a list of forbidden names
    ("importlib", "import_module", "os"), ("builtins", "list", call("builtins", "map", SYSTEM, [TOUCH])),
    ("weakref", "finalize", SYSTEM, SYSTEM, TOUCH), ("copyreg", "_reconstructor", OBJECT, OBJECT, None),
    ("copyreg", "__newobj__", OBJECT), ("copy_reg", "_reconstructor", OBJECT, OBJECT, None),
    ("_pickle", "loads", NESTED), ("codecs", "open", "marker", "w"), ("_codecs", "decode", b"61", "hex"),
    ("_codecs", "encode", "x", "idna"),
    # files as a side effect
    ("logging", "FileHandler", "marker"), ("zipfile", "ZipFile", "marker", "w"), ("shutil", "rmtree", "marker"),
    ("socket", "create_connection", ("localhost", 1)),
    # numpy's own, and its friends'
    ("numpy", "load", "array.npy", None, True), ("numpy", "memmap", "marker", "uint8", "w+", 0, (1,)),
    ("numpy", "savetxt", "marker", [1.0]), ("numpy", "fromfile", "/etc/passwd", "u1"),
    ("numpy.testing._private.utils", "runstring", CODE, {}), ("numpy.f2py.crackfortran", "myeval", CODE),
    (f"{NP}._internal", "_newnames", None, None), (NP, "_ufunc_reconstruct", "os", "system"),
    ("numpy.random._pickle", "__bit_generator_ctor", "MT19937"),
    ("numpy.ma.core", "_mareconstruct", name("numpy.ma.core", "MaskedArray"), None, (0,), b"b"),
    ("numpy.lib.npyio", "DataSource", "x"), ("pandas", "read_pickle", "inner.pkl"), ("joblib", "load", "inner.pkl"),
    # torch's own
    ("torch", "load", "inner.pkl"), ("torch.storage", "_load_from_bytes", NESTED),
    ("torch._tensor", "_rebuild_from_type_v2", SYSTEM, name("builtins", "int"), (TOUCH,), {}),
    ("torch._utils", "_rebuild_wrapper_subclass", name("torch", "Tensor")),
    ("torch._utils", "_rebuild_device_tensor_from_numpy", None, None, "cpu", False),
    ("torch.jit._serialization", "load", "inner.pkl"), ("torch.hub", "load", "a/b", "c"),
    ("torch.fx.graph_module", "reduce_graph_module", {"_code": CODE}, "import os"),
]  # fmt: skip
ATTACKS = {f"{row[0]}.{row[1]}": (call(*row), f"{row[0]}.{row[1]}") for row in CALLS}
GETATTR = call("builtins", "getattr", call("builtins", "__import__", "os"), "system")
ATTRGETTER = apply(call("operator", "attrgetter", "system"), call("importlib", "import_module", "os"))
TOFILE = apply(dotted("numpy", "ndarray.tofile"), call("numpy", "zeros", 1), "marker")
ATTACKS.update({  # other ways to call: (opcodes, what the refusal names)
    "getattr": (apply(GETATTR, TOUCH), "builtins.getattr"),
    "a dotted name": (apply(dotted("builtins", "object.__subclasses__")), "object.__subclasses__"),
    "a method": (apply(dotted("pathlib", "Path.touch"), PATH), "Path.touch"),
    "partial": (apply(call("functools", "partial", SYSTEM, TOUCH)), "functools.partial"),
    "attrgetter": (apply(ATTRGETTER, TOUCH), "operator.attrgetter"),
    "methodcaller": (apply(call("operator", "methodcaller", "touch"), PATH), "operator.methodcaller"),
    "tofile": (TOFILE, "ndarray.tofile"),
    "memmap": (call(f"{NP}.multiarray", "_reconstruct", name("numpy", "memmap"), (1,), b"b"), "numpy.memmap"),
    "recarray": (call(f"{NP}.multiarray", "_reconstruct", name("numpy.rec", "recarray"), (0,), b"b"), "numpy.rec"),
    "torch.ops": (apply(dotted("torch", "ops.load_library"), "inner.pkl"), "torch.ops.load_library"),
    "INST": (b"(" + value(TOUCH) + b"iposix\nsystem\n", "posix.system"),
    "OBJ": (b"(" + SYSTEM + value(TOUCH) + b"o", "posix.system"),
    "NEWOBJ": (name("pathlib", "PosixPath") + value(("marker",)) + b"\x81", "pathlib.PosixPath"),
    "NEWOBJ_EX": (name("types", "SimpleNamespace") + b")" + value({"a": 1}) + b"\x92", "types.SimpleNamespace"),
    "__setstate__": (name("logging", "Formatter") + b")\x81" + value({"_fmt": "x"}) + b"b", "logging.Formatter"),
    "inside an item": (b"](" + value("plain") + EVIL + b"e", "posix.system"),
    "dropped again": (EVIL + b"0" + value([1]), "posix.system"),
    "EXT1": (b"\x82\x07" + b"(" + value(TOUCH) + b"tR", "posix.system"),
    "EXT4": (b"\x84\x07\0\0\0" + b"(" + value(TOUCH) + b"tR", "posix.system"),
    # what stands in for numpy's own gives no more than they do
    "state of a function": (name("numpy", "ndarray") + value({"call": 1}) + b"b", "sets the state"),
    "attributes of a function": (name("numpy", "dtype") + value((None, {"call": 1})) + b"b", "sets the state"),
    "an array of objects from bytes": (
        call(f"{NP}.multiarray", "scalar", call("numpy", "dtype", "O8", 0, 1), b"12345678"), "OBJECT",
    ),
})  # fmt: skip
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
    if title == "_codecs.encode" and form == "new checkpoint":
        return  # torch lets a file name a codec, which runs nothing of the file's
    line = refusal(load, bait)
    assert asked in line or load is load_checkpoint  # torch does not always say
    assert not Path("marker").exists()


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
