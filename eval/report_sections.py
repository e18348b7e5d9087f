"""The sections of a report: what was run, results, curves, classes, diagnosis, timelines (``eval.report``)."""

from __future__ import annotations

from functools import cache
from itertools import cycle
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from eval import diagnose
from eval.detection import PROTOCOLS
from eval.diagnosis import mean as mean_of
from eval.report_data import APART, Data, Run, class_ap, class_counts, differences, judged
from eval.report_page import COLOURS, Raw, bar, change, curves, embed, folded, join, story, table, tag, text
from losses import TERMS
from options import NUMBERS, OPTIONS, RECIPES, parse
from utils.run.experiment import plain
from utils.run.report import RESTS_ON, published, rounding_lines, row, spread
from utils.segments import Segments

FACTS = {"dataset_name": "data", "run_type": "kind of run", "recipe": "recipe", "seed": "random seed"}
VERSIONS = ("python", "torch", "numpy", "pandas")
SIMULATED = "SIMULATED features: these numbers say nothing about real videos"
Groups = Mapping[str, Sequence[Run]]


def soft(line: object) -> Raw:
    """A paragraph that stands back: what numbers are, and what they rest on."""
    return tag("p", line, class_="soft")


def said(runs: Sequence[Run]) -> Raw:
    """What every number here rests on: protocol, videos, and whether features are simulated."""
    lines = {}
    for run in runs:
        m, mark = run.result, tag("span", SIMULATED.split(":")[0], class_="simulated") if run.simulated else ""
        where = f", {m['videos']} videos; protocol {m['protocol']}: {PROTOCOLS.get(m['protocol'], '?')}" if m else ""
        lines[join([run.options["dataset_name"] + where, mark])] = None
    return soft(Raw("<br>".join(lines)))


def what_was_run(runs: Sequence[Run]) -> Raw:
    """Options that differ from the defaults, and where the numbers come from: a column a run."""
    explained = {option.name: option.help.split(" (default")[0] for group in OPTIONS.values() for option in group}
    explained |= {n.name: n.meaning for n in NUMBERS} | {"losses": "losses beside classification"}
    names = list(dict.fromkeys(name for run in runs for name in run.options))
    differs = {n for run in runs for n in names if run.options.get(n) != _usual(run.options["recipe"]).get(n)}
    changed = [n for n in names if n in differs - {*FACTS, *APART, "protocol"}]
    columns = []
    for run in runs:
        e, protocol = run.environment, run.result["protocol"] if run.result else run.options.get("protocol")
        column = {"folder": run.folder, **{title: run.options[name] for name, title in FACTS.items()}}
        column["features"] = "SIMULATED" if run.simulated else "not marked as simulated"
        column |= {"protocol": protocol or "-", "weights": ", ".join(run.results) or "-"}
        column |= {Raw(f"<b>--{n}</b>"): _value(run.options.get(n)) for n in changed}
        column["versions"] = ", ".join(f"{k} {e[k]}" for k in VERSIONS if k in e) or "-"
        columns.append({**column, "device": _value(e.get("device")), "commit": _value(e.get("commit"))[:12]})
    rows = [[title, *(column[title] for column in columns)] for title in columns[0]]
    differ = [i for i, (_, *values) in enumerate(rows) if i and len(set(map(str, values))) > 1]
    every = [[n, *(_value(run.options.get(n)) for run in runs), explained.get(n, "")] for n in sorted(names)]
    kept = ("command", "inputs", "platform", "threads")
    every += [[n, *(_value(run.environment.get(n)) for run in runs), ""] for n in kept]
    head = ["", *(run.name for run in runs)]
    how = "Options in bold differ from the defaults of the recipe; what is not listed is as the recipe has it."
    how += " Shaded rows differ between the runs." if len(runs) > 1 else ""
    rest = folded("All options, command and inputs", table([*head, "meaning"], every, words=True))
    return join([soft(how), table(head, rows, words=True, marked={"differs": differ}), rest])


@cache
def _usual(recipe: str) -> Dict:
    return plain(parse(["--recipe", recipe if recipe in RECIPES else "release"], tuple(TERMS)))


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {str(v)[:12]}" for k, v in value.items() if len(str(v)) < 200)
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)


