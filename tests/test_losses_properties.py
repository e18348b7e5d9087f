"""What holds for every term: alone as in a batch, whatever the order, nothing from nothing, finite from anything."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import losses
from losses import match_pseudo_true, seal_terms
from options import RECIPES
from tests import losses_reference as slow
from tests.losses_reference import NAMES, gradients, random_case, rows_of
from utils.packed import BLOCK, Batch, Outputs

both_recipes = pytest.mark.parametrize("recipe", ["paper", "release"])


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def terms_of(recipe, outputs, batch, epoch=5, **options):
    return seal_terms(outputs, batch, RECIPES[recipe], epoch, 200, **options)


def rearranged(outputs, batch, groups):
    """The same data with the videos of ``groups`` = [(video, its rows), ...] in that order."""
    rows = torch.tensor([i for _, mine in groups for i in mine])
    counts = tuple(len(mine) for _, mine in groups)
    video = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(counts))
    chosen = torch.tensor([v for v, _ in groups])
    per_video = (x[chosen] for x in (batch.labels, batch.pseudo_label, batch.confidence))
    return Outputs(*(x[rows] for x in outputs)), Batch(batch.proposals[rows], video, counts, *per_video)


# Independence of the batch and of the order


@both_recipes
def test_a_batch_is_the_weighted_mean_of_its_videos_alone(recipe):
    outputs, batch = random_case(counts=(9, 1, 17, 12, 6), seed=2)
    rows = rows_of(batch)
    alone = [rearranged(outputs, batch, [group]) for group in enumerate(rows)]
    per_video = [terms_of(recipe, *case) for case in alone]
    together = terms_of(recipe, outputs, batch)

    def weighted(values, shares):
        return sum(v * s for v, s in zip(values, shares)) / sum(shares)

    for name in ("loss_prop_mil_orig", "loss_prop_mil_supp"):
        close(together[name], weighted([t[name] for t in per_video], [1] * 5))

    shares = []
    for video, case in alone:
        given = case.proposals, video.attention.detach(), case.video, case.counts, RECIPES[recipe].gamma
        shares.append(int(match_pseudo_true(*given)[1].sum()))
    assert len(set(shares)) > 2
    close(together["PC_loss"], weighted([t["PC_loss"] for t in per_video], shares))

    sme = [t["SME_loss"] for t in per_video]
    high, moderate = ([s for s, c in zip(sme, batch.confidence) if c == sure] for sure in (2, 1))
    assert len(high) > 1 or len(moderate) > 1
    close(together["SME_loss"], sum(high) / len(high) + sum(moderate) / len(moderate))

    def st(video, case):
        s_supp = video.s_base * video.attention[:, None]
        first_class = RECIPES[recipe].st_first_class
        given = video.f_prop, video.s_base, s_supp, case.labels, case.video, case.counts, first_class
        return losses.st_loss(*given)

    def n_c(video, case):
        by_base = video.s_base[:, :-1].argmax(1)
        size = int((by_base == case.labels[0].argmax()).sum())
        return size if recipe == "release" else min(1, int((case.labels[0][by_base] > 0).sum()))

    shares = [n_c(*case) for case in alone]
    assert 0 in shares or len(set(shares)) > 1
    close(st(outputs, batch), weighted([st(*case) for case in alone], shares))

    def consistency(video, case):
        s_supp = video.s_base * video.attention[:, None]
        return losses.consistency_loss(video.s_base, s_supp, case.video, len(case.counts))

    close(consistency(outputs, batch), weighted([consistency(*case) for case in alone], [1] * 5))


@both_recipes
def test_the_order_of_proposals_and_of_videos_changes_nothing(recipe):
    outputs, batch = random_case(counts=(20, 1, 33, 8), seed=4)
    draw = torch.Generator().manual_seed(0)
    groups = [
        (v, [mine[i] for i in torch.randperm(len(mine), generator=draw)]) for v, mine in enumerate(rows_of(batch))
    ]
    groups = [groups[v] for v in (2, 0, 3, 1)]
    expected, actual = terms_of(recipe, outputs, batch), terms_of(recipe, *rearranged(outputs, batch, groups))
    for name in NAMES:
        close(actual[name], expected[name])
        for mine, theirs in zip(gradients(actual[name], outputs), gradients(expected[name], outputs)):
            close(mine, theirs)


# Nothing to act on


def nothing(outputs, batch):
    """Cases in which a term has nothing to act on: (term as a function of the outputs, batch)."""
    short = batch._replace(proposals=batch.proposals[:, :1].expand(-1, 2).clone())
    silent = batch._replace(confidence=torch.zeros_like(batch.confidence))
    moderate = batch._replace(confidence=torch.ones_like(batch.confidence))
    unlabelled = batch._replace(labels=torch.zeros_like(batch.labels))
    no_class = batch._replace(labels=torch.eye(4, dtype=torch.float64)[(batch.labels.argmax(1) + 1) % 4])
    return {
        "no pseudo-label": ("SME_loss", silent, {}),
        "no high confidence among high only": ("SME_loss", moderate, {"sme_labels": "high"}),
        "no overlap": ("PC_loss", short, {}),
        "no label": ("SC_loss", unlabelled, {}),
        "no proposal of the class": ("SC_loss", no_class, {}),
    }


@both_recipes
@pytest.mark.parametrize("case", list(nothing(*random_case())))
def test_a_term_with_nothing_to_act_on_is_exactly_zero_and_so_is_its_gradient(recipe, case):
    outputs, batch = random_case()
    name, batch, options = nothing(outputs, batch)[case]
    s_base = outputs.s_base.detach().clone()
    s_base[torch.arange(len(s_base)), random_case()[1].labels.argmax(1)[batch.video]] = 50  # all of the first class
    outputs = outputs._replace(s_base=s_base.requires_grad_())
    terms = terms_of(recipe, outputs, batch, **options)
    value = terms[name]
    if name == "SC_loss":  # of L_st alone: L_c always has something to act on
        s_supp = outputs.s_base * outputs.attention[:, None]
        first_class = recipe == "release"
        given = outputs.f_prop, outputs.s_base, s_supp, batch.labels, batch.video, batch.counts
        value = losses.st_loss(*given, first_class)
    assert value.item() == 0
    assert all((g == 0).all() for g in gradients(value, outputs))
    for term in terms.values():
        assert torch.isfinite(term)
        assert all(torch.isfinite(g).all() for g in gradients(term, outputs))


def test_with_one_kind_of_confidence_the_other_mean_is_simply_absent():
    outputs, batch = random_case()
    rows = rows_of(batch)
    for sure in (1, 2):
        same = batch._replace(confidence=torch.full_like(batch.confidence, sure))
        expected = slow.sme(outputs, same, rows, True, 1 - 5 / 200)
        close(terms_of("paper", outputs, same)["SME_loss"], expected)


# Switches


def test_a_term_that_is_switched_off_is_not_computed(monkeypatch):
    outputs, batch = random_case()

    def refuse(*_, **__):
        raise AssertionError("computed")

    everything = terms_of("paper", outputs, batch)
    parts = {"sme": "video_probability", "pc": "match_pseudo_true", "sc": "st_loss"}
    for name, part in parts.items():
        others = tuple(set(parts) - {name})
        with monkeypatch.context() as patch:
            patch.setattr(losses, part, refuse)
            terms = terms_of("paper", outputs, batch, losses=others)
            with pytest.raises(AssertionError, match="computed"):
                terms_of("paper", outputs, batch, losses=(name,))
        kept = [n for n in NAMES if n != f"{name.upper()}_loss"]
        assert list(terms) == kept
        assert all(torch.equal(terms[n], everything[n]) for n in kept[1:])
    base = terms_of("paper", outputs, batch, losses=())
    close(base["loss_total"], base["loss_prop_mil_orig"] + base["loss_prop_mil_supp"])


def test_high_labels_alone_are_what_is_left_when_the_moderate_ones_are_none():
    outputs, batch = random_case(seed=1)
    high = batch._replace(confidence=batch.confidence.masked_fill(batch.confidence == 1, 0))
    expected = terms_of("paper", outputs, high)["SME_loss"]
    assert torch.equal(terms_of("paper", outputs, batch, sme_labels="high")["SME_loss"], expected)
    assert not torch.equal(terms_of("paper", outputs, batch)["SME_loss"], expected)


@pytest.mark.parametrize("options", [{"losses": ("sme", "cs")}, {"sme_labels": "moderate"}])
def test_unknown_names_are_refused(options):
    with pytest.raises(ValueError, match="unknown"):
        terms_of("paper", *random_case(), **options)


# Numbers


@both_recipes
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(recipe, name):
    outputs, batch = random_case(counts=(7, 1, 4), classes=3, width=3, seed=6)
    batch = batch._replace(confidence=torch.tensor([2, 1, 1]))
    assert torch.autograd.gradcheck(lambda *x: terms_of(recipe, Outputs(*x), batch)[name], tuple(outputs))


def extreme(case):
    """Leaves (attention and s_pc before the sigmoid) and batch of one extreme case, float32."""
    counts = (1,) if case == "a single proposal" else (9, 1, 17, 12)
    outputs, batch = random_case(counts, dtype=torch.float32)
    s_base, attention, s_pc, f_prop = (x.detach().clone() for x in outputs)
    proposals = batch.proposals.clone()
    if case == "logits of +-1e4":
        s_base, attention, s_pc = ((x - x.mean()).sign() * 1e4 for x in (s_base, attention, s_pc))
    elif case == "logits of -1e4":
        s_base, attention, s_pc = (torch.full_like(x, -1e4) for x in (s_base, attention, s_pc))
    elif case == "identical proposals":
        s_base, attention, s_pc, f_prop, proposals = (
            x[:1].expand_as(x).clone() for x in (s_base, attention, s_pc, f_prop, proposals)
        )
    elif case == "all attention equal":
        attention = torch.zeros_like(attention)
    elif case == "zero-length proposals":
        proposals[::2, 1] = proposals[::2, 0]
    elif case == "overlaps of almost nothing":
        proposals[:, 0] = torch.arange(len(proposals)) * 1000.0
        proposals[:, 1] = torch.nextafter(proposals[:, 0] + 1000.0, torch.tensor(1e9))
    elif case == "features of 0":
        f_prop = torch.zeros_like(f_prop)
    leaves = [x.requires_grad_() for x in (s_base, attention, s_pc, f_prop)]
    return leaves, batch._replace(proposals=proposals)


@both_recipes
@pytest.mark.parametrize(
    "case",
    ["logits of +-1e4", "logits of -1e4", "identical proposals", "all attention equal", "a single proposal"]
    + ["zero-length proposals", "overlaps of almost nothing", "features of 0"],
)
def test_extreme_numbers_stay_finite(recipe, case):
    leaves, batch = extreme(case)
    s_base, attention, s_pc, f_prop = leaves
    for name, term in terms_of(recipe, Outputs(s_base, attention.sigmoid(), s_pc.sigmoid(), f_prop), batch).items():
        assert torch.isfinite(term), name
        assert all(torch.isfinite(g).all() for g in gradients(term, leaves)), name


@both_recipes
def test_half_precision_outputs_are_taken_as_float32_and_float64_is_kept(recipe):
    outputs, batch = random_case()
    assert all(term.dtype == torch.float64 for term in terms_of(recipe, outputs, batch).values())
    half = Outputs(*(x.detach().bfloat16().requires_grad_() for x in outputs))
    terms = terms_of(recipe, half, batch)
    expected = terms_of(recipe, Outputs(*(x.float() for x in half)), batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = terms_of(recipe, half, batch)
    for name in NAMES:
        assert terms[name].dtype == torch.float32
        assert torch.equal(terms[name], expected[name]) and torch.equal(terms[name], mixed[name])
    assert all(g.dtype == torch.bfloat16 for g in gradients(terms["loss_total"], half))


def test_nothing_given_is_changed():
    outputs, batch = random_case()
    given = [*outputs, *(x for x in batch if isinstance(x, torch.Tensor))]
    before = [x.detach().clone() for x in given]
    for recipe in ("paper", "release"):
        terms_of(recipe, outputs, batch)["loss_total"].backward()
    assert all(torch.equal(x, y) for x, y in zip(given, before))


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("s_base", lambda x: x[:, 1:]),
        ("s_base", lambda x: x[1:]),
        ("attention", lambda x: x[:, None]),
        ("attention", lambda x: x[:1]),
        ("s_pc", lambda x: x[:1]),
        ("f_prop", lambda x: x[:-1]),
        ("proposals", lambda x: x[:, :1]),
        ("video", lambda x: x[1:]),
        ("counts", lambda x: (*x[:-1], x[-1] - 1)),
        ("counts", lambda x: (*x, 0)),
        ("counts", lambda x: ()),
        ("labels", lambda x: x[:1]),
        ("labels", lambda x: x[0]),
        ("pseudo_label", lambda x: x[:1]),
        ("confidence", lambda x: x[:1]),
    ],
)
@both_recipes
def test_shapes_that_disagree_are_refused(recipe, name, wrong):
    outputs, batch = random_case()
    if name in Outputs._fields:
        outputs = outputs._replace(**{name: wrong(getattr(outputs, name))})
    else:
        batch = batch._replace(**{name: wrong(getattr(batch, name))})
    with pytest.raises(ValueError, match="has shape|counts must hold"):
        terms_of(recipe, outputs, batch)


# Cost


class Watch(TorchDispatchMode):
    """Every operator that runs, forward and backward, the devices met and the size of the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.operators, self.devices, self.largest = [], set(), 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.operators.append(operator.overloadpacket.__name__)
        made = [x for x in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(x, torch.Tensor)]
        self.devices |= {x.device.type for x in [*made, *args] if isinstance(x, torch.Tensor)}
        self.largest = max([self.largest, *(x.numel() for x in made)])
        return result


