"""From a recipe to what trains: its device and precision, data, model, plan and optimizer."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tlx.backend import Array, Backend, Model, ModelSpec, OptimizerSpec, Precision, Preprocess, float32_exact
from tlx.backend.threads import processor
from tlx.data import Augment, Data, Loader, load_data
from tlx.data.mixing import Targets, balanced_weights
from tlx.errors import BackendError, RecipeError, WeightsError
from tlx.models.initial_values import initial_values
from tlx.models.weights import first_not_finite
from tlx.models.zoo import Architecture, architecture, own_architecture
from tlx.recipe import Recipe
from tlx.strategy.schedule import Schedule
from tlx.training.loop import Training


def resolve_placement(recipe: Recipe, backend: Backend) -> Recipe:
    """Decide device and precision if the recipe says auto.

    Raises:
        BackendError: this machine or the backend lacks what the recipe asks for.
    """
    can = backend.capabilities()
    device = can.devices[-1] if recipe.device == "auto" else recipe.device
    if device not in can.devices:
        raise BackendError(f"backend {backend.name!r} has no device {device!r} here; it has {', '.join(can.devices)}")
    offered = can.precisions[device]
    precision = offered[0] if recipe.precision == "auto" else recipe.precision
    if precision not in offered:
        raise BackendError(
            f"backend {backend.name!r} has no native {precision} on {device}; it has {', '.join(offered)}"
        )
    if isinstance(recipe.model, str) and recipe.model not in can.models:
        raise BackendError(f"backend {backend.name!r} has no model {recipe.model!r}; it has {', '.join(can.models)}")
    if recipe.optimizer not in can.optimizers:
        raise BackendError(f"backend {backend.name!r} has no optimizer {recipe.optimizer!r}")
    return replace(recipe, device=device, precision=precision)  # type: ignore[arg-type]


def open_data(recipe: Recipe) -> Data:
    """Load the recipe's data set and take the subsets it asks for."""
    return load_data(
        recipe.data,
        root=recipe.data_root,
        classes=recipe.classes,
        limit_train=recipe.limit_train,
        limit_test=recipe.limit_test,
        val_fraction=recipe.val_fraction,
        test_fraction=recipe.test_fraction,
        on_bad_image=recipe.on_bad_image,
        max_pixels=recipe.max_pixels,
        path_column=recipe.path_column,
        label_column=recipe.label_column,
        seed=recipe.seed,
    )


def check_fit(recipe: Recipe, data: Data) -> None:
    """Raise RecipeError if the recipe asks for something that the data does not have."""
    for wanted, name in ((recipe.schedule == "plateau", "schedule 'plateau'"), (recipe.patience, "patience")):
        if wanted and data.val is None:
            raise RecipeError(f"{name} watches the validation part, but there is none; raise val_fraction")


def build_model(recipe: Recipe, backend: Backend, classes: int, *, tried: bool = True) -> tuple[Model, Architecture]:
    """Build the recipe's model with its new head, and describe its layout.

    What is the user's own is tried on a few images, unless it is only to be described.
    """
    head = {"hidden": recipe.head_widths, "dropout": recipe.dropout, "head_module": recipe.head_module}
    size = recipe.image_size if tried else 0
    if isinstance(recipe.model, str):
        arch = architecture(recipe.model)
        spec = ModelSpec(arch.name, classes, arch.head, arch.options_at(recipe.image_size), image_size=size, **head)
        return backend.build(spec, recipe.device, _precision(recipe)), arch
    assert recipe.head_path is not None
    spec = ModelSpec(recipe.model_name, classes, recipe.head_path, module=recipe.model, image_size=size, **head)
    model = backend.build(spec, recipe.device, _precision(recipe))
    return model, own_architecture(recipe.model_name, recipe.head_path, backend.param_specs(model))


def start_of(
    recipe: Recipe,
    backend: Backend,
    model: Model,
    arch: Architecture,
    classes: Sequence[str],
    progress: bool = False,
) -> tuple[dict[str, Array], list[str]]:
    """Return the values that the recipe starts from, and notes on how they were read."""
    assert recipe.weights is not None
    own = None if isinstance(recipe.model, str) and recipe.head_module is None else backend.dump_arrays(model)
    specs = backend.param_specs(model)
    return initial_values(specs, arch, recipe.weights, recipe.seed, progress, own, classes)


