"""CO2-Net (Hong et al., ACM MM 2021): proposals P_w from video labels alone. Network, batches, training, proposals.

T snippets of a video, N rows of each video in a batch of B, C action classes, D width of one modality; features hold
RGB in the first D columns and flow in the others. All times are in snippets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generators.co2net_losses import guide_loss, mil_loss, mutual_loss, norm_loss, similarity_loss, suppress
from generators.shared import (
    Load,
    Trainer,
    as_input,
    classes_of,
    find_runs,
    mean_of_top,
    prefix_sums,
    proposals_of_class,
)
from utils.errors import InputError
from utils.packed import expect
from utils.seeds import stream, torch_stream

THRESHOLDS = np.linspace(0.1, 0.9, 10)  # of the attention, for proposals
BACKGROUND_THRESHOLDS = (0.3, 0.5, 0.7)  # below these lie the background runs of the published training file
CLASS_THRESHOLD = 0.2  # a class whose video score reaches it is predicted
UNUSED = "feat_encoder."  # released checkpoints hold this layer; nothing ever calls it


@dataclass(frozen=True)
class Settings:
    """What training depends on besides data and seed; the defaults are those published for THUMOS14."""

    iterations: int = 5000
    lr: float = 5e-5
    weight_decay: float = 1e-3  # L2, as Adam has it
    rows: int = 500  # N, rows of each video in a batch
    pairs: int = 3  # pairs of videos that share a class
    others: int = 4  # further videos of a batch
    top_part: int = 7  # a class's score in a video is the mean of its N // top_part best rows
    dropout: float = 0.7  # before the classifier and on the fused features
    pooling: int = 0  # kernel of the average pooling of scores (13 for ActivityNet1.2), 0: none
    norm_weight: float = 0.8
    guide_weight: float = 0.8
    similarity_weight: float = 1.0
    mutual_weight: float = 1.0


DEMO = Settings(iterations=800, lr=1e-3, rows=160)  # 100 videos of 60 to 240 snippets, 2D = 128


class Scores(NamedTuple):
    """What the network says of each row."""

    feat: Tensor  # [B, N, 2D] fused features
    cas: Tensor  # [B, N, C+1] logits, the last is background
    attention: Tensor  # [B, N] mean of the next two
    v_attention: Tensor  # [B, N] in (0, 1), with RGB as the main modality
    f_attention: Tensor  # [B, N] the same with flow


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


class ModalityFilter(nn.Module):
    """Cross-modal consensus: one modality filtered by what both say, and the attention it leads to (CO2-Net, 2021)."""

    def __init__(self, width: int):
        super().__init__()
        hidden = max(1, width // 2)
        self.bit_wise_attn = nn.ModuleDict({"0": nn.Conv1d(width, width, 3, padding=1)})
        self.channel_conv = nn.ModuleDict({"0": nn.Conv1d(width, width, 3, padding=1)})
        layers = [(width, 3), (hidden, 3), (hidden, 1)]
        self.attention = nn.ModuleDict(
            {
                name: nn.Conv1d(size, out, kernel, padding=kernel // 2)
                for name, (size, kernel), out in zip("035", layers, (hidden, hidden, 1))
            }
        )

    def forward(self, main: Tensor, auxiliary: Tensor) -> Tuple[Tensor, Tensor]:
        """main, auxiliary [B, D, N] -> filtered main [B, D, N] and attention [B, N] in (0, 1)."""

        def drop(x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

        local = drop(_leaky(self.bit_wise_attn["0"](auxiliary)))
        # The published kernel of 3 meets a sequence of one mean: only its middle tap has something to multiply.
        layer = self.channel_conv["0"]
        whole = drop(_leaky(F.linear(main.mean(2), layer.weight[:, :, 1], layer.bias)))
        filtered = (local * whole[:, :, None]).sigmoid() * main
        hidden = drop(_leaky(self.attention["0"](filtered)))
        logit = self.attention["5"](_leaky(self.attention["3"](hidden)))
        return filtered, drop(logit).squeeze(1).sigmoid()  # in training half the logits are 0, as published


class CO2Net(nn.Module):
    """The network under the names of the released checkpoints; width is D, num_class C.

    Weights are He-uniform and biases 0, drawn from ``seed``. The released files hold an encoder that nothing calls; it
    is not built, and its weights are passed over when loaded.
    """

    def __init__(self, width: int, num_class: int, dropout: float = 0.7, pooling: int = 0, seed: int = 0):
        super().__init__()
        if pooling and pooling % 2 == 0:
            raise ValueError(f"the pooling kernel must be odd or 0, not {pooling}")
        self.width, self.num_class, self.dropout, self.pooling = width, num_class, dropout, pooling
        self.vAttn, self.fAttn = ModalityFilter(width), ModalityFilter(width)
        self.fusion = nn.ModuleDict({"0": nn.Conv1d(2 * width, 2 * width, 1)})
        self.classifier = nn.ModuleDict(
            {"1": nn.Conv1d(2 * width, 2 * width, 3, padding=1), "4": nn.Conv1d(2 * width, num_class + 1, 1)}
        )
        generator = torch_stream(seed, "co2net weights")
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d):
                bound = (6 / (layer.in_channels * layer.kernel_size[0])) ** 0.5
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Scores:
        """features [B, N, 2D], RGB first -> the scores of every row. ValueError for another width."""
        if features.ndim != 3 or features.shape[2] != 2 * self.width or not features.shape[1]:
            raise ValueError(f"features must be [B, N, {2 * self.width}], not {list(features.shape)}")
        v, f = features.transpose(1, 2).split(self.width, 1)
        (v_filtered, v_attention), (f_filtered, f_attention) = self.vAttn(v, f), self.fAttn(f, v)
        feat = _leaky(self.fusion["0"](torch.cat([v_filtered, f_filtered], 1)))
        feat = F.dropout(feat, self.dropout, self.training)
        hidden = _leaky(self.classifier["1"](F.dropout(feat, self.dropout, self.training)))
        cas = self.classifier["4"](F.dropout(hidden, 0.7, self.training))
        if self.pooling:
            together = torch.cat([cas, v_attention[:, None], f_attention[:, None]], 1)
            together = F.avg_pool1d(together, self.pooling, 1, self.pooling // 2)
            cas, v_attention, f_attention = together[:, :-2], together[:, -2], together[:, -1]
        attention = (v_attention + f_attention) / 2
        return Scores(feat.transpose(1, 2), cas.transpose(1, 2), attention, v_attention, f_attention)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        used = {name: value for name, value in state_dict.items() if not name.startswith(UNUSED)}
        return super().load_state_dict(used, *args, **kwargs)


def co2net_terms(scores: Scores, labels: Tensor, settings: Settings) -> Dict[str, Tensor]:
    """The six losses by name without their weights, and "total" with them (CO2-Net, 2021); labels [B, C] multi-hot."""
    feat, cas, attention, v_attention, f_attention = scores
    supp = suppress(cas, attention)
    terms = {
        "mil_orig": mil_loss(cas, labels, 1, settings.top_part).mean(),
        "mil_supp": mil_loss(supp, labels, 0, settings.top_part).mean(),
        "similarity": similarity_loss(feat, supp, labels, settings.pairs),
        "mutual": mutual_loss(v_attention, f_attention),
        "norm": norm_loss(attention, v_attention, f_attention),
        "guide": guide_loss(cas, attention, v_attention, f_attention),
    }
    weights = {name: getattr(settings, f"{name}_weight", 1.0) for name in terms}
    return {**terms, "total": sum(weights[name] * term for name, term in terms.items())}


def sample_rows(length: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [rows]: one snippet of 0..length-1 for each of ``rows`` equal bins, drawn uniformly (spec 1.2).

    Both ends of bin [floor(iT/N), floor((i+1)T/N)] belong to it, so its right end is the first snippet of the next
    bin; the last bin ends at T - 1. A video of exactly ``rows`` snippets stays as it is.
    """
    if length == rows:
        return np.arange(rows)
    edges = np.arange(rows + 1) * length // rows
    return rng.integers(edges[:-1], np.minimum(edges[1:], length - 1), endpoint=True)


