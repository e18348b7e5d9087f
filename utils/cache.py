"""The SCFE inputs of a split, computed once: without parameters, they are constant for fixed features and proposals.

A cache is a folder named by the content of its inputs (features, proposals, roi_size, dtype), so it can never serve
rows of other inputs. It is built beside its place and renamed, under a lock: whole or not there. Proposals of a video
that repeat a segment share one row.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.errors import InputError
from utils.files import file_hash, load_array, save_array, write_json
from utils.report import log
from utils.scfe import scfe_input

VERSION = 2  # of the rows: raise it when scfe_input or the layout below changes
MAPPED_BYTES = 1 << 29  # pages of the memory map that may stay in memory before it is opened anew
SETTLED_S = 2.0  # a file changed later than this before it was hashed may change again within one clock tick

LoadFeatures = Callable[[str], np.ndarray]


class Rows:
    """SCFE inputs of V videos: unique rows, and for each proposal which of its video's rows is its own.

    index: V arrays int64 [M_v], row of each proposal, counted within the video. size: int64 [V], rows of each video.
    num_snippets: int64 [V]. video_mean: float32 [V, 2D], temporal mean of each video. width: 6D.
    """

    def __init__(self, proposals: Sequence[np.ndarray], roi_size: int):
        self.roi_size = roi_size
        self.unique: List[np.ndarray] = []
        self.index: List[np.ndarray] = []
        for segments in proposals:
            unique, inverse = np.unique(segments, axis=0, return_inverse=True)
            self.unique.append(unique)
            self.index.append(inverse.reshape(-1).astype(np.int64))
        self.size = np.asarray([len(u) for u in self.unique], dtype=np.int64)
        self.start = np.concatenate([[0], np.cumsum(self.size)])
        self.num_snippets = np.zeros(len(self.unique), dtype=np.int64)
        self.video_mean = np.zeros((len(self.unique), 0), dtype=np.float32)
        self.width = 0
        self._read: Callable[[int], Tensor] = self._not_built
        self._on_device: Optional[Tensor] = None

    def gather(self, videos: Sequence[int], picks: Optional[Sequence[np.ndarray]] = None) -> Tensor:
        """float32 [U, 6D]: the rows of these videos one after the other, or of each only those in ``picks``."""
        if self._on_device is not None:
            where = [
                self.start[v] + (np.arange(self.size[v]) if picks is None else picks[i]) for i, v in enumerate(videos)
            ]
            places = torch.from_numpy(np.concatenate(where)).pin_memory().to(self._on_device.device, non_blocking=True)
            return self._on_device.index_select(0, places).float()
        counts = [self.size[v] if picks is None else len(picks[i]) for i, v in enumerate(videos)]
        out = torch.empty(int(sum(counts)), self.width)
        for i, (video, part) in enumerate(zip(videos, out.split([int(c) for c in counts]))):
            rows = self._read(video)
            part.copy_(rows if len(part) == len(rows) else rows[torch.from_numpy(picks[i])])  # type: ignore[index]
        return out

    def to(self, device: torch.device, share: float = 0.6) -> bool:
        """Keep all rows in the memory of a CUDA device if they take at most ``share`` of what is free there."""
        if device.type != "cuda" or self._on_device is not None or not len(self.unique):
            return self._on_device is not None
        dtype = self._read(0).dtype
        need = int(self.start[-1]) * self.width * torch.empty(0, dtype=dtype).element_size()
        if need > share * torch.cuda.mem_get_info(device)[0]:
            return False
        held = torch.empty(int(self.start[-1]), self.width, dtype=dtype, device=device)
        for video in range(len(self.unique)):
            held[self.start[video] : self.start[video + 1]] = self._read(video).to(device)
        self._on_device = held
        return True

    def compute_live(self, videos: Sequence[str], load: LoadFeatures) -> Rows:
        """No cache: every row is computed from the features when it is asked for. Same bits, more time."""
        for i, video in enumerate(videos):
            self._describe(i, load(video))
        self._read = lambda i: scfe_input(torch.from_numpy(load(videos[i])), self.unique[i], self.roi_size)
        return self

    def open(self, folder: Path) -> Rows:
        """Serve rows from a finished cache by memory map, opened anew before its pages fill the memory.

        Raises InputError for a cache that is damaged.
        """
        self.num_snippets = load_array(folder / "num_snippets.npy")
        self.video_mean = load_array(folder / "video_mean.npy")
        self.width = 3 * self.video_mean.shape[-1]
        shapes = (self.num_snippets.shape, self.video_mean.shape, _map(folder / "rows.npy").shape)
        videos = len(self.unique)
        if shapes != ((videos,), (videos, self.width // 3), (self.start[-1], self.width)):
            raise InputError(f"a cache of other shapes: {shapes}", folder, "delete it")
        mapped, touched = _map(folder / "rows.npy"), 0

        def read(i: int) -> Tensor:
            nonlocal mapped, touched
            if touched > MAPPED_BYTES:
                mapped, touched = _map(folder / "rows.npy"), 0
            part = mapped[self.start[i] : self.start[i + 1]]
            touched += part.nbytes
            return torch.from_numpy(part)

        self._read = read
        return self

    def build(self, folder: Path, videos: Sequence[str], load: LoadFeatures, dtype: str, name: str) -> None:
        """Compute every row, one video at a time, and leave a finished cache in ``folder``."""
        scratch = folder.with_name(folder.name + ".building")
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed build left: the lock is ours
        scratch.mkdir(parents=True)
        try:
            # written in sequence, not through a memory map: dirty pages of a large map would fill the memory
            with open(scratch / "rows.npy", "wb") as file:
                for i, video in enumerate(tqdm(videos, f"SCFE cache, {name}", unit="video", leave=False, disable=None)):
                    features = load(video)
                    self._describe(i, features)
                    if i == 0:
                        shape = (int(self.start[-1]), self.width)
                        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_2_0(file, header)
                    block = scfe_input(torch.from_numpy(features), self.unique[i], self.roi_size)
                    with np.errstate(over="ignore"):
                        stored = block.numpy().astype(dtype, copy=False)
                    if not np.isfinite(stored).all():
                        raise InputError(f"features too large for {dtype}", video, "use --cache_dtype float32")
                    file.write(stored.data)
                file.flush()
                os.fsync(file.fileno())  # a loss of power must not leave a finished cache with rows of zeros
            save_array(scratch / "num_snippets.npy", self.num_snippets)
            save_array(scratch / "video_mean.npy", self.video_mean)
            scratch.replace(folder)
        except OSError as error:
            error.filename = error.filename or str(folder)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _describe(self, i: int, features: np.ndarray) -> None:
        if not self.width:
            self.width = 3 * features.shape[1]
            self.video_mean = np.zeros((len(self.unique), features.shape[1]), dtype=np.float32)
        self.num_snippets[i] = len(features)
        self.video_mean[i] = features.mean(axis=0, dtype=np.float64)

    @staticmethod
    def _not_built(i: int) -> Tensor:
        raise RuntimeError("rows are neither opened nor computed live")


def _map(path: Path) -> np.memmap:
    """A checked .npy file by memory map, copy-on-write: torch wants memory it could write to."""
    found = load_array(path, mmap=True)
    if not isinstance(found, np.memmap) or found.dtype.kind != "f":
        raise InputError(f"rows of type {found.dtype}", path, "delete the cache")
    return np.memmap(path, found.dtype, "c", found.offset, found.shape)


def cached_rows(
    cache_dir: Path,
    name: str,
    videos: Sequence[str],
    proposals: Sequence[np.ndarray],
    load: LoadFeatures,
    signature: str,
    roi_size: int = 12,
    dtype: str = "float32",
) -> Tuple[Rows, Path]:
    """The rows of these videos from the cache, which is built first if it is not there or damaged.

    proposals: V arrays [M, 2] in snippets. load: video name -> float32 [T, 2D]. signature: hash of the content behind
    ``load``. Two runs that start at once wait for one another. Returns the rows and the cache's folder.
    """
    digest = hashlib.blake2b(f"{VERSION} {signature} {roi_size} {dtype}".encode(), digest_size=12)
    for video, segments in zip(videos, proposals):
        digest.update(f"\0{video}\0{len(segments)}\0".encode() + np.ascontiguousarray(segments, np.float64).tobytes())
    folder = cache_dir / f"{name}-{digest.hexdigest()}"
    rows = Rows(proposals, roi_size)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with locked(cache_dir / f"{folder.name}.lock"):
        if folder.is_dir():
            try:
                return rows.open(folder), folder
            except InputError as damage:
                log(f"the cache is damaged, building it anew: {damage}")
                shutil.rmtree(folder)
                rows = Rows(proposals, roi_size)  # nothing of what was read stays
        rows.build(folder, videos, load, dtype, name)
        return rows.open(folder), folder


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock; the system frees it when the process ends, however it ends. BlockingIOError if taken.

    Without ``wait`` a taken lock is still tried for a second: a killed process may have been starting another one
    (git), which holds its files until it has begun.
    """
    import fcntl  # POSIX alone

    with open(path, "a") as file:
        deadline = time.monotonic() + 1
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield


class FileHashes:
    """Content hashes of files, kept between runs by each file's state on disk (size, times, inode).

    A file is read again when any of these changes; the time of change (ctime) cannot be set by hand, and a file that
    changed just before it was hashed is not remembered, as it could change again within one tick of the clock.
    """

    def __init__(self, path: Path):
        self.path = path
        known = {}
        if path.is_file():
            try:
                known = json.loads(path.read_text())
            except (OSError, ValueError):
                pass  # a damaged memo costs one more reading
        self.known: Dict[str, Tuple[List[int], str]] = known if isinstance(known, dict) else {}
        self.changed = False

    def __call__(self, path: Path) -> str:
        name, before = str(path.resolve()), path.stat()
        state = [before.st_size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino]
        found = self.known.get(name)
        if isinstance(found, list) and len(found) == 2 and found[0] == state:
            return found[1]
        value = file_hash(path)
        if time.time_ns() - before.st_ctime_ns > SETTLED_S * 1e9:
            self.known[name] = [state, value]  # type: ignore[assignment]
            self.changed = True
        return value

    def save(self) -> None:
        if self.changed:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.known)
