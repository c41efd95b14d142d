"""Gradients summed over a run's processes and a batch's shards: what `reduce` does with any framework."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tlx.backend.module.net import DeviceBatch, Net
from tlx.errors import BackendError, one_line
from tlx.processes import Channel

if TYPE_CHECKING:
    from tlx.backend.module.base import ModuleBackend

AT_ONCE = 2**22  # numbers of a bucket: enough to fill a network, few enough to hold a row for each shard


def summed(backend: ModuleBackend, tensor: Any, channel: Channel) -> Any:
    """Return the sum of a tensor over all processes, the same bits in each of them.

    Raises:
        ProcessLostError: another process has ended meanwhile.
        BackendError: the framework cannot add up for another reason.
    """
    try:
        return backend.sum_over(tensor, channel)
    except RuntimeError as error:
        channel.gather(b"")  # tells which process was lost, if one was
        cause = one_line(str(error))
        raise BackendError(f"{backend.name} cannot add up over {channel.world.size} processes: {cause}") from error


@contextmanager
def apart(net: Net, batch: DeviceBatch) -> Iterator[None]:
    """Keep the gradients of a shard apart from others while the block runs, and leave out those of an absent row."""
    if batch.shard is None and not batch.absent:
        yield
        return
    shard = None if batch.absent else batch.shard
    params = list(net.module.parameters())
    before = [param.grad for param in params]
    none: list[Any] = [None] * len(params)
    for param, grad in zip(params, none if shard is None else net.shards.get(shard, none), strict=True):
        param.grad = grad
    yield
    if shard is not None:
        net.shards[shard] = [param.grad for param in params]
    for param, grad in zip(params, before, strict=True):
        param.grad = grad


def reduce(backend: ModuleBackend, net: Net, channel: Channel) -> None:
    """Make each gradient its sum over all processes and shards, which are added in the order of their numbers."""
    if not net.shards and channel.world.size == 1:
        return
    fw, params = backend.fw, list(net.module.parameters())
    # Shard by shard the gradients of all parameters, None where there is none.
    shards = net.shards or {0: [param.grad for param in params]}
    net.shards = {}
    if net.reduced is None or net.foreign:  # code of somebody's own may leave out layers, now these and now those
        net.reduced = _agreed(shards, len(params), channel)
    count, wanted = net.reduced
    with fw.no_grad():
        for bucket in _buckets(params, wanted):
            # What another process has is zero here, so that adding up over processes changes nothing in a row.
            rows = fw.stack([_row(fw, params, bucket, shards.get(number)) for number in range(count)])
            if channel.world.size > 1:
                rows = summed(backend, rows, channel)
            total = rows[0] + 0.0  # -0 + 0 is 0: a zero's sign does not tell on how many processes it was
            for number in range(1, count):
                total = total + rows[number]
            at = 0
            for i in bucket:
                # Laid out in memory as the parameter is, so that a norm is the same bits in every process.
                grad = fw.empty_like(params[i])
                grad.copy_(total[at : at + params[i].numel()].reshape(params[i].shape))
                params[i].grad, at = grad, at + params[i].numel()


def _agreed(shards: Mapping[int, list[Any]], parameters: int, channel: Channel) -> tuple[int, list[int]]:
    """Return how many shards there are in all processes, and which parameters have a gradient in one of them."""
    own = bytes(any(grads[i] is not None for grads in shards.values()) for i in range(parameters))
    parts = channel.gather(max(shards).to_bytes(4, "big") + own)
    count = max(int.from_bytes(part[:4], "big") for part in parts) + 1
    return count, [i for i in range(parameters) if any(part[4 + i] for part in parts)]


def _buckets(params: Sequence[Any], wanted: Sequence[int]) -> Iterator[list[int]]:
    """Divide parameters, in their order, into buckets of one dtype; one with more than `AT_ONCE` numbers is alone."""
    bucket: list[int] = []
    size = 0
    for i in wanted:
        if bucket and (size + params[i].numel() > AT_ONCE or params[i].dtype != params[bucket[0]].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(i)
        size += params[i].numel()
    if bucket:
        yield bucket


def _row(fw: Any, params: Sequence[Any], bucket: Sequence[int], grads: list[Any] | None) -> Any:
    """Return a shard's gradients of a bucket as one vector, with zeros for what it lacks, and let go of them."""
    pieces = []
    for i in bucket:
        param: Any = params[i]
        if grads is None or grads[i] is None:
            pieces.append(fw.zeros(param.numel(), dtype=param.dtype, device=param.device))
        else:
            pieces.append(grads[i].reshape(-1))
            grads[i] = None
    return fw.cat(pieces) if len(pieces) > 1 else pieces[0]
