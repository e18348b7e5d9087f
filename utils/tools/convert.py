"""Features, annotations and detections from one form to another: ``python -m utils.tools.convert --help``."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import numpy as np
from tqdm import tqdm

from options import Parser, number
from utils import formats
from utils.datasets.annotations import Annotations, Read, read_annotations, write_annotations
from utils.datasets.features import Features
from utils.datasets.simulate import new_folder
from utils.errors import InputError, raise_first, run_command, some
from utils.files import child, save_array, write_json, write_text
from utils.segments import Segments

ABOUT = """Change the form of features, annotations or detections. The new file or folder appears whole, at the
end, and replaces nothing. Values stay as they are: "python -m utils.tools.check" finds the same before and after."""
FEATURES = """A joint .npy (an object array of [T, 2D], in the order of the annotations) into a folder with a file
VIDEO.npy for each video; or such a folder, or two of them (RGB and flow), into a joint .npy, which takes as much
memory as the features do.

examples:
  python -m utils.tools.convert features X-I3D-JOINTFeatures.npy --annotations X-Annotations --out X-I3D-JOINTFeatures
  python -m utils.tools.convert features rgb flow --annotations X.json --out X-I3D-JOINTFeatures.npy"""
ANNOTATIONS = """Annotations in any form that training reads, or of FiftyOne, the VGG Image Annotator 3 or a plain CSV
(video,label,start,end in seconds), into W-TALC's folder (npy), ActivityNet's JSON, or the forms of "convert
detections". What ActivityNet's JSON has no place for is kept under keys that only this program reads: "classes"
beside "database" where they are not the labels' own in alphabetical order, and "weak_labels" in a video where they
are not those of its annotations. Ambiguous intervals go into the folder npy alone. The other forms hold no subset
and no duration; what is read from them gets the subset --subset.

examples:
  python -m utils.tools.convert annotations activity_net.v1-3.min.json --to npy --out data/X/X-Annotations
  python -m utils.tools.convert annotations labels.json --subset training --to activitynet --out data/X/X.json"""
FORM_LINES = formats.__doc__.split("\n\n")[1]
DETECTIONS = f"""Detections from detections.json (also of other programs), a plain CSV (video,label,start,end,score),
FiftyOne or VIA 3 into one of

{FORM_LINES}

