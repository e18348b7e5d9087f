"""The benchmark's reference computes what ours computes, so that their times may be compared; the table is printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset import packed_batch
from main import train_step
from model import SEAL
from options import parse
from utils import benchmark
from utils.parallel import Group
from utils.scfe import roi_align


def test_the_plain_roi_align_is_ours():
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.random((50, 6)))
    proposals = np.concatenate([np.sort(rng.uniform(0, 50, (40, 2)), axis=1), [[0, 50], [0, 0]]])
    torch.testing.assert_close(
        benchmark.plain_roi_align(features, torch.from_numpy(proposals)), roi_align(features, proposals)
    )


def test_the_padded_reference_has_the_loss_of_a_step_of_ours(tmp_path):
    args = parse(["--dropout_ratio", "0"])
    proposals = benchmark.proposals_like_thumos("train")[:6]
    split, load, _ = benchmark.simulated_split("train", proposals, 16, Path(tmp_path), "float32")
    pseudo = (np.arange(6) % 20, np.full(6, 2))
    reference = benchmark.PaddedReference(SEAL(16, 20, 0.0), split, load, pseudo, args)
    reference.features = [torch.from_numpy(load(v)) for v in split.videos]
    for epoch in (1, 20):
        for v in range(6):  # video by video: the reference means over videos where ours means over proposals
            model = SEAL(16, 20, 0.0)
            reference.model.load_state_dict(model.state_dict())
            packed = packed_batch(split, [v], torch.device("cpu"), pseudo)
            sgd = torch.optim.SGD(model.parameters(), lr=0.0)
            terms = train_step(model, sgd, *packed, args, epoch, 0, Group(torch.device("cpu")))
            np.testing.assert_allclose(reference.step([v], epoch), terms["loss_total"].item(), rtol=2e-4)


def test_the_table_names_every_part(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "proposals_of", lambda root, s: benchmark.proposals_like_thumos(s)[:12])
    benchmark.main(
        ["--width", "8", "--steps", "1", "--repeats", "1", "--compare", "padded", "--device", "cpu"]
        + ["--output", str(tmp_path / "table.json")]
    )
    out = capsys.readouterr().out
    for part in ("torch.mm", "every proposal on its own", "times the floor", "times the work", "times ours", "peak"):
        assert part in out
    assert "20 classes" in out and "0.9 % of pairs overlap" in out  # as in the largest video of the real proposals
    assert len(json.loads((tmp_path / "table.json").read_text())) >= 10


def test_the_work_really_done_counts_distinct_rows_and_with_share_rows_those_alone(tmp_path, capsys, monkeypatch):
    twice = np.repeat([[0.0, 4.0], [3.0, 9.0]], 2, axis=0)
    monkeypatch.setattr(benchmark, "proposals_of", lambda root, s: [twice] * 12)
    flags = ["--width", "8", "--steps", "1", "--repeats", "1", "--device", "cpu"]
    for more, branches in (([], 40), (["--share_rows"], 20)):  # 10 videos of 4 proposals, 2 of them distinct
        benchmark.main(flags + more)
        assert f"fusion of 20 distinct rows, branches of {branches}," in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--steps", "--repeats", "--width"])
def test_a_number_below_one_is_refused(flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main([flag, "0"])
    assert stopped.value.code == 2 and flag in capsys.readouterr().err


def test_drawn_proposals_have_the_counts_of_thumos():
    for split in ("train", "test"):
        drawn = benchmark.proposals_like_thumos(split)
        assert len(drawn) == benchmark.VIDEOS[split] and sum(map(len, drawn)) == benchmark.PROPOSALS[split]
        repeats = sum(len(p) - len(np.unique(p, axis=0)) for p in drawn) / benchmark.PROPOSALS[split]
        assert abs(repeats - benchmark.REPEATS[split]) < 0.12
