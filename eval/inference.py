"""From a model and a split to detections, metrics and pictures."""

from __future__ import annotations

from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch

from dataset import Split, packed_batch
from eval.classification import accuracy, mean_average_precision
from eval.detection import evaluate_detections, in_protocol
from eval.detections import Detections
from eval.postprocess import candidates, detect
from model import SEAL
from utils.errors import InputError
from utils.parallel import Group
from utils.plots import figure_to_array, timeline
from utils.profile import GroundTruth, Profile

ROWS_AT_ONCE = 8192  # rows the network takes at once: 200 MB of inputs at 2D = 2048


class Evaluation(NamedTuple):
    """Metrics of a test split and the detections behind them."""

    metrics: Dict
    detections: Detections

    def pictures(self, split: Split, truth: GroundTruth, number: int) -> Iterator[Tuple[str, np.ndarray]]:
        """(video, uint8 [H, W, 3]) timelines of a few fixed videos: ground truth against the best detections."""
        length_s = dict(zip(split.videos, split.length_s))
        shown = [i for i in np.unique(truth.video) if truth.videos[i] in length_s]
        for i in shown[len(shown) // (2 * number) :: max(1, len(shown) // number)][:number]:
            video = truth.videos[i]
            mine, found = truth.video == i, self.detections.of(video)
            figure = timeline(
                video,
                truth.classes,
                (truth.segment_s[mine], truth.label[mine]),
                found,
                length_s[video],
            )
            yield video, figure_to_array(figure)


@torch.no_grad()
def score(model: SEAL, split: Split, videos: Sequence[int]) -> Iterator[Tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (video index, s_base [M, C+1] logits, attention [M], s_pc [M]) for some videos, each with proposals.

    The network runs once a row, on the rows of many videos at a time, without dropout.
    """
    device = next(model.parameters()).device
    waiting: List[int] = []
    for place, v in enumerate(videos):
        waiting.append(int(v))
        rows = split.rows.size[waiting].sum()
        if place + 1 < len(videos) and rows + split.rows.size[videos[place + 1]] <= ROWS_AT_ONCE:
            continue
        inputs, batch = packed_batch(split, waiting, device)
        outputs = model(inputs.rows, inputs.index)
        s_base, attention, s_pc = (x.float().cpu().split(batch.counts) for x in outputs[:3])
        for i, video in enumerate(waiting):
            yield video, s_base[i].numpy(), attention[i].numpy(), s_pc[i].numpy()
        waiting = []


def find(
    model: SEAL,
    split: Split,
    classes: Sequence[str],
    ambiguous_s: Mapping[str, np.ndarray],
    snippets_per_second: float,
    threshold_cls: float = 0.25,
    use_pc: bool = True,
    group: Optional[Group] = None,
) -> Tuple[Detections, np.ndarray]:
    """Detections in every video of a split, and video scores float64 [V, C]; each process takes its part of them.

    threshold_cls: video score from which a class is predicted. use_pc: whether s_pc enters the score of a proposal.
    """
    videos = split.scored if group is None else split.scored[group.share(len(split.scored))]
    video_scores = np.zeros((len(split.videos), len(classes)))
    found = []
    for v, s_base, attention, s_pc in score(model, split, videos):
        if not all(np.isfinite(x).all() for x in (s_base, attention, s_pc)):
            todo = "weights or features are too large: use another checkpoint, or lower --lr"
            raise InputError("scores that are not finite", f"video {split.videos[v]}", todo)
        pc = s_pc if use_pc else None
        scored, video_scores[v] = candidates(s_base, attention, pc, split.proposals[v], threshold_cls)
        found.append((v, scored))
    detections = detect(classes, split.videos, found, ambiguous_s, snippets_per_second)
    if group is not None and group.size > 1:
        columns = ("video", "segment_s", "label", "score")
        parts = group.collect(([getattr(detections, c) for c in columns], video_scores))
        merged = [np.concatenate(values) for values in zip(*(part for part, _ in parts))]
        detections = Detections(detections.classes, detections.videos, *merged)
        video_scores = np.sum([scores for _, scores in parts], axis=0)
    return detections, video_scores


def evaluate(
    model: SEAL,
    split: Split,
    truth: GroundTruth,
    profile: Profile,
    protocol: str = "wtal",
    threshold_cls: float = 0.25,
    use_pc: bool = True,
    group: Optional[Group] = None,
) -> Evaluation:
    """Detect in every video of the split and score the detections; arguments as in ``find``.

    Returns metrics (fractions): those of ``eval.detection`` and video classification mAP and accuracy.
    """
    rate = profile.snippets_per_second
    detections, scores = find(model, split, truth.classes, truth.ambiguous_s, rate, threshold_cls, use_pc, group)
    metrics = evaluate_detections(truth, detections, profile, protocol)
    scored = np.isin(split.videos, in_protocol(truth, protocol).videos)
    metrics["classification_mAP"] = mean_average_precision(scores[scored], split.labels[scored])
    metrics["classification_accuracy"] = accuracy(scores[scored], split.labels[scored])
    return Evaluation(metrics, detections)
