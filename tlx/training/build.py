"""From a recipe to what trains: its device and precision, data, model, plan and optimizer."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tlx.backend import (
    LOSSES,
    Array,
    Backend,
    Model,
    ModelSpec,
    OptimizerSpec,
    Precision,
    Preprocess,
    Reduces,
    float32_exact,
)
from tlx.backend.lora import adapted_weights
from tlx.backend.preprocess import Aspect
from tlx.backend.threads import processor
from tlx.data import Augment, Data, Images, Loader, load_data
from tlx.data.mixing import Targets, balanced_weights
from tlx.errors import BackendError, RecipeError, WeightsError, closest
from tlx.models.hub import HUB, fetch_hosted
from tlx.models.initial_values import initial_values
from tlx.models.libraries import versions_of
from tlx.models.pixels import Pixels
from tlx.models.weights import first_not_finite
from tlx.models.zoo import Architecture, architecture, own_architecture
from tlx.processes import Alone, Channel
from tlx.recipe import Recipe
from tlx.strategy.plan import Fits, Plan
from tlx.strategy.schedule import Schedule
from tlx.training.loop import FitOptions, Training


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
    if isinstance(recipe.model, str):
        _check_has(backend, can.models, architecture(recipe.model))
    if recipe.optimizer not in can.optimizers:
        raise BackendError(f"backend {backend.name!r} has no optimizer {recipe.optimizer!r}")
    return replace(recipe, device=device, precision=precision)  # type: ignore[arg-type]


def _check_has(backend: Backend, models: Sequence[str], arch: Architecture) -> None:
    if arch.backend not in ("", backend.name):
        library, _, name = arch.name.partition(":")
        near = closest(name, models)
        problem = f"backend {backend.name!r} has no model {arch.name!r}: {library} exists on {arch.backend!r} only"
        raise BackendError(f"{problem}.{near if 'Did you mean' in near else ''}".rstrip("."))
    if not arch.backend and arch.name not in models:
        raise BackendError(f"backend {backend.name!r} has no model {arch.name!r}; it has {', '.join(models)}")


def with_pinned_weights(recipe: Recipe, progress: bool) -> Recipe:
    """Fetch weights that come from the hub, and name the commit, by which they are found again as they are now.

    Raises:
        WeightsError: they cannot be had.
    """
    source = recipe.weights
    if source == "imagenet" and isinstance(recipe.model, str):
        source = architecture(recipe.model).imagenet
    if source is None or not source.startswith(HUB):
        return recipe
    return replace(recipe, weights=fetch_hosted(source, progress).source)


def open_data(recipe: Recipe) -> Data:
    """Load the recipe's data set and take the subsets it asks for."""
    return load_data(
        recipe.data,
        root=recipe.data_root,
        classes=recipe.classes,
        limit_train=recipe.limit_train,
        limit_test=recipe.limit_test,
        val_fraction=recipe.val_fraction,
        images_per_class=recipe.images_per_class,
        test_fraction=recipe.test_fraction,
        on_bad_image=recipe.on_bad_image,
        max_pixels=recipe.max_pixels,
        path_column=recipe.path_column,
        label_column=recipe.label_column,
        label_separator=recipe.label_separator,
        seed=recipe.seed,
        fixes=recipe.fixes,
    )


def check_fit(recipe: Recipe, data: Data, backend: Backend | None = None) -> None:
    """Raise RecipeError if the recipe asks for something that the data does not have, or the backend no loss for it."""
    if data.multilabel:
        _check_multilabel(recipe, data, backend)
    for wanted, name in ((recipe.schedule == "plateau", "schedule 'plateau'"), (recipe.patience, "patience")):
        if wanted and data.val is None:
            raise RecipeError(f"{name} watches the validation part, but there is none; raise val_fraction")
    if recipe.neighbors is not None and recipe.neighbors >= len(data.train):
        raise RecipeError(f"neighbors is {recipe.neighbors}; expected less than the {len(data.train)} training images")


def _check_multilabel(recipe: Recipe, data: Data, backend: Backend | None) -> None:
    several = f"an image of {data.name} may have several labels"
    if recipe.class_weights != "none" and recipe.fits != "probe":
        fix = "leave it out; strategy probe alone weighs several labels"
        raise RecipeError(f"class_weights weighs the one label of an image, but {several}", fix=fix)
    if recipe.sampler == "balanced":
        raise RecipeError(f"sampler balanced shows each class equally often, but {several}", fix="leave it out")
    if backend is not None and LOSSES[1] not in getattr(backend.capabilities(), "losses", ()):
        problem = f"backend {backend.name!r} has no loss for several labels ({LOSSES[1]}), but {several}"
        raise BackendError(problem, fix="use another backend, or a later version of it")


def frame(recipe: Recipe, images: Images, own: Pixels | None = None) -> tuple[float, Aspect]:
    """Return which fraction of the images of a part is kept, and how they become square.

    Photos are framed as the model's weights expect, images of one size are taken whole, but for what the recipe says.

    Args:
        recipe: what to train.
        images: a part of the data.
        own: what the model expects of its pixels; default: the value of its architecture.
    """
    if images.size is None:
        pixels = recipe.pixels if own is None else recipe.overruled(own)
        return pixels.crop_fraction, pixels.aspect
    fraction = recipe.crop_fraction or 1.0
    return fraction, recipe.aspect or ("crop" if fraction < 1 else "squash")


def framed(recipe: Recipe, data: Data, own: Pixels | None = None) -> Recipe:
    """Fill in what the data decides, so that the saved recipe says what was done; not where its parts differ."""
    frames = {frame(recipe, part, own) for part in data.parts.values()}
    if len(frames) > 1:
        return recipe
    ((fraction, aspect),) = frames
    return replace(recipe, crop_fraction=fraction, aspect=aspect)


