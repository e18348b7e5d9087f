"""The processes of a run under torchrun, and the device of this one."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Iterator, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from utils.errors import InputError


class Group(NamedTuple):
    """The processes of a run (``torchrun --nproc_per_node N main.py …``) and this one's device. Each runs on its share
    of the videos of a batch and takes its own means; DistributedDataParallel averages the gradients; the first one
    evaluates and writes."""

    device: torch.device
    rank: int = 0
    size: int = 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as DistributedDataParallel, where there is more than one process."""
        cards = [self.device] if self.device.type == "cuda" else None
        return model if self.size == 1 else nn.parallel.DistributedDataParallel(model, cards)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """The mean over all processes."""
        if self.size > 1:
            dist.all_reduce(x)
        return x / self.size

    def agree(self, asked: bool) -> bool:
        """Whether any process says yes."""
        return asked if self.size == 1 else bool(self.mean(torch.tensor(float(asked), device=self.device)) > 0)


@contextmanager
def processes(device: torch.device) -> Iterator[Group]:
    """Join the processes that torchrun started, if it did."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Group(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except ValueError as error:  # half of what torchrun sets
        raise InputError(str(error), "WORLD_SIZE in the environment", "start with torchrun") from None
    try:
        yield Group(device, dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if any(word in str(error).lower() for word in ("gloo", "nccl")):
            what = "another process of this run has ended, or cannot be reached"
            raise InputError(what, None, "see what it said; continue with --resume") from None
        raise
    finally:
        dist.destroy_process_group()
