"""The losses of SEAL, one function per equation of the paper (AAAI 2025): tensors, masks and numbers in, a scalar out.

Everywhere N = sum(counts) proposals of B videos are packed (utils/packed.py), C action classes, 2D feature width;
times are in snippets. A term with nothing to act on is exactly 0 and so is its gradient. Nothing waits for the device.
Only ``weights`` and ``seal_terms`` read a recipe (options.py).
"""

from __future__ import annotations

import math
from typing import Dict, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from options import Recipe
from utils.packed import (
    BLOCK,
    Batch,
    Outputs,
    distance_to_mean,
    expect,
    first_rows,
    pad,
    segment_max,
    segment_mean,
    segment_sum,
)

NONE, MODERATE, HIGH = 0, 1, 2  # confidence of a pseudo-label


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` where ``mask`` (same shape, bool) holds; exactly 0 where it never does."""
    return x.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def mil_loss(scores: Tensor, labels: Tensor, video: Tensor, counts: Sequence[int], k: int = 8) -> Tensor:
    """L_cls of one kind of scores: multiple-instance learning over the proposals of each video (P-MIL, 2023).

    scores [N, K] logits, labels [B, K] multi-hot: per class the mean of the top max(1, M // k) of a video's M
    scores, then softmax cross-entropy against labels / (their sum + 1e-4), mean over the videos.
    """
    expect(counts, scores=(scores, "N K"), labels=(labels, "B K"), video=(video, "N"))
    size = segment_sum(torch.ones_like(video), video, len(counts))
    kept = size.div(k, rounding_mode="floor").clamp(min=1)[:, None, None]
    top = pad(scores, video, counts, -math.inf).topk(max(1, max(counts) // k), dim=1).values
    rank = torch.arange(top.shape[1], device=top.device)[None, :, None]
    video_score = (top.masked_fill(rank >= kept, 0) / kept).sum(1)
    target = labels / (labels.sum(1, keepdim=True) + 1e-4)
    return -(target * video_score.log_softmax(1)).sum(1).mean()


def pseudo_labels(video_mean: Tensor, appearance: Tensor, motion: Tensor) -> Tuple[Tensor, Tensor]:
    """Eq. (5)-(7): the class of each video by its similarity to the descriptors, and how sure that is.

    video_mean [B, 2D] temporal mean of the features, RGB first; appearance, motion [C, D] descriptors ->
    pseudo_label int64 [B], the class of the mean of both scores, and confidence int64 [B]: HIGH where both
    modalities name the same class, MODERATE where the mean agrees with one of them, NONE otherwise.
    """
    expect(appearance=(appearance, "C D"), motion=(motion, "C D"))
    expect(video_mean=(video_mean, "B 2D"), descriptors=(torch.cat([appearance, motion], 1), "C 2D"))
    s_ap, s_mo = (
        F.linear(F.normalize(f, dim=1), F.normalize(d, dim=1)).softmax(1)
        for f, d in zip(video_mean.double().chunk(2, 1), (appearance.double(), motion.double()))
    )
    by_ap, by_mo, label = s_ap.argmax(1), s_mo.argmax(1), (s_ap + s_mo).argmax(1)
    either = (label == by_ap) | (label == by_mo)
    return label, torch.where(by_ap == by_mo, torch.full_like(label, HIGH), either.long() * MODERATE)


def video_probability(s_base: Tensor, attention: Tensor, video: Tensor, videos: int, attend: bool = True) -> Tensor:
    """p of Eq. (9) [B, C]: mean over a video's proposals of softmax(s_base [N, C+1] without background), times A [N]
    where ``attend``."""
    expect(s_base=(s_base, "N K"), attention=(attention, "N"), video=(video, "N"))
    probability = s_base[:, :-1].softmax(1)
    return segment_mean(probability * attention[:, None] if attend else probability, video, videos)


def sme_loss(p: Tensor, pseudo_label: Tensor, confidence: Tensor, moderate: float) -> Tensor:
    """L_SME, Eq. (8): MSE of p [B, C] and the one-hot pseudo-label over the high-confidence videos, plus ``moderate``
    times that over the moderate ones (pseudo_label, confidence int64 [B])."""
    expect(p=(p, "B C"), pseudo_label=(pseudo_label, "B"), confidence=(confidence, "B"))
    onehot = pseudo_label[:, None] == torch.arange(p.shape[1], device=p.device)
    mse = (p - onehot.to(p)).square().mean(1)
    return masked_mean(mse, confidence == HIGH) + moderate * masked_mean(mse, confidence == MODERATE)


@torch.no_grad()
def match_pseudo_true(
    proposals: Tensor, attention: Tensor, video: Tensor, counts: Sequence[int], gamma: float
) -> Tuple[Tensor, Tensor]:
    """The pseudo-true instance of each proposal: of those of its video with A >= gamma max A, the one of highest tIoU.

    proposals [N, 2] snippets, attention [N] -> row of the instance int64 [N] (the first one of equal tIoU) and
    overlaps bool [N], whether there is one that overlaps at all. Instances are walked in blocks of at most BLOCK pairs.
    """
    expect(counts, proposals=(proposals, "N 2"), attention=(attention, "N"), video=(video, "N"))
    instance = attention >= gamma * segment_max(attention, video, counts).index_select(0, video)
    start, end = proposals.unbind(1)
    length = end - start
    # What is no instance begins at infinity, as padding does, and so overlaps nothing.
    begins = pad(start.masked_fill(~instance, math.inf), video, counts, math.inf)
    ends, lengths = pad(end, video, counts, 0), pad(length, video, counts, 0)
    best, place = torch.zeros_like(start), torch.zeros_like(video)
    step = max(1, BLOCK // len(video))
    for first in range(0, max(counts), step):
        b, e, other = (x[:, first : first + step].index_select(0, video) for x in (begins, ends, lengths))
        common = torch.minimum(end[:, None], e).sub_(torch.maximum(start[:, None], b)).clamp_(min=0)
        union = other.add_(length[:, None]).sub_(common).clamp_(min=torch.finfo(length.dtype).tiny)
        tiou, at = common.div_(union).max(1)
        place = torch.where(tiou > best, at + first, place)
        best = torch.maximum(best, tiou)
    return first_rows(video, len(counts)).index_select(0, video) + place, best > 0


def pc_loss(
    s_pc: Tensor,
    proposals: Tensor,
    matched: Tensor,
    overlaps: Tensor,
    video: Tensor,
    counts: Sequence[int],
    centre: float = 1.0,
    distance: float = 1.0,
    penalty: float = 1.0,
    all_pairs: bool = False,
) -> Tensor:
    """L_pc, Eq. (10), a mean over the V proposals of the batch that overlap a pseudo-true instance G.

    s_pc [N], proposals [N, 2] snippets, matched int64 [N] and overlaps bool [N] from match_pseudo_true. The factors of
    the three parts are centre, distance and penalty. c_i = (s1 + s2)/2 + s_pc,i (e1 - s2)/2 with s1, s2 the smaller
    and larger start and e1 the smaller end of proposal and instance. ``all_pairs``: the centre part is
    sum_i sum_j smooth_l1(c_ij - C_G,j) / V over the pairs of each video, score of i with geometry of j.
    """
    expect(counts, s_pc=(s_pc, "N"), proposals=(proposals, "N 2"), video=(video, "N"))
    expect(counts, matched=(matched, "N"), overlaps=(overlaps, "N"))
    start, end = proposals.to(s_pc.dtype).unbind(1)
    g_start, g_end = start.index_select(0, matched), end.index_select(0, matched)
    s1, s2, e1 = torch.minimum(start, g_start), torch.maximum(start, g_start), torch.minimum(end, g_end)
    g_centre, slope, common = (g_start + g_end) / 2, (e1 - s2) / 2, (e1 - s2).clamp(min=1e-6)
    offset = (s1 + s2) / 2 - g_centre  # c_ij - C_G,j = offset_j + slope_j s_pc,i
    if all_pairs:
        padded = (pad(x, video, counts, 0) for x in (s_pc, offset, slope, overlaps))
        centres = smooth_l1_all_pairs(*padded) / overlaps.sum().clamp(min=1)
    else:
        centres = masked_mean(_smooth_l1(offset + slope * s_pc), overlaps)
    apart = _smooth_l1(((start + end) / 2 - g_centre).abs() / common)
    short = (1 - s_pc) * (common < 0.5 * (g_end - g_start))
    return centre * centres + masked_mean(distance * apart + penalty * short, overlaps)


def _smooth_l1(x: Tensor) -> Tensor:
    """x^2 / 2 where |x| < 1, else |x| - 1/2 (Girshick, 2015)."""
    return F.smooth_l1_loss(x, torch.zeros_like(x), reduction="none")


def smooth_l1_all_pairs(x: Tensor, offset: Tensor, slope: Tensor, mask: Tensor) -> Tensor:
    """sum_i sum_j smooth_l1(offset_j + slope_j x_i) over i, j of one row where ``mask``, then over the rows, in
    O(N log N); all [B, L], slope > 0 where ``mask``.

    As a function of x the inner sum is the same for every i: quadratic between neighbouring knots, the places where one
    of its parts turns from falling line to parabola or from parabola to rising line. Prefix sums of the turns give the
    coefficients of each interval; they are float64, because they cancel.
    """
    expect(x=(x, "B L"), offset=(offset, "B L"), slope=(slope, "B L"), mask=(mask, "B L"))
    with torch.no_grad():
        k, b, use = offset.double(), slope.double().masked_fill(~mask, 1), mask.double()
        falling = torch.stack([0 * b, -b, -k - 0.5]) * use  # coefficients of x^2, x, 1
        parabola = torch.stack([b * b / 2, b * k, k * k / 2]) * use
        rising = torch.stack([0 * b, b, k - 0.5]) * use
        knots, order = torch.cat([(-1 - k) / b, (1 - k) / b], 1).sort(1)
        turns = torch.cat([parabola - falling, rising - parabola], 2).gather(2, order.expand(3, -1, -1))
        pieces = torch.cat([falling.sum(2, keepdim=True), turns], 2).cumsum(2)
        interval = torch.searchsorted(knots, x.detach().double())
        square, linear, constant = pieces.gather(2, interval.expand(3, -1, -1))
    inner = (square * x.double() + linear) * x.double() + constant
    return inner.masked_fill(~mask, 0).sum().to(x.dtype)


def st_loss(
    f_prop: Tensor,
    s_base: Tensor,
    s_supp: Tensor,
    labels: Tensor,
    video: Tensor,
    counts: Sequence[int],
    first_class: bool = False,
) -> Tensor:
    """L_st, Eq. (11): distance of the proposals N_c to the soft local descriptor, the mean of the proposals S_c.

    f_prop [N, 2D]; s_base, s_supp [N, C+1]; labels [B, C]. S_c holds the proposals of a video whose best action class
    is c in both scores, N_c those where it is c in either. Mean over N_c, then over the video's classes that have an
    S_c, then over the videos that have such a class. ``first_class``: the first class of each video alone, and one
    mean over all N_c of the batch.
    """
    expect(counts, f_prop=(f_prop, "N 2D"), s_base=(s_base, "N K"), s_supp=(s_supp, "N K"), video=(video, "N"))
    expect(counts, labels=(labels, "B C"), actions=(s_base[:, :-1], "N C"))
    wanted = labels > 0
    if first_class:
        wanted = wanted & (wanted.cumsum(1) == 1)
    nobody = wanted.numel()  # the group of whatever takes no part
    base, supp = (video * labels.shape[1] + s[:, :-1].argmax(1) for s in (s_base, s_supp))
    agree = base == supp
    base, supp = (g.masked_fill(~wanted.flatten().index_select(0, g), nobody) for g in (base, supp))
    both, supp_alone = base.masked_fill(~agree, nobody), supp.masked_fill(agree, nobody)
    either = torch.stack([base, supp_alone])  # a proposal on which the scores disagree is in two N_c
    distance = distance_to_mean(f_prop, both, either, nobody + 1)

    def per_class(x: Tensor, group: Tensor) -> Tensor:
        return segment_sum(x.flatten(), group.flatten(), nobody + 1)[:-1].reshape(labels.shape)

    has_s = per_class(torch.ones_like(both), both) > 0
    total = per_class(distance, either).masked_fill(~has_s, 0)
    size = per_class(torch.ones_like(either), either).masked_fill(~has_s, 0)
    if first_class:
        return total.sum() / size.sum().clamp(min=1)
    per_video = (total / size.clamp(min=1)).sum(1) / has_s.sum(1).clamp(min=1)
    return masked_mean(per_video, has_s.any(1))


def consistency_loss(s_base: Tensor, s_supp: Tensor, video: Tensor, videos: int) -> Tensor:
    """L_c, Eq. (12): MSE of the softmaxes over the C actions of s_base and s_supp [N, C+1], mean over each video's
    proposals, then over the videos."""
    expect(s_base=(s_base, "N K"), s_supp=(s_supp, "N K"), video=(video, "N"))
    error = (s_base[:, :-1].softmax(1) - s_supp[:, :-1].softmax(1)).square().mean(1)
    return segment_mean(error, video, videos).mean()


def sc_loss(l_st: Tensor, l_c: Tensor, alpha: float) -> Tensor:
    """L_sc, Eq. (13)."""
    return alpha * l_st + l_c


def weights(recipe: Recipe, epoch: int, max_epoch: int) -> Dict[str, float]:
    """The schedule at ``epoch`` (from 1): lambda_sme, lambda_pc, lambda_sc of Eq. (14), alpha of Eq. (13) and
    ``moderate``, what stands before the second mean of Eq. (8)."""
    rise = epoch / recipe.sme_until
    if recipe.sme_schedule == "linear":
        lambda_sme = max(0.0, 1 - rise)
    else:
        lambda_sme = math.exp(-0.05 * rise) * (1 - math.exp(-10 * rise)) if epoch <= recipe.sme_until else 0.0
    return {
        "lambda_sme": lambda_sme,
        "lambda_pc": recipe.lambda_pc,
        "lambda_sc": math.exp(-epoch / recipe.sc_decay) if epoch <= recipe.sc_until else 0.0,
        "moderate": recipe.sme_moderate * (1 - epoch / max_epoch),
        "alpha": recipe.alpha_start + recipe.alpha_gain * epoch / recipe.alpha_epochs,
    }


def seal_terms(
    outputs: Outputs,
    batch: Batch,
    recipe: Recipe,
    epoch: int,
    max_epoch: int,
    k: int = 8,
    losses: Sequence[str] = ("sme", "pc", "sc"),
    sme_labels: str = "high+moderate",
) -> Dict[str, Tensor]:
    """All terms by the authors' names, ``loss_total`` of Eq. (14) first.

    loss_prop_mil_orig and loss_prop_mil_supp carry their weights 1 and 0.5; SME_loss, PC_loss and SC_loss are
    unweighted and are there if ``losses`` (of "sme", "pc", "sc") names them. sme_labels: "high" or "high+moderate". A
    term whose weight is 0 at this epoch is computed without gradient. float16 and bfloat16 outputs are taken as
    float32. ValueError where shapes disagree or a name is unknown.
    """
    if not set(losses) <= {"sme", "pc", "sc"} or sme_labels not in ("high", "high+moderate"):
        raise ValueError(f"unknown losses {sorted(losses)} or sme_labels {sme_labels!r}")
    half = (torch.float16, torch.bfloat16)
    s_base, attention, s_pc, f_prop = (x.float() if x.dtype in half else x for x in outputs)
    proposals, video, counts = batch.proposals, batch.video, batch.counts
    expect(counts, s_base=(s_base, "N C+1"), attention=(attention, "N"), labels=(batch.labels, "B C"))
    weight = weights(recipe, epoch, max_epoch)
    labels, s_supp = batch.labels.to(s_base.dtype), s_base * attention[:, None]
    action, background = (torch.cat([labels, torch.full_like(labels[:, :1], y)], 1) for y in (0, 1))

    def sme() -> Tensor:
        p = video_probability(s_base, attention, video, len(counts), attend=recipe.sme_attention)
        moderate = weight["moderate"] if sme_labels == "high+moderate" else 0.0
        return sme_loss(p, batch.pseudo_label, batch.confidence, moderate)

    def pc() -> Tensor:
        matched, overlaps = match_pseudo_true(proposals, attention, video, counts, recipe.gamma)
        factors = recipe.pc_centre, recipe.pc_distance, recipe.pc_penalty
        return pc_loss(s_pc, proposals, matched, overlaps, video, counts, *factors, recipe.pc_all_pairs)

    def sc() -> Tensor:
        l_st = st_loss(f_prop, s_base, s_supp, labels, video, counts, first_class=recipe.st_first_class)
        return sc_loss(l_st, consistency_loss(s_base, s_supp, video, len(counts)), weight["alpha"])

    terms = {
        "loss_prop_mil_orig": mil_loss(s_base, background, video, counts, k),
        "loss_prop_mil_supp": 0.5 * mil_loss(s_supp, action, video, counts, k),
    }
    total = terms["loss_prop_mil_orig"] + terms["loss_prop_mil_supp"]
    for name, term in (("sme", sme), ("pc", pc), ("sc", sc)):
        if name in losses:
            factor = weight[f"lambda_{name}"]
            with torch.set_grad_enabled(torch.is_grad_enabled() and factor != 0):
                terms[f"{name.upper()}_loss"] = value = term()
            total = total + factor * value if factor != 0 else total
    return {"loss_total": total, **terms}
