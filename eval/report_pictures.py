"""Pictures of a report: curves over epochs, and timelines with what the network says of the proposals under them.

A picture becomes SVG inside the page, which takes the page's own colours, light or dark; PNG where that is smaller.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from eval.report_data import Judged, density
from utils.errors import printable
from utils.run.plots import class_colour, timeline
from utils.segments import Segments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_SVG = 350_000  # characters; a larger picture is a PNG where that is smaller
# of runs: told apart by people who see no red or green, and on light and dark paper (Okabe and Ito)
COLOURS = ("#0086d1", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8f8f8f", "#b8a800",
           "#8a63d2", "#a5651e", "#2fb5a5", "#e0529c")  # fmt: skip
MOMENTS = 500  # of a timeline
MOST_CLASSES = 3  # lanes of class scores
LANE_IN = 0.62
LEAST_WIDTH = 720  # px of a picture wider than this, whatever the screen: it scrolls


class Line(NamedTuple):
    """A curve: y over x."""

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: object = COLOURS[0]


def colour_of(index: int) -> str:
    """The colour of a run or a group of runs."""
    return COLOURS[index % len(COLOURS)]


# ---- figures


def curves(title: str, lines: Sequence[Line], legend: bool = False, mark: Optional[float] = None) -> Figure:
    """One small panel of curves over epochs; ``mark``: an epoch to point out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 2.3 + 0.5 * legend), layout="constrained")
    axes = figure.subplots()
    for line in lines:
        few = {"marker": "o", "markersize": 2.5} if len(line.x) <= 30 else {}
        axes.plot(line.x, line.y, color=line.colour, linewidth=1.3, label=_plain(line.label), **few)
    if mark is not None:
        axes.axvline(mark, color="#8f8f8f", linewidth=0.8, linestyle=":")
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.set_xlabel("epoch", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#8f8f8f", alpha=0.25, linewidth=0.6)
    if legend:
        figure.legend(
            loc="outside lower center",
            ncols=len(lines) if len(lines) < 5 else 4,
            fontsize=7.5,
            frameon=False,
            handlelength=1.2,
        )
    return figure


def thresholds(tious: Sequence[float]) -> List[Tuple[float, ...]]:
    """A colour for each tIoU, from blue to yellow, none so dark or so light that paper of either kind hides it."""
    from matplotlib import colormaps

    return [tuple(c) for c in colormaps["viridis"](np.linspace(0.3, 0.88, len(tious)))]


def story(
    video: str, truth: Optional[Segments], found: Segments, duration_s: float, judged: Optional[Judged]
) -> Figure:
    """A timeline (``utils.run.plots.timeline``), and under it attention, s_pc and class scores of the proposals.

    Each lane is a density over time in [0, 1]: filled, the mean over the proposals that cover a moment; the line, their
    maximum (``density`` says why both). Classes: those of the instances, then those of the best detections, up to
    MOST_CLASSES. Instances are shaded through all lanes.
    """
    figure = timeline(video, truth, found, duration_s)
    (top,) = figure.axes
    top.set_title("")  # the page names it
    if judged is None:
        return figure
    truth_s, truth_label, _ = (found.keep([]) if truth is None else truth).of(video)
    _, found_label, found_score = found.of(video)
    ranked = [*truth_label.tolist(), *found_label[np.argsort(-found_score, kind="stable")].tolist()]
    classes = list(dict.fromkeys(ranked))[:MOST_CLASSES]
    lanes = [("attention", judged.attention, "#7a7a7a")]
    lanes.append(("s_pc" + "\n(left out)" * judged.s_pc_left_out, judged.s_pc, "#9a7fd1"))
    lanes += [
        (f"class score\n{_plain(found.classes[c], 24)}", judged.class_score[:, c], class_colour(c)) for c in classes
    ]
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + LANE_IN * len(lanes))
    grid = figure.add_gridspec(1 + len(lanes), 1, height_ratios=[height - 0.7, *[LANE_IN] * len(lanes)])
    top.set_subplotspec(grid[0])
    top.tick_params(labelbottom=False)
    top.set_xlabel("")
    at_s = np.linspace(*top.get_xlim(), MOMENTS)
    for i, (name, value, colour) in enumerate(lanes):
        axes = figure.add_subplot(grid[1 + i], sharex=top)
        average, most = density(judged.segment_s, value, at_s)
        for (start, end), label in zip(truth_s, truth_label):
            axes.axvspan(start, end, color=class_colour(label), alpha=0.12, linewidth=0)
        axes.fill_between(at_s, average, color=colour, alpha=0.45, linewidth=0)
        axes.plot(at_s, most, color=colour, linewidth=1)
        axes.set(ylim=(0, 1.03), yticks=(0, 1))
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axes.tick_params(axis="y", labelsize=7)
        axes.tick_params(axis="x", labelbottom=i == len(lanes) - 1)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds")
    return figure


def _plain(text: str, most: int = 40) -> str:
    """A name for a picture: one line, at most ``most`` characters, no mathematics between dollar signs."""
    text = printable(text)
    text = (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # a legend leaves out labels that begin with _


# ---- into the page


def embed(figure: Figure, name: str, alt: str) -> str:
    """The picture as HTML: SVG with the page's colours, or PNG on white where the SVG is large. name: its own in the
    page, since ids must not meet."""
    from matplotlib import rc_context
    from matplotlib.colors import ListedColormap

    for axes in (axes for axes in figure.axes if axes.images):  # cells: from paper to blue, whatever the paper
        axes.images[0].set_cmap(ListedColormap([(0.17, 0.47, 0.75, a) for a in np.linspace(0.07, 1, 256)]))
        for text in axes.texts:
            text.set_color("#fefefe" if text.get_color() == "white" else "#000000")
    out, most = io.StringIO(), 96 * figure.get_size_inches()[0]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's own fonts write the text
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=none)
    text = _lean(out.getvalue())
    said = escape(printable(alt))
    size = f"width: {most:.0f}px; min-width: {min(0.7 * most, LEAST_WIDTH):.0f}px"
    if len(text) > LARGEST_SVG:
        binary = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure.savefig(binary, format="png", dpi=110)
        code = base64.b64encode(binary.getvalue()).decode()
        if len(code) < len(text):
            return f'<img class="paper" alt="{said}" style="{size}" src="data:image/png;base64,{code}">'
    return text.replace("<svg ", f'<svg role="img" aria-label="{said}" style="{size}" ', 1)


def _lean(text: str) -> str:
    """matplotlib's SVG as a part of a page: black and white are the page's own ink and paper, sizes are the page's
    business, coordinates are rounded to 1/100 pt, and what nothing refers to is gone."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| version="[^"]*"', "", text[:400]) + text[400:]
    text = re.sub(
        r'(<svg[^>]*?) height="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1), count=1
    )
    text = text.replace(" xlink:href=", " href=")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)

    def page_colours(match: re.Match) -> str:
        style = match[0].replace("#ffffff", "var(--paper)").replace("#000000", "currentColor")
        return style.replace("DejaVu Sans", "system-ui").replace("stroke-linecap: butt; ", "")

    text = re.sub(r'style="[^"]*"', page_colours, text)
    text = re.sub(r' (?:d|x|y|transform)="(?!scale|matrix)[^"]*"', _rounded, text)
    return re.sub(r"\n\s*", "\n", text).strip()


def _rounded(match: re.Match) -> str:
    return re.sub(
        r"\s*\n\s*", " ", re.sub(r"\d+\.\d+", lambda n: f"{float(n[0]):.2f}".rstrip("0").rstrip("."), match[0])
    )
