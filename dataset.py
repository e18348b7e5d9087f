"""From files to batches: the splits that training and evaluation run on, and their packed batches.

``python dataset.py check …`` verifies a dataset and reports; ``python dataset.py convert …`` changes its form.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from options import Parser
from proposals import check_segments, load_proposals, to_snippets
from utils.annotations import Annotations, read_weak_labels
from utils.cache import FileHashes, Rows, cached_rows, locked
from utils.check import check_dataset
from utils.convert import add_command
from utils.demo import make_demo
from utils.errors import InputError, run_command
from utils.features import Features
from utils.files import file_hash
from utils.packed import Batch
from utils.profile import (
    PROFILES,
    GroundTruth,
    Profile,
    annotations_path,
    dataset_root,
    load_ground_truth,
    load_profile,
    proposals_file,
)
from utils.report import log, some
from utils.seeds import stream


@dataclass(frozen=True)
class Split:
    """One subset as the network sees it: V videos that have features, proposals in snippets, constant rows."""

    videos: Tuple[str, ...]
    labels: np.ndarray  # float32 [V, C] multi-hot weak labels
    proposals: List[np.ndarray]  # V arrays float64 [M, 2], snippets; M may be 0
    length_s: np.ndarray  # float64 [V]
    rows: Rows
    hashes: Dict[str, str]  # of the content of "features" and "proposals"

    @property
    def scored(self) -> np.ndarray:
        """Indices of the videos that have proposals."""
        return np.flatnonzero([len(p) > 0 for p in self.proposals])


@dataclass(frozen=True)
class Source:
    """Where a dataset's inputs come from and how they are read."""

    name: str
    root: Path
    profile: Profile
    annotations: Annotations
    features: Features
    proposals_root: Optional[str] = None
    fix_proposals: bool = False
    feature_size: Optional[int] = None
    roi_size: int = 12
    cache_dir: Optional[Path] = Path("cache")  # None: no cache
    cache_dtype: str = "float32"


def open_features(
    name: str, root: Path, profile: Profile, annotations: Annotations, size: Optional[int] = None
) -> Features:
    """The features of a dataset: the profile's sources, else NAME-I3D-JOINTFeatures as a file or a folder."""
    sources = [root / s for s in profile.features or ()]
    if not sources:
        folder = root / f"{name}-I3D-JOINTFeatures"
        file = root / f"{folder.name}.npy"  # a NAME may hold a dot
        if folder.is_dir() and file.exists():
            todo = 'remove one of them, or say which in dataset.json: "features"'
            raise InputError("features twice, as a folder and as a file", file, todo)
        sources = [folder if folder.is_dir() else file]
    return Features(sources, annotations.videos, size)


def load_source(
    name: str, root: Optional[str] = None, num_class: Optional[int] = None, feature_size: Optional[int] = None, **how
) -> Source:
    """Profile, weak labels and features of a dataset; ``how`` are the other fields of Source. Raises InputError."""
    folder = dataset_root(name, root)
    profile = load_profile(name, folder)
    path = annotations_path(name, folder, profile)
    annotations = read_weak_labels(path)
    if num_class not in (None, len(annotations.classes)):
        what = f"{len(annotations.classes)} classes, --num_class {num_class}"
        raise InputError(what, path, "leave out --num_class")
    features = open_features(name, folder, profile, annotations, feature_size)
    return Source(name, folder, profile, annotations, features, feature_size=feature_size, **how)


def source_of(args: argparse.Namespace) -> Source:
    """The dataset these options name; the demo is made on first use."""
    root = dataset_root(args.dataset_name, args.dataset_root)
    if args.dataset_name == "Demo":
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.parent / ".Demo.lock"):
            profile = load_profile("Demo", root) if root.exists() else PROFILES["Demo"]
            proposals = proposals_file("Demo", profile, "train", args.proposals_root)
            if not root.exists():
                log(f"making the Demo dataset in {root}: simulated features, to try the program, not for results")
                make_demo(root, proposals_root=proposals.parent)
            elif not proposals.exists():
                raise InputError("the Demo without its proposals", proposals, f"delete {root}: both are then made anew")
    names = ("proposals_root", "fix_proposals", "feature_size", "roi_size", "cache_dtype")
    how = {name: getattr(args, name) for name in names}
    cache_dir = None if args.no_cache else Path(args.cache_dir)
    return load_source(args.dataset_name, args.dataset_root, args.num_class, cache_dir=cache_dir, **how)


def split_truth(source: Source, split: Split) -> GroundTruth:
    """Ground truth of the test split's videos: those that have features."""
    truth = load_ground_truth(source.name, source.root, source.profile, source.profile.test_subset)
    return truth.keep(split.videos)


