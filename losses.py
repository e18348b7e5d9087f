"""The losses of SEAL, one function per equation of the paper (AAAI 2025): tensors, masks and numbers in, a scalar out.

Everywhere N proposals of B videos are packed (utils/packed.py), C action classes, 2D feature width; times are in
snippets. A term with nothing to act on is exactly 0 and so is its gradient. Nothing waits for the device. A new loss is
a function here, its numbers in options.py, and a row of TERMS below.
"""

from __future__ import annotations

import math
from typing import Callable, Dict, FrozenSet, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from options import Recipe
from utils.packed import BLOCK, Batch, Outputs, Packing, expect, group_sum, pad, video_mean

MODERATE, HIGH = 1, 2  # confidence of a pseudo-label; 0: none
PADDING_DRAWS = 32  # rows that stand for all that pad a batch: each has a dropout of its own in the authors' code


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` where ``mask`` (same shape, bool) holds; exactly 0 where it never does."""
    return x.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def smooth_l1(x: Tensor) -> Tensor:
    """x^2 / 2 where |x| < 1, else |x| - 1/2 (Girshick, 2015)."""
    return F.smooth_l1_loss(x, x.new_zeros(()).expand_as(x), reduction="none")


def mil_loss(scores: Tensor, labels: Tensor, packing: Packing, k: int = 8) -> Tensor:
    """L_cls of S kinds of scores [S]: multiple-instance learning over the proposals of each video (P-MIL, 2023).

    scores [N, S, K] logits, labels [B, S, K] multi-hot: per class the mean of the top max(1, M // k) of a video's M
    scores, then softmax cross-entropy against labels / (their sum + 1e-4), mean over the videos.
    """
    expect(packing, scores=(scores, "N S K"), labels=(labels, "B S K"))
    kept = packing.size.div(k, rounding_mode="floor").clamp_(min=1)[:, None, None, None]
    top = pad(scores, packing, -math.inf).topk(max(1, max(packing.counts) // k), dim=1).values
    rank = torch.arange(top.shape[1], device=top.device)[:, None, None]
    video_score = top.masked_fill(rank >= kept, 0).sum(1) / kept[:, 0]
    target = labels / (labels.sum(2, keepdim=True) + 1e-4)
    return -(target * video_score.log_softmax(2)).sum(2).mean(0)


def pseudo_labels(means: Tensor, *descriptors: Tensor) -> Tuple[Tensor, Tensor]:
    """Eq. (5)-(7): the class of each video by its similarity to the descriptors, and how sure that is.

    means [B, 2D] temporal mean of the features, RGB first; descriptors [C, D] of appearance and of motion (or of one
    modality) -> pseudo_label int64 [B], the class of the mean of the modalities' scores, and confidence int64 [B]: HIGH
    where all modalities name the same class, MODERATE where the mean agrees with one of them, 0 otherwise.
    """
    expect(means=(means, "B 2D"), descriptors=(torch.cat(descriptors, 1), "C 2D"))
    parts = means.double().split([d.shape[1] for d in descriptors], 1)
    scores = torch.stack(
        [F.linear(F.normalize(f, dim=1), F.normalize(d.double(), dim=1)).softmax(1) for f, d in zip(parts, descriptors)]
    )
    label, named = scores.sum(0).argmax(1), scores.argmax(2)
    same, either = (named == named[0]).all(0), (named == label).any(0)
    return label, torch.where(same, torch.full_like(label, HIGH), either.long() * MODERATE)


def video_probability(s_base: Tensor, attention: Tensor, packing: Packing, attend: bool = True) -> Tensor:
    """p of Eq. (9) [B, C]: mean over a video's proposals of softmax(s_base [N, C+1] without background), times A [N]
    where ``attend``."""
    expect(packing, s_base=(s_base, "N K"), attention=(attention, "N"))
    probability = s_base[:, :-1].softmax(1)
    return video_mean(probability * attention[:, None] if attend else probability, packing)


def sme_loss(p: Tensor, pseudo_label: Tensor, confidence: Tensor, moderate: float) -> Tensor:
    """L_SME, Eq. (8): MSE of p [B, C] and the one-hot pseudo-label over the high-confidence videos, plus ``moderate``
    times that over the moderate ones (pseudo_label, confidence int64 [B])."""
    expect(p=(p, "B C"), pseudo_label=(pseudo_label, "B"), confidence=(confidence, "B"))
    onehot = pseudo_label[:, None] == torch.arange(p.shape[1], device=p.device)
    mse = F.mse_loss(p, onehot.to(p), reduction="none").mean(1)
    high, middle = (x / x.sum(dtype=p.dtype).clamp(min=1) for x in (confidence == HIGH, confidence == MODERATE))
    return (mse * (high + moderate * middle)).sum()


@torch.no_grad()
def match_pseudo_true(proposals: Tensor, attention: Tensor, packing: Packing, gamma: float) -> Tuple[Tensor, Tensor]:
    """The pseudo-true instance of each proposal: of those of its video with A >= gamma max A, the one of highest tIoU.

    proposals [N, 2] snippets, attention [N] -> row of the instance int64 [N] (the first one of equal tIoU) and
    overlaps bool [N], whether there is one that overlaps at all. Instances are walked in blocks of at most BLOCK pairs.
    """
    expect(packing, proposals=(proposals, "N 2"), attention=(attention, "N"))
    video, (start, end) = packing.video, proposals.unbind(1)
    length = (end - start).clamp_(min=torch.finfo(start.dtype).tiny)  # so that no union is 0
    each = pad(attention, packing, -math.inf)
    no_instance = each < gamma * each.amax(1, keepdim=True)
    begins, ends = pad(proposals, packing, 0).unbind(2)
    # What is no instance begins at infinity and so overlaps nothing.
    begins = begins.masked_fill(no_instance, math.inf)
    step = max(1, (8 * BLOCK if video.is_cuda else BLOCK) // len(video))  # a card's memory is fast, a CPU's cache small
    best, place = length, video  # of the blocks so far
    for number, instances in enumerate(zip(begins.split(step, 1), ends.split(step, 1))):
        b, e = (x.index_select(0, video) for x in instances)
        common = torch.minimum(end[:, None], e).sub_(torch.maximum(start[:, None], b)).clamp_(min=0)
        union = e.sub_(b).add_(length[:, None]).sub_(common)
        tiou, at = common.div_(union).max(1)
        if number:
            at = torch.where(tiou > best, at + number * step, place)
            tiou = torch.maximum(best, tiou)
        best, place = tiou, at
    return packing.first.index_select(0, video) + place, best > 0


def pc_loss(
    s_pc: Tensor,
    proposals: Tensor,
    matched: Tensor,
    overlaps: Tensor,
    packing: Packing,
    factors: Tuple[float, float, float] = (1.0, 1.0, 1.0),
    all_pairs: bool = False,
) -> Tensor:
    """L_pc, Eq. (10), a mean over the V proposals of the batch that overlap a pseudo-true instance G.

    s_pc [N], proposals [N, 2] snippets, matched int64 [N] and overlaps bool [N] from match_pseudo_true. factors: of
    the centre, distance and penalty parts. ``all_pairs``: the centre part is sum_i sum_j smooth_l1(c_ij, C_G,j) / V
    over the pairs of each video, score of i with geometry of j.
    """
    expect(packing, s_pc=(s_pc, "N"), proposals=(proposals, "N 2"), matched=(matched, "N"), overlaps=(overlaps, "N"))
    proposals = proposals.to(s_pc.dtype)
    instance = proposals.index_select(0, matched)
    (start, _), (g_start, g_end) = proposals.unbind(1), instance.unbind(1)
    s1, e1 = torch.minimum(proposals, instance).unbind(1)
    s2, centre, g_centre = torch.maximum(start, g_start), proposals.mean(1), instance.mean(1)
    middle, common, g_length = (s1 + s2) / 2, e1 - s2, g_end - g_start

    def centre_part(score: Tensor, middle: Tensor, common: Tensor, g_centre: Tensor) -> Tensor:
        c = torch.addcmul(middle, score, common, value=0.5)  # c_i = (s1 + s2) / 2 + s_pc,i (e1 - s2) / 2
        return smooth_l1(c - g_centre)

    if all_pairs:
        pairs = _pairs(packing, torch.stack([middle, common, g_centre], 1) * overlaps[:, None])
        rows = [centre_part(s_pc[i, None], *of_j).sum(1) for i, *of_j in pairs]
        centres = torch.cat(rows) if len(rows) > 1 else rows[0]
    else:
        centres = centre_part(s_pc, middle, common, g_centre)
    i = common.clamp(min=1e-6)
    distances = smooth_l1((centre - g_centre).abs() / i)
    penalties = (1 - s_pc) * (i < 0.5 * g_length)
    return masked_mean(factors[0] * centres + factors[1] * distances + factors[2] * penalties, overlaps)


def _pairs(packing: Packing, columns: Tensor):
    """For proposals i (a slice) what the columns [N, K] hold of every proposal j of the same video, [n, L] or [1, L]
    each, 0 where there is none: of all at once, or video by video where all pairs of the batch would be too many."""
    if packing.videos * max(packing.counts) ** 2 <= 8 * BLOCK:
        tables = pad(columns, packing, 0).transpose(1, 2)
        yield slice(None), *tables.index_select(0, packing.video).unbind(1)
    else:
        first = 0
        for count in packing.counts:
            i, first = slice(first, first + count), first + count
            yield i, *columns[i].t()[:, None]


def st_loss(
    f_prop: Tensor,
    s_base: Tensor,
    s_supp: Tensor,
    labels: Tensor,
    video: Tensor,
    weight: Optional[Tensor] = None,
    first_class: bool = False,
) -> Tensor:
    """L_st, Eq. (11): distance of the proposals N_c to the soft local descriptor, the mean of the proposals S_c.

    f_prop [N, 2D]; s_base, s_supp [N, C+1]; labels [B, C]; video int64 [N]; weight [N]: how many proposals each row
    stands for (None: one). S_c holds the proposals of a video whose best action class is c in both scores, N_c those
    where it is c in either. Mean over N_c, then over the video's classes that have an S_c, then over the videos that
    have such a class. ``first_class``: the first class of each video alone, and one mean over all N_c of the batch.
    """
    expect(f_prop=(f_prop, "N 2D"), s_base=(s_base, "N K"), s_supp=(s_supp, "N K"), video=(video, "N"))
    expect(labels=(labels, "B C"), actions=(s_base[:, :-1], "N C"))
    weight = f_prop.new_ones(len(f_prop)) if weight is None else weight
    base, supp = (s[:, :-1].argmax(1) for s in (s_base, s_supp))
    if first_class:  # a group for each video
        c = labels.argmax(1).index_select(0, video)
        in_base, in_supp, wanted = base == c, supp == c, labels.amax(1) > 0
        base, in_both, in_either = video, weight * (in_base & in_supp), weight * (in_base | in_supp)
    else:  # for each class of each video; where base and supp differ, a proposal is in two N_c
        base, supp, wanted = video * labels.shape[1] + base, video * labels.shape[1] + supp, labels.flatten() > 0
        in_both = weight * (base == supp)
    size = group_sum(in_both, base, len(wanted))
    descriptor = group_sum(f_prop * in_both[:, None], base, len(wanted)) / size.clamp(min=1e-6)[:, None]
    has_descriptor = wanted & (size > 0)

    def distances(group: Tensor, counted: Tensor) -> Tuple[Tensor, Tensor]:
        counted = counted * has_descriptor.index_select(0, group)
        apart = torch.linalg.vector_norm(f_prop - descriptor.index_select(0, group), dim=1)
        return apart * counted, counted

    if first_class:
        distance, count = distances(video, in_either)
        return distance.sum() / count.sum().clamp(min=1e-6)
    distance, count = (
        group_sum(x, base, len(wanted)).index_add(0, supp, y)
        for x, y in zip(distances(base, weight), distances(supp, weight - in_both))
    )
    per_class = (distance / count.clamp(min=1e-6)).reshape(labels.shape)
    classes = has_descriptor.reshape(labels.shape).sum(1)
    return masked_mean(per_class.sum(1) / classes.clamp(min=1), classes > 0)


def consistency_loss(
    s_base: Tensor, s_supp: Tensor, video: Tensor, videos: int, weight: Optional[Tensor] = None
) -> Tensor:
    """L_c, Eq. (12): MSE of the softmaxes over the C actions of s_base and s_supp [N, C+1], mean over each video's
    rows, weight [N] each (None: 1), then over the videos."""
    expect(s_base=(s_base, "N K"), s_supp=(s_supp, "N K"), video=(video, "N"))
    error = F.mse_loss(s_base[:, :-1].softmax(1), s_supp[:, :-1].softmax(1), reduction="none").mean(1)
    weight = torch.ones_like(error) if weight is None else weight
    share = weight / (videos * group_sum(weight, video, videos)).index_select(0, video)  # of each row in the mean
    return (error * share).sum()


def sc_loss(l_st: Tensor, l_c: Tensor, alpha: float) -> Tensor:
    """L_sc, Eq. (13)."""
    return alpha * l_st + l_c


class Step(NamedTuple):
    """What a term may look at: outputs of N proposals and of K draws of the row that pads the batch, and the batch."""

    outputs: Outputs  # s_base [N, C+1], attention [N], s_pc [N], f_prop [N, 2D]; scores [N, 2, C+1]: s_base, s_supp
    drawn: Outputs  # the same of N + K rows
    batch: Batch
    labels: Tensor  # [B, C] of the outputs' dtype
    recipe: Recipe
    numbers: Dict[str, float]  # of the term's schedule at this epoch

    def padded(self, name: str) -> Tensor:
        """An output of the proposals and, behind them, of the draws for each video, [R] rows as of Packing."""
        return self.drawn[name].index_select(0, self.batch.packing.padded_row)


def _sme(x: Step) -> Tensor:
    p = video_probability(x.outputs["s_base"], x.outputs["attention"], x.batch.packing, x.recipe.sme_attention)
    moderate = x.numbers["moderate"] if x.recipe.sme_labels == "high+moderate" else 0.0
    return sme_loss(p, x.batch.pseudo_label, x.batch.confidence, moderate)


def _pc(x: Step) -> Tensor:
    proposals, packing, r = x.batch.proposals, x.batch.packing, x.recipe
    matched, overlaps = match_pseudo_true(proposals, x.outputs["attention"], packing, r.gamma)
    factors = (r.pc_centre, r.pc_distance, r.pc_penalty)
    return pc_loss(x.outputs["s_pc"], proposals, matched, overlaps, packing, factors, r.pc_all_pairs)


def _sc(x: Step) -> Tensor:
    packing, video, weight = x.batch.packing, x.batch.packing.video, None
    scores, f_prop = x.outputs["scores"], x.outputs["f_prop"]
    if x.recipe.sc_padding:
        scores, f_prop, video = x.padded("scores"), x.padded("f_prop"), packing.padded_video
        weight = packing.padded_weight.to(f_prop)
    s_base, s_supp = scores.unbind(1)
    l_st = st_loss(f_prop, s_base, s_supp, x.labels, video, weight, x.recipe.st_first_class)
    l_c = consistency_loss(s_base, s_supp, video, packing.videos, weight)
    return sc_loss(l_st, l_c, x.numbers["alpha"])


def _sme_schedule(r: Recipe, epoch: int, max_epoch: int) -> Dict[str, float]:
    rise = epoch / r.sme_until
    if r.sme_schedule == "linear":
        lambda_sme = max(0.0, 1 - rise)
    else:
        lambda_sme = math.exp(-0.05 * rise) * (1 - math.exp(-10 * rise)) if epoch <= r.sme_until else 0.0
    return {"lambda_sme": lambda_sme, "moderate": r.sme_moderate * (1 - epoch / max_epoch)}


def _sc_schedule(r: Recipe, epoch: int, max_epoch: int) -> Dict[str, float]:
    lambda_sc = math.exp(-epoch / r.sc_decay) if epoch <= r.sc_until else 0.0
    return {"lambda_sc": lambda_sc, "alpha": r.alpha_start + r.alpha_gain * epoch / r.alpha_epochs}


class Term(NamedTuple):
    """A row of the table of losses."""

    name: str  # in logs and in TensorBoard: the authors'
    value: Callable[[Step], Tensor]  # unweighted
    schedule: Callable[[Recipe, int, int], Dict[str, float]]  # its numbers at an epoch of max_epoch; the weight first
    trains: Tuple[str, ...] = ()  # outputs that it alone trains
    acts: Callable[[Recipe], bool] = lambda r: True  # whether it has a gradient at all
    pads: Callable[[Recipe], bool] = lambda r: False  # whether it looks at the rows that pad a batch


TERMS = {  # what --losses can switch, Eq. (14)
    "sme": Term("SME_loss", _sme, _sme_schedule),
    "pc": Term("PC_loss", _pc, lambda r, epoch, max_epoch: {"lambda_pc": r.lambda_pc}, ("s_pc",),
               lambda r: r.lambda_pc > 0 and r.pc_centre + r.pc_penalty > 0),  # d/I alone has no gradient
    "sc": Term("SC_loss", _sc, _sc_schedule, pads=lambda r: r.sc_padding),
}  # fmt: skip


def untrained(names: Sequence[str], recipe: Recipe) -> FrozenSet[str]:
    """Outputs that these losses leave as they were initialised: noise, which a detection's score leaves out."""
    trained = {output for name in names if TERMS[name].acts(recipe) for output in TERMS[name].trains}
    return frozenset({output for term in TERMS.values() for output in term.trains} - trained)


def schedule(names: Sequence[str], recipe: Recipe, epoch: int, max_epoch: int) -> Dict[str, float]:
    """Every scheduled number of these losses at ``epoch`` (from 1), such as lambda_2 of Eq. (14), alpha of Eq. (13)."""
    return {k: v for name in names for k, v in TERMS[name].schedule(recipe, epoch, max_epoch).items()}


def padding_rows(names: Sequence[str], recipe: Recipe, dropout_ratio: float) -> int:
    """How many draws of the row that pads a batch these losses want to see: one is all where nothing is dropped."""
    return any(TERMS[name].pads(recipe) for name in names) * (PADDING_DRAWS if dropout_ratio else 1)


def seal_terms(
    outputs: Outputs, batch: Batch, recipe: Recipe, epoch: int, max_epoch: int, names: Sequence[str] = tuple(TERMS)
) -> Dict[str, Tensor]:
    """All terms by the authors' names, ``loss_total`` of Eq. (14) first.

    outputs: of the N proposals and, behind them, of the K draws of a padding row. The two parts of L_cls carry their
    weights 1 and 0.5, the others are unweighted. A term whose weight is 0 at this epoch is computed without gradient.
    float16 and bfloat16 outputs are taken as float32. ValueError where shapes disagree or a name is unknown.
    """
    if not set(names) <= set(TERMS):
        raise ValueError(f"unknown losses {sorted(set(names) - set(TERMS))}")
    outputs = {name: x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for name, x in outputs.items()}
    packing, n = batch.packing, len(batch.packing.video)
    expect(packing, **{name: (x[:, 0] if x.ndim == 2 else x, "N+K") for name, x in outputs.items()})
    s_base, attention, labels = outputs["s_base"], outputs["attention"], batch.labels.to(outputs["s_base"])
    expect(packing, s_base=(s_base, "N+K C+1"), attention=(attention, "N+K"), labels=(labels, "B C"))
    drawn = {**outputs, "scores": torch.stack([s_base, s_base * attention[:, None]], 1)}
    outputs = {name: x[:n] for name, x in drawn.items()} if packing.draws else drawn
    targets = torch.stack([F.pad(labels, (0, 1), value=background) for background in (1.0, 0.0)], 1)
    original, suppressed = mil_loss(outputs["scores"], targets, packing, recipe.k).unbind()
    terms = {"loss_prop_mil_orig": original, "loss_prop_mil_supp": 0.5 * suppressed}
    total = original + terms["loss_prop_mil_supp"]
    for term in (TERMS[name] for name in names):
        numbers = term.schedule(recipe, epoch, max_epoch)
        weight = next(iter(numbers.values()))
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight != 0):
            value = terms[term.name] = term.value(Step(outputs, drawn, batch, labels, recipe, numbers))
        total = torch.add(total, value, alpha=weight) if weight != 0 else total
    return {"loss_total": total, **terms}
