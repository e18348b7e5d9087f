"""Archives and checkpoints looked through before anything is unpacked: no code, no bombs, no tensor beyond its storage.

``torch.load(weights_only=True)`` is a second door behind this one: what is refused does not depend on torch's version.
"""

from __future__ import annotations

import struct
import tarfile
import zipfile
from collections import Counter, OrderedDict
from math import prod
from typing import Any, BinaryIO, Dict, List, Tuple

from utils.unpickle import DICTS, Asked, Judged, Machine, Refused, Rules, Window, load_pickle, shown

MAX_RATIO = 100  # an archive, and each member, may unpack to this many times its own size ...
SLACK = 1 << 24  # ... plus 16 MiB; masks of zeros shrink a lot, features hardly
_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the form that torch wrote before 1.6
_ITEMSIZE = {
    f"torch.{kind}Storage": size
    for size, kinds in {1: "Char Byte Bool", 2: "Half BFloat16 Short", 4: "Float Int", 8: "Double Long"}.items()
    for kind in kinds.split()
}


class _Storage:
    def __init__(self, numel: int):
        self.numel = numel


def _storage(reference: Any, declared: Dict[str, int]) -> _Storage:
    """("storage", type, key, location, numel), in the legacy form followed by the metadata of a view, None."""
    tag, kind, key, location, numel, *view = reference
    known = tag == "storage" and type(kind) is Asked and kind.name in _ITEMSIZE and view in ([], [None])
    if not known or type(key) is not str or type(location) is not str or type(numel) is not int or numel < 0:
        raise Refused("a storage that is not made as torch.save makes it")
    count = numel * _ITEMSIZE[kind.name]
    if declared.setdefault(key, count) != count:
        raise Refused(f"storage {shown(key)} declares {shown(count)} bytes where {declared[key]} are")
    return _Storage(numel)


def _tensor(
    machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, metadata: Any = None
) -> Judged:
    """torch._utils._rebuild_tensor_v2: a view of the storage that does not leave it and is no larger than it."""
    regular = type(storage) is _Storage and type(size) is tuple and type(stride) is tuple
    if not regular or not len(size) == len(stride) <= 32 or type(grad) is not bool:
        raise Refused("a tensor that is not made as torch.save makes it")
    if any(type(n) is not int or n < 0 for n in (offset, *size, *stride)) or hooks or metadata:
        raise Refused("a tensor with an unusual shape, hooks or metadata")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if prod(size) > storage.numel or (prod(size) and last >= storage.numel):
        raise Refused(f"a tensor of shape {shown(size)} in a storage of {shown(storage.numel)} values")
    return Judged()


def _parameter(machine: Machine, tensor: Any, grad: Any, hooks: Any) -> Judged:
    if type(tensor) is not Judged or type(grad) is not bool or hooks:
        raise Refused("a parameter that is not made as torch.save makes it")
    return tensor


def _size(machine: Machine, shape: Any) -> tuple:
    if type(shape) is not tuple or len(shape) > 32 or any(type(n) is not int for n in shape):
        raise Refused("a torch.Size that is no shape")
    return shape


def _build_state_dict(machine: Machine, made: Any, state: Any) -> None:
    """Module.state_dict() hangs notes on its dict: {"_metadata": {module: {"version": number}}}."""
    if type(made) is not OrderedDict or type(state) is not dict or len(state) != 1 or "_metadata" not in state:
        raise Refused(f"sets the state of a {type(made).__name__.lstrip('_')}")
    notes = state["_metadata"]
    machine.spend(len(notes))
    if type(notes) not in DICTS or any(type(note) is not dict for note in notes.values()):
        raise Refused("a state_dict with unusual metadata")


_CALLS = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": lambda machine: OrderedDict(),
    "torch Size": _size,
    # nothing for bytes: torch 2.3 does not load them
    **{name.replace(".", " "): None for name in _ITEMSIZE},
}
CHECKPOINT = Rules(_CALLS, _build_state_dict, "do not trust this file; get its state_dict alone")


