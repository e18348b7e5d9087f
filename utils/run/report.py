"""What a person reads: log lines, the progress bar, rows of results, and the table at the end of a run.

Metrics of one evaluation are a dict of fractions: "tiou", "mAP" (one for each threshold), "average" {span: fraction},
"classification_mAP", "classification_accuracy", "classification_top1"; beside them "protocol", "videos" and, where they
apply, "epoch", "simulated" and "rounding" (what it empties, and what a perfect detector scores). None: no such number.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

import pandas as pd
from tqdm import tqdm

from utils.datasets.profile import THUMOS_TIOU
from utils.files import write_json, write_text

# mAP in percent at tIoU 0.1:0.1:0.7 and averages 0.1:0.5, 0.3:0.7, 0.1:0.7 on THUMOS14, as published
REPORTED = {
    "paper": ("SEAL, paper (AAAI 2025), wtal", (78.4, 73.6, 66.1, 55.8, 44.5, 31.2, 19.9, 63.7, 43.5, 52.8)),
    "release": ("SEAL, authors' page (2025-06-26), wtal", (80.0, 75.7, 67.4, 58.1, 48.9, 35.6, 20.8, 66.0, 46.2, 55.2)),
}
RESTS_ON = {  # what these numbers rest on, for under the table
    "paper": "52.8: best epoch on the test set; proposals of LAC, which was trained with point labels.",
    "release": "55.2: the same. The page said 53.4 when these settings were published (2025-06-01), and 55.2 later\n"
    "without a change of code or settings; a second run of that program starts from the best model of the first.",
}
CLASSIFICATION = ("classification_mAP", "classification_accuracy", "classification_top1")
# of the processes that torchrun started, if it did
FIRST = os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def log(text: str) -> None:
    """A line for the person at the terminal, above a progress bar if there is one; from the first process alone."""
    if FIRST:
        with suppress(BrokenPipeError):  # the reader has left: no reason to stop a run
            tqdm.write(text, file=sys.stderr)


def progress(total: int, done: int, quiet: bool = False) -> tqdm:
    """The bar of a training run; silent if ``quiet`` and where standard error is no terminal."""
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    off = True if quiet or not FIRST else None
    return tqdm(total=total, initial=done, bar_format=form, disable=off, dynamic_ncols=True)


def columns(tious: Sequence[float], averages: Sequence[str]) -> List[str]:
    """Head of mAP-results.log: the authors' columns in their order."""
    return ["epoch", *(f"mAP@{t:g}" for t in tious), *(f"AVG({a})" for a in averages), "cls-mAP", "cls-acc"]


def _numbers(metrics: Mapping) -> List[Optional[float]]:
    """Every number of one evaluation: mAP at each threshold, its averages, and CLASSIFICATION."""
    return [*metrics["mAP"], *metrics["average"].values(), *(metrics[key] for key in CLASSIFICATION)]


def row(metrics: Mapping) -> List[str]:
    """One evaluation as cells in percent, in the order of ``columns``."""
    cells = ("-" if n is None else f"{100 * n:.2f}" for n in _numbers(metrics)[:-1])
    return [str(metrics.get("epoch", "-")), *cells]


def tags(metrics: Mapping) -> Dict[str, float]:
    """The numbers of one evaluation that exist, in percent, under the authors' TensorBoard tags."""
    at = [*(f"{t:g}" for t in metrics["tiou"]), *(span.replace(":", " : ") for span in metrics["average"])]
    names = [*(f"Detection mAP @ IoU = {x}" for x in at), *(f"Classification {x}" for x in ("mAP", "acc", "top-1"))]
    return {f"test_mAP/{name}": 100 * n for name, n in zip(names, _numbers(metrics)) if n is not None}


