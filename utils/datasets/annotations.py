"""Annotations in one form in memory, whatever their form on disk; each file is read once.

The forms are those of ``utils.datasets.annotation_files``. Whoever trains takes ``Annotations`` alone, which have no
time stamps.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from utils.datasets.annotation_files import Table, pairs_of, read_table
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
    notes: List[str] = []
    table = read_table(path, problems)
    if profile is not None:
        table = table._replace(subset=_spelled(table.subset, profile, notes))
    annotations = _annotations(path, table, problems)
    instances = _instances(path, table, annotations, problems)
    annotations, instances, ambiguous_s = _without_ambiguous(annotations, instances, notes)
    if not ambiguous_s:
        ambiguous_s = read_ambiguous((path if path.is_dir() else path.parent) / AMBIGUOUS_FILE, annotations.videos)
    return Read(annotations, instances, ambiguous_s, problems, notes)


def read_ambiguous(path: Path, videos: Sequence[str]) -> Dict[str, np.ndarray]:
    """Ambiguous_test.txt, lines ``VIDEO start_s end_s``: video -> float64 [K, 2] seconds; a missing file is empty."""
    intervals: Dict[str, List[np.ndarray]] = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        pairs = pairs_of([fields[1:]]) if fields else None
        if fields and (pairs is None or pairs[0, 0] > pairs[0, 1]):
            raise InputError("not 'VIDEO start end', start <= end", f"{path}, line {number}", "fix this line")
        if fields:
            intervals.setdefault(fields[0], []).append(pairs[0])
    return {video: np.asarray(intervals[video]) for video in videos if video in intervals}


def _spelled(subset: List[str], profile: Profile, notes: List[str]) -> List[str]:
    """The subset of each video, under the profile's names where it is clear which one is meant."""
    names, meant = sorted(set(subset)), {}
    for role, wanted, groups in (
        ("train_subset", profile.train_subset, ("train", profile.train_subset)),
        ("test_subset", profile.test_subset, (profile.test_subset, "test", "validation")),
    ):
        free = [name for name in names if name not in (profile.train_subset, profile.test_subset, *meant)]
        for group in groups if wanted not in names else ():
            spellings = next((s for s in SPELLINGS if group.lower() in s), {group.lower()})
            matches = [name for name in free if name.strip().lower() in spellings]
            if matches:
                if len(matches) == 1:
                    meant[matches[0]] = wanted
                    notes.append(f"subset {matches[0]!r} is taken as {wanted!r}, the {role} (dataset.json can name it)")
                break
    return [meant.get(name, name) for name in subset]


def _annotations(path: Path, table: Table, problems: List[InputError]) -> Annotations:
    """The weak labels, checked in the same way for every form."""
    classes = table.classes
    if classes is None:
        classes = sorted({label for labels in table.weak for label in labels})
    for what, names, name in (("class", classes, "classlist"), ("video", table.videos, "videoname")):
        if not names:
            raise InputError(f"no {what}", table.place(path, name), WHERE_FROM)
        twice = [repr(name) for name, count in Counter(names).items() if count > 1]
        if twice:
            where = table.place(path, name)
            raise InputError(f"duplicate {what} {', '.join(twice[:5])}", where, f"name each {what} once")
    index = {name: i for i, name in enumerate(classes)}
    for video, name in ((v, n) for v, names in zip(table.videos, table.weak) for n in names if n not in index):
        where = f"{table.place(path, 'labels_all')}, {video}"
        problems.append(InputError(f"unknown class {name!r}", where, "add it to the list of classes"))
    weak = tuple(tuple(dict.fromkeys(index[n] for n in names if n in index)) for names in table.weak)
    duration_s = np.asarray(table.duration, dtype=np.float64)
    return Annotations(tuple(classes), tuple(table.videos), tuple(table.subset), duration_s, weak)


def _instances(path: Path, table: Table, annotations: Annotations, problems: List[InputError]) -> Segments:
    """The time stamps of the videos that have nothing wrong with theirs."""
    index = {name: i for i, name in enumerate(annotations.classes)}
    video, label, seconds = [], [], [np.zeros((0, 2))]
    for i, (names, times) in enumerate(zip(table.labels, table.times)):
        pairs, unknown = pairs_of(times), [name for name in names if name not in index]
        if pairs is None:
            problem = "segments are not pairs of finite seconds", "give [start, end] each"
        elif len(pairs) != len(names):
            problem = f"{len(pairs)} segments and {len(names)} labels", "give each segment one label"
        elif (pairs[:, 1] < pairs[:, 0]).any():
            problem = "a segment that ends before it starts", "swap its two times"
        elif (pairs < 0).any():
            problem = "an instance that starts before its video", "times are seconds from its start"
        elif unknown:
            problem = f"unknown class {unknown[0]!r}", "add it to the list of classes"
        else:
            video += [i] * len(pairs)
            seconds.append(pairs)
            label += [index[name] for name in names]
            continue
        what, todo = problem
        problems.append(InputError(what, f"{table.place(path, 'segments')}, {table.videos[i]}", todo))
    columns = (np.asarray(video, dtype=np.int64), np.concatenate(seconds), np.asarray(label, dtype=np.int64))
    return Segments(annotations.classes, annotations.videos, *columns)


def _without_ambiguous(
    annotations: Annotations, instances: Segments, notes: List[str]
) -> Tuple[Annotations, Segments, Dict[str, np.ndarray]]:
    """THUMOS14's "Ambiguous" taken out of the classes, and its intervals by video."""
    ambiguous = np.asarray([name.lower() == "ambiguous" for name in annotations.classes])
    if not ambiguous.any():
        return annotations, instances, {}
    new, mine = np.cumsum(~ambiguous) - 1, ambiguous[instances.label]
    classes = tuple(name for name, odd in zip(annotations.classes, ambiguous) if not odd)
    labels = tuple(tuple(int(new[c]) for c in weak if not ambiguous[c]) for weak in annotations.labels)
    names = annotations.videos
    intervals = {names[i]: instances.segment_s[mine & (instances.video == i)] for i in np.unique(instances.video[mine])}
    what = f"'Ambiguous' is no action class: {int(mine.sum())} intervals in {len(intervals)} videos"
    notes.append(f"{what} are no instances; they serve as ambiguous intervals")
    kept = Segments(
        classes, names, instances.video[~mine], instances.segment_s[~mine], new[instances.label[~mine]].astype(np.int64)
    )
    return Annotations(classes, names, annotations.subset, annotations.duration_s, labels), kept, intervals


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
        write_text(folder / AMBIGUOUS_FILE, "".join(lines))
