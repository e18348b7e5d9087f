"""The numbers behind a report (``eval.report``): what the folders of runs hold, how runs compare, and what the dataset
and the checkpoint add: instances, diagnosis, and what the network says of proposals."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, TypeVar

import numpy as np
import pandas as pd

from dataset import load_split, open_source
from eval.average_precision import Columns, average_precision
from eval.detection import comparable, in_protocol, within
from eval.diagnosis import BINS, diagnose
from eval.inference import left_out, load_trained, score
from eval.postprocess import fuse
from losses import TERMS
from model import check_classes
from options import DEFAULTS, parse
from utils.datasets.annotations import Read, read_annotations
from utils.datasets.features import open_features
from utils.datasets.profile import Profile, annotations_path, dataset_root, load_profile, proposals_file
from utils.datasets.proposals import load_proposals
from utils.errors import InputError, os_error_line, raise_first, some
from utils.files import load_json
from utils.segments import Segments, spelled

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

    def attempt(self, missing: str, get: Callable[..., Found], *arguments: object) -> Optional[Found]:
        """``get(*arguments)``; where its files are not there or damaged, None and a note that says what is missing."""
        try:
            return get(*arguments)
        except (InputError, OSError) as error:
            self.notes.append(f"{missing}: {os_error_line(error) if isinstance(error, OSError) else error}")
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
    run = Run(folder, folder.resolve().name, {**DEFAULTS, **options})  # an option that came later had its default
    run.environment = run.attempt("versions", _dict, folder / "environment.json") or {}
    if options["run_type"] == "predict":
        run.notes.append("a prediction: there are no instances to compare its detections with")
    elif not (folder / "results.json").is_file():
        run.notes.append("no results.json: nothing has been evaluated, or there are no test videos")
    else:
        run.results = run.attempt("results", _results, folder / "results.json", options) or {}
    if (folder / "detections.json").is_file():
        run.document = run.attempt("detections", _dict, folder / "detections.json")
    elif run.results:
        run.notes.append("no detections.json: no diagnosis and no timelines")
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
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    return {tag: pd.Series(values, dtype=float).sort_index() for tag, values in sorted(found.items())}


def name_runs(runs: Sequence[Run]) -> None:
    """Give each run the shortest end of its path that tells it from the others; a seed, with the folder above."""
    paths = [run.folder.resolve().as_posix() for run in runs]
    for run, path in zip(runs, paths):
        parts = path.split("/")
        least = 2 if parts[-1][:4] == "seed" and parts[-1][4:].isdigit() else 1
        ends = ("/".join(parts[-n:]) for n in range(least, len(parts)))
        run.name = next((end for end in ends if sum(p.endswith(f"/{end}") for p in paths) == 1), path)


def groups_of(runs: Sequence[Run]) -> Dict[str, List[Run]]:
    """The runs that differ in their seed alone, by name; a seed that comes again begins another group."""
    found: Dict[Tuple, List[Run]] = {}
    times: Counter = Counter()
    for run in runs:
        key = repr(sorted((k, str(v)) for k, v in run.options.items() if k not in APART))
        times[key, run.options["seed"]] += 1
        found.setdefault((key, times[key, run.options["seed"]]), []).append(run)
    named: Dict[str, List[Run]] = {}
    for group in found.values():
        name = group[0].name
        if len(group) > 1:
            together = "/" in name and len({run.folder.resolve().parent for run in group}) == 1
            name = name.rsplit("/", 1)[0] if together else f"{name} and {len(group) - 1} more"
        named[group[0].name if name in named else name] = group
    return named


# ---- comparing


def class_ap(metrics: Mapping) -> pd.Series:
    """AP of each class, a fraction: the mean over the thresholds of the last average (THUMOS14: 0.1:0.7)."""
    span = within(metrics["tiou"], list(metrics["average"])[-1])
    return pd.Series({name: float(np.mean(np.asarray(ap)[span])) for name, ap in metrics["AP"].items()}, dtype=float)


def differences(groups: Mapping[str, Sequence[Run]]) -> Tuple[Dict[str, pd.DataFrame], List[str]]:
    """AP of each class of every group less that of the first, fractions [seeds that were paired, classes] by name of
    the group; and why some cannot be paired. Two groups of one run each are a pair whatever their seeds.
    """
    (base, first), *others = groups.items()
    found, why = {}, []
    for name, group in others:
        mine, theirs = ({run.options["seed"]: run for run in runs if run.results} for runs in (first, group))
        pairs = {f"seed {s}": (mine[s], theirs[s]) for s in mine if s in theirs}
        if not pairs and len(mine) == len(theirs) == 1:
            (a, ours), (b, other) = (*mine.items(), *theirs.items())
            pairs = {f"seed {b} less seed {a}": (ours, other)}
        rows = {
            seed: class_ap(other.result) - class_ap(ours.result)
            for seed, (ours, other) in pairs.items()
            if ours.options["dataset_name"] == other.options["dataset_name"]
            and all(ours.result[k] == other.result[k] for k in ("protocol", "tiou"))
        }
        if rows:
            found[name] = pd.DataFrame(rows).T.dropna(axis=1)
        else:
            why.append(f"{name} and {base} share no seed with results of one dataset, protocol and set of thresholds")
    return found, why


# ---- the dataset


@dataclass(frozen=True)
class Data:
    """What the annotations say of a run's detections; ``truth`` and ``found`` hold the videos that it scored."""

    root: Path
    profile: Profile
    truth: Segments
    found: Segments
    duration_s: Dict[str, float]


