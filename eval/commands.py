"""What a checkpoint is for: ``--run_type test`` scores a labelled split, ``predict`` detects in any videos."""

from __future__ import annotations

import argparse
from pathlib import Path

from dataset import load_split, source_of, split_truth
from eval.inference import evaluate
from eval.predict import predict as predict_videos
from model import check_classes, load_model
from options import RECIPES, parser
from utils.errors import InputError
from utils.experiment import experiment, plain, write_environment, write_options
from utils.files import file_hash, write_json
from utils.parallel import Group
from utils.profile import dataset_root, load_annotations, load_profile
from utils.report import log, table


def test(args: argparse.Namespace, group: Group) -> int:
    """Score the test split with a checkpoint and print the table. Returns the exit status."""
    path = Path(args.pretrained_ckpt)
    model, info = load_model(path)
    for name in [n for n in ("roi_size", "recipe", "losses") if n in info]:  # what the checkpoint says of itself
        given, said = getattr(args, name), type(getattr(args, name))(info[name])
        if given not in (said, parser().get_default(name)):
            what = f"--{name} is not what the checkpoint was trained with: {info[name]}"
            raise InputError(what, path, f"leave out --{name}")
        if given != said:
            log(f"the checkpoint was trained with --{name} {info[name]}")
        setattr(args, name, said)
    vars(args).update(vars(RECIPES[args.recipe]))
    source = source_of(args)
    check_classes(path, model, info, source.annotations.classes)
    with experiment(args.exp_dir, f"{args.dataset_name}-test", False, group) as folder:
        split = load_split(source, "test", log)
        if split.rows.width != 3 * model.feature_size:
            what = f"checkpoint for features of width {model.feature_size}, the data have {split.rows.width // 3}"
            raise InputError(what, path, "use the features it was trained on")
        how = (args.protocol, args.threshold_cls, "pc" in args.losses, group)
        truth = split_truth(source, split)
        result = evaluate(model.to(group.device), split, truth, source.profile, *how)
        if group.first:
            write_options(folder, plain(args))
            inputs = {f"test_{kind}": value for kind, value in split.hashes.items()}
            inputs.update(checkpoint=file_hash(path), ground_truth=truth.hash())
            write_environment(folder, group.device, args.seed, inputs)
            if source.features.simulated:
                result.metrics["simulated"] = True
            write_json(folder / "results.json", result.metrics)
            write_json(folder / "detections.json", result.detections.to_json(args.dataset_name))
            print(table(args.dataset_name, args.recipe, {path.name: result.metrics}))
        log(f"results.json and detections.json are in {folder}")
    return 0


def predict(args: argparse.Namespace, group: Group) -> int:
    """Write detections for videos without annotations. Returns the exit status."""
    path = Path(args.pretrained_ckpt)
    model, info = load_model(path)
    if not info:  # the authors' bare checkpoints: what they do not say comes from the dataset they are for
        root = dataset_root(args.dataset_name, args.dataset_root)
        profile = load_profile(args.dataset_name, root)
        classes = load_annotations(args.dataset_name, root, profile).classes
        check_classes(path, model, info, classes)
        info = {"classes": classes, "feature_fps": profile.feature_fps, "snippet_stride": profile.snippet_stride}
        info.update(roi_size=args.roi_size, losses=args.losses)
    with experiment(args.exp_dir, "predict", False, group) as folder:
        files, use_pc = ([Path(f) for f in args.features], Path(args.proposals)), "pc" in info["losses"]
        how = (args.threshold_cls, use_pc, args.fix_proposals, log)
        found, hashes = predict_videos(model.to(group.device), info["classes"], info, *files, *how)
        if not group.first:
            return 0
        write_options(folder, plain(args))
        write_environment(folder, group.device, args.seed, {**hashes, "checkpoint": file_hash(path)})
        write_json(folder / "detections.json", found.to_json(path.name))
        print(f"{len(found.video):,} detections in {len(found.videos)} videos: {folder / 'detections.json'}")
    return 0
