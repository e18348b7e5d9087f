"""Files of features: which belong to which video, and how each form is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Container, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from utils.datasets.profile import WHERE_FROM
from utils.errors import InputError, some
from utils.files import load_array, load_npz, load_pickle, load_torch
from utils.segments import spelled

SUFFIXES = (".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".csv", ".h5", ".hdf5")
SPLITS = ("train", "training", "val", "validation", "test", "testing")
STREAMS = ("rgb", "flow")


def read_features(path: Path, mmap: bool = False) -> Any:
    """The one array of a file, which holds it alone or in a dict, unchecked. ``mmap``: a .npy is mapped, not read."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        value = load_array(path, mmap=mmap, objects=True)
        value = value.item() if value.dtype.hasobject and not value.ndim else value
    elif suffix == ".npz":
        value = load_npz(path)
    elif suffix in (".pkl", ".pickle"):
        value = load_pickle(path)
    elif suffix in (".pt", ".pth"):
        value = load_torch(path)
    else:
        value = _from_csv(path) if suffix == ".csv" else _from_hdf5(path)
    if isinstance(value, dict):
        arrays = {name: item for name, item in value.items() if hasattr(item, "shape") and len(item.shape)}
        if len(arrays) != 1:
            names = f": {some(list(map(str, arrays)))}" if arrays else ""
            raise InputError(f"{len(arrays)} arrays in one file{names}", path, "one array a file, [T, 2D]")
        (value,) = arrays.values()
    if type(value).__module__ == "torch":
        value = value.detach().float().numpy()
    return value


def _from_csv(path: Path) -> np.ndarray:
    """A row a snippet, with or without a line of column names."""
    try:
        frame = pd.read_csv(path, header=None, encoding="utf-8-sig", low_memory=False)
        head = pd.to_numeric(frame.iloc[0], errors="coerce").to_numpy()
        named = np.isnan(head).any() or (len(head) > 1 and (head == np.arange(len(head))).all())
        return frame.iloc[1 if named else 0 :].to_numpy(dtype=np.float64)
    except ValueError as error:  # pandas' own and UnicodeDecodeError are among them
        raise InputError(f"not a CSV of numbers: {error}", path, "a row a snippet, separated by commas") from None


def _from_hdf5(path: Path) -> Dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError:
        raise InputError("reading .h5 needs the package h5py", path, "pip install h5py") from None
    arrays: Dict[str, np.ndarray] = {}
    try:
        with h5py.File(path, "r") as file:
            file.visititems(lambda name, item: arrays.update({name: item[()]} if hasattr(item, "shape") else {}))
    except OSError as error:
        raise InputError(f"not an HDF5 file that can be read: {error}", path, "get or make the file again") from None
    return arrays


def list_files(folder: Path) -> List[Dict[str, Path]]:
    """{name without suffix: file} of a folder and its train/ and test/; two of them where it has rgb/ and flow/."""
    if not folder.is_dir():
        raise InputError("no features: neither a file nor a folder", folder, WHERE_FROM)
    streams: List[Dict[str, Path]] = [{}, {}, {}]  # rgb, flow, neither
    for path in sorted([*folder.glob("*"), *folder.glob("*/*"), *folder.glob("*/*/*")]):
        inside = [part.lower() for part in path.relative_to(folder).parts[:-1]]
        hidden = path.name.startswith(".") or path.suffix.lower() not in SUFFIXES or not path.is_file()
        if hidden or any(part not in (*SPLITS, *STREAMS) for part in inside):
            continue
        files = streams[next((STREAMS.index(part) for part in inside if part in STREAMS), 2)]
        if files.setdefault(path.stem, path) != path:
            raise InputError(f"two files of one video, {files[path.stem].name} too", path, "remove one")
    return [files for files in streams[:2] if files] or streams[2:]


def files_of(files: Dict[str, Path], videos: Sequence[str]) -> Tuple[Dict[str, Path], Optional[str]]:
    """{video: its file}, and a line to log where all names have one addition to the videos' own (VIDEO_i3d.npy)."""
    found = _named(files, videos)
    if found or not files:
        return found, None
    bare = {video[2:] if video.startswith("v_") else video for video in videos}
    before, after = max(
        _additions(list(files)[:10], bare), key=lambda pair: _count(files, bare, *pair), default=("", "")
    )
    if 2 * _count(files, bare, before, after) < min(len(files), len(bare)):
        return {}, None
    stripped = {name[len(before) : len(name) - len(after)]: path for name, path in files.items()}
    example = next(iter(files.values()))
    return _named(stripped, videos), f"feature files are named {before}VIDEO{after}{example.suffix} in {example.parent}"


def _named(files: Dict[str, Path], videos: Sequence[str]) -> Dict[str, Path]:
    where = next(iter(files.values())).parent if files else None
    return {video: files[name] for video, name in spelled(videos, files, where).items() if name in files}


def _additions(names: Sequence[str], videos: Container[str]) -> List[Tuple[str, str]]:
    """What could stand before and after the name of a video in these names."""
    pairs = []
    for name in names:
        cuts = [(i, j) for i in range(len(name)) for j in range(i + 1, len(name) + 1) if name[i:j] in videos]
        pairs += [(name[:i], name[j:]) for i, j in cuts]
    return pairs


def _count(names: Sequence[str], videos: Container[str], before: str, after: str) -> int:
    """How many of the names are a video's with this before and after it."""
    fits = (name.startswith(before) and name.endswith(after) for name in names)
    return sum(fit and name[len(before) : len(name) - len(after)] in videos for fit, name in zip(fits, names))
