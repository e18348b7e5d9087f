"""SEAL: train, test and predict (``python main.py --help``).

Files -> dataset -> cached SCFE inputs -> model -> scores -> detections -> metrics and pictures. Nothing flows back.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np
import torch
from torch import nn

from dataset import Inputs, epoch_order, load_split, packed_batch, source_of, split_truth
from descriptors import load_or_make
from eval.commands import predict, test
from eval.inference import evaluate
from losses import pseudo_labels, seal_terms, weights
from model import SEAL, save_model
from options import parse, recipe_of
from utils.board import Board
from utils.errors import InputError, run_command
from utils.experiment import Stop, experiment, plain, write_environment, write_options
from utils.files import content_hash, load_checkpoint, save_checkpoint, write_json, write_text
from utils.packed import Batch
from utils.parallel import Group, pick_device
from utils.report import aligned, columns, headline, log, percents, progress, row, spread, table
from utils.seeds import torch_stream

# options that cannot change a result: a run may be resumed with others
FREE = {"exp_dir", "resume", "cache_dir", "no_cache", "save_seconds", "pretrained_ckpt", "seeds"}
FREE |= {"dataset_root", "proposals_root", "descriptors_root"}  # what is in them is hashed
# what last_state.pt holds
STATE = {k: dict for k in ("model", "optimizer", "options", "inputs")}
STATE.update(epoch=int, step=int, records=list, term_names=list, history=list)
FIGURE_VIDEOS = 3


def train_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    batch: Batch,
    args: argparse.Namespace,
    epoch: int,
    step: int,
    group: Group,
) -> Dict[str, torch.Tensor]:
    """Forward, losses, backward, Adam on one packed batch (``dataset.packed_batch``).

    The dropout of a video is drawn from (seed, epoch, step, place of the video in the batch). Returns the terms and
    the norm of the gradient, on the device. Nothing in here waits for the device.
    """
    device = inputs.rows.device
    counts = inputs.row_counts if args.share_rows else inputs.counts
    places = range(len(batch.counts))[group.share(len(batch.counts))]
    if device.type == "cuda" and group.size == 1:  # one launch a step; nothing to keep equal over processes
        counts, places = [sum(counts)], [0]
    streams = [torch_stream(args.seed, "dropout", epoch, step, place, device=device) for place in places]
    draws = list(zip(streams, counts))
    with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
        outputs = net(inputs.rows, inputs.index, draws, share_rows=args.share_rows)
    outputs = group.gather(outputs, batch.counts)
    recipe, how = recipe_of(args), (args.k, args.losses, args.sme_labels)
    terms = seal_terms(outputs, batch, recipe, epoch, args.max_epoch, *how)
    optimizer.zero_grad(set_to_none=True)
    # each process has the gradient of its own rows, and DistributedDataParallel takes the mean over processes
    (terms["loss_total"] * group.size).backward()
    norms = torch._foreach_norm([p.grad for p in net.parameters() if p.grad is not None])
    optimizer.step()
    terms = {name: term.detach().float() for name, term in terms.items()}
    return {**terms, "gradient_norm": torch.linalg.vector_norm(torch.stack(norms))}


def adam(model: nn.Module, args: argparse.Namespace) -> torch.optim.Adam:
    """Adam with L2 inside, as the paper; the fused form where this torch has it for the device."""
    settings = dict(lr=args.lr, weight_decay=args.weight_decay)
    try:
        return torch.optim.Adam(model.parameters(), fused=True, **settings)
    except RuntimeError:
        return torch.optim.Adam(model.parameters(), **settings)


class Run:
    """One training run: what it reads, what it has learnt so far, and the folder it writes to."""

    def __init__(self, args: argparse.Namespace, folder: Path, group: Group):
        self.args, self.folder, self.group = args, folder, group
        source = source_of(args)
        self.classes, self.profile = source.annotations.classes, source.profile
        self.simulated = bool(source.features.simulated)
        self.train, self.test = (load_split(source, split, log) for split in ("train", "test"))
        if min(args.batch_size, len(self.train.scored)) < group.size:
            raise InputError(f"batches of fewer videos than the {group.size} processes", None, "start fewer processes")
        self.truth = split_truth(source, self.test)
        self.pseudo = self._pseudo_labels()
        for split in (self.train, self.test):
            split.rows.to(group.device)
        model = SEAL(self.train.rows.width // 3, len(self.classes), args.dropout_ratio, args.seed)
        self.model = model.to(group.device)
        if "pc" not in args.losses:  # nothing would ever train this branch
            model.prop_fused_backbone.prop_completeness.requires_grad_(False)
        self.net = group.wrap(self.model)
        self.optimizer = adam(self.model, args)
        self.epoch, self.step = 1, 0  # the next step to take
        self.records: List[torch.Tensor] = []  # terms of the steps of this epoch
        self.term_names: List[str] = []
        self.history: List[Dict] = []  # metrics of every evaluation
        self.options = {**plain(args), "device": group.device.type, "processes": group.size}
        self.inputs = {
            "train_labels": content_hash("\0".join(self.train.videos), self.train.labels),
            "pseudo_labels": content_hash(*self.pseudo),  # and so the descriptors
            "profile": repr(replace(self.profile, proposals_root=None, annotations=None, features=None)),
            "ground_truth": self.truth.hash(),
        }
        for name, split in (("train", self.train), ("test", self.test)):
            self.inputs.update({f"{name}_{kind}": value for kind, value in split.hashes.items()})

    def _pseudo_labels(self) -> Tuple[np.ndarray, np.ndarray]:
        """Eq. (5)-(7) for every training video: they depend on data alone."""
        args, rows = self.args, self.train.rows
        folder = Path(args.descriptors_root or Path("descriptors") / args.dataset_name)
        what = (rows.video_mean, rows.num_snippets, self.train.labels, self.classes)
        pair = load_or_make(folder, *what, args.descriptor_level)
        label, confidence = pseudo_labels(torch.from_numpy(rows.video_mean), *map(torch.from_numpy, pair))
        return label.numpy(), confidence.numpy()

    def take_step(self, videos: np.ndarray) -> None:
        """One step on these videos; its terms join the epoch's records."""
        args, group = self.args, self.group
        mine, device = group.share(len(videos)), group.device
        packed = packed_batch(self.train, videos, device, self.pseudo, args.max_proposal, args.seed, self.epoch, mine)
        terms = train_step(self.net, self.optimizer, *packed, args, self.epoch, self.step, group)
        self.term_names = list(terms)
        self.records.append(torch.stack(list(terms.values())))
        self.step += 1

    def batches(self) -> List[np.ndarray]:
        return epoch_order(self.train.scored, self.args.batch_size, self.args.seed, self.epoch)

    def mean_terms(self) -> Dict[str, float]:
        """Mean of each term over the epoch. Raises InputError naming epoch, videos and term if one is not finite."""
        terms = torch.stack(self.records).cpu()
        for step, values in enumerate(terms.tolist()):
            bad = {name: value for name, value in zip(self.term_names, values) if not np.isfinite(value)}
            if bad:
                term = min(bad, key=lambda name: name in ("loss_total", "gradient_norm"))  # a part, where it is one
                videos = ", ".join(self.train.videos[v] for v in self.batches()[step])
                what = f"{term} is {bad[term]} in epoch {self.epoch}, step {step + 1}"
                todo = "lower --lr; what is in ckpt/ is from before"
                raise InputError(what, f"videos {videos}", todo)
        return dict(zip(self.term_names, terms.double().mean(0).tolist()))

    # ---- state

    def check_weights(self) -> None:
        """Raise InputError unless every weight is finite: what is saved is good."""
        if not torch.stack([p.isfinite().all() for p in self.model.parameters()]).all():
            where = f"epoch {self.epoch}, step {self.step}"
            raise InputError("weights that are not finite", where, "lower --lr; what is in ckpt/ is from before")

    def save_state(self) -> None:
        self.check_weights()
        if self.group.first:
            state = {k: getattr(self, k) for k in ("epoch", "step", "term_names", "history", "options", "inputs")}
            state.update(model=self.model.state_dict(), optimizer=self.optimizer.state_dict())
            state["records"] = [r.cpu() for r in self.records]
            save_checkpoint(self.folder / "ckpt" / "last_state.pt", state)

    def resume(self) -> bool:
        """Go on from last_state.pt. Raises InputError if options or inputs that change the result differ."""
        path = self.folder / "ckpt" / "last_state.pt"
        if not path.exists():
            log(f"{path} is not there yet: starting from the first epoch")
            return False
        state = load_checkpoint(path)
        foreign = InputError("not the state of a run", path, "restore the file, or delete it to start this run again")
        if not all(isinstance(state.get(key), kind) for key, kind in STATE.items()):
            raise foreign
        for what, new in (("options", self.options), ("inputs", self.inputs)):
            old = state[what]
            differ = [k for k in sorted({*old, *new}) if k not in FREE and old.get(k) != new.get(k)]
            if differ:
                texts = ", ".join(f"{k} was {old.get(k)} and is {new.get(k)}" for k in differ)
                raise InputError(f"{what} differ: {texts}", path, "resume with the same, or name another --exp_dir")
        epoch, step = state["epoch"], state["step"]
        if not (1 <= epoch <= self.args.max_epoch + 1 and step == len(state["records"]) < len(self.batches())):
            raise foreign
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.records = [r.to(self.group.device) for r in state["records"]]
            self.epoch, self.step, self.term_names, self.history = epoch, step, state["term_names"], state["history"]
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # whatever torch makes of a foreign one
            raise foreign from None
        return True

    # ---- evaluation

    @property
    def best(self) -> Dict:
        return max(self.history, key=headline)

    def evaluate(self, board: Board) -> None:
        """Score, write what an evaluation leaves, and keep the model if it is the best so far."""
        self.check_weights()
        args = self.args
        how = (args.protocol, args.threshold_cls, "pc" in args.losses, self.group)
        result = evaluate(self.model, self.test, self.truth, self.profile, *how)
        metrics = {"epoch": self.epoch, **result.metrics, **({"simulated": True} if self.simulated else {})}
        self.history.append(metrics)
        if self.group.first:
            for kind in ("last", "best")[: 1 + (self.best is metrics)]:
                save_model(self.folder / "ckpt" / f"{kind}_model.pkl", self.model, self.info())
            write_json(self.folder / "detections.json", result.detections.to_json(args.dataset_name))
            head = columns(metrics["tiou"], list(metrics["average"]))
            lines = aligned([head] + [row(m) for m in self.history])
            write_text(self.folder / "mAP-results.log", "\n".join(lines) + "\n")
            log("\n".join(lines[0 if len(lines) == 2 else -1 :]))
            write_json(self.folder / "results.json", {"last": metrics, "best": self.best})
            numbers = {name: n for name, n in zip(head[1:], percents(metrics)) if n is not None}
            board.scalars("test_mAP", numbers, self.epoch)
            for video, picture in result.pictures(self.test, self.truth, FIGURE_VIDEOS):
                board.image(f"timeline/{video}", picture, self.epoch)

    def info(self) -> Dict[str, object]:
        """What a checkpoint carries beside its weights: all that prediction needs."""
        args, profile = self.args, self.profile
        found = {name: getattr(args, name) for name in ("roi_size", "recipe", "dataset_name")}
        found.update(
            feature_size=self.model.feature_size,
            feature_fps=profile.feature_fps,
            snippet_stride=profile.snippet_stride,
            epoch=self.epoch,
        )
        return {**found, "classes": list(self.classes), "losses": list(args.losses)}

    def say(self, bar, loss: float) -> None:
        """The numbers that matter, on the bar."""
        text = f"epoch {self.epoch}/{self.args.max_epoch}, loss {loss:.3f}"
        if self.history:
            text += f", mAP last {100 * headline(self.history[-1]):.1f}, best {100 * headline(self.best):.1f}"
        bar.set_description(text)


