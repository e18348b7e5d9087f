"""LAC (Lee & Byun, ICCV 2021): proposals P_pw from one point an instance. Network, training, proposals.

T snippets of a video, N packed snippets of a batch, C action classes, D width of one modality; features hold RGB in
the first D columns and flow in the others. All times are in snippets. The sequence search is in ``search.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generators.lac_losses import (
    Draw,
    feature_loss,
    find_instances,
    focal_loss,
    score_losses,
    video_loss,
    video_scores,
)
from generators.search import BUDGET, background_seeds, search_labels
from generators.shared import (
    Load,
    Trainer,
    as_input,
    classes_of,
    find_runs,
    mean_of_top,
    not_finite,
    prefix_sums,
    proposals_of_class,
)
from utils.packed import expect
from utils.seeds import stream, torch_stream

SCORE_THRESHOLDS = np.arange(10) * 0.025  # of the fused score, for proposals
ACTION_THRESHOLDS = 0.5 + np.arange(9) * 0.025  # of 1 - P(background)
CLASS_THRESHOLD = 0.5  # a class whose video score reaches it is predicted
FINE = 24  # places of the grid of proposals in a snippet
WEIGHTS = {"vid": 1.0, "frame": 0.5, "frame_bkg": 1.0, "score": 1.0, "feat": 1.0}


@dataclass(frozen=True)
class Settings:
    """What training depends on besides data and seed; the defaults are those published for THUMOS14."""

    iterations: int = 2000
    lr: float = 1e-4
    weight_decay: float = 5e-4  # L2, as Adam has it
    batch: int = 16  # videos of an iteration
    search_every: int = 10  # iterations from one sequence search to the next
    budget: int = BUDGET  # hypotheses of the search
    dropout: float = 0.7  # before the classifier


DEMO = Settings(iterations=200, lr=1e-3, search_every=20)  # 100 videos of 60 to 240 snippets, 2D = 128


class Scores(NamedTuple):
    """What the network says of each snippet."""

    embedded: Tensor  # [N, H] before the dropout
    probability: Tensor  # [N, C+1] P in [0, 1], the last is background
    fused: Tensor  # [N, C+1] P_c (1 - P_background) of the actions, then P_background


class LAC(nn.Module):
    """The network under the names of the authors' checkpoints; width is 2D, hidden H (2D unless given), num_class C.

    Weights are drawn from ``seed`` as PyTorch draws those of convolutions: uniform in +-1 / sqrt(fan in).
    """

    def __init__(self, width: int, num_class: int, hidden: Optional[int] = None, dropout: float = 0.7, seed: int = 0):
        super().__init__()
        hidden = hidden or width
        self.width, self.num_class, self.dropout = width, num_class, dropout
        self.cls_module = nn.ModuleDict(
            {
                "conv_1": nn.ModuleDict({"0": nn.Conv1d(width, hidden, 3, padding=1)}),
                "classifier": nn.ModuleDict({"0": nn.Conv1d(hidden, num_class + 1, 1, bias=False)}),
            }
        )
        generator = torch_stream(seed, "lac weights")
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d):
                bound = (layer.in_channels * layer.kernel_size[0]) ** -0.5
                for parameter in layer.parameters():
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, videos: Sequence[Tensor]) -> Scores:
        """videos: features [T, 2D] of each -> the scores of all their N snippets, one video after the other."""
        for features in videos:
            if features.ndim != 2 or features.shape[1] != self.width or not len(features):
                raise ValueError(f"features must be [T, {self.width}], not {list(features.shape)}")
        # A row of zeros between two videos is the padding that each would have alone.
        spaced = [row for features in videos for row in (features, features.new_zeros(1, self.width))][:-1]
        inside = torch.cat([torch.arange(len(f)) for f in videos])  # place in the video
        number = torch.repeat_interleave(torch.arange(len(videos)), torch.tensor([len(f) for f in videos]))
        inside = (torch.arange(len(inside)) + number).to(videos[0].device)
        layers = self.cls_module
        hidden = layers["conv_1"]["0"](torch.cat(spaced).T[None]).index_select(2, inside).relu()
        logit = layers["classifier"]["0"](F.dropout(hidden, self.dropout, self.training))
        probability = logit[0].T.sigmoid()
        background = probability[:, -1:]
        fused = torch.cat([probability[:, :-1] * (1 - background), background], 1)
        return Scores(hidden[0].T, probability, fused)


def point_snippets(time: np.ndarray, feature_fps: float, stride: float, fps: float = 1.0) -> np.ndarray:
    """int64 [n]: the snippets of points in frames of the video's own rate ``fps``, or in seconds (fps 1)."""
    return (np.asarray(time) * feature_fps / (fps * stride)).astype(np.int64)


