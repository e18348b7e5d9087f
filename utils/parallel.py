"""Several processes (``torchrun --nproc_per_node N main.py …``): who does what, and what they tell one another.

Every process knows the whole batch and runs the network on its share of the videos. The outputs of all are gathered,
so each computes the loss of the global batch: every mean is over the same videos and proposals as in one process.
"""

from __future__ import annotations

import os
from typing import Any, List, Optional, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import InputError
from utils.packed import Outputs


def pick_device(name: str, tf32: bool = False) -> torch.device:
    """ "auto", "cuda" or "cpu" as a device. TF32 is off unless asked for. Raises InputError where there is no CUDA."""
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise InputError("--device cuda, but torch sees no CUDA device", None, "use --device cpu or check the driver")
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    return torch.device("cuda" if cuda and name != "cpu" else "cpu")


class Group:
    """The processes of a run on a device; one alone unless torchrun started more."""

    def __init__(self, device: torch.device):
        self.rank, self.device = 0, device
        try:
            self.size = int(os.environ.get("WORLD_SIZE", "1"))
            if self.size > 1:
                if device.type == "cuda":
                    self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
                    torch.cuda.set_device(self.device)
                dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
                self.rank = dist.get_rank()
        except ValueError as error:
            raise InputError(f"{error}", "WORLD_SIZE in the environment", "start with torchrun") from None

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        if self.size == 1:
            return
        dist.destroy_process_group()
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("gloo", "nccl")):
            what = "another process of this run has ended, or cannot be reached"
            raise InputError(what, None, "see what it said; go on with --resume") from None

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, number: int) -> slice:
        """This process's part of so many items; the parts of all, in order, are the items."""
        ends = np.cumsum([0] + [len(part) for part in np.array_split(np.arange(number), self.size)])
        return slice(int(ends[self.rank]), int(ends[self.rank + 1]))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as DistributedDataParallel, or as it is where there is one process."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def gather(self, outputs: Outputs, counts: Sequence[int]) -> Outputs:
        """Outputs of the whole batch from those of each process's share; counts: proposals of every video.

        Gradients flow to this process's own rows, as each process computes the same loss.
        """
        if self.size == 1:
            return outputs
        sizes = [int(sum(part)) for part in np.array_split(np.asarray(counts), self.size)]
        widths = [x[0].numel() if x.ndim > 1 else 1 for x in outputs]
        own = torch.cat([x.float().reshape(len(x), -1) for x in outputs], 1)
        every = _Gather.apply(own, sizes, self.rank)
        return Outputs(*(x.squeeze(1) if o.ndim == 1 else x for x, o in zip(every.split(widths, 1), outputs)))

    def agree(self, asked: bool) -> bool:
        """Whether any process says yes."""
        if self.size == 1:
            return asked
        flag = torch.tensor([int(asked)], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def tell(self, value: Any) -> Any:
        """The first process's value, in every process."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def collect(self, value: Any) -> List[Any]:
        """The values of all processes, in every process."""
        if self.size == 1:
            return [value]
        values: List[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all processes; the gradient of one's own rows comes back."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        padded = own.new_zeros(max(sizes), own.shape[1])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor):
        start = sum(ctx.sizes[: ctx.rank])
        return gradient[start : start + ctx.sizes[ctx.rank]].contiguous(), None, None
