"""Low-rank adapters: which weights have some, what these are called, and what the weights come to with them.

A weight [out, ...] counts as a matrix W [out, in], whose columns are all its further axes. With A [rank, in] and
B [out, rank] it acts as ``W + scale B A`` (Hu et al. 2021, equation 3). A and B lie beside it: ``fc1.weight`` has
``fc1.lora_A`` and ``fc1.lora_B``, and ``attention.in_proj_weight`` has ``attention.in_proj_lora_A`` and ``..._B``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np

from tlx.backend.protocol import Array, Arrays, Lora, ParamSpec
from tlx.errors import RecipeError, closest


def adapter_names(weight: str) -> tuple[str, str]:
    """Return the names of A and B of a weight."""
    stem = weight.removesuffix("weight")
    return f"{stem}lora_A", f"{stem}lora_B"


def adapted_weights(specs: Iterable[ParamSpec]) -> tuple[str, ...]:
    """Return the names of the weights that have adapters, in the model's order."""
    ends = (spec.name.removesuffix("lora_B") for spec in specs if spec.role == "adapter" and spec.name.endswith("_B"))
    return tuple(f"{stem}weight" for stem in ends)


def choose_weights(lora: Lora, linear: Collection[str], convolutions: Collection[str], model: str) -> tuple[str, ...]:
    """Return the names of the weights that get adapters, each once.

    Args:
        lora: whose patterns choose; without any, all of `linear`.
        linear: the weights of all linear layers outside the head, attention's projections among them.
        convolutions: the weights of all convolutions outside the head, which only a pattern chooses.
        model: what errors call it.

    Raises RecipeError where a pattern matches nothing, or where the model has no linear layer and there is no pattern.
    """
    if lora.targets is None:
        if not linear:
            problem = f"low-rank adapters go on linear layers, and {model} has none outside its head"
            fix = "name convolutions instead, such as lora_targets='*', or choose another strategy"
            raise RecipeError(problem, fix=fix)
        return tuple(linear)
    weights = (*linear, *convolutions)
    modules = {name: name.rpartition(".")[0] for name in weights}
    for pattern in lora.targets:
        if not any(fnmatchcase(module, pattern) for module in modules.values()):
            near = closest(pattern, modules.values())
            problem = f"lora_targets: pattern {pattern!r} matches no linear layer or convolution of {model} outside"
            raise RecipeError(f"{problem} its head.{near}")
    return tuple(name for name in weights if any(fnmatchcase(modules[name], pattern) for pattern in lora.targets))


def merged(arrays: Arrays, specs: Sequence[ParamSpec], scale: float) -> dict[str, Array]:
    """Return the values of the model without adapters that computes the same.

    Each adapted weight is ``W + scale B A``, computed in float64 and rounded once to its dtype.
    """
    adapters = {spec.name for spec in specs if spec.role == "adapter"}
    values = {name: array for name, array in arrays.items() if name not in adapters}
    for name in adapted_weights(specs):
        a, b = (arrays[adapter].astype(np.float64) for adapter in adapter_names(name))
        weight = arrays[name]
        values[name] = (weight + (scale * (b @ a)).reshape(weight.shape)).astype(weight.dtype)
    return values
