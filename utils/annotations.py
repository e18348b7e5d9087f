"""Annotations in their three forms on disk, one form in memory.

W-TALC's folder of .npy files (bytes in some releases, str in others), ActivityNet JSON, or a CSV with the columns
``video,subset,label[,start,end[,duration]]``. The weak label of a video and its instances are read by two functions, so
that training, which calls the first alone, cannot reach a time stamp.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np

from utils.errors import InputError
from utils.files import load_array, load_json

WHERE_FROM = "README, 'THUMOS14 from download to table', says where each file comes from"


@dataclass(frozen=True)
class Annotations:
    """What training may know of a dataset: N videos, their subset, length in seconds (NaN: unknown) and weak labels."""

    classes: Tuple[str, ...]
    videos: Tuple[str, ...]
    subset: Tuple[str, ...]
    duration_s: np.ndarray  # float64 [N]
    labels: Tuple[Tuple[int, ...], ...]  # indices into classes, each once

    def of(self, subset: str) -> np.ndarray:
        """Indices of the videos of one subset, compared with ==."""
        return np.flatnonzero(np.asarray(self.subset) == subset)


@dataclass(frozen=True)
class Instances:
    """Time stamps: G instances, the video of each (index into the annotations' videos), seconds, and class."""

    video: np.ndarray  # int64 [G]
    segment_s: np.ndarray  # float64 [G, 2]
    label: np.ndarray  # int64 [G]


def read_weak_labels(path: Path) -> Annotations:
    """Read everything but the time stamps. Raises InputError naming file and video."""
    if path.is_dir():
        return _weak_from_folder(path)
    videos, subset, duration_s, labels = [], [], [], []
    for name, entry in _entries(path).items():
        videos.append(name)
        subset.append(entry["subset"])
        duration_s.append(entry["duration"])
        labels.append([label for label, _ in entry["annotations"]])
    classes = sorted({label for names in labels for label in names})
    return _checked(path, classes, videos, subset, np.asarray(duration_s, dtype=np.float64), labels)


def read_instances(path: Path, annotations: Annotations) -> Instances:
    """Read the time stamps, in seconds. Raises InputError naming file, video and index."""
    if path.is_dir():
        labels = [_names(x) for x in _load(path / "labels.npy")]
        segments = list(_load(path / "segments.npy"))
        source: Path = path / "segments.npy"
        for name, found in (("labels.npy", labels), ("segments.npy", segments)):
            if len(found) != len(annotations.videos):
                raise InputError(f"{len(found)} entries for {len(annotations.videos)} videos", path / name, WHERE_FROM)
    else:
        entries = _entries(path)
        labels = [[label for label, _ in entries[v]["annotations"]] for v in annotations.videos]
        segments = [[s for _, s in entries[v]["annotations"] if s is not None] for v in annotations.videos]
        source = path
    index = {name: i for i, name in enumerate(annotations.classes)}
    video, seconds, label = [], [], []
    for i, (names, times) in enumerate(zip(labels, segments)):
        if len(times) == 0:  # a weak label without time stamps, as in a CSV of two columns
            continue
        pairs = _pairs(times, source, annotations.videos[i])
        if len(pairs) != len(names):
            what = f"{len(pairs)} segments and {len(names)} labels"
            raise InputError(what, f"{source}, {annotations.videos[i]}", "each segment needs one label")
        unknown = [name for name in names if name not in index]
        if unknown:
            raise InputError(f"unknown class {unknown[0]!r}", f"{source}, {annotations.videos[i]}", "see classlist")
        video += [i] * len(pairs)
        seconds.append(pairs)
        label += [index[name] for name in names]
    return Instances(
        np.asarray(video, dtype=np.int64),
        np.concatenate(seconds) if seconds else np.zeros((0, 2)),
        np.asarray(label, dtype=np.int64),
    )


def read_ambiguous(path: Path, known: Sequence[str]) -> Dict[str, np.ndarray]:
    """Ambiguous_test.txt, lines ``VIDEO start_s end_s``: video -> float64 [K, 2] seconds; a missing file is empty."""
    found: Dict[str, List[Tuple[float, float]]] = {}
    if path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            fields = line.split()
            try:
                video, (start, end) = fields[0], map(float, fields[1:])
            except (IndexError, ValueError):
                if fields:
                    raise InputError("not 'VIDEO start end'", f"{path}, line {number}", "mend the line") from None
                continue
            if not (math.isfinite(start) and math.isfinite(end)):
                raise InputError("not a finite time", f"{path}, line {number}", "mend the line")
            found.setdefault(video, []).append((start, end))
    names = set(known)
    return {video: np.asarray(times) for video, times in found.items() if video in names}


def _load(path: Path) -> np.ndarray:
    return load_array(path, objects=True, todo=WHERE_FROM)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _names(values: object) -> List[str]:
    """A list of class names, whatever its container; a lone string is one name."""
    if isinstance(values, (bytes, str)):
        return [_text(values)]
    return [_text(v) for v in np.asarray(values, dtype=object).ravel()]


def _weak_from_folder(folder: Path) -> Annotations:
    videos = _names(_load(folder / "videoname.npy"))
    duration = folder / "duration.npy"
    try:
        duration_s = _load(duration).astype(np.float64).ravel() if duration.is_file() else np.full(len(videos), np.nan)
        labels = [_names(x) for x in _load(folder / "labels_all.npy")]
        subset = _names(_load(folder / "subset.npy"))
        classes = _names(_load(folder / "classlist.npy"))
    except (TypeError, ValueError) as error:
        raise InputError(f"not an annotation array: {error}", folder, WHERE_FROM) from None
    return _checked(folder, classes, videos, subset, duration_s, labels)


def _checked(path, classes, videos, subset, duration_s, labels) -> Annotations:
    """The same checks for every form of annotation."""
    for name, found in (("subset", subset), ("labels_all", labels), ("duration", duration_s)):
        if len(found) != len(videos):
            raise InputError(f"{len(found)} {name} for {len(videos)} videos", path, WHERE_FROM)
    if not videos or not classes:
        raise InputError("no video" if not videos else "no class", path, WHERE_FROM)
    for what, names in (("class", classes), ("video", videos)):
        if len(set(names)) != len(names):
            twice = next(n for i, n in enumerate(names) if n in names[:i])
            raise InputError(f"{what} {twice!r} stands twice", path, f"name each {what} once")
    index = {name: i for i, name in enumerate(classes)}
    for video, names in zip(videos, labels):
        for name in names:
            if name not in index:
                raise InputError(
                    f"unknown class {name!r}", f"{path}, {video}", "every label must stand in the classlist"
                )
    weak = tuple(tuple(dict.fromkeys(index[n] for n in names)) for names in labels)
    return Annotations(tuple(classes), tuple(videos), tuple(subset), duration_s, weak)


def _pairs(times: object, path: Path, video: str) -> np.ndarray:
    try:
        pairs = np.asarray([list(t) for t in times], dtype=np.float64)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        pairs = np.zeros((0, 0))
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.isfinite(pairs).all():
        raise InputError("segments are not pairs of finite seconds", f"{path}, {video}", "give [start, end] each")
    return pairs


def _entries(path: Path) -> Dict[str, dict]:
    """ActivityNet JSON or CSV -> video -> {"subset", "duration", "annotations": [(label, [start, end] or None)]}."""
    if not path.is_file():
        raise InputError("no annotations", path, WHERE_FROM)
    return _entries_from_csv(path) if path.suffix.lower() == ".csv" else _entries_from_json(path)


def _entries_from_json(path: Path) -> Dict[str, dict]:
    document = load_json(path)
    database = document.get("database") if isinstance(document, dict) else None
    if not isinstance(database, dict):
        raise InputError("no 'database' of videos", path, "expected ActivityNet's JSON, README 'Own data'")
    entries = {}
    for video, entry in database.items():
        where = f"{path}, {video}"
        try:
            found = [(str(a["label"]), list(a["segment"])) for a in entry.get("annotations", [])]
            duration = float(entry.get("duration", math.nan))
            entries[video] = {"subset": str(entry["subset"]), "duration": duration, "annotations": found}
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            todo = 'expected {"subset", "duration", "annotations": [{"segment": [s, e], "label"}]}'
            raise InputError("not an ActivityNet entry", where, todo) from None
    return entries


def _entries_from_csv(path: Path) -> Dict[str, dict]:
    todo = "expected the columns video,subset,label[,start,end[,duration]] (seconds), README 'Own data'"
    entries: Dict[str, dict] = {}
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            if not {"video", "subset", "label"} <= set(reader.fieldnames or ()):
                raise InputError("columns are missing", path, todo)
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if not row["video"] or not row["subset"] or None in row:
                    raise InputError("a row without video or subset, or with too many fields", where, todo)
                new = {"subset": row["subset"], "duration": math.nan, "annotations": []}
                entry = entries.setdefault(row["video"], new)
                if entry["subset"] != row["subset"]:
                    raise InputError(f"{row['video']!r} stands in two subsets", where, "give each video one subset")
                if row.get("duration"):
                    entry["duration"] = float(row["duration"])
                start, end = row.get("start"), row.get("end")
                segment = [float(start), float(end)] if start and end else None
                if row["label"]:
                    entry["annotations"].append((row["label"], segment))
        except (csv.Error, ValueError) as error:
            raise InputError(f"not a CSV of annotations: {error}", path, todo) from None
    for video, entry in entries.items():
        timed = {segment is not None for _, segment in entry["annotations"]}
        if len(timed) > 1:
            raise InputError("some rows have times and some have not", f"{path}, {video}", todo)
    return entries
