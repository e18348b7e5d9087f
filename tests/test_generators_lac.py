"""LAC: the authors' numbers, and what must hold of points, losses, proposals and training."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from generators.lac import (
    LAC,
    Settings,
    lac_losses,
    lac_proposals,
    lac_scores,
    lac_terms,
    point_labels,
    point_snippets,
    upsample,
)
from generators.lac_losses import video_scores

GOLDEN = Path(os.environ.get("SEAL_GOLDEN", Path(__file__).parent / "golden")) / "proposals"
EXACT = {"rtol": 1e-9, "atol": 1e-11}
SINGLE = {"rtol": 1e-4, "atol": 1e-5}
SECONDS = 16 / 25  # of a snippet of the authors' data


def read(name):
    with np.load(GOLDEN / f"lac_{name}.npz") as file:
        return {key: file[key] for key in file.files}


def part(data, prefix):
    return {key[len(prefix) :]: value for key, value in data.items() if key.startswith(prefix)}


def numbers(data):
    return sorted({key.split("/")[0] for key in data if key[0].isdigit()})


def network(data, dtype=torch.float64):
    state = {key: torch.from_numpy(value) for key, value in part(data, "state/").items()}
    hidden, width, _ = state["cls_module.conv_1.0.weight"].shape
    model = LAC(width, len(state["cls_module.classifier.0.weight"]) - 1, hidden).to(dtype)
    model.load_state_dict(state)
    return model.eval()


def compare(found, expected, **tolerance):
    np.testing.assert_allclose(found.detach().numpy(), expected.reshape(found.shape), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_forward_alone_and_in_a_batch(dtype):
    data = read("forward")
    model, tolerance = network(data, dtype), EXACT if dtype == torch.float64 else SINGLE
    videos = [part(data, f"{i}/") for i in numbers(data)]
    features = [torch.from_numpy(video["features"]).to(dtype) for video in videos]
    together = zip(*(x.split([len(f) for f in features]) for x in model(features)))
    for video, rows, batched in zip(videos, features, together):
        scores = model([rows])
        for name in ("embedded", "fused"):
            compare(getattr(scores, name), video[name], **tolerance)
            compare(batched[scores._fields.index(name)], video[name], **tolerance)
        training = video_scores(scores.probability[:, :-1], torch.from_numpy(video["label"]).to(dtype))
        assert training.isfinite().all()
        if len(rows) >= 8:  # the authors' score of a shorter video is NaN
            compare(training, video["video_score_training"], **tolerance)


def test_golden_video_score():
    data = read("forward")
    model = network(data, torch.float32)
    for i in numbers(data):
        fused, video_score = lac_scores(model, data[f"{i}/features"])
        np.testing.assert_allclose(fused, data[f"{i}/fused"], **SINGLE)
        assert np.isfinite(video_score).all()
        if len(fused) >= 8:
            np.testing.assert_allclose(video_score, data[f"{i}/video_score"], **SINGLE)


def test_golden_points():
    data = read("points")
    for i in numbers(data):
        video = part(data, f"{i}/")
        expected = video["point_label"] > 0
        snippets = point_snippets(video["frames"], 25, 16, video["fps"])
        found = point_labels(snippets, video["classes"], int(video["num_snippets"]), expected.shape[1])
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found.any(axis=0), video["video_label"] > 0)


PICKS = {"first": lambda first, last: first, "last": lambda first, last: last}


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_losses_and_gradients(dtype, pick):
    data, tolerance = read("losses"), EXACT if dtype == torch.float64 else SINGLE
    for i in numbers(data):
        case = part(data, f"{i}/")
        expected = part(case, f"{pick}/")
        names = ("video_score", "fused", "embedded")
        inputs = {name: torch.from_numpy(case[name][0]).to(dtype).requires_grad_() for name in names}
        label, dense = torch.from_numpy(case["label"]).to(dtype), case["dense"] > 0 if "dense" in case else None
        terms = lac_losses(*inputs.values(), label, case["points"] > 0, dense, PICKS[pick], faithful=True)
        for name in {key.split("/")[0] for key in expected} - {"grad"}:
            compare(terms[name], expected[name], **tolerance)
            found = [None] * 3
            if terms[name].requires_grad:
                found = torch.autograd.grad(terms[name], list(inputs.values()), allow_unused=True, retain_graph=True)
            for leaf, gradient in zip(inputs, found):
                wanted = expected.get(f"grad/{name}/{leaf}")
                if wanted is not None:
                    compare(gradient, wanted, **tolerance)
                elif gradient is not None:
                    assert not gradient.any(), f"{i}: {name} has a gradient for {leaf}"


def test_golden_adam_step():
    data = read("step")
    model, settings = network(data), Settings()
    videos = [part(data, f"{i}/") for i in numbers(data)]
    features = [torch.from_numpy(video["features"]) for video in videos]
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    parts = [x.split([len(f) for f in features]) for x in model(features)]
    totals = []
    for video, *scores in zip(videos, *parts):
        points = video["points"] > 0
        label = torch.from_numpy(points.any(axis=0)).double()
        terms = lac_terms(type(model(features[:1]))(*scores), label, points, video["dense"] > 0, PICKS["first"], True)
        for name, term in terms.items():
            compare(term, video[name], **EXACT)
        totals.append(terms["total"])
    total = torch.stack(totals).mean()
    compare(total, data["total"], **EXACT)
    total.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        compare(parameter.grad, data[f"grad/{name}"], **EXACT)
        compare(parameter, data[f"after/{name}"], rtol=1e-7, atol=1e-9)


def test_golden_upsampling():
    data = read("proposals")
    np.testing.assert_allclose(upsample(data["upsample/in"], faithful=True), data["upsample/out"], **EXACT)


def test_golden_proposals():
    data = read("proposals")
    for i in numbers(data):
        video = part(data, f"{i}/")
        found = lac_proposals(video["fused"], video["video_score"], faithful=True)
        found[:, :2] *= SECONDS
        assert found.shape == video["raw"].shape
        np.testing.assert_allclose(found, video["raw"], **EXACT)
