"""Detections for videos that have features and proposals and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, Sequence, Tuple

import numpy as np

from dataset import Split
from eval.detections import Detections
from eval.inference import find
from model import SEAL
from proposals import load_proposals, to_snippets
from utils.cache import Rows
from utils.errors import InputError
from utils.features import Features
from utils.files import file_hash, load_json


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
) -> Tuple[Detections, Dict[str, str]]:
    """Detect in every video of a proposals file that has features; nothing is cached.

    info: feature_fps, snippet_stride (frames) and roi_size of the model's training. features: folder of per-video
    files. proposals: JSON in seconds. Returns the detections and the hashes of both inputs. Raises InputError naming
    file and video.
    """
    if not features.is_dir():
        raise InputError("not a folder of per-video features", features, "see dataset.py convert")
    rate = info["feature_fps"] / info["snippet_stride"]
    document = load_json(proposals, todo="give the JSON file of the videos' proposals")
    results = document.get("results") if isinstance(document, dict) else None
    names = tuple(results) if isinstance(results, dict) else ()
    if not names:
        raise InputError("no proposals", proposals, 'expected {"results": {VIDEO: [{"segment": [s, e]}]}}')
    source = Features([features], names, model.feature_size)
    length_s = {v: source.longest_s(v, rate) for v in source.videos}
    found_s, counts = load_proposals(proposals, length_s, fix_proposals)
    videos = [v for v in source.videos if v in found_s]
    if len(videos) < len(names):
        log(f"{len(videos)} of {len(names)} videos of {proposals} have proposals and features")
    counts.unknown.clear()  # said already
    for line in counts.lines():
        log(f"{proposals}: {line}")
    snippets = [to_snippets(found_s[v], rate) for v in videos]
    rows = Rows(snippets, info["roi_size"]).compute_live(videos, source.load)
    labels = np.zeros((len(videos), len(classes)), dtype=np.float32)
    hashes = {"features": source.signature(videos, file_hash), "proposals": file_hash(proposals)}
    split = Split(tuple(videos), labels, snippets, rows.num_snippets / rate, rows, hashes)
    return find(model, split, classes, {}, rate, threshold_cls, use_pc)[0], hashes
