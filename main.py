"""SEAL: train, test and predict (``python main.py --help``).

Files -> dataset -> cached SCFE inputs -> model -> scores -> detections -> metrics and pictures. Nothing flows back.
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack
from copy import deepcopy
from itertools import takewhile
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import nn

from dataset import Inputs, epoch_order, load_dataset, packed_batch
from eval.detection import default_protocol
from eval.inference import Evaluation, confidences, evaluate, info_of, inputs_of, left_out, pictures, test
from eval.predict import predict
from losses import TERMS, padding_rows, schedule, seal_terms, untrained
from model import SEAL, load_model, save_model
from options import Options, parse
from utils.errors import InputError, run_command
from utils.files import load_json, save_checkpoint, write_json
from utils.packed import Batch
from utils.run.experiment import Board, Stop, experiment, load_state, pick_device, plain, record, unchanged
from utils.run.processes import Group, processes
from utils.run.report import best, describe, evaluation_lines, log, progress, spread, table, tags, write_evaluations
from utils.seeds import torch_seed
from utils.segments import Segments

# ---- 1. one step


def train_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, inputs: Inputs, batch: Batch, args: Options, *, epoch: int,
    step: int, rank: int = 0,
) -> Dict[str, torch.Tensor]:  # fmt: skip
    """Forward, losses, backward, Adam on one packed batch (``dataset.packed_batch``).

    Dropout is drawn from (seed, epoch, step, rank). Returns the terms and the norm of the gradient, on the device;
    nothing in here waits for it.
    """
    recipe, device = args.numbers, inputs.rows.device
    torch.manual_seed(torch_seed(args.seed, "dropout", epoch, step, rank))
    with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
        outputs = net(inputs.rows, inputs.index, padding=batch.packing.draws, share_rows=args.share_rows)
    terms = seal_terms(outputs, batch, recipe, epoch, args.max_epoch, args.losses)
    optimizer.zero_grad(set_to_none=True)
    terms["loss_total"].backward()
    norms = torch._foreach_norm([p.grad for p in net.parameters() if p.grad is not None])
    optimizer.step()
    terms = {name: term.detach().float() for name, term in terms.items()}
    return {**terms, "gradient_norm": torch.linalg.vector_norm(torch.stack(norms))}


def adam(model: nn.Module, args: Options) -> torch.optim.Adam:
    """Adam with L2 inside, as the paper; the fused form where this torch has it for the device."""
    try:
        return torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    except RuntimeError:
        return torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)


# ---- 2. one run


class Run:
    """One training run: what it reads, what it has learnt so far, and the folder it writes to."""

    def __init__(self, args: Options, folder: Path, group: Group):
        self.args, self.folder, self.group = args, folder, group
        self.data = load_dataset(args)
        train, test = self.data.train, self.data.test
        if min(args.batch_size, len(train.scored)) < group.size:
            raise InputError(f"batches of fewer videos than the {group.size} processes", None, "start fewer processes")
        self.pseudo = confidences(self.data, args)
        for split in (train, test) if test else (train,):
            split.rows.to(group.device)
        size = (train.rows.width // 3, len(self.data.classes))
        self.model = SEAL(*size, args.dropout_ratio, args.seed).to(group.device)
        self.model.freeze(untrained(args.losses, args.numbers))
        self.net, self.optimizer = group.wrap(self.model), adam(self.model, args)
        self.epoch, self.step = 1, 0  # the next step to take
        self.records: List[torch.Tensor] = []  # terms of the steps of this epoch
        self.term_names: List[str] = []
        self.history: List[Dict] = []  # metrics of every evaluation
        self.held: Dict[str, Tuple[SEAL, Dict]] = {}  # last and best model with their info, not written yet
        self.detections: Optional[Segments] = None  # of the last model, not written yet
        protocol = args.protocol or default_protocol(self.data.profile)
        self.options = {**plain(args), "protocol": protocol, "device": group.device.type, "processes": group.size}
        self.inputs = inputs_of(self.data, self.pseudo)

    def batches(self) -> List[np.ndarray]:
        return epoch_order(self.data.train.scored, self.args.batch_size, self.args.seed, self.epoch)

    def take_step(self, videos: np.ndarray) -> None:
        """One step on these videos; its terms join the epoch's records."""
        args, group = self.args, self.group
        mine = videos[group.rank :: group.size]
        draws = padding_rows(args.losses, args.numbers, args.dropout_ratio)
        drawn = (args.max_proposal, args.seed, self.epoch, draws)
        made = packed_batch(self.data.train, mine, group.device, self.pseudo, *drawn)
        terms = train_step(self.net, self.optimizer, *made, args, epoch=self.epoch, step=self.step, rank=group.rank)
        self.term_names = list(terms)
        self.records.append(torch.stack(list(terms.values())))
        self.step += 1

    def mean_terms(self) -> Dict[str, float]:
        """Mean of each term over the epoch. Raises InputError naming epoch, videos and term if one is not finite."""
        terms = self.group.mean(torch.stack(self.records)).cpu()
        for step, values in enumerate(terms.tolist()):
            bad = {name: value for name, value in zip(self.term_names, values) if not np.isfinite(value)}
            if bad:
                term = min(bad, key=lambda name: name in ("loss_total", "gradient_norm"))  # a part, where it is one
                videos = ", ".join(self.data.train.videos[v] for v in self.batches()[step])
                what = f"{term} is {bad[term]} in epoch {self.epoch}, step {step + 1}"
                raise InputError(what, f"videos {videos}", "lower --lr; what is in ckpt/ is from before")
        return dict(zip(self.term_names, terms.double().mean(0).tolist()))

    def check_weights(self) -> None:
        """Raise InputError unless every weight is finite: what is saved is good."""
        if not torch.stack([p.isfinite().all() for p in self.model.parameters()]).all():
            where = f"epoch {self.epoch}, step {self.step}"
            raise InputError("weights that are not finite", where, "lower --lr; what is in ckpt/ is from before")

    def save_state(self) -> None:
        self.check_weights()
        if self.group.rank == 0:
            self.leave()
            state = {k: getattr(self, k) for k in ("epoch", "step", "term_names", "history", "options", "inputs")}
            state.update(model=self.model.state_dict(), optimizer=self.optimizer.state_dict())
            state["records"] = [r.cpu() for r in self.records]
            save_checkpoint(self.folder / "ckpt" / "last_state.pt", state)

    def resume(self) -> bool:
        """Continue from last_state.pt. Raises InputError if options or inputs that change the result differ."""
        path = self.folder / "ckpt" / "last_state.pt"
        state = load_state(path, self.options, self.inputs)
        if state is None:
            return False
        try:
            epoch, step, records = state["epoch"], state["step"], state["records"]
            if not (1 <= epoch <= self.args.max_epoch + 1 and step == len(records) < len(self.batches())):
                raise ValueError
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.records = [r.to(self.group.device) for r in records]
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # whatever torch makes of a foreign one
            raise InputError("not the state of this run", path, "restore the file, or delete it to restart") from None
        self.epoch, self.step, self.term_names, self.history = epoch, step, state["term_names"], state["history"]
        return True

    def evaluate(self, board: Board) -> None:
        """Score, and hold what an evaluation leaves until it is written (``leave``): large files cost more than the
        evaluation, and all that is in the folder is of one moment."""
        self.check_weights()
        model, info = deepcopy(self.model), info_of(self.data, self.options, self.epoch)
        found = self.detect(model) if self.data.test else None  # an error here leaves the files as they are
        self.held["last"], final = (model, info), self.epoch == self.args.max_epoch
        if not found:
            return
        self.detections = found.detections
        self.history.append({"epoch": self.epoch, **found.metrics})
        if best(self.history) is self.history[-1]:
            self.held["best"] = (model, info)
        log("\n".join(evaluation_lines(self.history)[0 if len(self.history) == 1 else -1 :]))
        board.scalars(tags(self.history[-1]), self.epoch)
        shown = {"timeline": found} if final or self.args.pictures == "all" else {}
        if final and best(self.history) is not self.history[-1]:
            path = self.folder / "ckpt" / "best_model.pkl"
            if "best" in self.held or path.exists():
                model, _ = self.held["best"] if "best" in self.held else load_model(path)
                shown["timeline_best"] = self.detect(model)
        for name, found in shown.items():
            for video, picture in pictures(self.data, found.detections):
                board.image(f"{name}/{video}", picture, self.epoch)

    def detect(self, model: SEAL) -> Evaluation:
        """What a model finds in the test videos, and how good it is."""
        args = (self.args.protocol, self.args.threshold_cls, left_out(self.args))
        return evaluate(model.to(self.group.device), self.data, *args)

    def leave(self) -> None:
        """Write what the evaluations since the last time leave."""
        for kind, (model, info) in self.held.items():
            save_model(self.folder / "ckpt" / f"{kind}_model.pkl", model, info)
        if self.detections is not None:
            write_json(self.folder / "detections.json", self.detections.to_json(self.data.version))
            write_evaluations(self.folder, self.history)
        self.held, self.detections = {}, None


