"""Annotations in their three forms on disk, one form in memory.

W-TALC's folder of .npy files (bytes in some releases, str in others), ActivityNet JSON, or a CSV with the columns
``video,subset,label[,start,end[,duration]]``, where blanks around a cell do not count. The JSON may hold what
ActivityNet's cannot: "classes" beside "database" (their order), "weak_labels" in a video (where they differ from its
annotations'), annotations without "segment".

The weak label of a video and its instances are read by two functions, so
that training, which calls the first alone, cannot reach a time stamp.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from utils.errors import InputError, stop
from utils.files import load_array, load_json

Problem = Callable[[InputError], None]
COLUMNS = ("video", "subset", "label", "start", "end", "duration")  # of a CSV; the first three must be there
WHERE_FROM = "README, 'THUMOS14 from download to table' or 'Own data', says where each file comes from"


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


def read_weak_labels(path: Path, problem: Problem = stop) -> Annotations:
    """Read everything but the time stamps.

    ``problem`` is given an InputError, naming file and video, for whatever is wrong with one video; where it does not
    raise, that much is passed over and the rest read. What is wrong with a whole file raises InputError.
    """
    if path.is_dir():
        return _weak_from_folder(path, problem)
    videos, subset, duration_s, labels = [], [], [], []
    entries, classes = _entries(path, problem)
    for name, entry in entries.items():
        videos.append(name)
        subset.append(entry["subset"])
        duration_s.append(entry["duration"])
        labels.append(entry.get("weak_labels", [label for label, _ in entry["annotations"]]))
    if classes is None:
        classes = sorted({label for names in labels for label in names})
    return _checked(path, classes, videos, subset, np.asarray(duration_s, dtype=np.float64), labels, problem)


def read_instances(path: Path, annotations: Annotations, problem: Problem = stop) -> Instances:
    """Read the time stamps, in seconds; ``problem`` as in read_weak_labels. Raises InputError."""
    if path.is_dir():
        labels = [_names(x, path / "labels.npy") for x in _column(path / "labels.npy")]
        segments = _column(path / "segments.npy")
        source: Path = path / "segments.npy"
        for name, found in (("labels.npy", labels), ("segments.npy", segments)):
            if len(found) != len(annotations.videos):
                raise InputError(f"{len(found)} entries for {len(annotations.videos)} videos", path / name, WHERE_FROM)
    else:
        entries, _ = _entries(path, problem)
        timed = [[pair for pair in entries[v]["annotations"] if pair[1] is not None] for v in annotations.videos]
        labels, segments = ([[pair[k] for pair in pairs] for pairs in timed] for k in (0, 1))
        source = path
    index = {name: i for i, name in enumerate(annotations.classes)}
    video, seconds, label = [], [np.zeros((0, 2))], []
    for i, (names, times) in enumerate(zip(labels, segments)):
        where = f"{source}, {annotations.videos[i]}"
        pairs, unknown = _pairs(times), [name for name in names if name not in index]
        if pairs is None:
            problem(InputError("segments are not pairs of finite seconds", where, "give [start, end] each"))
        elif not len(pairs) and not (names and path.is_dir()):  # a weak label alone, as in a CSV of three columns
            continue
        elif len(pairs) != len(names):
            what = f"{len(pairs)} segments and {len(names)} labels"
            problem(InputError(what, where, "each segment needs one label"))
        elif (pairs[:, 1] < pairs[:, 0]).any():
            problem(InputError("a segment that ends before it starts", where, "swap its two times"))
        elif unknown:
            problem(InputError(f"unknown class {unknown[0]!r}", where, "every label must stand in the classlist"))
        else:
            video += [i] * len(pairs)
            seconds.append(pairs)
            label += [index[name] for name in names]
    return Instances(np.asarray(video, dtype=np.int64), np.concatenate(seconds), np.asarray(label, dtype=np.int64))


def read_ambiguous(path: Path, known: Sequence[str]) -> Dict[str, np.ndarray]:
    """Ambiguous_test.txt, lines ``VIDEO start_s end_s``: video -> float64 [K, 2] seconds; a missing file is empty."""
    found: Dict[str, List[Tuple[float, float]]] = {}
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):  # half a number would be another number
            raise InputError("the last line does not end", path, "add an end of line, if nothing is cut off")
        for number, line in enumerate(text.splitlines(), 1):
            fields = line.split()
            try:
                video, (start, end) = fields[0], map(float, fields[1:])
            except (IndexError, ValueError):
                if fields:
                    raise InputError("not 'VIDEO start end'", f"{path}, line {number}", "mend the line") from None
                continue
            if not (math.isfinite(start) and math.isfinite(end) and start <= end):
                raise InputError("not two finite times, start <= end", f"{path}, line {number}", "mend the line")
            found.setdefault(video, []).append((start, end))
    names = set(known)
    return {video: np.asarray(times) for video, times in found.items() if video in names}


def is_number(value: object) -> bool:
    """Whether a value is a real number that seconds can be: no text, truth value, NaN or Inf."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, (bool, np.timedelta64)):
        return False
    return bool(abs(value) < 1e18)  # an int may outgrow float64