def results(groups: Groups) -> Optional[Raw]:
    """mAP threshold by threshold: a row a run and set of weights, means over seeds, the published numbers."""
    tables: Dict[Tuple, List[Run]] = {}
    for run in (run for group in groups.values() for run in group if run.results):
        key = run.options["dataset_name"], run.result["protocol"], tuple(run.result["tiou"]), run.simulated
        tables.setdefault(key, []).append(run)
    parts = []
    for (dataset, _, tious, simulated), runs in tables.items():
        first, several = runs[0].result, sum(map(len, groups.values())) > 1
        rows, means = [], []
        for name, group in groups.items():
            mine = [run for run in group if run in runs]
            for run in mine:
                start = f"{run.name}, " if several else ""
                rows += [[f"{start}{k} (epoch {m.get('epoch', '-')})", *row(m)[1:]] for k, m in run.results.items()]
            for kind in mine[0].results if len(mine) > 1 else ():
                both = spread([run.results[kind] for run in mine if kind in run.results])
                cells = [Raw(f"{m}<small> ± {s}</small>") for m, s in zip(row(both["mean"])[1:], row(both["std"])[1:])]
                rows.append([f"{name}, {kind}: mean of {len(mine)} seeds ± sd", *cells])
                means.append(len(rows) - 1)
        beside = {} if simulated else published(dataset, runs[0].options["recipe"], tious)
        rows += beside.values()
        marked = {"differs": means, "published": range(len(rows) - len(beside), len(rows))}
        head = ["mAP (%)", *(f"@{t:g}" for t in tious), *(f"mean {a}" for a in first["average"]), "cls-mAP", "cls-acc"]
        split, end = 1 + len(tious), 1 + len(tious) + len(first["average"])
        head, *rows = ([r[0], *r[split:end], *r[1:split], *r[end:]] for r in [head, *rows])  # means first
        notes = [*rounding_lines(first), *(f"{r[0]}: {' '.join(RESTS_ON[k].split())}" for k, r in beside.items())]
        parts += [said(runs), table(head, rows, marked=marked), *map(soft, notes)]
    how = (
        "mAP at each tIoU threshold and averages over them, in percent; last: the weights after the last epoch, best: "
        "those picked on the test set. cls: classification of whole videos."
    )
    return join([soft(how), *parts]) if parts else None


def over_epochs(groups: Groups) -> Optional[Raw]:
    """Curves from the event files: one run, its thresholds in one panel; several, a panel a tag."""
    from matplotlib import colormaps

    runs = [run for group in groups.values() for run in group if run.scalars]
    if not runs:
        return None
    if len(groups) == 1:  # a colour a seed
        groups = {run.name: [run] for run in runs}
    legend = dict(zip(groups, cycle(COLOURS)))
    colour = {run.name: legend[name] for name, group in groups.items() for run in group}
    names = list(dict.fromkeys(name for run in runs for name in run.scalars))
    one, best = len(runs) == 1, runs[0].results.get("best", {}).get("epoch") if len(runs) == 1 else None

    def grid(title: str, tags: Sequence[str], cut: str, before: str = "", shades: Sequence[object] = ()) -> Raw:
        """Panels of some tags; with shades and a single run, one panel of them all."""
        if one and len(shades):
            lines = [(name[len(cut) :], runs[0].scalars[name], shade) for name, shade in zip(tags, shades)]
            made = [curves(f"{title} (%)", lines, legend=True, mark=best)]
        else:
            lines = {n: [(r.name, r.scalars[n], colour[r.name]) for r in runs if n in r.scalars] for n in tags}
            made = [curves(before + name[len(cut) :], lines[name]) for name in tags]
        alts = [f"{title}: {panel.axes[0].get_title()}" for panel in made]
        return join(embed(panel, f"{title} {i}", alt) for i, (panel, alt) in enumerate(zip(made, alts)))

    start, video = "test_mAP/Detection mAP @ IoU = ", "test_mAP/Classification "
    found = {kind: [n for n in names if n.startswith(kind)] for kind in (start, video, "loss/", "weight/")}
    at, spans = ([n for n in found[start] if (":" in n) == span] for span in (False, True))
    losses = sorted(found["loss/"], key=lambda n: (n != "loss/loss_total", n == "loss/gradient_norm"))
    shades = colormaps["viridis"](np.linspace(0.3, 0.88, len(at)))  # none that paper of either kind hides
    every = grid("mAP at tIoU", at, start, "mAP @ ", shades)
    few = [
        grid("mAP, mean over tIoU", spans, start, "mAP, mean over ", COLOURS),
        grid("classification of videos", found[video], video, "classification ", COLOURS),
    ]
    score = _panels(every, *few) if one else join([_panels(*few), folded("mAP at each tIoU", _panels(every))])
    marks = (f'<span><i style="background:{shade}"></i>{text(name)}</span>' for name, shade in legend.items())
    parts = [] if one else [tag("div", Raw("".join(marks)), class_="chips")]
    for title, content in (
        ("mAP on the test videos", score if found[start] else ""),
        ("Losses, each without its weight, and the norm of the gradient", _panels(grid("loss", losses, "loss/"))),
        ("Weights of the losses", _panels(grid("weight", found["weight/"], "weight/"))),
    ):
        parts += [tag("h3", title), content] if content else []
    how = "From the event files of the runs. A loss is its mean over an epoch; the schedule says how much it counts."
    how += " The dotted line is the best epoch." if best else ""
    return join([soft(how), said(runs), *parts])