def watched_step(recipe, outputs, batch):
    with Watch() as watch:
        gradients(terms_of(recipe, outputs, batch)["loss_total"], outputs)
    return watch


def moved(outputs, batch, device):
    outputs = Outputs(*(x.detach().to(device).requires_grad_() for x in outputs))
    return outputs, Batch(*(x.to(device) if isinstance(x, torch.Tensor) else x for x in batch))


@both_recipes
def test_a_step_asks_nothing_of_the_device(recipe):
    """On the meta device there are shapes and no numbers: what would wait for a number (item, nonzero, a boolean
    index) raises. What would be copied from the host shows as a tensor elsewhere or as lift_fresh, scalar_tensor."""
    watch = watched_step(recipe, *moved(*random_case(), "meta"))
    assert len(watch.operators) > 100 and watch.devices == {"meta"}
    assert not {"lift_fresh", "scalar_tensor"} & set(watch.operators)


@both_recipes
def test_a_step_runs_no_loop_over_videos(recipe):
    few, many = (watched_step(recipe, *random_case(counts=(20,) * videos)) for videos in (2, 30))
    assert many.operators == few.operators


@both_recipes
@pytest.mark.parametrize("count", [3000, 20000])
def test_memory_is_bounded_for_a_video_with_very_many_proposals(recipe, count):
    assert count**2 > 8 * BLOCK
    outputs, batch = random_case(counts=(count,), width=8, dtype=torch.float32)
    assert watched_step(recipe, outputs, batch).largest <= BLOCK


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@both_recipes
def test_on_a_gpu_a_step_never_synchronises_and_gives_the_same(recipe):
    outputs, batch = random_case()
    expected = terms_of(recipe, outputs, batch)
    on_gpu, batch = moved(outputs, batch, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = terms_of(recipe, on_gpu, batch)
        given = gradients(terms["loss_total"], on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name in NAMES:
        close(terms[name].cpu(), expected[name])
    for mine, theirs in zip(given, gradients(expected["loss_total"], outputs)):
        close(mine.cpu(), theirs)
