"""The forms of annotations on disk, each read into one table.

A folder of W-TALC's .npy files (bytes in some releases, str in others); a folder of THUMOS14's own text files,
``CLASS_val.txt`` and ``CLASS_test.txt``, lines ``VIDEO start_s end_s``; ActivityNet JSON; a CSV with the columns
``video,subset,label[,start,end[,duration]]``, separated by comma, semicolon or tab. Times may be text.
The JSON may hold what ActivityNet's cannot: "classes" beside "database" (their order), "weak_labels" in a video (where
they differ from its annotations'), annotations without "segment".
"""

from __future__ import annotations

import math
import re
from io import StringIO
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from utils.datasets.profile import WHERE_FROM
from utils.errors import InputError
from utils.files import load_array, load_json

COLUMNS = ("video", "subset", "label", "start", "end", "duration")  # of a CSV; the first three are required
CSV_FORM = "expected the columns video,subset,label[,start,end[,duration]] (seconds), README 'Own data'"
THUMOS_SUBSETS = {"val": "validation", "test": "test"}


class Table(NamedTuple):
    """What every form comes to before it is checked; one entry a video, but for the classes."""

    classes: Optional[List[str]]  # None: the labels' own, in alphabetical order
    videos: List[str]
    subset: List[str]
    duration: Sequence[float]  # seconds, NaN where unknown
    weak: List[List[str]]  # video-level labels
    labels: List[List[str]]  # of the instances
    times: List[Any]  # of the instances, unchecked: a list of [start, end]
    npy: bool = False

    def place(self, path: Path, name: str) -> Path:
        """The file that an error about these values should name."""
        return path / f"{name}.npy" if self.npy else path


def read_table(path: Path, problems: List[InputError]) -> Table:
    """Read annotations of any form; what is wrong with one video joins ``problems``, anything else is raised."""
    if path.is_dir():
        texts = {file: re.fullmatch(r"(.+)_(val|test)\.txt", file.name) for file in sorted(path.rglob("[!.]*.txt"))}
        texts = {file: match for file, match in texts.items() if match}
        return _from_texts(texts, problems) if texts and not any(path.glob("*.npy")) else _from_npy(path)
    if not path.is_file():
        raise InputError("no annotations", path, WHERE_FROM)
    return (_from_csv if path.suffix.lower() == ".csv" else _from_json)(path, problems)


def _seconds(value: object) -> float:
    """A number or text as seconds; ValueError for anything else, NaN and what no time can be."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, str, np.integer, np.floating)):
        raise ValueError(f"{ascii(value)[:40]} is no time")
    if not abs(float(value)) < 1e18:
        raise ValueError(f"{value} is no time")
    return float(value)


def pairs_of(times: object) -> Optional[np.ndarray]:
    """float64 [K, 2] of a list of segments, numbers or text; None where it is anything else."""
    try:
        values = [list(pair) for pair in times if isinstance(pair, (list, tuple, np.ndarray))]
        if len(values) < len(times) or any(len(pair) != 2 for pair in values):
            return None
        return np.asarray([[_seconds(value) for value in pair] for pair in values], dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        return None


# ---- W-TALC's folder ------------------------------------------------------------------------------------------------


def _names(values: object, where: object) -> List[str]:
    """A list of names, whatever its container; a lone string is one name."""
    flat = [values] if isinstance(values, (bytes, str)) else list(np.asarray(values, dtype=object).ravel())
    odd = [name for name in flat if not isinstance(name, (bytes, str))]
    if odd:
        raise InputError(f"{ascii(odd[0])[:80]} is no name", where, WHERE_FROM)
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in flat]


def _from_npy(folder: Path) -> Table:
    names = ("videoname", "classlist", "subset", "labels_all", "labels", "segments", "duration")
    columns, paths = {}, {name: folder / f"{name}.npy" for name in names}
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
    return Table(classes, videos, subset, duration, weak, labels, list(columns["segments"]), npy=True)


# ---- THUMOS14's text files ------------------------------------------------------------------------------------------


def _from_texts(texts: Dict[Path, re.Match[str]], problems: List[InputError]) -> Table:
    entries: Dict[str, Tuple[str, List[str], List[Any]]] = {}
    ambiguous = [file for file, match in texts.items() if match[1].lower() == "ambiguous"]
    for file in [*(file for file in texts if file not in ambiguous), *ambiguous]:
        label, subset = texts[file][1], THUMOS_SUBSETS[texts[file][2]]
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            video, *times = line.split() or [""]
            if pairs_of([times]) is None and video:
                problems.append(InputError("not 'VIDEO start end'", f"{file}, line {number}", "fix this line"))
            elif video in entries or (video and file not in ambiguous):
                _, labels, segments = entries.setdefault(video, (subset, [], []))
                labels.append(label)
                segments.append(times)
    videos = sorted(entries)
    subset, labels, times = ([entries[video][k] for video in videos] for k in range(3))
    return Table(None, videos, subset, [math.nan] * len(videos), labels, labels, times)


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


def _from_json(path: Path, problems: List[InputError]) -> Table:
    document = load_json(path)
    database = document.get("database") if isinstance(document, dict) else None
    if not isinstance(database, dict):
        raise InputError("no 'database' of videos", path, "expected ActivityNet's JSON, README 'Own data'")
    classes = document.get("classes")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
        raise InputError("'classes' is no list of names", path, "correct it or leave it out")
    table = Table(classes, [], [], [], [], [], [])
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


def _from_csv(path: Path, problems: List[InputError]) -> Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
        separator = max(",;\t", key=text.split("\n", 1)[0].count)
        # all as text; the head is a row like the others, so that pandas changes nothing in it
        options = {"dtype": str, "header": None, "na_filter": False, "skip_blank_lines": False}
        frame = pd.read_csv(StringIO(text), sep=separator, **options).fillna("").map(str.strip)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: {error.reason}", path, "save it as UTF-8") from None
    except ValueError as error:  # pandas' own are among them
        raise InputError(f"not a CSV of annotations: {error}", path, CSV_FORM) from None
    head = ["".join(name.lower().split()) for name in frame.iloc[0]]
    missing = [name for name in COLUMNS[:3] if name not in head]
    twice = [name for name in COLUMNS if head.count(name) > 1]
    if missing or twice:
        what = f"no column {', '.join(missing)}" if missing else f"duplicate column {', '.join(twice)}"
        raise InputError(what, f"{path}, line 1", CSV_FORM)
    if separator != ",":  # then a comma is a decimal one
        frame = frame.apply(lambda column: column.str.replace(",", ".") if head[column.name] in COLUMNS[3:] else column)
    columns = [frame[head.index(name)] if name in head else [""] * len(frame) for name in COLUMNS]
    entries: Dict[str, Tuple] = {}
    seen: set = set()
    for number, row in list(enumerate(zip(*columns), 1))[1:]:
        try:
            if any(row):
                _add_row(entries, seen, *row)
        except ValueError as error:
            problems.append(InputError(str(error), f"{path}, line {number}", "fix or remove this line"))
    table = Table(None, list(entries), [], [], [], [], [])
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