def _panels(*content: Raw) -> Raw:
    return tag("div", join(content), class_="panels") if any(content) else Raw("")


def classes(groups: Groups, data: Mapping[str, Data]) -> Optional[Raw]:
    """AP of each class, the best first, with counts; of several groups, their differences."""
    groups = {name: [run for run in group if run.results] for name, group in groups.items()}
    groups = {name: group for name, group in groups.items() if group}
    if not groups:
        return None
    if len(groups) == 1:  # its seeds side by side
        groups = {run.name: [run] for group in groups.values() for run in group}
    first, parts = next(iter(groups.values()))[0], []
    ap = pd.DataFrame({name: pd.DataFrame([class_ap(r.result) for r in g]).mean() for name, g in groups.items()})
    ap = ap.sort_values(ap.columns[0], ascending=False, kind="stable")
    span = list(first.result["average"])[-1]
    known = first.name in data
    counts = class_counts(data[first.name], first.result["protocol"]) if known else pd.DataFrame(index=ap.index)
    single, tious = len(groups) == 1, [f"@{t:g}" for t in first.result["tiou"]]
    counts = counts if single else counts.drop(columns="detections", errors="ignore")
    titles = [f"AP {span}"] if single else [f"{name}, AP {span}" for name in ap]
    rows, head = [], ["class", *titles, *counts.columns, *(tious if single else [])]
    for name, values in ap.iterrows():
        cells = [f"{n:,}" for n in counts.loc[name]] if name in counts.index else ["-"] * len(counts.columns)
        more = [f"{100 * x:.2f}" for x in first.result["AP"][name]] if single else []
        rows.append([name, *map(bar, values), *cells, *more])
    how = f"AP in percent, mean over tIoU {span}, after the last epoch, the best class first"
    how += "; a group's is the mean over its seeds." if any(len(g) > 1 for g in groups.values()) else "."
    how += "" if known else " Counts need the annotations."
    parts += [soft(how), said([r for g in groups.values() for r in g]), table(head, rows)]
    found, why = differences(groups)
    parts += [_less(name, next(iter(groups)), found[name], span, name == next(iter(found))) for name in found]
    parts += [soft(f"Not compared: {line}.") for line in why]
    return join(parts)


def _less(other: str, base: str, by_seed: pd.DataFrame, span: str, open_: bool) -> Raw:
    """What one group has over another, class by class, the largest gain first."""
    mean = by_seed.mean().sort_values(ascending=False, kind="stable")
    total, most, several = by_seed.mean(axis=1), max(mean.abs().max(), 0.01), len(by_seed) > 1
    rows = []
    for title, values in (Raw("<b>mean over classes</b>"), total), *((name, by_seed[name]) for name in mean.index):
        spread_of = [f"{100 * values.std():.2f}", *(f"{100 * x:+.2f}" for x in values)] if several else []
        rows.append([title, change(values.mean(), most), *spread_of])
    head = ["class", "difference", *(["sd", *by_seed.index] if several else [])]
    pairs = f"paired by {len(by_seed)} seeds" if several else f"one pair of runs: {by_seed.index[0]}"
    ahead = f"{other} is ahead in {(mean > 0).sum()} of {len(mean)} classes, behind in {(mean < 0).sum()}"
    title = f"{other} less {base}: {100 * total.mean():+.2f}"
    return folded(title, soft(f"Points of AP {span}, {pairs}. {ahead}."), table(head, rows), open_=open_)


