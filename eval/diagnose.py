"""Why detections score what they score: numbers and pictures (``python -m eval.diagnose --help``)."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence

if __name__ == "__main__":  # python eval/diagnose.py finds the project as python -m eval.diagnose does
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from eval.detection import PROTOCOLS, add_data_options, default_protocol, read_data
from eval.diagnosis import BINS, KINDS, LEAST_PRECISION, OVERLAP, detad_tious, diagnose, mean
from options import Parser
from utils.datasets.proposals import load_proposals
from utils.errors import raise_first, run_command
from utils.files import atomic, write_json
from utils.run.report import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#4daf4a", "#377eb8", "#984ea3", "#ff9f1c", "#f0c808", "#b0b0b0")  # of KINDS
TITLES = {
    "coverage": "coverage (length / duration)",
    "length": "length (s)",
    "instances": "instances of the class in the video",
}
MOST_CURVES = 24  # classes drawn; of more, the best and the worst halves
MOST_NAMES = 60  # classes named beside the confusion


def summary(numbers: Dict) -> str:
    """The diagnosis as text: what a person reads first."""
    shown = [f"{t:g}" for t in numbers["tiou"]]
    lines = [
        f"protocol {numbers['protocol']}: {PROTOCOLS[numbers['protocol']]}; {numbers['videos']} videos, "
        f"{numbers['instances']:,} instances, {numbers['detections']:,} detections"
    ]
    table = [["tIoU", *shown, "mean"]]
    for name, values in (("mAP (%)", numbers["mAP"]), ("AP_N (%)", numbers["AP_N"]), *_ceilings(numbers)):
        table.append([name, *map(_percent, values), _percent(mean(np.asarray(values)))])
    lines += [*aligned(table), ""]

    profile, gain = np.asarray(numbers["false_positives"]["profile"]), numbers["false_positives"]["gain"]
    table = [["best detections (%)", "1G", "2G", "3G", "10G", "AP_N gains"]]
    for k, kind in enumerate(KINDS):
        table.append([kind, *(_percent(profile[g, k]) for g in (0, 1, 2, 9)), _percent(gain.get(kind, np.nan))])
    lines += [*aligned(table), ""]

    table = [["instances", "bin", "share (%)", "AP_N (%)", "missed (%)"]]
    table.append(["all", "", "100.00", _percent(numbers["mean_AP_N"]), _percent(numbers["missed"])])
    for name, part in numbers["sensitivity"].items():
        for row in part["bins"]:
            cells = [_percent(row[key]) for key in ("share", "AP_N", "missed")]
            table.append([name, f"{row['name']} {_range(row)}", *cells])
    return "\n".join(lines + aligned(table))


def _ceilings(numbers: Dict) -> List:
    names = {"single": "ceiling, one proposal an instance", "scored": "proposals scored by their tIoU"}
    return [(text, numbers["ceiling"][name]["mAP"]) for name, text in names.items() if "ceiling" in numbers]


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def _range(row: Dict) -> str:
    return f"> {row['above']:.3g}" if np.isinf(row["up_to"]) else f"{row['above']:.3g}-{row['up_to']:.3g}"


def pictures(numbers: Dict) -> Dict[str, Figure]:
    """The pictures of a diagnosis, numbers as ``diagnose`` returns them: name -> matplotlib Figure."""
    made = {
        "false_positives": _false_positives(numbers),
        "sensitivity": _sensitivity(numbers),
        "confusion": _confusion(numbers),
        "curves": _curves(numbers),
    }
    return {**made, "ceiling": _ceiling(numbers)} if "ceiling" in numbers else made


def _figure(width: float, height: float, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def _clean(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _false_positives(numbers: Dict) -> Figure:
    figure = _figure(10, 4, f"The best detections of each class, mean over tIoU {_tious(numbers)}")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    profile = 100 * np.nan_to_num(np.asarray(numbers["false_positives"]["profile"]))
    names = [f"{g + 1}G" for g in range(len(profile))]
    bottom = np.zeros(len(profile))
    for k, kind in enumerate(KINDS):
        left.bar(names, profile[:, k], 0.85, bottom, color=COLOURS[k], label=kind)
        bottom += profile[:, k]
    left.set(xlabel="rank within the class (G: its number of instances)", ylabel="% of detections", ylim=(0, 100))
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, fontsize=8, frameon=False)
    gain = numbers["false_positives"]["gain"]
    values = [100 * gain[kind] for kind in KINDS[1:]]
    bars = right.barh(KINDS[1:], np.nan_to_num(values), color=COLOURS[1:])
    right.bar_label(bars, [f"{v:+.1f}" for v in values], padding=3, fontsize=8)
    right.invert_yaxis()
    right.margins(x=0.15)
    right.set_xlabel("AP_N gained without these, points")
    for axes in (left, right):
        _clean(axes)
    return figure


def _tious(numbers: Dict) -> str:
    first, last = numbers["tiou"][0], numbers["tiou"][-1]
    return f"{first:g}" if first == last else f"{first:g} to {last:g}"


def _sensitivity(numbers: Dict) -> Figure:
    figure = _figure(11, 5.5, "By kind of instance: normalised AP, and the share that no detection finds")
    grid = figure.subplots(2, len(numbers["sensitivity"]), sharey="row", squeeze=False)
    for column, (name, part) in zip(grid.T, numbers["sensitivity"].items()):
        rows = part["bins"]
        place = np.arange(len(rows))
        for axes, key, colour, base in zip(
            column, ("AP_N", "missed"), ("#377eb8", "#d95f02"), (numbers["mean_AP_N"], numbers["missed"])
        ):
            values = 100 * np.asarray([row[key] for row in rows], dtype=float)
            bars = axes.bar(place, np.nan_to_num(values), 0.75, color=colour, alpha=0.85)
            axes.bar_label(bars, ["-" if np.isnan(v) else f"{v:.0f}" for v in values], padding=1, fontsize=8)
            axes.axhline(100 * base, color="black", linewidth=0.8, linestyle="--")
            ranges = [_range(row).replace("-", "-\n" * any(len(_range(r)) > 9 for r in rows) or "-") for row in rows]
            labels = [f"{row['name']}\n{text}\n{100 * row['share']:.0f} %" for row, text in zip(rows, ranges)]
            axes.set_xticks(place, labels)
            axes.set_ylim(0, max(115 * base, 1.15 * np.nanmax(values, initial=0), axes.get_ylim()[1], 1))
            _clean(axes)
        column[0].set_title(TITLES.get(name, name), fontsize=10)
    grid[0, 0].set_ylabel("AP_N (%); dashed: all")
    grid[1, 0].set_ylabel("missed (%); dashed: all")
    return figure


def _confusion(numbers: Dict) -> Figure:
    table, classes = np.asarray(numbers["confusion"]), numbers["classes"]
    named = len(classes) <= MOST_NAMES
    side = min(4 + (0.2 if named else 0.03) * len(classes), 14)
    figure = _figure(side + 1, side, f"Confusion of classes where tIoU >= {OVERLAP:g}")
    axes = figure.subplots()
    axes.set_facecolor("#eeeeee")  # no such detection
    image = axes.imshow(100 * table, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, shrink=0.7, label="% of the row")
    if named:
        axes.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
        axes.set_yticks(range(len(classes)), classes, parse_math=False)
    for row, column in np.argwhere(np.nan_to_num(table) >= 0.01) if len(classes) <= 25 else ():
        colour = "white" if table[row, column] > 0.6 else "black"
        axes.text(column, row, f"{100 * table[row, column]:.0f}", ha="center", va="center", fontsize=6, color=colour)
    which = "class" if named else "number of the class"
    axes.set(xlabel=f"{which} of the instance", ylabel=f"{which} of the detection")
    axes.tick_params(labelsize=7)
    return figure


def _curves(numbers: Dict) -> Figure:
    from matplotlib import colormaps

    ap = {name: float(np.mean(values)) for name, values in numbers["class_AP"].items()}
    ranking = sorted(ap, key=lambda name: -ap[name])
    half = MOST_CURVES // 2
    shown = ranking if len(ranking) <= MOST_CURVES else ranking[:half] + ranking[-half:]
    which = "" if len(shown) == len(ranking) else f", the best and the worst {half} of {len(ranking)} classes"
    columns = min(max(len(shown), 1), 6)
    lines = -(-max(len(shown), 1) // columns)
    figure = _figure(
        max(1.9 * columns + 1, 6), 1.7 * lines + 1, f"Precision (%) over recall (%); in brackets the mean AP{which}"
    )
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    tious, recall = numbers["tiou"], 100 * np.asarray(numbers["curves"]["recall"])
    colours = colormaps["viridis"](np.linspace(0.3, 0.9, len(tious)))
    for axes, name in zip(grid, shown):
        for tiou, colour, values in zip(tious, colours, numbers["curves"]["precision"][name]):
            axes.plot(recall, 100 * np.asarray(values), color=colour, linewidth=1, label=f"{tiou:g}")
        axes.set(xlim=(0, 100), ylim=(0, 103))
        text = name if len(name) <= 22 else name[:21] + "…"
        axes.set_title(f"{text} ({100 * ap[name]:.0f})", fontsize=8, parse_math=False)
        _clean(axes)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[max(len(shown) - columns, 0) : len(shown)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    if shown:
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, title="tIoU", loc="outside right center", fontsize=8, frameon=False)
    return figure


def _ceiling(numbers: Dict) -> Figure:
    figure = _figure(6.5, 4, "What the scoring loses, and what the proposals lose")
    axes = figure.subplots()
    tious = numbers["tiou"]
    found, best = (100 * np.asarray(x, dtype=float) for x in (numbers["mAP"], numbers["ceiling"]["single"]["mAP"]))
    axes.plot(tious, best, "o-", color="#4daf4a", label="ceiling: one proposal an instance, scored by its tIoU")
    axes.plot(tious, found, "o-", color="#377eb8", label="these detections")
    axes.fill_between(tious, found, best, color="#377eb8", alpha=0.12, label="lost by the scoring")
    axes.fill_between(tious, best, 100, color="#b0b0b0", alpha=0.3, label="lost by the proposals")
    axes.set(xlabel="tIoU", ylabel="mAP (%)", ylim=(0, 100))
    axes.legend(fontsize=8, loc="lower left")
    _clean(axes)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PATH.png and PATH.svg, each whole or not at all."""
    for kind in ("png", "svg"):
        with atomic(path.with_suffix(f".{kind}")) as scratch, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script the font lacks: boxes will do
            figure.savefig(scratch, format=kind, **({"metadata": {"Date": None}} if kind == "svg" else {}))


