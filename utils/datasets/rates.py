"""Whether features have the rate that their profile states, and which rate would fit."""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Sequence

import numpy as np

from utils.datasets.profile import Profile
from utils.errors import InputError

COMMON_FPS = (25, 30, 24, 15, 10, 50, 60, 5)
COMMON_STRIDES = (16, 8, 4, 32, 64, 5, 1, 2)


class RateCheck(NamedTuple):
    """What ``check_rate`` found."""

    summary: str  # "duration / (T * stride / fps), which should be 1, is min …"
    off: List[str]  # videos off by more than 2 snippets and 5 %, the worst first, with T and what it should be
    problem: Optional[InputError]  # where most videos are off


def check_rate(
    videos: Sequence[str], num_snippets: np.ndarray, duration_s: np.ndarray, profile: Profile
) -> Optional[RateCheck]:
    """Durations against T * stride / fps. num_snippets: T, int [V]; duration_s: float [V], NaN where unknown.

    None where nothing can be compared: no duration is known, or features are rescaled. Raises InputError as
    ``Profile.rates``.
    """
    known = np.flatnonzero((np.asarray(duration_s) > 0) & np.isfinite(duration_s) & (np.asarray(num_snippets) > 0))
    if profile.rescaled or not len(known):
        return None
    videos = [videos[i] for i in known]
    snippets, seconds = (np.asarray(values, dtype=np.float64)[known] for values in (num_snippets, duration_s))
    expected = seconds * profile.rates(videos, snippets, seconds)
    ratio = expected / snippets
    factor = float(np.median(ratio))
    off, still_off = (np.abs(snippets * f - expected) > np.maximum(2 * f, 0.05 * expected) for f in (1, factor))
    summary = "duration / (T * stride / fps), which should be 1, is "
    summary += f"min {ratio.min():.3f}, median {factor:.3f}, max {ratio.max():.3f}"
    worst = [i for i in np.argsort(-np.abs(np.log(ratio)), kind="stable") if off[i]]
    names = [f"{videos[i]} (T {snippets[i]:g}, {expected[i]:.0f} by duration)" for i in worst]
    if off.mean() <= 0.5:
        return RateCheck(summary, names, None)
    if still_off.mean() <= 0.1:  # nearly all are off by one factor; long videos tell it best
        todo = fitting(profile, float(expected[~still_off].sum() / snippets[~still_off].sum()))
    elif len(set(snippets)) == 1:
        todo = f'{snippets[0]:g} rows for every video: if they span it, "rescaled": true in dataset.json'
    else:
        todo = "no one rate fits: are features and annotations of the same videos?"
    where = f"{len(worst):,} of {len(videos):,} videos are off, {names[0]}"
    return RateCheck(summary, names, InputError(f"features do not fit the rate: {summary}", where, todo))


def fitting(profile: Profile, factor: float) -> str:
    """Advice where the features have 1 / ``factor`` of the snippets that ``profile`` expects.

    A combination of usual frame rates and strides within 3 % is named; the profile's own numbers are tried first.
    """
    fps, stride = profile.feature_fps, profile.snippet_stride
    if isinstance(fps, dict):
        return f'"snippet_stride": {_round(stride * factor):.4g} in dataset.json would fit'
    rate, looks = fps / stride / factor, ""
    usual = [(f, s) for f in (fps, *COMMON_FPS) for s in (stride, *COMMON_STRIDES)]
    frames, step = min(usual, key=lambda pair: abs(pair[0] / pair[1] / rate - 1))
    if abs(frames / step / rate - 1) < 0.03:
        rate, looks = frames / step, f"; this looks like stride {step:g} at {frames:g} fps"
    pairs = f'"feature_fps": {_round(rate * stride):.4g} or "snippet_stride": {_round(fps / rate):.4g}'
    return f"{pairs} in dataset.json would fit{looks}"


def _round(value: float) -> float:
    return round(value) if abs(value - round(value)) < 0.02 * value else value
