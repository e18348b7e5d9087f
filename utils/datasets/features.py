"""Two-stream snippet features on disk: one joint object array, or folders with a file a video."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from utils.datasets.annotations import Annotations
from utils.datasets.feature_files import READERS, files_of, list_files, read_features
from utils.datasets.profile import WHERE_FROM, Profile, contradictions
from utils.errors import InputError, some
from utils.files import content_hash, load_array

MAX_CUT = 2  # rows that RGB and flow may differ by: optical flow needs the next frame


class Features:
    """Snippet features of videos by name: ``features.load(video)`` -> float32 [T, 2D], RGB first, then flow.

    sources: one path (joint .npy, or a folder of a file a video, see feature_files), or two folders (RGB, flow).
    all_videos: every video of the annotations, in order: what the rows of a joint array belong to.
    feature_size: 2D if the user states it; tells [T, 2D] from [2D, T] in per-video files.
    modalities: as the profile's. ``cut``: rows cut off so far where RGB and flow differ by up to MAX_CUT, by video.
    Raises InputError naming file and video.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        all_videos: Sequence[str],
        feature_size: Optional[int] = None,
        modalities: Optional[int] = 2,
    ):
        self.sources, self.modalities, self.cut = [Path(source) for source in sources], modalities, {}
        self._stated_size, self._joint, self._notes = feature_size, None, []
        self._listed: List[Dict[str, Path]] = []  # name -> file, of RGB and of flow, or of both together
        self._files = [dict.fromkeys(all_videos, self.sources[0])]  # video -> file, likewise
        self._row = {video: i for i, video in enumerate(all_videos)} if self.sources[0].is_file() else {}  # joint array
        if not self._row:
            streams = [stream for folder in self.sources for stream in list_files(folder).items()]
            self._check_streams([name for name, _ in streams])
            self._listed = [files for _, files in streams]
            found = [files_of(files, all_videos) for files in self._listed]
            self._files, self._notes = [mine for mine, _ in found], [note for _, note in found if note]
        self.parts = len(self._files)  # in how many pieces a video's features come
        self.videos = tuple(v for v in all_videos if all(v in files for files in self._files))
        if not self.videos:
            names = [path.name for files in self._listed for path in files.values()]
            names = names or sorted(path.name for path in self.sources[0].iterdir()) or ["nothing"]
            todo = f"files are found by video name, such as {all_videos[0]}; forms that are read: {' '.join(READERS)}"
            raise InputError(f"no annotated video has a feature file: found {some(names)}", self.sources[0], todo)

    def _check_streams(self, names: Sequence[str]) -> None:
        """names: of each stream, "" where none is in a folder rgb/ or flow/."""
        wrong = (
            (names in (["rgb"], ["flow"]) and self.modalities != 1, f"only {names[0]}/ has features",
             'add the other stream, or say "modalities": 1 in dataset.json'),
            (len(names) == 2 and self.modalities == 1, 'two streams of features for "modalities": 1',
             "leave it out, or one stream"),
            (len(names) > 2, "rgb/ and flow/ inside the folders of RGB and flow", "give one folder"),
        )  # fmt: skip
        for bad, what, todo in wrong:
            if bad:
                raise InputError(what, self.sources[0], todo)

    @property
    def notes(self) -> List[str]:
        """Lines to log: what is taken in another way than it is written, as far as it is known yet."""
        notes = list(self._notes)
        if self.modalities is None and len(self._files) < 2:
            todo = 'where there is one stream, say "modalities": 1 in dataset.json'
            notes.append(f"the first half of each feature is read as RGB and the second as flow ({todo})")
        if self.cut:
            most = max(self.cut.values())
            notes.append(f"RGB and flow of {len(self.cut)} videos differ in length by up to {most}: the longer is cut")
        return notes

    @cached_property
    def layout(self) -> Tuple[int, bool]:
        """(2D, are the files [2D, T]?), by most of the first files; not looked up before a feature is needed.

        Damaged and odd files have no say where most are of one width: they are refused, by name, when they are read.
        """
        shapes, stated = self._shapes(), self._stated_size and self._stated_size // self.parts
        counts = [Counter(shape[axis] for shape in shapes) for axis in (1, 0)]  # of widths: if [T, 2D], and if [2D, T]
        width, other = (stated or count.most_common(1)[0][0] for count in counts)
        plain, transposed = counts[0][width], counts[1][other] if self._listed else 0  # a joint array is [T, 2D]
        if plain == transposed == len(shapes):
            what = f"[T, 2D] and [2D, T] cannot be told apart: every file is {other} x {width}"
            raise InputError(
                what, self.sources[0], "add a video of another length" if stated else "state --feature_size"
            )
        if 2 * max(plain, transposed) <= len(shapes):
            what = f"features of shapes {sorted(set(shapes))[:3]}" + (f", not of width {stated}" if stated else "")
            todo = "leave out --feature_size, or give" if stated else "give --feature_size,"
            raise InputError(what, self.sources[0], f"{todo} that of RGB and flow together")
        size = self.parts * (width if plain >= transposed else other)
        if size % 2 and self.modalities != 1:
            todo = 'RGB and flow must be of one width; "modalities": 1 in dataset.json where there is one stream'
            raise InputError(f"features of odd width {size}", self.sources[0], todo)
        return size, plain < transposed

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
        size, transposed = self.layout
        width, parts = size // self.parts, []
        for source in range(self.parts):
            part = self._raw(video, source)
            parts.append(part.T if transposed else part)
            if parts[-1].shape[1] != width:
                what = f"features of width {parts[-1].shape[1]}, not {width}"
                if source:
                    what = f"flow of width {parts[-1].shape[1]} and RGB of width {width}, which must be equal"
                raise InputError(what, self._where(video, source), "every video needs the same feature_size")
        shortest = self._shortest(video, [len(part) for part in parts])
        return parts[0] if len(parts) == 1 else np.concatenate([part[:shortest] for part in parts], axis=1)

    def _shortest(self, video: str, lengths: Sequence[int]) -> int:
        """What the parts of a video are cut to; InputError where they differ by more than MAX_CUT."""
        cut = max(lengths) - min(lengths)
        if cut > MAX_CUT:
            what = f"RGB has {lengths[0]} snippets and flow {lengths[1]}"
            raise InputError(what, self._where(video), "extract them at one stride")
        self.cut.update({video: cut} if cut else {})
        return min(lengths)

    def sound(self, video: str, array: np.ndarray) -> np.ndarray:
        """``array`` of a video as float32, if T > 0 and every value is finite."""
        with np.errstate(over="ignore"):  # a number too large for float32 becomes Inf, which is refused
            features = np.ascontiguousarray(array, dtype=np.float32)
        if len(features) == 0:
            raise InputError("a video of no snippet (T = 0)", self._where(video), "extract it again or drop the video")
        if not np.isfinite(features).all():
            raise InputError("NaN or Inf in the features", self._where(video), "extract the video again")
        return features

    def length(self, video: str) -> int:
        """T of a video; of a folder's .npy files, only the header is read."""
        axis = int(self.layout[1])
        return self._shortest(video, [self._raw(video, part, mmap=True).shape[axis] for part in range(self.parts)])

    def unused(self) -> Tuple[str, ...]:
        """Feature files that belong to no annotated video, or whose video is read from another file."""
        used = {files[video] for files in self._files for video in self.videos}
        unused = sorted(path for files in self._listed for path in files.values() if path not in used)
        return tuple(str(path.relative_to(next(s for s in self.sources if s in path.parents))) for path in unused)

    def signature(self, videos: Sequence[str]) -> str:
        """Hash of the names, sizes and times of the files behind these videos, and of which part is whose."""
        paths = dict.fromkeys(files[video] for video in videos for files in self._files)
        states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return content_hash(self._stated_size, [self._row.get(video) for video in videos], states)

    def release(self) -> None:
        """Give back the memory of a joint array; the next load reads it again."""
        self._joint = None

    def _where(self, video: str, source: int = 0) -> str:
        return f"{self._files[source][video]}, {video}"

    def _raw(self, video: str, source: int, mmap: bool = False) -> np.ndarray:
        """The array of a video in one source, of rank 2 and of numbers."""
        joint = self._joint_array() if self._row else None
        array = read_features(self._files[source][video], mmap) if joint is None else joint[self._row[video]]
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu":
            what = f"not a [T, 2D] array of numbers but {getattr(array, 'shape', type(array).__name__)}"
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
    features = Features(sources, annotations.videos, feature_size, profile.modalities)
    features._notes += contradictions(profile, sources, "dataset.json")
    return features


def feature_names(folder: Path) -> List[str]:
    """Names of the feature files in a folder of them, a file a video. InputError where it is none."""
    if not folder.is_dir():
        raise InputError("not a folder of per-video features", folder, "see python -m utils.tools.convert")
    names = sorted({name for files in list_files(folder).values() for name in files})
    if not names:
        raise InputError("no feature files in this folder", folder, f"forms that are read: {' '.join(READERS)}")
    return names


def folder_features(
    folders: Sequence[Path], width: int, names: Sequence[str], modalities: Optional[int] = 2
) -> Features:
    """Features of the videos ``names`` for a checkpoint of width 2D = ``width``. InputError for another width."""
    for folder in folders:
        feature_names(folder)
    features = Features(folders, names, width, modalities)
    try:
        _ = features.layout
    except InputError as error:
        what = f"the checkpoint is for features of width {width}: {error.what}"
        raise InputError(what, error.where, "use the features it was trained on") from None
    return features
