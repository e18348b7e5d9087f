"""Train a proposal maker and write its proposals: what ``python proposals.py make`` and ``generate`` do.

Training sees the features and labels (LAC: and points) of the training videos. Of the test videos it reads the
features, and their length in seconds to place snippets in time; which weights are used never depends on them.
"""

from __future__ import annotations

import time
from argparse import Namespace
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import nn

from dataset import Source, open_source, ready_demo, timing, weak_labels
from generators import co2net, lac
from generators.points import labels_of_points, read_points, simulate_points
from generators.shared import Trainer, not_finite
from utils.datasets.features import Features, feature_names, folder_features
from utils.datasets.profile import Profile, dataset_root, proposals_file, settings_of
from utils.errors import InputError
from utils.files import content_hash, load_checkpoint, save_checkpoint, write_json
from utils.run.experiment import Board, Stop, experiment, load_state, pick_device, record
from utils.run.report import log, progress

METHODS = ("co2net", "lac")
SETTINGS = {  # of each method, by the profile's maker_settings; LAC published one set alone
    "co2net": {
        "thumos14": co2net.Settings(),
        "activitynet": co2net.Settings(22000, 3e-5, 5e-4, rows=60, top_part=5, pooling=13),
        "demo": co2net.DEMO,
    },
    "lac": {"thumos14": lac.Settings(), "activitynet": lac.Settings(), "demo": lac.DEMO},
}
STATE = {"options": dict, "inputs": dict, "iteration": int, "network": dict, "optimizer": dict}
SAVE_SECONDS = 60.0  # between two saves of the state
NARROW = 256  # up to this width a step is faster with one thread: 35 ms on the demo, where two take 220 ms of each


class Maker(NamedTuple):
    """A trained proposal maker, and what its files say of it."""

    method: str
    network: nn.Module
    width: int  # 2D
    classes: Tuple[str, ...]
    info: Dict[str, Any]

    def propose(
        self, features: np.ndarray, classes: Optional[Sequence[int]] = None, background_runs: bool = False
    ) -> np.ndarray:
        """Raw proposals of one video, float64 [n, 4] = start, end in snippets, class, score; see the method's own.

        features [T, 2D]; classes: those of the video where they are known. InputError where a score is not finite.
        """
        if self.method == "co2net":
            found = co2net.co2net_proposals(*co2net.co2net_scores(self.network, features), classes, background_runs)
        else:
            found = lac.lac_proposals(*lac.lac_scores(self.network, features), classes)
        if not np.isfinite(found).all():
            raise InputError("scores of proposals that are not finite", None, "weights or features are too large")
        return found

    @property
    def simulated(self) -> str:
        """ " SIMULATED (what is)", or nothing."""
        return f" SIMULATED ({', '.join(self.info['simulated'])})" if self.info["simulated"] else ""


