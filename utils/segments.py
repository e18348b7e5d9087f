"""Labelled stretches of time: instances (no score) and detections (a score each), in memory and as JSON.

On disk: ``{"version": …, "results": {VIDEO: [{"segment": [start_s, end_s], "label": CLASS, "score": number}, …]}}``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Container, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from utils.errors import InputError
from utils.files import content_hash

MOST = 0.9  # so large a part of all times is no outlier
FORM = 'each is {"segment": [start_s, end_s], "label": CLASS, "score": number}, start <= end, all finite'


@dataclass(frozen=True)
class Segments:
    """N labelled segments as columns, and every video they could be in; detections of equal score rank in this order.

    Raises ValueError for columns that do not fit, and for a time or a score that is not finite.
    """

    classes: Tuple[str, ...]
    videos: Tuple[str, ...]
    video: np.ndarray  # int64 [N], index into videos
    segment_s: np.ndarray  # float64 [N, 2], start and end in seconds
    label: np.ndarray  # int64 [N], index into classes
    score: Optional[np.ndarray] = None  # float64 [N]; None: instances

    def __post_init__(self) -> None:
        n, score = len(self.video), 0.0 * self.label if self.score is None else self.score
        shapes = [column.shape for column in (self.video, self.segment_s, self.label, score)]
        if shapes != [(n,), (n, 2), (n,), (n,)]:
            raise ValueError(f"segments with columns of shapes {shapes}")
        if not (np.isfinite(self.segment_s).all() and np.isfinite(score).all()):
            raise ValueError("segments with a time or a score that is not finite")

    def of(self, video: str) -> Tuple[np.ndarray, np.ndarray, Optional[np.ndarray]]:
        """(segment_s [K, 2], label [K], score [K] or None) of one video."""
        mine = self.take(self.video == (self.videos.index(video) if video in self.videos else -1))
        return mine.segment_s, mine.label, mine.score

    def take(self, rows: np.ndarray) -> Segments:
        """Some of the segments: a mask, bool [N], or their numbers in the order wanted."""
        score = None if self.score is None else self.score[rows]
        return Segments(self.classes, self.videos, self.video[rows], self.segment_s[rows], self.label[rows], score)

    def keep(self, videos: Sequence[str]) -> Segments:
        """The segments of some of the videos, which come in the order given; unknown names are ignored."""
        old = {video: i for i, video in enumerate(self.videos)}
        videos = tuple(video for video in videos if video in old)
        new = np.full(len(self.videos), -1, dtype=np.int64)
        new[[old[video] for video in videos]] = np.arange(len(videos))
        kept = self.take(new[self.video] >= 0)
        return replace(kept, videos=videos, video=new[kept.video])

    def last_ends(self) -> Dict[str, float]:
        """When the last segment of each video that has any ends, seconds."""
        ends = pd.Series(self.segment_s[:, 1]).groupby(self.video).max()
        return {self.videos[video]: end_s for video, end_s in ends.items()}

    def hash(self) -> str:
        """Hash of everything in it."""
        return content_hash(self.classes, self.videos, self.video, self.segment_s, self.label, self.score)

    def to_json(self, version: str = "") -> Dict:
        """Detections as the document above: every video is named, order kept; the official evaluator takes it."""
        results: Dict[str, List[Dict]] = {video: [] for video in self.videos}
        for video, segment, label, score in zip(self.video, self.segment_s.tolist(), self.label, self.score.tolist()):
            results[self.videos[video]].append({"segment": segment, "label": self.classes[label], "score": score})
        return {"version": version, "results": results, "external_data": {}}

    @classmethod
    def from_json(
        cls, document: object, classes: Optional[Sequence[str]], where: object = "detections"
    ) -> Tuple[Segments, Dict[str, int]]:
        """Detections of the given classes, and how many there are of each label that is none of them.

        classes: None takes every label as one, in alphabetical order. where: the file, for errors. Raises InputError
        naming file, video and index.
        """
        results = document.get("results") if isinstance(document, dict) else None
        if not isinstance(results, dict):
            raise InputError("no 'results' of videos", where, 'expected {"results": {VIDEO: [detections]}}')
        rows: List[Tuple] = []
        labels: List[str] = []
        for i, (name, detections) in enumerate(results.items()):
            if not isinstance(detections, list):
                raise InputError("not a list of detections", f"{where}, {name}", FORM)
            for k, entry in enumerate(detections):
                if not _well_formed(entry):
                    raise InputError(f"malformed detection {ascii(entry)[:80]}", f"{where}, {name}, index {k}", FORM)
                rows.append((i, *entry["segment"], entry["score"]))
                labels.append(entry["label"])
        classes = sorted({*labels}) if classes is None else classes
        place = {name: i for i, name in enumerate(classes)}
        label = np.asarray([place.get(name, -1) for name in labels], dtype=np.int64)  # -1: none of them
        columns = np.asarray(rows, dtype=np.float64).reshape(-1, 4)
        video = columns[:, 0].astype(np.int64)
        found = cls(tuple(classes), tuple(results), video, columns[:, 1:3], label, columns[:, 3])
        return found.take(label >= 0), dict(Counter(name for name, c in zip(labels, label) if c < 0))


def _well_formed(entry: dict) -> bool:
    try:
        (start, end), score = entry["segment"], entry["score"]
        typed = {type(start), type(end), type(score)} <= {int, float} and isinstance(entry["label"], str)
        return typed and all(map(math.isfinite, (start, end, score))) and start <= end
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def to_snippets(seconds: np.ndarray, rate: float) -> np.ndarray:
    """Seconds to snippets, rounded to 0.01 as the literature's proposals are. rate: snippets per second."""
    return np.round(np.asarray(seconds, dtype=np.float64) * rate, 2)


def tiou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Temporal IoU [M, G] of each segment of a [M, 2] with each of b [G, 2], in one unit; 0 where both are empty."""
    shared = np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0])
    shared = np.maximum(shared, 0.0)
    union = (a[:, 1] - a[:, 0])[:, None] + (b[:, 1] - b[:, 0])[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def spelled(names: Iterable[str], known: Container[str], where: object = None) -> Dict[str, str]:
    """{name: the same video's name in ``known``}, which may have "v_" before it or not; others stay as they are.

    Raises InputError for two names of one video.
    """
    meant, owner = {}, {}
    for name in names:
        bare = name[2:] if name.startswith("v_") else name
        meant[name] = next((other for other in (name, "v_" + bare, bare) if other in known), name)
        other = owner.setdefault(meant[name], name)
        if other != name:
            raise InputError(f"one video under two names, {other} and {name}", where, "keep one of them")
    return meant


def check_units(segment_s: np.ndarray, length_s: np.ndarray, what: str, where: object = None) -> None:
    """Raise InputError for times that cannot be seconds as a whole, not where nothing or a few of them are strange.

    segment_s: [N, 2]. length_s: [N], seconds of the video of each, NaN where unknown. what: "instances", "proposals" …
    """
    known = np.isfinite(length_s) & (length_s > 0)
    segment_s, length_s, number = segment_s[known], length_s[known], int(known.sum())
    beyond = float((segment_s[:, 1] > 1.05 * length_s + 1).mean()) if number else 0.0
    if beyond >= MOST:
        text = f"{100 * beyond:.0f} % of {number:,} {what} end after their video"
        raise InputError(text, where, "are these frames? times must be seconds")
    if number >= 5 and segment_s.max() <= 1 and np.median(length_s) >= 5:
        text = f"all {number:,} {what} are in the first second of videos of {np.median(length_s):.0f} s"
        raise InputError(text, where, "are these fractions of the video? times must be seconds")
