"""Speed of SEAL: ``python -m utils.tools.benchmark`` prints times beside the cost of the arithmetic.

An epoch's work is matrix products. Forward and backward take 84 D^2 operations a proposal (88 MFLOP at D = 1024): 48
in the fusion layer, whose input needs no gradient, and 36 in the three branches. That number over the speed of a plain
torch.mm is the cost of the arithmetic; the fusion layer's share counts once for proposals that share a row.
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
from losses import TERMS
from main import adam, train_step
from model import SEAL
from options import Options, Parser, number, parse
from utils.datasets.profile import PROFILES
from utils.datasets.rows import cached_rows
from utils.errors import run_command
from utils.files import load_json, write_json
from utils.run.experiment import pick_device
from utils.run.report import aligned
from utils.seeds import stream
from utils.segments import Segments, to_snippets

VIDEOS = {"train": 200, "test": 212}
PROPOSALS = {"train": 33_895, "test": 31_587}
REPEATS = {"train": 1 / 3, "test": 0.45}  # share of proposals that repeat another
NUM_CLASS, RATE = 20, 25 / 16
FUSION, BRANCHES = 48, 36  # operations in D^2, forward and backward: 2 * 2 * 6D * 2D; 3 * 3 * 2 * 2D * D
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
    return [to_snippets([p["segment"] for p in ps], RATE) for ps in results.values()]


def simulated_split(split: str, proposals: List[np.ndarray], width: int, cache_dir: Path, dtype: str):
    """A split over simulated features through the real cache, and a row about the cache."""
    videos = tuple(f"{split}_{i:04d}" for i in range(len(proposals)))
    snippets = np.asarray([int(np.ceil(p.max())) + 2 for p in proposals])

    def load(video: str) -> np.ndarray:
        i = videos.index(video)
        return stream(0, "benchmark features", i, len(videos)).random((snippets[i], width), dtype=np.float32)

    start = time.perf_counter()
    rows = cached_rows(cache_dir, split, videos, proposals, load, "simulated", dtype=dtype)
    seconds, size = time.perf_counter() - start, sum(p.stat().st_size for p in cache_dir.glob(f"{split}-*/*.npy"))
    labels = np.eye(NUM_CLASS, dtype=np.float32)[np.arange(len(videos)) % NUM_CLASS]
    remark = f"{size / 1e9:.2f} GB, {rows.start[-1]:,} rows of {sum(map(len, proposals)):,} proposals"
    made = Split(videos, labels, proposals, snippets, snippets / RATE, np.full(len(videos), RATE), rows, {})
    return made, (f"cache of {split}", f"{seconds:.1f} s", remark)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``work`` takes, the device's queue included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def mm_speed(rows: int, width: int, device: torch.device, repeats: int = 5) -> float:
    """Operations a second of a plain large torch.mm: the fusion layer's own product, best of a few."""
    a, b = torch.rand(rows, 3 * width, device=device), torch.rand(3 * width, width, device=device)
    return 2 * rows * 3 * width * width / min(timed(lambda: torch.mm(a, b), device) for _ in range(repeats))


def training(model: SEAL, train: Split, args: Options, steps: Optional[int], repeats: int) -> List[Row]:
    """Time epochs of training, in turns with the product that sets the cost of the arithmetic."""
    device, width = next(model.parameters()).device, model.feature_size
    optimizer, rng = adam(model, args), np.random.default_rng(0)
    pseudo = tuple(rng.integers(0, n, len(train.videos)) for n in (NUM_CLASS, 3))
    batches = epoch_order(np.arange(len(train.videos)), args.batch_size, 0, 1)[:steps]

    def epoch(some: Sequence[np.ndarray]) -> None:
        model.train()
        for step, videos in enumerate(some):
            train_step(model, optimizer, *packed_batch(train, videos, device, pseudo), args, epoch=1, step=step)

    used = np.concatenate(batches)
    proposals, distinct = sum(len(train.proposals[v]) for v in used), int(train.rows.size[used].sum())
    flop = (FUSION * distinct + BRANCHES * (distinct if args.share_rows else proposals)) * (width / 2) ** 2
    speeds, seconds = [], []
    for _ in range(repeats):  # in turns, so that a machine whose speed drifts treats both alike
        speeds.append(mm_speed(min(4096, proposals), width, device))
        epoch(batches[:1])  # not timed: it shapes the memory
        seconds.append(timed(lambda: epoch(batches), device))
    ratio, speed = np.median([s * v / flop for s, v in zip(seconds, speeds)]), np.median(speeds)
    kind = "TF32" if args.tf32 and device.type == "cuda" else "float32"
    work = f"{len(batches)} steps, {proposals:,} proposals, {distinct:,} distinct rows, {flop / 1e12:.2f} TFLOP"
    return [
        ("torch.mm", f"{speed / 1e9:,.0f} GFLOP/s", f"{kind}, {torch.get_num_threads()} threads, {device}"),
        ("cost of the arithmetic", f"{flop / speed:.3f} s", work),
        ("epoch", f"{np.median(seconds):.3f} s", f"{ratio:.2f} times the cost of the arithmetic"),
    ]