def weak_labels(source: Source, split: str, log: Callable[[str], None]) -> Tuple[Tuple[str, ...], np.ndarray]:
    """The V videos of a split that have features, and their weak labels, multi-hot float32 [V, C]."""
    annotations, profile = source.annotations, source.profile
    subset = profile.train_subset if split == "train" else profile.test_subset
    members = annotations.of(subset)
    if not len(members):
        path = annotations_path(source.name, source.root, profile)
        raise InputError(f"no video in subset {subset!r}", path, f"subsets are {sorted(set(annotations.subset))}")
    featured = set(source.features.videos)
    kept = np.asarray([i for i in members if annotations.videos[i] in featured], dtype=np.int64)
    if len(kept) < len(members):
        missing = [annotations.videos[i] for i in members if annotations.videos[i] not in featured]
        log(f"{len(kept)} of {len(members)} {split} videos have features; missing: {some(missing)}")
    if not len(kept):
        raise InputError(f"features of no {split} video", source.features.sources[0], "check names and folder")
    videos = tuple(annotations.videos[i] for i in kept)
    labels = np.zeros((len(kept), len(annotations.classes)), dtype=np.float32)
    for row, i in enumerate(kept):
        labels[row, list(annotations.labels[i])] = 1
    if split == "train" and not labels.any(axis=1).all():
        log(f"{int((~labels.any(axis=1)).sum())} train videos have no label and are trained as background")
    return videos, labels


def load_split(source: Source, split: str, log: Callable[[str], None] = print) -> Split:
    """Read one split ("train" or "test") and open or build the cache of its SCFE inputs.

    ``log`` gets a line for everything that was left out. Raises InputError naming file and video.
    """
    annotations, profile = source.annotations, source.profile
    videos, labels = weak_labels(source, split, log)
    path = proposals_file(source.name, profile, split, source.proposals_root)
    rate = profile.snippets_per_second
    length_s = dict(zip(annotations.videos, annotations.duration_s.tolist()))
    if source.fix_proposals:  # to clip proposals needs every length; to check them can wait for the rows
        for video in videos:
            if not np.isfinite(length_s[video]):
                length_s[video] = source.features.longest_s(video, rate)
    found_s, counts = load_proposals(path, length_s, source.fix_proposals)
    for line in counts.lines():
        log(f"{path}: {line}")
    none = np.zeros((0, 2))
    proposals = [to_snippets(found_s.get(v, none), rate) for v in videos]
    without = [v for v, p in zip(videos, proposals) if not len(p)]
    if len(without) == len(videos):
        raise InputError(f"proposals for none of the {len(videos)} {split} videos", path, "check its video names")
    if without:
        effect = "not trained on" if split == "train" else "no detections from them"
        log(f"{len(without)} of {len(videos)} {split} videos have no proposal ({effect}): {some(without)}")
    rows, signature = _rows(source, split, videos, proposals)
    for video, snippets in zip(videos, rows.num_snippets):
        if not np.isfinite(length_s[video]):
            length_s[video] = (snippets + 1) / rate  # as Features.longest_s
            check_segments(found_s.get(video, none), length_s[video], f"{path}, {video}")
    seconds = np.asarray([length_s[v] for v in videos])
    off = np.abs(rows.num_snippets - seconds * rate) > np.maximum(2, 0.05 * seconds * rate)
    if off.any():
        names = some([videos[i] for i in np.flatnonzero(off)])
        what = f"{int(off.sum())} of {len(videos)} {split} videos have features of another length than their duration"
        log(f"{what} (python dataset.py check says more): {names}")
    hashes = {"features": signature, "proposals": file_hash(path)}
    return Split(videos, labels, proposals, seconds, rows, hashes)


