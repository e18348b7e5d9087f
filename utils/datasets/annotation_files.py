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
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import pandas as pd

from utils.datasets.profile import WHERE_FROM
from utils.errors import InputError
from utils.files import load_array, load_json

COLUMNS = ("video", "subset", "label", "start", "end", "duration")  # of a CSV; the first three are required
CSV_FORM = "expected the columns video,subset,label[,start,end[,duration]] (seconds), README 'Own data'"
JSON_FORM = 'expected {"subset", "duration", "annotations": [{"segment": [s, e], "label"}]}'


class Entry(NamedTuple):
    """One video, its names and times as they were written."""

    video: str
    subset: str
    duration: float  # seconds, NaN where unknown
    weak: List[str]  # video-level labels
    labels: List[str]  # of the instances
    times: Any  # of the instances, unchecked: a list of [start, end]


class Table(NamedTuple):
    """What every form comes to before it is checked."""

    classes: Optional[List[str]]  # None: the labels' own, in alphabetical order
    entries: List[Entry]


def read_table(path: Path, problems: List[InputError]) -> Table:
    """Read annotations of any form; what is wrong with one video joins ``problems``, anything else is raised."""
    if path.is_dir():
        texts = [file for file in sorted(path.rglob("[!.]*_*.txt")) if re.search("_(val|test)$", file.stem)]
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
        if not all(isinstance(pair, (list, tuple, np.ndarray)) and len(pair) == 2 for pair in times):
            return None
        return np.asarray([[_seconds(value) for value in pair] for pair in times], dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        return None


def timed_lines(path: Path) -> Iterator[Tuple[str, str, Optional[np.ndarray]]]:
    """(where it is, video, seconds [1, 2] or None where they are malformed) of each line ``VIDEO start_s end_s``."""
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            video, *times = line.split()
            yield f"{path}, line {number}", video, pairs_of([times])


def _from_npy(folder: Path) -> Table:
    """W-TALC's folder: one .npy a column."""

    def names(column: str, values: object) -> List[str]:
        """A list of names, whatever its container; a lone string is one name."""
        flat = [values] if isinstance(values, (bytes, str)) else np.asarray(values, dtype=object).ravel().tolist()
        for name in flat:
            if not isinstance(name, (bytes, str)):
                raise InputError(f"{ascii(name)[:80]} is no name", folder / f"{column}.npy", WHERE_FROM)
        return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in flat]

    columns = {}
    for name in ("videoname", "classlist", "subset", "labels_all", "labels", "segments", "duration"):
        path = folder / f"{name}.npy"
        if name == "duration" and not path.exists():
            columns[name] = np.full(len(columns["videoname"]), np.nan)
            continue
        columns[name] = load_array(path, objects=True, todo=WHERE_FROM)
        if not columns[name].ndim:
            raise InputError("one value where a list should be", path, WHERE_FROM)
        if name != "classlist" and len(columns[name]) != len(columns["videoname"]):
            raise InputError(f"{len(columns[name])} {name} for {len(columns['videoname'])} videos", path, WHERE_FROM)
    try:
        duration = columns["duration"].astype(np.float64).ravel()
    except (TypeError, ValueError):
        raise InputError("not a list of seconds", folder / "duration.npy", "give numbers, or delete it") from None
    videos, classes, subset = (names(name, columns[name]) for name in ("videoname", "classlist", "subset"))
    weak, labels = ([names(name, entry) for entry in columns[name]] for name in ("labels_all", "labels"))
    return Table(classes, [Entry(*row) for row in zip(videos, subset, duration, weak, labels, columns["segments"])])


def _from_texts(files: List[Path], problems: List[InputError]) -> Table:
    """THUMOS14's own files, one a class; those named Ambiguous come last and add no video."""
    entries: Dict[str, Entry] = {}
    for file in sorted(files, key=lambda file: file.stem.lower().startswith("ambiguous_")):
        label, split = file.stem.rsplit("_", 1)
        subset = {"val": "validation", "test": "test"}[split]
        for where, video, times in timed_lines(file):
            if times is None:
                problems.append(InputError("not 'VIDEO start end'", where, "fix this line"))
            elif video in entries or label.lower() != "ambiguous":
                names: List[str] = []
                entry = entries.setdefault(video, Entry(video, subset, math.nan, names, names, []))
                entry.labels.append(label)
                entry.times.extend(times)
    return Table(None, [entries[video] for video in sorted(entries)])


