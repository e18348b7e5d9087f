"""Detections for videos that have features and proposals and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, Sequence

import numpy as np

from dataset import Split
from eval.detections import Detections
from eval.inference import find
from model import SEAL
from proposals import load_proposals, to_snippets
from utils.cache import Rows
from utils.errors import InputError
from utils.features import Features
from utils.files import load_json


def predict(
    model: SEAL,
    classes: Sequence[str],
    info: Dict,
    features: Path,
    proposals: Path,
    threshold_cls: float = 0.25,
    use_pc: bool = True,
    fix_proposals: bool = False,
    log: Callable[[str], None] = print,
) -> Detections:
    """Detect in every video of a proposals file that has features; nothing is cached.

    info: feature_fps, snippet_stride (frames) and roi_size of the model's training. features: folder of per-video
    files. proposals: JSON in seconds. Raises InputError naming file and video.
    """
    if not features.is_dir():
        raise InputError("not a folder of per-video features", features, "see dataset.py convert")
    rate = info["feature_fps"] / info["snippet_stride"]
    document = load_json(proposals)
    results = document.get("results") if isinstance(document, dict) else None
    names = tuple(results) if isinstance(results, dict) else ()
    found_s, _ = load_proposals(proposals, dict.fromkeys(names, np.nan), 1 / rate, fix_proposals)
    if not found_s:
        raise InputError("no proposals", proposals, 'expected {"results": {VIDEO: [{"segment": [s, e]}]}}')
    source = Features([features], list(found_s), model.feature_size)
    if len(source.videos) < len(names):
        log(f"{len(source.videos)} of {len(names)} videos of {proposals} have proposals and features")
    snippets = [to_snippets(found_s[v], rate) for v in source.videos]
    rows = Rows(snippets, info["roi_size"]).compute_live(source.videos, source.load)
    for video, segments, frames in zip(source.videos, snippets, rows.num_snippets):
        if segments[:, 1].max() > frames + 1:
            what = f"a proposal ends at snippet {segments[:, 1].max():g} of {frames}"
            raise InputError(what, f"{proposals}, {video}", "proposals and features must share fps and stride")
    labels = np.zeros((len(source.videos), len(classes)), dtype=np.float32)
    split = Split(source.videos, labels, snippets, rows.num_snippets / rate, rows, "")
    return find(model, split, classes, {}, rate, threshold_cls, use_pc)[0]
