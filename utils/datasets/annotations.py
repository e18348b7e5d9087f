"""Annotations in their forms on disk, one form in memory; each file is read once.

W-TALC's folder of .npy files (bytes in some releases, str in others), ActivityNet JSON, or a CSV with the columns
``video,subset,label[,start,end[,duration]]``, where blanks around a cell do not count. The JSON may hold what
ActivityNet's cannot: "classes" beside "database" (their order), "weak_labels" in a video (where they differ from its
annotations'), annotations without "segment".
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from utils.datasets.profile import WHERE_FROM
from utils.errors import InputError
from utils.files import load_array, load_json, save_array, write_text
from utils.segments import Segments

COLUMNS = ("video", "subset", "label", "start", "end", "duration")  # of a CSV; the first three are required
CSV_FORM = "expected the columns video,subset,label[,start,end[,duration]] (seconds), README 'Own data'"


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


class Read(NamedTuple):
    """What a reader of annotations returns. The time stamps stand beside ``annotations``: training takes that alone."""

    annotations: Annotations
    instances: Segments  # of all videos
    ambiguous_s: Dict[str, np.ndarray]  # video -> float64 [K, 2] seconds
    problems: List[InputError]  # what is wrong with single videos; they are left out
    notes: List[str]  # lines to log: what was read in another way than it is written


class _Table(NamedTuple):
    """What every form of annotations comes to before it is checked; one entry a video."""

    classes: Optional[List[str]]  # None: the labels' own, in alphabetical order
    videos: List[str]
    subset: List[str]
    duration: Sequence[float]
    weak: List[List[str]]
    labels: List[List[str]]  # of the instances
    times: List[Any]  # of the instances: a list of [start, end]


def read_annotations(path: Path) -> Read:
    """Read a folder, JSON or CSV. InputError for what is wrong with a whole file; the rest is in ``problems``."""
    problems: List[InputError] = []
    if path.is_dir():
        table = _from_folder(path)
    elif not path.is_file():
        raise InputError("no annotations", path, WHERE_FROM)
    else:
        table = (_from_csv if path.suffix.lower() == ".csv" else _from_json)(path, problems)
    annotations = _annotations(path, table, problems)
    instances = _instances(path, table, annotations, problems)
    beside = (path if path.is_dir() else path.parent) / "Ambiguous_test.txt"
    return Read(annotations, instances, read_ambiguous(beside, annotations.videos), problems, [])


def read_ambiguous(path: Path, videos: Sequence[str]) -> Dict[str, np.ndarray]:
    """Ambiguous_test.txt, lines ``VIDEO start_s end_s``: video -> float64 [K, 2] seconds; a missing file is empty."""
    intervals: Dict[str, List[List[float]]] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        pair = _pairs([fields[1:]]) if fields else None
        if fields and (pair is None or pair[0, 0] > pair[0, 1]):
            raise InputError("not 'VIDEO start end', start <= end", f"{path}, line {number}", "fix this line")
        if fields:
            intervals.setdefault(fields[0], []).append(pair[0])
    return {video: np.asarray(intervals[video]) for video in videos if video in intervals}


def _seconds(value: object) -> float:
    """A number or text as seconds; ValueError for anything else, NaN and what no time can be."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, str, np.integer, np.floating)):
        raise ValueError(f"{ascii(value)[:40]} is no time")
    if not abs(float(value)) < 1e18:
        raise ValueError(f"{value} is no time")
    return float(value)


