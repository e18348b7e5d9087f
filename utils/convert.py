"""Features and annotations from one form on disk to another: ``python dataset.py convert``.

The new file or folder appears whole, at the end, and never in the place of another. Values are not touched: what was
wrong in one form is wrong in the other, and ``python dataset.py check`` finds it in both.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import numpy as np
from tqdm import tqdm

from utils.annotations import Annotations, Instances, read_ambiguous, read_instances, read_weak_labels
from utils.demo import new_folder, refuse_existing, write_annotations
from utils.errors import InputError
from utils.features import Features
from utils.files import child, save_array, write_json
from utils.report import some

CONVERT = """Features and annotations from one form on disk to another. The new file or folder appears
whole, at the end, and never in the place of another. Values are not touched: what was wrong in one form
is wrong in the other, and "python dataset.py check" finds it in both."""
FEATURES = """A joint .npy (an object array of [T, 2D], in the order of the annotations) into a folder with a file
VIDEO.npy each; or such a folder (.npy or .npz, [T, 2D] or [2D, T], or two folders, RGB and flow) into a
joint .npy, which takes as much memory as the features do. Types and values stay as they are.

examples:
  python dataset.py convert features --annotations data/X/X-Annotations \\
      --from data/X/X-I3D-JOINTFeatures.npy --to data/X/X-I3D-JOINTFeatures
  python dataset.py convert features --annotations data/X/X.json \\
      --from rgb flow --to data/X/X-I3D-JOINTFeatures.npy"""
ANNOTATIONS = """W-TALC's folder of .npy files, ActivityNet's JSON or a CSV (video,subset,label[,start,end[,duration]],
seconds) into W-TALC's folder, or into JSON where --to ends in .json. What ActivityNet's JSON has no place
for is kept under keys that only this program reads: "classes" beside "database" where they are not the
labels' own, in alphabetical order, and "weak_labels" in a video where they are not those of its
annotations. Ambiguous_test.txt goes along into a folder; beside a JSON, copy it yourself.

examples:
  python dataset.py convert annotations --from activity_net.v1-3.min.json --to data/X/X-Annotations
  python dataset.py convert annotations --from data/X/X-Annotations --to x.json"""


def joint_to_folder(source: Path, target: Path, annotations: Annotations) -> int:
    """Write TARGET/VIDEO.npy for each row of the joint array ``source``; returns how many. Raises InputError."""
    refuse_existing(target)
    features = Features([source], annotations.videos)
    paths = [child(target, video, ".npy").name for video in annotations.videos]  # all names, before any work
    with new_folder(target) as folder:
        for video, name in zip(tqdm(annotations.videos, "writing", unit="video", disable=None, leave=False), paths):
            np.save(folder / name, features.read(video), allow_pickle=False)
    return len(paths)


def folder_to_joint(
    sources: Sequence[Path], target: Path, annotations: Annotations, feature_size: Optional[int] = None
) -> int:
    """Write the object array of [T, 2D] of every annotated video, in their order; returns how many.

    feature_size: 2D, where it takes that to tell [T, 2D] from [2D, T]. Raises InputError, also for a missing video.
    """
    refuse_existing(target)
    features = Features(sources, annotations.videos, feature_size)
    missing = sorted(set(annotations.videos) - set(features.videos))
    if missing:
        what = f"no features of {len(missing)} of {len(annotations.videos)} annotated videos: {some(missing)}"
        raise InputError(what, sources[0], "a joint array has a row for every video: stay with the folder")
    joint = np.empty(len(annotations.videos), dtype=object)
    for row, video in enumerate(tqdm(annotations.videos, "reading", unit="video", disable=None, leave=False)):
        joint[row] = features.read(video)
    save_array(target, joint, objects=True)
    return len(joint)


def to_json(annotations: Annotations, instances: Instances) -> dict:
    """ActivityNet's document for annotations, plus what utils.annotations needs to read the same from it again."""
    classes, database = annotations.classes, {}
    for i, video in enumerate(annotations.videos):
        mine = np.flatnonzero(instances.video == i)
        pairs = zip(instances.segment_s[mine].tolist(), instances.label[mine].tolist())
        entry: Dict[str, Any] = {"subset": annotations.subset[i]}
        if np.isfinite(annotations.duration_s[i]):
            entry["duration"] = float(annotations.duration_s[i])
        entry["annotations"] = [{"segment": s, "label": classes[c]} for s, c in pairs]
        weak = [classes[c] for c in annotations.labels[i]]
        if weak != list(dict.fromkeys(a["label"] for a in entry["annotations"])):
            entry["weak_labels"] = weak
        database[video] = entry
    document = {"version": "SEAL", "database": database}
    if list(classes) != sorted({classes[c] for labels in annotations.labels for c in labels}):
        document["classes"] = list(classes)
    return document


def convert_annotations(source: Path, target: Path) -> Annotations:
    """Write the annotations ``source`` as W-TALC's folder, or as JSON where ``target`` ends in .json; returns them."""
    refuse_existing(target)
    annotations = read_weak_labels(source)
    instances = read_instances(source, annotations)
    if target.suffix.lower() == ".json":
        write_json(target, to_json(annotations, instances))
    else:
        beside = (source if source.is_dir() else source.parent) / "Ambiguous_test.txt"
        with new_folder(target) as folder:
            write_annotations(folder, annotations, instances, read_ambiguous(beside, annotations.videos))
    return annotations


def add_command(commands) -> None:
    """Add ``convert`` to the sub-commands of a parser; the parsed arguments hold what to call as ``run``."""
    short = "features or annotations from one form to another"
    convert = commands.add_parser("convert", help=short, description=CONVERT)
    kinds = convert.add_subparsers(dest="kind", required=True)
    for name, short, text, run, sources, of in (
        ("features", "a joint .npy into a file a video, or back", FEATURES, _run_features, "+", "features"),
        ("annotations", "JSON, CSV and W-TALC's .npy files", ANNOTATIONS, _run_annotations, None, "annotations"),
    ):
        parser = kinds.add_parser(name, help=short, description=text)
        parser.set_defaults(run=run)
        text = f"the {of} as they are" + (": one path, or the folders of RGB and flow" if sources else "")
        parser.add_argument("--from", dest="source", type=Path, nargs=sources, required=True, metavar="PATH", help=text)
        text = f"the {of} to write; must not exist yet"
        parser.add_argument("--to", dest="target", type=Path, required=True, metavar="PATH", help=text)
        if name == "features":
            text = "names and order of the videos: a folder, JSON or CSV"
            parser.add_argument("--annotations", type=Path, required=True, metavar="PATH", help=text)
            text = "2D, RGB and flow together; tells [T, 2D] from [2D, T] (default: from the files)"
            parser.add_argument("--feature_size", type=int, metavar="N", help=text)


def _run_features(args: argparse.Namespace) -> None:
    annotations = read_weak_labels(args.annotations)
    if len(args.source) > 2:
        raise InputError(f"{len(args.source)} sources", None, "--from takes one, or the folders of RGB and of flow")
    if args.source[0].is_file():
        count = joint_to_folder(args.source[0], args.target, annotations)
    else:
        if args.target.suffix != ".npy":
            raise InputError("a joint array is a .npy file", args.target, "let --to end in .npy")
        count = folder_to_joint(args.source, args.target, annotations, args.feature_size)
    print(f"{args.target}: features of {count:,} videos")


def _run_annotations(args: argparse.Namespace) -> None:
    annotations = convert_annotations(args.source, args.target)
    print(f"{args.target}: {len(annotations.videos):,} videos, {len(annotations.classes)} classes")
