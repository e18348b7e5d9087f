"""Every term and gradient against slow loops written from the equations (losses_reference.py)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import losses
from losses import HIGH, MODERATE, PADDING_DRAWS, TERMS, match_pseudo_true, pseudo_labels, schedule, seal_terms
from model import SEAL
from options import NUMBERS, RECIPES
from tests import losses_reference as slow
from utils.packed import Batch, pack, pad


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def same_gradients(actual, expected, outputs):
    for name, gradient in slow.gradients(actual, outputs).items():
        close(gradient, slow.gradients(expected, outputs)[name])


@pytest.mark.parametrize("recipe", ["paper", "release"])
@pytest.mark.parametrize(
    "epoch, seed", [(1, 0), (7, 1), (30, 2), (50, 3), (51, 4), (70, 5), (71, 6), (160, 7), (161, 8)]
)
def test_every_term_and_its_gradients_are_those_of_the_equations(recipe, epoch, seed):
    k, padding = (8, 3, 1)[seed % 3], (1, 2, 4)[seed % 3]  # 16, 8, 0 and 4 rows are missing
    outputs, batch = slow.random_case(counts=(1, 9, 17, 13), seed=seed, padding=padding)
    expected = slow.terms(outputs, batch, recipe, epoch, 200, k)
    terms = seal_terms(outputs, batch, RECIPES[recipe]._replace(k=k), epoch, 200)
    assert list(terms) == list(expected)
    numbers = schedule(tuple(TERMS), RECIPES[recipe], epoch, 200)
    assert list(numbers) == ["lambda_sme", "moderate", "lambda_pc", "lambda_sc", "alpha"]
    weight = {"SME_loss": "lambda_sme", "PC_loss": "lambda_pc", "SC_loss": "lambda_sc"}
    for name, term in terms.items():
        close(term.detach(), expected[name].detach())
        if name not in weight or numbers[weight[name]] > 0:
            same_gradients(term, expected[name], outputs)
        else:
            assert not term.requires_grad  # a weight of 0: shown, not differentiated


# L_pc, Eq. (10)


@pytest.mark.parametrize("all_pairs", [False, True])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_process_consistency_is_that_of_the_equations_whatever_the_block(monkeypatch, block, all_pairs):
    """With a block of 1 instances are matched one at a time and pairs are summed video by video."""
    monkeypatch.setattr(losses, "BLOCK", block)
    outputs, batch = slow.random_case(counts=(12, 1, 7), seed=5)
    proposals, s_pc = batch.proposals.clone(), outputs["s_pc"][:20]
    proposals[3:5] = torch.tensor([[90.0, 95.0], [94.0, 96.0]])
    attention = outputs["attention"][:20].detach().clone()
    attention[3:5] = 0.01  # overlap one another but no instance
    rows, factors = slow.rows_of((12, 1, 7)), (0.3, 0.6, 9.0)
    matched, overlaps = match_pseudo_true(proposals, attention, batch.packing, 0.8)
    found = slow.match(proposals, attention, rows, 0.8)
    assert 0 < len(found) < 20
    expected = slow.pc(s_pc, proposals, found, rows, factors, all_pairs)
    actual = losses.pc_loss(s_pc, proposals, matched, overlaps, batch.packing, factors, all_pairs)
    close(actual, expected)
    same_gradients(actual, expected, outputs)


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_matching_finds_the_instance_of_highest_tiou_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(losses, "BLOCK", block)
    outputs, batch = slow.random_case(counts=(30, 2, 41), seed=3, padding=0)
    proposals = batch.proposals.clone()
    proposals[5:10] = proposals[20:25]  # duplicates: the first of equal tIoU is taken
    proposals[50:53, 1] = proposals[50:53, 0]  # zero length
    proposals[60] = torch.tensor([500.0, 510.0])  # alone
    proposals[:30] *= 0.02  # shorter than a snippet
    attention = outputs["attention"].detach()
    attention[60] = 0.01
    for gamma in (0.0, 0.3, 0.9, 1.0):
        found = slow.match(proposals, attention, slow.rows_of((30, 2, 41)), gamma)
        matched, overlaps = match_pseudo_true(proposals, attention, batch.packing, gamma)
        assert overlaps.tolist() == [i in found for i in range(len(proposals))]
        assert {i: int(matched[i]) for i in found} == found
    assert 50 not in found and 60 not in found
    touching = torch.tensor([[0.0, 2.0], [2.0, 4.0]])
    assert match_pseudo_true(touching, torch.tensor([0.9, 0.1]), pack((2,)), 0.9)[1].tolist() == [True, False]


def test_an_intersection_of_almost_nothing_counts_as_a_millionth_of_a_snippet():
    proposals = torch.tensor([[0.0, 1.0], [1.0 - 2**-23, 2.0]])
    s_pc = torch.tensor([0.3, 0.6], dtype=torch.float64)
    actual = losses.pc_loss(s_pc, proposals, torch.tensor([1, 0]), torch.tensor([True, True]), pack((2,)))
    close(actual, slow.pc(s_pc, proposals, {0: 1, 1: 0}, [[0, 1]], (1, 1, 1), False))
    assert actual > 0.9e6


# L_sc, Eq. (11)-(13)


@pytest.mark.parametrize("first_class", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_semantic_consistency_where_the_scores_disagree_and_rows_stand_for_several(first_class, seed):
    """s_supp = A s_base never disagrees with s_base; Eq. (11) and (12) are defined for scores that do."""
    outputs, batch = slow.random_case(counts=(9, 3, 2, 1, 4, 2, 3), seed=seed, padding=0)
    draw, video = torch.Generator().manual_seed(seed), batch.packing.video
    s_base, s_supp = outputs["s_base"], (outputs["s_base"].detach() + 4 * torch.randn(24, 5, generator=draw).double())
    base, supp = (s[:, :-1].argmax(1) for s in (s_base, s_supp))
    labelled = batch.labels.argmax(1)[video]
    some_s = video[(base == supp) & (base == labelled)].unique().tolist()
    some_n = video[(base == labelled) | (supp == labelled)].unique().tolist()
    assert 0 < len(some_s) < len(some_n)  # there are classes with an N_c and no S_c
    several = torch.randint(0, 4, (24,), generator=draw)
    several[batch.packing.first] = 1
    for times, weight in ((torch.ones_like(several), None), (several, several.double())):
        rows = [[i for i in mine for _ in range(times[i])] for mine in slow.rows_of(batch.packing.counts)]
        expected = slow.st(outputs["f_prop"], s_base, s_supp, batch.labels, rows, first_class)
        actual = losses.st_loss(outputs["f_prop"], s_base, s_supp, batch.labels, video, weight, first_class)
        close(actual, expected)
        same_gradients(actual, expected, outputs)
        close(losses.consistency_loss(s_base, s_supp, video, 7, weight), slow.consistency(s_base, s_supp, rows))


# The rows that pad a batch in the authors' code


def authors_sc(outputs, labels):
    """L_st and L_c over all B * M_max rows of a padded batch, as the authors compute them."""
    videos, classes = labels.shape
    s_base, f_prop = (
        outputs[name].reshape(videos, -1, width) for name, width in (("s_base", classes + 1), ("f_prop", 8))
    )
    s_supp, apart = s_base * outputs["attention"].reshape(videos, -1, 1), []
    for base, supp, f, label in zip(s_base[..., :-1], s_supp[..., :-1], f_prop, labels.argmax(1)):
        base, supp = base.argmax(1) == label, supp.argmax(1) == label
        if (base & supp).any():
            apart.append(torch.linalg.vector_norm(f[base | supp] - f[base & supp].mean(0), dim=1))
    l_c = F.mse_loss(s_base[..., :-1].softmax(2), s_supp[..., :-1].softmax(2))
    return torch.cat(apart).mean(), l_c


def padded_case(counts, seed, dtype=torch.float64):
    """A model, the SCFE inputs of videos of these lengths, the same padded with rows of 0, and the Batch."""
    draw, packing = torch.Generator().manual_seed(seed), pack(counts)
    rows = torch.randn(sum(counts), 24, generator=draw, dtype=dtype) + torch.randn(24, generator=draw, dtype=dtype)
    videos, none = len(counts), torch.zeros(len(counts), dtype=torch.int64)
    labels = torch.eye(3, dtype=dtype)[torch.arange(videos) % 3]
    model = SEAL(8, 3, seed=seed).to(dtype)
    return model, rows, pad(rows, packing, 0).flatten(0, 1), Batch(rows[:, :2], packing, labels, none, none)


def our_sc(model, rows, batch, padding):
    """L_st and L_c of the release: what is left of L_sc without alpha is L_c."""
    outputs, batch = model(rows, padding=padding), batch._replace(packing=pack(batch.packing.counts, padding))
    numbers = {"alpha_gain": 0.0, "sc_padding": padding > 0}
    without, whole = (
        seal_terms(outputs, batch, RECIPES["release"]._replace(alpha_start=alpha, **numbers), 1, 200, ["sc"])["SC_loss"]
        for alpha in (0.0, 1.0)
    )
    return whole - without, without


@pytest.mark.parametrize("padding", [1, 3, PADDING_DRAWS])
@pytest.mark.parametrize("counts, seed", [((8, 40, 104), 1), ((3, 5), 1), ((9, 1, 17, 12), 2), ((7, 7), 0)])
def test_without_dropout_the_release_is_exactly_that_of_a_really_padded_batch(counts, seed, padding):
    model, rows, padded, batch = padded_case(counts, seed)
    model.eval()
    expected, actual = authors_sc(model(padded), batch.labels), our_sc(model, rows, batch, padding)
    bare = our_sc(model, rows, batch, 0)
    assert len(set(counts)) == 1 or not torch.allclose(bare[1], expected[1], rtol=0.01)
    for mine, theirs in zip(actual, expected):
        close(mine, theirs)
        parameters = dict(model.named_parameters())
        same_gradients(mine, theirs, parameters)


def test_with_dropout_some_weighted_draws_have_the_expectation_of_a_really_padded_batch():
    model, rows, padded, batch = padded_case((8, 40, 104), seed=1, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        kinds = (
            lambda: authors_sc(model(padded), batch.labels),
            lambda: our_sc(model, rows, batch, PADDING_DRAWS),
            lambda: our_sc(model, rows, batch, 0),
        )
        theirs, ours, bare = (torch.tensor([[float(x) for x in kind()] for _ in range(200)]) for kind in kinds)
    error = ((theirs.var(0) + ours.var(0)) / 200).sqrt()
    assert ((theirs.mean(0) - ours.mean(0)).abs() < 4 * error).all()
    assert ((theirs.mean(0) - bare.mean(0)).abs() > 20 * error).all()  # a bound that can fail


# Pseudo-labels, Eq. (5)-(7)


def test_pseudo_labels_of_the_three_kinds_of_videos():
    """Unit descriptors, so that the coordinates of a video's mean are its cosines, whatever their lengths."""
    means = torch.tensor(
        [
            [2.0, 1.0, 0.0, 5.0, 0.0, 1.0],  # both modalities say 0
            [0.1, 0.0, 9.0, 1.0, 0.9, 0.0],  # 2 against 0, the mean says 2
            [0.0, 1.0, 0.9, 0.0, 0.0, 1.0],  # 1 against 2, the mean says 2
            [1.0, 0.0, 0.9, 0.0, 1.0, 0.9],  # 0 against 1, the mean says 2
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # nothing: all cosines are 0, the first class in both
        ]
    )
    for appearance, motion in ((1.0, 1.0), (0.01, 7.0)):
        label, confidence = pseudo_labels(means * 3, appearance * torch.eye(3), motion * torch.eye(3))
        assert label.tolist() == [0, 2, 2, 2, 0]
        assert confidence.tolist() == [HIGH, MODERATE, MODERATE, 0, HIGH]


