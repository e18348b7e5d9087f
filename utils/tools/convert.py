"""Features and annotations from one form on disk to another: ``python -m utils.tools.convert --help``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import numpy as np
from tqdm import tqdm

from options import Parser
from utils.datasets.annotations import Annotations, read_ambiguous, read_annotations, write_annotations
from utils.datasets.features import Features
from utils.datasets.simulate import new_folder
from utils.errors import InputError, raise_first, run_command, some
from utils.files import child, save_array, write_json
from utils.segments import Segments

ABOUT = """Change the form of features or annotations. The new file or folder appears whole, at the end, and replaces
nothing. Values stay as they are: "python -m utils.tools.check" finds the same problems before and after."""
FEATURES = """A joint .npy (an object array of [T, 2D], in the order of the annotations) into a folder with a file
VIDEO.npy for each video; or such a folder, or two of them (RGB and flow), into a joint .npy, which takes as much
memory as the features do.

examples:
  python -m utils.tools.convert features --annotations data/X/X-Annotations \\
      --from data/X/X-I3D-JOINTFeatures.npy --to data/X/X-I3D-JOINTFeatures
  python -m utils.tools.convert features --annotations data/X/X.json \\
      --from rgb flow --to data/X/X-I3D-JOINTFeatures.npy"""
ANNOTATIONS = """W-TALC's folder of .npy files, ActivityNet's JSON or a CSV (video,subset,label[,start,end[,duration]],
seconds) into W-TALC's folder, or into JSON where --to ends in .json. What ActivityNet's JSON has no place for is
kept under keys that only this program reads: "classes" beside "database" where they are not the labels' own in
alphabetical order, and "weak_labels" in a video where they are not those of its annotations. Ambiguous_test.txt
is copied into a folder; beside a JSON, copy it yourself.

example:
  python -m utils.tools.convert annotations --from activity_net.v1-3.min.json --to data/X/X-Annotations"""


def convert_features(
    sources: Sequence[Path], target: Path, videos: Sequence[str], feature_size: Optional[int] = None
) -> None:
    """Write a joint array as TARGET/VIDEO.npy, or files of videos (one folder, or RGB and flow) as a joint array.

    videos: all that are annotated, in their order. feature_size: 2D, needed where [T, 2D] and [2D, T] cannot be told
    apart. Raises InputError, also where a video has no features.
    """
    features = Features(sources, videos, feature_size)
    bar = tqdm(videos, "converting", unit="video", disable=None, leave=False)
    if sources[0].is_file():
        names = [child(target, video, ".npy").name for video in videos]  # all, before any work
        with new_folder(target) as folder:
            for video, name in zip(bar, names):
                np.save(folder / name, features.read(video), allow_pickle=False)
        return
    if target.suffix != ".npy":
        raise InputError("a joint array is a .npy file", target, "let --to end in .npy")
    missing = sorted(set(videos) - set(features.videos))
    if missing:
        what = f"no features of {len(missing)} of {len(videos)} annotated videos: {some(missing)}"
        raise InputError(what, sources[0], "a joint array has a row for every video: keep the folder")
    joint = np.empty(len(videos), dtype=object)
    for row, video in enumerate(bar):
        joint[row] = features.read(video)
    save_array(target, joint, objects=True)


def to_json(annotations: Annotations, instances: Segments) -> Dict[str, Any]:
    """ActivityNet's document for annotations, and what ``read_annotations`` needs to read the same from it again."""
    classes, database = annotations.classes, {}
    columns = (annotations.videos, annotations.subset, annotations.duration_s.tolist(), annotations.labels)
    for video, subset, duration_s, weak in zip(*columns):
        segment_s, label, _ = instances.of(video)
        timed = [{"segment": segment, "label": classes[c]} for segment, c in zip(segment_s.tolist(), label)]
        entry = {
            "subset": subset,
            "duration": duration_s,
            "annotations": timed,
            "weak_labels": [classes[c] for c in weak],
        }
        if not np.isfinite(duration_s):
            del entry["duration"]
        if list(weak) == list(dict.fromkeys(label.tolist())):
            del entry["weak_labels"]
        database[video] = entry
    document = {"version": "SEAL", "database": database}
    if list(classes) != sorted({classes[c] for weak in annotations.labels for c in weak}):
        document["classes"] = list(classes)
    return document


def convert_annotations(source: Path, target: Path, annotations: Annotations, instances: Segments) -> None:
    """Write what was read from ``source`` as W-TALC's folder, or as JSON where ``target`` ends in .json."""
    if target.suffix.lower() == ".json":
        write_json(target, to_json(annotations, instances))
        return
    beside = (source if source.is_dir() else source.parent) / "Ambiguous_test.txt"
    with new_folder(target) as folder:
        write_annotations(folder, annotations, instances, read_ambiguous(beside, annotations.videos))


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command. Raises InputError."""
    parser = Parser(prog="python -m utils.tools.convert", description=ABOUT)
    kinds = parser.add_subparsers(dest="kind", required=True)
    features = kinds.add_parser(
        "features", help="a joint .npy into a file for each video, or back", description=FEATURES
    )
    annotations = kinds.add_parser("annotations", help="JSON, CSV and W-TALC's .npy files", description=ANNOTATIONS)
    for sub in (features, annotations):
        text = "what to read" + ("; RGB and flow where they are in two folders" if sub is features else "")
        nargs = "+" if sub is features else 1
        sub.add_argument("--from", dest="sources", type=Path, nargs=nargs, required=True, metavar="PATH", help=text)
        sub.add_argument("--to", type=Path, required=True, metavar="PATH", help="what to write; must not exist yet")
    text = "names and order of the videos: a folder, JSON or CSV"
    features.add_argument("--annotations", type=Path, required=True, metavar="PATH", help=text)
    text = "2D, RGB and flow together, where [T, 2D] and [2D, T] cannot be told apart"
    features.add_argument("--feature_size", type=int, metavar="N", help=text)
    args = parser.parse_args(argv)
    if len(args.sources) > 2:
        parser.error("argument --from: one path, or the folders of RGB and of flow")
    if args.to.is_file():
        raise InputError("exists already", args.to, "remove it or choose another place")
    annotated, instances, _, problems, _ = read_annotations(
        args.annotations if args.kind == "features" else args.sources[0]
    )
    raise_first(problems)
    if args.kind == "features":
        convert_features(args.sources, args.to, annotated.videos, args.feature_size)
    else:
        convert_annotations(args.sources[0], args.to, annotated, instances)
    print(f"{args.to}: {args.kind} of {len(annotated.videos):,} videos, {len(annotated.classes)} classes")


if __name__ == "__main__":
    run_command(main)
