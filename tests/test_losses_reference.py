"""Every term and gradient against slow loops written from the equations (losses_reference.py)."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

import losses
from losses import HIGH, MODERATE, NONE, match_pseudo_true, pseudo_labels, seal_terms, smooth_l1_all_pairs, weights
from options import RECIPES, Recipe
from tests import losses_reference as slow


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("recipe", ["paper", "release"])
@pytest.mark.parametrize(
    "epoch, seed", [(1, 0), (7, 1), (30, 2), (50, 3), (51, 4), (70, 5), (71, 6), (160, 7), (161, 8)]
)
def test_every_term_and_its_gradients_are_those_of_the_equations(recipe, epoch, seed):
    outputs, batch = slow.random_case(seed=seed)
    k = (8, 3, 1)[seed % 3]
    expected = slow.terms(outputs, batch, recipe, epoch, 200, k)
    terms = seal_terms(outputs, batch, RECIPES[recipe], epoch, 200, k)
    assert list(terms) == list(expected)
    schedule = weights(RECIPES[recipe], epoch, 200)
    factor = {"SME_loss": "lambda_sme", "PC_loss": "lambda_pc", "SC_loss": "lambda_sc"}
    for name, term in terms.items():
        close(term.detach(), expected[name].detach())
        if name not in factor or schedule[factor[name]] > 0:
            for mine, theirs in zip(slow.gradients(term, outputs), slow.gradients(expected[name], outputs)):
                close(mine, theirs)
        else:
            assert not term.requires_grad  # a weight of 0: shown, not differentiated


@pytest.mark.parametrize("first_class", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_semantic_consistency_where_the_two_scores_disagree(first_class, seed):
    """s_supp = A s_base never disagrees with s_base; Eq. (11) is defined for scores that do."""
    outputs, batch = slow.random_case(counts=(9, 3, 2, 1, 4, 2, 3), seed=seed)
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(outputs.s_base.shape, generator=draw, dtype=torch.float64)
    s_supp = outputs.s_base.detach() + 4 * noise
    base, supp = (s[:, :-1].argmax(1) for s in (outputs.s_base, s_supp))
    labelled = batch.labels.argmax(1)[batch.video]
    some_s = batch.video[(base == supp) & (base == labelled)].unique().tolist()
    some_n = batch.video[(base == labelled) | (supp == labelled)].unique().tolist()
    assert 0 < len(some_s) < len(some_n)  # there are classes with an N_c and no S_c
    given = (outputs.f_prop, outputs.s_base, s_supp, batch.labels)
    expected = slow.st(*given, slow.rows_of(batch), first_class)
    actual = losses.st_loss(*given, batch.video, batch.counts, first_class)
    close(actual.detach(), expected.detach())
    close(*(slow.gradients(value, [outputs.f_prop])[0] for value in (actual, expected)))


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_matching_finds_the_instance_of_highest_tiou_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(losses, "BLOCK", block)
    outputs, batch = slow.random_case(counts=(30, 2, 41), seed=3)
    proposals = batch.proposals.clone()
    proposals[5:10] = proposals[20:25]  # duplicates: the first of equal tIoU is taken
    proposals[50:53, 1] = proposals[50:53, 0]  # zero length
    proposals[60] = torch.tensor([500.0, 510.0])  # alone
    proposals[:30] *= 0.02  # shorter than a snippet
    attention = outputs.attention.detach()
    attention[60] = 0.01
    for gamma in (0.0, 0.3, 0.9, 1.0):
        found = slow.match(proposals, attention, slow.rows_of(batch), gamma)
        matched, overlaps = match_pseudo_true(proposals, attention, batch.video, batch.counts, gamma)
        assert overlaps.tolist() == [i in found for i in range(len(proposals))]
        assert {i: int(matched[i]) for i in found} == found
    assert 50 not in found and 60 not in found


def test_touching_proposals_do_not_overlap():
    proposals, one_video = torch.tensor([[0.0, 2.0], [2.0, 4.0]]), torch.zeros(2, dtype=torch.int64)
    _, overlaps = match_pseudo_true(proposals, torch.tensor([0.9, 0.1]), one_video, [2], 0.9)
    assert overlaps.tolist() == [True, False]


def test_an_intersection_of_almost_nothing_counts_as_a_millionth_of_a_snippet():
    proposals = torch.tensor([[0.0, 1.0], [1.0 - 2**-23, 2.0]])
    s_pc, one_video = torch.tensor([0.3, 0.6], dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    swapped, both = torch.tensor([1, 0]), torch.tensor([True, True])
    actual = losses.pc_loss(s_pc, proposals, swapped, both, one_video, [2])
    close(actual, slow.pc(s_pc, proposals, {0: 1, 1: 0}, [[0, 1]], 1, 1, 1, False))
    assert actual > 0.9e6


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_sum_over_all_pairs_is_the_double_sum(scale):
    draw = torch.Generator().manual_seed(7)
    shape = (3, 40)
    x = torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()
    offset = torch.randn(shape, generator=draw, dtype=torch.float64) * scale
    slope = torch.rand(shape, generator=draw, dtype=torch.float64) * scale + 1e-12
    slope[0, :5] = 1e-9
    offset[0, :3] = torch.tensor([1.0, -1.0, 0.0])
    mask = torch.rand(shape, generator=draw) < 0.7
    mask[2] = False
    slope[~mask], offset[~mask] = 0, 1  # what is masked may hold anything
    pairs = offset[:, None, :] + slope[:, None, :] * x[:, :, None]
    expected = F.smooth_l1_loss(pairs, torch.zeros_like(pairs), reduction="none")
    expected = (expected * mask[:, None, :] * mask[:, :, None]).sum()
    actual = smooth_l1_all_pairs(x, offset, slope, mask)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (actual, expected)), rtol=1e-8, atol=1e-8)


def test_pseudo_labels_of_the_three_kinds_of_videos():
    """Unit descriptors, so that the coordinates of a video's mean are its cosines (Eq. 5-7)."""
    descriptors = torch.eye(3)
    video_mean = torch.tensor(
        [
            [2.0, 1.0, 0.0, 5.0, 0.0, 1.0],  # both modalities say 0
            [0.1, 0.0, 9.0, 1.0, 0.9, 0.0],  # 2 against 0, the mean says 2
            [0.0, 1.0, 0.9, 0.0, 0.0, 1.0],  # 1 against 2, the mean says 2
            [1.0, 0.0, 0.9, 0.0, 1.0, 0.9],  # 0 against 1, the mean says 2
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # nothing: all cosines are 0, the first class in both
        ]
    )
    label, confidence = pseudo_labels(video_mean, descriptors, descriptors)
    assert label.tolist() == [0, 2, 2, 2, 0]
    assert confidence.tolist() == [HIGH, MODERATE, MODERATE, NONE, HIGH]
    assert (NONE, MODERATE, HIGH) == (0, 1, 2)


