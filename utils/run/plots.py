"""Pictures: the timeline of one video, its ground truth above its best detections.

Figures are drawn on their own canvas: no window, no pyplot. matplotlib is imported where it is used, since most runs
draw nothing.
"""

from __future__ import annotations

import colorsys
import warnings
from typing import TYPE_CHECKING, List, Optional, Tuple

import numpy as np

from utils.files import atomic
from utils.segments import Segments

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

WIDTH_IN, LANE_IN, DPI = 11.0, 0.26, 100  # width of a picture and height of a lane in inches, dots an inch
MAX_LANES = 8  # of either group; what fits in none of them is drawn over the last


def class_colour(index: int) -> Tuple[float, float, float]:
    """Red, green, blue in [0, 1] of a class; depends on its index alone, so it is the same in every picture."""
    from matplotlib import colormaps

    if index < 20:  # ten hues that differ, dark then light
        return colormaps["tab20"](2 * index % 20 + index // 10)[:3]
    # the golden ratio spreads any number of hues; neighbours in the list also differ in brightness
    return colorsys.hsv_to_rgb(index * 0.618034 % 1, (0.9, 0.55, 0.75)[index % 3], (0.85, 0.9, 0.6)[index % 3])


def timeline(
    video: str, truth: Optional[Segments], found: Segments, duration_s: float, most: Optional[int] = None
) -> Figure:
    """Ground truth of a video above its best detections ``found``, on an axis of seconds.

    truth and found share their list of classes; without truth there are detections alone. duration_s may be NaN. most:
    how many detections to draw, the best first; default: twice the instances, at least 8, at most 40. Opacity is the
    score over the best score; the score itself is printed where there is room. The legend names the classes that occur.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    classes, (truth_s, truth_label, _) = found.classes, (truth or found.keep([])).of(video)
    found_s, found_label, score = found.of(video)
    most = int(np.clip(2 * len(truth_s), 8, 40)) if most is None else most
    best, total = np.argsort(-score, kind="stable")[:most], len(score)
    found_s, found_label, score = found_s[best], found_label[best], score[best]
    length_s = float(max([s[:, 1].max() for s in (truth_s, found_s) if len(s)] + [np.nan_to_num(duration_s)])) or 1.0
    truth_lane, found_lane = (_lanes(s, gap_s=0.002 * length_s) for s in (truth_s, found_s))
    num_truth, num_found = (int(lane.max(initial=0)) + 1 for lane in (truth_lane, found_lane))
    base = num_truth + 0.5 if truth else 0  # an empty half lane between the groups
    rows = base + num_found

    present = np.unique(np.concatenate([truth_label, found_label]))
    names = [_plain(classes[c], 40) for c in present]
    columns = max(1, min(len(present), int(150 / (8 + max(map(len, names), default=0)))))
    height_in = 0.95 + LANE_IN * rows + 0.2 * -(-len(present) // columns)
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    if len(truth_s):
        start, span, colour = truth_s[:, 0], truth_s[:, 1] - truth_s[:, 0], _colours(truth_label)
        axes.barh([rows / 2] * len(span), span, rows, start, color=colour, alpha=0.12, linewidth=0)  # down to the axis
        axes.barh(truth_lane + 0.5, span, 0.8, start, color=colour, edgecolor=colour)
    if len(found_s):
        start, span, middle = found_s[:, 0], found_s[:, 1] - found_s[:, 0], base + found_lane + 0.5
        colour, opacity = _colours(found_label), 0.15 + 0.85 * np.clip(score / max(score.max(), 1e-12), 0, 1)
        fill = np.c_[colour, opacity]
        axes.barh(middle, span, 0.8, start, color="white", linewidth=0)  # one bar must not shine through another
        axes.barh(middle, span, 0.8, start, color=fill, edgecolor=colour, linewidth=0.8)
        dark = 1 - opacity * (1 - colour @ (0.3, 0.6, 0.1)) < 0.5
        for i in np.flatnonzero(span > 0.03 * length_s):  # wide enough for two digits
            ink, at = "white" if dark[i] else "black", (start[i] + span[i] / 2, middle[i])
            axes.text(*at, f"{score[i]:.2f}", ha="center", va="center", fontsize=7, color=ink)
    shown = f"detections\nbest {len(found_s)} of {total}" if total > len(found_s) else "detections"
    groups = [(truth_s, num_truth / 2, "ground truth", "no instance")] if truth else []
    groups.append((found_s, base + num_found / 2, shown, "no detection"))
    for group, y, _, text in groups:
        if not len(group):
            axes.text(length_s / 2, y, text, ha="center", va="center", fontsize=9, color="gray", style="italic")

    axes.set(xlim=(0, length_s), ylim=(rows, 0), xlabel="seconds")
    axes.set_yticks([y for _, y, *_ in groups], [name for _, _, name, _ in groups])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(_plain(video, 100), fontsize=11)
    if names:
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


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all."""
    from matplotlib.image import imsave

    with atomic(path) as scratch:
        imsave(scratch, figure_to_array(figure), format="png")


def _colours(label: np.ndarray) -> np.ndarray:
    return np.array([class_colour(int(c)) for c in label])


def _lanes(segments_s: np.ndarray, gap_s: float) -> np.ndarray:
    """The first lane [n] in which each segment overlaps none before it."""
    lanes: List[List] = [[] for _ in range(MAX_LANES)]
    lane = np.zeros(len(segments_s), dtype=np.int64)
    for i, (start, end) in enumerate(segments_s):
        free = (all(e + gap_s <= start or s >= end + gap_s for s, e in taken) for taken in lanes)
        lane[i] = next((k for k, is_free in enumerate(free) if is_free), MAX_LANES - 1)
        lanes[lane[i]].append((start, end))
    return lane


def _plain(text: str, most: int) -> str:
    """A name as it is: no mathematics between dollar signs, one line, at most ``most`` characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")