def test_pseudo_labels_are_those_of_the_cosines():
    means, descriptors = torch.randn(25, 12, generator=torch.Generator().manual_seed(1)).split([20, 5])
    label, confidence = pseudo_labels(means, *descriptors.chunk(2, 1))
    s_ap, s_mo = (
        F.cosine_similarity(f[:, None], d[None], dim=2).softmax(1)
        for f, d in zip(means.chunk(2, 1), descriptors.chunk(2, 1))
    )
    assert torch.equal(label, (s_ap + s_mo).argmax(1))
    assert torch.equal(confidence == HIGH, s_ap.argmax(1) == s_mo.argmax(1))


# The numbers of a recipe


@pytest.mark.parametrize("recipe", ["paper", "release"])
@pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row.name)
def test_every_number_of_a_recipe_changes_the_losses(recipe, row):
    value = getattr(RECIPES[recipe], row.name)
    if isinstance(row.kind, tuple):
        other = row.kind[row.kind.index(value) - 1]
    else:
        other = not value if isinstance(value, bool) else value // 2 if isinstance(value, int) else value / 2
    epoch = 40 if row.name == "sc_until" else 9  # past half of it, in either recipe
    given, changed = (
        seal_terms(*slow.random_case(), RECIPES[recipe]._replace(**{row.name: x}), epoch, 200)["loss_total"]
        for x in (value, other)
    )
    assert not torch.equal(given, changed)