def train_one(args: argparse.Namespace, folder: Path, group: Group, stop: Stop) -> Run:
    """Train one seed to the end or until asked to stop, evaluate every ``interval`` epochs, leave a run's files."""
    run = Run(args, folder, group)
    resumed = args.resume and run.resume()
    board = None
    if group.first:
        write_options(folder, run.options)
        write_environment(folder, group.device, args.seed, run.inputs)
        board = Board(folder / "logs", run.epoch - 1 if resumed else -1)
        if not resumed:
            board.options(run.options)
            run.save_state()  # what a run that fails early leaves
    log(f"run in {folder} on {group.device}: {len(run.train.scored)} training, {len(run.test.videos)} test videos")
    saved, steps = time.monotonic(), len(run.batches())
    with progress(args.max_epoch * steps, (run.epoch - 1) * steps + run.step) as bar:
        while run.epoch <= args.max_epoch:
            run.model.train()
            for videos in run.batches()[run.step :]:
                run.take_step(videos)
                bar.update()
                if group.device.type == "cpu" or group.size == 1:  # cards would have to wait for this at every step
                    if group.agree(stop.asked):
                        run.mean_terms()
                        break
            if run.step == steps:
                terms = run.mean_terms()
                if board:
                    board.scalars("loss", terms, run.epoch)
                    board.scalars("weight", weights(recipe_of(args), run.epoch, args.max_epoch), run.epoch)
                    board.scalars("optimizer", {"learning_rate": run.optimizer.param_groups[0]["lr"]}, run.epoch)
                if run.epoch % args.interval == 0 or run.epoch == args.max_epoch:
                    run.evaluate(board)
                run.say(bar, terms["loss_total"])
                run.epoch, run.step, run.records = run.epoch + 1, 0, []
            asked = group.agree(stop.asked) and run.epoch <= args.max_epoch
            if asked or run.epoch > args.max_epoch or time.monotonic() - saved > args.save_seconds:
                if board:
                    board.flush()
                run.save_state()
                saved = time.monotonic()
            if asked:
                break
    if board:
        board.close()
    return run


