"""What people hand over as a module of PyTorch: taken out of its wrappers, checked, copied."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from tlx.backend.module.dropout import UNITS, Drop
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


def attention(native: Callable[..., torch.Tensor], drop: Drop) -> Callable[..., torch.Tensor]:
    """Make scaled_dot_product_attention whose weights are dropped by `drop`, after the formula of its documentation."""

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **others: Any,
    ) -> torch.Tensor:
        if dropout_p == 0 or others.get("enable_gqa"):
            return native(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **others)
        scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -math.inf)
        if attn_mask is not None:
            hidden = attn_mask.dtype is torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if hidden else scores + attn_mask
        weights: torch.Tensor = drop(scores.softmax(-1), dropout_p, True, UNITS)
        return weights @ value

    return attend


class _Forgotten(dict[str, torch.Tensor]):
    def __contains__(self, key: object) -> bool:
        return False

    def __bool__(self) -> bool:  # one that seems empty is not put out
        return False


def forget_biases(module: torch.nn.Module) -> None:
    """Let attention of timm look its biases up in each pass.

    In evaluation it keeps those of the first, until `train()` is called; tlx sets the modes itself, module by module.
    """
    if isinstance(getattr(module, "attention_bias_cache", None), dict):
        module.attention_bias_cache = _Forgotten()  # type: ignore[assignment]
