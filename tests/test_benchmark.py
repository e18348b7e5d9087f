"""The benchmark prints every part of its table, and counts the arithmetic that is really done."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import main
from dataset import packed_batch
from losses import TERMS, padding_rows
from model import SEAL
from options import parse
from tests import tiny
from tests.changes import split_of
from utils.tools import benchmark


def test_the_table_names_every_part(tmp_path, capsys, monkeypatch):
    twice = np.repeat([[0.0, 4.0], [3.0, 9.0]], 2, axis=0)
    monkeypatch.setattr(benchmark, "proposals_of", lambda root, split: [twice] * 12)
    table = tmp_path / "table.json"
    flags = ["--width", "8", "--steps", "1", "--repeats", "1", "--device", "cpu", "--share_rows"]
    benchmark.main([*flags, "--output", str(table)])
    out = capsys.readouterr().out
    for part in (
        "cache of train",
        "operations",
        "torch.mm",
        "cost of the arithmetic",
        "times the cost",
        "soft-NMS",
        "mAP",
        "peak",
    ):
        assert part in out
    assert "1 steps, 40 proposals, 20 distinct rows" in out  # 10 videos of 4 proposals, 2 of them distinct
    assert len(json.loads(table.read_text())) >= 10


def test_drawn_proposals_have_the_counts_of_thumos():
    for split in ("train", "test"):
        drawn = benchmark.proposals_like_thumos(split)
        assert len(drawn) == benchmark.VIDEOS[split] and sum(map(len, drawn)) == benchmark.PROPOSALS[split]
        repeats = sum(len(p) - len(np.unique(p, axis=0)) for p in drawn) / benchmark.PROPOSALS[split]
        assert abs(repeats - benchmark.REPEATS[split]) < 0.12


def test_bfloat16_is_timed_beside_float32(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "proposals_of", lambda root, split: [np.asarray([[0.0, 4.0], [3.0, 9.0]])] * 10)
    benchmark.main(["--width", "8", "--steps", "1", "--repeats", "1", "--device", "cpu", "--amp", "bf16"])
    out = capsys.readouterr().out
    assert "epoch, float32" in out and "forward, float32" in out and out.count("times as fast") == 2


@pytest.mark.parametrize("more", [[], ["--share_rows"], ["--amp", "bf16"]])
@pytest.mark.parametrize("recipe, most", [("release", 300), ("paper", 320)])
def test_a_step_has_few_operations(tmp_path, recipe, most, more):
    """Each costs the host as much as a card needs for the work of one."""
    args, split = parse(["--recipe", recipe, *more], tuple(TERMS)), split_of(tiny.write(tmp_path / "tiny", videos=12))
    model, pseudo = SEAL(split.rows.width // 3, 2), (np.arange(8) % 2, np.arange(8) % 3)
    optimizer, draws = main.adam(model, args), padding_rows(args.losses, args.numbers, args.dropout_ratio)
    made = packed_batch(split, range(8), torch.device("cpu"), pseudo, draws=draws)
    for _ in range(2):  # the first step also makes the state of Adam
        with benchmark.Operations() as operations:
            main.train_step(model, optimizer, *made, args, epoch=3, step=0)
    casts = 40 * ("bf16" in more)  # weights to bfloat16 and gradients back
    apart = 0 if optimizer.defaults["fused"] else 150  # of an Adam that this torch does not fuse on a CPU
    assert 200 < operations.count <= most + casts + apart
