"""The network: golden forward pass, initial weights, dropout and padding, released names, checkpoints refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model import BRANCHES, SEAL, check_classes, load_model, save_model
from utils.datasets.scfe import scfe_input
from utils.errors import InputError
from utils.files import load_checkpoint

INFO = {"classes": [f"c{i}" for i in range(20)], "epoch": 3, "options": {"recipe": "paper", "gamma": 0.5}}


@pytest.fixture(scope="module")
def released(golden):
    return load_model(golden / "checkpoint.pkl")


def test_golden_checkpoint_reproduces_the_authors_forward_pass(golden, released):
    model, info = released
    with np.load(golden / "forward.npz") as file:
        expected = {name: file[name] for name in file.files}
    rows = scfe_input(torch.from_numpy(expected["features"]), expected["proposals"].astype(np.float64))
    with torch.no_grad():
        outputs = model.eval()(rows)
    assert info == {}
    outputs.update(attn_logit=outputs["attention"].logit(), pc_logit=outputs["s_pc"].logit())
    for name in ("s_base", "attn_logit", "pc_logit", "f_prop"):
        np.testing.assert_allclose(outputs[name].squeeze(), expected[name].squeeze(), rtol=1e-4, atol=1e-5)


def test_in_bfloat16_attention_and_s_pc_keep_the_ranks_of_the_proposals():
    """A sigmoid in bfloat16 would make fewer than 20 values of them."""
    model = SEAL(8, 3, dropout_ratio=0.0).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = model(torch.randn(100, 24, generator=torch.Generator().manual_seed(0)))
    for name in ("attention", "s_pc"):
        assert outputs[name].dtype == torch.float32 and len(outputs[name].unique()) > 30


# Initial weights


def test_initial_weights_and_biases_are_uniform_in_one_over_the_root_of_fan_in():
    layers = [m for m in SEAL(256, 500, seed=3).modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 1 + 2 * len(BRANCHES)
    for layer in layers:
        bound = layer.in_features**-0.5
        for parameter in (layer.weight, layer.bias):
            x, n = parameter.detach().flatten() / bound, parameter.numel()
            assert x.abs().max() <= 1 and (x != 0).all()
            if n == 1:  # the last bias of attention and s_pc
                continue
            assert x.abs().max() > 1 - 10 / n
            assert x.mean().abs() < 4 * (1 / 3 / n) ** 0.5
            assert (x.square().mean() - 1 / 3).abs() < 4 * (4 / 45 / n) ** 0.5  # the variance of x^2 is 4/45
            assert ((x.abs() < 0.5).float().mean() - 0.5).abs() < 4 * (0.25 / n) ** 0.5


def test_initial_weights_come_from_the_seed_alone():
    one, same, other = (SEAL(16, 3, seed=seed).state_dict() for seed in (5, 5, 6))
    torch.manual_seed(1)
    again = SEAL(16, 3, dropout_ratio=0.1, seed=5).state_dict()
    for name, x in one.items():
        assert torch.equal(x, same[name]) and torch.equal(x, again[name]) and not torch.equal(x, other[name])


# Rows, dropout, padding


def case(seed=0, width=16, rows=7):
    return torch.randn(rows, 3 * width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(model, *args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return model(*args, **kwargs)


@pytest.mark.parametrize("share_rows", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("ratio, training", [(0.5, False), (0.0, True)])
def test_a_row_is_scored_alone_as_in_any_batch_and_padding_as_a_row_of_zero(share_rows, indexed, ratio, training):
    model, rows = SEAL(16, 3, ratio).double().train(training), case()
    index = torch.tensor([0, 0, 3, 6, 3]) if indexed else torch.arange(7)
    every = torch.cat([index, torch.tensor([7, 8])])  # the padding, too
    found = model(rows, every if indexed else None, padding=2, share_rows=share_rows)
    alone = [model(row[None]) for row in (*rows[index], *torch.zeros(2, 48).double())]
    expected = {name: torch.cat([outputs[name] for outputs in alone]) for name in found}
    assert {name: x.shape[1:] for name, x in found.items()} == {
        "s_base": (4,),
        "attention": (),
        "s_pc": (),
        "f_prop": (16,),
    }
    for name, x in found.items():
        torch.testing.assert_close(x, expected[name])
    for mine, theirs in zip(*(torch.autograd.grad(sum(x.sin().sum() for x in o.values()), [*model.parameters()])
                              for o in (found, expected))):  # fmt: skip
        torch.testing.assert_close(mine, theirs)


def test_dropout_acts_on_each_proposal_or_once_a_row_and_on_each_row_of_padding():
    model, rows, index = SEAL(64, 3, 0.25).double(), case(width=64), torch.tensor([0, 0, 1, 7, 8])
    whole, dropped = model.eval()(rows)["f_prop"], drawn(model.train(), rows)["f_prop"]
    torch.testing.assert_close(dropped[dropped != 0], whole[dropped != 0] / 0.75)
    assert 0.65 < (dropped[whole > 0] != 0).double().mean() < 0.85
    for share_rows in (False, True):
        f_prop = drawn(model, rows, index, padding=2, share_rows=share_rows)["f_prop"]
        assert torch.equal(f_prop[0], f_prop[1]) == share_rows
        assert not torch.equal(f_prop[3], f_prop[4]) and f_prop[3:].any(1).all()
        assert torch.equal(f_prop, drawn(model, rows, index, padding=2, share_rows=share_rows)["f_prop"])
        assert not torch.equal(f_prop, drawn(model, rows, index, padding=2, share_rows=share_rows, seed=1)["f_prop"])


def test_rows_of_another_width_are_refused_and_extreme_ones_stay_finite():
    for wrong in (torch.zeros(2, 47), torch.zeros(48), torch.zeros(1, 2, 48)):
        with pytest.raises(ValueError, match=r"rows must be \[U, 48\]"):
            SEAL(16, 3)(wrong)
    for scale in (0.0, 1e-38, 1e4, 1e18):
        outputs = SEAL(16, 3).eval()(case().float() * scale)
        assert all(x.isfinite().all() for x in outputs.values())
        assert all(((outputs[name] >= 0) & (outputs[name] <= 1)).all() for name in ("attention", "s_pc"))


def test_frozen_branches_get_no_gradient():
    model = SEAL(16, 3)
    model.freeze(["s_pc"])
    sum(x.sum() for x in model(case().float()).values()).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name, _ in model.named_parameters() if "prop_completeness" in name} != set()


# Checkpoints


def test_a_saved_checkpoint_has_the_released_names_and_shapes_and_carries_its_info(golden, released, tmp_path):
    """So the authors' program, which loads with strict=True, takes it as its own."""
    model, _ = released
    save_model(tmp_path / "m.pkl", model, INFO)
    ours, theirs = load_checkpoint(tmp_path / "m.pkl"), load_checkpoint(golden / "checkpoint.pkl")
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    again, info = load_model(tmp_path / "m.pkl")
    assert info == INFO
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))


