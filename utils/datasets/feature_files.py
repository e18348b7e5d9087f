"""Files of features: which belong to which video, and how each form is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from utils.datasets.profile import WHERE_FROM
from utils.errors import InputError, some
from utils.files import load_array, load_npz, load_pickle, load_torch
from utils.segments import spelled

SPLITS = ("train", "training", "val", "validation", "test", "testing")


def read_features(path: Path, mmap: bool = False) -> Any:
    """The one array of a file, which holds it alone or in a dict, unchecked. ``mmap``: a .npy is mapped, not read."""
    value = READERS[path.suffix.lower()](path, **({"mmap": True} if mmap and path.suffix.lower() == ".npy" else {}))
    if isinstance(value, dict):
        arrays = {str(name): item for name, item in value.items() if hasattr(item, "shape") and len(item.shape)}
        if len(arrays) != 1:
            what = f"{len(arrays)} arrays in one file" + (f": {some(list(arrays))}" if arrays else "")
            raise InputError(what, path, "one array a file, [T, 2D]")
        (value,) = arrays.values()
    return value.detach().float().numpy() if type(value).__module__ == "torch" else value


def _from_npy(path: Path, mmap: bool = False) -> Any:
    array = load_array(path, mmap=mmap, objects=True)
    return array.item() if array.dtype.hasobject and not array.ndim else array  # as numpy saves a dict


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
    arrays: Dict[str, np.ndarray] = {}
    try:
        import h5py

        with h5py.File(path, "r") as file:
            file.visititems(lambda name, item: arrays.update({name: item[()]} if hasattr(item, "shape") else {}))
    except ImportError:
        raise InputError("reading .h5 needs the package h5py", path, "pip install h5py") from None
    except OSError as error:
        raise InputError(f"not an HDF5 file that can be read: {error}", path, "get or make the file again") from None
    return arrays


READERS = {
    **{".npy": _from_npy, ".npz": load_npz, ".pkl": load_pickle, ".pickle": load_pickle, ".pt": load_torch},
    **{".pth": load_torch, ".csv": _from_csv, ".h5": _from_hdf5, ".hdf5": _from_hdf5},
}


def list_files(folder: Path) -> Dict[str, Dict[str, Path]]:
    """{"": {name without suffix: file}} of a folder and its train/ and test/; "rgb", "flow" where it has these."""
    if not folder.is_dir():
        raise InputError("no features: neither a file nor a folder", folder, WHERE_FROM)
    streams: Dict[str, Dict[str, Path]] = {"rgb": {}, "flow": {}, "": {}}
    for path in sorted([*folder.glob("[!.]*"), *folder.glob("*/[!.]*"), *folder.glob("*/*/[!.]*")]):
        inside = {part.lower() for part in path.relative_to(folder).parts[:-1]}
        if path.suffix.lower() not in READERS or not path.is_file() or not inside <= {*SPLITS, "rgb", "flow"}:
            continue
        files = streams[next((name for name in ("rgb", "flow") if name in inside), "")]
        if files.setdefault(path.stem, path) != path:
            raise InputError(f"two files of one video, {files[path.stem].name} too", path, "remove one")
    return {name: files for name, files in streams.items() if files and name} or {"": streams[""]}


def files_of(files: Dict[str, Path], videos: Sequence[str]) -> Tuple[Dict[str, Path], Optional[str]]:
    """{video: its file}, and a line to log where all names have one addition to the videos' own (VIDEO_i3d.npy)."""
    found = _named(files, videos)
    if found or not files:
        return found, None
    bare = {video[2:] if video.startswith("v_") else video for video in videos}
    additions = Counter(name.partition(video)[::2] for name in list(files)[:50] for video in bare if video in name)
    for (before, after), _ in additions.most_common(1):
        fits = [name for name in files if name.startswith(before) and name.endswith(after)]
        found = _named({name[len(before) : len(name) - len(after)]: files[name] for name in fits}, videos)
        if 2 * len(found) >= min(len(files), len(bare)):
            example = files[fits[0]]
            return found, f"feature files are named {before}VIDEO{after}{example.suffix} in {example.parent}"
    return {}, None


def _named(files: Dict[str, Path], videos: Sequence[str]) -> Dict[str, Path]:
    where = next(iter(files.values())).parent if files else None
    return {video: files[name] for video, name in spelled(videos, files, where).items() if name in files}