def load_initial(
    recipe: Recipe, backend: Backend, model: Model, arch: Architecture, classes: Sequence[str], progress: bool
) -> list[str]:
    """Give a model the values that the recipe starts from; return notes on how they were read."""
    arrays, notes = start_of(recipe, backend, model, arch, classes, progress)
    if (name := first_not_finite(arrays)) is not None:
        problem = f"{name!r} of the {recipe.model_name} holds numbers that are not finite"
        raise WeightsError(problem, fix="start from other weights")
    backend.load_arrays(model, arrays)
    return notes


def make_training(recipe: Recipe, backend: Backend, data: Data, model: Model, arch: Architecture) -> Training:
    """Put together what trains: loaders, plan, optimizer, and the shadow that averages the weights."""
    specs = backend.param_specs(model)
    loader = make_loader(recipe, data.train, training=True, classes=len(data.classes))
    schedule = Schedule(recipe.schedule, recipe.epochs, loader.steps, recipe.warmup, recipe.step_size, recipe.gamma)
    plan = recipe.bound_strategy(arch).bind(
        specs, arch, schedule, recipe.weight_decay, recipe.frozen_norm, recipe.decay_on
    )
    optimizer = OptimizerSpec(recipe.optimizer, float32_exact(recipe.momentum))
    shadow = None
    if recipe.ema is not None:
        shadow, _ = build_model(recipe, backend, len(data.classes))
        backend.load_arrays(shadow, backend.dump_arrays(model))
    return Training(
        backend=backend,
        model=model,
        optimizer=backend.optimizer(model, optimizer, [group.params for group in plan.groups]),
        plan=plan,
        loader=loader,
        val=make_loader(recipe, data.val) if data.val is not None else None,
        micro_batch=recipe.micro_batch,
        clip_norm=None if recipe.clip_norm is None else float32_exact(recipe.clip_norm),
        shadow=shadow,
        ema=recipe.ema or 0.0,
        patience=recipe.patience,
        keep_features=recipe.feature_cache != "off",
        network=identity(recipe, backend) if recipe.feature_cache == "auto" else None,
    )


def make_loader(recipe: Recipe, images: Any, *, training: bool = False, classes: int = 0) -> Loader:
    """Return the loader of a part: shuffled and augmented for training, otherwise in order and centred."""
    return Loader(
        images,
        Preprocess(recipe.image_size),
        batch_size=recipe.batch_size,
        augment=Augment.parse(recipe.augment if training else "none"),
        crop_fraction=recipe.crop_fraction,
        seed=recipe.seed,
        workers=recipe.workers,
        shuffle=training,
        balanced=training and recipe.sampler == "balanced",
        targets=_targets(recipe, images.labels, classes) if training else None,
        augment_repeats=recipe.augment_repeats if training else None,
    )


def _targets(recipe: Recipe, labels: Any, classes: int) -> Targets:
    weights = balanced_weights(labels, classes) if recipe.class_weights == "balanced" else None
    return Targets(classes, recipe.label_smoothing, weights, recipe.mixup, recipe.cutmix)


def identity(recipe: Recipe, backend: Backend) -> Mapping[str, Any] | None:
    """What decides a model's numbers beside its values; None for a user's own module, whose code may change."""
    if not isinstance(recipe.model, str) or recipe.head_module is not None:
        return None
    return {
        "model": recipe.model,
        "backend": recipe.backend,
        "versions": {**versions(), **backend.capabilities().versions},
        "device": recipe.device,
        "precision": recipe.precision,
        "processor": processor(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, NumPy and tlx."""
    from importlib.metadata import version

    return {"python": platform.python_version(), "numpy": np.__version__, "tlx": version("tlx")}


def _precision(recipe: Recipe) -> Precision:
    assert recipe.precision != "auto"
    return recipe.precision
