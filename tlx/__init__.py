"""Transfer learning for computer vision in one call, with the same numbers on PyTorch and on OneFlow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlx import errors
    from tlx.audit.checking import check
    from tlx.audit.result import Check
    from tlx.data import Data, load_data
    from tlx.errors import TlxError
    from tlx.proof import mapping
    from tlx.proof.prove import parity
    from tlx.recipe import Recipe
    from tlx.runs.evaluation import Evaluation, evaluate
    from tlx.runs.export import Exported, export
    from tlx.runs.finished import load_model
    from tlx.runs.job import run
    from tlx.runs.planning import GroupTable, plan
    from tlx.runs.prediction import Prediction, predict
    from tlx.runs.result import HistoryEntry, Result
    from tlx.runs.table import Predictions, load_predictions
    from tlx.strategy import Group, Phase, Strategy

    __version__: str

# Public name -> the module that defines it. Imported when first used, so that `import tlx` costs almost nothing.
_PUBLIC = {
    "Check": "tlx.audit.result",
    "Data": "tlx.data",
    "Evaluation": "tlx.runs.evaluation",
    "Exported": "tlx.runs.export",
    "Group": "tlx.strategy",
    "GroupTable": "tlx.runs.planning",
    "HistoryEntry": "tlx.runs.result",
    "Phase": "tlx.strategy",
    "Prediction": "tlx.runs.prediction",
    "Predictions": "tlx.runs.table",
    "Recipe": "tlx.recipe",
    "Result": "tlx.runs.result",
    "Strategy": "tlx.strategy",
    "TlxError": "tlx.errors",
    "check": "tlx.audit.checking",
    "evaluate": "tlx.runs.evaluation",
    "export": "tlx.runs.export",
    "load_data": "tlx.data",
    "load_model": "tlx.runs.finished",
    "load_predictions": "tlx.runs.table",
    "parity": "tlx.proof.prove",
    "plan": "tlx.runs.planning",
    "predict": "tlx.runs.prediction",
    "run": "tlx.runs.job",
}

_MODULES = {"errors": "tlx.errors", "mapping": "tlx.proof.mapping"}

__all__ = [
    "Check",
    "Data",
    "Evaluation",
    "Exported",
    "Group",
    "GroupTable",
    "HistoryEntry",
    "Phase",
    "Prediction",
    "Predictions",
    "Recipe",
    "Result",
    "Strategy",
    "TlxError",
    "__version__",
    "check",
    "errors",
    "evaluate",
    "export",
    "load_data",
    "load_model",
    "load_predictions",
    "mapping",
    "parity",
    "plan",
    "predict",
    "run",
]


def __getattr__(name: str) -> Any:
    value: Any
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
    elif name in _MODULES:
        value = import_module(_MODULES[name])
    elif name == "__version__":
        from importlib.metadata import version

        value = version("tlx")
    else:
        from tlx.errors import closest

        hint = "" if name.startswith("_") else closest(name, __all__)
        raise AttributeError(f"module 'tlx' has no attribute {name!r}.{hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