def members(archive: zipfile.ZipFile, size: int, methods: Tuple[int, ...]) -> List[zipfile.ZipInfo]:
    """The members of an archive of ``size`` bytes; Refused for doubles, encryption, overlaps and bombs."""
    infos = archive.infolist()
    for name, count in Counter(info.filename.lower() for info in infos).most_common(1):
        if count > 1:  # torch looks names up without regard to case
            raise Refused(f"an archive that holds {shown(name)} twice")
    for info in infos:
        stored_badly = info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size
        unusual = info.flag_bits & 1 or info.compress_type not in methods or info.orig_filename != info.filename
        if unusual or stored_badly:
            raise Refused(f"an archive with a member of an unusual kind: {shown(info.filename)}")
    if sum(info.compress_size for info in infos) > size:
        raise Refused("an archive whose members overlap")
    sizes = [(info.compress_size, info.file_size) for info in infos]
    for packed, unpacked in [*sizes, (size, sum(count for _, count in sizes))]:
        if unpacked > MAX_RATIO * packed + SLACK:
            raise Refused(f"an archive where {packed} bytes would unpack to {unpacked}")
    return infos


def scan_checkpoint(handle: BinaryIO, size: int) -> None:
    """Look through a checkpoint of ``size`` bytes in either of torch's forms; Refused where it is not plain data."""
    start = handle.read(512)
    handle.seek(0)
    if not start:
        raise Refused("an empty file")
    if start[:4] == b"PK\x03\x04":
        return _scan_zip(handle, size)
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return _scan_legacy(handle, size)
    raise Refused("a checkpoint in torch's old tar form", "load and save it again with torch 0.4 or newer")


def _scan_zip(handle: BinaryIO, size: int) -> None:
    archive = zipfile.ZipFile(handle)
    infos = members(archive, size, (zipfile.ZIP_STORED,))
    _check_end(handle, size, archive.start_dir)
    root = infos[0].filename.split("/")[0] + "/"
    sizes = {info.filename[len(root) :]: info.file_size for info in infos if info.filename.startswith(root)}
    if len(sizes) < len(infos) or min(info.header_offset for info in infos) != 0:
        raise Refused("an archive that is not made as torch.save makes it")
    if "data.pkl" not in sizes or "constants.pkl" in sizes:
        raise Refused("an archive without tensors, or of code (TorchScript)", "save the state_dict with torch.save")
    declared = {key[len("data/") :]: count for key, count in sizes.items() if key.startswith("data/")}
    records = set(declared)
    with archive.open(root + "data.pkl") as stream:
        window = Window(stream, sizes["data.pkl"])
        load_pickle(window, CHECKPOINT, lambda reference: _storage(reference, declared))
    if window.left or set(declared) != records:
        raise Refused("a checkpoint whose storages or bytes do not fit its list of them")


def _check_end(handle: BinaryIO, size: int, start: int) -> None:
    """Two readers of a zip must see the same directory: it ends the file, and every pointer to it agrees."""
    handle.seek(max(0, size - 98))
    tail = handle.read(98)
    end, offset = tail[-22:], int.from_bytes(tail[-6:-2], "little")
    wide = tail[-42:-38] == b"PK\x06\x07"
    if end[:4] != b"PK\x05\x06" or offset not in ((start, 0xFFFFFFFF) if wide else (start,)):
        raise Refused("an archive that does not end as torch.save ends it")
    if wide and (tail[:4] != b"PK\x06\x06" or int.from_bytes(tail[-34:-26], "little") != size - 98):
        raise Refused("an archive that does not end as torch.save ends it")


def _scan_legacy(handle: BinaryIO, size: int) -> None:
    """Five pickles (magic number, version, system, value, keys of the storages), then per key its length and bytes."""
    declared: Dict[str, int] = {}
    window = Window(handle, size)
    if handle.peek(1)[:1] != b"\x80" or load_pickle(window, CHECKPOINT) != _MAGIC:
        raise Refused("no checkpoint of torch", "give a file that torch.save wrote")
    load_pickle(window, CHECKPOINT)
    load_pickle(window, CHECKPOINT)
    load_pickle(window, CHECKPOINT, lambda reference: _storage(reference, declared))
    keys = load_pickle(window, CHECKPOINT)
    if type(keys) is not list or sorted(keys) != sorted(declared):
        raise Refused("a checkpoint whose list of storages does not fit its tensors")
    for key in keys:
        (numel,) = struct.unpack("<q", window.read(8))
        if numel < 0 or declared[key] not in (numel * width for width in (1, 2, 4, 8)) or declared[key] > window.left:
            raise Refused(f"storage {shown(key)} declares {shown(declared[key])} bytes that are not there")
        window.left -= declared[key]
        handle.seek(declared[key], 1)
    if window.left:
        raise Refused("a checkpoint with bytes after its end")
