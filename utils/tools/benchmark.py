"""Time training and evaluation at THUMOS14's size on simulated features, beside the cost of the arithmetic.

  cache of train, test   making the SCFE inputs, once for a dataset; size on disk
  torch.mm               speed of a plain product of the fusion layer's size: what the machine can do
  cost of the arithmetic forward and backward at that speed: 48 D^2 operations in the fusion layer, whose input needs no
                         gradient, for every distinct row, and 36 D^2 in the branches for every proposal
  epoch                  an epoch of training, median, as a multiple of it
  step                   dispatched operations that are no views, time until the host has asked for them and, on a card,
                         kernels and the time they take
  forward to mAP         an evaluation of the 212 test videos, part by part
  peak memory            of the whole program

With --amp bf16 epoch and forward are timed in turns with float32's, and their ratio is shown. Two cores at full width
need about two minutes; --steps 2 --repeats 1 gives a first impression in half a minute.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dataset import Split, epoch_order, packed_batch
from eval.detection import PROTOCOLS, evaluate_detections
from eval.inference import score
from eval.postprocess import candidates, detect
from generators.co2net import CO2NetTrainer
from generators.lac import LACTrainer, lac_scores
from generators.search import search_labels
from losses import TERMS, padding_rows
from main import adam, train_step
from model import SEAL
from options import COUNT, OPTIONS, Options, Parser, add_option, parse
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
TRAINING = ("recipe", "device", "share_rows", "amp", "tf32", "cache_dtype")  # options of main.py that change the speed
Row = Tuple[str, str, str]  # what, figure, remark


def proposals_like_thumos(split: str) -> List[np.ndarray]:
    """Proposals in snippets, [M, 2] a video, with THUMOS14's counts, repeats and lengths (P_w)."""
    rng = stream(0, "benchmark proposals", VIDEOS[split])
    weight = rng.lognormal(0, 0.9, VIDEOS[split])
    counts = np.maximum(4, np.round(weight / weight.sum() * PROPOSALS[split])).astype(int)
    counts[counts.argmax()] += PROPOSALS[split] - counts.sum()
    found = []
    for count in counts:
        length = np.clip(rng.lognormal(1.6, 0.9, count), 0.5, 300)
        start = rng.uniform(0, 4 * count**0.8 + 20, count)
        again = rng.random(count) < REPEATS[split]
        again[0] = False
        first = np.where(again, rng.choice(np.flatnonzero(~again), count), np.arange(count))
        found.append(np.stack([start, start + length], 1).round(2)[first])
    return found


def proposals_of(root: Optional[str], split: str) -> List[np.ndarray]:
    """The proposals of a THUMOS14 file in snippets, or drawn ones."""
    if root is None:
        return proposals_like_thumos(split)
    results = load_json(Path(root) / f"Proposals_Thumos14reduced_{split}.json")["results"]
    return [to_snippets([p["segment"] for p in ps], RATE) for ps in results.values()]


def simulated_split(split: str, proposals: List[np.ndarray], width: int, folder: Path, dtype: str) -> Tuple[Split, Row]:
    """A split over simulated features through the real cache, and a row about the cache."""
    videos = tuple(f"{split}_{i:04d}" for i in range(len(proposals)))
    snippets = np.asarray([int(np.ceil(p.max())) + 2 for p in proposals])

    def load(video: str) -> np.ndarray:
        return rng.random((snippets[videos.index(video)], width), dtype=np.float32)

    rng = stream(0, "benchmark features")
    seconds, rows = timed(lambda: cached_rows(folder, split, videos, proposals, load, "simulated", dtype=dtype))
    size = sum(p.stat().st_size for p in folder.glob(f"{split}-*/*.npy"))
    labels = np.eye(NUM_CLASS, dtype=np.float32)[np.arange(len(videos)) % NUM_CLASS]
    remark = f"{size / 1e9:.2f} GB, {rows.start[-1]:,} rows of {sum(map(len, proposals)):,} proposals"
    made = Split(videos, labels, proposals, snippets, snippets / RATE, np.full(len(videos), RATE), rows, {})
    return made, (f"cache of {split}", f"{seconds:.1f} s", remark)


