"""Checkpoints come back as they were saved; damaged ones, and those that lie about their tensors, are one line."""

from __future__ import annotations

import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from tests.make_files import (
    EVIL,
    Code,
    call,
    cheaply,
    in_dict,
    in_old_form,
    name,
    npy,
    refusal,
    saved,
    value,
    zipped,
)  # fmt: skip
from utils.files import load_checkpoint

MODEL = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))


def state() -> dict:
    optimiser = torch.optim.Adam(MODEL.parameters())
    MODEL(torch.ones(1, 4)).sum().backward()
    optimiser.step()
    generator = torch.Generator().manual_seed(1)
    return {
        "model": MODEL.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": {"torch": generator.get_state(), "python": (3, (1 << 32, 5), None)},
        "options": {"lr": 5e-5, "losses": ["sme", "pc"], "name": "é", "cache": None, "amp": False},
        "types": [torch.ones(2, dtype=kind) for kind in (torch.float16, torch.bfloat16, torch.int64, torch.bool)],
        "view": torch.arange(12.0).reshape(3, 4)[1:, ::2],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "shape": torch.Size([2, 3]),
        "empty": torch.zeros(0, 5),
    }


def alike(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b and type(a) is type(b)


@pytest.mark.parametrize("new_form", [True, False])
def test_checkpoints_come_back_as_they_were(tmp_path, new_form):
    path, value = tmp_path / "a.pt", state()
    torch.save(value, path, _use_new_zipfile_serialization=new_form)
    assert alike(load_checkpoint(path), value)


def test_the_released_form_of_a_checkpoint_loads(golden):
    weights = load_checkpoint(golden / "checkpoint.pkl")
    assert len(weights) == 14 and all(name.startswith("prop_fused_backbone.") for name in weights)
    assert weights["prop_fused_backbone.prop_fusion.0.bias"].dtype == torch.float32


NEW, OLD = saved({"w": torch.ones(8)}), saved({"w": torch.ones(8)}, _use_new_zipfile_serialization=False)
BAD_CHECKPOINTS = {
    "empty": (b"", "empty file"),
    "text": (b"hello", "no checkpoint"),
    "a .npy file": (npy(np.ones(2)), "no checkpoint"),
    "a bare pickle": (pickle.dumps({"w": [1.0]}), "no checkpoint"),
    "a plain archive": (zipped({"a.npy": npy(np.ones(2))}), "torch.save"),
    "cut new form": (NEW[:-40], "not a zip"),
    "cut old form": (OLD[:-1], "ends early|not there"),
    "junk after the old form": (OLD + b"\0", "after its end"),
    "a tensor": (saved(torch.ones(2)), "no dict"),
    "a list": (saved([1]), "no dict"),
    "numbers for names": (saved({1: torch.ones(2)}), "no dict"),
    "a module": (saved({"m": torch.nn.Linear(1, 1)}), "torch.nn.modules.linear.Linear"),
    "a numpy array": (saved({"w": np.ones(2)}), "_reconstruct"),
    "an expanded tensor": (saved({"w": torch.ones(1).expand(1000, 1000)}), "in a storage of 1 values"),
    "a sparse tensor": (saved({"w": torch.eye(2).to_sparse()}), "_rebuild_sparse_tensor"),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_bad_checkpoints_are_one_line(tmp_path, name):
    path = tmp_path / "a.pt"
    data, words = BAD_CHECKPOINTS[name]
    path.write_bytes(data)
    line = refusal(load_checkpoint, path)
    assert any(word in line for word in words.split("|"))


# ---- checkpoints that lie ------------------------------------------------------------------------------------------


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
