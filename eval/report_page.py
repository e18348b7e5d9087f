"""The page of a report: text, tables, folded sections and pictures as one HTML file that needs nothing else.

A picture becomes SVG inside the page, which takes the page's own colours, light or dark; PNG where that is smaller.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING, Collection, Iterable, Mapping, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from eval.report_data import Judged, density
from utils.errors import printable
from utils.run.plots import class_colour, short, timeline
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
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --page: #f6f6f4; --ink: #1d1f21; --soft: #63686e; --line: #dddcd8;
  --bar: #b9dcf2; --up: #b5e0cf; --down: #f3cdb8; --link: #0a66a8; --warn: #fff1cf; --warn-ink: #6b4a00;
  --mark: #eef5fa; }
@media (prefers-color-scheme: dark) { :root { --paper: #1c1e21; --page: #131416; --ink: #e4e4e0; --soft: #9ba1a8;
  --line: #34373b; --bar: #1d4a66; --up: #1c4f40; --down: #60361f; --link: #6cb8ec; --warn: #3a2e10;
  --warn-ink: #f2d48a; --mark: #222c33; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .5rem 0 .25rem; overflow-wrap: anywhere; }
h2 { display: inline; font-size: 1.2rem; margin: 0; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); font-size: .88rem; }
.simulated { background: var(--warn); color: var(--warn-ink); border-radius: 4px; padding: .1em .45em; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1rem 0 1.2rem; font-size: .92rem; }
nav a { color: var(--link); text-decoration: none; }
section, .notes { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; margin: 0 0 1rem; }
.notes { padding: .5rem 1.1rem .7rem; }
.notes ul { margin: .3rem 0; padding-left: 1.2rem; font-size: .92rem; overflow-wrap: anywhere; }
section > details > summary { padding: .8rem 1.1rem; }
section > details > div { padding: 0 1.1rem 1.1rem; }
summary { cursor: pointer; }
details details { margin: .8rem 0; }
details details > summary { color: var(--link); font-size: .95rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.tiles div { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: .6rem .9rem; }
.tiles b { display: block; font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.tiles span { color: var(--soft); font-size: .82rem; }
.scroll { overflow: auto; max-height: 48rem; border: 1px solid var(--line); border-radius: 6px; margin: .7rem 0; }
table { border-collapse: separate; border-spacing: 0; font-size: .84rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
th, td { padding: .32rem .5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child > * { border-bottom: 0; }
thead th { position: sticky; top: 0; z-index: 1; background: var(--paper); font-weight: 600; white-space: normal;
  vertical-align: bottom; min-width: 3.6rem; line-height: 1.25; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--paper); text-align: left;
  font-weight: 500; }
thead th:first-child { z-index: 2; }
tbody th { min-width: 7rem; max-width: 18rem; white-space: normal; overflow-wrap: break-word; }
.few { width: fit-content; max-width: 100%; }
.few table { min-width: min(100%, 34rem); }
.scroll.text { max-height: none; }
.words td { text-align: left; white-space: normal; min-width: 11rem; max-width: 28rem; overflow-wrap: anywhere; }
.words thead th { text-align: left; }
.words tbody th { white-space: nowrap; }
.bar { display: block; min-width: 6.5rem; padding: 0 .3rem; border-radius: 3px;
  background: linear-gradient(var(--bar) 0 0) left / calc(1% * var(--n)) 100% no-repeat; }
.change i { display: inline-block; width: 7.5rem; height: 1em; margin-left: .7rem; vertical-align: -.1em;
  border-radius: 3px;  background-repeat: no-repeat; background-size: calc(1% * var(--n)) 100%; }
.change .up { background-image: linear-gradient(var(--up) 0 0);
  background-position-x: calc(50% + 50% * var(--n) / (100 - var(--n))); }
.change .down { background-image: linear-gradient(var(--down) 0 0);
  background-position-x: calc(50% - 50% * var(--n) / (100 - var(--n))); }
.differs > * { background: var(--mark); }
small { color: var(--soft); font-size: .85em; }
.published > * { color: var(--soft); font-style: italic; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); gap: .9rem; }
figure { margin: .8rem 0; }
figure svg, figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; fill: currentColor; }
figure svg text { font-family: inherit !important; }
.panels figure { margin: 0; }
.panels svg { min-width: 0 !important; width: 100% !important; max-width: 26rem; }
.wide { overflow-x: auto; }
.side { display: flex; flex-wrap: wrap; justify-content: space-evenly; align-items: center; gap: 0 1rem; }
.side figure { max-width: 100%; }
img.paper { background: #fff; border-radius: 6px; padding: 4px; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; background: var(--page); border-radius: 6px;
  padding: .8rem; }
.chips { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .9rem; margin: .6rem 0; }
.chips i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .4rem; }
@media (max-width: 560px) { main { padding: .8rem .6rem 3rem; } h1 { font-size: 1.35rem; }
  section > details > summary { padding: .7rem .8rem; } section > details > div { padding: 0 .8rem .8rem; }
  th, td { padding: .3rem .45rem; } tbody th { max-width: 9rem; } }
@media print { body, section { background: #fff; } .scroll { max-height: none; overflow: visible; } }
"""


