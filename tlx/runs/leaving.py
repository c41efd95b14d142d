"""The model that a run leaves behind: its best values, with low-rank adapters merged into what they adapt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tlx.backend import Arrays, Model
from tlx.backend.lora import adapted_weights, merged
from tlx.models.weights import joint_digest
from tlx.recipe import Recipe
from tlx.training.build import build_model
from tlx.training.loop import State, Training

ADAPTERS = "adapters.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Leaving:
    """A model of its plain architecture, with the values of a run's best epoch."""

    model: Model
    values: Arrays
    adapters: Arrays = field(default_factory=dict)  # all that makes it of its frozen base; nothing without adapters
    described: Mapping[str, Any] = field(default_factory=dict)  # what the run's card says of them


def leave(recipe: Recipe, training: Training, state: State, classes: int) -> Leaving:
    """Return the model of the best epoch, its values loaded.

    Without adapters it is the one that trained. With them it is built anew, as anything that reads the run builds it.
    """
    backend, best, lora = training.backend, state.best, recipe.lora
    if lora is None:
        if state.bank is None:  # with one, the model has no head whose values count
            backend.load_arrays(training.model, best)
        return Leaving(training.model, best)
    specs = backend.param_specs(training.model)
    values = merged(best, specs, lora.scale)
    model, _ = build_model(recipe, backend, classes, merged=True)
    backend.load_arrays(model, values)
    described = {
        "rank": lora.rank,
        "alpha": lora.alpha,
        "scale": lora.scale,
        "weights": list(adapted_weights(specs)),
        "base_sha256": joint_digest(state.frozen),  # which the run has proven unmoved
    }
    adapters = {name: array for name, array in best.items() if name not in state.frozen}
    return Leaving(model, values, adapters, {"lora": described})
