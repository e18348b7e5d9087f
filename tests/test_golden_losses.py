"""The release recipe against the authors' own numbers: every term and gradient, and whole stretches of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from losses import TERMS, padding_rows, pseudo_labels, seal_terms
from model import SEAL
from options import RECIPES
from utils.datasets.scfe import scfe_input
from utils.packed import Batch, pack
from utils.seeds import torch_seed

NAMES = ["loss_total", "loss_prop_mil_orig", "loss_prop_mil_supp", "SME_loss", "PC_loss", "SC_loss"]
OWN = Path(__file__).parent / "data" / "trajectory_paper.npz"


@pytest.mark.parametrize("epoch", [1, 35, 70, 120, 170])
def test_golden_terms_and_gradients_of_the_release(golden, epoch):
    with np.load(golden / "losses_release.npz") as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}
    videos, longest = data["attn_logit"].shape
    means = torch.stack([rows.mean(0) for rows in data["features"].float().split(data["num_snippets"].tolist())])
    pseudo_label, confidence = pseudo_labels(means, *data["descriptors"].float().chunk(2, 1))
    leaves = {
        name: data[name].flatten(0, 1).clone().requires_grad_()
        for name in ("s_base", "attn_logit", "pc_logit", "f_prop")
    }
    packing = pack((longest,) * videos)
    batch = Batch(data["proposals"].flatten(0, 1), packing, data["labels"], pseudo_label, confidence)
    outputs = {"s_base": leaves["s_base"], "f_prop": leaves["f_prop"]}
    outputs.update(attention=leaves["attn_logit"].sigmoid(), s_pc=leaves["pc_logit"].sigmoid())
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


def follow(data, run: str, recipe, lr: float, dropout: float = 0.0):
    """Train as the stored run did: its terms, and the final weights. Dropout is drawn as main.train_step draws it."""
    T, counts = data["T"].tolist(), data["counts"].tolist()
    features = torch.from_numpy(data["features"]).split(T)
    proposals = np.split(data["proposals"], np.cumsum(counts)[:-1])
    labels = torch.from_numpy(data["labels"])
    means = torch.stack([rows.mean(0) for rows in features])
    pseudo = pseudo_labels(means, *torch.from_numpy(data["descriptors"]).chunk(2, 1))
    rows = [scfe_input(f, p) for f, p in zip(features, proposals)]
    model = SEAL(data["features"].shape[1], labels.shape[1], dropout_ratio=dropout)
    model.load_state_dict(
        {k: torch.from_numpy(data[f"initial/{k}"]).reshape(v.shape) for k, v in model.state_dict().items()}
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=1e-3)
    terms = []
    for step, (videos, epoch) in enumerate(zip(data[f"{run}batches"], data[f"{run}epochs"].tolist())):
        torch.manual_seed(torch_seed(0, "dropout", epoch, step, 0))
        segments = torch.from_numpy(np.concatenate([proposals[v] for v in videos]).astype(np.float32))
        packing = pack(tuple(counts[v] for v in videos), padding_rows(tuple(TERMS), recipe, dropout))
        batch = Batch(segments, packing, labels[videos], *(x[videos] for x in pseudo))
        outputs = model(torch.cat([rows[v] for v in videos]), padding=packing.draws)
        found = seal_terms(outputs, batch, recipe, epoch, 200)
        optimizer.zero_grad()
        found["loss_total"].backward()
        optimizer.step()
        terms.append([found[name].item() for name in data["term_names"]])
    return np.asarray(terms), {k: v.numpy() for k, v in model.state_dict().items()}


def ends_at(data, prefix: str, weights, tolerance: float) -> None:
    for name, values in weights.items():
        apart = np.abs(data[f"{prefix}final/{name}"].reshape(values.shape) - values).max()
        assert apart < tolerance, name


@pytest.mark.parametrize("run", ["early/", "middle/", "late/"])
def test_golden_trajectory_of_the_authors_program(golden, run):
    with np.load(golden / "trajectory.npz") as file:
        data = {name: file[name] for name in file.files}
    terms, weights = follow(data, run, RECIPES["release"], 5e-5)
    np.testing.assert_allclose(terms, data[f"{run}terms"], rtol=1e-5, atol=1e-7)
    ends_at(data, run, weights, 1e-6)


@pytest.mark.parametrize("prefix, dropout", [("", 0.0), ("dropout/", 0.5)])
def test_the_paper_recipe_follows_its_stored_trajectory(prefix, dropout):
    """Ours, of 20 steps: without dropout as it was before the rebuilding, and with the draws of today."""
    with np.load(OWN) as file:
        data = {name: file[name] for name in file.files}
    terms, weights = follow(data, "", RECIPES["paper"], 5e-4, dropout)
    np.testing.assert_allclose(terms, data[f"{prefix}terms"], rtol=2e-5, atol=1e-7)
    ends_at(data, prefix, weights, 1e-5)