def _parser() -> Parser:
    text = f"""Say why a detections file, from any method, scores what it scores. No features and no model are needed.

Definitions are those of DETAD (Alwassel et al., ECCV 2018), written out in eval/diagnosis.py: what kinds of false
positives there are and what each costs, how well instances of each length, coverage and number are found, which are
missed (by all detections of a normalised precision of {LEAST_PRECISION:g} or more), which classes are confused, and,
with --proposals, the best that any scoring of them could reach. OUT gets diagnosis.json with every number, and PNG and
SVG pictures of false_positives, sensitivity, confusion, curves (and ceiling).
"""
    parser = Parser("python -m eval.diagnose", description=text)
    add_data_options(parser)
    parser.add_argument("--proposals", metavar="FILE.json", help="the proposals that were scored, for the ceiling")
    text = "DETAD's thresholds: tIoU 0.5 for THUMOS14, else 0.5:0.05:0.95 (default: the profile's)"
    parser.add_argument("--detad", action="store_true", help=text)
    parser.add_argument("--out", metavar="DIR", help="default: the folder 'diagnosis' beside FILE.json")
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command; raises InputError for bad input."""
    args = _parser().parse_args(arguments)
    profile, annotations, truth, found = read_data(args)
    duration_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    proposals_s = None
    if args.proposals:
        given = load_proposals(Path(args.proposals), {v: duration_s[v] for v in truth.videos}, fix=True)
        raise_first(given.problems)
        proposals_s = given.segments_s
    numbers = diagnose(
        truth,
        found,
        profile,
        args.protocol or default_protocol(profile),
        duration_s,
        bins=BINS.get(args.dataset_name),
        tious=detad_tious(profile) if args.detad else None,
        proposals_s=proposals_s,
    )
    print(summary(numbers))
    out = Path(args.out) if args.out else Path(args.detections).parent / "diagnosis"
    write_json(out / "diagnosis.json", numbers)
    for name, figure in pictures(numbers).items():
        save(figure, out / name)
    print(f"diagnosis.json and pictures are in {out}")
    return 0


if __name__ == "__main__":
    run_command(main)
