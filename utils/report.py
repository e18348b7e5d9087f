"""What a person reads: log lines, the progress bar, rows of results, and the table at the end of a run."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Dict, List, Mapping, Optional, Sequence

import numpy as np
from tqdm import tqdm

from utils.errors import printable
from utils.profile import THUMOS_TIOU

# mAP in percent at tIoU 0.1:0.1:0.7 and averages 0.1:0.5, 0.3:0.7, 0.1:0.7 on THUMOS14, as published
REPORTED = {
    "paper": ("SEAL, paper (AAAI 2025), wtal", (78.4, 73.6, 66.1, 55.8, 44.5, 31.2, 19.9, 63.7, 43.5, 52.8)),
    "release": ("SEAL, authors' page (2025/6/26), wtal", (80.0, 75.7, 67.4, 58.1, 48.9, 35.6, 20.8, 66.0, 46.2, 55.2)),
}


# of the processes torchrun started, if it did
FIRST = os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def log(text: str) -> None:
    """A line for the person at the terminal, above a progress bar if there is one; from the first process alone."""
    if FIRST:
        with suppress(BrokenPipeError):  # whoever read along has left: no reason to stop a run
            tqdm.write(text, file=sys.stderr)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of some names, and how many more there are."""
    return printable(", ".join(names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def progress(total: int, done: int) -> tqdm:
    """The bar of a training run; silent where standard error is no terminal."""
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    return tqdm(total=total, initial=done, bar_format=form, disable=None if FIRST else True, dynamic_ncols=True)


def columns(tious: Sequence[float], averages: Sequence[str]) -> List[str]:
    """Head of a row of results: the authors' columns."""
    return ["epoch", "cls-mAP"] + [f"mAP@{t:.2f}".rstrip("0") for t in tious] + [f"AVG({a})" for a in averages]


def percents(metrics: Mapping) -> List[Optional[float]]:
    """The numbers of one evaluation in percent, in the order of ``columns`` after the epoch."""
    numbers = [metrics["classification_mAP"], *metrics["mAP"], *metrics["average"].values()]
    return [None if n is None else 100 * n for n in numbers]


def row(metrics: Mapping) -> List[str]:
    """One evaluation as cells, in the order of ``columns``."""
    return [str(metrics.get("epoch", "-"))] + ["-" if n is None else f"{n:.2f}" for n in percents(metrics)]


def aligned(rows: Sequence[Sequence[str]]) -> List[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join([r[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(r[1:], widths[1:])]).rstrip() for r in rows]


def headline(metrics: Mapping) -> float:
    """The one number models are compared by: the last average (THUMOS14: 0.1:0.7)."""
    value = list(metrics["average"].values())[-1]
    return -1.0 if value is None else value


def spread(results: Sequence[Mapping]) -> Dict[str, Dict]:
    """Mean and standard deviation (of the sample) of metrics over seeds: {"mean": metrics, "std": metrics}."""
    keys = ("classification_mAP", "classification_accuracy")
    found = {}
    for name, reduce in (("mean", np.mean), ("std", lambda x, axis: np.std(x, axis=axis, ddof=min(1, len(x) - 1)))):
        averages = [list(m["average"].values()) for m in results]
        found[name] = {
            **{k: results[0][k] for k in ("protocol", "videos", "tiou", "simulated") if k in results[0]},
            "mAP": reduce(np.asarray([m["mAP"] for m in results], dtype=float), axis=0).tolist(),
            "average": dict(zip(results[0]["average"], reduce(np.asarray(averages, dtype=float), axis=0).tolist())),
            **{k: float(reduce(np.asarray([m[k] for m in results], dtype=float), axis=0)) for k in keys},
        }
    return found


def table(dataset: str, recipe: str, results: Mapping[str, Mapping]) -> str:
    """Threshold by threshold in percent: one row a result, on THUMOS14 with the published rows, protocol named."""
    first = next(iter(results.values()))
    head = ["mAP (%)"] + columns(first["tiou"], list(first["average"]))[1:]
    rows = [head] + [[name] + row(metrics)[1:] for name, metrics in results.items()]
    if dataset == "Thumos14reduced" and not first.get("simulated") and first["tiou"] == list(THUMOS_TIOU):
        names = ("paper", "release") if recipe == "release" else ("paper",)
        rows += [[name] + ["-"] + [f"{v:.2f}" for v in values] for name, values in (REPORTED[n] for n in names)]
    lines = aligned(rows)
    rule = "-" * max(map(len, lines))
    count = f"protocol {first['protocol']}, {first['videos']} videos"
    if first.get("simulated"):
        count += "; SIMULATED features: these numbers say nothing about real videos"
    return "\n".join([f"{dataset}, {count}", rule, lines[0], rule, *lines[1:], rule])
