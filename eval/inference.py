"""From a model and videos to detections, metrics and pictures."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Collection, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch

from dataset import Dataset, Split, load_dataset, packed_batch
from eval.classification import accuracy, mean_average_precision, top1_accuracy
from eval.detection import default_protocol, evaluate_detections, in_protocol
from eval.postprocess import Candidates, candidates, detect, predicted_classes
from losses import TERMS, untrained
from model import SEAL, check_classes, load_model
from options import NUMBERS, Options, restore
from utils.datasets.annotations import read_annotations
from utils.datasets.feature_files import list_files
from utils.datasets.features import Features
from utils.datasets.profile import Profile, annotations_path, contradictions, dataset_root, load_profile, settings_of
from utils.datasets.proposals import load_proposals, read_results, windows
from utils.datasets.rates import fitting
from utils.datasets.rows import live_rows
from utils.errors import InputError, raise_first, some
from utils.files import child, file_hash, write_json
from utils.run.experiment import experiment, plain, record
from utils.run.plots import figure_to_array, save_figure, timeline
from utils.run.report import log, table
from utils.segments import Segments, spelled, to_snippets
from utils.video.features import FEATURES, Extraction, extract

# options that a checkpoint carries, for whoever asks what trained it
TRAINED_WITH = ("recipe", "losses", "descriptor_level", "roi_size", "max_epoch", "batch_size", "lr", "weight_decay",
                "dropout_ratio", "max_proposal", "share_rows", "amp", "seed", *(n.name for n in NUMBERS))  # fmt: skip
TIMELINES = 5  # pictures of a prediction
ROWS_AT_ONCE = 8192  # rows the network takes at once: 200 MB of inputs at 2D = 2048


class Evaluation(NamedTuple):
    """Metrics of a test split and the detections behind them."""

    metrics: Dict
    detections: Segments


@torch.no_grad()
def score(model: SEAL, split: Split) -> Iterator[Tuple[int, Dict[str, np.ndarray]]]:
    """Yield (video index, outputs by name: s_base [M, C+1] logits, attention [M], s_pc [M]) of each video with
    proposals. The network runs once a row, on the rows of many videos at a time, without dropout."""
    model.eval()
    device = next(model.parameters()).device
    places = np.cumsum(split.rows.size[split.scored]) // ROWS_AT_ONCE
    for part in np.split(split.scored, np.flatnonzero(np.diff(places)) + 1):
        inputs, batch = packed_batch(split, part, device)
        outputs = model(inputs.rows, inputs.index)
        columns = {k: v.float().cpu().split(batch.packing.counts) for k, v in outputs.items() if k != "f_prop"}
        for i, video in enumerate(part):
            yield int(video), {name: values[i].numpy() for name, values in columns.items()}


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


def unlabelled_split(
    features: Sequence[Path], proposals: str, feature_size: int, profile: Profile, roi_size: int, fix: bool = False,
    videos: Optional[Collection[str]] = None,
) -> Split:  # fmt: skip
    """Videos that have features and proposals, as a split without labels; nothing is cached.

    features: folder of per-video files, or one of RGB and one of flow. proposals: JSON in seconds, or "windows":
    multi-scale windows of every video, or of ``videos``. profile: says the rate of the features. Raises InputError
    naming file and video.
    """
    for folder in features:
        if not folder.is_dir():
            raise InputError("not a folder of per-video features", folder, "see python -m utils.tools.convert")
    path, made = Path(proposals), proposals == "windows"
    if made:
        names = sorted(videos or {name for files in list_files(features[0]) for name in files})
    else:
        names = list(read_results(path))
    if not names:
        raise InputError("no proposals", path, 'expected {"results": {VIDEO: [{"segment": [s, e]}]}}')
    source = Features(features, names, feature_size, profile.modalities)
    try:
        source.length(source.videos[0])
    except InputError as error:
        what = f"the checkpoint is for features of width {feature_size}: {error.what}"
        raise InputError(what, error.where, "use the features it was trained on") from None
    snippets = np.asarray([source.length(v) for v in source.videos])
    rate = profile.rates(source.videos, snippets, np.full(len(snippets), np.nan))
    length_s = dict(zip(source.videos, (snippets + 1) / rate))
    if made:
        segments_s = {v: windows(n) / r for v, n, r in zip(source.videos, snippets, rate)}
    else:
        found = load_proposals(path, length_s, fix)
        if found.beyond > 1.1:
            todo = fitting(profile, found.beyond * float(np.median((snippets + 1) / snippets)))
            for field in ("feature_fps", "snippet_stride"):
                todo = todo.replace(f'"{field}":', f"--{field}")
            raise InputError("proposals end far beyond the features", path, todo.replace(" in dataset.json", ""))
        raise_first(found.problems)
        for line in found.notes[1 if len(source.videos) < len(names) else 0 :]:  # the first is said below
            log(line)
        segments_s = found.segments_s
    keep = [i for i, v in enumerate(source.videos) if v in segments_s]
    featured = set(spelled(names, set(source.videos)).values()) & set(source.videos)
    unused = [] if videos else source.unused()
    left_out = {
        "have no features": [v for v in names if v not in featured],
        "have no proposals": [v for v in source.videos if v not in segments_s] + list(unused),
    }
    for reason, left in left_out.items():
        if left:
            log(f"{len(left)} videos {reason} and are left out: {some(left)}")
    if not keep:
        raise InputError("no proposals of videos with features", path, f"features are in {features[0]}")
    videos, snippets, rate = tuple(source.videos[i] for i in keep), snippets[keep], rate[keep]
    segments = [to_snippets(segments_s[v], r) for v, r in zip(videos, rate)]
    rows = live_rows(videos, segments, source.load, roi_size)
    for line in source.notes:
        log(line)
    hashes = {"features": source.signature(videos), "proposals": "windows" if made else file_hash(path)}
    labels = np.zeros((len(videos), 0), np.float32)
    return Split(videos, labels, segments, snippets, snippets / rate, rate, rows, hashes)


# ---- what a checkpoint says of itself, and the commands test and predict


def info_of(data: Dataset, options: Mapping[str, object], epoch: int) -> Dict[str, object]:
    """What a checkpoint carries beside its weights: all that prediction needs, and what trained it."""
    profile, trained_with = data.profile, {name: options[name] for name in TRAINED_WITH}
    one_rate = not profile.rescaled and not isinstance(profile.feature_fps, dict)
    rate = {"feature_fps": profile.feature_fps if one_rate else None, "snippet_stride": profile.snippet_stride}
    modalities = {"modalities": profile.modalities or 2}
    return {"classes": list(data.classes), **rate, **modalities, "epoch": epoch, "options": trained_with}


def load_trained(args: Options) -> Tuple[SEAL, Options, Dict]:
    """The model of ``--pretrained_ckpt``, the options with those that trained it, and what else it says."""
    path = Path(args.pretrained_ckpt)
    model, info = load_model(path)
    if not info:  # the authors' bare checkpoints
        return model, args, info
    try:
        trained = restore(args, {name: info["options"][name] for name in TRAINED_WITH}, tuple(TERMS))
        said = {name: info[name] for name in ("feature_fps", "snippet_stride", "modalities")}
        classes = [str(name) for name in info["classes"]]
        good = all(x is None or type(x) in (int, float) and 1e-3 <= x < 1e6 for x in said.values())
        if not good or not len({*classes}) == len(classes) == model.num_class:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        todo = "save it again, or use its bare state_dict"
        raise InputError("a checkpoint whose info is damaged", path, todo) from None
    given = vars(args)
    differ = [f"{name} {value}" for name, value in sorted(vars(trained).items()) if given[name] != value]
    if differ:
        log(f"trained with other options, which hold here: {', '.join(differ)}")
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
        without = untrained(args.losses, args.numbers)
        found = evaluate(model.to(device), data, args.protocol, args.threshold_cls, without)
        hashes = {**data.test.hashes, "checkpoint": file_hash(path), "ground_truth": data.truth.hash()}
        record(folder, plain(args), device, hashes)
        write_json(folder / "results.json", found.metrics)
        write_json(folder / "detections.json", found.detections.to_json(args.dataset_name))
        print(table(args.dataset_name, args.recipe, {path.name: found.metrics}))
        log(f"results.json and detections.json are in {folder}")
    return 0


def predict(args: Options, device: torch.device) -> int:
    """Write detections for videos without annotations. Returns the exit status."""
    path = Path(args.pretrained_ckpt)
    model, args, info = load_trained(args)
    if info:
        profile = Profile(**{name: info[name] for name in ("feature_fps", "snippet_stride", "modalities")})
    else:  # what a bare checkpoint does not say comes from the dataset it is for
        root = dataset_root(args.dataset_name, args.dataset_root)
        profile = load_profile(args.dataset_name, root)
        classes = read_annotations(annotations_path(args.dataset_name, root, profile)).annotations.classes
        info = {"classes": list(classes)}
    given = {name: getattr(args, name) for name in ("feature_fps", "snippet_stride") if getattr(args, name)}
    check_classes(path, model, info, info["classes"])
    with experiment(args.exp_dir, "predict", "predict") as folder, features_of(args, device, model) as made:
        folders, done = made
        profile = rate_of(profile, given, folders, path)
        size = (model.feature_size, profile, args.roi_size, args.fix_proposals)
        split = unlabelled_split(folders, args.proposals, *size, videos=done and done.files)
        without = untrained(args.losses, args.numbers)
        found, _ = find(model.to(device), split, info["classes"], {}, args.threshold_cls, without)
        record(folder, plain(args), device, {**split.hashes, "checkpoint": file_hash(path)})
        write_json(folder / "detections.json", found.to_json(path.name))
        print(f"{len(found.video):,} detections in {len(found.videos)} videos: {folder / 'detections.json'}")
        drawn = draw(folder / "timelines", split, found)
        log(f"timelines of {some(drawn)}: {folder / 'timelines'}")
    return 2 if done and done.failed else 0


@contextmanager
def features_of(args: Options, device: torch.device, model: SEAL) -> Iterator[Tuple[List[Path], Optional[Extraction]]]:
    """The folders of ``--features``; or that of ``--videos``, made now, which goes afterwards unless ``--features_out``
    keeps it, with what became of each video. Raises InputError."""
    if args.features:
        yield [Path(folder) for folder in args.features], None
        return
    streams = 2 if args.rgb_weights and args.flow_weights else 1
    if model.feature_size != streams * FEATURES:  # said before hours of work
        what = f"the checkpoint is for features of width {model.feature_size}, I3D of {streams} streams makes"
        todo = "use a checkpoint trained on features of these weights, or give --rgb_weights and --flow_weights"
        raise InputError(f"{what} {streams * FEATURES}", args.pretrained_ckpt, todo)
    if args.proposals != "windows":
        read_results(Path(args.proposals))
    with TemporaryDirectory() as scratch:
        out = Path(args.features_out or scratch)
        weights = {"rgb_weights": args.rgb_weights, "flow_weights": args.flow_weights}
        done = extract([Path(video) for video in args.videos], out, device=device, **weights)
        if not done.files:
            raise InputError("none of the videos could be read", args.videos[0], "see the lines above")
        yield [out], done


def rate_of(profile: Profile, given: Mapping[str, float], folders: Sequence[Path], path: Path) -> Profile:
    """The profile of a checkpoint with what features.json beside the features says instead, and with what is given."""
    said = settings_of(folders)
    if said and profile.modalities not in (None, said["modalities"]):
        what = f"features of {said['modalities']} streams for a checkpoint of {profile.modalities}"
        raise InputError(what, folders[0], "use the features it was trained on")
    trained, profile = profile, replace(profile, **{**said, **given})
    if not isinstance(profile.feature_fps, (int, float)):
        raise InputError("trained on videos with a rate each, which says nothing of these", path, "give --feature_fps")
    log(f"rate: {profile.feature_fps:g} frames a second, {profile.snippet_stride:g} frames a snippet")
    for line in contradictions(profile, folders, "the command line"):
        log(line)
    if (trained.feature_fps, trained.snippet_stride) != (profile.feature_fps, profile.snippet_stride):
        log(f"the checkpoint was trained at {trained.feature_fps or 'other'} and {trained.snippet_stride:g}")
    return profile


def draw(folder: Path, split: Split, found: Segments) -> List[str]:
    """Timelines of the first videos, FOLDER/VIDEO.png, instead of those that are there. Returns their names."""
    for path in folder.glob("*.png"):
        path.unlink()
    videos = split.videos[:TIMELINES]
    for video, length_s in zip(videos, split.length_s):
        save_figure(child(folder, video, ".png"), timeline(video, None, found, length_s))
    return list(videos)
