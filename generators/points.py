"""Points, one labelled moment an instance: from a file, or drawn inside the training instances (then SIMULATED)."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np
import pandas as pd

from generators.lac import point_snippets
from utils.errors import InputError, some
from utils.files import load_json
from utils.run.report import log
from utils.seeds import stream
from utils.segments import Segments, spelled

FORMS = (("video", "label", "time"), ("video_id", "class", "point"))  # seconds; LAC's own, in frames of the video
KINDS = ("gaussian", "uniform")
GAUSSIAN = (0.474, 0.035)  # where in its instance a point of LAC's "gaussian" file lies, mean and standard deviation


def read_points(
    path: Path, videos: Sequence[str], lengths: np.ndarray, rate: np.ndarray, classes: Sequence[str]
) -> List[np.ndarray]:
    """The points of V videos as int64 [n, 2] = snippet, class; n is 0 where the file has none.

    path: CSV with columns video,label,time (seconds), or LAC's (video_id,class,point in frames of the video, whose rate
    is in fps_dict.json beside it); no other column is read. lengths [V]: T. rate [V]: snippets per second. Points of
    other videos are counted and ignored. InputError names file and line.
    """
    table, time, fps = _table(path)
    meant, number = spelled(dict.fromkeys(table["video"]), set(videos), path), {v: i for i, v in enumerate(videos)}
    index, found = {name: i for i, name in enumerate(classes)}, [[] for _ in videos]
    for line, (name, label, at, per_second) in enumerate(zip(table["video"], table["label"], time, fps), 2):
        video, where = number.get(meant[name]), f"{path}, line {line}, {name}"
        if video is None:
            continue
        if label not in index:
            raise InputError(f"a point of the unknown class {label!r}", where, f"known: {some(classes, 30)}")
        snippet, length = int(point_snippets(at, rate[video], 1, per_second)), int(lengths[video])
        if snippet == length:  # the last, partial snippet of a video has no row
            snippet -= 1
        if at < 0 or snippet >= length:
            what = f"a point at {at / per_second:.3f} s of a video of {length / rate[video]:.3f} s"
            raise InputError(what, where, "check its unit and the frame rate of the video")
        found[video].append((snippet, index[label]))
    others = sorted(name for name in meant if meant[name] not in number)
    if others:
        log(f"points of {len(others)} videos are ignored, which are no training videos with features: {some(others)}")
    if not any(found):
        raise InputError("no point of a training video", path, "check its video names")
    return [np.asarray(points, np.int64).reshape(-1, 2) for points in found]


def _table(path: Path) -> Tuple[Dict[str, List[str]], np.ndarray, np.ndarray]:
    """Columns "video" and "label" of a file of points, the time of each, finite, and its units a second."""
    try:
        head = pd.read_csv(path, nrows=0).columns
        form = next((form for form in FORMS if set(form) <= set(head)), None)
        if form is None:
            todo = f"a file of points has the columns {','.join(FORMS[0])} (seconds), or LAC's {','.join(FORMS[1])}"
            raise InputError(f"columns {some(list(map(str, head)))}", path, todo)
        table = pd.read_csv(path, usecols=list(form), dtype=str, keep_default_na=False)[list(form)]
    except ValueError as error:  # pandas' own errors and those of decoding are such
        raise InputError(f"not a CSV file that can be read: {error}", path, "write it again") from None
    video, label, text = (table[column].str.strip().tolist() for column in form)
    time = pd.to_numeric(pd.Series(text, dtype=object), errors="coerce").to_numpy(np.float64)
    rates: List[float] = [1.0] * len(time)
    if form == FORMS[1]:
        beside = path.parent / "fps_dict.json"
        fps = load_json(beside, todo="points in frames need it: {VIDEO: frames a second}")
        rates = [fps.get(v) if isinstance(fps, dict) else None for v in video]
        bad = next((v for v, r in zip(video, rates) if type(r) not in (int, float) or r <= 0), None)
        if bad is not None:
            raise InputError(f"no frame rate of {bad}", beside, "it holds {VIDEO: frames a second}")
    wrong = np.flatnonzero(~np.isfinite(time))
    if len(wrong):
        what = f"the time {text[wrong[0]]!r} is no number"
        raise InputError(what, f"{path}, line {wrong[0] + 2}", "give one time a point")
    return {"video": video, "label": label}, time, np.asarray(rates, np.float64)


def simulate_points(
    instances: Segments, videos: Sequence[str], lengths: np.ndarray, rate: np.ndarray, kind: str, seed: int
) -> List[np.ndarray]:
    """One point in each instance, int64 [n, 2] = snippet, class of each video. It reads times: results are SIMULATED.

    kind: "gaussian" (near the middle, as LAC's file has them) or "uniform"; lengths and rate as for ``read_points``.
    """
    found = []
    for v, video in enumerate(videos):
        segment_s, label, _ = instances.of(video)
        rng = stream(seed, "simulated points", v)
        part = rng.normal(*GAUSSIAN, len(label)).clip(0, 1) if kind == "gaussian" else rng.random(len(label))
        at = segment_s[:, 0] + part * (segment_s[:, 1] - segment_s[:, 0])
        found.append(np.stack([point_snippets(at, rate[v], 1).clip(0, lengths[v] - 1), label], axis=1))
    return found


def labels_of_points(
    points: Sequence[np.ndarray], labels: np.ndarray, videos: Sequence[str], classes: Sequence[str]
) -> np.ndarray:
    """float32 [V, C]: the classes of a video's points, as LAC takes them; its own labels where it has no point."""
    given = np.zeros_like(labels)
    for v, of_video in enumerate(points):
        given[v, of_video[:, 1]] = 1
    pointed = given.any(axis=1)
    differ = np.flatnonzero(pointed & (given != labels).any(axis=1))
    if len(differ):
        texts = [f"{videos[v]} ({', '.join(classes[c] for c in np.flatnonzero(given[v]))})" for v in differ]
        log(f"the points of {len(differ)} videos name other classes than their labels; the points count: {some(texts)}")
    if not pointed.all():
        without = [videos[v] for v in np.flatnonzero(~pointed)]
        log(f"{len(without)} training videos have no point and teach their labels alone: {some(without)}")
    return np.where(pointed[:, None], given, labels)
