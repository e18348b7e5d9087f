"""From a model and a split to detections, metrics and pictures."""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Tuple

import numpy as np
import torch
from utils.plots import figure_to_array, timeline

from dataset import Split, packed_batch
from eval.classification import accuracy, mean_average_precision
from eval.detection import evaluate_detections
from eval.detections import Detections
from eval.postprocess import candidates, detect
from model import SEAL
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
def score(model: SEAL, split: Split) -> Iterator[Tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (video index, s_base [M, C+1] logits, attention [M], s_pc [M]) for every video that has proposals.

    The network runs once a row, on the rows of many videos at a time, without dropout.
    """
    device = next(model.parameters()).device
    waiting: List[int] = []
    scored = split.scored
    for place, v in enumerate(scored):
        waiting.append(int(v))
        last = place + 1 == len(scored)
        if not last and split.rows.size[waiting].sum() + split.rows.size[scored[place + 1]] <= ROWS_AT_ONCE:
            continue
        rows, index, batch = packed_batch(split, waiting, device)
        outputs = model(rows, index)
        s_base, attention, s_pc = (x.float().cpu().split(batch.counts) for x in outputs[:3])
        for i, video in enumerate(waiting):
            yield video, s_base[i].numpy(), attention[i].numpy(), s_pc[i].numpy()
        waiting = []


def evaluate(
    model: SEAL,
    split: Split,
    truth: GroundTruth,
    profile: Profile,
    protocol: str = "wtal",
    threshold_cls: float = 0.25,
    use_pc: bool = True,
) -> Evaluation:
    """Detect in every video of the split and score the detections.

    threshold_cls: video score from which a class is predicted. use_pc: whether s_pc enters the score of a proposal.
    Returns metrics (fractions): those of ``eval.detection`` and video classification mAP and accuracy.
    """
    video_scores = np.zeros((len(split.videos), len(truth.classes)))
    found = []
    for v, s_base, attention, s_pc in score(model, split):
        pc = s_pc if use_pc else None
        scored, video_scores[v] = candidates(s_base, attention, pc, split.proposals[v], threshold_cls)
        found.append((v, scored))
    detections = detect(truth.classes, split.videos, found, truth.ambiguous_s, profile.snippets_per_second)
    metrics = evaluate_detections(truth, detections, profile, protocol)
    metrics["classification_mAP"] = mean_average_precision(video_scores, split.labels)
    metrics["classification_accuracy"] = accuracy(video_scores, split.labels)
    return Evaluation(metrics, detections)
