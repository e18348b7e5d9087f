"""The losses once more, slowly: loops over videos, proposals and classes, written from the equations of the paper.

Independent of losses.py and of utils/packed.py but for the batch's record. Everything is a float64 scalar of autograd,
so values and gradients can both be compared.
"""

from __future__ import annotations

import math

import torch

from utils.packed import Batch, pack

NAMES = ("loss_total", "loss_prop_mil_orig", "loss_prop_mil_supp", "SME_loss", "PC_loss", "SC_loss")


def random_case(counts=(9, 1, 17, 13), classes=4, width=6, seed=0, dtype=torch.float64, padding=1):
    """Outputs by name (leaves that require a gradient) of the proposals of some videos and of ``padding`` rows that
    pad them, and the Batch; the first video has two classes."""
    draw = torch.Generator().manual_seed(seed)
    packing, proposals = pack(tuple(counts), padding), sum(counts)
    rows, videos = proposals + padding, len(counts)
    start = torch.rand(proposals, generator=draw) * 30
    segments = torch.stack([start, start + torch.rand(proposals, generator=draw) * 12], 1).mul(100).round().div(100)
    labels = torch.zeros(videos, classes, dtype=dtype)
    labels[torch.arange(videos), torch.randint(classes, (videos,), generator=draw)] = 1
    labels[0, torch.randperm(classes, generator=draw)[:2]] = 1
    s_base = torch.randn(rows, classes + 1, generator=draw, dtype=dtype) * 2
    s_base[:proposals, :-1] += labels[packing.video] * 1.5
    attention, s_pc = torch.rand(2, rows, generator=draw, dtype=dtype) * 0.9 + 0.05
    f_prop = torch.randn(rows, width, generator=draw, dtype=dtype)
    outputs = {"s_base": s_base, "attention": attention, "s_pc": s_pc, "f_prop": f_prop}
    pseudo_label = torch.randint(classes, (videos,), generator=draw)
    confidence = torch.arange(videos).flip(0) % 3
    leaves = {name: x.clone().requires_grad_() for name, x in outputs.items()}
    return leaves, Batch(segments, packing, labels, pseudo_label, confidence)


def gradients(value, outputs):
    """d value / d outputs by name, zeros where it does not depend on one."""
    given = [None] * len(outputs)
    if value.requires_grad:
        given = torch.autograd.grad(value, list(outputs.values()), retain_graph=True, allow_unused=True)
    return {name: torch.zeros_like(x) if g is None else g for g, (name, x) in zip(given, outputs.items())}


def rows_of(counts, padding=0):
    """The rows of each video and, where there are ``padding`` rows behind those of all videos, these again and again
    until it is as long as the longest."""
    rows, first = [], 0
    for count in counts:
        added = [sum(counts) + j % padding for j in range(max(counts) - count)] if padding else []
        rows.append([*range(first, first + count), *added])
        first += count
    return rows


def mean(values):
    return sum(values) / len(values) if values else torch.zeros((), dtype=torch.float64)


def number(x):
    return x.detach().item() if isinstance(x, torch.Tensor) else x


def smooth_l1(x):
    return x * x / 2 if abs(number(x)) < 1 else abs(x) - 0.5


