"""Hard-global descriptors, Eq. (1)-(4): the mean appearance (RGB) and motion (flow) of each class's training videos.

``python descriptors.py --dataset_name NAME`` writes them; training does the same by itself where they are missing.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import List, Optional, Sequence

import numpy as np
from tqdm import tqdm

from dataset import open_source, weak_labels
from options import Parser
from utils.datasets.rows import mean_of
from utils.errors import InputError, run_command
from utils.files import content_hash, load_array, load_json, locked, save_array, write_json

LEVELS = ("video", "segment")
NOTE = "made_from.json"  # which files are ours, and the hash of what they were made from


def descriptors(
    video_mean: np.ndarray, num_snippets: np.ndarray, labels: np.ndarray, classes: Sequence[str], level: str = "video"
) -> np.ndarray:
    """D_hard of Eq. (4), float32 [C, 2D]: appearance and motion descriptor of each class side by side.

    video_mean: [V, 2D], temporal mean of each training video, RGB then flow. num_snippets: [V], T of each.
    labels: [V, C] multi-hot weak labels. level "segment", Eq. (1): mean over all snippets of a class's videos;
    "video", Eq. (2): mean over its videos of their temporal means. Raises InputError for a class without a video.
    """
    if video_mean.shape[:1] != num_snippets.shape or labels.shape != (len(video_mean), len(classes)):
        raise ValueError(f"shapes disagree: {video_mean.shape}, {num_snippets.shape}, {labels.shape}")
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, not {level!r}")
    weight = labels.T.astype(np.float64) * (num_snippets if level == "segment" else 1)
    total = weight.sum(axis=1, keepdims=True)
    if not total.all():
        missing = classes[int(np.flatnonzero(total[:, 0] == 0)[0])]
        raise InputError(f"class {missing!r} has no training video", None, "label one or take it off the classlist")
    return (weight @ video_mean.astype(np.float64) / total).astype(np.float32)


def load_or_make(
    folder: Path,
    video_mean: np.ndarray,
    num_snippets: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    level: str = "video",
    modalities: int = 2,
) -> List[np.ndarray]:
    """Descriptors, float32 [C, D] of appearance and of motion, from the files in ``folder``; made where missing.

    Files of ours are made again when features, labels or classes change; files from elsewhere are used as they are.
    Of one modality there is the first file alone. Arguments else as in ``descriptors``. Raises InputError for files of
    another shape.
    """
    width = video_mean.shape[1] // modalities
    source = content_hash(video_mean, num_snippets, labels, "\0".join(classes), level)
    paths = files_of(folder, level)[:modalities]
    try:
        with locked(paths[0].with_name(".lock")):
            note = load_json(paths[0].with_name(NOTE)) if paths[0].with_name(NOTE).is_file() else {}
            note = note if isinstance(note, dict) else {}
            ours = [p for p in paths if p.is_file() and note.get(p.name) == content_hash(load_array(p))]
            stale = [p for p in paths if not p.is_file() or (p in ours and note.get("source") != source)]
            if stale:
                made = np.split(descriptors(video_mean, num_snippets, labels, classes, level), modalities, axis=1)
                note.update({p.name: content_hash(values) for p, values in zip(paths, made) if p in stale})
                for path in stale:
                    path.unlink(missing_ok=True)  # an old file of ours must not outlive the note that says so
                write_json(paths[0].with_name(NOTE), {**note, "source": source})
                for path, values in zip(paths, made):
                    if path in stale:
                        save_array(path, values)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):  # a folder that can only be read will do
            raise
    found = []
    for path in paths:
        values, shape = load_array(path), (len(classes), width)
        if values.shape != shape or values.dtype.kind != "f" or not np.isfinite(values).all():
            what = f"{values.dtype} {values.shape} with these features is no finite float {shape}"
            raise InputError(what, path, "delete the file: it is then made from the training videos")
        found.append(values.astype(np.float32))
    return found


def files_of(folder: Path, level: str) -> List[Path]:
    """The two files; the segment level has its own in the folder ``segment``."""
    folder = Path(folder) if level == "video" else Path(folder) / level
    return [folder / f"general_{name}_descriptors.npy" for name in ("appearance", "motion")]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command line of this module: compute from the training videos' features and write."""
    parser = Parser(
        prog="descriptors.py",
        description=__doc__.split("\n\n")[0] + "\nTraining makes them by itself where they are missing.",
        epilog="Example:  python descriptors.py --dataset_name Thumos14reduced --level segment",
    )
    add = parser.add_argument_group("data", "files as in the README, 'THUMOS14 from download to table'").add_argument
    add("--dataset_name", default="Thumos14reduced", metavar="NAME", help="default: %(default)s, the paper's main set")
    add("--dataset_root", metavar="DIR", help="folder of the dataset (default: data/NAME, as for main.py)")
    add("--feature_size", type=int, metavar="2D", help="width of RGB and flow together (default: from the features)")
    add = parser.add_argument_group("what to make").add_argument
    add("--descriptors_root", metavar="DIR", help="folder to write to (default: descriptors/NAME, as for main.py)")
    text = "video: mean of the videos' means, Eq. (2); segment: of all snippets, Eq. (1) (default: video, Table 4)"
    add("--level", choices=LEVELS, default="video", help=text)
    args = parser.parse_args(argv)
    source = open_source(args.dataset_name, args.dataset_root, feature_size=args.feature_size)
    videos, labels = weak_labels(source, "train")
    means, lengths = [], []
    for video in tqdm(videos, "training videos", unit="video", leave=False, disable=None):
        features = source.features.load(video)
        means.append(mean_of(features))
        lengths.append(len(features))
    folder = Path(args.descriptors_root or Path("descriptors") / args.dataset_name)
    for path in files_of(folder, args.level):
        path.unlink(missing_ok=True)
    classes = source.annotations.classes
    made = load_or_make(
        folder, np.stack(means), np.asarray(lengths), labels, classes, args.level, source.profile.modalities or 2
    )
    for path, values in zip(files_of(folder, args.level), made):
        print(f"{path}: float32 {list(values.shape)} from {len(videos)} training videos, {args.level} level")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
