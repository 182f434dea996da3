"""What the terms need to know of the other processes: nothing when there is one.

Convention (DESIGN decision 7): every rank returns a loss whose **mean over ranks** is the loss of the global
batch, because gradients are averaged over ranks. A term that needs the whole batch gathers it with
:func:`gather_rows`, which is differentiable, and then returns the same value on every rank.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from openfino.errors import OpenfinoError

# Ranks wait for the main one while it probes or writes; torchrun notices a dead process by itself.
PATIENCE = timedelta(hours=4)


@dataclass(frozen=True)
class World:
    """This process's place among all processes of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "World":
        """The world that ``torchrun`` announces, before the process group exists."""
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        return cls(rank, size, int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the terminal."""
        return self.rank == 0


def current_world() -> World:
    """The world of the initialised process group; one process without one."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    return World()


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto``: this process's GPU if there is one, else the CPU.

    Raises:
        OpenfinoError: if the named device is not there.
    """
    if name == "auto":
        name = f"cuda:{World.from_environment().local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OpenfinoError(f"device: {name!r} is no device; write auto, cpu or cuda") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise OpenfinoError("device: cuda was asked for but this machine has none; write auto or cpu")
        device = torch.device("cuda", device.index or World.from_environment().local_rank)
        torch.cuda.set_device(device)
    return device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; a copy from the CPU to a GPU goes through pinned memory and nobody waits for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def join_world(device: torch.device) -> World:
    """Initialise the process group when started by ``torchrun``; else do nothing."""
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    return current_world()


def leave_world() -> None:
    """Destroy the process group, if any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks; returns at once on one."""
    if current_world().size > 1:
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """``value`` of every rank, in rank order; small plain objects only."""
    world = current_world()
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of ``value`` over ranks, without gradient; ``value`` itself on one rank."""
    if current_world().size == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def max_over_ranks(value: Tensor) -> Tensor:
    """Elementwise maximum over ranks, without gradient."""
    if current_world().size == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return total


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate ``rows`` [B, ...] of all ranks in rank order -> [W * B, ...]; gradients flow to every rank.

    Every rank must hold the same shape. The backward sums the gradients of all ranks, so that the mean over
    ranks of the parameter gradients is the gradient of the global loss.
    """
    if current_world().size == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = rows.shape[0]
        pieces = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, rows.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.count
        return total[start : start + ctx.count]
