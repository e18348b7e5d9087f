"""From a model and a split to detections, metrics and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Collection, Dict, FrozenSet, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch

from dataset import Dataset, Split, load_dataset, packed_batch
from descriptors import load_or_make
from eval.classification import accuracy, mean_average_precision, top1_accuracy
from eval.detection import default_protocol, evaluate_detections, in_protocol
from eval.postprocess import Candidates, candidates, detect, predicted_classes
from losses import TERMS, pseudo_labels, untrained
from model import SEAL, check_classes, load_model
from options import NUMBERS, RECIPES, Options, restore
from utils.errors import InputError
from utils.files import content_hash, file_hash, write_json
from utils.run.experiment import experiment, plain, record
from utils.run.plots import figure_to_array, timeline
from utils.run.report import log, table
from utils.segments import Segments

# options that a checkpoint carries, for whoever asks what trained it
TRAINED_WITH = ("recipe", "losses", "descriptor_level", "roi_size", "max_epoch", "batch_size", "lr", "weight_decay",
                "dropout_ratio", "max_proposal", "share_rows", "amp", "tf32", "cache_dtype", "seed",
                *(n.name for n in NUMBERS))  # fmt: skip
# rows the network takes at once: 200 MB of inputs at 2D = 2048; on a card, whose memory holds them, all of THUMOS14's
ROWS_AT_ONCE = {"cpu": 8192, "cuda": 32768}


class Evaluation(NamedTuple):
    """Metrics of a test split and the detections behind them."""

    metrics: Dict
    detections: Segments


def left_out(args: Options) -> FrozenSet[str]:
    """Outputs that the score of a proposal leaves out: untrained ones, or as ``--score_s_pc`` says."""
    asked = {"always": frozenset(), "never": frozenset({"s_pc"})}
    return asked.get(args.score_s_pc, untrained(args.losses, args.numbers))


def confidences(data: Dataset, args: Options) -> Tuple[np.ndarray, np.ndarray]:
    """Pseudo-label and its confidence of every training video, int64 [V] each, Eq. (5)-(7), by the descriptors that the
    options name; these are made where they are missing. Raises InputError."""
    root, train = Path(args.descriptors_root or Path("descriptors") / args.dataset_name), data.train
    known = (train.rows.video_mean, train.num_snippets, train.labels, data.classes, args.descriptor_level)
    found = load_or_make(root, *known, data.profile.modalities or 2)
    label, confidence = pseudo_labels(*map(torch.from_numpy, (train.rows.video_mean, *found)))
    return label.numpy(), confidence.numpy()


def inputs_of(data: Dataset, pseudo: Tuple[np.ndarray, np.ndarray]) -> Dict[str, str]:
    """Hashes of all that a training reads, its pseudo-labels and so the descriptors too, by name."""
    return {**data.hashes, "pseudo_labels": content_hash(*pseudo)}


@torch.no_grad()
def score(model: SEAL, split: Split) -> Iterator[Tuple[int, Dict[str, np.ndarray]]]:
    """Yield (video index, outputs by name: s_base [M, C+1] logits, attention [M], s_pc [M]) of each video with
    proposals. The network runs once a row, on the rows of many videos at a time, without dropout, and in bfloat16 where
    the rows are kept in it."""
    model.eval()
    device, rows = next(model.parameters()).device, split.rows
    places = np.cumsum(rows.size[split.scored]) // ROWS_AT_ONCE.get(device.type, ROWS_AT_ONCE["cpu"])
    for part in np.split(split.scored, np.flatnonzero(np.diff(places)) + 1):
        inputs, _ = packed_batch(split, part, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=rows.dtype == torch.bfloat16):
            outputs = model(inputs.rows)
        columns = [outputs["s_base"], outputs["attention"][:, None], outputs["s_pc"][:, None]]
        found = torch.cat(columns, 1).float().cpu().numpy()
        for video, own in zip(part, np.split(found, np.cumsum(rows.size[part])[:-1])):
            own = own[rows.index[video]]
            yield int(video), {"s_base": own[:, :-2], "attention": own[:, -2], "s_pc": own[:, -1]}


def find(
    model: SEAL,
    split: Split,
    classes: Sequence[str],
    ambiguous_s: Mapping[str, np.ndarray],
    threshold_cls: float = 0.25,
    without: Collection[str] = (),
) -> Tuple[Segments, np.ndarray]:
    """Detections in every video of a split, and video scores float64 [V, C].

    ambiguous_s: video -> [K, 2] seconds. threshold_cls: video score from which a class is predicted. without: outputs
    that are left out of the score of a proposal.
    """
    video_scores = np.zeros((len(split.videos), len(classes)))
    found: List[Tuple[int, Candidates]] = []
    for v, outputs in score(model, split):
        if not all(np.isfinite(x).all() for x in outputs.values()):
            todo = "weights or features are too large: use another checkpoint, or lower --lr"
            raise InputError("scores that are not finite", f"video {split.videos[v]}", todo)
        s_pc: Optional[np.ndarray] = None if "s_pc" in without else outputs["s_pc"]
        given = (outputs["s_base"], outputs["attention"], s_pc, split.proposals[v])
        scored, video_scores[v] = candidates(*given, threshold_cls)
        found.append((v, scored))
    return detect(classes, split.videos, found, ambiguous_s, split.rate), video_scores


def evaluate(
    model: SEAL,
    data: Dataset,
    protocol: Optional[str] = None,
    threshold_cls: float = 0.25,
    without: Collection[str] = (),
) -> Evaluation:
    """Detect in every test video and score the detections; arguments as in ``find``.

    Returns metrics (fractions): those of ``eval.detection``, video classification mAP and accuracies.
    """
    split = data.test
    detections, scores = find(model, split, data.classes, data.ambiguous_s, threshold_cls, without)
    protocol = protocol or default_protocol(data.profile)
    metrics = evaluate_detections(data.truth, detections, data.profile, protocol)
    counted = np.isin(split.videos, in_protocol(data.truth, protocol).videos)
    scores, labels = scores[counted], split.labels[counted]
    predicted = np.zeros(scores.shape, dtype=bool)
    for row, values in zip(predicted, scores):
        row[predicted_classes(values, threshold_cls)] = values.any()
    metrics["classification_mAP"] = mean_average_precision(scores, labels)
    metrics["classification_accuracy"] = accuracy(predicted, labels)
    metrics["classification_top1"] = top1_accuracy(scores, labels)
    return Evaluation({**metrics, **({"simulated": True} if data.simulated else {})}, detections)


def pictures(data: Dataset, detections: Segments, number: int = 3) -> Iterator[Tuple[str, np.ndarray]]:
    """(video, uint8 [H, W, 3]) timelines of a few fixed videos: ground truth against the best detections."""
    truth, length_s = data.truth, dict(zip(data.test.videos, data.test.length_s))
    shown = np.unique(truth.video)
    for i in shown[len(shown) // (2 * number) :: max(1, len(shown) // number)][:number]:
        video = truth.videos[i]
        figure = timeline(video, truth, detections, length_s[video])
        yield video, figure_to_array(figure)


# ---- what a checkpoint says of itself, and the command test


def info_of(data: Dataset, options: Mapping[str, object], epoch: int) -> Dict[str, object]:
    """What a checkpoint carries beside its weights: all that prediction needs, and what trained it."""
    profile, trained_with = data.profile, {name: options[name] for name in TRAINED_WITH}
    one_rate = not profile.rescaled and not isinstance(profile.feature_fps, dict)
    rate = {"feature_fps": profile.feature_fps if one_rate else None, "snippet_stride": profile.snippet_stride}
    modalities = {"modalities": profile.modalities or 2}
    said = {"dataset": data.name, "classes": list(data.classes), **rate, **modalities}
    return {**said, "epoch": epoch, "options": trained_with}


def load_trained(args: Options) -> Tuple[SEAL, Options, Dict]:
    """The model of ``--pretrained_ckpt``, the options with those that trained it, and what else it says."""
    path = Path(args.pretrained_ckpt)
    model, info = load_model(path)
    if not info:  # the authors' bare checkpoints
        log(f"{path} does not say what trained it: the options of this command are taken")
        return model, args, info
    try:
        stated = {name: info["options"][name] for name in TRAINED_WITH if name in info["options"]}
        recipe = RECIPES[stated["recipe"]]._asdict()  # for numbers of losses that came after it
        trained = restore(args.replace(**recipe), stated, tuple(TERMS))
        said = {name: info[name] for name in ("feature_fps", "snippet_stride", "modalities")}
        classes = [str(name) for name in info["classes"]]
        good = all(x is None or type(x) in (int, float) and 1e-3 <= x < 1e6 for x in said.values())
        if not good or not len({*classes}) == len(classes) == model.num_class:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:  # a loss that this program does not have is named
        what = f"a checkpoint whose info is damaged, or of another program: {error}"
        raise InputError(what, path, "use the program that trained it, or its bare state_dict") from None
    differ = [
        f"{n} {v}"
        for n, v in vars(trained).items()
        if v != {**vars(args), **recipe}[n] and n not in ("losses", "recipe")
    ]
    losses = f"recipe {trained.recipe}, losses {','.join(trained.losses) or 'none'}"
    log(f"the checkpoint's own options hold here: {', '.join([losses, *differ])}")
    return model, trained, {**said, "classes": classes}


def test(args: Options, device: torch.device) -> int:
    """Score the test split with a checkpoint and print the table. Returns the exit status."""
    path = Path(args.pretrained_ckpt)
    model, args, info = load_trained(args)
    with experiment(args.exp_dir, "test", f"{args.dataset_name}-test") as folder:
        data = load_dataset(args, ["test"])
        check_classes(path, model, info, data.classes)
        width = data.test.rows.width // 3
        if width != model.feature_size:
            what = f"checkpoint for features of width {model.feature_size}, the data have {width}"
            raise InputError(what, path, "use the features it was trained on")
        found = evaluate(model.to(device), data, args.protocol, args.threshold_cls, left_out(args))
        hashes = {**data.test.hashes, "checkpoint": file_hash(path), "ground_truth": data.truth.hash()}
        record(folder, plain(args), device, hashes)
        write_json(folder / "results.json", found.metrics)
        write_json(folder / "detections.json", found.detections.to_json(data.version))
        print(table(args.dataset_name, args.recipe, {path.name: found.metrics}))
        log(f"results.json and detections.json are in {folder}")
    return 0
