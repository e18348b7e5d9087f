"""What the dataset and the checkpoint add to the folder of a run: instances, diagnosis, and what the network says of
proposals (``eval.report``)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from dataset import Source, Split, timing
from eval.average_precision import Columns, average_precision
from eval.detection import comparable, in_protocol
from eval.diagnosis import BINS, diagnose
from eval.inference import left_out, load_trained, score
from eval.postprocess import fuse
from eval.report_run import Run
from losses import TERMS
from model import check_classes
from options import parse
from utils.datasets.annotations import Read, read_annotations
from utils.datasets.features import open_features
from utils.datasets.profile import Profile, annotations_path, dataset_root, load_profile, proposals_file
from utils.datasets.proposals import load_proposals
from utils.datasets.rows import live_rows
from utils.errors import InputError, raise_first, some
from utils.segments import Segments, spelled, to_snippets


@dataclass(frozen=True)
class Data:
    """What the annotations say of a run's detections; ``truth`` and ``found`` hold the videos that it scored."""

    name: str
    root: Path
    profile: Profile
    read: Read
    truth: Segments
    found: Segments
    duration_s: Dict[str, float]


@lru_cache(maxsize=4)
def _annotations(name: str, root: Path) -> Tuple[Profile, Read, bool]:
    profile = load_profile(name, root)
    read = read_annotations(annotations_path(name, root, profile), profile)
    raise_first(read.problems)
    try:
        marked = open_features(name, root, profile, read.annotations).simulated is not None
    except (InputError, OSError):  # said where the features are needed
        marked = False
    return profile, read, marked


def open_data(run: Run, root: Optional[str] = None) -> Data:
    """The dataset that the run's options name, or the one in ``root``. Raises InputError."""
    name = run.options["dataset_name"]
    folder = dataset_root(name, root or run.options.get("dataset_root"))
    profile, read, run.simulated_data = _annotations(name, folder)
    annotations = read.annotations
    found, unknown = Segments.from_json(run.document or {"results": {}}, annotations.classes, "detections.json")
    found = replace(found, videos=tuple(spelled(found.videos, set(annotations.videos)).values()))
    if unknown:
        run.notes.append(
            f"{sum(unknown.values()):,} detections are of no class of this dataset: {some(sorted(unknown))}"
        )
    subset = {annotations.videos[i] for i in annotations.of(profile.test_subset)}
    scored = [v for v in found.videos if v in subset and v not in profile.excluded_videos]
    duration_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    return Data(name, folder, profile, read, read.instances.keep(scored), found.keep(scored), duration_s)


def bare_detections(run: Run) -> Segments:
    """The run's detections where there are no annotations: the classes are those that it names. Raises InputError."""
    results = (run.document or {}).get("results")
    entries = [e for v in results.values() if isinstance(v, list) for e in v] if isinstance(results, dict) else []
    labels = {e["label"] for e in entries if isinstance(e, dict) and isinstance(e.get("label"), str)}
    return Segments.from_json(run.document or {"results": {}}, sorted(labels), "detections.json")[0]


def diagnosed(run: Run, data: Data, proposals_root: Optional[str] = None) -> Dict:
    """``eval.diagnosis`` of the run's detections, with the ceiling where its proposals are found."""
    protocol = run.result["protocol"]
    given = run.attempt(lambda: _proposals(run, data, data.truth.videos, data.duration_s, proposals_root), "ceiling")
    where = (data.truth, data.found, data.profile, protocol, data.duration_s)
    numbers = diagnose(*where, BINS.get(data.name), run.result["tiou"], proposals_s=given)
    said = [np.nan if x is None else x for x in run.result["mAP"]]
    if not np.allclose(numbers["mAP"], said, atol=1e-5, equal_nan=True):
        text = "detections.json and these annotations give another mAP than results.json"
        run.notes.append(
            f"{text} ({100 * np.mean(numbers['mAP']):.2f}, {100 * np.mean(said):.2f}): not the run's data?"
        )
    return numbers