def _pairs(times: object) -> Optional[np.ndarray]:
    """float64 [K, 2] of a list of segments; None where it is anything else."""
    try:
        values = [list(pair) for pair in times if isinstance(pair, (list, tuple, np.ndarray))]
        if len(values) < len(times) or any(len(pair) != 2 for pair in values):
            return None
        return np.asarray([[_seconds(value) for value in pair] for pair in values], dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        return None


def _place(path: Path, name: str) -> Path:
    return path / f"{name}.npy" if path.is_dir() else path


def _annotations(path: Path, table: _Table, problems: List[InputError]) -> Annotations:
    """The weak labels, checked in the same way for every form."""
    classes = table.classes
    if classes is None:
        classes = sorted({label for labels in table.weak for label in labels})
    for what, names, name in (("class", classes, "classlist"), ("video", table.videos, "videoname")):
        if not names:
            raise InputError(f"no {what}", _place(path, name), WHERE_FROM)
        twice = [repr(name) for name, count in Counter(names).items() if count > 1]
        if twice:
            raise InputError(f"duplicate {what} {', '.join(twice[:5])}", _place(path, name), f"name each {what} once")
    index = {name: i for i, name in enumerate(classes)}
    for video, name in ((v, n) for v, names in zip(table.videos, table.weak) for n in names if n not in index):
        where = f"{_place(path, 'labels_all')}, {video}"
        problems.append(InputError(f"unknown class {name!r}", where, "add it to the list of classes"))
    weak = tuple(tuple(dict.fromkeys(index[n] for n in names if n in index)) for names in table.weak)
    duration_s = np.asarray(table.duration, dtype=np.float64)
    return Annotations(tuple(classes), tuple(table.videos), tuple(table.subset), duration_s, weak)


def _instances(path: Path, table: _Table, annotations: Annotations, problems: List[InputError]) -> Segments:
    index = {name: i for i, name in enumerate(annotations.classes)}
    video, label, seconds = [], [], [np.zeros((0, 2))]
    for i, (names, times) in enumerate(zip(table.labels, table.times)):
        where = f"{_place(path, 'segments')}, {table.videos[i]}"
        pairs, unknown = _pairs(times), [name for name in names if name not in index]
        if pairs is None:
            problems.append(InputError("segments are not pairs of finite seconds", where, "give [start, end] each"))
        elif len(pairs) != len(names):
            what = f"{len(pairs)} segments and {len(names)} labels"
            problems.append(InputError(what, where, "give each segment one label"))
        elif (pairs[:, 1] < pairs[:, 0]).any():
            problems.append(InputError("a segment that ends before it starts", where, "swap its two times"))
        elif (pairs < 0).any():
            todo = "times are seconds from its start"
            problems.append(InputError("an instance that starts before its video", where, todo))
        elif unknown:
            problems.append(InputError(f"unknown class {unknown[0]!r}", where, "add it to the list of classes"))
        else:
            video += [i] * len(pairs)
            seconds.append(pairs)
            label += [index[name] for name in names]
    columns = (np.asarray(video, dtype=np.int64), np.concatenate(seconds), np.asarray(label, dtype=np.int64))
    return Segments(annotations.classes, annotations.videos, *columns)


# ---- W-TALC's folder ------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _names(values: object, where: object) -> List[str]:
    """A list of names, whatever its container; a lone string is one name."""
    flat = [values] if isinstance(values, (bytes, str)) else list(np.asarray(values, dtype=object).ravel())
    odd = [name for name in flat if not isinstance(name, (bytes, str))]
    if odd:
        raise InputError(f"{ascii(odd[0])[:80]} is no name", where, WHERE_FROM)
    return [_text(name) for name in flat]


def _from_folder(folder: Path) -> _Table:
    columns, paths = {}, {name: folder / f"{name}.npy" for name in ("videoname", "classlist", "subset", "duration")}
    paths.update({name: folder / f"{name}.npy" for name in ("labels_all", "labels", "segments")})
    for name, path in paths.items():
        if name != "duration" or path.exists():
            columns[name] = load_array(path, objects=True, todo=WHERE_FROM)
            if not columns[name].ndim:
                raise InputError("one value where a list should be", path, WHERE_FROM)
    videos, classes, subset = (_names(columns[name], paths[name]) for name in ("videoname", "classlist", "subset"))
    for name in set(columns) - {"videoname", "classlist"}:
        if len(columns[name]) != len(videos):
            raise InputError(f"{len(columns[name])} {name} for {len(videos)} videos", paths[name], WHERE_FROM)
    weak, labels = ([_names(entry, paths[name]) for entry in columns[name]] for name in ("labels_all", "labels"))
    try:
        found = columns.get("duration", np.full(len(videos), np.nan))
        duration = found.astype(np.float64, casting="unsafe" if found.dtype.kind in "OSU" else "same_kind").ravel()
    except (TypeError, ValueError):
        raise InputError("not a list of seconds", paths["duration"], "give numbers, or delete the file") from None
    return _Table(classes, videos, subset, duration, weak, labels, list(columns["segments"]))


def write_annotations(
    folder: Path, annotations: Annotations, instances: Segments, ambiguous_s: Dict[str, np.ndarray]
) -> None:
    """Write W-TALC's files into ``folder``; ambiguous_s: video -> [K, 2] seconds, for Ambiguous_test.txt."""
    classes = annotations.classes
    own = [np.flatnonzero(instances.video == i) for i in range(len(annotations.videos))]

    def column(values: Sequence) -> np.ndarray:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array

    arrays = {
        "classlist": np.array(classes),
        "videoname": np.array(annotations.videos),
        "subset": np.array(annotations.subset),
        "duration": annotations.duration_s,
        "labels_all": column([[classes[c] for c in weak] for weak in annotations.labels]),
        "labels": column([[classes[c] for c in instances.label[rows]] for rows in own]),
        "segments": column([instances.segment_s[rows].tolist() for rows in own]),
    }
    for name, array in arrays.items():
        save_array(folder / f"{name}.npy", array, objects=True)
    if ambiguous_s:
        lines = [f"{video} {start:g} {end:g}\n" for video, times in ambiguous_s.items() for start, end in times]
        write_text(folder / "Ambiguous_test.txt", "".join(lines))


# ---- ActivityNet JSON -----------------------------------------------------------------------------------------------


def _name(value: object) -> str:
    """A name in JSON, which may be a number; TypeError for anything else."""
    if type(value) not in (str, int):
        raise TypeError("not a name")
    return str(value)


def _list(value: object) -> list:
    """A list in JSON; TypeError for anything else that could be iterated, such as text."""
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _from_json(path: Path, problems: List[InputError]) -> _Table:
    document = load_json(path)
    database = document.get("database") if isinstance(document, dict) else None
    if not isinstance(database, dict):
        raise InputError("no 'database' of videos", path, "expected ActivityNet's JSON, README 'Own data'")
    classes = document.get("classes")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
        raise InputError("'classes' is no list of names", path, "correct it or leave it out")
    table = _Table(classes, [], [], [], [], [], [])
    for video, entry in database.items():
        try:
            pairs = [(_name(a["label"]), a.get("segment")) for a in _list(entry.get("annotations", []))]
            weak = entry.get("weak_labels", [label for label, _ in pairs])
            weak = [_name(label) for label in ([weak] if isinstance(weak, str) else _list(weak))]
            subset = _name(entry["subset"])
            duration = _seconds(entry["duration"]) if "duration" in entry else math.nan
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            todo = 'expected {"subset", "duration", "annotations": [{"segment": [s, e], "label"}]}'
            problems.append(InputError("not an ActivityNet entry", f"{path}, {video}", todo))
            continue
        timed = [pair for pair in pairs if pair[1] is not None]
        values = (video, subset, duration, weak, [label for label, _ in timed], [segment for _, segment in timed])
        for column, value in zip(table[1:], values):
            column.append(value)
    return table


# ---- CSV ------------------------------------------------------------------------------------------------------------


def _from_csv(path: Path, problems: List[InputError]) -> _Table:
    try:  # all as text; the head is a row like the others, so that pandas changes nothing in it
        options = {"dtype": str, "header": None, "na_filter": False, "skip_blank_lines": False}
        frame = pd.read_csv(path, encoding="utf-8-sig", **options).fillna("").map(str.strip)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: {error.reason}", path, "save it as UTF-8") from None
    except ValueError as error:  # pandas' own are among them
        raise InputError(f"not a CSV of annotations: {error}", path, CSV_FORM) from None
    head = ["".join(name.lower().split()) for name in frame.iloc[0]]
    for name in COLUMNS:
        count = head.count(name)
        if count > 1 or (not count and name in COLUMNS[:3]):
            raise InputError(f"{'duplicate' if count else 'no'} column {name!r}", f"{path}, line 1", CSV_FORM)
    entries: Dict[str, Tuple] = {}
    seen = set()
    columns = [frame[head.index(name)] if name in head else [""] * len(frame) for name in COLUMNS]
    for number, row in list(enumerate(zip(*columns), 1))[1:]:
        try:
            if any(row):
                _add_row(entries, seen, *row)
        except ValueError as error:
            problems.append(InputError(str(error), f"{path}, line {number}", "fix or remove this line"))
    table = _Table(None, list(entries), [], [], [], [], [])
    for video, (subset, duration, weak, labels, times) in entries.items():
        if labels and len(labels) < len(weak):
            problems.append(InputError("some rows have times and some have not", f"{path}, {video}", CSV_FORM))
        for column, value in zip(table[2:], (subset, duration[0] if duration else math.nan, weak, labels, times)):
            column.append(value)
    return table


def _add_row(entries: Dict[str, Tuple], seen: set, video: str, subset: str, label: str, *cells: str) -> None:
    """One row of a CSV into its video's entry; ValueError says what is wrong with it."""
    if not video or not subset:
        raise ValueError("a row without video or subset")
    start, end, duration = (float(cell) if cell else None for cell in cells)
    if (start is None) != (end is None) or (start is not None and not label):
        raise ValueError("a row needs start, end and label together")
    own_subset, durations, weak, labels, times = entries.setdefault(video, (subset, [], [], [], []))
    if own_subset != subset:
        raise ValueError(f"{video!r} in two subsets")
    if duration is not None and not math.isnan(duration):
        if durations and durations[0] != duration:
            raise ValueError(f"{video!r} with two durations")
        durations[:] = [duration]
    if start is not None:
        if (video, label, start, end) in seen:
            raise ValueError("duplicate row")
        seen.add((video, label, start, end))
        labels.append(label)
        times.append([start, end])
    if label:
        weak.append(label)