def is_segment(value: object) -> bool:
    """Whether a value is a list of exactly two numbers; their order is not looked at."""
    values = value.tolist() if isinstance(value, np.ndarray) else value
    return isinstance(values, (list, tuple)) and len(values) == 2 and all(map(is_number, values))


def _load(path: Path) -> np.ndarray:
    return load_array(path, objects=True, todo=WHERE_FROM)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _label(value: object) -> str:
    """A name in JSON, which may be a number; TypeError for anything else."""
    if type(value) not in (str, int):
        raise TypeError("not a name")
    return str(value)


def _list(value: object) -> list:
    """A list in JSON; TypeError for anything else that could be gone through, such as text."""
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _column(path: Path) -> List[Any]:
    """The entries of a .npy file that holds one for each video or class."""
    found = _load(path)
    if not found.ndim:
        raise InputError("one value where a list should be", path, WHERE_FROM)
    return list(found)


def _names(values: object, where: object) -> List[str]:
    """A list of names, whatever its container; a lone string is one name."""
    try:
        names = [values] if isinstance(values, (bytes, str)) else list(np.asarray(values, dtype=object).ravel())
    except ValueError:  # ragged
        names = [values]
    odd = [name for name in names if not isinstance(name, (bytes, str))]
    if odd:
        raise InputError(f"{ascii(odd[0])[:80]} is no name", where, WHERE_FROM)
    return [_text(name) for name in names]


def _weak_from_folder(folder: Path, problem: Problem) -> Annotations:
    paths = {name: folder / f"{name}.npy" for name in ("videoname", "labels_all", "subset", "classlist", "duration")}
    videos, subset, classes = (_names(_column(paths[k]), paths[k]) for k in ("videoname", "subset", "classlist"))
    labels = [_names(x, paths["labels_all"]) for x in _column(paths["labels_all"])]
    duration_s = np.full(len(videos), np.nan)
    if paths["duration"].exists():
        try:
            found = _load(paths["duration"])
            duration_s = found.astype(
                np.float64, casting="unsafe" if found.dtype.kind in "OSU" else "same_kind"
            ).ravel()
        except (TypeError, ValueError):
            raise InputError("not a list of seconds", paths["duration"], "give numbers, or delete the file") from None
    return _checked(folder, classes, videos, subset, duration_s, labels, problem)


def _checked(path, classes, videos, subset, duration_s, labels, problem: Problem) -> Annotations:
    """The same checks for every form of annotation."""

    def place(name: str) -> Path:
        return path / f"{name}.npy" if path.is_dir() else path

    for name, found in (("subset", subset), ("labels_all", labels), ("duration", duration_s)):
        if len(found) != len(videos):
            raise InputError(f"{len(found)} {name} for {len(videos)} videos", place(name), WHERE_FROM)
    for what, names, name in (("class", classes, "classlist"), ("video", videos, "videoname")):
        if not names:
            raise InputError(f"no {what}", place(name), WHERE_FROM)
        twice = [repr(name) for name, count in Counter(names).items() if count > 1]
        if twice:
            raise InputError(f"{what} {', '.join(twice[:5])} stands twice", place(name), f"name each {what} once")
    index = {name: i for i, name in enumerate(classes)}
    for video, name in ((v, n) for v, names in zip(videos, labels) for n in names if n not in index):
        where = f"{place('labels_all')}, {video}"
        problem(InputError(f"unknown class {name!r}", where, "every label must stand in the classlist"))
    weak = tuple(tuple(dict.fromkeys(index[n] for n in names if n in index)) for names in labels)
    return Annotations(tuple(classes), tuple(videos), tuple(subset), duration_s, weak)


def _pairs(times: object) -> Optional[np.ndarray]:
    """float64 [K, 2] of a list of segments; None where it is anything else."""
    values = times.tolist() if isinstance(times, np.ndarray) else times
    if not isinstance(values, (list, tuple)) or not all(map(is_segment, values)):
        return None
    return np.asarray([list(segment) for segment in values], dtype=np.float64).reshape(-1, 2)


def _entries(path: Path, problem: Problem) -> Tuple[Dict[str, dict], Optional[List[str]]]:
    """Video -> {"subset", "duration", "annotations": [(label, [start, end] or None)]}, and the classes if stated."""
    if not path.is_file():
        raise InputError("no annotations", path, WHERE_FROM)
    return (_entries_from_csv if path.suffix.lower() == ".csv" else _entries_from_json)(path, problem)