# ---- 3. train


def train_one(args: Options, folder: Path, group: Group, stop: Stop, quiet: bool = False) -> Run:
    """Train one seed to the end or until asked to stop, evaluate every ``interval`` epochs, leave a run's files."""
    run = Run(args, folder, group)
    resumed = args.resume and run.resume()
    board = None
    if group.rank == 0:
        record(folder, run.options, group.device, run.inputs)
        board = Board(folder / "logs", run.epoch if resumed else None)
        if not resumed:
            board.text("options", run.options)
            run.save_state()  # what a run that fails early leaves
    tested = len(run.data.test.videos) if run.data.test else "no"
    log(f"run in {folder} on {group.device}: {len(run.data.train.scored)} training, {tested} test videos")
    saved, steps = time.monotonic(), len(run.batches())
    with progress(args.max_epoch * steps, (run.epoch - 1) * steps + run.step, quiet) as bar, ExitStack() as at_the_end:
        at_the_end.callback(run.leave)  # also where an error ends it
        while run.epoch <= args.max_epoch:
            run.model.train()
            for videos in run.batches()[run.step :]:
                run.take_step(videos)
                bar.update()
                if stop.asked and group.size == 1:
                    run.mean_terms()
                    break
            if run.step == steps:
                terms = run.mean_terms()
                if board:
                    board.scalars(terms, run.epoch, "loss")
                    board.scalars(schedule(args.losses, args.numbers, run.epoch, args.max_epoch), run.epoch, "weight")
                    board.scalars({"learning_rate": run.optimizer.param_groups[0]["lr"]}, run.epoch, "optimizer")
                    if run.epoch % args.interval == 0 or run.epoch == args.max_epoch:
                        run.evaluate(board)
                bar.set_description(describe(run.epoch, args.max_epoch, terms["loss_total"], run.history))
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


