"""The six losses of CO2-Net (Hong et al., ACM MM 2021), pure functions of tensors.

B videos of N rows each, C action classes, W = 2D feature width; ``cas`` are logits [B, N, C+1] with background last,
attentions [B, N] in (0, 1). A term with nothing to act on is exactly 0 and so is its gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.shared import mean_of_top
from utils.packed import expect


def suppress(cas: Tensor, attention: Tensor) -> Tensor:
    """Scores with background suppressed [B, N, C+1]: each snippet's lowest logit is what no attention leaves of it."""
    expect(cas=(cas, "B N K"), attention=(attention, "B N"))
    lowest = cas.amin(2, keepdim=True)
    return attention[:, :, None] * (cas - lowest) + lowest


def mil_loss(scores: Tensor, labels: Tensor, background: float, part: int = 7) -> Tensor:
    """Multiple-instance learning [B]: cross-entropy of the mean of each class's top rows and the video's labels.

    scores [B, N, C+1]; labels [B, C] multi-hot; the target is [labels, background] over its sum + 1e-4. The
    top rows of a class are its max(1, N // part) largest scores.
    """
    expect(scores=(scores, "B N K"), labels=(labels, "B C"), actions=(scores[:, :, :-1], "B N C"))
    target = F.pad(labels, (0, 1), value=background)
    target = target / (target.sum(1, keepdim=True) + 1e-4)
    return -(target * mean_of_top(scores, part).log_softmax(1)).sum(1)


def similarity_loss(feat: Tensor, supp: Tensor, labels: Tensor, pairs: int = 3, margin: float = 0.5) -> Tensor:
    """Co-activity similarity: the rows of a shared class look alike in both videos of a pair, and unlike the others.

    feat [B, N, W]; supp [B, N, C+1] of ``suppress``; labels [B, C]. The pairs are videos (0, 1), (2, 3), ...; a class
    counts in a pair where both videos have it. Mean over those; 0 where there is none (W-TALC, 2018, on ``supp``).
    """
    expect(feat=(feat, "B N W"), supp=(supp, "B N K"), labels=(labels, "B C"), actions=(supp[:, :, :-1], "B N C"))
    feat, labels = feat[: 2 * pairs], labels[: 2 * pairs]
    if len(feat) < 2 * pairs:
        raise ValueError(f"{pairs} pairs of {len(feat)} videos")
    weight = supp[: 2 * pairs, :, :-1].softmax(1)
    high = torch.einsum("bnw,bnc->bcw", feat, weight)
    low = torch.einsum("bnw,bnc->bcw", feat, 1 - weight) / max(feat.shape[1] - 1, 1)
    high1, high2, low1, low2 = high[0::2], high[1::2], low[0::2], low[1::2]
    apart = 1 - F.cosine_similarity(high1, high2, dim=2)
    hinges = [
        (apart - (1 - F.cosine_similarity(one, other, dim=2)) + margin).clamp(min=0)
        for one, other in ((high1, low2), (high2, low1))
    ]
    both = labels[0::2] * labels[1::2]
    return (0.5 * (hinges[0] + hinges[1]) * both).sum() / both.sum().clamp(min=1)


def mutual_loss(v_attention: Tensor, f_attention: Tensor) -> Tensor:
    """Either attention [B, N] learns from the other: the value is their MSE, each side gets half its gradient."""
    expect(v_attention=(v_attention, "B N"), f_attention=(f_attention, "B N"))
    return 0.5 * (F.mse_loss(v_attention, f_attention.detach()) + F.mse_loss(f_attention, v_attention.detach()))


def norm_loss(attention: Tensor, v_attention: Tensor, f_attention: Tensor) -> Tensor:
    """Mean of the three attentions [B, N]: few snippets are foreground."""
    expect(attention=(attention, "B N"), v_attention=(v_attention, "B N"), f_attention=(f_attention, "B N"))
    return torch.stack([attention, v_attention, f_attention]).mean()


def guide_loss(cas: Tensor, attention: Tensor, v_attention: Tensor, f_attention: Tensor) -> Tensor:
    """Mean of abs(1 - attention - softmax(cas)_background) over the three attentions [B, N]; cas [B, N, C+1]."""
    expect(cas=(cas, "B N K"), attention=(attention, "B N"))
    expect(attention=(attention, "B N"), v_attention=(v_attention, "B N"), f_attention=(f_attention, "B N"))
    background = cas.softmax(2)[:, :, -1]
    return (1 - torch.stack([attention, v_attention, f_attention]) - background).abs().mean()