def _network(method: str, width: int, num_class: int, settings: Any) -> nn.Module:
    if method == "co2net":
        return co2net.CO2Net(width // 2, num_class, settings.dropout, settings.pooling)
    return lac.LAC(width, num_class, None, settings.dropout)


# ---- training


class Training:
    """What a run of ``make`` reads: features and labels of the training videos, and when all videos happen."""

    def __init__(self, args: Namespace, source: Source):
        profile, annotations = source.profile, source.annotations
        self.args, self.source, self.classes = args, source, annotations.classes
        if profile.modalities == 1 and args.method == "co2net":
            raise InputError("features of one stream", source.root, "CO2-Net compares RGB and flow: use --method lac")
        self.videos, self.labels = weak_labels(source, "train")
        splits = {"train": self.videos}
        if len(annotations.of(profile.test_subset)):
            splits["test"] = weak_labels(source, "test")[0]
        features, self.timing, lengths = source.features, {}, {}
        for split, videos in splits.items():
            lengths[split] = np.asarray([features.length(v) for v in videos], np.int64)
            self.timing[split] = (videos, *timing(source, split, videos, lengths[split], args.ignore_rate))
        self.lengths, rate = lengths["train"], self.timing["train"][1]
        self.simulated = ["features"] * (features.simulated is not None)
        self.points, self.origin = None, None
        if args.points:
            self.points = read_points(Path(args.points), self.videos, self.lengths, rate, self.classes)
            self.origin = Path(args.points).name
        elif args.simulate_points:
            known = (source.instances, self.videos, self.lengths, rate)
            self.points = simulate_points(*known, args.simulate_points, args.seed)
            self.origin = f"SIMULATED, {args.simulate_points}"
            self.simulated.append("points, drawn from the training times")
        if self.points is not None:
            self.labels = labels_of_points(self.points, self.labels, self.videos, self.classes)
        self.settings = SETTINGS[args.method][profile.maker_settings]
        if args.iterations:
            self.settings = replace(self.settings, iterations=args.iterations)
        # every training video is read here: what is wrong with one is said now, not after hours
        self.inputs = {
            "features": content_hash(*(content_hash(features.load(v)) for v in self.videos)),
            "labels": content_hash("\0".join(self.videos), "\0".join(self.classes), self.labels),
            "points": None if self.points is None else content_hash(*self.points),
        }

    def trainer(self, device: torch.device) -> Trainer:
        """A trainer of the method that has done no step."""

        def load(video: int) -> np.ndarray:
            return self.source.features.load(self.videos[video])

        width, how = self.source.features.layout[0], (self.args.seed, device, self.settings)
        if self.args.method == "co2net":
            return co2net.CO2NetTrainer(load, self.labels, width, *how, self.classes)
        return lac.LACTrainer(load, self.lengths, self.labels, self.points, width, *how)

    def info(self) -> Dict[str, Any]:
        """What a checkpoint and a proposals file say of the maker."""
        rate = {name: getattr(self.source.profile, name) for name in ("feature_fps", "snippet_stride")}
        if self.source.profile.rescaled or isinstance(rate["feature_fps"], dict):
            rate["feature_fps"] = None  # each video has its own
        made = {"method": self.args.method, "dataset": self.source.name, "seed": self.args.seed, **rate}
        made.update(settings=asdict(self.settings), points=self.origin, simulated=self.simulated)
        return {**made, "trained_on": self.inputs}


def make(args: Namespace) -> bool:
    """Train, and write the checkpoint and both proposals files. False if it was asked to stop before the end."""
    if args.dataset_name == "Demo" and not dataset_root("Demo", args.dataset_root).exists():
        ready_demo(args.dataset_root)
    source = open_source(args.dataset_name, args.dataset_root)
    paths = {s: proposals_file(source.name, source.profile, s, args.proposals_root) for s in ("train", "test")}
    there = [path for path in paths.values() if path.exists()]
    if there and not args.replace:
        raise InputError("proposals are here already", there[0], "name another --proposals_root, or add --replace")
    with experiment(args.exp_dir, "make", f"{source.name}-{args.method}", args.resume) as folder, Stop() as stop:
        device = pick_device(args.device)
        if source.features.layout[0] <= NARROW and device.type == "cpu":
            torch.set_num_threads(1)
        data = Training(args, source)
        trainer = data.trainer(device)
        options = {"run_type": "make", "method": args.method, "seed": args.seed, "device": device.type}
        options.update(asdict(data.settings), dataset_name=source.name)
        state = {"options": options, "inputs": data.inputs}
        resumed = args.resume and _resume(trainer, folder / "ckpt" / "last_state.pt", state)
        record(folder, {**vars(args), **options}, device, data.inputs)
        with closing(Board(folder / "logs", trainer.iteration + 1 if resumed else None)) as board:
            _train(trainer, folder / "ckpt" / "last_state.pt", state, board, stop)
        if trainer.iteration < trainer.iterations:
            log(f"stopped at iteration {trainer.iteration}; continue with --resume --exp_dir {folder}")
            return False
        info = {**data.info(), "classes": list(data.classes)}
        maker = Maker(args.method, trainer.network, source.features.layout[0], data.classes, info)
        path = folder / "ckpt" / "last_model.pkl"
        save_checkpoint(path, {"maker": info, "network": trainer.network.state_dict()})
        for split, (videos, rate, length_s) in data.timing.items():
            labels = data.labels if split == "train" else None
            how = (labels, args.background_runs and split == "train")
            write_proposals(paths[split], maker, source.features, videos, rate, length_s, *how)
        log(f"checkpoint {path}; proposals in {paths['train'].parent}{maker.simulated}")
    return True


def _resume(trainer: Trainer, path: Path, state: Dict[str, Dict]) -> bool:
    found = load_state(path, state["options"], state["inputs"], STATE)
    if found is None:
        return False
    try:
        if not 0 <= found["iteration"] <= trainer.iterations:
            raise ValueError
        trainer.load_state_dict(found)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # whatever torch makes of a foreign one
        raise InputError("not the state of this run", path, "restore the file, or delete it to restart") from None
    return True


def _train(trainer: Trainer, path: Path, state: Dict[str, Dict], board: Board, stop: Stop) -> None:
    """Iterate to the end or until asked to stop; the state is in ``path`` then."""
    total, first, began = trainer.iterations, trainer.iteration, time.monotonic()
    saved = began
    with progress(total, first) as bar:
        while trainer.iteration < total:
            terms = trainer.step()
            done = trainer.iteration
            board.scalars(terms, done, "loss")
            text = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
            bar.set_description(f"iteration {done}/{total}, {text}", refresh=False)
            bar.update()
            now, asked = time.monotonic(), stop.asked
            if done % max(1, total // 10) == 0:
                left = (now - began) / (done - first) * (total - done)
                log(f"iteration {done}/{total}: {text}; {left:.0f} s left")
            if asked or done == total or now - saved > SAVE_SECONDS:
                board.flush()
                if not all(bool(p.isfinite().all()) for p in trainer.network.parameters()):
                    raise not_finite("a weight", done)
                save_checkpoint(path, {**trainer.state_dict(), **state})
                saved = now
            if asked:
                break


# ---- proposals


def write_proposals(
    path: Path,
    maker: Maker,
    features: Features,
    videos: Sequence[str],
    rate: np.ndarray,
    length_s: np.ndarray,
    labels: Optional[np.ndarray] = None,
    background_runs: bool = False,
) -> int:
    """Write the proposals of V videos in seconds and say of what they were made; returns how many there are.

    rate [V]: snippets per second. length_s [V]: proposals end there at the latest. labels [V, C]: the true classes,
    where they may be used (a video without one gets the predicted ones).
    """
    results: Dict[str, List[Dict]] = {}
    hashes = []
    with progress(len(videos), 0) as bar:
        bar.set_description(f"proposals to {path.name}")
        for v, video in enumerate(videos):
            x = features.load(video)
            hashes.append(content_hash(x))
            known = None if labels is None or not labels[v].any() else np.flatnonzero(labels[v])
            found = maker.propose(x, known, background_runs)
            segment_s = np.minimum(found[:, :2] / rate[v], length_s[v]).round(6)
            results[video] = [
                {"segment": segment, "label": maker.classes[int(label)], "score": score}
                for segment, (label, score) in zip(segment_s.tolist(), found[:, 2:].tolist())
                if segment[0] < segment[1]
            ]
            bar.update()
    about = {k: v for k, v in maker.info.items() if k != "classes"}
    about.update(features=content_hash(*hashes), background_runs=background_runs, true_labels=labels is not None)
    version = f"{maker.method} trained on {maker.info['dataset']}{maker.simulated}"
    write_json(path, {"version": version, "maker": about, "results": results})
    return sum(map(len, results.values()))


def load_maker(path: Path, device: torch.device) -> Maker:
    """A maker from the checkpoint of ``make``. InputError for any other file."""
    todo = "give ckpt/last_model.pkl of a run of: python proposals.py make"
    state = load_checkpoint(path, todo=todo)
    try:
        info, weights = state["maker"], state["network"]
        method, classes = info["method"], tuple(map(str, info["classes"]))
        settings = type(SETTINGS[method]["demo"])(**info["settings"])
        first = weights["fusion.0.weight" if method == "co2net" else "cls_module.conv_1.0.weight"]
        width, fps, stride = first.shape[1], info["feature_fps"], info["snippet_stride"]
        numbers = all(x is None or 1e-3 <= float(x) < 1e6 for x in (fps, stride)) and 0 <= settings.dropout < 1
        texts = all(isinstance(x, str) for x in (*info["simulated"], info["dataset"]))
        if not (numbers and texts and info["trained_on"] and len({*classes}) == len(classes) > 0):
            raise ValueError
        network = _network(method, width, len(classes), settings)
        network.load_state_dict(weights)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        raise InputError("not a checkpoint of a proposal maker", path, todo) from None
    if not all(bool(p.isfinite().all()) for p in network.parameters()):
        raise InputError("NaN or Inf in the weights", path, "use another checkpoint")
    return Maker(method, network.to(device), width, classes, info)


def generate(args: Namespace) -> None:
    """Write the proposals of videos that have features and nothing else."""
    maker = load_maker(Path(args.checkpoint), pick_device(args.device))
    folders = [Path(folder) for folder in args.features]
    said = {**maker.info, **settings_of(folders)}
    fps, stride = args.feature_fps or said["feature_fps"], args.snippet_stride or said["snippet_stride"]
    if fps is None:
        raise InputError("each video of its dataset has its own rate", args.checkpoint, "state --feature_fps")
    features = folder_features(folders, maker.width, feature_names(folders[0]))
    videos, profile = features.videos, Profile(feature_fps=fps, snippet_stride=stride)
    lengths = np.asarray([features.length(v) for v in videos])
    rate = profile.rates(videos, lengths, np.full(len(videos), np.nan))
    log(f"rate: {fps:g} frames a second, {stride:g} frames a snippet")
    number = write_proposals(Path(args.output), maker, features, videos, rate, np.full(len(videos), np.inf))
    for line in features.notes:
        log(line)
    print(f"{number:,} proposals of {len(videos)} videos: {args.output}{maker.simulated}")
