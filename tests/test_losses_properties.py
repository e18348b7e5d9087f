"""What holds for every term: alone as in a batch, whatever the order, nothing from nothing, finite from anything."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import losses
from losses import PADDING_DRAWS, TERMS, padding_rows, seal_terms, untrained
from options import RECIPES
from tests.losses_reference import NAMES, gradients, random_case, rows_of
from utils.packed import BLOCK, Batch, pack

both_recipes = pytest.mark.parametrize("recipe", ["paper", "release"])


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def terms_of(recipe, outputs, batch, epoch=5, names=tuple(TERMS), **numbers):
    return seal_terms(outputs, batch, RECIPES[recipe]._replace(**numbers), epoch, 200, names)


def rearranged(outputs, batch, groups):
    """The same data with the videos of ``groups`` = [(video, its rows), ...] in that order; padding rows stay last."""
    rows = torch.tensor([i for _, mine in groups for i in mine])
    padding = torch.arange(len(batch.proposals), len(outputs["attention"]))
    videos = torch.tensor([v for v, _ in groups])
    per_video = (x[videos] for x in (batch.labels, batch.pseudo_label, batch.confidence))
    packing = pack(tuple(len(mine) for _, mine in groups), len(padding))
    return (
        {name: x[torch.cat([rows, padding])] for name, x in outputs.items()},
        Batch(batch.proposals[rows], packing, *per_video),
    )


# Independence of the batch and of the order


@pytest.mark.parametrize("recipe, counts", [("paper", (9, 1, 17, 12, 6)), ("release", (12,) * 5)])
def test_a_video_is_the_same_alone_as_in_a_batch_but_for_its_share_of_the_mean(recipe, counts):
    """In ``release`` too where nothing is padded: the length of the longest is what its videos share."""
    outputs, batch = random_case(counts, seed=2, padding=0)

    def values(case):
        l_c, both = (terms_of(recipe, *case, alpha_start=alpha, alpha_gain=0.0) for alpha in (0.0, 1.0))
        return {**l_c, "L_st": both["SC_loss"] - l_c["SC_loss"]}

    together, groups = values((outputs, batch)), list(enumerate(rows_of(counts)))
    each = [values(rearranged(outputs, batch, [group])) for group in groups]
    for name in (*NAMES[1:], "L_st"):  # without alpha SC_loss is L_c
        whole, total, shares = gradients(together[name], outputs), 0, []
        for (_, rows), video in zip(groups, each):
            own = gradients(video[name], outputs)
            mine, alone = (torch.cat([g[x][rows].flatten() for x in outputs]) for g in (whole, own))
            shares.append(mine @ alone / (alone @ alone).clamp(min=1e-300))
            close(mine, shares[-1] * alone)
            total = total + shares[-1] * video[name]
        close(together[name], total)
        close(sum(shares), torch.tensor(2.0 if name == "SME_loss" else 1.0).double())  # Eq. (8): a mean for each kind


@both_recipes
def test_the_order_of_proposals_and_of_videos_changes_nothing(recipe):
    outputs, batch = random_case(counts=(20, 1, 33, 8), seed=4, padding=2)
    draw = torch.Generator().manual_seed(0)
    rows = rows_of(batch.packing.counts)
    groups = [(v, [rows[v][i] for i in torch.randperm(len(rows[v]), generator=draw)]) for v in (2, 0, 3, 1)]
    case = rearranged(outputs, batch, groups)
    expected, actual = terms_of(recipe, outputs, batch), terms_of(recipe, *case)
    for name in NAMES:
        close(actual[name], expected[name])
        mine, theirs = (gradients(terms[name], outputs) for terms in (actual, expected))
        for output in outputs:
            close(mine[output], theirs[output])


def test_the_paper_never_sees_padding_even_beside_a_term_that_does(monkeypatch):
    monkeypatch.setitem(TERMS, "rows", losses.Term("rows", lambda x: x.padded("s_pc").sum(),
                                                   lambda *_: {"lambda_rows": 1.0}, pads=lambda r: True))  # fmt: skip
    outputs, batch = random_case(padding=3)
    terms = terms_of("paper", outputs, batch, names=[*TERMS])
    without = batch._replace(packing=pack(batch.packing.counts))
    bare = terms_of("paper", {name: x[:-3] for name, x in outputs.items()}, without, names=[*TERMS])
    assert all(torch.equal(terms[name], bare[name]) for name in NAMES[1:])
    assert terms["rows"] != bare["rows"]
    for name in NAMES[1:]:
        assert all((g[-3:] == 0).all() for g in gradients(terms[name], outputs).values())
    assert padding_rows(["sme", "pc", "sc"], RECIPES["paper"], 0.5) == 0
    assert padding_rows(["sme", "pc"], RECIPES["release"], 0.5) == 0
    assert padding_rows(["sc"], RECIPES["release"], 0.5) == PADDING_DRAWS and 1 < PADDING_DRAWS < 100
    assert padding_rows(["sc"], RECIPES["release"], 0.0) == 1


# Nothing to act on

NOTHING = {  # the term, what of the batch is changed, and numbers of the recipe
    "no pseudo-label": ("SME_loss", lambda b: b._replace(confidence=b.confidence * 0), {}),
    "no high-confidence video": ("SME_loss", lambda b: b._replace(confidence=b.confidence * 0 + 1),
                                 {"sme_labels": "high"}),
    "no overlap": ("PC_loss", lambda b: b._replace(proposals=b.proposals[:, :1].expand(-1, 2).clone()), {}),
    "no label": ("SC_loss", lambda b: b._replace(labels=b.labels * 0), {}),
    "no proposal of the class": ("SC_loss", lambda b: b._replace(labels=torch.eye(4).double()[[3] * 4]), {}),
}  # fmt: skip


@both_recipes
@pytest.mark.parametrize("case", list(NOTHING))
def test_a_term_with_nothing_to_act_on_is_exactly_zero_and_so_is_its_gradient(recipe, case):
    name, change, numbers = NOTHING[case]
    outputs, batch = random_case()
    outputs["s_base"].data[:, 0] = 50  # every proposal is of the first class
    terms = terms_of(recipe, outputs, change(batch), **numbers)
    value = terms[name]
    if name == "SC_loss":  # less L_c, which always has something to act on: L_st
        value = value - terms_of(recipe, outputs, change(batch), alpha_start=0.0, alpha_gain=0.0)[name]
    assert value.item() == 0
    assert not any(g.any() for g in gradients(value, outputs).values())
    for term in terms.values():
        assert torch.isfinite(term) and all(torch.isfinite(g).all() for g in gradients(term, outputs).values())


# Switches


def test_a_term_that_is_switched_off_is_absent_and_changes_no_other():
    outputs, batch = random_case()
    everything = terms_of("paper", outputs, batch)
    for name, term in TERMS.items():
        terms = terms_of("paper", outputs, batch, names=[other for other in TERMS if other != name])
        assert list(terms) == [n for n in NAMES if n != term.name]
        assert all(torch.equal(x, everything[n]) for n, x in terms.items() if n != "loss_total")
    base = terms_of("paper", outputs, batch, names=[])
    close(base["loss_total"], base["loss_prop_mil_orig"] + base["loss_prop_mil_supp"])
    with pytest.raises(ValueError, match="unknown losses .'cs'"):
        terms_of("paper", outputs, batch, names=["sme", "cs"])


@both_recipes
def test_an_output_is_untrained_exactly_where_no_term_has_a_gradient_for_it(recipe):
    outputs, batch = random_case(seed=1)
    for names, numbers, expected in (
        (["sme", "pc", "sc"], {}, set()),
        (["pc"], {"pc_centre": 0.0}, set()),
        (["sme", "sc"], {}, {"s_pc"}),
        (["pc"], {"lambda_pc": 0.0}, {"s_pc"}),
        (["pc"], {"pc_centre": 0.0, "pc_penalty": 0.0}, {"s_pc"}),
    ):
        given = gradients(terms_of(recipe, outputs, batch, names=names, **numbers)["loss_total"], outputs)
        assert untrained(names, RECIPES[recipe]._replace(**numbers)) == expected
        assert {name for name in ("s_base", "attention", "s_pc") if not given[name].any()} == expected


# Numbers


@both_recipes
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(recipe, name):
    outputs, batch = random_case(counts=(7, 1, 4), classes=3, width=3, seed=6)
    batch = batch._replace(confidence=torch.tensor([2, 1, 1]))

    def value(*leaves):
        return terms_of(recipe, dict(zip(outputs, leaves)), batch)[name]

    assert torch.autograd.gradcheck(value, tuple(outputs.values()))


EXTREMES = {  # what becomes of outputs (attention and s_pc before the sigmoid) and proposals
    "logits of +-1e4": lambda o, p: [o[k].sub_(o[k].mean()).sign_().mul_(1e4) for k in ("s_base", "attention", "s_pc")],
    "logits of -1e4": lambda o, p: [o[k].fill_(-1e4) for k in ("s_base", "attention", "s_pc")],
    "identical proposals": lambda o, p: [x.copy_(x[:1].clone().expand_as(x)) for x in (*o.values(), p)],
    "all attention equal": lambda o, p: o["attention"].zero_(),
    "zero-length proposals": lambda o, p: p[::2, 1].copy_(p[::2, 0]),
    "touching proposals": lambda o, p: p.copy_(torch.arange(len(p))[:, None] * 1e3 + torch.tensor([0.0, 1e3])),
    "features of 0": lambda o, p: o["f_prop"].zero_(),
    "a single proposal": lambda o, p: None,
}  # fmt: skip


@both_recipes
@pytest.mark.parametrize("case", list(EXTREMES))
def test_extreme_numbers_stay_finite(recipe, case):
    outputs, batch = random_case((1,) if case == "a single proposal" else (9, 1, 17, 12), dtype=torch.float32)
    leaves = {name: x.detach() for name, x in outputs.items()}
    EXTREMES[case](leaves, batch.proposals)
    for x in leaves.values():
        x.requires_grad_()
    outputs = {name: x.sigmoid() if name in ("attention", "s_pc") else x for name, x in leaves.items()}
    for name, term in terms_of(recipe, outputs, batch).items():
        assert torch.isfinite(term), name
        assert all(torch.isfinite(g).all() for g in gradients(term, leaves).values()), name


@both_recipes
def test_half_precision_outputs_are_taken_as_float32_and_float64_is_kept(recipe):
    outputs, batch = random_case()
    assert all(term.dtype == torch.float64 for term in terms_of(recipe, outputs, batch).values())
    half = {name: x.detach().bfloat16().requires_grad_() for name, x in outputs.items()}
    terms, expected = (terms_of(recipe, o, batch) for o in (half, {name: x.float() for name, x in half.items()}))
    for name in NAMES:
        assert terms[name].dtype == torch.float32 and torch.equal(terms[name], expected[name])
    assert all(g.dtype == torch.bfloat16 for g in gradients(terms["loss_total"], half).values())


WRONG = {
    "s_base": (lambda x: x[:, 1:], lambda x: x[:1], lambda x: x[:, :, None]),
    "attention": (lambda x: x[:, None], lambda x: x[:1]),
    "s_pc": (lambda x: x[:, None], lambda x: x[:1]),
    "f_prop": (lambda x: x[:-1], lambda x: x[0, 0]),
    "proposals": (lambda x: x[:, :1], lambda x: x[:1]),
    "packing": (lambda x: pack((*x.counts, 5)), lambda x: pack(x.counts[1:])),
    "labels": (lambda x: x[:1], lambda x: x[:, :1], lambda x: x[0]),
    "pseudo_label": (lambda x: x[:1],),
    "confidence": (lambda x: x[:1],),
}


@pytest.mark.parametrize("name, wrong", [(name, wrong) for name, changes in WRONG.items() for wrong in changes])
@both_recipes
def test_shapes_that_disagree_are_refused_and_nothing_of_one_element_is_spread(recipe, name, wrong):
    outputs, batch = random_case()
    if name in outputs:
        outputs = {**outputs, name: wrong(outputs[name])}
    else:
        batch = batch._replace(**{name: wrong(getattr(batch, name))})
    for names in (tuple(TERMS), ())[: 2 if name in ("s_base", "attention", "labels") else 1]:
        with pytest.raises(ValueError, match="has shape"):
            terms_of(recipe, outputs, batch, names=names)


# Cost


class Watch(TorchDispatchMode):
    """Every operator that runs, forward and backward, and device and size of the tensors met."""

    def __init__(self):
        super().__init__()
        self.operators, self.met = [], set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        self.operators.append(operator.overloadpacket.__name__)
        self.met |= {(x.device.type, x.numel()) for x in (*made, *args) if isinstance(x, torch.Tensor)}
        return result


def watched_step(recipe, outputs, batch):
    with Watch() as watch:
        gradients(terms_of(recipe, outputs, batch)["loss_total"], outputs)
    return watch


@both_recipes
@pytest.mark.parametrize("block", [1, BLOCK])
def test_a_step_asks_nothing_of_the_device(monkeypatch, recipe, block):
    """On the meta device there are shapes and no numbers: what would wait for a number (item, nonzero, a boolean
    index) raises. What would be copied from the host shows as a tensor elsewhere or as lift_fresh, scalar_tensor."""
    monkeypatch.setattr(losses, "BLOCK", block)
    outputs, batch = random_case()
    outputs = {name: x.detach().to("meta").requires_grad_() for name, x in outputs.items()}
    packing, fields = batch.packing, ("proposals", "labels", "pseudo_label", "confidence")
    packing = packing._replace(**{k: getattr(packing, k).to("meta") for k in packing._fields[1:]})
    batch = batch._replace(packing=packing, **{k: getattr(batch, k).to("meta") for k in fields})
    watch = watched_step(recipe, outputs, batch)
    assert len(watch.operators) > 100 and {device for device, _ in watch.met} == {"meta"}
    assert not {"lift_fresh", "scalar_tensor"} & set(watch.operators)


@both_recipes
def test_a_step_runs_no_loop_over_videos(recipe):
    """But for all pairs of more proposals than fit a block, which are summed video by video."""
    few, many = (watched_step(recipe, *random_case(counts=(20,) * videos)) for videos in (2, 30))
    assert many.operators == few.operators


@pytest.mark.parametrize("recipe, counts, most", [("paper", (20000,), BLOCK), ("release", (2000,) * 3, 2000**2)])
def test_memory_is_bounded_for_videos_with_very_many_proposals(recipe, counts, most):
    assert len(counts) * max(counts) ** 2 > 8 * BLOCK
    watch = watched_step(recipe, *random_case(counts, width=8, dtype=torch.float32))
    assert max(size for _, size in watch.met) <= most
