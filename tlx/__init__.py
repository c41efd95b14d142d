"""Transfer learning for computer vision in one call, with the same numbers on PyTorch and on OneFlow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlx import errors
    from tlx.audit.checking import check
    from tlx.audit.result import Check
    from tlx.comparison.advise import Advice, advise
    from tlx.comparison.compare import Comparison, compare
    from tlx.comparison.find_lr import FoundLr, find_lr
    from tlx.data import Data, load_data
    from tlx.errors import TlxError
    from tlx.proof import mapping
    from tlx.proof.prove import parity
    from tlx.recipe import Recipe
    from tlx.runs.drawn import draw
    from tlx.runs.embeddings.embed import Embedded, embed
    from tlx.runs.embeddings.file import Embeddings, load_embeddings
    from tlx.runs.embeddings.projection import EmbeddingMap, tsne
    from tlx.runs.embeddings.similar import Similar, similar
    from tlx.runs.evaluation import Evaluation, evaluate
    from tlx.runs.explanation import Explanation, explain
    from tlx.runs.export import Exported, export
    from tlx.runs.finished import load_model
    from tlx.runs.job import run
    from tlx.runs.listing import RunEntry, list_runs
    from tlx.runs.planning import GroupTable, plan
    from tlx.runs.prediction import Prediction, predict
    from tlx.runs.pull import pull
    from tlx.runs.push import Pushed, model_card, push
    from tlx.runs.report.reporting import report
    from tlx.runs.result import HistoryEntry, Result
    from tlx.runs.server import serve
    from tlx.runs.table import Predictions, load_predictions
    from tlx.strategy import Group, Phase, Strategy

    __version__: str

# Public name -> the module that defines it. Imported when first used, so that `import tlx` costs almost nothing.
_PUBLIC = {
    "Advice": "tlx.comparison.advise",
    "Check": "tlx.audit.result",
    "Comparison": "tlx.comparison.compare",
    "Data": "tlx.data",
    "Embedded": "tlx.runs.embeddings.embed",
    "EmbeddingMap": "tlx.runs.embeddings.projection",
    "Embeddings": "tlx.runs.embeddings.file",
    "Evaluation": "tlx.runs.evaluation",
    "Explanation": "tlx.runs.explanation",
    "Exported": "tlx.runs.export",
    "FoundLr": "tlx.comparison.find_lr",
    "Group": "tlx.strategy",
    "GroupTable": "tlx.runs.planning",
    "HistoryEntry": "tlx.runs.result",
    "Phase": "tlx.strategy",
    "Prediction": "tlx.runs.prediction",
    "Predictions": "tlx.runs.table",
    "Pushed": "tlx.runs.push",
    "Recipe": "tlx.recipe",
    "Result": "tlx.runs.result",
    "RunEntry": "tlx.runs.listing",
    "Similar": "tlx.runs.embeddings.similar",
    "Strategy": "tlx.strategy",
    "TlxError": "tlx.errors",
    "advise": "tlx.comparison.advise",
    "check": "tlx.audit.checking",
    "compare": "tlx.comparison.compare",
    "draw": "tlx.runs.drawn",
    "embed": "tlx.runs.embeddings.embed",
    "evaluate": "tlx.runs.evaluation",
    "explain": "tlx.runs.explanation",
    "export": "tlx.runs.export",
    "find_lr": "tlx.comparison.find_lr",
    "list_runs": "tlx.runs.listing",
    "load_data": "tlx.data",
    "load_embeddings": "tlx.runs.embeddings.file",
    "load_model": "tlx.runs.finished",
    "load_predictions": "tlx.runs.table",
    "model_card": "tlx.runs.push",
    "parity": "tlx.proof.prove",
    "plan": "tlx.runs.planning",
    "predict": "tlx.runs.prediction",
    "pull": "tlx.runs.pull",
    "push": "tlx.runs.push",
    "report": "tlx.runs.report.reporting",
    "run": "tlx.runs.job",
    "serve": "tlx.runs.server",
    "similar": "tlx.runs.embeddings.similar",
    "tsne": "tlx.runs.embeddings.projection",
}

_MODULES = {"errors": "tlx.errors", "mapping": "tlx.proof.mapping"}

__all__ = [
    "Advice",
    "Check",
    "Comparison",
    "Data",
    "Embedded",
    "EmbeddingMap",
    "Embeddings",
    "Evaluation",
    "Explanation",
    "Exported",
    "FoundLr",
    "Group",
    "GroupTable",
    "HistoryEntry",
    "Phase",
    "Prediction",
    "Predictions",
    "Pushed",
    "Recipe",
    "Result",
    "RunEntry",
    "Similar",
    "Strategy",
    "TlxError",
    "__version__",
    "advise",
    "check",
    "compare",
    "draw",
    "embed",
    "errors",
    "evaluate",
    "explain",
    "export",
    "find_lr",
    "list_runs",
    "load_data",
    "load_embeddings",
    "load_model",
    "load_predictions",
    "mapping",
    "model_card",
    "parity",
    "plan",
    "predict",
    "pull",
    "push",
    "report",
    "run",
    "serve",
    "similar",
    "tsne",
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