class Raw(str):
    """HTML that is written as it is; any other text is escaped."""


def text(value: object) -> str:
    """A value as HTML text: nothing in it can be read as markup, or by a terminal."""
    return value if isinstance(value, Raw) else escape(printable(str(value)))


def tag(name: str, content: object, **attributes: str) -> Raw:
    """An element; its content is escaped unless it is Raw. ``class_`` is the attribute class."""
    said = "".join(f' {key.rstrip("_")}="{text(value)}"' for key, value in attributes.items())
    return Raw(f"<{name}{said}>{text(content)}</{name}>")


def join(parts: Iterable[object]) -> Raw:
    """Parts one after the other, each escaped unless it is Raw."""
    return Raw("\n".join(text(part) for part in parts if part))


def table(
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    words: bool = False,
    marked: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> Raw:
    """A table in a box that scrolls, the first column its heading. words: cells are text rather than numbers.
    marked: class of the page's style -> numbers of the rows that have it."""
    cells = [[text(cell) for cell in row] for row in rows]
    columns = pd.Index([text(h) for h in head[1:]], name=text(head[0]))  # its name is written above the first column
    frame = pd.DataFrame([row[1:] for row in cells], [row[0] for row in cells], columns, dtype=object)
    with pd.option_context("display.max_colwidth", None):
        html = frame.to_html(escape=False, border=0, classes="words" if words else None)
    first, *lines = html.split("<tr>\n")  # the head's has a style
    classes = {i: f' class="{name}"' for name, numbers in marked.items() for i in numbers}
    html = first + "".join(f"<tr{classes.get(i, '')}>\n{line}" for i, line in enumerate(lines))
    return tag("div", Raw(html), class_="scroll" + " text" * words + " few" * (len(head) < 4))


def bar(fraction: float) -> Raw:
    """Percent with a bar behind it; a dash for NaN."""
    if pd.isna(fraction):
        return Raw("-")
    return tag("span", f"{100 * fraction:.2f}", class_="bar", style=f"--n:{100 * min(max(fraction, 0), 1):.1f}")


def change(fraction: float, most: float) -> Raw:
    """A difference in points with a bar to its side of the middle; ``most`` fills a half."""
    if pd.isna(fraction):
        return Raw("-")
    share = 50 * min(abs(fraction) / most, 1) if most > 0 else 0
    side = "up" if fraction > 0 else "down"
    return tag("span", Raw(f'{100 * fraction:+.2f}<i class="{side}" style="--n:{share:.1f}"></i>'), class_="change")


def folded(title: str, *content: object, open_: bool = False) -> Raw:
    """Content behind a line to click."""
    return Raw(f"<details{' open' * open_}><summary>{text(title)}</summary>\n<div>{join(content)}</div></details>")


def page(title: str, head: Sequence[object], sections: Mapping[str, Raw]) -> str:
    """The whole file. sections: heading -> content; each is open, and its heading folds it."""
    links = join(Raw(f'<a href="#s{i}">{text(name)}</a>') for i, name in enumerate(sections))
    start = '<section id="s{}"><details open><summary><h2>{}</h2></summary>\n<div>'
    parts = [
        Raw(f"{start.format(i, text(k))}{v}</div></details></section>") for i, (k, v) in enumerate(sections.items())
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{tag("title", title)}
<style>{STYLE}</style>
</head>
<body>
<main>
{join([tag("h1", title), *head, tag("nav", links), *parts])}
</main>
</body>
</html>
"""


# ---- pictures


def curves(
    title: str, lines: Sequence[Tuple[str, pd.Series, object]], legend: bool = False, mark: Optional[float] = None
) -> Figure:
    """One small panel of curves over epochs: (label, values by epoch, colour). ``mark``: an epoch to point out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 2.3 + 0.5 * legend), layout="constrained")
    axes = figure.subplots()
    for label, values, colour in lines:
        few = {"marker": "o", "markersize": 2.5} if len(values) <= 30 else {}
        axes.plot(values.index, values, color=colour, linewidth=1.3, label=label, **few)
    if mark is not None:
        axes.axvline(mark, color="#8f8f8f", linewidth=0.8, linestyle=":")
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.set_xlabel("epoch", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#8f8f8f", alpha=0.25, linewidth=0.6)
    if legend:
        form = {"ncols": len(lines) if len(lines) < 5 else 4, "fontsize": 7.5, "frameon": False, "handlelength": 1.2}
        figure.legend(loc="outside lower center", **form)
    return figure


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
    lanes = [
        ("attention", judged.attention, "#7a7a7a"),
        ("s_pc" + "\n(left out)" * judged.s_pc_left_out, judged.s_pc, "#9a7fd1"),
        *((f"class score\n{short(found.classes[c], 24)}", judged.class_score[:, c], class_colour(c)) for c in classes),
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


def embed(figure: Figure, name: str, alt: str, caption: str = "", wide: bool = False) -> Raw:
    """The picture as HTML: SVG with the page's colours, or PNG on white where the SVG is large. name: its own in the
    page, since ids must not meet. wide: on a narrow screen it scrolls."""
    from matplotlib import rc_context
    from matplotlib.colors import ListedColormap

    for axes in (axes for axes in figure.axes if axes.images):  # cells: from paper to blue, whatever the paper
        axes.images[0].set_cmap(ListedColormap([(0.17, 0.47, 0.75, a) for a in np.linspace(0.07, 1, 256)]))
        for cell in axes.texts:
            cell.set_color("#fefefe" if cell.get_color() == "white" else "#000000")
    width = 96 * figure.get_size_inches()[0]
    size = f"width: {width:.0f}px; min-width: {min(0.7 * width, LEAST_WIDTH):.0f}px"
    svg, png, said = io.StringIO(), io.BytesIO(), text(alt)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's own fonts write the text
        figure.savefig(svg, format="svg", transparent=True)
        lean = _lean(svg.getvalue())
        if len(lean) > LARGEST_SVG:
            figure.savefig(png, format="png", dpi=110)
    code = base64.b64encode(png.getvalue()).decode()
    if 0 < len(code) < len(lean):
        picture = f'<img class="paper" alt="{said}" style="{size}" src="data:image/png;base64,{code}">'
    else:
        picture = lean.replace("<svg ", f'<svg role="img" aria-label="{said}" style="{size}" ', 1)
    above = tag("figcaption", caption) if caption else ""
    return Raw(f"<figure{' class=wide' * wide}>{above}{picture}</figure>")


def _lean(svg: str) -> str:
    """matplotlib's SVG as a part of a page: black and white are the page's own ink and paper, coordinates are rounded
    to 1/100 pt, and what nothing refers to is gone."""

    def page_colours(match: re.Match) -> str:
        style = match[0].replace("#ffffff", "var(--paper)").replace("#000000", "currentColor")
        return style.replace("stroke-linecap: butt; ", "")

    def rounded(match: re.Match) -> str:
        numbers = re.sub(r"\d+\.\d+", lambda n: f"{float(n[0]):.2f}".rstrip("0").rstrip("."), match[0])
        return re.sub(r"\s*\n\s*", " ", numbers)

    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg, count=2)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r'style="[^"]*"', page_colours, svg)
    svg = re.sub(r' (?:d|x|y|transform)="(?!scale|matrix)[^"]*"', rounded, svg)
    return re.sub(r"\n\s*", "\n", svg).strip()