def point_labels(snippets: np.ndarray, classes: np.ndarray, length: int, num_class: int) -> np.ndarray:
    """bool [length, C]: which snippets carry a point of which class; several in one snippet are one.

    snippets int64 [n], each in 0..length-1, and classes int64 [n], each in 0..C-1, as ``points`` gives them.
    """
    labels = np.zeros((length, num_class), bool)
    labels[snippets, classes] = True
    return labels


def lac_terms(
    video_score: Tensor,
    fused: Tensor,
    embedded: Tensor,
    label: Tensor,
    points: np.ndarray,
    dense: Optional[np.ndarray],
    draw: Draw,
    faithful: bool = False,
) -> Dict[str, Tensor]:
    """The terms of one video by name without weights, and "total" with them (LAC, 2021, spec 2.5).

    video_score [C] of ``video_scores``; fused [T, C+1], from which the pseudo-background comes, too; embedded [T, H];
    label [C] 0/1 of the network's dtype; points bool [T, C]; dense bool [T, C], the labels of the last search, None
    before the first; draw picks snippets for ``feature_loss``.
    """
    expect(
        fused=(fused, "T K"), embedded=(embedded, "T H"), points=(torch.from_numpy(points), "T C"), label=(label, "C")
    )
    labelled = points.any(axis=1)
    background = background_seeds(fused[:, -1].detach().cpu().numpy(), labelled)
    target = F.pad(torch.from_numpy(points).to(fused), (0, 1))
    empty = torch.zeros_like(target)
    empty[:, -1] = 1
    chosen, behind = (torch.from_numpy(mask).to(fused.device) for mask in (labelled, background))
    present = np.flatnonzero(label.cpu().numpy())
    instances = [] if dense is None else find_instances(dense, present, faithful)
    act, bkg = score_losses(fused, instances)
    terms = {
        "vid": video_loss(video_score, label),
        "frame": focal_loss(fused, target, chosen),
        "frame_bkg": focal_loss(fused, empty, behind),
        "score_act": act,
        "score_bkg": bkg,
        "score": (act + bkg).square(),
        "feat": feature_loss(embedded, instances, draw, faithful),
    }
    return {**terms, "total": sum(weight * terms[name] for name, weight in WEIGHTS.items())}


class LACTrainer(Trainer):
    """Trains a LAC: ``step()`` does one iteration and gives its losses by name; see ``shared.Trainer``.

    load: number of a training video -> float32 [T, 2D]; lengths [V]: their T; labels [V, C] 0/1; points: int64 [n, 2] =
    snippet, class of each video, of its own classes (``generators.points``); width is 2D. A video without points learns
    from its label alone. Every ``search_every`` iterations the sequence search labels all videos anew.
    """

    def __init__(
        self,
        load: Load,
        lengths: Sequence[int],
        labels: np.ndarray,
        points: Sequence[np.ndarray],
        width: int,
        seed: int = 0,
        device: Union[str, torch.device] = "cpu",
        settings: Settings = Settings(),
    ):
        if not len(lengths) == len(points) == len(labels):
            raise ValueError(f"{len(lengths)} lengths and {len(points)} lists of points for {len(labels)} videos")
        super().__init__(LAC(width, labels.shape[1], None, settings.dropout, seed), settings, seed, device)
        self.load, self.labels, self.points, self.width = load, labels, points, width
        self.dense: Optional[List[np.ndarray]] = None  # bool [T, C] of each video, from the last search

    def point_label(self, video: int, length: int) -> np.ndarray:
        """bool [T, C]: the points of a training video of ``length`` snippets."""
        snippets, classes = np.asarray(self.points[video], np.int64).reshape(-1, 2).T
        return point_labels(snippets, classes, length, self.labels.shape[1])

    def batch(self, iteration: int) -> np.ndarray:
        """int64 [B]: the videos of an iteration. A new shuffled pass begins when no whole batch is left of the last."""
        size = min(self.settings.batch, len(self.labels))
        number, place = divmod(iteration - 1, len(self.labels) // size)
        order = stream(self.seed, "lac pass", number).permutation(len(self.labels))
        return order[place * size : (place + 1) * size]

    def losses(self, iteration: int) -> Dict[str, Tensor]:
        videos = self.batch(iteration)
        features = [as_input(self.load(v), self.width, self.device) for v in videos]
        lengths = [len(f) for f in features]
        batch = self.network(features)
        if not batch.fused.isfinite().all():  # the cross-entropy would stop in its own way, and on a GPU for good
            raise not_finite("a score", iteration)
        parts = [part.split(lengths) for part in batch]
        rng = stream(self.seed, "lac thirds", iteration)

        def draw(first: np.ndarray, last: np.ndarray) -> np.ndarray:
            return rng.integers(first, last, endpoint=True)

        terms = []
        for v, scores in zip(videos, map(Scores, *parts)):
            label = torch.from_numpy(self.labels[v]).to(scores.fused)
            video_score = video_scores(scores.probability[:, :-1], label)
            points, dense = self.point_label(v, len(scores.fused)), self.dense and self.dense[v]
            terms.append(lac_terms(video_score, scores.fused, scores.embedded, label, points, dense, draw))
        return {name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]}

    def step(self) -> Dict[str, float]:
        values = super().step()
        if self.iteration % self.settings.search_every == 0 and self.iteration < self.iterations:
            self.search()
        return values

    def search(self) -> None:
        """Label every snippet of every training video with the weights as they are."""
        self.dense = []
        for v in range(len(self.labels)):
            fused, _ = lac_scores(self.network, self.load(v))
            self.dense.append(search_labels(fused, self.point_label(v, len(fused)), self.settings.budget)[0])

    def state_dict(self) -> Dict[str, Any]:
        dense = self.dense and [torch.from_numpy(labels) for labels in self.dense]
        return {**super().state_dict(), "dense": dense}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.dense = state["dense"] and [labels.numpy() for labels in state["dense"]]


