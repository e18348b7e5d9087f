"""CO2-Net: the authors' numbers, and what must hold of sampling, batches, losses, proposals and training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from generators import co2net
from generators.co2net import CO2Net, Scores, Settings, co2net_proposals, co2net_terms, sample_rows
from generators.co2net_losses import guide_loss, mil_loss, similarity_loss, suppress
from tests.golden_makers import EXACT, SINGLE, compare, part, read, state

NAMES = {"feat": "feat", "cas": "cas", "attn": "attention", "v_atn": "v_attention", "f_atn": "f_attention"}


def network(data, dtype=torch.float64, **how):
    weights = state(data)
    width, num_class = len(weights["vAttn.channel_conv.0.bias"]), len(weights["classifier.4.bias"]) - 1
    model = CO2Net(width, num_class, **how).to(dtype)
    model.load_state_dict(weights)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("pooling", [0, 13])
def test_golden_forward(dtype, pooling):
    data = read("co2net_forward")
    model = network(data, dtype, pooling=pooling)
    for video in sorted({key.split("/")[0] for key in data} - {"state"}):
        expected = part(data, video)
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
    data = part(read("co2net_losses"), case)
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
    data = read("co2net_step")
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
    data = read("co2net_sampling")
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
    data = read("co2net_proposals")
    for video in sorted({key.split("/")[0] for key in data} - {"ambiguous"}):
        expected = part(data, video)
        cas, attention = expected["cas"], expected["attn"][:, 0]
        np.testing.assert_allclose(co2net.co2net_video_score(cas, attention), expected["video_score"], **EXACT)
        found = co2net_proposals(cas, attention, faithful=True)
        assert found.shape == expected["raw"].shape
        np.testing.assert_array_equal(found[:, :3], expected["raw"][:, :3])
        np.testing.assert_allclose(found[:, 3], expected["raw"][:, 3], **EXACT)


def random_scores(rows, videos=6, num_class=3, width=4, seed=0):
    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=bits)

    bits = torch.Generator().manual_seed(seed)
    attentions = [draw(videos, rows).sigmoid() for _ in range(3)]
    return Scores(draw(videos, rows, width), draw(videos, rows, num_class + 1), *attentions)


@pytest.mark.parametrize("rows", range(1, 9))
@pytest.mark.parametrize("shared", [True, False])
def test_terms_and_gradients_are_finite_for_few_rows_and_no_shared_class(rows, shared):
    scores = Scores(*(x.requires_grad_() for x in random_scores(rows)))
    labels = torch.eye(3, dtype=torch.float64)[[0, 0 if shared else 1, 1, 2, 2, 0]]
    terms = co2net_terms(scores, labels, Settings())
    terms["total"].backward()
    assert all(term.isfinite() for term in terms.values()) and all(x.grad.isfinite().all() for x in scores)
    assert shared or terms["similarity"] == 0


def test_similarity_of_features_that_are_all_zero():
    scores = random_scores(5)
    feat = torch.zeros_like(scores.feat).requires_grad_()
    similarity_loss(feat, scores.cas, torch.ones(6, 3, dtype=torch.float64)).backward()
    assert feat.grad.isfinite().all()


def test_gradients_against_finite_differences():
    scores, labels = random_scores(8), torch.eye(3, dtype=torch.float64)[[0, 0, 1, 1, 2, 0]]
    leaves = [x.requires_grad_() for x in scores]

    def losses(feat, cas, attention, v, f):
        supp = suppress(cas, attention)
        return (
            similarity_loss(feat, supp, labels),
            mil_loss(supp, labels, 0).mean(),
            guide_loss(cas, attention, v, f),
        )

    assert torch.autograd.gradcheck(losses, leaves)


def test_shapes_are_checked_before_anything_can_broadcast():
    scores, labels = random_scores(5), torch.ones(6, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="attention"):
        suppress(scores.cas, scores.attention[:1])
    with pytest.raises(ValueError, match="actions"):
        mil_loss(scores.cas, labels[:, :1], 1)
    with pytest.raises(ValueError, match="v_attention"):
        guide_loss(scores.cas, scores.attention, scores.v_attention[:, :1], scores.f_attention)
    with pytest.raises(ValueError, match="pairs"):
        similarity_loss(scores.feat[:4], scores.cas[:4], labels[:4])
    with pytest.raises(ValueError, match=r"\[B, N, 8\]"):
        CO2Net(4, 3)(torch.zeros(1, 5, 7))


@pytest.mark.parametrize("length", range(1, 9))
def test_short_videos_are_sampled_scored_and_proposed(length):
    rng = np.random.default_rng(length)
    rows = sample_rows(length, 20, rng)
    assert rows.min() == 0 and rows.max() == length - 1 and (np.diff(rows // 2) >= -1).all()
    model = CO2Net(3, 4, seed=length)
    cas, attention = co2net.co2net_scores(model, rng.standard_normal((length, 6)).astype(np.float32))
    assert np.isfinite(cas).all() and cas.shape == (length, 5) and attention.shape == (length,)
    found = co2net_proposals(cas, attention, background_runs=True)
    assert np.isfinite(found).all() and (found[:, 0] < found[:, 1]).all() and (found[:, 1] <= length).all()


def test_background_runs_complement_the_attention_and_labels_replace_predictions():
    rng = np.random.default_rng(0)
    cas, attention = rng.standard_normal((30, 4)), rng.random(30)
    bare = co2net_proposals(cas, attention, classes=[2, 0])
    both = co2net_proposals(cas, attention, classes=[2, 0], background_runs=True)
    assert bare[:, 2].tolist() == [2] * (len(bare) // 2) + [0] * (len(bare) // 2)
    added = both[len(bare) // 2 : len(both) // 2]
    covered = [np.zeros(30, int) for _ in range(3)]
    level = -1
    previous = 30
    for start, end in added[:, :2].astype(int):
        level += start < previous
        previous = start
        covered[level][start:end] += 1
    for threshold, snippets in zip((0.3, 0.5, 0.7), covered):
        np.testing.assert_array_equal(snippets, attention < threshold)
    assert co2net_proposals(cas, np.full(30, 0.05)).shape == (0, 4)


def test_a_first_snippet_alone_is_a_run_unless_faithful():
    cas, attention = np.zeros((9, 3)), np.where(np.arange(9) == 0, 0.95, 0.0)
    assert len(co2net_proposals(cas, attention, [0])) == 10
    assert len(co2net_proposals(cas, attention, [0], faithful=True)) == 0


def test_batches_hold_pairs_of_different_videos_of_a_class():
    labels = np.eye(4)[np.arange(12) % 4]
    for i in range(50):
        videos = co2net.draw_batch(labels, Settings(), np.random.default_rng(i))
        assert len(videos) == 10
        for a, b in zip(videos[0:6:2], videos[1:6:2]):
            assert a != b and (labels[a] == labels[b]).all()


def test_dropout_halves_the_attention_logits_in_training():
    model = CO2Net(4, 2).train()
    scores = model(torch.randn(2, 200, 8, generator=torch.Generator().manual_seed(0)))
    assert 0.4 < (scores.v_attention == 0.5).double().mean() < 0.6
    assert not (model.eval()(torch.ones(1, 9, 8)).v_attention == 0.5).any()


def test_the_unused_encoder_is_passed_over_and_others_are_not():
    model = CO2Net(4, 2)
    state = model.state_dict()
    model.load_state_dict({**state, "feat_encoder.0.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="other"):
        model.load_state_dict({**state, "other.weight": torch.zeros(1)})
    assert all(torch.equal(a, b) for a, b in zip(CO2Net(4, 2).state_dict().values(), state.values()))
    assert not torch.equal(CO2Net(4, 2, seed=1).fusion["0"].weight, model.fusion["0"].weight)
