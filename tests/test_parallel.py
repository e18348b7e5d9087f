"""Several processes (torchrun): each its share of a batch and its own means, the first one evaluates and writes."""

from __future__ import annotations

import signal
from functools import partial

import pytest
import torch

import main
from dataset import packed_batch
from losses import TERMS
from options import parse
from tests.changes import hurry
from tests.outcome import read_scalars
from tests.runs import (
    arguments,
    before_step,
    in_processes,
    main_refuses,
    read,
    run,
    same,
    same_files,
    signalled,
    weights_of,
)
from utils.files import load_checkpoint


@pytest.fixture(scope="module")
def calm(root, tmp_path_factory):
    """Two processes that nothing happens to."""
    place = tmp_path_factory.mktemp("calm")
    first, second = in_processes(2, place / "logs", arguments(root, place / "run"))
    assert (first.status, second.status) == (0, 0), (first.log, second.log)
    assert "protocol wtal" in first.out and second.out == second.log == ""  # the first process alone speaks
    return place / "run"


def test_two_processes_leave_the_files_of_one_run(root, calm, tmp_path, monkeypatch):
    hurry(monkeypatch)
    one = run(root, tmp_path / "one")
    names = [sorted(str(p.relative_to(d)) for p in d.rglob("*") if p.is_file() and "tfevents" not in p.name)
             for d in (one, calm)]  # fmt: skip
    assert names[0] == names[1] and len(list((calm / "logs").iterdir())) == 1
    scalars = [read_scalars(d / "logs") for d in (one, calm)]
    assert {k: list(v) for k, v in scalars[0].items()} == {k: list(v) for k, v in scalars[1].items()}
    assert read(calm, "options")["processes"] == 2 and read(calm)["last"]["epoch"] == 4
    assert load_checkpoint(calm / "ckpt" / "last_state.pt")["epoch"] == 5


def test_a_step_follows_the_mean_of_the_gradients_of_both_shares(root, tmp_path):
    words = arguments(root, tmp_path / "two", "--batch_size", 5, epochs=1)
    in_processes(2, tmp_path / "logs", words)
    args = parse(words, tuple(TERMS))
    hand = main.Run(args, tmp_path / "hand", main.Group(torch.device("cpu")))
    (videos,), gradients = hand.batches(), []
    hand.model.train()
    for rank in (0, 1):  # shares of 3 and 2 videos
        share = videos[rank::2]
        batch = packed_batch(hand.data.train, share, hand.group.device, hand.pseudo, args.max_proposal, args.seed, 1)
        still = torch.optim.SGD(hand.model.parameters(), lr=0.0)
        main.train_step(hand.model, still, *batch, args, epoch=1, step=0, rank=rank)
        gradients.append([p.grad.clone() for p in hand.model.parameters()])
    for parameter, *both in zip(hand.model.parameters(), *gradients):
        parameter.grad = sum(both) / 2
    hand.optimizer.step()
    for name, value in load_checkpoint(tmp_path / "two" / "ckpt" / "last_state.pt")["model"].items():
        torch.testing.assert_close(hand.model.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def signal_in_step_5(number, patch):
    before_step(patch, 5, signalled(number))


def goes_on_to_the_bits_of(calm, place, words):
    results = in_processes(2, place / "logs", [*words, "--resume"])
    assert [p.status for p in results] == [0, 0], results
    assert same(weights_of(place / "run"), weights_of(calm)) and same_files(place / "run", calm)
    assert read_scalars(place / "run" / "logs") == read_scalars(calm / "logs")


def test_a_stop_in_one_process_stops_both_and_they_resume_to_the_same_bits(root, calm, tmp_path):
    words = arguments(root, tmp_path / "run")
    results = in_processes(2, tmp_path / "logs", words, partial(signal_in_step_5, signal.SIGINT))
    assert [p.status for p in results] == [130, 130], results
    state = load_checkpoint(tmp_path / "run" / "ckpt" / "last_state.pt")
    assert (state["epoch"], state["step"]) == (4, 0)  # both end the epoch that the stop came in
    goes_on_to_the_bits_of(calm, tmp_path, words)


def test_a_killed_process_ends_the_others_in_one_line_and_they_resume_to_the_same_bits(root, calm, tmp_path):
    words = arguments(root, tmp_path / "run", "--save_seconds", 0)
    first, second = in_processes(2, tmp_path / "logs", words, partial(signal_in_step_5, signal.SIGKILL))
    assert (first.status, second.status) == (-9, 2)
    assert second.log.startswith("error: another process of this run has ended") and second.log.count("\n") == 1
    goes_on_to_the_bits_of(calm, tmp_path, words)
    main_refuses([*words, "--resume"], "processes was 2 and is 1")


def test_more_processes_than_videos_in_a_batch_are_refused(root, tmp_path):
    for process in in_processes(2, tmp_path / "logs", arguments(root, tmp_path / "run", "--batch_size", 1)):
        assert process.status == 2 and "error: batches of fewer videos than the 2 processes" in process.log


def test_half_of_what_torchrun_sets_is_one_line(root, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    main_refuses(arguments(root, tmp_path / "run"), "WORLD_SIZE in the environment", "start with torchrun")
