"""On a GPU: no host synchronisation inside a step, the numbers of the CPU, rows in the device's memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import main
from dataset import epoch_order, packed_batch
from losses import TERMS, padding_rows
from model import SEAL
from options import parse
from tests import tiny
from tests.changes import results, split_of, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("data") / "tiny", videos=12)


def prepared(root, device, *more):
    """A function that takes a step of a new model on one batch: its number -> the terms."""
    args = parse(["--batch_size", "4", "--dropout_ratio", "0", *more], tuple(TERMS))
    split = split_of(root)
    split.rows.to(device)
    model = SEAL(split.rows.width // 3, 2, 0.0).to(device)
    optimizer, pseudo = main.adam(model, args), (np.arange(8) % 2, np.arange(8) % 3)
    draws = padding_rows(args.losses, args.numbers, args.dropout_ratio)
    videos = epoch_order(split.scored, 4, 0, 1)[0]

    def step(number):
        packed = packed_batch(split, videos, device, pseudo, max_proposal=8, draws=draws)
        return main.train_step(model, optimizer, *packed, args, epoch=3, step=number)

    return step


@pytest.mark.parametrize("recipe", ["paper", "release"])
@pytest.mark.parametrize("more", [[], ["--amp", "bf16"], ["--share_rows"]])
def test_a_step_never_waits_for_the_device(root, recipe, more):
    step = prepared(root, torch.device("cuda"), "--recipe", recipe, *more)
    step(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(bool(t.isfinite()) for t in terms.values())


@pytest.mark.parametrize("recipe", ["paper", "release"])
def test_terms_are_those_of_the_cpu(root, recipe):
    cpu, cuda = (prepared(root, torch.device(name), "--recipe", recipe)(0) for name in ("cpu", "cuda"))
    for name, value in cpu.items():
        torch.testing.assert_close(cuda[name].cpu(), value, rtol=1e-3, atol=1e-5)


def test_a_run_on_the_gpu_ends_like_any_other(root, tmp_path):
    assert train(root, tmp_path, device="cuda").status == 0 and results(tmp_path)