def diagnosis(shown: Sequence[Run], numbers: Mapping[str, Dict]) -> Optional[Raw]:
    """``eval.diagnose``: a table over the runs, then text and pictures of each."""
    runs = [run for run in shown if run.name in numbers]
    if not numbers:
        return None
    kinds = list(next(iter(numbers.values()))["false_positives"]["gain"])
    head = ["%", "mAP", "AP_N", "missed", "lost by proposals", *(f"gain without {kind}s" for kind in kinds)]
    rows = []
    for name, n in numbers.items():
        lost = 1 - n["ceiling"]["single"]["average"] if "ceiling" in n else np.nan
        gains = n["false_positives"]["gain"]
        values = [mean_of(np.asarray(n["mAP"], dtype=float)), n["mean_AP_N"], n["missed"], lost]
        values += [gains[kind] for kind in kinds]
        rows.append([name, *("-" if np.isnan(v) else f"{100 * v:.2f}" for v in values)])
    parts = []
    for run in runs:
        n = numbers[run.name]
        drawn = [
            embed(picture, f"{run.name} {name}", f"{name.replace('_', ' ')} of {run.name}", wide=True)
            for name, picture in diagnose.pictures(n).items()
        ]
        lines = Raw("\n".join(text(line) for line in diagnose.summary(n).splitlines()))
        content = join([tag("div", join(drawn), class_="side"), folded("The numbers as text", tag("pre", lines))])
        several = len(runs) > 1
        parts.append(folded(f"{run.name}: pictures", content, open_=run is runs[0]) if several else content)
    how = (
        "Why the detections score what they score (DETAD, Alwassel et al. 2018; definitions in eval/diagnosis.py). "
        "AP_N does not depend on how frequent a class is; a gain is what AP_N of the best detections would win without "
        "that kind of false positive; missed instances are found by no detection of use; what the proposals lose, no "
        "scoring of them could win."
    )
    return join([soft(how), said(runs), table(head, rows), *parts])


def timelines(
    shown: Sequence[Run],
    data: Mapping[str, Data],
    detections: Mapping[str, Segments],
    videos: Mapping[str, str],
    proposals_root: Optional[str],
) -> Optional[Raw]:
    """Videos one after the other, each as the runs see it."""
    why = {}
    for run in shown:
        if run.name in data:
            given = (run, data[run.name], list(videos), proposals_root)
            why[run.name] = run.attempt("attention and scores over time", judged, *given) or {}
    parts = []
    for video, reason in videos.items():
        parts.append(tag("h3", f"{video}: {reason}" if reason else video))
        for run in shown:
            d, found = data.get(run.name), detections.get(run.name)
            if not found or video not in found.videos:  # a run on other data
                continue
            truth, length_s = (d.truth, d.duration_s.get(video, np.nan)) if d else (None, np.nan)
            drawn = story(video, truth, found, length_s, why.get(run.name, {}).get(video))
            caption, alt = run.name if len(shown) > 1 else "", f"timeline of {video}, {run.name}"
            parts.append(embed(drawn, f"{run.name} {video}", alt, caption, wide=True))
    if not parts:
        return None
    how = (
        "Above, the instances and the best detections (opacity: score). Below, what the network says of the proposals, "
        "from 0 to 1: filled, the mean over the proposals that cover a moment, so that one long proposal cannot hide "
        "where the action is; the line, the highest of them, from which the best detection there comes. A detection's "
        "score is attention x s_pc (unless left out) x class score of one proposal, before soft-NMS. AP of a video: "
        "of its own detections alone, mean over its classes and thresholds."
    )
    return join([soft(how), said(shown), *parts])
