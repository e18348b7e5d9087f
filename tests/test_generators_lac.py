"""LAC: the authors' numbers, and what must hold of points, losses, proposals and training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from generators.lac import (
    LAC,
    Settings,
    lac_proposals,
    lac_scores,
    lac_terms,
    point_labels,
    point_snippets,
    upsample,
)
from generators.lac_losses import feature_loss, find_instances, score_losses, video_scores
from tests.golden_makers import EXACT, SINGLE, compare, numbers, part, read, state

SECONDS = 16 / 25  # of a snippet of the authors' data


def network(data, dtype=torch.float64):
    weights = state(data)
    hidden, width, _ = weights["cls_module.conv_1.0.weight"].shape
    model = LAC(width, len(weights["cls_module.classifier.0.weight"]) - 1, hidden).to(dtype)
    model.load_state_dict(weights)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_forward_alone_and_in_a_batch(dtype):
    data = read("lac_forward")
    model, tolerance = network(data, dtype), EXACT if dtype == torch.float64 else SINGLE
    videos = [part(data, i) for i in numbers(data)]
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
    data = read("lac_forward")
    model = network(data, torch.float32)
    for i in numbers(data):
        fused, video_score = lac_scores(model, data[f"{i}/features"])
        np.testing.assert_allclose(fused, data[f"{i}/fused"], **SINGLE)
        assert np.isfinite(video_score).all()
        if len(fused) >= 8:
            np.testing.assert_allclose(video_score, data[f"{i}/video_score"], **SINGLE)


def test_golden_points():
    data = read("lac_points")
    for i in numbers(data):
        video = part(data, i)
        expected = video["point_label"] > 0
        snippets = point_snippets(video["frames"], 25, 16, video["fps"])
        found = point_labels(snippets, video["classes"], int(video["num_snippets"]), expected.shape[1])
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found.any(axis=0), video["video_label"] > 0)


PICKS = {"first": lambda first, last: first, "last": lambda first, last: last}


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_losses_and_gradients(dtype, pick):
    data, tolerance = read("lac_losses"), EXACT if dtype == torch.float64 else SINGLE
    for i in numbers(data):
        case = part(data, i)
        expected = part(case, pick)
        names = ("video_score", "fused", "embedded")
        inputs = {name: torch.from_numpy(case[name][0]).to(dtype).requires_grad_() for name in names}
        label, dense = torch.from_numpy(case["label"]).to(dtype), case["dense"] > 0 if "dense" in case else None
        terms = lac_terms(*inputs.values(), label, case["points"] > 0, dense, PICKS[pick], faithful=True)
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
    data = read("lac_step")
    model, settings = network(data), Settings()
    videos = [part(data, i) for i in numbers(data)]
    features = [torch.from_numpy(video["features"]) for video in videos]
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    parts = [x.split([len(f) for f in features]) for x in model(features)]
    totals = []
    for video, *scores in zip(videos, *parts):
        points = video["points"] > 0
        label = torch.from_numpy(points.any(axis=0)).double()
        embedded, probability, fused = scores
        video_score = video_scores(probability[:, :-1], label)
        terms = lac_terms(video_score, fused, embedded, label, points, video["dense"] > 0, PICKS["first"], True)
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
    data = read("lac_proposals")
    np.testing.assert_allclose(upsample(data["upsample/in"], faithful=True), data["upsample/out"], **EXACT)


def test_golden_proposals():
    data = read("lac_proposals")
    for i in numbers(data):
        video = part(data, i)
        found = lac_proposals(video["fused"], video["video_score"], faithful=True)
        found[:, :2] *= SECONDS
        assert found.shape == video["raw"].shape
        np.testing.assert_allclose(found, video["raw"], **EXACT)


def random_video(length, seed=0, num_class=3, width=4):
    rng = np.random.default_rng(seed)
    fused = torch.from_numpy(rng.uniform(0.01, 0.99, (length, num_class + 1)))
    embedded = torch.from_numpy(rng.standard_normal((length, width)))
    points, dense = rng.random((2, length, num_class)) < 0.3
    label = torch.from_numpy(points.any(axis=0) | dense.any(axis=0)).double()
    return torch.from_numpy(rng.uniform(0.01, 0.99, num_class)), fused, embedded, label, points, dense


def middle(first, last):
    return (first + last) // 2


@pytest.mark.parametrize("length", range(1, 9))
@pytest.mark.parametrize("faithful", [False, True])
def test_terms_and_gradients_are_finite_for_short_videos(length, faithful):
    for seed in range(20):
        *leaves, label, points, dense = random_video(length, seed)
        leaves = [x.requires_grad_() for x in leaves]
        for labelled in (points, np.zeros_like(points), np.ones_like(points)):
            terms = lac_terms(*leaves, label, labelled, dense, middle, faithful)
            terms["total"].backward()
            assert all(term.isfinite() for term in terms.values())
            assert all(x.grad is None or x.grad.isfinite().all() for x in leaves)


def test_a_video_without_points_or_without_background_has_terms_that_are_zero():
    *leaves, label, points, _ = random_video(6)
    terms = lac_terms(*leaves, label, np.zeros_like(points), None, middle)
    assert all(terms[name] == 0 for name in terms if name not in ("vid", "total"))
    terms = lac_terms(*leaves, label, np.ones_like(points), None, middle)
    assert terms["frame_bkg"] == 0 and terms["frame"] > 0


def test_gradients_against_finite_differences():
    _, fused, embedded, label, points, dense = random_video(25, 3)
    instances = find_instances(dense, range(3))
    assert torch.autograd.gradcheck(lambda x: tuple(score_losses(x, instances)), fused.requires_grad_())
    assert torch.autograd.gradcheck(lambda x: feature_loss(x, instances, middle), embedded.requires_grad_())

    def frame(x):
        terms = lac_terms(x[0, :-1] * 0.5, x, embedded.detach(), label, points, None, middle)
        return terms["frame"], terms["frame_bkg"], terms["vid"]

    assert torch.autograd.gradcheck(frame, fused)


def test_the_feature_loss_against_rows_picked_one_by_one():
    _, _, embedded, _, _, dense = random_video(40, 1)
    instances = find_instances(dense, [0, 2])
    expected = []
    for group in instances:
        means = []
        for s, e in zip(group.start, group.end):
            stretches = [(int(s + k * (e - s) / 3), int(s + (k + 1) * (e - s) / 3)) for k in range(3)]
            rows = [embedded[(a + max(b, a + 1) - 1) // 2] for a, b in stretches]
            mean = sum(rows) / 3
            means.append(mean / mean.norm())
        loss = []
        for j in np.flatnonzero(group.is_action):
            similar = [0 if i == j else torch.exp(means[i] @ means[j] / 0.1) for i in range(len(means))]
            loss.append(-torch.log(sum(s for s, a in zip(similar, group.is_action) if a) / sum(similar)))
        expected.append(torch.stack(loss).mean())
    assert len(expected) == 2
    torch.testing.assert_close(feature_loss(embedded, instances, middle), sum(expected))
    torch.testing.assert_close(feature_loss(embedded, instances, middle, faithful=True), expected[-1])


def test_a_run_at_the_end_keeps_its_last_snippet_unless_faithful():
    dense = np.array([[0, 1], [1, 1], [0, 1], [1, 1]], bool)
    (ours,), (theirs,) = (find_instances(dense, [0, 1], faithful) for faithful in (False, True))
    assert ours.end.tolist() == [1, 2, 3, 4] and ours.is_action.tolist() == [False, True, False, True]
    assert theirs.end.tolist() == [1, 2, 3] and theirs.is_action.tolist() == [False, True, False]


def test_score_losses_in_float32_are_as_exact_for_a_long_video():
    rng = np.random.default_rng(0)
    fused = torch.from_numpy(rng.random((50_000, 2), dtype=np.float32))
    instances = find_instances(rng.random((50_000, 1)) < 0.5, [0])
    for single, double in zip(score_losses(fused, instances), score_losses(fused.double(), instances)):
        torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-6)


def test_proposals_are_centred_on_what_they_propose():
    fused = np.zeros((9, 2))
    fused[3:6, 0], fused[:, 1] = 0.9, 1 - fused[:, 0]
    found = lac_proposals(fused, np.ones(1))
    np.testing.assert_allclose(found[:, :2].mean(axis=1), 4.5, atol=1e-9)


def test_points_of_seconds_and_frames():
    assert point_snippets(np.array([0.0, 0.63, 0.65]), 25, 16).tolist() == [0, 0, 1]
    assert point_snippets(np.array([19, 20]), 25, 16, fps=30).tolist() == [0, 1]
    assert not point_labels(np.zeros(0, int), np.zeros(0, int), 3, 2).any()


def test_shapes_are_checked_before_anything_can_broadcast():
    *leaves, label, points, dense = random_video(5)
    with pytest.raises(ValueError, match=r"\[T, 6\]"):
        LAC(6, 2)([torch.zeros(3, 5)])
    with pytest.raises(ValueError, match="label"):
        video_scores(leaves[1], label)
    with pytest.raises(ValueError):
        lac_terms(*leaves, label, points[:4], dense, middle)
