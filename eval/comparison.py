"""Rows of results with several seeds each, side by side: paired differences as text, CSV and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from utils.files import write_text
from utils.run.plots import save_figure
from utils.run.report import aligned, columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTE = (
    "mAP in percent of the last model, mean +- sd over seeds. Difference: of the average to that of the row named\n"
    "beside it, paired by seed, with its 95 % t-interval; *: the interval leaves out 0."
)
Results = Mapping[Tuple[str, int], Mapping[str, Mapping]]  # (row, seed) -> {"last": metrics, "best": metrics}


class Row(NamedTuple):
    """A row of a table: the folder of its runs, its options, the row it is compared with, and the paper's numbers."""

    name: str
    title: str
    options: Tuple[str, ...]
    against: Optional[str] = None
    paper: Optional[Tuple[float, ...]] = None  # mAP in percent at tIoU 0.3, 0.5, 0.7, and the average of 0.1:0.7


class Table(NamedTuple):
    """A table of the paper."""

    number: str
    title: str
    rows: Tuple[Row, ...]


class Entry(NamedTuple):
    """A row with its numbers over n seeds, percent; NaN where there is no such number."""

    row: Row
    n: int
    mean: pd.Series  # of the shown columns
    sd: pd.Series  # of the sample
    averages: np.ndarray  # [n], of each seed
    difference: float  # mean paired difference of the average to the row it is compared with
    half: float  # half the width of its 95 % interval


def t_interval(differences: np.ndarray, level: float = 0.95) -> float:
    """Half the width of Student's t-interval for the mean of differences [n]; NaN for fewer than two."""
    n = len(differences)
    if n < 2:
        return float("nan")
    # |t| < sqrt(v) tan(a) has a probability proportional to the integral of cos^(v-1) over [0, a]; v = n - 1
    angle = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angle) ** (n - 2)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    quantile = np.sqrt(n - 1) * np.tan(np.interp(level * mass[-1], mass, angle))
    return float(quantile * np.std(differences, ddof=1) / np.sqrt(n))


def long_form(tables: Sequence[Table], results: Results) -> pd.DataFrame:
    """One line a table, row, seed and model ("last", "best"), metrics in percent."""
    lines = []
    for table in tables:
        for row in table.rows:
            for (name, seed), found in sorted(results.items()):
                for model in ("last", "best") if name == row.name else ():
                    metrics = found[model]
                    values = [*metrics["mAP"], *metrics["average"].values(), metrics["classification_mAP"]]
                    names = columns(metrics["tiou"], metrics["average"])[1:-1]
                    head = {"table": table.number, "row": name, "seed": seed, "model": model, "epoch": metrics["epoch"]}
                    lines.append({**head, **{k: np.nan if v is None else 100 * v for k, v in zip(names, values)}})
    return pd.DataFrame(lines)


def shown_columns(frame: pd.DataFrame) -> List[str]:
    """mAP at 0.3, 0.5, 0.7 as the paper shows, else at ActivityNet's 0.5, 0.75, 0.95; and the last average."""
    every = [c for c in frame if c.startswith("mAP@")]
    choices = ([f"mAP@{t:g}" for t in tious] for tious in ((0.3, 0.5, 0.7), (0.5, 0.75, 0.95)))
    return [*next((names for names in choices if set(names) <= set(every)), every[:3]),
            [c for c in frame if c.startswith("AVG")][-1]]  # fmt: skip


def summarise(table: Table, frame: pd.DataFrame) -> List[Entry]:
    """The rows of a table that have results, from the lines of ``long_form``."""
    shown = shown_columns(frame)
    last = frame[(frame.table == table.number) & (frame.model == "last")]
    found = {name: part.set_index("seed")[shown] for name, part in last.groupby("row")}
    entries = []
    for row in table.rows:
        if row.name in found:
            mine, average = found[row.name], shown[-1]
            paired = np.zeros(0)
            if row.against in found:
                paired = (mine[average] - found[row.against][average]).dropna().to_numpy()
            difference = float(paired.mean()) if len(paired) else float("nan")
            numbers = (mine.mean(), mine.std(), mine[average].to_numpy())
            entries.append(Entry(row, len(mine), *numbers, difference, t_interval(paired)))
    return entries


