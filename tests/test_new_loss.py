"""A stranger adds a loss: one function and one row of losses.TERMS. Nothing else names it."""

from __future__ import annotations

import json

import pytest
import torch

import losses
from losses import TERMS, Term, schedule, seal_terms, untrained
from model import SEAL
from options import RECIPES, parse, parser
from tests import tiny
from tests.changes import arguments
from tests.outcome import read_scalars
from utils.packed import Batch, expect, pack, video_mean


def toy_loss(s_pc, packing):
    """The scores s_pc [N] of a video should have a mean of 0.9."""
    expect(packing, s_pc=(s_pc, "N"))
    return (video_mean(s_pc, packing) - 0.9).square().mean()


@pytest.fixture
def toy(monkeypatch):
    def value(x: losses.Step):
        return toy_loss(x.outputs["s_pc"], x.batch.packing)

    row = Term("toy_loss", value, lambda recipe, epoch, max_epoch: {"lambda_toy": 3.0 / epoch}, trains=("s_pc",))
    monkeypatch.setitem(TERMS, "toy", row)


def test_a_new_loss_moves_the_weights_it_acts_on(toy):
    draw = torch.Generator().manual_seed(0)
    rows, packing, labels = torch.randn(9, 24, generator=draw), pack((5, 4)), torch.eye(3)[:2]
    batch = Batch(torch.rand(9, 2, generator=draw), packing, labels, torch.zeros(2).long(), torch.zeros(2).long())
    model = SEAL(8, 3, dropout_ratio=0.0)
    before = {name: x.clone() for name, x in model.named_parameters()}
    optimizer, values = torch.optim.Adam(model.parameters(), lr=0.01), []
    for epoch in range(1, 31):
        terms = seal_terms(model(rows), batch, RECIPES["release"], epoch, 200, ["toy"])
        assert list(terms) == ["loss_total", "loss_prop_mil_orig", "loss_prop_mil_supp", "toy_loss"]
        own = terms["loss_prop_mil_orig"] + terms["loss_prop_mil_supp"]
        torch.testing.assert_close(terms["loss_total"], own + 3 / epoch * terms["toy_loss"])
        optimizer.zero_grad()
        terms["loss_total"].backward()
        optimizer.step()
        values.append(terms["toy_loss"].item())
    assert values[-1] < 0.5 * values[0]
    assert not any(torch.equal(x, before[name]) for name, x in model.named_parameters())


def test_a_new_loss_is_known_wherever_losses_are(toy):
    names = tuple(TERMS)
    assert parse(["--losses", "toy,pc"], names).losses == ("pc", "toy") and parse([], names).losses == names
    assert "any of sme,pc,sc,toy" in parser(names).format_help()
    assert schedule(["toy"], RECIPES["paper"], 3, 200) == {"lambda_toy": 1.0}
    assert untrained(["toy"], RECIPES["paper"]) == set() and untrained(["sme"], RECIPES["paper"]) == {"s_pc"}


def test_a_new_loss_is_trained_and_tested_from_the_command_line(toy, tmp_path):
    import main

    root, run = tiny.write(tmp_path / "tiny", videos=6), tmp_path / "run"
    assert main.main(arguments(root, tmp_path, "--losses", "sme,toy", max_epoch=2, batch_size=2)) == 0
    assert json.loads((run / "options.json").read_text())["losses"] == ["sme", "toy"]
    scalars = read_scalars(run / "logs")
    assert list(scalars["loss/toy_loss"]) == [1, 2] and scalars["weight/lambda_toy"] == {1: 3.0, 2: 1.5}
    test = ["--run_type", "test", "--pretrained_ckpt", run / "ckpt" / "last_model.pkl"]
    assert main.main(arguments(root, tmp_path, *test, exp_dir=tmp_path / "test")) == 0
    assert json.loads((tmp_path / "test" / "options.json").read_text())["losses"] == ["sme", "toy"]
    last, again = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "test"))
    assert last["last"]["mAP"] == again["mAP"]