@torch.no_grad()
def lac_scores(network: LAC, features: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Scores of one whole video, features [T, 2D], without dropout: fused float64 [T, C+1] and video score float64 [C].

    The video score is the mean of the top max(1, T // 8) of P (not of fused); LAC's own is NaN for T < 8.
    """
    device = next(network.parameters()).device
    scores = network.eval()([as_input(features, network.width, device)])
    video_score = mean_of_top(scores.probability[:, :-1], 8)
    return scores.fused.double().cpu().numpy(), video_score.double().cpu().numpy()


def upsample(x: np.ndarray, faithful: bool = False) -> np.ndarray:
    """Values [T, K] of snippets on the fine grid, float64 [24 T, K], linear in between.

    Place u is the time (u + 0.5) / 24 snippets, a snippet's value holds at its centre and the outer ones to the ends.
    faithful: place u is u / 24, a snippet's value holds at its start, and the last 23 places are extrapolated.
    """
    length = len(x)
    if faithful:
        place = np.arange(FINE * length) / FINE
    else:
        place = ((np.arange(FINE * length) + 0.5) / FINE - 0.5).clip(0, length - 1)
    before = place.astype(np.int64).clip(0, max(length - 2, 0))
    after = np.minimum(before + 1, length - 1)
    return x[before] + (x[after] - x[before]) * (place - before)[:, None]


def lac_proposals(
    fused: np.ndarray, video_score: np.ndarray, classes: Optional[Sequence[int]] = None, faithful: bool = False
) -> np.ndarray:
    """All proposals of one video, float64 [n, 4] = start, end, class, score, before any suppression (spec 2.7).

    fused [T, C+1] and video_score [C] of ``lac_scores``; times in snippets, multiples of 1/24. For each class
    (``classes``, or those predicted where None) the runs of its fused score above ten thresholds, scored on what is
    left of it at the threshold, then those of 1 - background at nine thresholds, scored on all of it. Duplicates are
    kept. faithful: see ``upsample`` and ``find_runs``.
    """
    fine = upsample(fused, faithful).T
    action = find_runs(1 - fine[-1] >= ACTION_THRESHOLDS[:, None], faithful)
    found = [np.empty((0, 4))]
    for c in classes_of(video_score, CLASS_THRESHOLD) if classes is None else classes:
        left = np.where(fine[c] < SCORE_THRESHOLDS[:, None], 0, fine[c])
        found.append(proposals_of_class(prefix_sums(left), find_runs(left > 0, faithful), c, video_score[c]))
        found.append(proposals_of_class(prefix_sums(fine[c : c + 1]), action, c, video_score[c], True))
    proposals = np.concatenate(found)
    proposals[:, :2] /= FINE
    return proposals