def train_seed(args: Options, group: Group, threads: Optional[int] = None) -> Optional[Tuple[Dict, Dict]]:
    """Train one seed in its folder: (last, best) metrics, empty without test videos; None if it was asked to stop.
    threads: of this process, where several seeds run side by side."""
    if threads:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # but for Stop's own: a process that has no seed left is silent
    with ExitStack() as stack:
        folder = Path(args.exp_dir or "output")
        if group.rank == 0:
            folder = stack.enter_context(experiment(args.exp_dir, "train", f"{args.dataset_name}-train", args.resume))
        run = train_one(args, folder, group, stack.enter_context(Stop()), quiet=bool(threads))
    if run.epoch <= args.max_epoch:
        again = f"--resume --exp_dir {folder.parent if args.seeds else folder}"
        log(f"stopped in epoch {run.epoch}; continue with the same command and {again}")
        return None
    log(f"everything is in {folder}; look with: python -m eval.report {folder}, or tensorboard --logdir {folder}/logs")
    return (run.history[-1], best(run.history)) if run.history else ({}, {})


def train(args: Options, group: Group) -> int:
    """Train one seed and print the table. Returns the exit status."""
    found = train_seed(args, group)
    if found and found[0] and group.rank == 0:
        named = {f"{kind} (epoch {run['epoch']})": run for kind, run in zip(("last", "best"), found)}
        print(table(args.dataset_name, args.recipe, named))
    return 130 if found is None else 0


def train_seeds(args: Options, group: Group) -> int:
    """Train several seeds, ``--jobs`` of them side by side; ends with their mean and standard deviation."""
    if group.size > 1:
        raise InputError("--seeds under several processes", None, "start one run a seed")
    with experiment(args.exp_dir, "train", f"{args.dataset_name}-train", args.resume) as folder:
        gone = {int(p.name[4:]) for p in folder.glob("seed*") if p.name[4:].isdigit()} - set(args.seeds)
        if gone:
            raise InputError(f"seeds {sorted(gone)} are in this run", folder, "seeds can be added, not removed")
        options = {**plain(args), "device": group.device.type}
        if (written := folder / "options.json").exists():
            unchanged(written, "options", load_json(written), options)
        record(folder, options, group.device, {})
        runs = [args.replace(seed=s, exp_dir=str(folder / f"seed{s}")) for s in args.seeds]
        threads = max(1, torch.get_num_threads() // args.jobs) if args.jobs > 1 else None
        found: List[Optional[Tuple[Dict, Dict]]] = []
        with Stop() as stop:  # the terminal's Ctrl-C reaches every process: each finishes its step, none starts after
            left = takewhile(lambda _: not stop.asked and None not in found, runs)
            each = (delayed(train_seed)(run, group, threads) for run in left)
            for metrics in Parallel(args.jobs, pre_dispatch="n_jobs", return_as="generator")(each):
                found.append(metrics)
        if None in found or len(found) < len(runs):
            return 130
        if all(last for last, _ in found):
            results = {kind: spread(list(metrics)) for kind, metrics in zip(("last", "best"), zip(*found))}
            write_json(folder / "results.json", {"seeds": args.seeds, **results})
            named = {f"{kind}, {what} of {len(runs)} seeds": x[what] for kind, x in results.items() for what in x}
            print(table(args.dataset_name, args.recipe, named))
    return 0


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line; returns the exit status."""
    args = parse(argv, tuple(TERMS))
    with processes(pick_device(args.device, args.tf32)) as group:
        if args.run_type != "train":  # of several processes, the first one alone
            return 0 if group.rank else {"test": test, "predict": predict}[args.run_type](args, group.device)
        return train_seeds(args, group) if args.seeds else train(args, group)


if __name__ == "__main__":
    import main as program  # under its own name, by which the processes of --jobs find it

    run_command(lambda: program.main(sys.argv[1:]))
