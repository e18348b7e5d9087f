"""The SCFE inputs of a split, computed once: without parameters, they are constant for fixed features and proposals.

A cache is a folder named by its inputs (features, proposals, roi_size, dtype) with one .npy a video and an index that
is written last: without it, or without a file it names, the cache is built again. Proposals of a video that repeat a
segment share one row.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, List, Optional, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.datasets.scfe import scfe_input
from utils.errors import InputError
from utils.files import content_hash, load_array, load_json, locked, save_array, write_json
from utils.run.report import log

VERSION = 3  # of the rows: raise it when scfe_input or the layout below changes

LoadFeatures = Callable[[str], np.ndarray]


class Rows:
    """SCFE inputs of V videos: distinct rows, and for each proposal which of its video's rows is its own.

    index: V arrays int64 [M_v], row of each proposal, counted within the video. size: int64 [V], rows of each video.
    video_mean: float32 [V, 2D], temporal mean of each video's features. width: 6D. ``read(v)``: the rows of video v,
    [U_v, 6D]. dtype: of the rows that the network gets, bfloat16 or float32.
    """

    def __init__(
        self, proposals: Sequence[np.ndarray], video_mean: np.ndarray, read: Callable[[int], Tensor], dtype: str
    ):
        found = [np.unique(segments, axis=0, return_inverse=True) for segments in proposals]
        self.index: List[np.ndarray] = [inverse.reshape(-1).astype(np.int64) for _, inverse in found]
        self.size = np.asarray([len(segments) for segments, _ in found], dtype=np.int64)
        self.start = np.concatenate([[0], np.cumsum(self.size)])
        self.video_mean, self.width, self.read = video_mean, 3 * video_mean.shape[1], read
        self.dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        self._on_device: Optional[Tensor] = None

    def places(self, videos: Sequence[int], picks: Sequence[np.ndarray]) -> np.ndarray:
        """int64 [U]: where the rows ``picks`` of each of these videos are among all rows."""
        return np.concatenate([self.start[v] + rows for v, rows in zip(videos, picks)])

    def gather(self, videos: Sequence[int], picks: Sequence[np.ndarray], places: Optional[Tensor] = None) -> Tensor:
        """[U, 6D] of ``dtype``: of each of these videos the rows ``picks``, one after the other; on the device, if the
        rows are there, by their ``places`` there."""
        if self._on_device is not None:
            return self._on_device.index_select(0, places).to(self.dtype)
        out = torch.empty(sum(map(len, picks)), self.width, dtype=self.dtype)
        for video, rows, part in zip(videos, picks, out.split([len(rows) for rows in picks])):
            every = self.read(video)
            part.copy_(every if len(part) == len(every) else every[torch.from_numpy(rows)])
        return out

    def to(self, device: torch.device, share: float = 0.6) -> None:
        """Keep all rows in the memory of a CUDA device if they take at most ``share`` of what is free there."""
        if device.type != "cuda" or not len(self.size):
            return
        total, stored = int(self.start[-1]), self.read(0).dtype
        dtype = stored if stored == torch.float16 else self.dtype
        if total * self.width * dtype.itemsize <= share * torch.cuda.mem_get_info(device)[0]:
            held = torch.empty(total, self.width, dtype=dtype, device=device)
            for video, part in enumerate(held.split(self.size.tolist())):
                part.copy_(self.read(video))
            self._on_device = held


def mean_of(features: np.ndarray) -> np.ndarray:
    """Temporal mean [2D] of a video's features [T, 2D], float32 summed in float64."""
    return features.mean(axis=0, dtype=np.float64).astype(np.float32)


def live_rows(
    videos: Sequence[str],
    proposals: Sequence[np.ndarray],
    load: LoadFeatures,
    roi_size: int = 12,
    dtype: str = "float32",
) -> Rows:
    """Rows without a cache: computed from the features whenever they are asked for. Same bits, more time."""
    mean = np.stack([mean_of(load(video)) for video in videos])
    return Rows(proposals, mean, lambda v: _rows(load(videos[v]), proposals[v], roi_size), dtype)


def _rows(features: np.ndarray, proposals: np.ndarray, roi_size: int) -> Tensor:
    return scfe_input(torch.from_numpy(features), np.unique(proposals, axis=0), roi_size)


def cached_rows(
    cache_dir: Path,
    name: str,
    videos: Sequence[str],
    proposals: Sequence[np.ndarray],
    load: LoadFeatures,
    signature: str,
    roi_size: int = 12,
    dtype: str = "float32",
) -> Rows:
    """The rows of these videos from the cache, which is built first if it is not there or damaged.

    proposals: V arrays [M, 2] in snippets. load: video name -> float32 [T, 2D]. signature: what ``load`` reads from.
    dtype: float32, float16 or bfloat16, which numpy does not have: its bits are stored as int16.
    Two runs that start at once wait for one another. Raises InputError naming the video.
    """
    key = content_hash(VERSION, signature, roi_size, dtype, tuple(videos), *proposals)
    folder = Path(cache_dir) / f"{name}-{key}"
    with locked(Path(cache_dir) / f"{folder.name}.lock"):
        if not _whole(folder, len(videos)):
            _build(folder, videos, proposals, load, roi_size, dtype, f"SCFE cache, {name}")
    mean = load_array(folder / "video_mean.npy")

    def read(v: int) -> Tensor:
        stored = torch.from_numpy(np.load(_file(folder, v), mmap_mode="c"))
        return stored.view(torch.bfloat16) if dtype == "bfloat16" else stored

    return Rows(proposals, mean, read, dtype)


def _file(folder: Path, video: int) -> Path:
    return folder / f"{video:06d}.npy"


def _whole(folder: Path, videos: int) -> bool:
    """Whether the index is there and every file has the size it says."""
    if not (folder / "index.json").exists():
        return False
    with suppress(InputError, KeyError, TypeError, OSError):
        sizes = load_json(folder / "index.json")["bytes"]
        if [_file(folder, v).stat().st_size for v in range(videos)] == sizes:
            if len(load_array(folder / "video_mean.npy")) == videos:
                return True
    log(f"cache is corrupt; rebuilding: {folder}")
    return False


def _build(folder: Path, videos, proposals, load: LoadFeatures, roi_size: int, dtype: str, title: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    means, sizes = [], []
    try:
        for v, video in enumerate(tqdm(videos, title, unit="video", leave=False, disable=None)):
            features = load(video)
            means.append(mean_of(features))
            rows = _rows(features, proposals[v], roi_size).to(getattr(torch, dtype))
            if len(rows) and not torch.stack(rows.aminmax()).isfinite().all():  # NaN is its own extreme
                raise InputError(f"features too large for {dtype}", video, "use --cache_dtype float32")
            rows = rows.view(torch.int16) if dtype == "bfloat16" else rows
            with open(_file(folder, v), "wb") as file:  # given the path, numpy would hide a full disk's errno
                np.save(SimpleNamespace(write=file.write), rows.numpy())
            sizes.append(_file(folder, v).stat().st_size)
        save_array(folder / "video_mean.npy", np.stack(means))
        if hasattr(os, "sync"):
            os.sync()  # one for all: a loss of power must not leave an index of files that are not on the disk
        write_json(folder / "index.json", {"videos": list(videos), "bytes": sizes})
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # a full disk gets its space back
        if isinstance(error, OSError):
            error.filename = error.filename or str(folder)
        raise