@lru_cache(maxsize=4)
def _annotations(name: str, root: Path) -> Tuple[Profile, Read, bool]:
    profile = load_profile(name, root)
    read = read_annotations(annotations_path(name, root, profile), profile)
    raise_first(read.problems)
    simulated = False
    with suppress(InputError, OSError):  # said where the features are needed
        simulated = open_features(name, root, profile, read.annotations).simulated is not None
    return profile, read, simulated


def open_data(run: Run, root: Optional[str] = None) -> Data:
    """The dataset that the run's options name, or the one in ``root``. Raises InputError."""
    name = run.options["dataset_name"]
    folder = dataset_root(name, root or run.options.get("dataset_root"))
    profile, (annotations, instances, *_), run.simulated_data = _annotations(name, folder)
    found, unknown = Segments.from_json(run.document or {"results": {}}, annotations.classes, "detections.json")
    found = replace(found, videos=tuple(spelled(found.videos, set(annotations.videos)).values()))
    if unknown:
        line = f"{sum(unknown.values()):,} detections are of no class of this dataset: {some(sorted(unknown))}"
        run.notes.append(line)
    subset = {annotations.videos[i] for i in annotations.of(profile.test_subset)}
    scored = [v for v in found.videos if v in subset and v not in profile.excluded_videos]
    duration_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    return Data(folder, profile, instances.keep(scored), found.keep(scored), duration_s)


def diagnosed(run: Run, data: Data, proposals_root: Optional[str] = None) -> Dict:
    """``eval.diagnosis`` of the run's detections, with the ceiling where its proposals are found."""

    def proposals() -> Dict[str, np.ndarray]:
        root = proposals_root or run.options.get("proposals_root")
        path = proposals_file(run.options["dataset_name"], data.profile, "test", root)
        return load_proposals(path, {v: data.duration_s[v] for v in data.truth.videos}, fix=True).segments_s

    where = (data.truth, data.found, data.profile, run.result["protocol"], data.duration_s)
    bins = BINS.get(run.options["dataset_name"])
    numbers = diagnose(*where, bins, run.result["tiou"], proposals_s=run.attempt("ceiling", proposals))
    said = [np.nan if x is None else x for x in run.result["mAP"]]
    if not np.allclose(numbers["mAP"], said, atol=1e-5, equal_nan=True):
        text = "detections.json and these annotations give another mAP than results.json"
        both = f"{100 * np.mean(numbers['mAP']):.2f}, {100 * np.mean(said):.2f}"
        run.notes.append(f"{text} ({both}): not the run's data?")
    return numbers


