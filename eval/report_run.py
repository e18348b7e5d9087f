"""What the folders of runs hold, and how runs compare: the numbers behind a report (``eval.report``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, TypeVar

import numpy as np
import pandas as pd

from eval.detection import within
from losses import TERMS
from options import NUMBERS, OPTIONS, RECIPES, parse
from utils.errors import InputError, os_error_line
from utils.files import load_json
from utils.run.experiment import plain

TODO = "give the --exp_dir of a run, or the folder of --seeds"
# options that say where and how a run was made, not what it is
APART = {"exp_dir", "resume", "cache_dir", "no_cache", "save_seconds", "seeds", "jobs", "seed", "device", "processes"}
Found = TypeVar("Found")


@dataclass(eq=False)
class Run:
    """The files of one run, each empty or None where it is not there; ``notes`` say what is missing and why."""

    folder: Path
    name: str
    options: Dict
    environment: Dict = field(default_factory=dict)
    results: Dict[str, Dict] = field(default_factory=dict)  # metrics of "last" and "best", or of a tested checkpoint
    scalars: Dict[str, pd.Series] = field(default_factory=dict)  # tag of TensorBoard -> values by epoch
    document: Optional[Dict] = None  # detections.json
    simulated_data: bool = False  # whether the features that its options name are marked so
    notes: List[str] = field(default_factory=list)

    @property
    def result(self) -> Optional[Dict]:
        """The metrics of its last weights."""
        return next(iter(self.results.values()), None)

    @property
    def simulated(self) -> bool:
        """Whether its features are known to be simulated."""
        said = any(metrics.get("simulated") for metrics in self.results.values())
        return said or self.simulated_data or "SIMULATED" in str((self.document or {}).get("version"))

    def attempt(self, get: Callable[[], Found], missing: str = "") -> Optional[Found]:
        """``get()``; where its files are not there or damaged, None and a note that says what the report lacks."""
        try:
            return get()
        except (InputError, OSError) as error:
            line = os_error_line(error) if isinstance(error, OSError) else str(error)
            self.notes.append(f"{missing}: {line}" if missing else line)
            return None


# ---- the folder


def runs_of(folder: Path) -> List[Run]:
    """The run in a folder, or those of its seeds. Raises InputError where there is none."""
    seeds = [p for p in folder.glob("seed*") if p.name[4:].isdigit() and (p / "options.json").is_file()]
    return [read_run(p) for p in sorted(seeds, key=lambda p: int(p.name[4:])) or [folder]]


def read_run(folder: Path) -> Run:
    """Read the files of a run. Raises InputError unless it has the options of one."""
    if not (folder / "options.json").is_file():
        raise InputError("no run is here, for it has no options.json", folder, TODO)
    options = load_json(folder / "options.json")
    names = {"dataset_name": str, "run_type": str, "recipe": str, "seed": int}
    if not isinstance(options, dict) or not all(isinstance(options.get(k), kind) for k, kind in names.items()):
        raise InputError("not the options of a run", folder / "options.json", TODO)
    run = Run(folder, folder.resolve().name, options)
    run.environment = run.attempt(lambda: _dict(folder / "environment.json"), "versions") or {}
    if options["run_type"] == "predict":
        run.notes.append("a prediction: there are no instances to compare its detections with")
    elif not (folder / "results.json").is_file():
        run.notes.append("no results.json: nothing has been evaluated, or there are no test videos")
    else:
        run.results = run.attempt(lambda: _results(folder / "results.json", options), "results") or {}
    if (folder / "detections.json").is_file():
        run.document = run.attempt(lambda: _dict(folder / "detections.json"), "detections")
    if options["run_type"] == "train":
        run.scalars = read_scalars(folder / "logs")
        if not run.scalars:
            run.notes.append("no curves: logs/ holds no events")
    return run


def _dict(path: Path) -> Dict:
    value = load_json(path)
    if not isinstance(value, dict):
        raise InputError("no JSON object", path)
    return value


def _results(path: Path, options: Mapping) -> Dict[str, Dict]:
    value = _dict(path)
    checkpoint = str(options.get("pretrained_ckpt") or "tested").replace("\\", "/").rsplit("/")[-1]
    found = {checkpoint: value} if "mAP" in value else {k: value.get(k) for k in ("last", "best")}
    form = {"mAP": list, "tiou": list, "average": dict, "AP": dict, "protocol": str, "videos": int}
    for metrics in found.values():
        if not isinstance(metrics, dict) or not all(isinstance(metrics.get(k), kind) for k, kind in form.items()):
            raise InputError("not the results of a run", path)
        if not metrics["average"] or len(metrics["mAP"]) != len(metrics["tiou"]):
            raise InputError("results that do not fit", path)
    return found


def read_scalars(folder: Path) -> Dict[str, pd.Series]:
    """Tag -> values by epoch, from the event files of a run, in the order of tags; what a resumed run replaced is
    gone. Empty without any."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    kinds = ("images", "tensors", "audio", "histograms", "compressedHistograms")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, **dict.fromkeys(kinds, 1)}).Reload()
    found = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    return {tag: pd.Series(values, dtype=float).sort_index() for tag, values in sorted(found.items())}


