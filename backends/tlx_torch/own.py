"""What people hand over as a module of PyTorch: taken out of its wrappers, checked, copied."""

from __future__ import annotations

import copy

import torch
from torch.nn.parameter import is_lazy

from tlx.errors import BackendError

PARALLEL = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module in a compiled or parallel one; raise BackendError where what is there cannot be trained."""
    while True:
        if isinstance(module, PARALLEL):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), torch.nn.Module):  # of torch.compile
            module = inner
        else:
            break
    kind = type(module).__name__
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise BackendError(
                f"{path or kind} is a ScriptModule, whose layers are fixed; pass the module it came from"
            )
        if "quantized" in type(part).__module__:
            raise BackendError(f"{path or kind} is quantized, and so cannot train; pass the module before quantization")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise BackendError(f"{name} of {kind} has no shape yet (a lazy layer); call the module once on a batch")
        if tensor.device.type == "meta":
            raise BackendError(f"{name} of {kind} has no values (device meta); load its weights first")
    return module


def copied(module: torch.nn.Module) -> torch.nn.Module:
    """Copy a module. What it keeps of its last pass belongs to that pass's graph, and is copied without it."""
    kept = [value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    memo = {id(value): value.detach().clone() for value in kept if value.grad_fn is not None}
    return copy.deepcopy(module, memo)