def timed(work: Callable[[], Any]) -> Tuple[float, Any]:
    """Seconds that ``work`` takes, the queue of a card included, and what it returns."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else (lambda: None)
    wait()
    start = time.perf_counter()
    made = work()
    wait()
    return time.perf_counter() - start, made


class Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches, but for views and the profiler's marks."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += not (operator.is_view or operator.namespace == "profiler")
        return operator(*args, **(kwargs or {}))


def of_step(step: Callable[[], Any], device: torch.device) -> Row:
    """A row about one step of training, as a median of ten."""
    hosts = []
    for _ in range(10):
        timed(lambda: None)  # the card has nothing left to do
        start = time.perf_counter()
        step()
        hosts.append(time.perf_counter() - start)
    with Operations() as operations:
        step()
    remark = f"{operations.count} operations"
    if device.type == "cuda":
        activity = torch.profiler.ProfilerActivity.CUDA
        with torch.profiler.profile(activities=[activity]) as profile:
            timed(step)
        kernels = [e.time_range.elapsed_us() for e in profile.events() if e.device_type.name == "CUDA"]
        remark += f", {len(kernels)} kernels, {sum(kernels) / 1e3:.2f} ms on the device"
    return "step", f"{1e3 * np.median(hosts):.2f} ms", f"on the host; {remark}"


def mm_speed(rows: int, width: int, device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Operations a second of a plain large torch.mm: the fusion layer's own product, best of five."""
    a, b = (torch.rand(*shape, device=device).to(dtype) for shape in ((rows, 3 * width), (3 * width, width)))
    return 2 * rows * 3 * width * width / min(timed(lambda: torch.mm(a, b))[0] for _ in range(5))


def training(
    model: SEAL, train: Split, args: Options, steps: Optional[int], repeats: int, beside: Optional[Split] = None
) -> List[Row]:
    """Time epochs of training, in turns with the product that sets the cost of the arithmetic, and with epochs in
    float32 on the rows of ``beside``."""
    device, width = next(model.parameters()).device, model.feature_size
    optimizer, rng = adam(model, args), np.random.default_rng(0)
    pseudo = tuple(rng.integers(0, n, len(train.videos)) for n in (NUM_CLASS, 3))
    batches = epoch_order(train.scored, args.batch_size, 0, 1)[:steps]
    draws = padding_rows(args.losses, args.numbers, args.dropout_ratio)

    def epoch(some: Sequence[np.ndarray], split: Split = train, args: Options = args) -> None:
        model.train()
        for step, videos in enumerate(some):
            made = packed_batch(split, videos, device, pseudo, draws=draws)
            train_step(model, optimizer, *made, args, epoch=1, step=step)

    used = np.concatenate(batches)
    proposals, distinct = sum(len(train.proposals[v]) for v in used), int(train.rows.size[used].sum())
    flop = (FUSION * distinct + BRANCHES * (distinct if args.share_rows else proposals)) * (width / 2) ** 2
    speeds, seconds, plain = [], [], []
    for _ in range(repeats):  # in turns, so that a machine whose speed drifts treats all alike
        speeds.append(mm_speed(min(4096, proposals), width, device, train.rows.dtype))
        epoch(batches[:1])  # not timed: it shapes the memory
        seconds.append(timed(lambda: epoch(batches))[0])
        if beside:
            epoch(batches[:1], beside, args.replace(amp="off"))
            plain.append(timed(lambda: epoch(batches, beside, args.replace(amp="off")))[0])
    ratio, speed = np.median([s * v / flop for s, v in zip(seconds, speeds)]), np.median(speeds)
    kind = "TF32" if args.tf32 and device.type == "cuda" else str(train.rows.dtype).split(".")[1]
    work = f"{len(batches)} steps, {proposals:,} proposals, {distinct:,} distinct rows, {flop / 1e12:.2f} TFLOP"
    return [
        ("torch.mm", f"{speed / 1e9:,.0f} GFLOP/s", f"{kind}, {torch.get_num_threads()} threads, {device}"),
        ("cost of the arithmetic", f"{flop / speed:.3f} s", work),
        ("epoch", f"{np.median(seconds):.3f} s", f"{ratio:.2f} times the cost of the arithmetic"),
        *against("epoch", seconds, plain),
        of_step(lambda: epoch(batches[:1]), device),
    ]