def draw_batch(labels: np.ndarray, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """int64 [B]: the videos of a batch: ``pairs`` times two different ones of a random class, then ``others`` of all.

    labels [V, C] multi-hot; every class has two videos or more (``CO2NetTrainer`` sees to it).
    """
    classes = rng.integers(labels.shape[1], size=settings.pairs)
    pairs = [rng.choice(np.flatnonzero(labels[:, c]), 2, replace=False) for c in classes]
    return np.concatenate([*pairs, rng.integers(len(labels), size=settings.others)])


class CO2NetTrainer(Trainer):
    """Trains a CO2-Net: ``step()`` does one iteration and gives its losses by name; see ``shared.Trainer``.

    load: number of a training video -> float32 [T, 2D]; labels [V, C] multi-hot, the only annotation that is used;
    width is 2D; names of the C classes are for messages. InputError for a class with fewer than two videos.
    """

    def __init__(
        self,
        load: Load,
        labels: np.ndarray,
        width: int,
        seed: int = 0,
        device: Union[str, torch.device] = "cpu",
        settings: Settings = Settings(),
        names: Optional[Sequence[str]] = None,
    ):
        few = np.flatnonzero((labels > 0).sum(axis=0) < 2)
        if len(few):
            name = names[few[0]] if names is not None else f"number {few[0]}"
            todo = "CO2-Net compares pairs of them: add videos or leave the class out"
            raise InputError(f"class {name} has fewer than two training videos", None, todo)
        network = CO2Net(width // 2, labels.shape[1], settings.dropout, settings.pooling, seed)
        super().__init__(network, settings, seed, device)
        self.load, self.labels, self.width = load, labels, width

    def batch(self, iteration: int) -> Tuple[Tensor, Tensor]:
        """The batch of an iteration: features [B, N, 2D] and labels [B, C], float32 on the device."""
        rng = stream(self.seed, "co2net batch", iteration)
        videos = draw_batch(self.labels, self.settings, rng)
        rows = []
        for video in videos:
            features = as_input(self.load(video), self.width, torch.device("cpu"))
            rows.append(features[sample_rows(len(features), self.settings.rows, rng)])
        labels = torch.from_numpy(self.labels[videos]).float()
        return torch.stack(rows).to(self.device), labels.to(self.device)

    def losses(self, iteration: int) -> Dict[str, Tensor]:
        features, labels = self.batch(iteration)
        return co2net_terms(self.network(features), labels, self.settings)


@torch.no_grad()
def co2net_scores(network: CO2Net, features: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Scores of one video without dropout: features [T, 2D] -> cas float64 [T, C+1] logits, attention float64 [T]."""
    device = next(network.parameters()).device
    scores = network.eval()(as_input(features, 2 * network.width, device)[None])
    return scores.cas[0].double().cpu().numpy(), scores.attention[0].double().cpu().numpy()


def co2net_video_score(cas: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Video score [C]: softmax over C+1 of the mean of the top max(1, T // 10) of cas [T, C+1] * attention [T]."""
    expect(cas=(torch.from_numpy(cas), "T K"), attention=(torch.from_numpy(attention), "T"))
    x = torch.from_numpy(cas * attention[:, None])
    return mean_of_top(x, 10).softmax(0)[:-1].numpy()


def co2net_proposals(
    cas: np.ndarray,
    attention: np.ndarray,
    classes: Optional[Sequence[int]] = None,
    background_runs: bool = False,
    faithful: bool = False,
) -> np.ndarray:
    """All proposals of one video, float64 [n, 4] = start, end, class, score, before any suppression (spec 1.5).

    cas [T, C+1] logits; attention [T] in (0, 1). For each class (``classes``, or those predicted where None) the runs
    of attention above ten thresholds, by threshold and then by time, duplicates kept; ``background_runs`` adds those
    of attention below 0.3, 0.5 and 0.7, as in the published training file. A video whose attention stays at or below
    0.1 has no foreground run. faithful: see ``find_runs``.
    """
    video_score = co2net_video_score(cas, attention)
    mask = attention > THRESHOLDS[:, None]
    if background_runs:
        mask = np.concatenate([mask, attention < np.array(BACKGROUND_THRESHOLDS)[:, None]])
    runs = find_runs(mask, faithful)
    # Training multiplies after subtracting the lowest logit; for proposals the published product is plain.
    sums = prefix_sums((cas * attention[:, None]).T)
    predicted = classes_of(video_score, CLASS_THRESHOLD) if classes is None else classes
    found = [proposals_of_class(sums[c : c + 1], runs, c, video_score[c], rows_share_values=True) for c in predicted]
    return np.concatenate([np.empty((0, 4)), *found])