def aligned(rows: Sequence[Sequence[str]]) -> List[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join([r[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(r[1:], widths[1:])]).rstrip() for r in rows]


def rounding_lines(metrics: Mapping) -> List[str]:
    """What the rounding of a protocol costs, in words; nothing where nothing is rounded."""
    cost = metrics.get("rounding")
    if not cost or not cost["instances"]:
        return []
    span = list(cost["perfect"])[-1]
    emptied = f"rounding empties {cost['emptied']:,} of {cost['instances']:,} instances"
    return [f"{emptied}; a perfect detector would score {100 * cost['perfect'][span]:.2f} (avg {span})"]


def headline(metrics: Mapping) -> float:
    """The one number models are compared by: the last average (THUMOS14: 0.1:0.7); -1 where there is none."""
    value = list(metrics["average"].values())[-1]
    return -1.0 if value is None else value


def best(history: Sequence[Dict]) -> Dict:
    """The best evaluation of a run, the first one of equals."""
    return max(history, key=headline)


def describe(epoch: int, max_epoch: int, loss: float, history: Sequence[Dict]) -> str:
    """The numbers that matter, for the progress bar."""
    text = f"epoch {epoch}/{max_epoch}, loss {loss:.3f}"
    scores = [100 * headline(metrics) for metrics in history]
    return f"{text}, mAP last {scores[-1]:.1f}, best {max(scores):.1f}" if scores else text


def evaluation_lines(history: Sequence[Dict]) -> List[str]:
    """The evaluations of a run as lines, a head and one each."""
    return aligned([columns(history[0]["tiou"], history[0]["average"]), *map(row, history)])


def write_evaluations(folder: Path, history: Sequence[Dict]) -> None:
    """Write the evaluations of a run: mAP-results.log and results.json."""
    write_text(folder / "mAP-results.log", "\n".join(evaluation_lines(history)) + "\n")
    write_json(folder / "results.json", {"last": history[-1], "best": best(history)})


def spread(results: Sequence[Mapping]) -> Dict[str, Dict]:
    """{"mean": metrics, "std": metrics} over seeds; std is that of the sample, None for one seed alone."""
    frame, first = pd.DataFrame([_numbers(metrics) for metrics in results], dtype=float), results[0]
    fixed = {k: first[k] for k in ("protocol", "videos", "tiou", "simulated", "rounding") if k in first}

    def metrics(numbers: pd.Series) -> Dict:
        values = iter([None if pd.isna(n) else n for n in numbers])
        parts = {"mAP": [next(values) for _ in first["mAP"]], "average": {k: next(values) for k in first["average"]}}
        return {**fixed, **parts, **dict(zip(CLASSIFICATION, values))}

    return {"mean": metrics(frame.mean()), "std": metrics(frame.std())}


def published(dataset: str, recipe: str, tious: Sequence[float]) -> Dict[str, List[str]]:
    """Rows of cells that results of a dataset at these thresholds can stand beside, by their names in RESTS_ON."""
    if dataset != "Thumos14reduced" or tuple(tious) != tuple(THUMOS_TIOU):
        return {}
    names = ["paper", "release"] if recipe == "release" else ["paper"]
    return {name: [REPORTED[name][0], *(f"{v:.2f}" for v in REPORTED[name][1]), "-", "-"] for name in names}


def table(dataset: str, recipe: str, results: Mapping[str, Mapping]) -> str:
    """Threshold by threshold in percent: one row a result, on THUMOS14 with the published rows, protocol named."""
    first, beside = next(iter(results.values())), {}
    title = f"{dataset}, protocol {first['protocol']}, {first['videos']} videos"
    if first.get("simulated"):
        title += "; SIMULATED features: these numbers say nothing about real videos"
    else:
        beside = published(dataset, recipe, first["tiou"])
    rows = [["mAP (%)", *columns(first["tiou"], first["average"])[1:]]]
    rows += [[name, *row(metrics)[1:]] for name, metrics in results.items()]
    rows += beside.values()
    head, *lines = aligned(rows)
    rule = "-" * max(map(len, [head, *lines]))
    notes = [*rounding_lines(first), *(RESTS_ON[name] for name in beside)]
    return "\n".join([title, rule, head, rule, *lines, rule, *notes])
