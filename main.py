"""SEAL: train and test (``python main.py --help``).

Files -> dataset -> cached SCFE inputs -> model -> scores -> detections -> metrics and pictures. Nothing flows back.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np
import torch

from dataset import epoch_order, load_source, load_split, packed_batch, split_truth
from descriptors import load_or_make
from eval.inference import Evaluation, evaluate
from losses import pseudo_labels, seal_terms, weights
from model import SEAL, load_model, save_model
from options import parse
from utils.board import Board
from utils.demo import make_demo
from utils.errors import InputError, run_command
from utils.experiment import experiment, plain, write_environment, write_options
from utils.files import file_hash, load_checkpoint, save_checkpoint, write_json, write_text
from utils.profile import PROFILES, dataset_root, proposals_file
from utils.report import aligned, columns, headline, log, progress, row, table
from utils.seeds import torch_stream

# options that cannot change a result: a run may be resumed with others
FREE = {"exp_dir", "resume", "cache_dir", "no_cache", "save_seconds", "run_type", "pretrained_ckpt"}
FIGURE_VIDEOS = 3


def train_step(
    model: SEAL, optimizer: torch.optim.Optimizer, batch_of: Tuple, args: argparse.Namespace, epoch: int, step: int
) -> Dict[str, torch.Tensor]:
    """Forward, losses, backward, Adam on one packed batch (``dataset.packed_batch``).

    Returns the terms and the norm of the gradient, on the device. Nothing in here waits for the device.
    """
    rows, index, batch = batch_of
    generator = torch_stream(args.seed, "dropout", epoch, step, device=rows.device)
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=args.amp == "bf16"):
        outputs = model(rows, index, generator, share_rows=args.share_rows)
    terms = seal_terms(outputs, batch, args.recipe_numbers, epoch, args.max_epoch, args.k, args.losses, args.sme_labels)
    optimizer.zero_grad(set_to_none=True)
    terms["loss_total"].backward()
    norms = torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])
    optimizer.step()
    terms = {name: term.detach().float() for name, term in terms.items()}
    return {**terms, "gradient_norm": torch.linalg.vector_norm(torch.stack(norms))}


class Run:
    """One training run: what it reads, what it has learnt so far, and the folder it writes to."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder, self.recipe = args, folder, args.recipe_numbers
        (folder / "ckpt").mkdir(exist_ok=True)
        self.device = pick_device(args)
        source = source_of(args)
        self.classes, self.profile = source.annotations.classes, source.profile
        self.train, self.test = (load_split(source, split, log) for split in ("train", "test"))
        self.truth = split_truth(source, self.test)
        self.pseudo = self._pseudo_labels()
        self.model = SEAL(self.train.rows.width // 3, len(self.classes), args.dropout_ratio, args.seed).to(self.device)
        self.optimizer = adam(self.model, args)
        self.epoch, self.step = 1, 0  # the next step to take
        self.records: List[torch.Tensor] = []  # terms of the steps of this epoch
        self.term_names: List[str] = []
        self.history: List[Dict] = []  # metrics of every evaluation
        self.options = plain(args)
        self.inputs = {
            "features": f"{self.train.source} {self.test.source}",
            "train_proposals": file_hash(proposals_file(source.name, self.profile, "train", args.proposals_root)),
            "test_proposals": file_hash(proposals_file(source.name, self.profile, "test", args.proposals_root)),
        }
        self.on_device = [split.rows.to(self.device) for split in (self.train, self.test)]

    def _pseudo_labels(self) -> Tuple[np.ndarray, np.ndarray]:
        """Eq. (5)-(7) for every training video: they depend on data alone."""
        args, rows = self.args, self.train.rows
        folder = Path(args.descriptors_root or Path("descriptors") / args.dataset_name)
        labels, source = self.train.labels, self.train.source
        pair = load_or_make(
            folder, rows.video_mean, rows.num_snippets, labels, self.classes, args.descriptor_level, source
        )
        label, confidence = pseudo_labels(torch.from_numpy(rows.video_mean), *map(torch.from_numpy, pair))
        return label.numpy(), confidence.numpy()

    def take_step(self, videos: np.ndarray) -> None:
        """One step on these videos; its terms join the epoch's records."""
        args = self.args
        batch_of = packed_batch(self.train, videos, self.device, self.pseudo, args.max_proposal, args.seed, self.epoch)
        terms = train_step(self.model, self.optimizer, batch_of, args, self.epoch, self.step)
        self.term_names = list(terms)
        self.records.append(torch.stack(list(terms.values())))
        self.step += 1

    def batches(self) -> List[np.ndarray]:
        return epoch_order(self.train.scored, self.args.batch_size, self.args.seed, self.epoch)

    def mean_terms(self) -> Dict[str, float]:
        """Mean of each term over the epoch. Raises InputError naming epoch, videos and term if one is not finite."""
        table = torch.stack(self.records).cpu()
        if not table.isfinite().all():
            step, term = (~table.isfinite()).nonzero()[0].tolist()
            videos = ", ".join(self.train.videos[v] for v in self.batches()[step])
            what = f"{self.term_names[term]} is {table[step, term].item()} in epoch {self.epoch}, step {step + 1}"
            raise InputError(what, f"videos {videos}", "lower --lr; the last good state is in ckpt/last_state.pt")
        return dict(zip(self.term_names, table.double().mean(0).tolist()))

    # ---- state

    def save_state(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "records": [r.cpu() for r in self.records],
            "term_names": self.term_names,
            "history": self.history,
            "options": self.options,
            "inputs": self.inputs,
        }
        save_checkpoint(self.folder / "ckpt" / "last_state.pt", state)

    def resume(self) -> bool:
        """Go on from last_state.pt. Raises InputError if options or inputs that change the result differ."""
        path = self.folder / "ckpt" / "last_state.pt"
        if not path.exists():
            log(f"{path} is not there yet: starting from the first epoch")
            return False
        state = load_checkpoint(path)
        for what, old, new in (("options", state["options"], self.options), ("inputs", state["inputs"], self.inputs)):
            differ = [k for k in sorted({*old, *new}) if k not in FREE and old.get(k) != new.get(k)]
            if differ:
                texts = ", ".join(f"{k} was {old.get(k)} and is {new.get(k)}" for k in differ)
                raise InputError(
                    f"{what} differ: {texts}", path, f"resume with the same {what}, or start a new --exp_dir"
                )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
        self.records, self.term_names = [r.to(self.device) for r in state["records"]], state["term_names"]
        return True

    # ---- evaluation

    @property
    def best(self) -> Optional[Dict]:
        return max(self.history, key=lambda m: headline(m)) if self.history else None

    def evaluate(self, board: Board) -> Evaluation:
        """Score the test split, write what an evaluation leaves, and keep the model if it is the best so far."""
        args = self.args
        result = evaluate(
            self.model, self.test, self.truth, self.profile, args.protocol, args.threshold_cls, "pc" in args.losses
        )
        metrics = {"epoch": self.epoch, **result.metrics}
        self.history = [m for m in self.history if m["epoch"] != self.epoch] + [metrics]
        if self.best is metrics:
            save_model(self.folder / "ckpt" / "best_model.pkl", self.model, self.info())
        head = columns(metrics["tiou"], list(metrics["average"]))
        lines = aligned([head] + [row(m) for m in self.history])
        write_text(self.folder / "mAP-results.log", "\n".join(lines) + "\n")
        write_json(self.folder / "results.json", {"last": metrics, "best": self.best})
        board.scalars("test_mAP", dict(zip(head[1:], map(float, row(metrics)[1:]))), self.epoch)
        for video, picture in result.pictures(self.test, self.truth, FIGURE_VIDEOS):
            board.image(f"timeline/{video}", picture, self.epoch)
        return result

    def info(self) -> Dict[str, object]:
        """What a checkpoint carries beside its weights: all that prediction needs."""
        args, profile = self.args, self.profile
        return {
            "classes": list(self.classes),
            "feature_size": self.model.feature_size,
            "feature_fps": profile.feature_fps,
            "snippet_stride": profile.snippet_stride,
            "roi_size": args.roi_size,
            "recipe": args.recipe,
            "losses": list(args.losses),
            "dataset": args.dataset_name,
            "epoch": self.epoch,
        }


def show(bar, run: Run, loss: float) -> None:
    """The numbers that matter, on the bar."""
    scores = (
        "".join(f", {k} {100 * headline(m):.1f}" for k, m in (("last", run.history[-1]), ("best", run.best)) if m)
        if run.history
        else ""
    )
    bar.set_description(f"epoch {run.epoch}/{run.args.max_epoch}, loss {loss:.3f}{', mAP' * bool(scores)}{scores}")


def train(args: argparse.Namespace) -> int:
    """Train, evaluate every ``interval`` epochs, leave the files of a run. Returns the exit status."""
    with experiment(args.exp_dir, f"{args.dataset_name}-train", args.resume) as folder, Stop() as stop:
        run = Run(args, folder)
        resumed = args.resume and run.resume()
        write_options(folder, run.options)
        write_environment(folder, run.device, args.seed, run.inputs)
        board = Board(folder / "logs", run.epoch - 1)
        if not resumed:
            board.options(run.options)
        log(f"run in {folder} on {run.device}: {len(run.train.scored)} training, {len(run.test.videos)} test videos")
        result, saved = None, time.monotonic()
        steps = len(run.batches())
        with progress(args.max_epoch * steps, (run.epoch - 1) * steps + run.step) as bar:
            while run.epoch <= args.max_epoch:
                run.model.train()
                for videos in run.batches()[run.step :]:
                    run.take_step(videos)
                    bar.update()
                    if stop.asked:
                        run.mean_terms()
                        run.save_state()
                        log(f"stopped in epoch {run.epoch}; go on with --resume --exp_dir {folder}")
                        return 130
                terms = run.mean_terms()
                board.scalars("loss", terms, run.epoch)
                board.scalars("weight", weights(run.recipe, run.epoch, args.max_epoch), run.epoch)
                board.scalars("optimizer", {"learning_rate": run.optimizer.param_groups[0]["lr"]}, run.epoch)
                if run.epoch % args.interval == 0 or run.epoch == args.max_epoch:
                    result = run.evaluate(board)
                show(bar, run, terms["loss_total"])
                run.epoch, run.step, run.records = run.epoch + 1, 0, []
                if time.monotonic() - saved > args.save_seconds or run.epoch > args.max_epoch:
                    board.flush()
                    run.save_state()
                    saved = time.monotonic()
        run.epoch = args.max_epoch
        if result is None:  # resumed after the last epoch
            result = run.evaluate(board)
        save_model(folder / "ckpt" / "last_model.pkl", run.model, run.info())
        write_json(folder / "detections.json", result.detections.to_json(args.dataset_name))
        board.close()
        log(
            table(
                args.dataset_name,
                args.recipe,
                {f"last (epoch {run.epoch})": run.history[-1], f"best (epoch {run.best['epoch']})": run.best},
            )
        )
        log(f"everything is in {folder}; look with: tensorboard --logdir {folder / 'logs'}")
    return 0


def test(args: argparse.Namespace) -> int:
    """Score the test split with a checkpoint and print the table. Returns the exit status."""
    device = pick_device(args)
    source = source_of(args)
    model, info = load_model(Path(args.pretrained_ckpt), source.annotations.classes)
    with experiment(args.exp_dir, f"{args.dataset_name}-test", False) as folder:
        split = load_split(source, "test", log)
        if split.rows.width != 3 * model.feature_size:
            what = f"checkpoint for features of width {model.feature_size}, the data have {split.rows.width // 3}"
            raise InputError(what, args.pretrained_ckpt, "use the features it was trained on")
        truth = split_truth(source, split)
        use_pc = "pc" in info.get("losses", args.losses)
        result = evaluate(model.to(device), split, truth, source.profile, args.protocol, args.threshold_cls, use_pc)
        write_options(folder, plain(args))
        inputs = {"features": split.source, "checkpoint": file_hash(Path(args.pretrained_ckpt))}
        write_environment(folder, device, args.seed, inputs)
        write_json(folder / "results.json", result.metrics)
        write_json(folder / "detections.json", result.detections.to_json(args.dataset_name))
        print(table(args.dataset_name, args.recipe, {Path(args.pretrained_ckpt).name: result.metrics}))
        log(f"results.json and detections.json are in {folder}")
    return 0


class Stop:
    """Ctrl-C and SIGTERM ask for a stop after the step; a second one stops at once."""

    def __init__(self):
        self.asked = False

    def _ask(self, number, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log("finishing the step, then saving")

    def __enter__(self) -> Stop:
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def source_of(args: argparse.Namespace):
    """The dataset these options name; the demo is made on first use."""
    cache_dir = None if args.no_cache else Path(args.cache_dir)
    root = dataset_root(args.dataset_name, args.dataset_root)
    if args.dataset_name == "Demo" and not root.exists():
        log(f"making the Demo dataset in {root}: simulated features, for trying the program and not for results")
        make_demo(root, proposals_root=proposals_file("Demo", PROFILES["Demo"], "train", args.proposals_root).parent)
    return load_source(
        args.dataset_name,
        args.dataset_root,
        args.num_class,
        proposals_root=args.proposals_root,
        fix_proposals=args.fix_proposals,
        feature_size=args.feature_size,
        roi_size=args.roi_size,
        cache_dir=cache_dir,
        cache_dtype=args.cache_dtype,
    )


def pick_device(args: argparse.Namespace) -> torch.device:
    """--device as a device. TF32 is off unless asked for."""
    cuda = torch.cuda.is_available()
    if args.device == "cuda" and not cuda:
        raise InputError("--device cuda, but torch sees no CUDA device", None, "use --device cpu or check the driver")
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    return torch.device("cuda" if cuda and args.device != "cpu" else "cpu")


def adam(model: SEAL, args: argparse.Namespace) -> torch.optim.Adam:
    """Adam with L2 inside, as the paper; the fused form where this torch has it for the device."""
    settings = dict(lr=args.lr, weight_decay=args.weight_decay)
    try:
        return torch.optim.Adam(model.parameters(), fused=True, **settings)
    except RuntimeError:
        return torch.optim.Adam(model.parameters(), **settings)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line; returns the exit status."""
    args = parse(argv)
    return {"train": train, "test": test}[args.run_type](args)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
