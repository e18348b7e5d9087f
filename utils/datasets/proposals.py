"""Candidate proposals: reading, checking and counting them. Only their time stamps are used, never label or score."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from utils.datasets.profile import WHERE_FROM
from utils.errors import InputError, some
from utils.files import load_json
from utils.segments import Segments, check_units, spelled, tiou, to_snippets

FORM = '{"results": {VIDEO: [{"segment": [start_s, end_s]}]}}'
SLACK_S = 0.01  # a proposal may stick out of its video by so much: both are rounded, by different tools


class Proposals(NamedTuple):
    """What a proposals file holds for some videos."""

    segments_s: Dict[str, np.ndarray]  # float64 [M, 2] seconds of each video that has any
    notes: List[str]  # what was left out or changed
    problems: List[InputError]  # what is wrong, a line a video and kind
    beyond: float = 0.0  # median over the videos of the last end / the length of the video


def read_document(path: Path) -> Dict[str, Any]:
    """A proposals file with its "results", unchecked. Raises InputError for a file of another form."""
    document = load_json(path, todo=WHERE_FROM, allow_nan=True)
    if not isinstance(document, dict) or not isinstance(document.get("results"), dict):
        raise InputError("no 'results' of videos", path, f"expected {FORM}")
    return document


def read_results(path: Path) -> Dict[str, Any]:
    """What a proposals file lists for each video, unchecked. Raises InputError for a file of another form."""
    return read_document(path)["results"]


def load_proposals(path: Path, length_s: Mapping[str, float], fix: bool = False) -> Proposals:
    """Read the proposals of some videos, in seconds.

    length_s: length in seconds of each known video (NaN: unknown); videos of the file beyond these are counted and
    ignored. A proposal that is not two finite numbers with 0 <= start < end, or that ends beyond its video (by more
    than SLACK_S), is a problem that names file, video and index; with ``fix`` it is clipped or, where nothing is left,
    dropped. Raises InputError for a file of another form.
    """
    document = read_document(path)
    results, version = document["results"], str(document.get("version", ""))
    found: Dict[str, np.ndarray] = {}
    problems: List[InputError] = []
    every, ratios = [np.zeros((0, 3))], []
    dropped = clipped = 0
    names = spelled(results, length_s, path)
    unknown = [listed for listed, video in names.items() if video not in length_s]
    for listed, video in names.items():
        if video not in length_s:
            continue
        where, end_s = f"{path}, {listed}", length_s[video]
        segment_s = _pairs(results[listed])
        if segment_s is None:
            problems.append(InputError("not a list of proposals", where, f"expected {FORM}"))
            continue
        every.append(np.c_[segment_s, np.full(len(segment_s), end_s)])
        ends = segment_s[np.isfinite(segment_s).all(axis=1), 1]
        ratios += [ends.max() / end_s] if len(ends) and end_s > 0 else []
        end_s = end_s if np.isfinite(end_s) else np.inf
        start, end = segment_s.T
        inside = np.isfinite(segment_s).all(1) & (start >= 0) & (end > start) & (end <= end_s + SLACK_S)
        if fix:
            kept = np.clip(segment_s[np.isfinite(segment_s).all(1)], 0, end_s)
            kept = kept[kept[:, 1] > kept[:, 0]]
            dropped += len(segment_s) - len(kept)
            clipped += len(kept) - int(inside.sum())
            segment_s = kept
        elif not inside.all():
            bad = np.flatnonzero(~inside)
            of = "its video" if np.isinf(end_s) else f"a video of {end_s:.3f} s"
            what = f"proposal {segment_s[bad[0]].tolist()} is no segment of {of}"
            where = f"{where}, index {some([str(i) for i in bad])}"
            problems.append(InputError(what, where, "--fix_proposals clips what sticks out and drops the rest"))
            segment_s = segment_s[inside]
        if len(segment_s):
            found[video] = segment_s
    notes = (
        (len(unknown), f"videos with proposals are not in the annotations and are ignored: {some(unknown)}"),
        (dropped, "proposals were dropped (--fix_proposals)"),
        (clipped, "proposals were clipped to their video (--fix_proposals)"),
    )
    table = np.concatenate(every)
    try:
        check_units(table[:, :2], table[:, 2], "proposals", path)
    except InputError as error:  # says more than what is wrong with single ones
        problems = [error]
    beyond = float(np.median(ratios)) if ratios else 0.0
    lines = [f"{path}: {count} {text}" for count, text in notes if count]
    lines += [f"{path}: made by {version}"] if "SIMULATED" in version else []
    return Proposals(found, lines, problems, beyond)


def _pairs(entries: object) -> Optional[np.ndarray]:
    """float64 [M, 2] seconds of the entries of one video, NaN for what is no pair of numbers; None for no list."""
    if not isinstance(entries, list):
        return None
    seconds = np.full((len(entries), 2), np.nan)
    for k, entry in enumerate(entries):
        pair = entry.get("segment") if isinstance(entry, dict) else None
        if isinstance(pair, list) and len(pair) == 2 and {type(pair[0]), type(pair[1])} <= {int, float}:
            with suppress(OverflowError):  # of a whole number beyond any float
                seconds[k] = pair
    return seconds


def windows(num_snippets: int) -> np.ndarray:
    """Multi-scale windows [M, 2] in snippets of a video of T = ``num_snippets``: lengths 2, 4, 8 … up to T, each half a
    length after the one before, and the whole video."""
    starts = [(np.arange(0, num_snippets - n + 1, n / 2), n) for n in 2 ** np.arange(1, 31) if n < num_snippets]
    return np.concatenate([*(np.stack([s, s + n], axis=1) for s, n in starts), [[0.0, num_snippets]]])


def duplicates(proposals: Sequence[np.ndarray]) -> int:
    """How many proposals repeat an earlier one of their video."""
    return sum(len(p) - len(np.unique(p, axis=0)) for p in proposals)


def recall(proposals_s: Mapping[str, np.ndarray], truth: Segments, rate: Optional[float], tious) -> np.ndarray:
    """Share of instances that some proposal of their video meets with tIoU >= each threshold, classes ignored.

    rate: None compares exact seconds; snippets per second compares in snippets, instances rounded to whole ones.
    """
    best = np.zeros(len(truth.video))
    for index, video in enumerate(truth.videos):
        mine = np.flatnonzero(truth.video == index)
        if video in proposals_s and len(mine):
            segments, instances = proposals_s[video], truth.segment_s[mine]
            if rate is not None:
                segments, instances = to_snippets(segments, rate), np.round(instances * rate)
            best[mine] = tiou(segments, instances).max(axis=0)
    return np.asarray([(best >= t).mean() if len(best) else np.nan for t in tious])