def test_pseudo_labels_compare_directions_not_lengths():
    draw = torch.Generator().manual_seed(1)
    video_mean, descriptors = torch.randn(20, 12, generator=draw), torch.randn(5, 12, generator=draw)
    expected = pseudo_labels(video_mean, *descriptors.chunk(2, 1))
    scaled = descriptors * torch.rand(5, 1, generator=draw).add(0.1)
    for actual, same in zip(pseudo_labels(video_mean * 7, *scaled.chunk(2, 1)), expected):
        assert torch.equal(actual, same)
    s_ap = F.cosine_similarity(video_mean[:, None, :6], descriptors[None, :, :6], dim=2).softmax(1)
    s_mo = F.cosine_similarity(video_mean[:, None, 6:], descriptors[None, :, 6:], dim=2).softmax(1)
    assert torch.equal(expected[0], (s_ap + s_mo).argmax(1))
    assert torch.equal(expected[1] == HIGH, s_ap.argmax(1) == s_mo.argmax(1))


@pytest.mark.parametrize(
    "recipe, epoch, expected",
    [
        ("paper", 1, (29 / 30, 1.5, 0.8824969, 0.995, 0.304)),
        ("paper", 30, (0.0, 1.5, 0.0235177, 0.85, 0.42)),
        ("paper", 50, (0.0, 1.5, 0.0019305, 0.75, 0.5)),
        ("paper", 51, (0.0, 1.5, 0.0, 0.745, 0.504)),
        ("release", 1, (0.0605680, 3.4, 0.8824969, 0.4975, 0.3028571)),
        ("release", 70, (0.9660468, 3.4, 0.0001585, 0.325, 0.5)),
        ("release", 71, (0.9664909, 3.4, 0.0, 0.3225, 0.5028571)),
        ("release", 160, (0.9511862, 3.4, 0.0, 0.1, 0.7571429)),
        ("release", 161, (0.0, 3.4, 0.0, 0.0975, 0.76)),
        ("release", 200, (0.0, 3.4, 0.0, 0.0, 0.8714286)),
    ],
)
def test_schedule(recipe, epoch, expected):
    schedule = weights(RECIPES[recipe], epoch, 200)
    assert list(schedule) == ["lambda_sme", "lambda_pc", "lambda_sc", "moderate", "alpha"]
    assert list(schedule.values()) == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("recipe", ["paper", "release"])
@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_every_number_of_a_recipe_can_be_overridden(recipe, field):
    case = slow.random_case()
    value = getattr(RECIPES[recipe], field)
    if isinstance(value, str):
        other = {"linear": "exp", "exp": "linear"}[value]
    else:
        other = not value if isinstance(value, bool) else value / 2
    given, changed = (
        seal_terms(*case, r, 9, 200) for r in (RECIPES[recipe], replace(RECIPES[recipe], **{field: other}))
    )
    if field == "sc_until":  # 9 lies before the end of either
        assert weights(replace(RECIPES[recipe], sc_until=8), 9, 200)["lambda_sc"] == 0
    else:
        assert not torch.equal(given["loss_total"], changed["loss_total"])
