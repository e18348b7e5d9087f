"""Run a command in this process as the command line would, and look at how it ended and what it left."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple

import pytest

from utils.errors import run_command


class Outcome(NamedTuple):
    status: int
    errors: List[str]  # the lines that begin with "error:"
    log: str  # standard error
    out: str  # standard output


def outcome(command: Callable[[List[str]], object], argv: List[object]) -> Outcome:
    """``command(argv)`` under the handler of the command line; an exception that it lets through fails the test."""
    out, log = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(log), pytest.raises(SystemExit) as ended:
        run_command(lambda: command([str(word) for word in argv]))
    lines = log.getvalue().splitlines()
    status = ended.value.code or 0
    return Outcome(status, [line for line in lines if line.startswith("error: ")], log.getvalue(), out.getvalue())


def refused(found: Outcome, *words: str) -> str:
    """The one line of a command that ended in an error: one line, printable, the last, with these words in it."""
    lines = found.log.splitlines()
    assert found.status == 2 and len(found.errors) == 1, found
    assert lines[-1] == found.errors[0] and lines[-1].isprintable(), found.log
    missing = [word for word in words if str(word) not in lines[-1]]
    assert not missing, f"{missing} not in: {lines[-1]}"
    return lines[-1]


def read_scalars(folder: Path) -> Dict[str, Dict[int, float]]:
    """Every scalar of a run as TensorBoard's own reader sees it: tag -> {step: value}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