def build_model(
    recipe: Recipe, backend: Backend, classes: int, *, tried: bool = True, merged: bool = False
) -> tuple[Model, Architecture]:
    """Build the recipe's model with its new head and its adapters, and describe its layout.

    What is the user's own is tried on a few images, unless it is only to be described. `merged` leaves adapters out.
    """
    lora = None if merged else recipe.lora
    head = {"hidden": recipe.head_widths, "dropout": recipe.dropout, "head_module": recipe.head_module}
    # Some of the zoo's models are built for one size of image; what is the user's own is tried at it.
    own = is_own(recipe)
    head |= {"image_size": recipe.pixels.size if tried or not own else 0, "lora": lora}
    if isinstance(recipe.model, str):
        arch = architecture(recipe.model)
        spec = ModelSpec(arch.name, classes, arch.head, arch.options_at(recipe.pixels.size), **head)
    else:
        assert recipe.head_path is not None
        spec = ModelSpec(recipe.model_name, classes, recipe.head_path, module=recipe.model, **head)
    model = backend.build(spec, recipe.device, _precision(recipe))
    specs = backend.param_specs(model)
    if lora is not None and not adapted_weights(specs):
        raise BackendError(f"backend {backend.name!r} builds no low-rank adapters", fix="run its conformance suite")
    return model, arch if isinstance(recipe.model, str) else own_architecture(spec.name, spec.head, specs)


def is_own(recipe: Recipe) -> bool:
    """Whether a module of the user's own is the model, or its head."""
    return not isinstance(recipe.model, str) or recipe.head_module is not None


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
    own = backend.dump_arrays(model) if is_own(recipe) else None
    specs, library = backend.param_specs(model), getattr(model, "library", None)
    if library is not None and recipe.weights == "none":
        own = {**(own or {}), **library.first_values(recipe.seed)}
    return initial_values(specs, arch, recipe.weights, recipe.seed, progress, own, classes, library)


def load_initial(
    recipe: Recipe, backend: Backend, model: Model, arch: Architecture, classes: Sequence[str], progress: bool
) -> list[str]:
    """Give a model the values that the recipe starts from; return notes on how they were read."""
    arrays, notes = start_of(recipe, backend, model, arch, classes, progress)
    if (name := first_not_finite(arrays, backend.param_specs(model))) is not None:
        problem = f"{name!r} of the {recipe.model_name} holds numbers that are not finite"
        raise WeightsError(problem, fix="start from other weights")
    backend.load_arrays(model, arrays)
    return notes


def make_training(
    recipe: Recipe,
    backend: Backend,
    data: Data,
    model: Model,
    arch: Architecture,
    channel: Channel = Alone(),  # noqa: B008 (frozen)
) -> Training:
    """Put together what trains: loaders, plan, optimizer, and the shadow that averages the weights."""
    specs = backend.param_specs(model)
    loader = make_loader(recipe, data.train, training=not recipe.fits, classes=len(data.classes))
    schedule = Schedule(recipe.schedule, recipe.epochs, loader.steps, recipe.warmup, recipe.step_size, recipe.gamma)
    plan = recipe.bound_strategy(arch).bind(
        specs, arch, schedule, recipe.weight_decay, recipe.frozen_norm, recipe.decay_on
    )
    shards = recipe.shards if recipe.exact == "bits" else None
    if shards is not None:
        _check_exact(plan, backend)
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
        head=frozenset(spec.name for spec in specs if arch.stage_of(spec.module) == "head"),
        keep_features=recipe.feature_cache != "off",
        network=identity(recipe, backend) if recipe.feature_cache == "auto" else None,
        fit=None if recipe.fits is None else _fit_options(recipe, recipe.fits, data),
        channel=channel,
        shards=shards,
    )


def _check_exact(plan: Plan, backend: Backend) -> None:
    """Raise TlxError where the bits would depend on the number of processes, or gradients cannot be kept apart."""
    if not isinstance(backend, Reduces):
        problem = f"exact is 'bits', but backend {backend.name!r} has no method reduce, which adds shards up"
        raise BackendError(problem, fix="use exact fast, or another backend")
    for phase in plan.strategy.phases:
        if norms := plan.state_at(phase.start * plan.schedule.steps_per_epoch).batch_norm:
            raise RecipeError(
                f"exact is 'bits', but in phase {phase.name!r} BatchNorm {min(norms)!r} normalises by the statistics "
                "of the batch, whose last bits depend on the number of processes",
                fix="use exact fast, or a strategy or model in which no BatchNorm trains, such as feature_extract",
            )


def _fit_options(recipe: Recipe, kind: Fits, data: Data) -> FitOptions:
    balanced = recipe.class_weights == "balanced"
    return FitOptions(kind, len(data.classes), balanced, recipe.neighbors, _precision(recipe))


def make_loader(recipe: Recipe, images: Any, *, training: bool = False, classes: int = 0) -> Loader:
    """Return the loader of a part: shuffled and augmented for training, otherwise in order and centred."""
    pixels = recipe.pixels
    crop_fraction, aspect = frame(recipe, images)
    return Loader(
        images,
        Preprocess(pixels.size, pixels.mean, pixels.std, pixels.interpolation),
        batch_size=recipe.batch_size,
        augment=Augment.parse(recipe.augment if training else "none"),
        crop_fraction=crop_fraction,
        aspect=aspect,
        antialias=recipe.antialias,
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
    if is_own(recipe):
        return None
    return {
        "model": recipe.model,
        "backend": recipe.backend,
        "versions": {**versions(), **backend.capabilities().versions, **versions_of(recipe.model)},
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