def against(what: str, seconds: Sequence[float], plain: Sequence[float]) -> List[Row]:
    """A row about how much faster than in float32 something is, where that was timed."""
    if not plain:
        return []
    ratio = np.median(plain) / np.median(seconds)
    return [(f"{what}, float32", f"{np.median(plain):.3f} s", f"bfloat16 is {ratio:.2f} times as fast")]


def evaluation(model: SEAL, test: Split, beside: Optional[Split] = None) -> List[Row]:
    """Time an evaluation by part: forward, fusion, soft-NMS with the ambiguous filter, and mAP in each protocol.

    beside: the same rows in float32, if the forward pass is to be timed on both."""
    classes, profile = tuple(f"class {c:02d}" for c in range(NUM_CLASS)), PROFILES["Thumos14reduced"]
    ambiguous_s = {v: np.asarray([[0.0, 3.0], [9.0, 12.0]]) for v in test.videos[:36]}
    seconds: List[List[float]] = [[], []]
    for _ in range(2 if beside else 1):
        for split, found in zip((beside, test), seconds[::-1]):
            if split:
                spent, outputs = timed(lambda split=split: list(score(model, split)))
                found.append(spent)
    given = [(v, o["s_base"], o["attention"], o["s_pc"], test.proposals[v]) for v, o in outputs]
    fusion, found = timed(lambda: [(v, candidates(*o, threshold=0.0)[0]) for v, *o in given])
    # all classes, since the network is untrained; a trained one of THUMOS14 predicts 1.1 a video on average: take two
    found = [(v, c._replace(scores=c.scores[:, :2], labels=c.labels[:2])) for v, c in found]
    nms, detections = timed(lambda: detect(classes, test.videos, found, ambiguous_s, test.rate))
    some = (column[::18] for column in (detections.video, detections.segment_s, detections.label))
    truth = Segments(classes, test.videos, *some)  # as many instances as THUMOS14 has
    mean_ap = max(timed(lambda p=p: evaluate_detections(truth, detections, profile, p))[0] for p in PROTOCOLS)
    return [
        ("forward of the test split", f"{min(seconds[0]):.3f} s", f"{len(test.videos)} videos"),
        *against("forward", *([min(found)] if found else [] for found in seconds)),
        ("fusion", f"{fusion:.3f} s", "scores of proposals and videos"),
        ("soft-NMS and filter", f"{nms:.3f} s", f"{len(detections.video):,} detections"),
        ("mAP", f"{mean_ap:.3f} s", "slowest of the three protocols"),
        ("beside the forward pass", f"{fusion + nms + mean_ap:.3f} s", "sum of these three"),
    ]


