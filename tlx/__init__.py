"""Transfer learning for computer vision in one call, with the same numbers on PyTorch and on OneFlow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlx.data import Data, load_data
    from tlx.errors import TlxError
    from tlx.proof.prove import parity
    from tlx.recipe import Recipe
    from tlx.runs.evaluation import evaluate_run as evaluate
    from tlx.runs.job import run
    from tlx.runs.prediction import predict
    from tlx.runs.result import Result
    from tlx.strategy.plan import Group, Phase, Strategy

# Public name -> (module, name there). Imported when first used, so that `import tlx` costs almost nothing.
_PUBLIC = {
    "run": ("tlx.runs.job", "run"),
    "evaluate": ("tlx.runs.evaluation", "evaluate_run"),
    "predict": ("tlx.runs.prediction", "predict"),
    "parity": ("tlx.proof.prove", "parity"),
    "Result": ("tlx.runs.result", "Result"),
    "Recipe": ("tlx.recipe", "Recipe"),
    "Strategy": ("tlx.strategy.plan", "Strategy"),
    "Group": ("tlx.strategy.plan", "Group"),
    "Phase": ("tlx.strategy.plan", "Phase"),
    "load_data": ("tlx.data", "load_data"),
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
    "load_data",
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
