"""Detections and instances in the forms of other programs; seconds unless said otherwise.

activitynet  {"results": {VIDEO: [{"segment": [start, end], "label", "score"}]}}, this program's own form too
csv          a row a segment: video,label,start,end[,score]
fiftyone     labels.json of a FiftyOneTemporalDetectionDataset; labels are indices into its "classes"
via          CSV of the VGG Image Annotator 3; a row with one time alone is a point label
labelstudio  tasks with "timelinelabels" in frames counted from 1, both ends included: needs the frame rate
vtt          WebVTT subtitles, a file a video
audacity     label track, a file a video
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np
import pandas as pd

from utils.errors import InputError
from utils.files import load_json
from utils.segments import Segments

COLUMNS = ["video", "label", "start", "end", "score"]
VIA_HEAD = "metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata"
VIA_LABEL, VIA_SCORE = "TEMPORAL-SEGMENTS", "score"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".webm", ".mov", ".m4v", ".mpg", ".mpeg")


def to_frame(segments: Segments) -> pd.DataFrame:
    """A row a segment: video, label, start, end and, for detections, score."""
    videos, classes = (np.asarray(names, dtype=object) for names in (segments.videos, segments.classes))
    columns = [videos[segments.video], classes[segments.label], *segments.segment_s.T]
    columns += [] if segments.score is None else [segments.score]
    return pd.DataFrame(dict(zip(COLUMNS, columns)))


def from_rows(
    rows: Iterable[Tuple], where: object, videos: Iterable[str] = (), classes: Iterable[str] = ()
) -> Segments:
    """Segments from (place, video, label, start, end[, score]); place: what an error names, such as ``line 3``.

    videos and classes: those to list first, in their order. Raises InputError.
    """
    videos, classes = dict.fromkeys(videos), list(dict.fromkeys(classes))
    kept: List[Tuple] = []
    for place, video, label, *numbers in rows:
        try:
            numbers = [float(number) for number in numbers]
            good = all(map(math.isfinite, numbers)) and 0 <= numbers[0] <= numbers[1]
        except (TypeError, ValueError, OverflowError):
            good = False
        if not (good and isinstance(video, str) and isinstance(label, str) and video and label):
            todo = "each needs a video, a label, and 0 <= start <= end in seconds"
            raise InputError("not a labelled segment", f"{where}, {place}", todo)
        videos[video] = None
        kept.append((video, label, *numbers))
    if len({len(row) for row in kept}) > 1:
        raise InputError("some segments have a score and some have not", where, "give every one a score, or none")
    classes += sorted({row[1] for row in kept} - set(classes))
    place, index = ({name: i for i, name in enumerate(names)} for names in (videos, classes))
    video, label = (np.asarray([of[row[k]] for row in kept], dtype=np.int64) for k, of in ((0, place), (1, index)))
    numbers = np.asarray([row[2:] for row in kept], dtype=np.float64).reshape(len(kept), -1)
    score = numbers[:, 2].copy() if numbers.shape[1] == 3 else None
    return Segments(tuple(classes), tuple(videos), video, numbers[:, :2].reshape(-1, 2), label, score)


# ---- writing --------------------------------------------------------------------------------------------------------


class How(NamedTuple):
    """What some of the forms need to know."""

    fps: Optional[float] = None  # labelstudio: frames a second
    suffix: str = ""  # via and labelstudio: of the videos' file names, such as .mp4


def rows_by_video(segments: Segments) -> Dict[str, List[Tuple]]:
    """video -> (label, start, end, score or None), for every video."""
    rows: Dict[str, List[Tuple]] = {video: [] for video in segments.videos}
    for row in to_frame(segments).itertuples(index=False):
        rows[row.video].append((row.label, row.start, row.end, getattr(row, "score", None)))
    return rows


def _scored(values: Dict[str, Any], name: str, score: Optional[float]) -> Dict[str, Any]:
    return values if score is None else {**values, name: score}


def to_csv(segments: Segments, how: Optional[How] = None) -> str:
    """The plain CSV; numbers in all their digits."""
    return to_frame(segments).to_csv(index=False, lineterminator="\n")


def _to_activitynet(segments: Segments, how: How) -> str:
    if segments.score is None:
        raise InputError("these segments have no score", None, "annotations go to activitynet by 'convert annotations'")
    return json.dumps(segments.to_json())


def _to_fiftyone(segments: Segments, how: How) -> str:
    index = {name: i for i, name in enumerate(segments.classes)}
    labels = {
        video: [_scored({"label": index[c], "timestamps": [s, e]}, "confidence", score) for c, s, e, score in rows]
        for video, rows in rows_by_video(segments).items()
    }
    return json.dumps({"classes": list(segments.classes), "labels": labels})


def _to_via(segments: Segments, how: How) -> str:
    text = io.StringIO()
    text.write(f"# CSV_HEADER = {VIA_HEAD}\n")
    writer, number = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"), 0
    for video, rows in rows_by_video(segments).items():
        for label, start, end, score in rows:
            number += 1
            metadata = _scored({VIA_LABEL: label}, VIA_SCORE, None if score is None else repr(score))
            values = ([video + how.suffix], [start, end], [], metadata)
            files, times, space, metadata = (json.dumps(value) for value in values)
            writer.writerow([str(number), files, 0, times, space, metadata])
    return text.getvalue()


def _to_labelstudio(segments: Segments, how: How) -> str:
    if not how.fps:
        raise InputError("Label Studio counts frames", None, "give the videos' frame rate: --fps")
    kind, tasks = "annotations" if segments.score is None else "predictions", []
    for video, rows in rows_by_video(segments).items():
        result = []
        for i, (label, start, end, score) in enumerate(rows):
            first = math.floor(start * how.fps + 1e-6) + 1
            frames = {"start": first, "end": max(first, math.ceil(end * how.fps - 1e-6))}
            region = {"id": f"{i}", "from_name": "timelineLabels", "to_name": "video", "type": "timelinelabels"}
            region["value"] = {"ranges": [frames], "timelinelabels": [label]}
            result.append(_scored(region, "score", score))
        tasks.append({"data": {"video": video + how.suffix}, kind: [{"result": result}]})
    return json.dumps(tasks)


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest / 1000:06.3f}"


def _to_vtt(rows: List[Tuple], how: How) -> str:
    cues = ["WEBVTT\n"]
    for start, end, text in _lines(rows):
        cues.append(f"{_clock(start)} --> {_clock(max(end, start + 0.001))}\n{html.escape(text, quote=False)}\n")
    return "\n".join(cues)


def _to_audacity(rows: List[Tuple], how: How) -> str:
    return "".join(f"{start:.6f}\t{end:.6f}\t{text}\n" for start, end, text in _lines(rows))


def _lines(rows: List[Tuple]) -> List[Tuple[float, float, str]]:
    """(start, end, label and score on one line) by start."""
    labels = (" ".join(label.split()) + ("" if score is None else f" {score:.3f}") for label, _, _, score in rows)
    return sorted((start, end, label) for (_, start, end, _), label in zip(rows, labels))


class Form(NamedTuple):
    """How a form is written."""

    suffix: str
    whole: bool  # one file for all videos, written from Segments; else one a video, written from its rows
    write: Callable[[Any, How], str]


FORMS = {
    "activitynet": Form(".json", True, _to_activitynet),
    "csv": Form(".csv", True, to_csv),
    "fiftyone": Form(".json", True, _to_fiftyone),
    "via": Form(".csv", True, _to_via),
    "labelstudio": Form(".json", True, _to_labelstudio),
    "vtt": Form(".vtt", False, _to_vtt),
    "audacity": Form(".txt", False, _to_audacity),
}


# ---- reading --------------------------------------------------------------------------------------------------------


def read(path: Path) -> Optional[Segments]:
    """Segments from a file of the forms activitynet (detections), csv, fiftyone or via; None for any other form.

    A score is taken where there is one. Raises InputError for a file of these forms that is malformed.
    """
    if path.suffix.lower() == ".json":
        document = load_json(path)
        if isinstance(document, dict) and "results" in document:
            return Segments.from_json(document, None, path)[0]
        return _from_fiftyone(document, path) if isinstance(document, dict) and "labels" in document else None
    if path.suffix.lower() != ".csv":
        return None
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if "# CSV_HEADER" in text[:1000]:
        return _from_via(text, path)
    rows = list(csv.reader(io.StringIO(text), delimiter=",", skipinitialspace=True))
    head = [name.strip().lower() for name in rows[0]] if rows else []
    if not set(COLUMNS[:4]) <= set(head) or "subset" in head:
        return None
    places = [head.index(name) for name in COLUMNS if name in head]
    return from_rows(((f"line {i}", *_cells(row, places)) for i, row in enumerate(rows[1:], 2) if any(row)), path)


def _cells(row: List[str], places: List[int]) -> List[Optional[str]]:
    return [row[place].strip() if place < len(row) else None for place in places]


def _from_fiftyone(document: Dict, path: Path) -> Segments:
    labels, classes = document["labels"], document.get("classes") or []
    form = 'expected {"classes": […], "labels": {VIDEO: [{"label", "timestamps": [start, end]}]}}'
    if not (isinstance(labels, dict) and isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
        raise InputError("not FiftyOne's temporal detections", path, form)

    def rows() -> Iterable[Tuple]:
        for video, entries in labels.items():
            for i, entry in enumerate(entries or ()):
                place = f"{video}, index {i}"
                try:
                    label, (start, end) = entry["label"], entry["timestamps"]
                    label = classes[label] if type(label) is int and classes else label
                    score = entry.get("confidence")
                except (AttributeError, IndexError, KeyError, TypeError, ValueError):
                    raise InputError("not a temporal detection in seconds", f"{path}, {place}", form) from None
                yield (place, video, label, start, end) + (() if score is None else (score,))

    return from_rows(rows(), path, labels, classes)


def _from_via(text: str, path: Path) -> Segments:
    def rows() -> Iterable[Tuple]:
        for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
            if not row or row[0].startswith("#"):
                continue
            place = f"line {number}"
            try:
                (file,), times, metadata = json.loads(row[1]), json.loads(row[3]), json.loads(row[5])
                start, end = times * 2 if len(times) == 1 else times  # one time alone is a point
                score = metadata.pop(VIA_SCORE, None)
                label = metadata.get(VIA_LABEL) or next(iter(metadata.values()), None)
                video = file[: -len(Path(file).suffix)] if Path(file).suffix.lower() in VIDEO_SUFFIXES else file
            except (AttributeError, IndexError, TypeError, ValueError):
                raise InputError("not a row of VIA 3", f"{path}, {place}", f"expected {VIA_HEAD}") from None
            yield (place, video, label, start, end) + (() if score is None else (score,))

    return from_rows(rows(), path)