def as_cells(table: Table, frame: pd.DataFrame) -> List[List[str]]:
    """A table as text, its head first."""
    shown, titles = shown_columns(frame), {row.name: row.title for row in table.rows}
    paper = [f"paper {c}" for c in ("0.3", "0.5", "0.7", "AVG")]
    lines = [[table.title, *shown, "difference", "95 %", "to", *paper]]
    for entry in summarise(table, frame):
        row, difference, half = entry.row, "-", "-"
        if not np.isnan(entry.difference):
            difference = f"{entry.difference:+.1f}" + "*" * (abs(entry.difference) > entry.half)
        if not np.isnan(entry.half):
            half = " … ".join(f"{entry.difference + sign * entry.half:+.1f}" for sign in (-1, 1))
        ours = [f"{m:.1f}" + f" +- {s:.1f}" * (entry.n > 1) for m, s in zip(entry.mean, entry.sd)]
        published = [f"{v:.1f}" for v in row.paper or ()] or ["-"] * 4
        lines.append([row.title, *ours, difference, half, titles.get(row.against, "-"), *published])
    return lines


def markdown(table: Table, frame: pd.DataFrame, grey: bool) -> str:
    """A table in Markdown; grey: the paper's numbers are of other data, and stand back."""
    head, *body = as_cells(table, frame)
    if grey:
        head = [cell.replace("paper", "THUMOS14, paper") for cell in head]
        body = [[*line[:-4], *(f"<sub>{cell}</sub>" for cell in line[-4:])] for line in body]
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *body]
    return "\n".join([f"## Table {table.number}: {table.title}", "", *(f"| {' | '.join(x)} |" for x in lines), ""])


def picture(tables: Sequence[Table], frame: pd.DataFrame, title: str, grey: bool) -> Figure:
    """Two panels a table. Left: the average of each row, a dot a seed, mean and one sd. Right: its paired difference
    with the 95 % interval. The paper's is a diamond; grey: of other data, and then on the right alone."""
    from matplotlib.figure import Figure

    heights = [len(table.rows) + 1.5 for table in tables]
    figure = Figure(figsize=(10, 0.8 + 0.27 * sum(heights)), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    grid = figure.subplots(len(tables), 2, sharex="col", squeeze=False, height_ratios=heights)
    ours, seeds = {"fmt": "o", "color": "#1f4e79", "capsize": 3, "markersize": 5}, {"color": "#377eb8", "alpha": 0.35}
    paper = {"color": "#a0a0a0" if grey else "#d95f02", "markersize": 5, "zorder": 0}
    for (left, right), table in zip(grid, tables):
        entries = summarise(table, frame)
        published = {entry.row.name: entry.row.paper for entry in entries}
        for y, entry in enumerate(entries):
            row = entry.row
            left.plot(entry.averages, [y] * entry.n, "o", markersize=3, **seeds)
            left.errorbar(entry.mean.iloc[-1], y, xerr=np.nan_to_num(entry.sd.iloc[-1]), **ours)
            right.errorbar(entry.difference, y, xerr=np.nan_to_num(entry.half), **ours)
            if row.paper and not grey:
                left.plot(row.paper[-1], y, "D", **paper)
            if row.paper and published.get(row.against):
                right.plot(row.paper[-1] - published[row.against][-1], y, "D", **paper)
        left.set_yticks(range(len(entries)), [entry.row.title for entry in entries], parse_math=False)
        left.set_title(f"Table {table.number}: {table.title}", fontsize=9, loc="left")
        right.set_yticks([])
        right.axvline(0, color="black", linewidth=0.8)
        for axes in (left, right):
            axes.set_ylim(len(entries) - 0.4, -0.6)
            axes.grid(axis="x", alpha=0.3)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set_xlabel(f"{shown_columns(frame)[-1]}, percent: mean and one sd over seeds", fontsize=8)
    text = f"difference and 95 % interval; diamond: paper{', on THUMOS14' * grey}"
    grid[-1, 1].set_xlabel(text, fontsize=8)
    return figure


def write(out: Path, tables: Sequence[Table], results: Results, title: str, grey: bool) -> str:
    """Write tables.md, tables.csv and tables.png of what has results; returns the tables as text."""
    frame = long_form(tables, results)
    drawn = [table for table in tables if table.number in set(frame.table)]
    text, marked = [title], [f"# {title}", "", NOTE, ""]
    for table in drawn:
        text += ["", f"Table {table.number}" + " (the paper's: on THUMOS14)" * grey, *aligned(as_cells(table, frame))]
        marked.append(markdown(table, frame, grey))
    write_text(out / "tables.md", "\n".join(marked))
    write_text(out / "tables.csv", frame.to_csv(index=False, float_format="%.4f"))
    save_figure(out / "tables.png", picture(drawn, frame, title, grey))
    return "\n".join([*text, "", NOTE])