example:
  python -m utils.tools.convert detections output/X-train/detections.json --to vtt --min_score 0.3"""


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
        raise InputError("a joint array is a .npy file", target, "let --out end in .npy")
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
        entry = {"subset": subset, "duration": duration_s, "annotations": timed}
        if not np.isfinite(duration_s):
            del entry["duration"]
        if list(weak) != list(dict.fromkeys(label.tolist())):
            entry["weak_labels"] = [classes[c] for c in weak]
        database[video] = entry
    document = {"version": "SEAL", "database": database}
    if list(classes) != sorted({classes[c] for weak in annotations.labels for c in weak}):
        document["classes"] = list(classes)
    return document


def read_any(path: Path, subset: Optional[str]) -> Read:
    """Annotations in a form of ``read_annotations``, or of ``formats``, which hold neither subset nor duration."""
    segments = formats.read(path) if path.is_file() else None
    if segments is None:
        read = read_annotations(path)
        raise_first(read.problems)
        return read
    if subset is None:
        raise InputError("these annotations name no subset", path, "give one: --subset")
    videos, instances = segments.videos, replace(segments, score=None)
    labels = tuple(tuple(dict.fromkeys(instances.of(video)[1].tolist())) for video in videos)
    unknown = np.full(len(videos), np.nan)
    return Read(Annotations(segments.classes, videos, (subset,) * len(videos), unknown, labels), instances, {}, [], [])


def write_segments(segments: Segments, form: str, target: Path, how: formats.How) -> None:
    """Write detections or instances in a form of ``formats``: a file, or a folder with a file a video."""
    suffix, whole, write = formats.FORMS[form]
    if whole:
        write_text(target, write(segments, how))
        return
    with new_folder(target) as folder:
        for video, rows in formats.rows_by_video(segments).items():
            child(folder, video, suffix).write_text(write(rows, how), encoding="utf-8")


def _parser() -> Parser:
    parser = Parser(prog="python -m utils.tools.convert", description=ABOUT)
    kinds = parser.add_subparsers(dest="kind", required=True)
    add = kinds.add_parser(
        "features", help="a joint .npy into a file a video, or back", description=FEATURES
    ).add_argument
    add("sources", type=Path, nargs="+", metavar="PATH", help="what to read; RGB and flow where they are apart")
    add("--out", type=Path, required=True, metavar="PATH", help="what to write; must not exist yet")
    text = "names and order of the videos: a folder, JSON or CSV"
    add("--annotations", type=Path, required=True, metavar="PATH", help=text)
    text = "2D, RGB and flow together, where [T, 2D] and [2D, T] cannot be told apart"
    add("--feature_size", type=int, metavar="N", help=text)
    for kind, forms, text, about in (
        ("annotations", ["npy", *formats.FORMS], "between the forms of datasets and of labelling tools", ANNOTATIONS),
        ("detections", list(formats.FORMS), "for evaluators, players and labelling tools", DETECTIONS),
    ):
        add = kinds.add_parser(kind, help=text, description=about).add_argument
        add("source", type=Path, metavar="PATH", help="what to read")
        add("--to", choices=forms, required=True, metavar="FORM", help=", ".join(forms))
        add("--out", type=Path, metavar="PATH", help="what to write; must not exist yet (default: beside PATH)")
        add("--fps", type=number(float, 0, above=True), metavar="N", help="labelstudio: frames a second of the videos")
        add("--suffix", default="", metavar="S", help="via, labelstudio: end of the videos' file names, such as .mp4")
        if kind == "annotations":
            add("--subset", metavar="S", help="subset of the videos, for forms that hold none")
        else:
            add("--min_score", type=float, metavar="X", help="leave out detections below this score")
    return parser


def _features(args: Namespace) -> str:
    if len(args.sources) > 2:
        raise InputError(f"{len(args.sources)} sources", None, "give one, or the folders of RGB and of flow")
    videos = read_any(args.annotations, "any").annotations.videos
    convert_features(args.sources, args.out, videos, args.feature_size)
    return f"features of {len(videos):,} videos"


def _annotations(args: Namespace) -> str:
    read = read_any(args.source, args.subset)
    annotations, instances = read.annotations, read.instances
    if args.to == "npy":
        with new_folder(args.out) as folder:
            write_annotations(folder, annotations, instances, read.ambiguous_s)
    elif args.to == "activitynet":
        write_json(args.out, to_json(annotations, instances))
    else:
        write_segments(instances, args.to, args.out, formats.How(args.fps, args.suffix))
    return f"{len(instances.video):,} instances in {len(annotations.videos):,} videos"


def _detections(args: Namespace) -> str:
    segments = formats.read(args.source)
    if segments is None or segments.score is None:
        raise InputError("not a file of detections", args.source, "convert detections --help says what is read")
    if args.min_score is not None:
        segments = segments.take(segments.score >= args.min_score)
    write_segments(segments, args.to, args.out, formats.How(args.fps, args.suffix))
    return f"{len(segments.video):,} detections in {len(segments.videos):,} videos"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command. Raises InputError."""
    args = _parser().parse_args(argv)
    if args.out is None:
        suffix = formats.FORMS[args.to].suffix if args.to in formats.FORMS and formats.FORMS[args.to].whole else ""
        args.out = args.source.with_name(f"{args.source.stem}-{args.to}{suffix}")
    if args.out.is_file():
        raise InputError("exists already", args.out, "remove it or choose another place: --out")
    run = {"features": _features, "annotations": _annotations, "detections": _detections}[args.kind]
    print(f"{args.out}: {run(args)}")


if __name__ == "__main__":
    run_command(main)