def train(args: argparse.Namespace, group: Group) -> int:
    """Train, over several seeds if asked, and print the table. Returns the exit status."""
    name, seeds = f"{args.dataset_name}-train", args.seeds or [args.seed]
    with ExitStack() as stack:
        folder = stack.enter_context(experiment(args.exp_dir, name, args.resume, group))
        stop = stack.enter_context(Stop())
        left = {int(p.name[4:]) for p in folder.glob("seed*") if p.name[4:].isdigit()} - set(seeds)
        if args.seeds and left:
            raise InputError(f"seeds {sorted(left)} are in this run", folder, "name them too: seeds may only join")
        options, runs = plain(args), []
        if args.seeds and group.first and not (folder / "options.json").exists():
            write_options(folder, options)
        for seed in seeds:
            args.seed, where = seed, folder
            if args.seeds:
                where = stack.enter_context(experiment(str(folder / f"seed{seed}"), "", args.resume, group))
            run = train_one(args, where, group, stop)
            if run.epoch <= args.max_epoch:
                log(f"stopped in epoch {run.epoch}; go on with the same command and --resume --exp_dir {folder}")
                return 130
            runs.append((run.history[-1], run.best))
        if args.seeds:
            kinds = dict(zip(("last", "best"), map(list, zip(*runs))))
            found = {kind: spread(metrics) for kind, metrics in kinds.items()}
            results = {
                f"{kind}, {what} of {len(runs)} seeds": found[kind][what] for kind in found for what in found[kind]
            }
            if group.first:
                write_options(folder, options)  # seeds may have joined
                write_json(folder / "results.json", {"seeds": seeds, **found})
        else:
            last, best = runs[0]
            results = {f"last (epoch {last['epoch']})": last, f"best (epoch {best['epoch']})": best}
        if group.first:
            print(table(args.dataset_name, args.recipe, results))
        log(f"everything is in {folder}; look with: tensorboard --logdir {folder}")
    return 0


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line; returns the exit status."""
    args = parse(argv)
    with Group(pick_device(args.device, args.tf32)) as group:
        return {"train": train, "test": test, "predict": predict}[args.run_type](args, group)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