def change(name, value):
    return lambda state: state.update({f"prop_fused_backbone.{name}": value})


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: state.pop("prop_fused_backbone.prop_attention.0.bias"), "prop_attention.0.bias has shape None"),
        (change("extra.weight", torch.zeros(2)), "extra.weight has shape (2,), expected None"),
        (change("prop_attention.0.weight", torch.zeros(16, 31)), "(16, 31), expected (16, 32)"),
        (change("prop_fusion.0.bias", torch.full((32,), torch.nan)), "NaN"),
        (lambda state: state.clear(), "no fusion layer"),
        (change("prop_fusion.0.weight", torch.zeros(32, 95)), "no fusion layer"),
        (change("prop_fusion.0.weight", torch.tensor(1.0)), "no fusion layer"),
        (change("prop_fusion.0.weight", torch.zeros(0, 0)), "no fusion layer"),
        (change("prop_fusion.0.weight", torch.zeros(1, 3)), "no fusion layer"),
        (change("prop_classifier.2.weight", torch.zeros(21)), "no classifier"),
        (change("prop_classifier.2.weight", torch.zeros(1, 16)), "no classifier"),
        (lambda state: state.update(epoch=3), "not a state_dict"),
        (lambda state: state.update(model={}, optimizer={}, epoch=3), "the state of a run, not a checkpoint"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_in_one_line(golden, tmp_path, change, words):
    state = dict(load_checkpoint(golden / "checkpoint.pkl"))
    change(state)
    torch.save(state, tmp_path / "bad.pkl")
    with pytest.raises(InputError, match="bad.pkl") as error:
        load_model(tmp_path / "bad.pkl")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_of_other_classes_is_refused(golden, released):
    path = golden / "checkpoint.pkl"
    check_classes(path, released[0], {}, INFO["classes"])
    check_classes(path, released[0], INFO, INFO["classes"])
    for info, classes, words in (
        ({}, ["a", "b", "c"], "20 classes for data of 3"),
        (INFO, INFO["classes"][::-1], "other"),
    ):
        with pytest.raises(InputError, match=words):
            check_classes(path, released[0], info, classes)
