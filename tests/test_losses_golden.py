"""The release recipe against the authors' own numbers: every term and every gradient at five epochs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from losses import pseudo_labels, seal_terms
from options import RECIPES
from utils.packed import Batch, Outputs

NAMES = ["loss_total", "loss_prop_mil_orig", "loss_prop_mil_supp", "SME_loss", "PC_loss", "SC_loss"]


@pytest.mark.parametrize("epoch", [1, 35, 70, 120, 170])
def test_release_recipe_gives_the_authors_terms_and_gradients(golden, epoch):
    with np.load(golden / "losses_release.npz") as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}
    videos, longest = data["attn_logit"].shape
    video = torch.arange(videos).repeat_interleave(longest)
    per_video = data["features"].float().split(data["num_snippets"].tolist())
    video_mean = torch.stack([rows.mean(0) for rows in per_video])
    pseudo_label, confidence = pseudo_labels(video_mean, *data["descriptors"].float().chunk(2, 1))
    assert set(confidence.tolist()) == {1, 2}  # both means of Eq. (8) are at work
    leaves = {
        name: data[name].flatten(0, 1).clone().requires_grad_()
        for name in ("s_base", "attn_logit", "pc_logit", "f_prop")
    }
    s_base, attn_logit, pc_logit, f_prop = leaves.values()
    batch = Batch(data["proposals"].flatten(0, 1), video, (longest,) * videos, data["labels"], pseudo_label, confidence)
    outputs = Outputs(s_base, attn_logit.sigmoid(), pc_logit.sigmoid(), f_prop)
    terms = seal_terms(outputs, batch, RECIPES["release"], epoch, 200)
    assert list(terms) == NAMES
    for name, term in terms.items():
        torch.testing.assert_close(term.detach(), data[f"epoch{epoch}/{name}"], rtol=1e-5, atol=1e-6)
    terms["loss_total"].backward()
    for name, leaf in leaves.items():
        expected = data[f"epoch{epoch}/grad_{name}"].flatten(0, 1)
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        atol = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
