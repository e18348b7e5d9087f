"""On a GPU: no host synchronisation inside a step, the numbers of the CPU, rows in the device's memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import main
from dataset import epoch_order, load_source, load_split, packed_batch
from model import SEAL
from options import parse
from tests import tiny
from tests.test_main import arguments
from utils.parallel import Group

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("data") / "tiny", videos=12)


def prepared(root, device, recipe, *more):
    args = parse(["--recipe", recipe, "--batch_size", "4", "--dropout_ratio", "0", *more])
    split = load_split(load_source("Tiny", str(root), cache_dir=None), "train", lambda line: None)
    model = SEAL(split.rows.width // 3, 2, 0.0).to(device)
    n = len(split.videos)
    pseudo = (np.arange(n) % 2, np.arange(n) % 3)
    return args, split, model, main.adam(model, args), pseudo, epoch_order(split.scored, 4, 0, 1)


@pytest.mark.parametrize("recipe", ["paper", "release"])
@pytest.mark.parametrize("more", [[], ["--amp", "bf16"], ["--share_rows"]])
def test_a_step_never_waits_for_the_device(root, recipe, more):
    device = torch.device("cuda")
    args, split, model, optimizer, pseudo, batches = prepared(root, device, recipe, *more)
    assert split.rows.to(device)
    group = Group(device)

    def step(number):
        packed = packed_batch(split, batches[0], device, pseudo)
        return main.train_step(model, optimizer, *packed, args, 1, number, group)

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
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        args, split, model, optimizer, pseudo, batches = prepared(root, device, recipe)
        packed = packed_batch(split, batches[0], device, pseudo)
        found.append(main.train_step(model, optimizer, *packed, args, 3, 0, Group(device)))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name].cpu(), value, rtol=1e-3, atol=1e-5)


def test_a_run_on_the_gpu_ends_like_any_other(root, tmp_path):
    words = arguments(root, tmp_path / "run")
    words[words.index("--device") + 1] = "cuda"
    assert main.main(words) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert np.isfinite(results["last"]["mAP"]).all()
