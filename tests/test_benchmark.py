"""The benchmark prints every part of its table, and counts the arithmetic that is really done."""

from __future__ import annotations

import json

import numpy as np

from utils.tools import benchmark


def test_the_table_names_every_part(tmp_path, capsys, monkeypatch):
    twice = np.repeat([[0.0, 4.0], [3.0, 9.0]], 2, axis=0)
    monkeypatch.setattr(benchmark, "proposals_of", lambda root, split: [twice] * 12)
    table = tmp_path / "table.json"
    flags = ["--width", "8", "--steps", "1", "--repeats", "1", "--device", "cpu", "--share_rows"]
    benchmark.main([*flags, "--output", str(table)])
    out = capsys.readouterr().out
    for part in ("cache of train", "torch.mm", "cost of the arithmetic", "times the cost", "soft-NMS", "mAP", "peak"):
        assert part in out
    assert "1 steps, 40 proposals, 20 distinct rows" in out  # 10 videos of 4 proposals, 2 of them distinct
    assert len(json.loads(table.read_text())) >= 10


def test_drawn_proposals_have_the_counts_of_thumos():
    for split in ("train", "test"):
        drawn = benchmark.proposals_like_thumos(split)
        assert len(drawn) == benchmark.VIDEOS[split] and sum(map(len, drawn)) == benchmark.PROPOSALS[split]
        repeats = sum(len(p) - len(np.unique(p, axis=0)) for p in drawn) / benchmark.PROPOSALS[split]
        assert abs(repeats - benchmark.REPEATS[split]) < 0.12