def _entries_from_json(path: Path, problem: Problem) -> Tuple[Dict[str, dict], Optional[List[str]]]:
    document = load_json(path)
    database = document.get("database") if isinstance(document, dict) else None
    if not isinstance(database, dict):
        raise InputError("no 'database' of videos", path, "expected ActivityNet's JSON, README 'Own data'")
    classes = document.get("classes")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
        raise InputError("'classes' is no list of names", path, "mend it or leave it out")
    entries = {}
    for video, entry in database.items():
        try:
            found = [(_label(a["label"]), a.get("segment")) for a in _list(entry.get("annotations", []))]
            duration = entry.get("duration", math.nan)
            if "duration" in entry and not is_number(duration):
                raise TypeError("not a number")
            entries[video] = {"subset": _label(entry["subset"]), "duration": duration, "annotations": found}
            if "weak_labels" in entry:
                weak = entry["weak_labels"]
                entries[video]["weak_labels"] = [_label(x) for x in ([weak] if isinstance(weak, str) else _list(weak))]
        except (AttributeError, KeyError, TypeError):
            todo = 'expected {"subset", "duration", "annotations": [{"segment": [s, e], "label"}]}'
            problem(InputError("not an ActivityNet entry", f"{path}, {video}", todo))
    return entries, classes


def _entries_from_csv(path: Path, problem: Problem) -> Tuple[Dict[str, dict], Optional[List[str]]]:
    todo = "expected the columns video,subset,label[,start,end[,duration]] (seconds), README 'Own data'"
    entries: Dict[str, dict] = {}
    seen: Set[Tuple] = set()
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            text = file.read()
            if text and text[-1] not in "\r\n":  # half a number would be another number
                raise InputError("the last line does not end", path, "add an end of line, if nothing is cut off")
            reader = csv.DictReader(StringIO(text, newline=""), strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            _check_head(reader.fieldnames, path, todo)
            for row in reader:
                try:
                    _add_row(entries, seen, row)
                except ValueError as error:
                    where = f"{path}, line {reader.line_num}"
                    problem(InputError(str(error), where, "mend the line or take it out, README 'Own data'"))
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8: {error.reason}", path, "save it as UTF-8") from None
        except csv.Error as error:
            raise InputError(f"not a CSV of annotations: {error}", path, todo) from None
    for video, entry in entries.items():
        if len({segment is not None for _, segment in entry["annotations"]}) > 1:
            problem(InputError("some rows have times and some have not", f"{path}, {video}", todo))
    return entries, None


def _check_head(names: Sequence[str], path: Path, todo: str) -> None:
    """Refuse a head from which a column that was meant would be missing."""
    for name, count in Counter(names).items():
        meant = "".join(name.lower().split())
        if name and count > 1:
            raise InputError(f"column {name!r} stands twice", f"{path}, line 1", todo)
        if name not in COLUMNS and meant in COLUMNS:
            raise InputError(f"column {name!r} is not {meant!r}", f"{path}, line 1", todo)
    if not set(COLUMNS[:3]) <= set(names):
        raise InputError("columns are missing", path, todo)


def _add_row(entries: Dict[str, dict], seen: Set[Tuple], row: dict) -> None:
    """One row of a CSV into its video's entry, its instance into ``seen``; ValueError says what is wrong with it."""
    too_many = row.pop(None, None) is not None
    row = {name: (cell or "").strip() for name, cell in row.items()}
    if not row["video"] or not row["subset"] or too_many:
        raise ValueError("a row without video or subset, or with too many fields")
    times = [float(row[key]) if row.get(key) else None for key in COLUMNS[3:]]
    if (times[0] is None) != (times[1] is None):
        raise ValueError("a row with a start and no end, or an end and no start")
    entry = entries.setdefault(row["video"], {"subset": row["subset"], "duration": math.nan, "annotations": []})
    if entry["subset"] != row["subset"]:
        raise ValueError(f"{row['video']!r} stands in two subsets")
    if times[2] is not None and not math.isnan(times[2]):
        if not math.isnan(entry["duration"]) and entry["duration"] != times[2]:
            raise ValueError(f"{row['video']!r} has two durations")
        entry["duration"] = times[2]
    segment = None if times[0] is None else times[:2]
    if segment is not None:
        if not row["label"]:
            raise ValueError("a row with times and no label")
        instance = (row["video"], row["label"], *segment)
        if instance in seen:
            raise ValueError("the row stands twice")
        seen.add(instance)
    if row["label"]:
        entry["annotations"].append((row["label"], segment))