def _proposals(
    run: Run, data: Data, videos: Sequence[str], length_s: Mapping[str, float], root: Optional[str]
) -> Dict[str, np.ndarray]:
    """video -> [M, 2] seconds of the proposals that the run scored."""
    path = proposals_file(data.name, data.profile, "test", root or run.options.get("proposals_root"))
    found = load_proposals(path, {v: length_s.get(v, np.nan) for v in videos}, fix=True)
    return found.segments_s


def class_counts(data: Data, protocol: str) -> pd.DataFrame:
    """Instances, videos that hold them and detections of each class, of the videos that the protocol counts."""
    truth = in_protocol(data.truth, protocol)
    instances = pd.DataFrame({"video": truth.video, "label": truth.label})
    detections = np.bincount(data.found.keep(truth.videos).label, minlength=len(truth.classes))
    frame = pd.DataFrame({"instances": instances.groupby("label").size()}, range(len(truth.classes)))
    frame["videos"] = instances.groupby("label")["video"].nunique()
    return frame.fillna(0).astype(int).assign(detections=detections).set_axis(list(truth.classes))


def video_ap(data: Data, protocol: str) -> pd.Series:
    """AP of each video that has instances, best first: the mean over its classes and the profile's thresholds of the
    AP that its own detections of that class have among its own instances."""
    truth, C = in_protocol(data.truth, protocol), len(data.truth.classes)
    instances, found, scores = comparable(truth, data.found, data.profile, protocol)
    keys, label = np.unique(instances.video * C + instances.label, return_inverse=True)
    key = found.video * C + found.label
    place = np.minimum(np.searchsorted(keys, key), max(len(keys) - 1, 0))
    mine = keys[place] == key if len(keys) else np.zeros(len(key), bool)
    detections = Columns(found.video[mine], found.segment[mine], place[mine])
    instances = instances._replace(label=label.reshape(-1))
    ap = average_precision(instances, detections, scores[mine], len(keys), data.profile.tiou_thresholds)
    values = pd.Series(ap.mean(axis=0), index=keys // C).groupby(level=0).mean()
    values.index = [truth.videos[v] for v in values.index]
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
    annotations, given = data.read.annotations, run.options.get("pretrained_ckpt")
    tested = run.options["run_type"] == "test"
    checkpoint = Path(str(given)) if tested else run.folder / "ckpt" / "last_model.pkl"
    args = parse([], tuple(TERMS)).replace(dataset_name=data.name, pretrained_ckpt=str(checkpoint))
    model, args, info = load_trained(args)
    check_classes(checkpoint, model, info, annotations.classes)
    features = open_features(data.name, data.root, data.profile, annotations, model.feature_size)
    videos = [v for v in videos if v in set(features.videos)]
    if not videos:
        return {}
    source = Source(data.name, data.root, data.profile, *data.read[:3], features)
    snippets = np.asarray([features.length(v) for v in videos], dtype=np.int64)
    rate, length_s = timing(source, "test", videos, snippets, ignore_rate=True)
    given = _proposals(run, data, videos, {**data.duration_s, **dict(zip(videos, length_s))}, proposals_root)
    segments = [to_snippets(given.get(v, np.zeros((0, 2))), r) for v, r in zip(videos, rate)]
    if not any(map(len, segments)):
        return {}
    rows = live_rows(videos, segments, features.load, args.roi_size)
    if rows.width != 3 * model.feature_size:
        what = f"the checkpoint is for features of width {model.feature_size}, the data have {rows.width // 3}"
        raise InputError(what, checkpoint, "give --dataset_root")
    labels = np.zeros((len(videos), len(annotations.classes)), np.float32)
    split = Split(tuple(videos), labels, segments, snippets, length_s, rate, rows, {})
    without = left_out(args.replace(score_s_pc=run.options.get("score_s_pc", args.score_s_pc)))
    found = {}
    for v, outputs in score(model, split):
        columns = outputs["attention"], outputs["s_pc"], fuse(outputs["s_base"], np.ones(len(segments[v])))[0]
        found[videos[v]] = Judged(segments[v] / rate[v], *columns, "s_pc" in without)
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