def class_counts(data: Data, protocol: str) -> pd.DataFrame:
    """Instances, videos that hold them and detections of each class, of the videos that the protocol counts."""
    truth = in_protocol(data.truth, protocol)
    instances = pd.DataFrame({"video": truth.video, "label": truth.label}).groupby("label")["video"]
    detections = pd.Series(data.found.keep(truth.videos).label).value_counts()
    counts = pd.DataFrame({"instances": instances.size(), "videos": instances.nunique(), "detections": detections})
    return counts.reindex(range(len(truth.classes)), fill_value=0).fillna(0).astype(int).set_axis(list(truth.classes))


def video_ap(data: Data, protocol: str) -> pd.Series:
    """AP of each video that has instances, best first: the mean over its classes and the profile's thresholds of the
    AP that its own detections of that class have among its own instances."""
    truth, C = in_protocol(data.truth, protocol), len(data.truth.classes)
    instances, found, scores = comparable(truth, data.found, data.profile, protocol)
    pairs, pair = np.unique(instances.video * C + instances.label, return_inverse=True)  # each ranked on its own
    own = pd.Index(pairs).get_indexer(found.video * C + found.label)  # -1: no instance of that class in that video
    detections = Columns(found.video[own >= 0], found.segment[own >= 0], own[own >= 0])
    instances = instances._replace(label=pair.reshape(-1))
    ap = average_precision(instances, detections, scores[own >= 0], len(pairs), data.profile.tiou_thresholds)
    values = pd.Series(ap.mean(axis=0)).groupby(pairs // C).mean().rename(dict(enumerate(truth.videos)))
    return values.sort_values(ascending=False, kind="stable")


# ---- why: what the network says of the proposals


class Judged(NamedTuple):
    """The M proposals of a video, and what the network says of each, in [0, 1]."""

    segment_s: np.ndarray  # float64 [M, 2]
    attention: np.ndarray  # [M]
    s_pc: np.ndarray  # [M]
    class_score: np.ndarray  # [M, C], softmax of s_base over the classes and background
    s_pc_left_out: bool  # the score is without it, for nothing trained it or the run says so


def judged(run: Run, data: Data, videos: Sequence[str], proposals_root: Optional[str] = None) -> Dict[str, Judged]:
    """Run the checkpoint of a run on some of its test videos, those with features and proposals. Raises InputError."""
    name, tested = run.options["dataset_name"], run.options["run_type"] == "test"
    checkpoint = Path(str(run.options.get("pretrained_ckpt"))) if tested else run.folder / "ckpt" / "last_model.pkl"
    args = parse([], tuple(TERMS)).replace(dataset_name=name, pretrained_ckpt=str(checkpoint))
    model, args, info = load_trained(args)
    check_classes(checkpoint, model, info, data.truth.classes)
    source = open_source(name, str(data.root), feature_size=model.feature_size)
    args = args.replace(
        proposals_root=proposals_root or run.options.get("proposals_root"),
        score_s_pc=run.options.get("score_s_pc", args.score_s_pc),
        **{"fix_proposals": True, "ignore_rate": True, "no_cache": True, "amp": "off"},
    )
    split = load_split(source, "test", args, videos)
    if split.rows.width != 3 * model.feature_size:
        what = f"the checkpoint is for features of width {model.feature_size}, the data have {split.rows.width // 3}"
        raise InputError(what, checkpoint, "give --dataset_root")
    found = {}
    for v, outputs in score(model, split):
        segments = split.proposals[v]
        columns = outputs["attention"], outputs["s_pc"], fuse(outputs["s_base"], np.ones(len(segments)))[0]
        found[split.videos[v]] = Judged(segments / split.rate[v], *columns, "s_pc" in left_out(args))
    return found


def density(segment_s: np.ndarray, value: np.ndarray, at_s: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Mean and maximum of ``value`` [M] over the proposals [M, 2] that cover each moment [T]; NaN where none does.

    The mean says how a moment is judged: one long proposal cannot hide where the action is. The maximum says what the
    best detection there can come from.
    """
    covers = (segment_s[:, :1] <= at_s) & (at_s <= segment_s[:, 1:])
    count = covers.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.where(covers, value[:, None], -np.inf).max(axis=0, initial=-np.inf)
        return np.where(covers, value[:, None], 0).sum(axis=0) / count, np.where(count, most, np.nan)
