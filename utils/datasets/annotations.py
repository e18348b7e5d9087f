"""Annotations in one form in memory, whatever their form on disk; each file is read once.

The forms are those of ``utils.datasets.annotation_files``. Whoever trains takes ``Annotations`` alone, which have no
time stamps.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from utils.datasets.annotation_files import Table, pairs_of, read_table, timed_lines
from utils.datasets.profile import WHERE_FROM, Profile
from utils.errors import InputError
from utils.files import save_array, write_text
from utils.segments import Segments

AMBIGUOUS_FILE = "Ambiguous_test.txt"
SPELLINGS = ({"train", "training"}, {"val", "valid", "validation"}, {"test", "testing"})


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
    problems: List[InputError]  # what is wrong with single videos; that much of them is left out
    notes: List[str]  # lines to log: what was read in another way than it is written


def read_annotations(path: Path, profile: Optional[Profile] = None) -> Read:
    """Read a folder, JSON or CSV. InputError for what is wrong with a whole file; the rest is in ``problems``.

    With a ``profile``, a subset in another of its usual spellings ("train", "Training", "val", …) gets the profile's
    name where no other subset could be meant. A class "Ambiguous" is none: its intervals are ``ambiguous_s``.
    """
    problems: List[InputError] = []
    table = read_table(path, problems)
    annotations = _annotations(path, table, problems)
    instances = _instances(path, table, annotations, problems)
    annotations, instances, ambiguous_s = _without_ambiguous(annotations, instances)
    notes = []
    if ambiguous_s:
        what = f"{sum(map(len, ambiguous_s.values()))} intervals in {len(ambiguous_s)} videos are no instances"
        notes.append(f"'Ambiguous' is no action class: {what}; they serve as ambiguous intervals")
    else:
        ambiguous_s = read_ambiguous((path if path.is_dir() else path.parent) / AMBIGUOUS_FILE, annotations.videos)
    if profile is not None:
        renamed = _renamed(set(annotations.subset), profile)
        annotations = replace(annotations, subset=tuple(renamed.get(name, name) for name in annotations.subset))
        notes += [f"subset {old!r} is taken as {new!r} (dataset.json can name it)" for old, new in renamed.items()]
    return Read(annotations, instances, ambiguous_s, problems, notes)


def read_ambiguous(path: Path, videos: Sequence[str]) -> Dict[str, np.ndarray]:
    """Ambiguous_test.txt, lines ``VIDEO start_s end_s``: video -> float64 [K, 2] seconds; a missing file is empty."""
    intervals: Dict[str, List[np.ndarray]] = {}
    for where, video, times in timed_lines(path) if path.is_file() else ():
        if times is None or times[0, 0] > times[0, 1]:
            raise InputError("not 'VIDEO start end', start <= end", where, "fix this line")
        intervals.setdefault(video, []).extend(times)
    return {video: np.asarray(intervals[video]) for video in videos if video in intervals}


def _renamed(names: Set[str], profile: Profile) -> Dict[str, str]:
    """{a subset of the file: the profile's name of it}, where another spelling makes clear which one is meant."""
    renamed: Dict[str, str] = {}
    train, test = profile.train_subset, profile.test_subset
    for wanted, words in ((train, ("train", train)), (test, (test, "test", "validation"))):
        usual = any(wanted.strip().lower() in s for s in SPELLINGS)  # a name of one's own means itself alone
        for word in words if usual and wanted not in names else ():
            spellings = next((s for s in SPELLINGS if word.lower() in s), {word.lower()})
            free = names - {train, test, *renamed}
            matches = [name for name in free if name.strip().lower() in spellings]
            if matches:
                renamed.update({matches[0]: wanted} if len(matches) == 1 else {})
                break
    return renamed


def _annotations(path: Path, table: Table, problems: List[InputError]) -> Annotations:
    """The weak labels, checked in the same way for every form."""
    classes = table.classes
    if classes is None:
        classes = sorted({label for entry in table.entries for label in entry.weak})
    videos, subset, duration_s, weak = (list(column) for column in list(zip(*table.entries))[:4] or [()] * 4)
    for what, names, name in (("class", classes, "classlist"), ("video", videos, "videoname")):
        twice = [repr(name) for name, count in Counter(names).items() if count > 1]
        if twice or not names:
            problem = f"duplicate {what} {', '.join(twice[:5])}" if twice else f"no {what}"
            raise InputError(problem, _place(path, name), f"name each {what} once" if twice else WHERE_FROM)
    index = {name: i for i, name in enumerate(classes)}
    for video, name in [(v, name) for v, names in zip(videos, weak) for name in names if name not in index]:
        where = f"{_place(path, 'labels_all')}, {video}"
        problems.append(InputError(f"unknown class {name!r}", where, "add it to the list of classes"))
    labels = tuple(tuple(dict.fromkeys(index[name] for name in names if name in index)) for names in weak)
    return Annotations(tuple(classes), tuple(videos), tuple(subset), np.asarray(duration_s, np.float64), labels)


def _place(path: Path, name: str) -> Path:
    """The file that an error about these values should name: in a folder, the column's."""
    return path / f"{name}.npy" if path.is_dir() and (path / f"{name}.npy").exists() else path


def _instances(path: Path, table: Table, annotations: Annotations, problems: List[InputError]) -> Segments:
    """The time stamps of the videos that have nothing wrong with theirs."""
    index = {name: i for i, name in enumerate(annotations.classes)}
    video, label, seconds = [], [], [np.zeros((0, 2))]
    for i, entry in enumerate(table.entries):
        pairs, unknown = pairs_of(entry.times), [name for name in entry.labels if name not in index]
        if pairs is None:
            problem = "segments are not pairs of finite seconds", "give [start, end] each"
        elif len(pairs) != len(entry.labels):
            problem = f"{len(pairs)} segments and {len(entry.labels)} labels", "give each segment one label"
        elif (pairs[:, 1] < pairs[:, 0]).any():
            problem = "a segment that ends before it starts", "swap its two times"
        elif (pairs < 0).any():
            problem = "an instance that starts before its video", "times are seconds from its start"
        elif unknown:
            problem = f"unknown class {unknown[0]!r}", "add it to the list of classes"
        else:
            video += [i] * len(pairs)
            seconds.append(pairs)
            label += [index[name] for name in entry.labels]
            continue
        problems.append(InputError(problem[0], f"{_place(path, 'segments')}, {entry.video}", problem[1]))
    columns = (np.asarray(video, dtype=np.int64), np.concatenate(seconds), np.asarray(label, dtype=np.int64))
    return Segments(annotations.classes, annotations.videos, *columns)


def _without_ambiguous(
    annotations: Annotations, instances: Segments
) -> Tuple[Annotations, Segments, Dict[str, np.ndarray]]:
    """THUMOS14's "Ambiguous" taken out of the classes, and its intervals by video."""
    ambiguous = np.asarray([name.lower() == "ambiguous" for name in annotations.classes])
    new, mine = np.cumsum(~ambiguous) - 1, ambiguous[instances.label]
    classes = tuple(name for name, odd in zip(annotations.classes, ambiguous) if not odd)
    labels = tuple(tuple(int(new[c]) for c in weak if not ambiguous[c]) for weak in annotations.labels)
    video, segment_s = instances.video, instances.segment_s
    intervals = {annotations.videos[i]: segment_s[mine & (video == i)] for i in np.unique(video[mine])}
    kept = Segments(classes, annotations.videos, video[~mine], segment_s[~mine], new[instances.label[~mine]])
    return replace(annotations, classes=classes, labels=labels), kept, intervals


def write_annotations(
    folder: Path, annotations: Annotations, instances: Segments, ambiguous_s: Dict[str, np.ndarray]
) -> None:
    """Write W-TALC's files into ``folder``; ambiguous_s: video -> [K, 2] seconds, for Ambiguous_test.txt."""
    own = [np.flatnonzero(instances.video == i) for i in range(len(annotations.videos))]
    columns = {
        "labels_all": [[annotations.classes[c] for c in weak] for weak in annotations.labels],
        "labels": [[annotations.classes[c] for c in instances.label[rows]] for rows in own],
        "segments": [instances.segment_s[rows].tolist() for rows in own],
    }
    arrays = {
        "classlist": np.array(annotations.classes),
        "videoname": np.array(annotations.videos),
        "subset": np.array(annotations.subset),
        "duration": annotations.duration_s,
    }
    for name, lists in columns.items():
        arrays[name] = np.empty(len(lists), dtype=object)
        arrays[name][:] = lists
    for name, array in arrays.items():
        save_array(folder / f"{name}.npy", array, objects=True)
    if ambiguous_s:
        lines = [f"{video} {start:g} {end:g}\n" for video, times in ambiguous_s.items() for start, end in times]
        write_text(folder / AMBIGUOUS_FILE, "".join(lines))
