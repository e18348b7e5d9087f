"""How a command ends: one line and status 2 for what a person can correct, a traceback for what only we can."""

from __future__ import annotations

import pickle

import pytest
import torch

from tests.outcome import outcome, refused
from utils.errors import InputError, raise_first

MEMORY = [MemoryError("Unable to allocate 7 GiB"), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")]


def raising(error):
    def command(argv):
        raise error

    return outcome(command, [])


def test_bad_input_is_one_printable_line():
    error = InputError("a bell \a and\na line", "file.npy, video", "fix it")
    assert refused(raising(error)) == "error: a bell \\x07 and a line (file.npy, video) - fix it"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # as it travels from another process
    assert "disk space" in refused(raising(OSError(28, "No space left on device", "x.npy")), "x.npy")
    raise_first([])
    with pytest.raises(InputError, match="first"):
        raise_first([InputError("first"), InputError("second")])


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_lack_of_memory_names_the_options_that_need_less(error):
    refused(raising(error), "out of memory", "--batch_size", "--max_proposal")


def test_the_message_of_torch_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    refused(raising(caught.value), "out of memory")


def test_a_defect_of_the_program_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes"):
        raising(RuntimeError("shapes do not match"))