def _rows(source: Source, split: str, videos: Sequence[str], proposals: List[np.ndarray]) -> Tuple[Rows, str]:
    """The rows of a split, their width checked, and the hash of the features behind them."""
    load, cache_dir = source.features.load, source.cache_dir
    if cache_dir is None:
        signature = source.features.signature(videos, file_hash)
        rows = Rows(proposals, source.roi_size).compute_live(videos, load)
    else:
        hashes = FileHashes(cache_dir / "hashes.json")
        signature = source.features.signature(videos, hashes)
        hashes.save()
        name, dtype = f"{source.name}-{split}", source.cache_dtype
        rows, _ = cached_rows(cache_dir, name, videos, proposals, load, signature, source.roi_size, dtype)
    source.features.release()
    where = source.features.sources[0]
    if source.feature_size not in (None, rows.width // 3):
        what = f"features of width {rows.width // 3}, --feature_size {source.feature_size}"
        raise InputError(what, where, "leave out --feature_size")
    if rows.width // 3 % 2:
        raise InputError(f"features of odd width {rows.width // 3}", where, "RGB and flow must be of equal width")
    return rows, signature


def epoch_order(videos: np.ndarray, batch_size: int, seed: int, epoch: int) -> List[np.ndarray]:
    """The batches of one epoch: videos in a fresh order, the last partial batch dropped (unless it is the only one)."""
    order = videos[stream(seed, "order of videos", epoch).permutation(len(videos))]
    size = min(batch_size, len(order))
    return [order[i : i + size] for i in range(0, len(order) - size + 1, size)]


class Inputs(NamedTuple):
    """What the network takes: unique rows, and the row of each proposal."""

    rows: Tensor  # float32 [U, 6D]
    index: Tensor  # int64 [N]
    counts: Tuple[int, ...]  # proposals of each video
    row_counts: Tuple[int, ...]  # rows of each video


def packed_batch(
    split: Split,
    videos: Sequence[int],
    device: torch.device,
    pseudo: Optional[Tuple[np.ndarray, np.ndarray]] = None,
    max_proposal: Optional[int] = None,
    seed: int = 0,
    epoch: int = 0,
    mine: slice = slice(None),
) -> Tuple[Inputs, Batch]:
    """Pack some videos of a split on ``device``: inputs of the network, and the batch that the losses see.

    Each video needs a proposal. pseudo: pseudo-label and confidence of every video of the split, int64 [V] each. Of a
    video with more than ``max_proposal`` proposals a random subset is taken, drawn anew for each epoch and video.
    mine: which of these videos the inputs are for, where several processes share the batch.
    """
    picks, index, proposals = [], [], []
    for v in videos:
        rows, segments = split.rows.index[v], split.proposals[v]
        used = np.arange(split.rows.size[v])
        if max_proposal is not None and len(rows) > max_proposal:
            draw = stream(seed, "proposals of a video", epoch, int(v)).permutation(len(rows))[:max_proposal]
            draw.sort()
            used, rows = np.unique(rows[draw], return_inverse=True)
            segments = segments[draw]
        picks.append(used)
        index.append(rows.reshape(-1))
        proposals.append(segments)
    counts = tuple(len(i) for i in index)
    none = np.zeros(len(split.videos), dtype=np.int64)
    label, confidence = pseudo if pseudo is not None else (none, none)

    def put(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    batch = Batch(
        proposals=put(np.concatenate(proposals).astype(np.float32)),
        video=put(np.repeat(np.arange(len(videos)), counts)),
        counts=counts,
        labels=put(split.labels[list(videos)]),
        pseudo_label=put(label[list(videos)]),
        confidence=put(confidence[list(videos)]),
        names=tuple(split.videos[v] for v in videos),
    )
    row_counts = tuple(len(p) for p in picks[mine])
    starts = np.cumsum((0, *row_counts))
    rows = split.rows.gather(list(videos)[mine], picks[mine]).to(device, non_blocking=True)
    places = np.concatenate([i + start for i, start in zip(index[mine], starts)])
    return Inputs(rows, put(places), counts[mine], row_counts), batch


CHECK = """Check a dataset: annotations, features against them, proposals against both. Every finding is a line:
  ok     as it should be, with the numbers
  note   worth knowing; nothing stops
  error  training or evaluation would stop or be wrong; the line says what to do
The last line counts them. Exit status 2 with errors, else 0. Every feature file is read once, one at a time."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command line of this module; returns the exit status."""
    parser = Parser(prog="dataset.py", description="Check a dataset, or change its form.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="verify a dataset and report", description=CHECK)
    check.add_argument("--dataset_name", default="Thumos14reduced", metavar="NAME", help="default: %(default)s")
    check.add_argument("--dataset_root", metavar="DIR", help="folder of the dataset (default: data/NAME)")
    text = "folder of Proposals_NAME_{train,test}.json (default: the profile's, else proposals4NAME)"
    check.add_argument("--proposals_root", metavar="DIR", help=text)
    text = "2D, RGB and flow together; tells [T, 2D] from [2D, T] (default: from the files)"
    check.add_argument("--feature_size", type=int, metavar="N", help=text)
    add_command(commands)
    args = parser.parse_args(argv)
    if args.command == "convert":
        args.run(args)
        return 0
    name, root = args.dataset_name, dataset_root(args.dataset_name, args.dataset_root)
    profile = load_profile(name, root)

    def features(annotations: Annotations) -> Features:
        return open_features(name, root, profile, annotations, args.feature_size)

    return check_dataset(name, root, profile, features, load_proposals, args.proposals_root)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