def generators(device: torch.device, half: int, repeats: int) -> List[Row]:
    """Time steps of the proposal makers beside their matrix products, and LAC's sequence search on one core.

    half: D. A row of CO2-Net takes 147 D^2 operations forward and backward (53 forward; the gradient of the input is
    not needed), one of LAC 48 D^2. Videos have THUMOS14's mean length.
    """
    width, length, videos = 2 * half, 326, 32
    features = stream(0, "benchmark features").random((videos, length, width), dtype=np.float32)
    labels = np.eye(NUM_CLASS)[np.arange(videos) % (NUM_CLASS // 2)][:, : NUM_CLASS // 2]
    points = [np.stack([np.arange(10, length, 22), np.full(15, label.argmax())], 1) for label in labels]
    co2net = CO2NetTrainer(features.__getitem__, labels, width, 0, device)
    lac = LACTrainer(features.__getitem__, [length] * videos, labels, points, width, 0, device)
    lac.search()  # the last two terms of its loss need it
    rows = []
    for name, trainer, count, flop in (("CO2-Net", co2net, 5000, 147), ("LAC", lac, 16 * length, 48)):
        trainer.step()  # not timed: it shapes the memory
        speeds, seconds = [], []
        for _ in range(repeats):
            speeds.append(mm_speed(count // 4, width, device))
            seconds.append(timed(trainer.step)[0])
        ratio = np.median([s * v / (flop * half**2 * count) for s, v in zip(seconds, speeds)])
        text = f"{ratio:.2f} times the cost of the arithmetic, {flop * half**2 * count / 1e9:,.0f} GFLOP"
        rows.append((f"step of {name}", f"{np.median(seconds):.3f} s", text))
    fused, seconds = [lac_scores(lac.network, x)[0] for x in features], []
    given = [(x, lac.point_label(v, length)) for v, x in enumerate(fused)]
    for _ in range(repeats):
        seconds.append(timed(lambda: [search_labels(*one) for one in given])[0])
    each = np.median(seconds) / (videos * length)
    return [*rows, ("sequence search", f"{1e6 * each:.1f} us", "a snippet and class, on one core; published: 300 us")]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command: print the table. Raises InputError."""
    parser = Parser(prog="python -m utils.tools.benchmark", description=__doc__)
    add = parser.add_argument_group("what to measure").add_argument
    add("--steps", type=COUNT, metavar="N", help="steps of an epoch (default: all, 20 for THUMOS14's 200 videos)")
    add("--repeats", type=COUNT, default=3, metavar="N", help="epochs (default: 3, so that one may be disturbed)")
    text = "folder of Proposals_Thumos14reduced_{train,test}.json (default: drawn, as many as P_w has)"
    add("--proposals_root", metavar="DIR", help=text)
    add("--width", type=COUNT, default=1024, metavar="D", help="values of one modality (default: 1024, I3D's)")
    add("--generators", action="store_true", help="time the proposal makers and LAC's search instead of SEAL")
    add("--output", metavar="FILE", help="also write the rows as JSON (default: print only)")
    group = parser.add_argument_group("training, as main.py")
    for option in (option for part in OPTIONS.values() for option in part if option.name in TRAINING):
        add_option(group, option)
    options = parser.parse_args(argv)
    args = parse(["--recipe", options.recipe], tuple(TERMS)).replace(**{n: getattr(options, n) for n in TRAINING})
    device, rows, splits = pick_device(args.device, args.tf32), [], {}
    dtypes = ["bfloat16", "float32"] if args.amp == "bf16" else [args.cache_dtype]
    if options.generators:
        rows, dtypes = generators(device, options.width, options.repeats), []
    with tempfile.TemporaryDirectory(prefix="seal-benchmark-") as folder:
        for dtype in dtypes:
            for name in ("train", "test"):
                proposals = proposals_of(options.proposals_root, name)
                split, row = simulated_split(name, proposals, 2 * options.width, Path(folder) / dtype, dtype)
                split.rows.to(device)
                splits[name] = [*splits.get(name, []), split]
                rows += [row] if dtype == dtypes[0] else []
        if splits:
            model, (train, *beside) = SEAL(2 * options.width, NUM_CLASS).to(device), splits["train"]
            rows += training(model, train, args, options.steps, options.repeats, *beside)
            rows += evaluation(model, *splits["test"])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    rows.append(("peak memory", f"{memory / 1e9:.2f} GB", "resident, everything above"))
    if device.type == "cuda":
        rows.append(("peak memory, CUDA", f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB", ""))
    print("\n".join(aligned([("what", "figure", "remark")] + [(a, b, "  " + c) for a, b, c in rows])))
    if options.output:
        write_json(options.output, rows)


if __name__ == "__main__":
    run_command(main)