def _from_json(path: Path, problems: List[InputError]) -> Table:
    """ActivityNet's JSON."""

    def typed(value: object, *types: type) -> Any:
        if type(value) not in types:
            raise TypeError
        return value

    document = load_json(path)
    database = document.get("database") if isinstance(document, dict) else None
    if not isinstance(database, dict):
        raise InputError("no 'database' of videos", path, "expected ActivityNet's JSON, README 'Own data'")
    classes = document.get("classes")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
        raise InputError("'classes' is no list of names", path, "correct it or leave it out")
    entries = []
    for video, entry in database.items():
        try:
            annotations = typed(entry.get("annotations", []), list)
            own = [str(typed(a["label"], str, int)) for a in annotations]
            weak = typed(entry.get("weak_labels", own), list, str)
            weak = [str(typed(label, str, int)) for label in ([weak] if isinstance(weak, str) else weak)]
            timed = [k for k, a in enumerate(annotations) if a.get("segment") is not None]
            duration = _seconds(entry["duration"]) if entry.get("duration") is not None else math.nan
            subset, times = str(typed(entry["subset"], str, int)), [annotations[k]["segment"] for k in timed]
            entries.append(Entry(video, subset, duration, weak, [own[k] for k in timed], times))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            problems.append(InputError("not an ActivityNet entry", f"{path}, {video}", JSON_FORM))
    return Table(classes, entries)


def _from_csv(path: Path, problems: List[InputError]) -> Table:
    """A CSV, a row an instance; rows without times give a video's labels alone."""
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
    frame.columns = ["".join(name.lower().split()) for name in frame.iloc[0]]
    missing = [name for name in COLUMNS[:3] if name not in frame]
    twice = [name for name in COLUMNS if list(frame).count(name) > 1]
    if missing or twice:
        what = f"no column {', '.join(missing)}" if missing else f"duplicate column {', '.join(twice)}"
        raise InputError(what, f"{path}, line 1", CSV_FORM)
    frame = frame.loc[:, ~frame.columns.duplicated()].reindex(columns=COLUMNS, fill_value="").iloc[1:]
    frame = frame[(frame != "").any(axis=1)]
    text = frame[[*COLUMNS[3:]]].replace(["nan", "NaN"], "")
    numbers = text.apply(lambda column: pd.to_numeric(column.str.replace(",", "."), errors="coerce"))
    timed, half = text["start"] != "", (text["start"] != "") != (text["end"] != "")
    rows = frame.assign(**numbers)
    for what, check in (
        ("a time that is no number", lambda rows: ((text != "") & numbers.isna()).any(axis=1)),
        ("a row without video or subset", lambda rows: (rows["video"] == "") | (rows["subset"] == "")),
        ("a row needs start, end and label together", lambda rows: half | (timed & (rows["label"] == ""))),
        ("a video in two subsets", lambda rows: _differs(rows, "subset")),
        ("a video with two durations", lambda rows: rows["duration"].notna() & _differs(rows, "duration")),
        ("duplicate row", lambda rows: timed & rows.duplicated([*COLUMNS[:5]])),
    ):
        bad = check(rows)[rows.index]
        for i in rows.index[bad]:
            where = f"{path}, line {i + 1}"
            problems.append(InputError(f"{what}: {frame.loc[i].tolist()}", where, "fix or remove this line"))
        rows = rows[~bad]
    entries: Dict[str, Entry] = {}
    duration = rows.groupby("video")["duration"].first().to_dict()
    for video, subset, label, start, end in zip(*(rows[name] for name in COLUMNS[:5])):
        entry = entries.setdefault(video, Entry(video, subset, duration[video], [], [], []))
        entry.weak.extend([label] if label else [])
        if not math.isnan(start):
            entry.labels.append(label)
            entry.times.append([start, end])
    for entry in entries.values():
        if 0 < len(entry.labels) < len(entry.weak):
            problems.append(InputError("some rows have times and some have not", f"{path}, {entry.video}", CSV_FORM))
    return Table(None, list(entries.values()))


def _differs(rows: pd.DataFrame, name: str) -> pd.Series:
    """Whether a column has another value in the first row of the same video."""
    return rows[name] != rows.groupby("video")[name].transform("first")
