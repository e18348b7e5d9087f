"""What a machine makes of SEAL: ``python -m utils.benchmark`` prints times beside the floor that arithmetic sets.

An epoch's work is matrix products. Forward and backward take 84 D^2 operations a proposal (88 MFLOP at D = 1024): 48
in the fusion layer, whose input needs no gradient, and 36 in the three branches. That number over the speed of a plain
torch.mm is the floor. ``--compare padded`` runs the same epoch the usual way (``utils.padded``), in turns with ours.
Proposals are real if ``--proposals_root`` names them, else drawn to THUMOS14's counts; features are simulated.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np
import torch

from dataset import Split, epoch_order, packed_batch
from eval.detection import PROTOCOLS, evaluate_detections
from eval.inference import score
from eval.postprocess import candidates, detect
from eval.soft_nms import soft_nms
from main import adam, train_step
from model import SEAL
from options import Parser, number, parse
from utils.cache import cached_rows
from utils.errors import run_command
from utils.files import load_json, write_json
from utils.padded import PaddedReference
from utils.parallel import Group, pick_device
from utils.profile import PROFILES, GroundTruth
from utils.report import aligned
from utils.seeds import stream

VIDEOS = {"train": 200, "test": 212}
PROPOSALS = {"train": 33_895, "test": 31_587}
REPEATS = {"train": 1 / 3, "test": 0.45}  # share of proposals that repeat another
NUM_CLASS = 20
FUSION, BRANCHES = 48, 36  # operations in D^2, forward and backward: 2 * 2 * 6D * 2D; 3 * 3 * 2 * 2D * D
CROWDED = 1850  # snippets over which 3,000 proposals overlap as those of the P_w test video with most of them, 1,005
CPU = torch.device("cpu")
Row = Tuple[str, str, str]  # what, figure, remark


def proposals_like_thumos(split: str) -> List[np.ndarray]:
    """Proposals in snippets, [M, 2] a video, with THUMOS14's counts, repeats and lengths (P_w)."""
    rng = stream(0, "benchmark proposals", VIDEOS[split])
    weight = rng.lognormal(0, 0.9, VIDEOS[split])
    counts = np.maximum(4, np.round(weight / weight.sum() * PROPOSALS[split])).astype(int)
    counts[counts.argmax()] += PROPOSALS[split] - counts.sum()
    found = []
    for count in counts:
        length = np.minimum(rng.lognormal(1.6, 0.9, count), 300)
        start = rng.uniform(0, 4 * count**0.8 + 20, count)
        pairs = np.stack([start, start + np.maximum(length, 0.5)], 1).round(2)
        again = rng.random(count) < REPEATS[split]
        again[0] = False
        pairs[again] = pairs[rng.choice(np.flatnonzero(~again), again.sum())]
        found.append(pairs)
    return found


def proposals_of(root: Optional[str], split: str) -> List[np.ndarray]:
    """The proposals of a THUMOS14 file in snippets, or drawn ones."""
    if root is None:
        return proposals_like_thumos(split)
    results = load_json(Path(root) / f"Proposals_Thumos14reduced_{split}.json")["results"]
    return [np.round(np.asarray([p["segment"] for p in ps]) * 25 / 16, 2) for ps in results.values()]


def simulated_split(
    split: str, proposals: List[np.ndarray], width: int, cache_dir: Path, dtype: str
) -> Tuple[Split, Callable[[str], np.ndarray], Row]:
    """A split over simulated features through the real cache; how to load them; what building the cache took."""
    videos = tuple(f"{split}_{i:04d}" for i in range(len(proposals)))
    lengths = {v: int(np.ceil(p.max())) + 2 for v, p in zip(videos, proposals)}

    def load(video: str) -> np.ndarray:
        rng = stream(0, "benchmark features", videos.index(video), len(videos))
        return rng.random((lengths[video], width), dtype=np.float32)

    start = time.perf_counter()
    rows, folder = cached_rows(cache_dir, split, videos, proposals, load, "simulated", dtype=dtype)
    seconds, size = time.perf_counter() - start, (folder / "rows.npy").stat().st_size
    labels = np.zeros((len(videos), NUM_CLASS), dtype=np.float32)
    labels[np.arange(len(videos)), np.arange(len(videos)) % NUM_CLASS] = 1
    length_s = np.asarray(list(lengths.values())) * 0.64
    remark = f"{size / 1e9:.2f} GB, {rows.start[-1]:,} rows of {sum(map(len, proposals)):,} proposals"
    return Split(videos, labels, proposals, length_s, rows, {}), load, (f"cache of {split}", f"{seconds:.1f} s", remark)


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    sync(device)
    start = time.perf_counter()
    work()
    sync(device)
    return time.perf_counter() - start


def mm_speed(rows: int, width: int, device: torch.device, repeats: int = 5) -> float:
    """Operations a second of a plain large torch.mm: the fusion layer's own product, best of a few."""
    a = torch.rand(rows, 3 * width, device=device)
    b = torch.rand(3 * width, width, device=device)
    return 2 * rows * 3 * width * width / min(timed(lambda: torch.mm(a, b), device) for _ in range(repeats))