def evaluation(model: SEAL, test: Split) -> List[Row]:
    """Time an evaluation by part: forward, fusion, soft-NMS with the ambiguous filter, and mAP in each protocol."""
    rng, cpu = stream(0, "benchmark instances"), torch.device("cpu")
    video = np.repeat(np.arange(len(test.videos)), 16)
    at = rng.uniform(0, test.length_s[video])
    classes, label = tuple(f"class {c:02d}" for c in range(NUM_CLASS)), test.labels[video].argmax(1)
    truth = Segments(classes, test.videos, video, np.stack([at, at + rng.uniform(1, 8, len(at))], 1), label)
    ambiguous_s = {v: np.asarray([[0.0, 3.0], [9.0, 12.0]]) for v in test.videos[:36]}
    outputs, found, detections = [], [], []
    forward = timed(lambda: outputs.extend(score(model, test)), next(model.parameters()).device)
    given = [(v, o["s_base"], o["attention"], o["s_pc"], test.proposals[v]) for v, o in outputs]
    fusion = timed(lambda: found.extend((v, candidates(*o, 0.0)[0]) for v, *o in given), cpu)
    # all classes, since the network is untrained; a trained one of THUMOS14 predicts 1.1 a video on average: take two
    found = [(v, c._replace(scores=c.scores[:, :2], labels=c.labels[:2])) for v, c in found]
    nms = timed(lambda: detections.append(detect(classes, test.videos, found, ambiguous_s, test.rate)), cpu)
    profile = PROFILES["Thumos14reduced"]
    mean_ap = [timed(lambda p=p: evaluate_detections(truth, detections[0], profile, p), cpu) for p in PROTOCOLS]
    return [
        ("forward of the test split", f"{forward:.3f} s", f"{len(test.videos)} videos"),
        ("fusion", f"{fusion:.3f} s", "scores of proposals and videos"),
        ("soft-NMS and filter", f"{nms:.3f} s", f"{len(detections[0].video):,} detections"),
        ("mAP", f"{max(mean_ap):.3f} s", "slowest of the three protocols"),
    ]


def run(options: argparse.Namespace, cache_dir: Path) -> List[Row]:
    """Rows of the table."""
    flags = ["--device", options.device, "--amp", options.amp, "--recipe", options.recipe]
    args = parse(flags + ["--share_rows"] * options.share_rows + ["--tf32"] * options.tf32, tuple(TERMS))
    device, width = pick_device(args.device, args.tf32), 2 * options.width
    splits, rows = [], []
    for name in ("train", "test"):
        proposals = proposals_of(options.proposals_root, name)
        split, about = simulated_split(name, proposals, width, cache_dir, options.cache_dtype)
        split.rows.to(device)
        splits.append(split)
        rows.append(about)
    model = SEAL(width, NUM_CLASS).to(device)
    rows += training(model, splits[0], args, options.steps, options.repeats) + evaluation(model, splits[1])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    rows.append(("peak memory", f"{memory / 1e9:.2f} GB", "resident, everything above"))
    if device.type == "cuda":
        rows.append(("peak memory, CUDA", f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB", ""))
    return rows


ROWS = """rows of the table, on simulated features; the median where something runs more than once:
  cache of train, test   making the SCFE inputs, once for a dataset; size on disk
  torch.mm               speed of a plain product of the fusion layer's size: what the machine can do
  cost of the arithmetic 48 D^2 operations for every distinct row and 36 D^2 for every proposal, at that speed
  epoch                  an epoch of training, as a multiple of it
  forward to mAP         an evaluation of the 212 test videos, part by part
  peak memory            of the whole program

Two cores at full width need about two minutes; --steps 2 --repeats 1 gives a first impression in half a minute."""


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command line of this module."""
    parser = Parser(
        prog="python -m utils.tools.benchmark",
        description="Time training and evaluation at THUMOS14's size, beside the cost of the arithmetic.",
        epilog=ROWS,
    )
    add = parser.add_argument_group("what to measure").add_argument
    count = number(int, 1)
    add("--steps", type=count, metavar="N", help="steps of an epoch (default: all, 20 for THUMOS14's 200 videos)")
    add("--repeats", type=count, default=3, metavar="N", help="epochs (default: 3, so that one may be disturbed)")
    add("--output", metavar="FILE", help="also write the rows as JSON (default: print only)")
    add = parser.add_argument_group("data").add_argument
    text = "folder of Proposals_Thumos14reduced_{train,test}.json (default: drawn, as many as P_w has)"
    add("--proposals_root", metavar="DIR", help=text)
    add("--width", type=count, default=1024, metavar="D", help="values of one modality (default: 1024, I3D's)")
    add("--cache_dtype", choices=("float32", "float16"), default="float32", help="type of the cache (default: float32)")
    add = parser.add_argument_group("training", "options and defaults of main.py").add_argument
    add("--recipe", choices=("release", "paper"), default="release", help="numbers of the losses (default: release)")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: auto, CUDA if there is one")
    add("--share_rows", action="store_true", help="one dropout draw for proposals that repeat a segment")
    add("--amp", choices=("off", "bf16"), default="off", help="mixed precision of the network (default: off)")
    add("--tf32", action="store_true", help="TF32 products on NVIDIA cards (default: full float32)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="seal-benchmark-") as folder:
        rows = run(options, Path(folder))
    print("\n".join(aligned([("what", "figure", "remark")] + [(a, b, "  " + c) for a, b, c in rows])))
    if options.output:
        write_json(options.output, rows)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
