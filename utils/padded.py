"""A training step the usual way, for ``utils.benchmark`` to compare with: nothing else uses what stands here."""

from __future__ import annotations

import argparse
from typing import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset import Split
from model import SEAL


def plain_roi_align(features: Tensor, proposals: Tensor, bins: int = 12) -> Tensor:
    """RoIAlign along time as one writes it down: gather two neighbours of every sample, interpolate, average."""
    start, length = proposals[:, 0], proposals[:, 1] - proposals[:, 0]
    height = (1.5 * length).clamp(min=1)
    samples = (height / bins).ceil().long()
    out = features.new_zeros(len(proposals), bins, features.shape[1])
    padded = torch.cat([features, features.new_zeros(1, features.shape[1])])  # the last row serves all that is outside
    for g in samples.unique().tolist():
        chosen = samples == g
        step = height[chosen] / bins
        at = torch.arange(bins)[:, None] + (torch.arange(g).to(step) + 0.5) / g
        y = (start[chosen] - 0.25 * length[chosen] - 0.5)[:, None, None] + at * step[:, None, None]
        low = y.floor().long()
        inside = [((x >= 0) & (x < len(features))).long() for x in (low, low + 1)]
        a, b = (padded[x * ok + len(features) * (1 - ok)] for x, ok in zip((low, low + 1), inside))
        out[chosen] = torch.lerp(a, b, (y - low)[..., None].to(a)).mean(2)
    return out


class PaddedReference:
    """A step as it is usually written: proposals padded, RoIAlign in every step, a loop over videos."""

    def __init__(self, model: SEAL, split: Split, load, pseudo, args: argparse.Namespace):
        self.model, self.split, self.args = model, split, args
        self.optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
        self.pseudo = [torch.from_numpy(x) for x in pseudo]
        self.device = next(model.parameters()).device
        self.features = [torch.from_numpy(load(v)).half() for v in split.videos]  # as a joint file holds them

    def branch(self, layers, f_prop: Tensor) -> Tensor:
        """Two kernel-1 convolutions over the proposals, as in the released network: [B, M, 2D] -> [B, M, out]."""
        x = f_prop.permute(0, 2, 1)
        x = F.relu(F.conv1d(x, layers[0].weight[..., None], layers[0].bias))
        return F.conv1d(x, layers[2].weight[..., None], layers[2].bias).permute(0, 2, 1)

    def step(self, videos: Sequence[int], epoch: int) -> float:
        longest = max(len(self.split.proposals[v]) for v in videos)
        inputs = torch.zeros(len(videos), longest, 3 * self.model.feature_size)
        mask = torch.zeros(len(videos), longest, device=self.device)
        for i, v in enumerate(videos):
            proposals = torch.zeros(longest, 2)
            proposals[: len(self.split.proposals[v])] = torch.from_numpy(self.split.proposals[v])
            bins = plain_roi_align(self.features[v].float(), proposals)
            left, centre, right = bins[:, :2].amax(1), bins[:, 2:10].amax(1), bins[:, 10:].amax(1)
            inputs[i] = torch.cat([centre - left, centre, centre - right], 1)
            mask[i, : len(self.split.proposals[v])] = 1
        net = self.model.prop_fused_backbone
        f_prop = F.dropout(net.prop_fusion(inputs.to(self.device)), self.args.dropout_ratio, training=True)
        s_base = self.branch(net.prop_classifier, f_prop)
        attention = self.branch(net.prop_attention, f_prop).squeeze(-1).sigmoid()
        s_pc = self.branch(net.prop_completeness, f_prop).squeeze(-1).sigmoid()
        loss = sum(self.video(i, v, epoch, s_base, attention, s_pc, f_prop, mask) for i, v in enumerate(videos))
        self.optimizer.zero_grad()
        (loss / len(videos)).backward()
        self.optimizer.step()
        return loss.item()

    def video(self, i, v, epoch, s_base, attention, s_pc, f_prop, mask) -> Tensor:
        """The paper's losses of one video, term after term, with its own masks and waits."""
        count = int(mask[i].sum().item())
        base, a, pc, feature = s_base[i, :count], attention[i, :count], s_pc[i, :count], f_prop[i, :count]
        supp = base * a[:, None]
        y = torch.from_numpy(self.split.labels[v]).to(self.device)
        k = max(1, count // self.args.k)
        loss = base.new_zeros(())
        for scores, background, factor in ((base, 1.0, 1.0), (supp, 0.0, 0.5)):
            target = torch.cat([y, y.new_tensor([background])])
            target = target / (target.sum() + 1e-4)
            loss = loss - factor * (target * scores.topk(k, dim=0).values.mean(0).log_softmax(0)).sum()
        label, confidence = (x[v].item() for x in self.pseudo)
        if confidence and epoch < 30:
            p = (base[:, :-1].softmax(1) * a[:, None]).mean(0)
            loss = loss + (1 - epoch / 30) * F.mse_loss(p, F.one_hot(torch.tensor(label), len(y)).to(p))
        proposals = torch.from_numpy(self.split.proposals[v]).to(base)
        instances = proposals[a >= 0.9 * a.max()]
        start, end = (
            torch.max(proposals[:, None, 0], instances[:, 0]),
            torch.min(proposals[:, None, 1], instances[:, 1]),
        )
        shared = (end - start).clamp(min=0)
        length, g_length = proposals[:, 1] - proposals[:, 0], instances[:, 1] - instances[:, 0]
        best, j = (shared / (length[:, None] + g_length[None] - shared)).max(1)
        on = best > 0
        if on.any().item():
            p, g, s = proposals[on], instances[j[on]], pc[on]
            s1, s2, e1 = torch.min(p[:, 0], g[:, 0]), torch.max(p[:, 0], g[:, 0]), torch.min(p[:, 1], g[:, 1])
            common, centre = (e1 - s2).clamp(min=1e-6), (g[:, 0] + g[:, 1]) / 2
            apart = ((p.sum(1) / 2 - centre).abs() / common).clamp(max=1e6)
            term = F.smooth_l1_loss((s1 + s2) / 2 + s * (e1 - s2) / 2, centre)
            term = term + F.smooth_l1_loss(apart, torch.zeros_like(apart))
            loss = loss + 1.5 * (term + ((1 - s) * (common < 0.5 * (g[:, 1] - g[:, 0]))).mean())
        if epoch <= 50:
            l_c = F.mse_loss(base[:, :-1].softmax(1), supp[:, :-1].softmax(1))
            for c in y.nonzero().flatten().tolist():
                chosen = base[:, :-1].argmax(1) == c
                if chosen.any().item():
                    l_st = (feature[chosen] - feature[chosen].mean(0)).norm(dim=1).mean()
                    l_c = l_c + (0.3 + 0.2 * epoch / 50) * l_st
            loss = loss + float(np.exp(-epoch / 8)) * l_c
        return loss
