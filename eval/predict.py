"""Detections for videos that have features and proposals and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, Sequence, Tuple

import numpy as np

from dataset import Split
from eval.detections import Detections
from eval.inference import find
from model import SEAL
from proposals import load_proposals, read_results, to_snippets
from utils.cache import Rows
from utils.errors import InputError
from utils.features import Features
from utils.files import file_hash
from utils.report import some


def predict(
    model: SEAL,
    classes: Sequence[str],
    info: Dict,
    features: Sequence[Path],
    proposals: Path,
    threshold_cls: float = 0.25,
    use_pc: bool = True,
    fix_proposals: bool = False,
    log: Callable[[str], None] = print,
) -> Tuple[Detections, Dict[str, str]]:
    """Detect in every video of a proposals file that has features; nothing is cached.

    info: feature_fps, snippet_stride (frames) and roi_size of the model's training. features: folder of per-video
    files, or one of RGB and one of flow. proposals: JSON in seconds. Returns the detections and the hashes of both
    inputs. Raises InputError naming file and video.
    """
    for folder in features:
        if not folder.is_dir():
            raise InputError("not a folder of per-video features", folder, "see dataset.py convert")
    rate = info["feature_fps"] / info["snippet_stride"]
    results = read_results(proposals)
    nothing = InputError("no proposals", proposals, 'expected {"results": {VIDEO: [{"segment": [s, e]}]}}')
    if not results:
        raise nothing
    source = Features(features, tuple(results), model.feature_size)
    length_s = {v: source.longest_s(v, rate) for v in source.videos}
    found_s, counts = load_proposals(proposals, length_s, fix_proposals, results=results)
    videos = [v for v in source.videos if v in found_s]
    if not videos:
        raise nothing
    if len(videos) < len(results):
        without = some([v for v in results if v not in found_s])
        log(f"{len(videos)} of {len(results)} videos of {proposals} have proposals and features; missing: {without}")
    counts.unknown.clear()  # said already
    for line in counts.lines():
        log(f"{proposals}: {line}")
    snippets = [to_snippets(found_s[v], rate) for v in videos]
    rows = Rows(snippets, info["roi_size"]).compute_live(videos, source.load)
    labels = np.zeros((len(videos), len(classes)), dtype=np.float32)
    hashes = {"features": source.signature(videos, file_hash), "proposals": file_hash(proposals)}
    seconds = np.asarray([length_s[v] for v in videos])
    split = Split(tuple(videos), labels, snippets, seconds, rows, hashes)
    return find(model, split, classes, {}, rate, threshold_cls, use_pc)[0], hashes
