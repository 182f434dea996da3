"""Run a function on several gloo processes of this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_ranks(function: Callable[..., Any], ranks: int, folder: Path, *arguments: Any) -> list[Any]:
    """What ``function(*arguments)``, a function of a module, returns on each rank: tensors and containers."""
    mp.spawn(_run, args=(function, ranks, folder, arguments), nprocs=ranks)
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(ranks)]


def _run(
    rank: int, function: Callable[..., Any], ranks: int, folder: Path, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    torch.save(function(*arguments), folder / f"rank_{rank}.pt")
    dist.destroy_process_group()