def name_runs(runs: Sequence[Run]) -> None:
    """Give each run the shortest end of its path that tells it from the others; a seed, with the folder above."""
    paths = [run.folder.resolve().parts for run in runs]
    for i, run in enumerate(runs):
        least = 2 if paths[i][-1][:4] == "seed" and paths[i][-1][4:].isdigit() else 1
        names = ("/".join(paths[i][-n:]) for n in range(least, len(paths[i]) + 1))
        others = ["/".join(p) for k, p in enumerate(paths) if k != i]
        run.name = next((n for n in names if not any(o.endswith("/" + n) for o in others)), str(run.folder))


def groups_of(runs: Sequence[Run]) -> Dict[str, List[Run]]:
    """The runs that differ in their seed alone, by name; a seed that comes again begins another group."""
    found: Dict[str, List[Run]] = {}
    for run in runs:
        key = repr(sorted((k, str(v)) for k, v in run.options.items() if k not in APART))
        again = sum(r.options["seed"] == run.options["seed"] for k, g in found.items() if k.startswith(key) for r in g)
        found.setdefault(f"{key}{again}", []).append(run)
    named: Dict[str, List[Run]] = {}
    for group in found.values():
        above = {run.folder.resolve().parent for run in group}
        one = len(group) > 1 and len(above) == 1 and "/" in group[0].name
        name = (
            group[0].name.rsplit("/", 1)[0] if one else group[0].name + f" and {len(group) - 1} more" * (len(group) > 1)
        )
        named[name if name not in named else group[0].name] = group
    return named


def defaults(options: Mapping) -> Dict:
    """What the options would be if nothing but the recipe had been named."""
    recipe = options["recipe"] if options["recipe"] in RECIPES else "release"
    return plain(parse(["--recipe", recipe], tuple(TERMS)))


def meanings() -> Dict[str, str]:
    """Every option by name, in words."""
    found = {option.name: option.help.split(" (default")[0] for group in OPTIONS.values() for option in group}
    return {**found, **{n.name: n.meaning for n in NUMBERS}, "losses": "losses beside classification"}


# ---- comparing


def class_ap(metrics: Mapping) -> pd.Series:
    """AP of each class, a fraction: the mean over the thresholds of the last average (THUMOS14: 0.1:0.7)."""
    span = within(metrics["tiou"], list(metrics["average"])[-1])
    return pd.Series({name: float(np.mean(np.asarray(ap)[span])) for name, ap in metrics["AP"].items()}, dtype=float)


class Difference(NamedTuple):
    """What one group of runs has over another, in AP of each class: by seed [n, classes], fractions."""

    base: str
    other: str
    seeds: List[str]  # what was paired
    by_seed: pd.DataFrame


def differences(groups: Mapping[str, Sequence[Run]]) -> Tuple[List[Difference], List[str]]:
    """AP of each class of every group less that of the first, paired by seed, and why some cannot be paired.

    Two groups of one run each are a pair whatever their seeds.
    """
    (base, first), *others = groups.items()
    found, why = [], []
    for name, group in others:
        mine, theirs = ({run.options["seed"]: run for run in runs if run.results} for runs in (first, group))
        shared = [(f"seed {s}", mine[s], theirs[s]) for s in mine if s in theirs]
        if not shared and len(mine) == len(theirs) == 1:
            (a, ours), (b, other) = (*mine.items(), *theirs.items())
            shared = [(f"seed {b} less seed {a}", ours, other)]
        rows = {}
        for seed, ours, other in shared:
            same = ours.options["dataset_name"] == other.options["dataset_name"]
            if same and all(ours.result[k] == other.result[k] for k in ("protocol", "tiou")):
                rows[seed] = class_ap(other.result) - class_ap(ours.result)
        if rows:
            found.append(Difference(base, name, list(rows), pd.DataFrame(rows).T.dropna(axis=1)))
        else:
            why.append(f"{name} and {base} share no seed with results of one dataset, protocol and set of thresholds")
    return found, why
