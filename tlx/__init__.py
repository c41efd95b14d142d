"""Transfer learning for computer vision in one call, with the same numbers on PyTorch and on OneFlow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlx.data import Data, load
    from tlx.errors import TlxError
    from tlx.job import Result, run
    from tlx.job import evaluate_run as evaluate
    from tlx.prediction import predict
    from tlx.proof.prove import parity
    from tlx.recipe import Recipe
    from tlx.strategy import Group, Phase, Strategy

# Public name -> (module, name there). Imported when first used, so that `import tlx` costs almost nothing.
_PUBLIC = {
    "run": ("tlx.job", "run"),
    "evaluate": ("tlx.job", "evaluate_run"),
    "predict": ("tlx.prediction", "predict"),
    "parity": ("tlx.proof.prove", "parity"),
    "Result": ("tlx.job", "Result"),
    "Recipe": ("tlx.recipe", "Recipe"),
    "Strategy": ("tlx.strategy", "Strategy"),
    "Group": ("tlx.strategy", "Group"),
    "Phase": ("tlx.strategy", "Phase"),
    "load": ("tlx.data", "load"),
    "Data": ("tlx.data", "Data"),
    "TlxError": ("tlx.errors", "TlxError"),
}

__all__ = [
    "Data",
    "Group",
    "Phase",
    "Recipe",
    "Result",
    "Strategy",
    "TlxError",
    "evaluate",
    "load",
    "parity",
    "predict",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tlx' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
