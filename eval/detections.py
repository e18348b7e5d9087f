"""Detections: what lies between a model, its evaluation and its pictures. On disk

{"version": …, "results": {VIDEO: [{"segment": [start_s, end_s], "label": CLASS, "score": number}, …]}}
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

import numpy as np

from utils.errors import InputError

FORM = 'each is {"segment": [start_s, end_s], "label": CLASS, "score": number}, start <= end, all finite'


@dataclass(frozen=True)
class Detections:
    """N detections as columns; equal scores rank in this order. Raises ValueError for columns that do not fit."""

    classes: Tuple[str, ...]
    videos: Tuple[str, ...]
    video: np.ndarray  # int64 [N], index into videos
    segment_s: np.ndarray  # float64 [N, 2], seconds
    label: np.ndarray  # int64 [N], index into classes
    score: np.ndarray  # float64 [N]

    def __post_init__(self) -> None:
        n = len(self.video)
        shapes = [getattr(self, name).shape for name in ("video", "segment_s", "label", "score")]
        if shapes != [(n,), (n, 2), (n,), (n,)]:
            raise ValueError(f"detections with columns of shapes {shapes}")
        if not (np.isfinite(self.segment_s).all() and np.isfinite(self.score).all()):
            raise ValueError("detections with a time or a score that is not finite")

    def of(self, video: str) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(segment_s [K, 2], label [K], score [K]) of one video."""
        mine = self.video == self.videos.index(video) if video in self.videos else np.zeros(len(self.video), bool)
        return self.segment_s[mine], self.label[mine], self.score[mine]

    def to_json(self, version: str = "") -> Dict:
        """The document above, a video after the other, every video named, order kept."""
        results: Dict[str, List[Dict]] = {video: [] for video in self.videos}
        columns = (self.video.tolist(), self.segment_s.tolist(), self.label.tolist(), self.score.tolist())
        for video, segment, label, score in zip(*columns):
            entry = {"segment": segment, "label": self.classes[label], "score": score}
            results[self.videos[video]].append(entry)
        return {"version": version, "results": results}

    @classmethod
    def from_json(
        cls, document: object, classes: Sequence[str], where: object = "detections"
    ) -> Tuple[Detections, Dict[str, int]]:
        """Detections of the given classes, and how many there are of each label that is none of them.

        where: the file, for errors. Raises InputError naming file, video and index.
        """
        results = document.get("results") if isinstance(document, dict) else None
        if not isinstance(results, dict):
            raise InputError("no 'results' of videos", where, 'expected {"results": {VIDEO: [detections]}}')
        video: List[int] = []
        entries: List[dict] = []
        for i, (name, found) in enumerate(results.items()):
            if not isinstance(found, list):
                raise InputError("not a list of detections", f"{where}, {name}", FORM)
            bad = next((k for k, entry in enumerate(found) if not _well_formed(entry)), None)
            if bad is not None:
                raise InputError(f"malformed detection {ascii(found[bad])[:80]}", f"{where}, {name}, index {bad}", FORM)
            video += [i] * len(found)
            entries += found
        index = {name: i for i, name in enumerate(classes)}
        label = np.asarray([index.get(entry["label"], -1) for entry in entries], dtype=np.int64)
        unknown = Counter(entry["label"] for entry in entries if entry["label"] not in index)
        known = label >= 0
        segment_s = np.asarray([entry["segment"] for entry in entries], dtype=np.float64).reshape(-1, 2)
        score = np.asarray([entry["score"] for entry in entries], dtype=np.float64)
        columns = (np.asarray(video, dtype=np.int64), segment_s, label, score)
        return cls(tuple(classes), tuple(results), *(c[known] for c in columns)), dict(unknown)


def _well_formed(entry: object) -> bool:
    try:
        start, end = entry["segment"]  # type: ignore[index]
        numbers = (start, end, entry["score"])  # type: ignore[index]
        typed = all(type(x) in (int, float) for x in numbers) and isinstance(entry["label"], str)  # type: ignore[index]
        return typed and all(map(math.isfinite, numbers)) and start <= end
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
