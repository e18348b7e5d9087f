"""Two processes on one machine: the losses, gradients, weights and mAP of one process with the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from tests import tiny
from tests.test_main import arguments, run, same, weights_of
from utils.errors import InputError
from utils.files import load_checkpoint

ROOT = Path(main.__file__).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def in_processes(number, script, *words):
    """Run a script as torchrun would start it, on the loopback interface."""
    port = str(free_port())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment["PYTHONPATH"] = str(ROOT)
    started = []
    for rank in range(number):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
        started.append(
            subprocess.Popen(
                [sys.executable, str(script), *map(str, words)],
                env={**environment, **place}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    outputs = [p.communicate(timeout=180) for p in started]
    return [(p.returncode, out, err) for p, (out, err) in zip(started, outputs)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("data") / "tiny", videos=12)


@pytest.mark.parametrize("more", [[], ["--recipe", "release"], ["--losses", "sme,sc"], ["--share_rows"]])
def test_two_processes_train_as_one(root, tmp_path, more):
    one = run(root, tmp_path / "one", *more)
    results = in_processes(2, ROOT / "main.py", *arguments(root, tmp_path / "two", *more))
    assert [status for status, _, _ in results] == [0, 0], results
    assert "protocol wtal" in results[0][1] and results[1][1] == ""  # the first process alone speaks
    a, b = weights_of(one), weights_of(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=2e-3, atol=2e-5)
    steps = [load_checkpoint(d / "ckpt" / "last_state.pt") for d in (one, tmp_path / "two")]
    for x, y in zip(steps[0]["history"], steps[1]["history"]):
        np.testing.assert_allclose(x["mAP"], y["mAP"], atol=1e-6)
    left, right = (json.loads((d / "detections.json").read_text())["results"] for d in (one, tmp_path / "two"))
    assert {v: len(x) for v, x in left.items()} == {v: len(x) for v, x in right.items()} and list(left) == list(right)


GRADIENTS = """
import sys
import torch
import main
from dataset import epoch_order, load_source, load_split, packed_batch
from model import SEAL
from options import parse
from utils.parallel import Group

root, recipe, out = sys.argv[1:]
args = parse(["--recipe", recipe, "--batch_size", "5"])
with Group(torch.device("cpu")) as group:
    split = load_split(load_source("Tiny", root, cache_dir=None), "train", lambda line: None)
    model = SEAL(split.rows.width // 3, 2)
    net = group.wrap(model)
    n = len(split.videos)
    pseudo = (torch.arange(n).numpy() % 2, torch.arange(n).numpy() % 3)
    videos = epoch_order(split.scored, 5, 0, 1)[0]
    packed = packed_batch(split, videos, group.device, pseudo, mine=group.share(5))
    terms = main.train_step(net, torch.optim.SGD(model.parameters(), lr=0.0), *packed, args, 3, 1, group)
    if group.first:
        torch.save({"terms": terms, "grads": {k: p.grad for k, p in model.named_parameters()}}, out)
"""


@pytest.mark.parametrize("recipe", ["paper", "release"])
def test_losses_and_gradients_of_uneven_shares_are_those_of_one_process(root, tmp_path, recipe):
    script = tmp_path / "step.py"
    script.write_text(GRADIENTS)
    found = []
    for number in (1, 2):
        out = tmp_path / f"{number}.pt"
        results = in_processes(number, script, root, recipe, out)
        assert [status for status, _, _ in results] == [0] * number, results
        found.append(load_checkpoint(out))
    for other in found[1:]:
        for kind in ("terms", "grads"):
            for name, value in found[0][kind].items():
                torch.testing.assert_close(other[kind][name], value, rtol=1e-4, atol=1e-7)


STOPPED = """
import os, signal, sys
import main

real, steps = main.Run.take_step, []

def take_step(self, videos):
    steps.append(videos)
    if len(steps) == 5 and self.group.first:
        for _ in range(2):  # the terminal's, and torchrun's on top of it
            os.kill(os.getpid(), signal.SIGINT)
    return real(self, videos)

main.Run.take_step = take_step
main.run_command(lambda: main.main(sys.argv[1:]))
"""


def test_a_stop_in_one_of_two_processes_stops_both_after_the_step_and_both_go_on_to_the_same_bits(root, tmp_path):
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    command = arguments(root, tmp_path / "stopped")
    results = in_processes(2, script, *command)
    assert [status for status, _, _ in results] == [130, 130], results
    state = load_checkpoint(tmp_path / "stopped" / "ckpt" / "last_state.pt")
    assert (state["epoch"], state["step"]) == (3, 1)  # two steps an epoch
    for more in ([ROOT / "main.py", *command, "--resume"], [ROOT / "main.py", *arguments(root, tmp_path / "calm")]):
        results = in_processes(2, *more)
        assert [status for status, _, _ in results] == [0, 0], results
    assert same(weights_of(tmp_path / "stopped"), weights_of(tmp_path / "calm"))
    for name in ("results.json", "detections.json"):
        assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "calm" / name).read_text()


KILLED = STOPPED.replace("os.kill(os.getpid(), signal.SIGINT)", "os.kill(os.getpid(), signal.SIGKILL)")


def test_a_killed_process_ends_the_others_in_one_line_and_all_go_on_to_the_same_bits(root, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = arguments(root, tmp_path / "killed", "--save_seconds", "0")
    (first, _, _), (second, _, said) = in_processes(2, script, *command)
    assert first == -9 and second == 2
    assert said.count("error: ") == 1 and "another process of this run has ended" in said and "Traceback" not in said
    for more in (
        [*command, "--resume"],
        arguments(root, tmp_path / "calm"),
    ):
        results = in_processes(2, ROOT / "main.py", *more)
        assert [status for status, _, _ in results] == [0, 0], results
    assert same(weights_of(tmp_path / "killed"), weights_of(tmp_path / "calm"))
    with pytest.raises(InputError, match="processes was 2 and is 1"):
        main.main([*command, "--resume"])


def test_more_processes_than_videos_in_a_batch_are_refused(root, tmp_path):
    results = in_processes(2, ROOT / "main.py", *arguments(root, tmp_path / "x", "--batch_size", "1"))
    assert all(status == 2 and "error: batches of fewer videos" in err for status, _, err in results)
