"""Pictures: the timeline of one video, its ground truth against its best detections.

Figures are drawn on their own canvas (Agg): no window, no pyplot, no state that outlives them. matplotlib is imported
where it is used, since most runs draw nothing.
"""

from __future__ import annotations

import colorsys
import warnings
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN, LANE_IN, DPI = 11.0, 0.26, 100  # width of a picture and height of a lane in inches, dots an inch
MAX_LANES = 8  # of either group; what fits in none of them is drawn over the last
PALETTE = (  # ten hues that differ, dark then light: the colour map tab20 of matplotlib
    "#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c564b #e377c2 #7f7f7f #bcbd22 #17becf "
    "#aec7e8 #ffbb78 #98df8a #ff9896 #c5b0d5 #c49c94 #f7b6d2 #c7c7c7 #dbdb8d #9edae5"
).split()


def class_colour(index: int) -> Tuple[float, float, float]:
    """Red, green, blue in [0, 1] of a class; depends on its index alone, so it is the same in every picture."""
    if index < len(PALETTE):
        red, green, blue = (int(PALETTE[index][i : i + 2], 16) / 255 for i in (1, 3, 5))
        return red, green, blue
    # the golden ratio spreads any number of hues; neighbours in the list also differ in brightness
    return colorsys.hsv_to_rgb(index * 0.618034 % 1, (0.9, 0.55, 0.75)[index % 3], (0.85, 0.9, 0.6)[index % 3])


def timeline(
    video: str,
    classes: Sequence[str],
    truth: Tuple[np.ndarray, np.ndarray],
    detections: Tuple[np.ndarray, np.ndarray, np.ndarray],
    duration_s: float,
    most: Optional[int] = None,
) -> Figure:
    """Ground truth of a video above its best detections, on an axis of seconds.

    truth: segments [n, 2] in seconds and class indices [n]; detections: the same [m, 2], [m] and scores [m] in any
    order. duration_s may be NaN. most: how many detections to draw, the best first; default: twice the instances, at
    least 8, at most 40. Opacity is the score over the best score; the score itself is printed where there is room. The
    legend names the classes that occur. Returns a matplotlib Figure. Raises ValueError for shapes that disagree.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    truth_s, truth_label = _checked("truth", *truth)
    found_s, found_label, score = _checked("detections", *detections)
    if most is None:
        most = int(np.clip(2 * len(truth_s), 8, 40))
    best = np.argsort(-score, kind="stable")[:most]
    total, found_s, found_label, score = len(score), found_s[best], found_label[best], score[best]
    ends = np.concatenate([truth_s[:, 1], found_s[:, 1], [duration_s if np.isfinite(duration_s) else 0.0]])
    length_s = float(ends.max()) or 1.0
    truth_lane, found_lane = (_lanes(s, gap_s=0.002 * length_s) for s in (truth_s, found_s))
    num_truth, num_found = (int(lane.max(initial=0)) + 1 for lane in (truth_lane, found_lane))
    base = num_truth + 0.5  # an empty half lane between the groups
    rows = base + num_found

    present = np.unique(np.concatenate([truth_label, found_label]))
    columns = max(1, min(len(present), int(150 / (8 + max([len(classes[c]) for c in present], default=0)))))
    legend_rows = -(-len(present) // columns)
    height_in = 0.95 + LANE_IN * rows + 0.2 * legend_rows
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    truth_colour, found_colour = (
        np.array([class_colour(int(c)) for c in label]).reshape(-1, 3) for label in (truth_label, found_label)
    )
    span = truth_s[:, 1] - truth_s[:, 0]
    if len(truth_s):  # a shade below each instance, to compare the boundaries with
        axes.barh([rows / 2] * len(span), span, rows, truth_s[:, 0], color=truth_colour, alpha=0.12, linewidth=0)
        axes.barh(truth_lane + 0.5, span, 0.8, truth_s[:, 0], color=truth_colour, edgecolor=truth_colour)
    if len(found_s):
        opacity = 0.15 + 0.85 * np.clip(score / max(score.max(), 1e-12), 0, 1)
        middle, span = base + found_lane + 0.5, found_s[:, 1] - found_s[:, 0]
        fill = np.concatenate([found_colour, opacity[:, None]], axis=1)
        axes.barh(middle, span, 0.8, found_s[:, 0], color="white", linewidth=0)
        axes.barh(middle, span, 0.8, found_s[:, 0], color=fill, edgecolor=found_colour, linewidth=0.8)
        dark = 1 - opacity * (1 - found_colour @ (0.3, 0.6, 0.1)) < 0.5
        for (start, end), y, value, ink in zip(found_s, middle, score, np.where(dark, "white", "black")):
            if end - start > 0.03 * length_s:  # wide enough for two digits
                axes.text((start + end) / 2, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    for there, y, what in ((truth_s, num_truth / 2, "no instance"), (found_s, base + num_found / 2, "no detection")):
        if not len(there):
            axes.text(length_s / 2, y, what, ha="center", va="center", fontsize=9, color="gray", style="italic")

    axes.set_xlim(0, length_s)
    axes.set_ylim(rows, 0)
    axes.set_xlabel("seconds")
    shown = f"detections\nbest {len(found_s)} of {total}" if total > len(found_s) else "detections"
    axes.set_yticks([num_truth / 2, base + num_found / 2], ["ground truth", shown])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(_plain(video, 100), fontsize=11)
    if len(present):
        names = [_plain(classes[c], 40) for c in present]
        names = [" " * name.startswith("_") + name for name in names]  # a label that begins with _ would be left out
        handles = [Patch(color=class_colour(int(c)), label=name) for c, name in zip(present, names)]
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def figure_to_array(figure: Figure) -> np.ndarray:
    """The drawn figure as uint8 [height, width, 3], for TensorBoard."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script the font lacks: boxes will do
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _checked(what: str, segments_s: np.ndarray, *columns: np.ndarray) -> List[np.ndarray]:
    segments_s = np.asarray(segments_s, dtype=np.float64)
    segments_s = segments_s.reshape(0, 2) if segments_s.size == 0 else segments_s
    if segments_s.ndim != 2 or segments_s.shape[1] != 2 or any(np.shape(c) != (len(segments_s),) for c in columns):
        raise ValueError(f"{what}: shapes {[segments_s.shape, *map(np.shape, columns)]}, not [n, 2], [n], …")
    label, *score = (np.asarray(c) for c in columns)
    return [segments_s, label.astype(np.int64), *(s.astype(np.float64) for s in score)]


def _lanes(segments_s: np.ndarray, gap_s: float) -> np.ndarray:
    """The first lane [n] in which each segment overlaps none before it."""
    lane, taken = np.zeros(len(segments_s), dtype=np.int64), [segments_s[:0]]
    for i, (start, end) in enumerate(segments_s):
        overlaps = [((t[:, 0] < end + gap_s) & (t[:, 1] > start - gap_s)).any() for t in taken]
        lane[i] = min(overlaps.index(False) if False in overlaps else len(taken), MAX_LANES - 1)
        if lane[i] == len(taken):
            taken.append(segments_s[:0])
        taken[lane[i]] = np.concatenate([taken[lane[i]], segments_s[i : i + 1]])
    return lane


def _plain(text: str, most: int) -> str:
    """A name as it is: no mathematics between dollar signs, one line, not longer than ``most``."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")
