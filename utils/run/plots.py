"""Pictures: the timeline of one video, its ground truth above its best detections.

Figures are drawn on their own canvas: no window, no pyplot. matplotlib is imported where it is used: most runs draw
nothing.
"""

from __future__ import annotations

import colorsys
import warnings
from typing import TYPE_CHECKING, Optional, Tuple

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

    truth_s, truth_label, _ = (found.keep([]) if truth is None else truth).of(video)
    found_s, found_label, score = found.of(video)
    most = int(np.clip(2 * len(truth_s), 8, 40)) if most is None else most
    best, total = np.argsort(-score, kind="stable")[:most], len(score)
    found_s, found_label, score = found_s[best], found_label[best], score[best]
    length_s = float(max(*truth_s[:, 1], *found_s[:, 1], np.nan_to_num(duration_s), 0)) or 1.0
    truth_lane, found_lane = (_lanes(segment_s, gap_s=0.002 * length_s) for segment_s in (truth_s, found_s))
    num_truth, num_found = (lane.max(initial=0) + 1 for lane in (truth_lane, found_lane))
    base = 0 if truth is None else num_truth + 0.5  # an empty half lane between the groups
    rows = base + num_found

    present = np.unique(np.concatenate([truth_label, found_label]))
    names = [short(found.classes[c], 40) for c in present]
    columns = max(1, min(len(present), int(150 / (8 + max(map(len, names), default=0)))))
    height_in = 0.95 + LANE_IN * rows + 0.2 * -(-len(present) // columns)
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for (start, end), lane, label in zip(truth_s, truth_lane, truth_label):
        colour = class_colour(label)
        axes.barh(rows / 2, end - start, rows, start, color=colour, alpha=0.12, linewidth=0, zorder=0)  # to the axis
        axes.barh(lane + 0.5, end - start, 0.8, start, color=colour, edgecolor=colour)
    for (start, end), lane, label, number in zip(found_s, base + found_lane + 0.5, found_label, score):
        colour, opacity = class_colour(label), 0.15 + 0.85 * np.clip(number / max(score[0], 1e-12), 0, 1)
        axes.barh(lane, end - start, 0.8, start, color="white", linewidth=0)  # one must not shine through another
        axes.barh(lane, end - start, 0.8, start, color=(*colour, opacity), edgecolor=colour, linewidth=0.8)
        if end - start > 0.03 * length_s:  # wide enough for two digits
            paper = {"facecolor": "white", "alpha": 0.6, "linewidth": 0, "pad": 0.8}
            at = (start + (end - start) / 2, lane)
            axes.text(*at, f"{number:.2f}", ha="center", va="center", fontsize=7, bbox=paper)
    shown = f"detections\nbest {len(found_s)} of {total}" if total > len(found_s) else "detections"
    groups = [(truth_s, num_truth / 2, "ground truth", "no instance")]
    groups.append((found_s, base + num_found / 2, shown, "no detection"))
    groups = groups[truth is None :]
    for group, y, _, text in groups:
        if not len(group):
            axes.text(length_s / 2, y, text, ha="center", va="center", fontsize=9, color="gray", style="italic")
    axes.set(xlim=(0, length_s), ylim=(rows, 0), xlabel="seconds")
    axes.set_yticks([y for _, y, *_ in groups], [name for _, _, name, _ in groups])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(short(video, 100), fontsize=11)
    # a label that begins with _ would be left out
    handles = [Patch(color=class_colour(c), label=" " * name.startswith("_") + name) for c, name in zip(present, names)]
    if handles:
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


def _lanes(segments_s: np.ndarray, gap_s: float) -> np.ndarray:
    """The first lane [n] in which each segment overlaps none before it."""
    lane = np.zeros(len(segments_s), dtype=np.int64)
    for i, (start, end) in enumerate(segments_s):
        near = (segments_s[:i, 0] < end + gap_s) & (start < segments_s[:i, 1] + gap_s)
        lane[i] = min(set(range(MAX_LANES)) - set(lane[:i][near]), default=MAX_LANES - 1)
    return lane


def short(text: str, most: int) -> str:
    """A name as it is: no mathematics between dollar signs, one line, at most ``most`` characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")
