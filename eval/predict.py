"""Prediction: detections in videos without annotations, from their features or from the videos themselves."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Collection, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from dataset import Split
from eval.inference import find, left_out, load_trained
from generators.make import Maker, load_maker
from model import SEAL, check_classes
from options import Options
from utils.datasets.annotations import read_annotations
from utils.datasets.features import feature_names, folder_features
from utils.datasets.profile import Profile, annotations_path, contradictions, dataset_root, load_profile, settings_of
from utils.datasets.proposals import load_proposals, read_results, windows
from utils.datasets.rates import fitting
from utils.datasets.rows import live_rows
from utils.errors import InputError, raise_first, some
from utils.files import child, content_hash, file_hash, write_json, write_text
from utils.formats import FORMS, How
from utils.run.experiment import experiment, plain, record
from utils.run.plots import save_figure, timeline
from utils.run.report import log
from utils.segments import Segments, spelled, to_snippets
from utils.video.features import FEATURES, Extraction, extract

TIMELINES = 5  # pictures of a prediction


def unlabelled_split(
    features: Sequence[Path],
    proposals: Union[str, Maker],
    feature_size: int,
    profile: Profile,
    args: Options,
    videos: Optional[Collection[str]] = None,
) -> Split:
    """Videos that have features and proposals, as a split without labels; nothing is cached.

    features: folder of per-video files, or one of RGB and one of flow. proposals: JSON in seconds, "windows":
    multi-scale windows, or what makes proposals. profile: says the rate of the features. args: how rows are made, and
    whether proposals are mended. videos: the only ones that are wanted, default: all. Raises InputError naming file and
    video.
    """
    maker = proposals if isinstance(proposals, Maker) else None
    made = maker is not None or proposals == "windows"
    path = features[0] if made else Path(proposals)
    if made:
        names = feature_names(features[0]) if videos is None else sorted(videos)
    else:
        names = list(read_results(path))
    listed = len(names)
    if videos is not None:
        names = [name for name, video in spelled(names, videos).items() if video in videos]
    if not names:
        raise InputError("no proposals", path, 'expected {"results": {VIDEO: [{"segment": [s, e]}]}}')
    try:
        source = folder_features(features, feature_size, names, profile.modalities)
    except InputError as error:
        if made or not error.what.startswith("no annotated video"):
            raise
        what = f"no video of these proposals has features in {features[0]}"
        raise InputError(what, path, f"its videos are such as {names[0]}") from None
    if source.simulated:
        log(f"SIMULATED features: these detections say nothing about real videos ({source.simulated})")
    snippets = np.asarray([source.length(v) for v in source.videos])
    rate = profile.rates(source.videos, snippets, np.full(len(snippets), np.nan))
    length_s = dict(zip(source.videos, (snippets + 1) / rate))
    if made:
        found = [maker.propose(source.load(v))[:, :2] if maker else windows(n) for v, n in zip(source.videos, snippets)]
        segments_s = {v: segments / r for v, segments, r in zip(source.videos, found, rate) if len(segments)}
    else:
        found = load_proposals(path, length_s, args.fix_proposals)
        if 1.1 < found.beyond < 8:  # a wrong rate; frames for seconds are further off
            todo = fitting(profile, found.beyond * float(np.median((snippets + 1) / snippets)))
            for field in ("feature_fps", "snippet_stride"):
                todo = todo.replace(f'"{field}":', f"--{field}")
            raise InputError("proposals end far beyond the features", path, todo.replace(" in dataset.json", ""))
        raise_first(found.problems)
        for line in found.notes[1 if len(source.videos) < listed else 0 :]:  # the first is said below
            log(line)
        segments_s = found.segments_s
    keep = [i for i, v in enumerate(source.videos) if v in segments_s]
    featured = set(spelled(names, set(source.videos)).values()) & set(source.videos)
    unused = source.unused() if videos is None else sorted({*videos} - {*spelled(names, videos).values()})
    left_out = {
        "have no features": [v for v in names if v not in featured],
        "have no proposals": sorted({v for v in source.videos if v not in segments_s} | {Path(v).stem for v in unused}),
    }
    for reason, left in left_out.items():
        if left:
            log(f"{len(left)} videos {reason} and are left out: {some(left)}")
    if not keep:
        raise InputError("no proposals of videos with features", path, f"features are in {features[0]}")
    videos, snippets, rate = tuple(source.videos[i] for i in keep), snippets[keep], rate[keep]
    segments = [to_snippets(segments_s[v], r) for v, r in zip(videos, rate)]
    rows = live_rows(videos, segments, source.load, args.roi_size, args.rows_dtype)
    for line in source.notes:
        log(line)
    origin = maker.info["trained_on"] if maker else "windows" if made else file_hash(path)
    hashes = {"features": content_hash(snippets, rows.video_mean), "proposals": origin}
    labels = np.zeros((len(videos), 0), np.float32)
    return Split(videos, labels, segments, snippets, snippets / rate, rate, rows, hashes)


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
    if args.proposals not in (None, "windows"):
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


def check_maker(path: Path, maker: Maker, model: SEAL, classes: Sequence[str]) -> None:
    """Refuse a proposal maker of another width, or of other classes, than the model (InputError)."""
    todo = "use the maker of the proposals it was trained on"
    if maker.width != model.feature_size:
        what = f"a proposal maker for features of width {maker.width}, a model for {model.feature_size}"
        raise InputError(what, path, todo)
    if set(maker.classes) != set(classes):
        raise InputError("a proposal maker of other classes than the model", path, todo)
    log(f"proposals by {maker.method}, trained on {maker.info['dataset']}{maker.simulated}")


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
    proposals = args.proposals or load_maker(Path(args.proposals_ckpt), device)
    if isinstance(proposals, Maker):  # said before hours of work
        check_maker(Path(args.proposals_ckpt), proposals, model, info["classes"])
    with experiment(args.exp_dir, "predict", "predict") as folder, features_of(args, device, model) as made:
        folders, done = made
        profile = rate_of(profile, given, folders, path)
        split = unlabelled_split(folders, proposals, model.feature_size, profile, args, done and done.files)
        found, _ = find(model.to(device), split, info["classes"], {}, args.threshold_cls, left_out(args))
        record(folder, plain(args), device, {**split.hashes, "checkpoint": file_hash(path)})
        out = folder / f"detections.{args.format or 'json'}"
        if args.format == "csv":
            write_text(out, FORMS["csv"].write(found, How()))
        else:
            write_json(out, found.to_json(path.name))
        print(f"{len(found.video):,} detections in {len(found.videos)} videos: {out}")
        drawn = draw(folder / "timelines", split, found)
        log(f"timelines of {some(drawn)}: {folder / 'timelines'}")
    return 2 if done and done.failed else 0
