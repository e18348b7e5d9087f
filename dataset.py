"""From files to batches: the splits that training and evaluation run on, and their packed batches."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Collection, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from options import Options
from utils.datasets.annotations import Annotations, read_annotations
from utils.datasets.features import Features, open_features
from utils.datasets.profile import PROFILES, Profile, annotations_path, dataset_root, load_profile, proposals_file
from utils.datasets.proposals import load_proposals
from utils.datasets.rates import check_rate
from utils.datasets.rows import Rows, cached_rows, live_rows
from utils.datasets.simulate import make_demo
from utils.errors import InputError, raise_first, some
from utils.files import content_hash, file_hash, load_array, locked, save_array
from utils.packed import Batch, Packing, pack, send
from utils.run.report import log
from utils.seeds import stream
from utils.segments import Segments, check_units, to_snippets


@dataclass(frozen=True)
class Split:
    """One subset as the network sees it: V videos that have features, proposals in snippets, constant rows."""

    videos: Tuple[str, ...]
    labels: np.ndarray  # float32 [V, C] multi-hot weak labels
    proposals: List[np.ndarray]  # V arrays float64 [M, 2], snippets; M may be 0
    num_snippets: np.ndarray  # int64 [V], T of each
    length_s: np.ndarray  # float64 [V]
    rate: np.ndarray  # float64 [V], snippets per second
    rows: Rows
    hashes: Dict[str, str]  # of "features" and "proposals"

    @property
    def scored(self) -> np.ndarray:
        """Indices of the videos that have proposals."""
        return np.flatnonzero([len(p) > 0 for p in self.proposals])


@dataclass(frozen=True)
class Source:
    """The files of a dataset, each read once; ``instances`` hold the times, which no split does."""

    name: str
    root: Path
    profile: Profile
    annotations: Annotations
    instances: Segments
    ambiguous_s: Dict[str, np.ndarray]  # video -> [K, 2] seconds
    features: Features


@dataclass(frozen=True)
class Dataset:
    """What a run works on. Times of instances are there for the test videos alone, and only evaluation reads them."""

    name: str
    profile: Profile
    classes: Tuple[str, ...]
    train: Optional[Split]
    test: Optional[Split]
    truth: Segments  # of the test videos that have features
    ambiguous_s: Dict[str, np.ndarray]  # video -> [K, 2] seconds
    simulated: bool

    @property
    def version(self) -> str:
        """What detections in this dataset carry as their "version"."""
        return self.name + " (SIMULATED features)" * self.simulated

    @property
    def hashes(self) -> Dict[str, str]:
        """Of all that a training and its evaluations read, by name."""
        splits = {"train": self.train, "test": self.test}
        return {
            "profile": repr(replace(self.profile, proposals_root=None, annotations=None, features=None)),
            "train_labels": content_hash("\0".join(self.train.videos), self.train.labels),
            "ground_truth": self.truth.hash(),
            **{f"{name}_{kind}": h for name, split in splits.items() if split for kind, h in split.hashes.items()},
        }


def open_source(
    name: str, root: Optional[str] = None, num_class: Optional[int] = None, feature_size: Optional[int] = None
) -> Source:
    """Profile, annotations and features of a dataset. Raises InputError naming the file."""
    folder = dataset_root(name, root)
    profile = load_profile(name, folder)
    path = annotations_path(name, folder, profile)
    annotations, instances, ambiguous_s, problems, notes = read_annotations(path, profile)
    raise_first(problems)
    for line in notes:
        log(line)
    if num_class not in (None, len(annotations.classes)):
        what = f"{len(annotations.classes)} classes, --num_class {num_class}"
        raise InputError(what, path, "leave out --num_class")
    features = open_features(name, folder, profile, annotations, feature_size)
    return Source(name, folder, profile, annotations, instances, ambiguous_s, features)


def weak_labels(
    source: Source, split: str, only: Optional[Collection[str]] = None
) -> Tuple[Tuple[str, ...], np.ndarray]:
    """The V videos of a split (or ``only`` some of them) that have features, and their weak labels, multi-hot
    float32 [V, C]."""
    annotations, profile = source.annotations, source.profile
    subset = profile.train_subset if split == "train" else profile.test_subset
    members = [i for i in annotations.of(subset) if only is None or annotations.videos[i] in only]
    if not members:
        todo = f"subsets are {sorted(set(annotations.subset))}"
        raise InputError(f"no video in subset {subset!r}", annotations_path(source.name, source.root, profile), todo)
    featured = set(source.features.videos)
    kept = [i for i in members if annotations.videos[i] in featured]
    if len(kept) < len(members):
        missing = [annotations.videos[i] for i in members if annotations.videos[i] not in featured]
        log(f"{len(kept)} of {len(members)} {split} videos have features; missing: {some(missing)}")
    if not kept:
        raise InputError(f"features of no {split} video", source.features.sources[0], "check names and folder")
    labels = np.zeros((len(kept), len(annotations.classes)), dtype=np.float32)
    for row, i in enumerate(kept):
        labels[row, list(annotations.labels[i])] = 1
    if split == "train" and not labels.any(axis=1).all():
        log(f"{int((~labels.any(axis=1)).sum())} train videos have no label and are trained as background")
    return tuple(annotations.videos[i] for i in kept), labels


def load_dataset(args: Options, splits: Sequence[str] = ("train", "test")) -> Dataset:
    """The dataset that the options name, with these splits; the demo is made on first use. Raises InputError."""
    if args.dataset_name == "Demo":
        ready_demo(args.dataset_root, args.proposals_root)
    source = open_source(args.dataset_name, args.dataset_root, args.num_class, args.feature_size)
    profile, annotations = source.profile, source.annotations
    if "train" in splits and not len(annotations.of(profile.test_subset)):
        log(f"no test videos (subset {profile.test_subset!r}): nothing is evaluated, the last weights are saved")
        splits = ["train"]
    found = {split: load_split(source, split, args) for split in splits}
    for line in source.features.notes:
        log(line)
    test = found.get("test")
    truth = source.instances.keep([v for v in (test.videos if test else ()) if v not in profile.excluded_videos])
    simulated = source.features.simulated is not None
    train = found.get("train")
    return Dataset(source.name, profile, annotations.classes, train, test, truth, source.ambiguous_s, simulated)


def ready_demo(dataset: Optional[str], proposals: Optional[str] = None) -> None:
    """Make the Demo and its proposals in these folders (None: the usual ones), unless it is there."""
    root = dataset_root("Demo", dataset)
    root.parent.mkdir(parents=True, exist_ok=True)
    with locked(root.parent / ".Demo.lock"):
        profile = load_profile("Demo", root) if root.exists() else PROFILES["Demo"]
        path = proposals_file("Demo", profile, "train", proposals)
        if not root.exists():
            log(f"making the Demo dataset in {root}: simulated features, to try the program, not for results")
            make_demo(root, proposals_root=path.parent)
        elif not path.exists():
            todo = f"check --proposals_root, or delete {root}: both are then made again"
            raise InputError("the Demo without its proposals", path, todo)


def load_split(source: Source, split: str, args: Options, only: Optional[Collection[str]] = None) -> Split:
    """Read one split ("train" or "test"), or only some of its videos, and open or build the cache of its SCFE inputs.
    Raises InputError."""
    annotations, profile, features = source.annotations, source.profile, source.features
    videos, labels = weak_labels(source, split, only)
    signature = features.signature(videos)
    cache_dir = None if args.no_cache else Path(args.cache_dir)
    num_snippets = _lengths(source, split, videos, signature, cache_dir)
    rate, length_s = timing(source, split, videos, num_snippets, args.ignore_rate)
    duration_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    mine = source.instances.keep(videos)
    check_units(mine.segment_s, length_s[mine.video], f"{split} instances", source.name)
    path = proposals_file(source.name, profile, split, args.proposals_root)
    found = load_proposals(path, {**duration_s, **dict(zip(videos, length_s))}, args.fix_proposals)
    raise_first(found.problems)
    for line in found.notes:
        log(line)
    proposals = [to_snippets(found.segments_s.get(v, np.zeros((0, 2))), r) for v, r in zip(videos, rate)]
    without = [v for v, p in zip(videos, proposals) if not len(p)]
    if len(without) == len(videos):
        raise InputError(f"proposals for none of the {len(videos)} {split} videos", path, "check its video names")
    if without:
        effect = "not trained on" if split == "train" else "no detections from them"
        log(f"{len(without)} of {len(videos)} {split} videos have no proposal ({effect}): {some(without)}")
    how = (args.roi_size, args.rows_dtype)
    if cache_dir is None:
        rows = live_rows(videos, proposals, features.load, *how)
    else:
        rows = cached_rows(cache_dir, f"{source.name}-{split}", videos, proposals, features.load, signature, *how)
    features.release()
    hashes = {"features": content_hash(num_snippets, rows.video_mean), "proposals": file_hash(path)}
    return Split(videos, labels, proposals, num_snippets, length_s, rate, rows, hashes)


def timing(
    source: Source, split: str, videos: Sequence[str], num_snippets: np.ndarray, ignore_rate: bool
) -> Tuple[np.ndarray, np.ndarray]:
    """Snippets per second and length in seconds, float64 [V] each; InputError where the features do not fit the rate.

    num_snippets: T of each video, int64 [V].
    """
    annotations, profile = source.annotations, source.profile
    duration_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    stated_s = np.asarray([duration_s[v] for v in videos])
    fit = check_rate(videos, num_snippets, stated_s, profile)
    if fit and fit.problem and not ignore_rate:
        problem = fit.problem
        raise InputError(problem.what, problem.where, f"{problem.todo}; --ignore_rate goes on")
    if fit and fit.off:
        text = f"{len(fit.off)} of {len(videos)} {split} videos have features of another length than their duration"
        log(f"{text}: {some(fit.off, 3)}; python -m utils.tools.check says more")
    rate = profile.rates(videos, num_snippets, stated_s)
    return rate, np.where(np.isfinite(stated_s), stated_s, (num_snippets + 1) / rate)  # a partial snippet has no row


def _lengths(
    source: Source, split: str, videos: Sequence[str], signature: str, cache_dir: Optional[Path]
) -> np.ndarray:
    """T of each video, int64 [V], remembered beside the cache: features that cannot be looked into are read for it."""
    path = cache_dir and cache_dir / f"{source.name}-{split}-{signature}.npy"
    if path and path.exists():
        with suppress(InputError):  # damaged: read again
            found = load_array(path)
            if found.shape == (len(videos), 2) and found.dtype == np.int64:
                source.features.cut.update({v: n for v, n in zip(videos, found[:, 1].tolist()) if n})
                return found[:, 0]
    lengths = [source.features.length(v) for v in videos]
    found = np.asarray([(n, source.features.cut.get(v, 0)) for v, n in zip(videos, lengths)], dtype=np.int64)
    if path:
        save_array(path, found)
    return found[:, 0]


def epoch_order(videos: np.ndarray, batch_size: int, seed: int, epoch: int) -> List[np.ndarray]:
    """The batches of one epoch: videos in a new order, the last partial batch dropped (unless it is the only one)."""
    order = videos[stream(seed, "order of videos", epoch).permutation(len(videos))]
    size = min(batch_size, len(order))
    return [order[i : i + size] for i in range(0, len(order) - size + 1, size)]


class Inputs(NamedTuple):
    """What the network takes: distinct rows, and the row of each proposal."""

    rows: Tensor  # float32, or bfloat16 where they are kept so, [U, 6D]
    index: Tensor  # int64 [N + K], and after them that of each draw of the row that pads the batch


def packed_batch(
    split: Split,
    videos: Sequence[int],
    device: torch.device,
    pseudo: Optional[Tuple[np.ndarray, np.ndarray]] = None,
    max_proposal: Optional[int] = None,
    seed: int = 0,
    epoch: int = 0,
    draws: int = 0,
) -> Tuple[Inputs, Batch]:
    """Pack some videos of a split on ``device``: inputs of the network, and the batch that the losses see.

    Each video needs a proposal. pseudo: pseudo-label and confidence of every video of the split, int64 [V] each. Of a
    video with more than ``max_proposal`` proposals a random subset is taken, drawn for each epoch and video. draws: of
    the row that pads a batch (utils/packed.py). All that depends on the batch alone is made here, on the host, and
    travels to the device in one copy.
    """
    videos = list(videos)
    picks, index, proposals = [], [], []
    for v in videos:
        rows, segments = split.rows.index[v], split.proposals[v]
        used = np.arange(split.rows.size[v])
        if max_proposal is not None and len(rows) > max_proposal:
            draw = stream(seed, "proposals of a video", epoch, int(v)).permutation(len(rows))[:max_proposal]
            draw.sort()
            used, rows = np.unique(rows[draw], return_inverse=True)
            segments = segments[draw]
        index.append(rows.reshape(-1) + sum(map(len, picks)))
        picks.append(used)
        proposals.append(segments)

    counts, *packing, weight = pack(tuple(map(len, proposals)), draws)
    of_split = [split.labels, *(pseudo or np.zeros((2, len(split.videos)), np.int64))]
    index.append(np.arange(draws) + sum(map(len, picks)))
    made = [np.concatenate(index), split.rows.places(videos, picks), np.concatenate(proposals).astype(np.float32)]
    made = [torch.from_numpy(values) for values in (*made, *(values[videos] for values in of_split))]
    index, places, segments, labels, label, confidence, *packing = send([*made, *packing, weight.float()], device)
    names = tuple(split.videos[v] for v in videos)
    rows = split.rows.gather(videos, picks, places).to(device, non_blocking=True)
    return Inputs(rows, index), Batch(segments, Packing(counts, *packing), labels, label, confidence, names)
