"""CO2-Net: the authors' numbers, and what must hold of sampling, batches, losses, proposals and training."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from generators import co2net
from generators.co2net import CO2Net, Scores, Settings, co2net_proposals, co2net_terms, sample_rows
from generators.co2net_losses import mil_loss, suppress

GOLDEN = Path(os.environ.get("SEAL_GOLDEN", Path(__file__).parent / "golden")) / "proposals"
EXACT = {"rtol": 1e-9, "atol": 1e-11}
SINGLE = {"rtol": 1e-4, "atol": 1e-5}
NAMES = {"feat": "feat", "cas": "cas", "attn": "attention", "v_atn": "v_attention", "f_atn": "f_attention"}


def read(name):
    with np.load(GOLDEN / f"co2net_{name}.npz") as file:
        return {key: file[key] for key in file.files}


def part(data, prefix):
    return {key[len(prefix) :]: value for key, value in data.items() if key.startswith(prefix)}


def network(data, dtype=torch.float64, **how):
    state = {key: torch.from_numpy(value) for key, value in part(data, "state/").items()}
    width, num_class = len(state["vAttn.channel_conv.0.bias"]), len(state["classifier.4.bias"]) - 1
    model = CO2Net(width, num_class, **how).to(dtype)
    model.load_state_dict(state)
    return model.eval()


def compare(found, expected, **tolerance):
    np.testing.assert_allclose(found.detach().numpy(), expected.reshape(found.shape), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("pooling", [0, 13])
def test_golden_forward(dtype, pooling):
    data = read("forward")
    model = network(data, dtype, pooling=pooling)
    for video in sorted({key.split("/")[0] for key in data} - {"state"}):
        expected = part(data, f"{video}/")
        scores = model(torch.from_numpy(expected["features"]).to(dtype)[None])
        for theirs, ours in NAMES.items():
            if not pooling or theirs != "feat":
                name = f"ant_{theirs}" if pooling else theirs
                compare(getattr(scores, ours), expected[name], **(EXACT if dtype == torch.float64 else SINGLE))


def leaves(data, dtype=torch.float64):
    tensors = {name: torch.from_numpy(data[name]).to(dtype) for name in NAMES}
    flat = {name: x.squeeze(2) if "at" in name and name != "feat" else x for name, x in tensors.items()}
    return {name: x.requires_grad_() for name, x in flat.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", "abc")
def test_golden_losses_and_gradients(case, dtype):
    data = part(read("losses"), f"{case}/")
    tolerance = EXACT if dtype == torch.float64 else SINGLE
    labels = torch.from_numpy(data["labels"]).to(dtype)
    inputs = leaves(data, dtype)
    scores = Scores(**{NAMES[name]: x for name, x in inputs.items()})
    supp = suppress(scores.cas, scores.attention)
    compare(supp, data["supp"], **tolerance)
    compare(mil_loss(scores.cas, labels, 1), data["mil_orig_per_video"], **tolerance)
    compare(mil_loss(supp, labels, 0), data["mil_supp_per_video"], **tolerance)
    for name in ("mil_orig", "mil_supp", "similarity", "norm", "guide", "mutual", "total"):
        term = co2net_terms(scores, labels, Settings())[name]
        compare(term, data[name], **tolerance)
        found = torch.autograd.grad(term, list(inputs.values()), allow_unused=True)
        for leaf, gradient in zip(inputs, found):
            expected = data.get(f"grad/{name}/{leaf}")
            if expected is None:
                assert gradient is None or not gradient.any(), f"{name} has a gradient for {leaf}"
            else:
                compare(gradient, expected, **tolerance)


def test_golden_three_adam_steps():
    data = read("step")
    model, settings = network(data), Settings()
    features, labels = torch.from_numpy(data["features"]), torch.from_numpy(data["labels"]).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    for step, expected in enumerate(data["total"]):
        optimizer.zero_grad()
        total = co2net_terms(model(features), labels, settings)["total"]
        np.testing.assert_allclose(total.item(), expected, **EXACT)
        total.backward()
        for name, parameter in model.named_parameters():
            if step == 0:
                compare(parameter.grad, data[f"grad/{name}"], **EXACT)
        optimizer.step()
    for name, parameter in model.named_parameters():
        # Adam divides by the root of a squared gradient, which enlarges rounding where a gradient is nearly 0.
        compare(parameter, data[f"after/{name}"], rtol=1e-7, atol=1e-9)


def test_golden_sampling_ranges():
    data = read("sampling")
    rows = int(data["num_segments"])
    for key in sorted(key for key in data if key.startswith("random/")):
        length = int(key.split("/")[1])
        ours = np.stack([sample_rows(length, rows, np.random.default_rng(i)) for i in range(400)])
        theirs = data[key]
        assert ours.shape[1] == theirs.shape[1]
        assert (ours.min(0) <= theirs.min(0)).all() and (theirs.max(0) <= ours.max(0)).all()
        first = np.arange(rows) * length // rows
        assert (ours.min(0) == first).all()
        assert (
            ours.max(0) == (first if length == rows else np.minimum((np.arange(rows) + 1) * length // rows, length - 1))
        ).all()


def test_golden_proposals():
    data = read("proposals")
    for video in sorted({key.split("/")[0] for key in data} - {"ambiguous"}):
        expected = part(data, f"{video}/")
        cas, attention = expected["cas"], expected["attn"][:, 0]
        np.testing.assert_allclose(co2net.co2net_video_score(cas, attention), expected["video_score"], **EXACT)
        found = co2net_proposals(cas, attention, faithful=True)
        assert found.shape == expected["raw"].shape
        np.testing.assert_array_equal(found[:, :3], expected["raw"][:, :3])
        np.testing.assert_allclose(found[:, 3], expected["raw"][:, 3], **EXACT)
