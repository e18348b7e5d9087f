"""Hard-global descriptors, Eq. (1)-(4): the mean appearance (RGB) and motion (flow) of each class's training videos.

``python descriptors.py --dataset_name NAME`` writes them; training does the same by itself where they are missing.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from dataset import load_source, weak_labels
from options import Parser
from utils.cache import locked
from utils.errors import InputError, run_command
from utils.files import content_hash, load_array, load_json, save_array, write_json

LEVELS = ("video", "segment")
NOTE = "made_from.json"


def descriptors(
    video_mean: np.ndarray, num_snippets: np.ndarray, labels: np.ndarray, classes: Sequence[str], level: str = "video"
) -> Tuple[np.ndarray, np.ndarray]:
    """Appearance and motion descriptors, float32 [C, D] each; side by side they are D_hard of Eq. (4).

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
    both = (weight @ video_mean.astype(np.float64) / total).astype(np.float32)
    return both[:, : both.shape[1] // 2].copy(), both[:, both.shape[1] // 2 :].copy()


def load_or_make(
    folder: Path,
    video_mean: np.ndarray,
    num_snippets: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    level: str = "video",
) -> Tuple[np.ndarray, np.ndarray]:
    """Descriptors from ``folder/general_{appearance,motion}_descriptors.npy``, made and written where missing.

    Segment level keeps its files in ``folder/segment``. ``made_from.json`` says which files are ours and what they were
    made from: those are made anew when features, labels or classes change; files from elsewhere are used as they are.
    Arguments else as in ``descriptors``. Raises InputError for files of another shape.
    """
    paths = _paths(folder, level)
    with ExitStack() as stack:
        with suppress(OSError):  # where nothing can be written, nobody else writes
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / ".lock"))
        note = _read_note(folder, level)
        changed = note.get("source") != _source(video_mean, num_snippets, labels, classes)
        stale = [p for p in paths if not p.is_file() or (changed and note.get(p.name) == content_hash(load_array(p)))]
        if stale:
            write(folder, video_mean, num_snippets, labels, classes, level, stale)
        arrays = [load_array(path) for path in paths]
    shape = (len(classes), video_mean.shape[1] // 2)
    found = []
    for path, values in zip(paths, arrays):
        if values.shape != shape or values.dtype.kind != "f" or not np.isfinite(values).all():
            what = f"{values.dtype} {values.shape} with these features is no finite float {shape}"
            raise InputError(what, path, "delete the file: it is then made from the training videos")
        found.append(values.astype(np.float32))
    return found[0], found[1]


def _paths(folder: Path, level: str) -> List[Path]:
    folder = folder if level == "video" else folder / level
    return [folder / f"general_{name}_descriptors.npy" for name in ("appearance", "motion")]


def _source(video_mean, num_snippets, labels, classes) -> str:
    return content_hash(video_mean, num_snippets, labels, "\0".join(classes))


def _read_note(folder: Path, level: str) -> Dict[str, str]:
    """What made_from.json says: "source", the hash of what our files were made from, and the hash of each of them."""
    path = _paths(folder, level)[0].with_name(NOTE)
    note = load_json(path) if path.is_file() else {}
    return note if isinstance(note, dict) else {}


def write(
    folder: Path, video_mean, num_snippets, labels, classes, level: str, only: Optional[Sequence[Path]] = None
) -> Tuple[np.ndarray, np.ndarray]:
    """Make the descriptors and write them (``only`` some of their files), with the note of what they were made from;
    arguments else as in ``descriptors``."""
    made, paths = descriptors(video_mean, num_snippets, labels, classes, level), _paths(folder, level)
    wanted = [(path, values) for path, values in zip(paths, made) if only is None or path in only]
    for path, _ in wanted:
        path.unlink(missing_ok=True)  # an old file of ours must not outlive the note that says so
    ours = {path.name: content_hash(values) for path, values in wanted}
    source = _source(video_mean, num_snippets, labels, classes)
    write_json(paths[0].with_name(NOTE), {**_read_note(folder, level), "source": source, **ours})
    for path, values in wanted:
        save_array(path, values)
    return made


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command line of this module: compute from the training videos' features and write."""
    parser = Parser(
        prog="descriptors.py",
        description=__doc__.split("\n\n")[0] + "\nTraining makes them by itself where they are missing.",
        epilog="Example:  python descriptors.py --dataset_name Thumos14reduced --level segment",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("data", "files as in the README, 'THUMOS14 from download to table'").add_argument
    text = "default: Thumos14reduced, the paper's main set"
    add("--dataset_name", default="Thumos14reduced", metavar="NAME", help=text)
    add("--dataset_root", metavar="DIR", help="folder of the dataset (default: data/NAME, where main.py looks too)")
    add = parser.add_argument_group("what to make").add_argument
    text = "where to write (default: descriptors/NAME, where main.py looks; the segment level in its folder segment)"
    add("--descriptors_root", metavar="DIR", help=text)
    text = (
        "video: mean of the videos' means, Eq. (2); segment: of all snippets, Eq. (1) (default: video, best in Table 4)"
    )
    add("--level", choices=LEVELS, default="video", help=text)
    args = parser.parse_args(argv)
    source = load_source(args.dataset_name, args.dataset_root)
    videos, labels = weak_labels(source, "train", print)
    means, lengths = [], []
    for video in tqdm(videos, "training videos", unit="video", leave=False, disable=None):
        features = source.features.load(video)
        means.append(features.mean(axis=0, dtype=np.float64).astype(np.float32))
        lengths.append(len(features))
    folder = Path(args.descriptors_root or Path("descriptors") / args.dataset_name)
    made = write(folder, np.stack(means), np.asarray(lengths), labels, source.annotations.classes, args.level)
    for path, values in zip(_paths(folder, args.level), made):
        print(f"{path}: float32 {list(values.shape)} from {len(videos)} training videos, {args.level} level")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
