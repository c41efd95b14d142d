"""PyTorch's own collectives: NCCL between GPUs, gloo between CPUs."""

from __future__ import annotations

from datetime import timedelta

import torch
from torch import distributed

from tlx.errors import BackendError
from tlx.processes import World

# How long the others may take to come to the same sum. A process that ends is noticed at once by gloo; NCCL waits.
PATIENCE = timedelta(minutes=10)


def gpu_of(world: World, count: int) -> int:
    """Return the number of the GPU, among the `count` that a process sees, which is its own.

    Raises:
        BackendError: several processes of this machine would have to use one.
    """
    if count < world.local_size and count > 1:
        problem = f"{world.local_size} processes run on this machine, which has {count} GPUs; NCCL wants one for each"
        raise BackendError(problem, fix=f"start {count} processes on it")
    return world.local_rank if count > 1 else 0  # a launcher may show each process its own alone


def sum_over(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Return the sum over all processes, added up in place; the first call connects them."""
    if not distributed.is_initialized():
        distributed.init_process_group(
            "nccl" if tensor.is_cuda else "gloo",
            init_method=f"tcp://{world.host}:{world.port}",
            rank=world.rank,
            world_size=world.size,
            timeout=PATIENCE,
        )
    if (distributed.get_rank(), distributed.get_world_size()) != (world.rank, world.size):
        raise BackendError(
            f"torch.distributed is set up for process {distributed.get_rank()} of {distributed.get_world_size()}, "
            f"and this is {world.rank} of {world.size}; leave torch.distributed to tlx"
        )
    distributed.all_reduce(tensor)
    return tensor