def mil(scores, labels, rows, k):
    losses = []
    for mine, y in zip(rows, labels):
        top = max(1, len(mine) // k)
        z = torch.stack([mean(sorted((scores[i, c] for i in mine), key=number)[-top:]) for c in range(len(y))])
        log_softmax = z - z.exp().sum().log()
        losses.append(-sum(y[c] / (sum(y) + 1e-4) * log_softmax[c] for c in range(len(y))))
    return mean(losses)


def action_softmax(scores):
    """[C+1] logits -> [C], the background left out."""
    e = scores[:-1].exp()
    return e / e.sum()


def sme(outputs, batch, rows, attend, moderate):
    by_confidence = {0: [], 1: [], 2: []}
    for mine, label, sure in zip(rows, batch.pseudo_label.tolist(), batch.confidence.tolist()):
        factor = {i: outputs["attention"][i] if attend else 1.0 for i in mine}
        p = mean([action_softmax(outputs["s_base"][i]) * factor[i] for i in mine])
        by_confidence[sure].append(mean([(p[c] - int(c == label)) ** 2 for c in range(len(p))]))
    return mean(by_confidence[2]) + moderate * mean(by_confidence[1])


def match(proposals, attention, rows, gamma):
    """{proposal: its pseudo-true instance}, without those that overlap none."""
    boxes, found = proposals.tolist(), {}
    for mine in rows:
        peak = max(number(attention[i]) for i in mine)
        for i in mine:
            best = 0.0
            for j in (j for j in mine if number(attention[j]) >= gamma * peak):
                common = min(boxes[i][1], boxes[j][1]) - max(boxes[i][0], boxes[j][0])
                if common > 0:
                    union = boxes[i][1] - boxes[i][0] + boxes[j][1] - boxes[j][0] - common
                    if common / union > best:
                        best, found[i] = common / union, j
    return found


def pc(s_pc, proposals, found, rows, factors, all_pairs):
    boxes, total = proposals.tolist(), torch.zeros((), dtype=torch.float64)

    def deviation(i, j):  # score of i, geometry of j
        (start, end), (g_start, g_end) = boxes[j], boxes[found[j]]
        s1, s2, e1 = min(start, g_start), max(start, g_start), min(end, g_end)
        return smooth_l1((s1 + s2) / 2 + s_pc[i] * (e1 - s2) / 2 - (g_start + g_end) / 2)

    for mine in rows:
        for i in (i for i in mine if i in found):
            (start, end), (g_start, g_end) = boxes[i], boxes[found[i]]
            common = max(min(end, g_end) - max(start, g_start), 1e-6)
            apart = abs((start + end) / 2 - (g_start + g_end) / 2) / common
            partners = [j for j in mine if j in found] if all_pairs else [i]
            total = total + factors[0] * sum(deviation(i, j) for j in partners) + factors[1] * smooth_l1(apart)
            if common < 0.5 * (g_end - g_start):
                total = total + factors[2] * (1 - s_pc[i])
    return total / max(1, len(found))


def st(f_prop, s_base, s_supp, labels, rows, first_class):
    by_base, by_supp = (s[:, :-1].argmax(1).tolist() for s in (s_base, s_supp))
    videos, everything = [], []
    for mine, y in zip(rows, labels.tolist()):
        classes = [c for c, there in enumerate(y) if there > 0]
        terms = []
        for c in classes[:1] if first_class else classes:
            s_c = [i for i in mine if by_base[i] == c and by_supp[i] == c]
            n_c = [i for i in mine if by_base[i] == c or by_supp[i] == c]
            if s_c:
                descriptor = mean([f_prop[i] for i in s_c])
                away = [((f_prop[i] - descriptor) ** 2).sum() for i in n_c]
                away = [d.sqrt() if number(d) > 0 else 0 * d for d in away]
                terms.append(mean(away))
                everything += away
        if terms:
            videos.append(mean(terms))
    return mean(everything) if first_class else mean(videos)


def consistency(s_base, s_supp, rows):
    videos = []
    for mine in rows:
        errors = [(action_softmax(s_base[i]) - action_softmax(s_supp[i])) ** 2 for i in mine]
        videos.append(mean([e.sum() / len(e) for e in errors]))
    return mean(videos)


def terms(outputs, batch, recipe, t, max_epoch, k=8):
    """Every term of section "recipe" ("paper" or "release") with that recipe's published numbers, at epoch t.

    In ``release`` the videos are padded to the longest, for L_st and L_c alone, with the rows of ``outputs`` behind
    those of the proposals.
    """
    counts, paper = batch.packing.counts, recipe == "paper"
    rows, padding = rows_of(counts), len(outputs["attention"]) - sum(counts)
    s_base, attention, s_pc, f_prop = (outputs[name] for name in ("s_base", "attention", "s_pc", "f_prop"))
    s_supp = torch.stack([s * a for s, a in zip(s_base, attention)])
    with_background = [[*y, 1.0] for y in batch.labels.tolist()]
    without_background = [[*y, 0.0] for y in batch.labels.tolist()]
    if paper:
        l1, moderate = max(0, 1 - t / 30), 1 - t / max_epoch
        l_pc = pc(s_pc, batch.proposals, match(batch.proposals, attention, rows, 0.9), rows, (1, 1, 1), False)
        l2, alpha, l3, padded = 1.5, 0.3 + 0.2 * t / 50, math.exp(-t / 8) if t <= 50 else 0, rows
    else:
        l1 = math.exp(-0.05 * t / 160) * (1 - math.exp(-10 * t / 160)) if t <= 160 else 0
        moderate = 0.5 * (1 - t / max_epoch)
        l_pc = pc(s_pc, batch.proposals, match(batch.proposals, attention, rows, 0.8), rows, (0.01, 0.6, 9.0), True)
        l2, alpha, l3 = 3.4, 0.3 + 0.2 * t / 70, math.exp(-t / 8) if t <= 70 else 0
        padded = rows_of(counts, padding)
    l_sme = sme(outputs, batch, rows, paper, moderate)
    l_sc = alpha * st(f_prop, s_base, s_supp, batch.labels, padded, not paper) + consistency(s_base, s_supp, padded)
    orig, supp = mil(s_base, with_background, rows, k), 0.5 * mil(s_supp, without_background, rows, k)
    total = orig + supp + l1 * l_sme + l2 * l_pc + l3 * l_sc
    return dict(zip(NAMES, (total, orig, supp, l_sme, l_pc, l_sc)))
