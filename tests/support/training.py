"""What a run trains, put together as `tlx.run` does and not yet trained."""

from __future__ import annotations

from typing import Any

from tlx.backend import registry
from tlx.recipe import Recipe
from tlx.training import build
from tlx.training.loop import Training

FIELDS: dict[str, Any] = {
    "weights": "none",
    "data": "digits",
    "limit_train": 33,
    "limit_test": 10,
    "val_fraction": 0.0,
    "batch_size": 16,
    "epochs": 1,
}


def training_of(**fields: Any) -> Training:
    """Build everything that a recipe trains, with its first values."""
    recipe = Recipe(**{**FIELDS, **fields}).resolved()
    backend = registry.load(recipe.backend)
    recipe = build.resolve_placement(recipe, backend)
    data = build.open_data(recipe)
    model, arch = build.build_model(recipe, backend, len(data.classes))
    build.load_initial(recipe, backend, model, arch, data.classes, progress=False)
    return build.make_training(recipe, backend, data, model, arch)