def run(options: argparse.Namespace, cache_dir: Path) -> List[Row]:
    """Rows of the table."""
    flags = ["--device", options.device, "--amp", options.amp]
    args = parse(flags + ["--share_rows"] * options.share_rows + ["--tf32"] * options.tf32)
    device, width = pick_device(args.device, args.tf32), 2 * options.width
    given = {split: proposals_of(options.proposals_root, split) for split in ("train", "test")}
    made = [simulated_split(*item, width, cache_dir, options.cache_dtype) for item in given.items()]
    for split, _, _ in made:
        split.rows.to(device)
    (train, load, _), (test, _, _) = made
    model = SEAL(width, NUM_CLASS).to(device)
    rows = [row for _, _, row in made] + training(model, train, load, args, options) + evaluation(model, test)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    rows.append(("peak memory", f"{memory / 1e9:.2f} GB", "resident, everything above"))
    if device.type == "cuda":
        rows.append(("peak memory, CUDA", f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB", ""))
    return rows


def training(model: SEAL, train: Split, load, args: argparse.Namespace, options: argparse.Namespace) -> List[Row]:
    """Time epochs of training, and of the padded reference, in turns with the product that sets the floor."""
    device, width = next(model.parameters()).device, model.feature_size
    group, optimizer = Group(device), adam(model, args)
    pseudo = tuple(np.random.default_rng(0).integers(0, n, len(train.videos)) for n in (NUM_CLASS, 3))
    batches = epoch_order(np.arange(len(train.videos)), args.batch_size, 0, 1)[: options.steps]
    usual = PaddedReference(SEAL(width, NUM_CLASS).to(device), train, load, pseudo, args) if options.compare else None

    def ours(steps: Sequence[np.ndarray]) -> None:
        for step, videos in enumerate(steps):
            train_step(model, optimizer, *packed_batch(train, videos, device, pseudo), args, 1, step, group)

    used = np.concatenate(batches)
    proposals, distinct = sum(len(train.proposals[v]) for v in used), int(train.rows.size[used].sum())
    scored = distinct if args.share_rows else proposals
    flop = (FUSION + BRANCHES) * proposals * (width / 2) ** 2
    flop_done = (FUSION * distinct + BRANCHES * scored) * (width / 2) ** 2
    speeds, epochs, padded = [], [], []
    for _ in range(options.repeats):  # in turns, so that a machine whose speed drifts treats all alike
        speeds.append(mm_speed(min(4096, proposals), width, device))
        ours(batches[:1])  # not timed: each begins its turn in a memory that it has shaped itself
        epochs.append(timed(lambda: ours(batches), device))
        if usual:
            usual.step(batches[0], 1)
            padded.append(timed(lambda: [usual.step(videos, 1) for videos in batches], device))
    floor, done = (np.median([e * s / f for e, s in zip(epochs, speeds)]) for f in (flop, flop_done))
    speed, kind = np.median(speeds), "TF32" if args.tf32 and device.type == "cuda" else "float32"
    each = f"{len(batches)} steps, {proposals:,} proposals, {flop / 1e12:.2f} TFLOP"
    shared = f"fusion of {distinct:,} distinct rows, branches of {scored:,}, {flop_done / 1e12:.2f} TFLOP"
    rows = [
        ("torch.mm", f"{speed / 1e9:,.0f} GFLOP/s", f"{kind}, {torch.get_num_threads()} threads, {device}"),
        ("floor (every proposal on its own)", f"{flop / speed:.3f} s", each),
        ("work really done, at that speed", f"{flop_done / speed:.3f} s", shared),
        ("epoch", f"{np.median(epochs):.3f} s", f"{floor:.2f} times the floor, {done:.2f} times the work really done"),
    ]
    if usual:
        ratio = np.median([p / e for p, e in zip(padded, epochs)])
        rows.append(("epoch, padded reference", f"{np.median(padded):.3f} s", f"{ratio:.1f} times ours"))
    return rows


def evaluation(model: SEAL, test: Split) -> List[Row]:
    """Time an evaluation by part: forward, fusion, soft-NMS with the ambiguous filter, and mAP in each protocol."""
    rng = stream(0, "benchmark ground truth")
    video = np.repeat(np.arange(len(test.videos)), 16)
    at = rng.uniform(0, test.length_s[video])
    classes = tuple(f"class {c:02d}" for c in range(NUM_CLASS))
    label = test.labels[video].argmax(1)
    truth = GroundTruth(classes, test.videos, video, np.stack([at, at + rng.uniform(1, 8, len(at))], 1), label, {})
    truth.ambiguous_s.update({v: np.asarray([[0.0, 3.0], [9.0, 12.0]]) for v in test.videos[:36]})
    profile = PROFILES["Thumos14reduced"]
    outputs, found, detections = [], [], []
    forward = timed(lambda: outputs.extend(score(model, test, test.scored)), next(model.parameters()).device)
    mine = ((v, candidates(s, a, p, test.proposals[v], 0.0)[0]) for v, s, a, p in outputs)
    fusion = timed(lambda: found.extend(mine), CPU)
    # all classes, since the network is untrained; a trained one of THUMOS14 predicts 1.1 a video on average: take two
    found = [(v, c._replace(scores=c.scores[:, :2], labels=c.labels[:2])) for v, c in found]
    rate = profile.snippets_per_second
    nms = timed(lambda: detections.append(detect(classes, test.videos, found, truth.ambiguous_s, rate)), CPU)
    mean_ap = [timed(lambda p=p: evaluate_detections(truth, detections[0], profile, p), CPU) for p in PROTOCOLS]
    return [
        ("forward of the test split", f"{forward:.3f} s", f"{len(test.videos)} videos"),
        ("fusion", f"{fusion:.3f} s", "scores of proposals and videos"),
        ("soft-NMS and filter", f"{nms:.3f} s", f"{len(detections[0].video):,} detections"),
        ("mAP", f"{max(mean_ap):.3f} s", "slowest of the three protocols"),
        crowded_soft_nms(),
    ]


def crowded_soft_nms() -> Row:
    """Soft-NMS of one video with 3,000 proposals, each in 20 classes: median time of one core."""
    rng = stream(0, "benchmark soft-NMS")
    start = rng.uniform(0, CROWDED, 3000)
    segments = np.stack([start, start + rng.lognormal(1.6, 0.9, 3000)], 1).round(2)
    scores, seconds = rng.random((3000, NUM_CLASS)), []
    for _ in range(7):
        begin = time.thread_time()
        soft_nms(segments, scores)
        seconds.append(time.thread_time() - begin)
    overlap = (segments[:, :1] < segments[:, 1] + 1) & (segments[:, 0] < segments[:, 1:] + 1)
    remark = f"one core, {100 * (overlap.mean() - 1 / 3000):.1f} % of pairs overlap"
    return "soft-NMS, 3,000 proposals x 20 classes", f"{1e3 * np.median(seconds):.0f} ms", remark


ROWS = """rows of the table, on simulated features; the median where something runs more than once:
  cache of train, test   making the SCFE inputs, once for a dataset; size on disk
  torch.mm               speed of a plain product of the fusion layer's size: what the machine can do
  floor                  84 D^2 operations for every proposal at that speed
  work really done       the same, but the fusion layer runs once a distinct row (with --share_rows the branches too)
  epoch                  an epoch of training, as a multiple of either
  padded reference       that epoch the usual way: padded batches, RoIAlign in every step, a loop over videos
  forward to mAP         an evaluation of the 212 test videos, part by part
  soft-NMS, 3,000 x 20   one video with many proposals, all classes predicted, overlapping as much as the real ones do
  peak memory            of the whole program

Two cores at full width need about two minutes, and six to seven with --compare; --steps 2 --repeats 1 gives a
first impression in half a minute."""


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command line of this module."""
    parser = Parser(
        prog="python -m utils.benchmark",
        description="Time training and evaluation at THUMOS14's size, beside what the arithmetic alone takes.",
        epilog=ROWS,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what to measure").add_argument
    add("--compare", choices=("padded",), help="the padded reference too (default: not, as it is slow)")
    count = number(int, 1)
    add("--steps", type=count, metavar="N", help="steps of an epoch (default: all, 20 for THUMOS14's 200 videos)")
    add("--repeats", type=count, default=3, metavar="N", help="epochs (default: 3, so that one may be disturbed)")
    add("--output", metavar="FILE", help="also write the rows as JSON (default: print only)")
    add = parser.add_argument_group("data").add_argument
    text = "folder of Proposals_Thumos14reduced_{train,test}.json (default: drawn, as many as P_w has)"
    add("--proposals_root", metavar="DIR", help=text)
    add("--width", type=count, default=1024, metavar="D", help="of one modality (default: 1024, I3D's)")
    text = "of the cache (default: float32, main.py's)"
    add("--cache_dtype", choices=("float32", "float16"), default="float32", help=text)
    add = parser.add_argument_group("training", "options and defaults of main.py").add_argument
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: auto, CUDA if there is one")
    text = "one dropout draw for proposals that repeat a segment (default: one each, as the authors do)"
    add("--share_rows", action="store_true", help=text)
    text = "mixed precision of the network (default: off, float32)"
    add("--amp", choices=("off", "bf16"), default="off", help=text)
    add("--tf32", action="store_true", help="TF32 products on NVIDIA cards (default: full float32)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="seal-benchmark-") as folder:
        rows = run(options, Path(folder))
    print("\n".join(aligned([("what", "figure", "remark")] + [(a, b, "  " + c) for a, b, c in rows])))
    if options.output:
        write_json(options.output, rows)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
