"""Two-stream snippet features on disk: one joint object array, or folders with a file a video."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from utils.annotations import WHERE_FROM
from utils.errors import InputError
from utils.files import load_array, load_npz

SUFFIXES = (".npy", ".npz")


class Features:
    """Snippet features of videos by name: ``features.load(video)`` -> float32 [T, 2D], RGB first, then flow.

    sources: one path (joint .npy or folder of VIDEO.npy / v_VIDEO.npy / .npz), or two folders (RGB, flow).
    all_videos: every video of the annotations, in order: what the rows of a joint array belong to.
    feature_size: 2D if the user states it; tells [T, 2D] from [2D, T] in per-video files.
    Raises InputError naming file and video.
    """

    def __init__(self, sources: Sequence[Path], all_videos: Sequence[str], feature_size: Optional[int] = None):
        self.sources = [Path(s) for s in sources]
        self._joint: Optional[np.ndarray] = None
        self._row: Dict[str, int] = {}
        self._files: List[Dict[str, Path]] = []
        if self.sources[0].is_file():
            self._row = {v: i for i, v in enumerate(all_videos)}
        else:
            self._files = [_listing(folder) for folder in self.sources]
        self.videos = tuple(v for v in all_videos if v in self._row or (self._files and self._found(v)))
        for files in self._files:
            owner: Dict[str, str] = {}
            for video in self.videos:
                other = owner.setdefault(_name(files, video) or "", video)
                if other != video:
                    todo = "give each its own: the name may stand with or without v_"
                    raise InputError(f"one file for {other} and {video}", files[_name(files, video) or ""], todo)
        if not self.videos:
            todo = "files are found by video name, with or without v_"
            raise InputError("features of none of the annotated videos", self.sources[0], todo)
        self._stated_size = feature_size
        self._layout: Optional[Tuple[int, bool]] = None

    @property
    def layout(self) -> Tuple[int, bool]:
        """(2D, are the files [2D, T]?); looked up on first use: a finished cache needs no feature."""
        if self._layout is None:
            self._layout = self._find_layout(self._stated_size)
        return self._layout

    @property
    def simulated(self) -> Optional[Path]:
        """The note of ``utils.demo`` beside features that it drew, if there is one."""
        folders = [folder for s in self.sources for folder in (s, s.parent)]
        return next((p for p in (folder / "SIMULATED.txt" for folder in folders) if p.is_file()), None)

    def load(self, video: str) -> np.ndarray:
        """float32 [T, 2D] of one video; T > 0, every value finite."""
        return self.sound(video, self.read(video))

    def longest_s(self, video: str, snippets_per_second: float) -> float:
        """Seconds that a video of T snippets can have: what is left of a last, partial one has no row.

        Of a folder's .npy files, only the header is read.
        """
        return (self._raw(video, 0, mmap=True).shape[int(self.layout[1])] + 1) / snippets_per_second

    def read(self, video: str) -> np.ndarray:
        """[T, 2D] of one video, of the type and with the values that stand in its file."""
        parts = [self._part(video, source) for source in range(len(self.sources))]
        if len({len(p) for p in parts}) > 1:
            lengths = " and ".join(str(len(p)) for p in parts)
            raise InputError(f"RGB and flow have {lengths} snippets", self._where(video), "extract them at one stride")
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def sound(self, video: str, array: np.ndarray) -> np.ndarray:
        """``array`` of a video as float32, if T > 0 and every value is finite."""
        with np.errstate(over="ignore"):  # a number too large for float32 becomes Inf, which is refused
            features = np.ascontiguousarray(array, dtype=np.float32)
        if len(features) == 0:
            raise InputError("a video of no snippet (T = 0)", self._where(video), "extract it again or drop the video")
        if not np.isfinite(features).all():
            raise InputError("NaN or Inf in the features", self._where(video), "extract the video again")
        return features

    def unused(self) -> Tuple[str, ...]:
        """Feature files that belong to no annotated video, or whose video is read from another file."""
        found = []
        for folder, files in zip(self.sources, self._files):
            used = {files[name] for v in self.videos for name in [_name(files, v)] if name}
            found += [str(p.relative_to(folder)) for p in _feature_files(folder) if p not in used]
        return tuple(found)

    def signature(self, videos: Sequence[str], hash_file: Callable[[Path], str]) -> str:
        """Hash of the content of the files behind these videos, and of how it is told which part is whose."""
        if not self._files:
            paths = [self.sources[0]]
        else:
            paths = [files[name] for v in videos for files in self._files for name in [_name(files, v)] if name]
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self._stated_size, [self._row.get(v) for v in videos])).encode())
        for path in paths:
            digest.update(hash_file(path).encode())
        return digest.hexdigest()

    def release(self) -> None:
        """Give back the memory of a joint array; the next load reads it again."""
        self._joint = None

    def _found(self, video: str) -> bool:
        return all(_name(files, video) is not None for files in self._files)

    def _where(self, video: str, source: int = 0) -> str:
        return f"{self.sources[source]}, {video}"

    def _raw(self, video: str, source: int, mmap: bool = False) -> np.ndarray:
        if not self._files:
            array = self._joint_array()[self._row[video]]
        else:
            path = self._files[source][_name(self._files[source], video) or video]
            if path.suffix == ".npz":
                (array,) = load_npz(path, one=True).values()
            else:
                array = load_array(path, mmap=mmap)
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu":
            shape = getattr(array, "shape", type(array).__name__)
            raise InputError(
                f"not a [T, 2D] array of numbers but {shape}", self._where(video, source), "extract it again"
            )
        return array

    def _joint_array(self) -> np.ndarray:
        if self._joint is None:
            joint = load_array(self.sources[0], objects=True, todo=WHERE_FROM)
            if joint.ndim != (1 if joint.dtype == object else 3):
                raise InputError("not an object array of [T, 2D] arrays", self.sources[0], WHERE_FROM)
            if len(joint) != len(self._row):
                what = f"features of {len(joint)} videos, annotations of {len(self._row)}"
                raise InputError(what, self.sources[0], "features and annotations must be of one release")
            self._joint = joint
        return self._joint

    def _part(self, video: str, source: int) -> np.ndarray:
        array = self._raw(video, source)
        feature_size, transposed = self.layout
        width = feature_size // len(self.sources)
        if transposed:
            array = array.T
        if array.shape[1] != width:
            what = f"features of width {array.shape[1]}, not {width}"
            raise InputError(what, self._where(video, source), "every video needs the same feature_size")
        return array

    def _find_layout(self, feature_size: Optional[int]) -> Tuple[int, bool]:
        """(2D, are the files [2D, T]?) from a joint array (always [T, 2D]) or from the shapes of per-video files.

        Damaged and odd files have no say where most are of one width: they are refused, by name, when they are read.
        """
        parts, shapes = len(self.sources), self._shapes()
        rows, columns = (Counter(shape[axis] for shape in shapes) for axis in (0, 1))
        (row, with_row), (column, with_column) = rows.most_common(1)[0], columns.most_common(1)[0]
        if not self._files:
            if feature_size not in (None, column):
                what = f"features of width {column}, not {feature_size}"
                raise InputError(what, self.sources[0], "leave out --feature_size")
            return column, False
        if feature_size is not None:
            width = feature_size // parts
            with_row, with_column = rows[width], columns[width]
            if with_row == with_column == len(shapes):
                what = f"[T, 2D] and [2D, T] cannot be told apart: the files are {width} x {width}"
                raise InputError(what, self.sources[0], "add a video of another length or store the joint array")
            if 2 * max(with_row, with_column) <= len(shapes):
                todo = "give the width of the concatenated features, or leave out --feature_size"
                raise InputError(f"features are {sorted(shapes)[0]}, not of width {width}", self.sources[0], todo)
            return feature_size, with_row > with_column
        if with_row == with_column == len(shapes):
            what = f"[T, 2D] and [2D, T] cannot be told apart: every file is {row} x {column}"
            raise InputError(what, self.sources[0], "state --feature_size")
        if 2 * with_column > len(shapes) and with_column >= with_row:
            return column * parts, False
        if 2 * with_row > len(shapes):
            return row * parts, True
        raise InputError(f"files of different widths {sorted(columns)[:3]}", self.sources[0], "state --feature_size")

    def _shapes(self) -> List[Tuple[int, int]]:
        """The shapes of the first readable files; InputError of the first where none is."""
        shapes, problems = [], []
        for video in self.videos[:64]:
            try:
                shapes.append(self._raw(video, 0, mmap=True).shape)
            except InputError as error:
                problems.append(error)
        if not shapes:
            raise problems[0]
        return shapes


def _feature_files(folder: Path) -> List[Path]:
    return [p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES and not p.name.startswith(".")]


def _listing(folder: Path) -> Dict[str, Path]:
    """Name without suffix -> file, of one folder."""
    if not folder.is_dir():
        raise InputError("no features: neither a file nor a folder", folder, WHERE_FROM)
    found: Dict[str, Path] = {}
    for path in _feature_files(folder):
        if found.setdefault(path.stem, path) != path:
            raise InputError(f"two files of one video, {found[path.stem].name} too", path, "remove one")
    return found


def _name(files: Dict[str, Path], video: str) -> Optional[str]:
    """The name under which a video's file stands: as it is, with v_, or without."""
    bare = video[2:] if video.startswith("v_") else video
    return next((n for n in (video, "v_" + bare, bare) if n in files), None)
