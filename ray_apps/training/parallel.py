"""Data parallelism: each process holds the whole model and reads its part of the global batch (plain torch DDP, gloo or NCCL).

DDP averages gradients over processes. The step scales each loss by world_size / (target tokens of the global batch), so that the
result is the exact mean over tokens, however padding is spread over the processes.

DDP lays out its buckets anew after the first backward pass, in the order in which gradients became ready. With three and more
processes the layout decides in which order numbers are added, so a resumed run, whose first step would use the first layout,
would differ in the last bit. ``prime`` gets that over with before the first real step.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Process:
    """One of ``world_size`` processes that train together; alone, it needs no process group."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """Sum over processes, in float64."""
        if self.world_size == 1:
            return float(value)
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total.item())

    def from_first(self, value: int) -> int:
        """The first process's value, in all of them."""
        if self.world_size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.broadcast(shared, src=0)
        return int(shared.item())

    def barrier(self) -> None:
        """Wait for all processes."""
        self.from_first(0)


def joined_process(device: torch.device) -> Process:
    """This process's place in the process group that someone (Ray Train, torchrun) has set up; alone where there is none."""
    if not dist.is_available() or not dist.is_initialized():
        return Process(device=device)
    return Process(dist.get_rank(), dist.get_world_size(), device)


def prepare_device(device: torch.device, num_threads: int) -> None:
    """Pin the number of threads on CPU; ask for deterministic kernels on GPUs, so that a resumed run repeats itself."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        torch.set_num_threads(num_threads)


def parallelize(module: nn.Module, process: Process) -> nn.Module:
    """Wrap for gradient averaging; alone, the module itself."""
    if process.world_size == 1:
        return module
    device_ids = [process.device.index] if process.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=device_ids, forward_sync_buffers=False)


def without_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Context in which gradients only accumulate: for all micro-batches but the last."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def prime(module: nn.Module, dummy_loss: Callable[[], Tensor]) -> None:
    """Run one throw-away backward pass and one forward pass, after which DDP's bucket layout is final."""
    if isinstance(module, DistributedDataParallel):
        dummy_loss().backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)
        dummy_loss().backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)
