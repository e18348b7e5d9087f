"""The page of a report: text, tables and folded sections as one HTML file that needs nothing else."""

from __future__ import annotations

from html import escape
from types import MappingProxyType
from typing import Collection, Iterable, Mapping, Optional, Sequence

import pandas as pd

from utils.errors import printable

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
a { color: var(--link); }
.soft, .said, figcaption { color: var(--soft); font-size: .88rem; }
.simulated { background: var(--warn); color: var(--warn-ink); border-radius: 4px; padding: .1em .45em; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1rem 0 1.2rem; font-size: .92rem; }
nav a { text-decoration: none; }
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
thead th { white-space: normal; vertical-align: bottom; min-width: 3.6rem; line-height: 1.25; }
tr:last-child > * { border-bottom: 0; }
thead th { position: sticky; top: 0; background: var(--paper); font-weight: 600; z-index: 1; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--paper); text-align: left;
  font-weight: 500; }
thead th:first-child { z-index: 2; }
tbody th { min-width: 7rem; max-width: 18rem; white-space: normal; overflow-wrap: break-word; }
.few table { min-width: min(100%, 34rem); }
.few { width: fit-content; max-width: 100%; }
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
footer { color: var(--soft); font-size: .85rem; }
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
    columns = [text(h) for h in head[1:]]
    frame = pd.DataFrame([row[1:] for row in cells], [row[0] for row in cells], columns, dtype=object)
    with pd.option_context("display.max_colwidth", None):
        html = frame.to_html(escape=False, border=0, classes="words" if words else "numbers", justify="unset")
    html = html.replace("<th></th>", f"<th>{text(head[0])}</th>", 1).replace(' style="text-align: unset;"', "")
    first, *lines = html.split("<tr>\n")  # the first <tr> is the head
    classes = {i + 1: name for name, numbers in marked.items() for i in numbers}
    starts = (f'<tr class="{classes[i]}">\n' if i in classes else "<tr>\n" for i in range(len(lines)))
    html = first + "".join(start + line for start, line in zip(starts, lines))
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
    mark = " open" if open_ else ""
    return Raw(f"<details{mark}><summary>{text(title)}</summary>\n<div>{join(content)}</div></details>")


def section(name: str, title: str, *content: object) -> Raw:
    """A part of the page, open, with a heading that folds it."""
    head = Raw(f"<summary>{tag('h2', title)}</summary>")
    return Raw(f'<section id="{name}"><details open>{head}\n<div>{join(content)}</div></details></section>')


def figure(picture: str, caption: str = "", wide: bool = False) -> Raw:
    """A picture (HTML) with its caption; wide: on a narrow screen it scrolls."""
    said = tag("figcaption", caption) if caption else ""
    return Raw(f"<figure{' class=wide' * wide}>{said}{picture}</figure>")


def chips(colours: Mapping[str, object]) -> Raw:
    """A legend: name -> colour."""
    marks = (f'<span><i style="background:{colour}"></i>{text(name)}</span>' for name, colour in colours.items())
    return Raw(f'<div class="chips">{"".join(marks)}</div>')


def tiles(values: Mapping[str, str]) -> Raw:
    """The numbers to see first: what -> number."""
    return tag("div", join(tag("div", join([tag("b", v), tag("span", k)])) for k, v in values.items()), class_="tiles")


def page(title: str, head: Sequence[object], sections: Mapping[str, Raw], foot: Optional[str] = None) -> str:
    """The whole file. sections: title in the line of links -> section, whose id is its number."""
    links = join(Raw(f'<a href="#s{i}">{text(name)}</a>') for i, name in enumerate(sections))
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"{tag('title', title)}\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            join([tag("h1", title), *head, tag("nav", links), *sections.values()]),
            f"{tag('footer', foot or '')}\n</main>\n</body>\n</html>\n",
        ]
    )
