"""Two-stream snippet features on disk: one joint object array, or folders with a file a video."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from utils.datasets.annotations import Annotations
from utils.datasets.profile import WHERE_FROM, Profile
from utils.errors import InputError
from utils.files import content_hash, load_array, load_npz

SUFFIXES = (".npy", ".npz")


class Features:
    """Snippet features of videos by name: ``features.load(video)`` -> float32 [T, 2D], RGB first, then flow.

    sources: one path (joint .npy or folder of VIDEO.npy / v_VIDEO.npy / .npz), or two folders (RGB, flow).
    all_videos: every video of the annotations, in order: what the rows of a joint array belong to.
    feature_size: 2D if the user states it; tells [T, 2D] from [2D, T] in per-video files.
    Raises InputError naming file and video.
    """

    def __init__(self, sources: Sequence[Path], all_videos: Sequence[str], feature_size: Optional[int] = None):
        self.sources = [Path(source) for source in sources]
        self._stated_size, self._layout, self._joint = feature_size, None, None
        self._row: Dict[str, int] = {}  # of a joint array
        self._files: List[Dict[str, Path]] = []  # video -> file, of each folder
        if self.sources[0].is_file():
            self._row = {video: i for i, video in enumerate(all_videos)}
        else:
            self._files = [_by_video(_listing(folder), all_videos) for folder in self.sources]
        self.videos = tuple(v for v in all_videos if v in self._row or all(v in f for f in self._files or [{}]))
        if not self.videos:
            todo = "files are found by video name, with or without v_"
            raise InputError("no annotated video has a feature file", self.sources[0], todo)

    @property
    def layout(self) -> Tuple[int, bool]:
        """(2D, are the files [2D, T]?); looked up on first use: a finished cache needs no feature."""
        if self._layout is None:
            self._layout = self._find_layout(self._stated_size)
        return self._layout

    @property
    def simulated(self) -> Optional[Path]:
        """The note beside features that were drawn from random numbers, if there is one."""
        folders = [folder for source in self.sources for folder in (source, source.parent)]
        return next((path for path in (folder / "SIMULATED.txt" for folder in folders) if path.is_file()), None)

    def load(self, video: str) -> np.ndarray:
        """float32 [T, 2D] of one video; T > 0, every value finite."""
        return self.sound(video, self.read(video))

    def read(self, video: str) -> np.ndarray:
        """[T, 2D] of one video, of the type and with the values that are in its file."""
        parts = [self._part(video, source) for source in range(len(self.sources))]
        if len({len(part) for part in parts}) > 1:
            lengths = " and ".join(str(len(part)) for part in parts)
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

    def longest_s(self, video: str, snippets_per_second: float) -> float:
        """Seconds that a video of T snippets can have: what is left of a last, partial one has no row.

        Of a folder's .npy files, only the header is read.
        """
        return (self._raw(video, 0, mmap=True).shape[int(self.layout[1])] + 1) / snippets_per_second

    def unused(self) -> Tuple[str, ...]:
        """Feature files that belong to no annotated video, or whose video is read from another file."""
        used = {files[video] for files in self._files for video in self.videos}
        unused = [(path, folder) for folder in self.sources if self._files for path in _listing(folder).values()]
        return tuple(str(path.relative_to(folder)) for path, folder in unused if path not in used)

    def signature(self, videos: Sequence[str]) -> str:
        """Hash of the names, sizes and times of the files behind these videos, and of which part is whose."""
        paths = [files[video] for video in videos for files in self._files] or [self.sources[0]]
        states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return content_hash(self._stated_size, [self._row.get(video) for video in videos], states)

    def release(self) -> None:
        """Give back the memory of a joint array; the next load reads it again."""
        self._joint = None

    def _where(self, video: str, source: int = 0) -> str:
        return f"{self.sources[source]}, {video}"

    def _raw(self, video: str, source: int, mmap: bool = False) -> np.ndarray:
        if not self._files:
            array = self._joint_array()[self._row[video]]
        elif self._files[source][video].suffix == ".npz":
            (array,) = load_npz(self._files[source][video], one=True).values()
        else:
            array = load_array(self._files[source][video], mmap=mmap)
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu":
            shape = getattr(array, "shape", type(array).__name__)
            what = f"not a [T, 2D] array of numbers but {shape}"
            raise InputError(what, self._where(video, source), "extract it again")
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
        array = array.T if transposed else array
        if array.shape[1] != width:
            what = f"features of width {array.shape[1]}, not {width}"
            raise InputError(what, self._where(video, source), "every video needs the same feature_size")
        return array

    def _find_layout(self, feature_size: Optional[int]) -> Tuple[int, bool]:
        """(2D, are the files [2D, T]?) from a joint array (always [T, 2D]) or from the shapes of per-video files.

        Damaged and odd files have no say where most are of one width: they are refused, by name, when they are read.
        """
        parts, shapes = len(self.sources), self._shapes()
        widths = [Counter(shape[axis] for shape in shapes) for axis in (1, 0)]  # if [T, 2D], and if [2D, T]
        if feature_size is None:
            (width, count), (other, other_count) = (counter.most_common(1)[0] for counter in widths)
        else:
            width = other = feature_size // parts
            count, other_count = widths[0][width], widths[1][width]
        if not self._files:
            if feature_size not in (None, widths[0].most_common(1)[0][0]):
                what = f"features of width {widths[0].most_common(1)[0][0]}, not {feature_size}"
                raise InputError(what, self.sources[0], "leave out --feature_size")
            return width, False
        if count == other_count == len(shapes):
            what = f"[T, 2D] and [2D, T] cannot be told apart: every file is {other} x {width}"
            todo = "state --feature_size" if feature_size is None else "add a video of another length"
            raise InputError(what, self.sources[0], todo)
        if 2 * max(count, other_count) <= len(shapes):
            what = f"files of shapes {sorted(set(shapes))[:3]}, " + f"not of width {width}" * (feature_size is not None)
            raise InputError(what.rstrip(", "), self.sources[0], "give --feature_size, RGB and flow together")
        return (width * parts, False) if count >= other_count else (other * parts, True)

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


def open_features(
    name: str, root: Path, profile: Profile, annotations: Annotations, feature_size: Optional[int] = None
) -> Features:
    """The features of a dataset: the profile's sources, else NAME-I3D-JOINTFeatures as a file or a folder."""
    sources = [root / source for source in profile.features or ()]
    if not sources:
        folder = root / f"{name}-I3D-JOINTFeatures"
        file = root / f"{folder.name}.npy"  # a NAME may hold a dot
        if folder.is_dir() and file.exists():
            todo = 'remove one of them, or say which in dataset.json: "features"'
            raise InputError("features twice, as a folder and as a file", file, todo)
        sources = [folder if folder.is_dir() else file]
    return Features(sources, annotations.videos, feature_size)


def _listing(folder: Path) -> Dict[str, Path]:
    """Name without suffix -> file, of one folder."""
    if not folder.is_dir():
        raise InputError("no features: neither a file nor a folder", folder, WHERE_FROM)
    files: Dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in SUFFIXES and not path.name.startswith("."):
            if files.setdefault(path.stem, path) != path:
                raise InputError(f"two files of one video, {files[path.stem].name} too", path, "remove one")
    return files


def _by_video(files: Dict[str, Path], videos: Sequence[str]) -> Dict[str, Path]:
    """Video -> its file, found under the video's name, with v_ before it, or without."""
    found: Dict[str, Path] = {}
    owner: Dict[Path, str] = {}
    for video in videos:
        bare = video[2:] if video.startswith("v_") else video
        path = next((files[name] for name in (video, "v_" + bare, bare) if name in files), None)
        if path is not None:
            if owner.setdefault(path, video) != video:
                todo = "give each its own: the name may be with or without v_"
                raise InputError(f"one file for {owner[path]} and {video}", path, todo)
            found[video] = path
    return found
