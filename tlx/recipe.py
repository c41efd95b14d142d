"""The recipe: one frozen value that holds everything a result depends on, in Python, TOML and on the command line."""

from __future__ import annotations

import codecs
import inspect
import os
import stat
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from tlx.backend.optimizers import OptimizerName
from tlx.data import DataLike
from tlx.data.augment import describe_ops
from tlx.data.images import MAX_PIXELS
from tlx.data.load import describe_sources
from tlx.errors import RecipeError, as_html, closest, one_line, shown
from tlx.models.zoo import Architecture, architecture
from tlx.recipe_fields import (
    Affects,
    ClassWeights,
    FeatureCache,
    HeadLike,
    ModelLike,
    OnBadImage,
    PrecisionName,
    Sampler,
    check_data,
    check_head,
    check_model,
    check_strategy,
    choice,
    field,
    names,
    number,
    text,
    widths,
)
from tlx.strategy.built_in import STRATEGIES, StrategyName, named
from tlx.strategy.plan import DecayOn, FrozenNorm, Strategy
from tlx.strategy.schedule import ScheduleName

Function = TypeVar("Function", bound=Callable[..., Any])

VERSION = 2  # of the recipe's format; a file with a higher one was written by a later tlx
LONGEST = 2**20  # bytes of a recipe file
RENAMED = {"views": "augment_repeats"}  # names that format 1 had

DATA_OBJECT = "<arrays>"  # what stands in a saved recipe for data that was passed in Python


@dataclass(frozen=True, slots=True, repr=False)
class Recipe:
    """Everything a result depends on. The defaults are the CIFAR-10 tutorial's job.

    A field that is None takes the strategy's customary value, or the value that its help names.

    Raises:
        RecipeError: a value is out of range, of the wrong type, or contradicts another.
    """

    backend: str = text(
        "torch", "backend that computes: see `tlx backends`", group="Machine and files", affects="place"
    )
    strategy: StrategyName | str | Strategy = field(
        "full", "what trains, and at which rates: see `tlx strategies`", check_strategy, group="Strategy"
    )
    lr: float | None = number(None, "learning rate of the head, or of everything", group="Strategy", low=0)
    backbone_lr: float | None = number(
        None, "learning rate of the backbone, where the strategy has one", group="Strategy", low=0
    )
    stages: tuple[str, ...] | None = names(
        "strategy partial: the stages that train; default: the last",
        group="Strategy",
        example="['layer3', 'layer4']",
        least=1,
    )
    phase_epochs: int | None = number(
        None,
        "strategy head_then_full: epochs of the head alone; gradual: epochs between two stages",
        group="Strategy",
        low=1,
        whole=True,
    )
    layer_decay: float | None = number(
        None, "strategy layer_decay: a stage's rate divided by that of the next", group="Strategy", low=0, high=1
    )
    frozen_norm: FrozenNorm = choice(
        "keep",
        "BatchNorm in a frozen part keeps its statistics, or goes on adapting them as in the tutorials",
        FrozenNorm,
        group="Strategy",
    )
    data: DataLike = field("cifar10", describe_sources(), check_data, group="Data")
    data_root: str | None = text(
        None, "folder that holds the published data set; default: the download cache", group="Data", affects="place"
    )
    classes: tuple[str, ...] | None = names(
        "use only these classes, in this order", group="Data", example="['cat', 'dog']", least=2
    )
    limit_train: int | None = number(
        None, "use at most this many training images, with the classes in proportion", group="Data", low=1, whole=True
    )
    limit_test: int | None = number(
        None, "use at most this many test images, with the classes in proportion", group="Data", low=1, whole=True
    )
    val_fraction: float = number(
        0.1,
        "fraction of the training images held out for validation, which chooses the best epoch; 0: keep the last epoch",
        group="Data",
        low=0,
        high=0.9,
    )
    test_fraction: float = number(
        0.2, "fraction held out for the test where the data has no test part", group="Data", low=0, high=0.9
    )
    on_bad_image: OnBadImage = choice(
        "error", "an image that cannot be decoded stops the run, or is left out and counted", OnBadImage, group="Data"
    )
    max_pixels: int = number(
        MAX_PIXELS,
        "a photo of more pixels is refused before it takes memory: 4 bytes a pixel in each thread that decodes",
        group="Data",
        low=1,
        whole=True,
        affects="place",
    )
    path_column: str | None = text(
        None, "column of a .csv or .parquet file with the photos or their paths; default: guessed", group="Data"
    )
    label_column: str | None = text(
        None,
        "column of a .csv or .parquet file, or name in a shard's .json, with the labels; default: guessed",
        group="Data",
    )
    model: ModelLike = field(
        "resnet18",
        "architecture: see `tlx models`; in Python also a module of the framework",
        check_model,
        group="Model",
    )
    head: HeadLike | None = field(
        None,
        "path of the layer to replace in a module of your own, such as classifier.2; in Python also a module for it",
        check_head,
        group="Model",
    )
    hidden: int | tuple[int, ...] | None = widths(
        "widths of the head's hidden layers, such as 256 or 512,256, each with a ReLU", group="Model"
    )
    dropout: float = number(
        0.0,
        "fraction of the units that the head drops before its last layer, and after each hidden one",
        group="Model",
        low=0,
        high=0.99,
    )
    weights: str | None = text(
        None, "imagenet, none, a weights file (.pth, .ckpt, .bin, .safetensors), or a run folder", group="Model"
    )
    epochs: int = number(3, "passes over the training images", group="Training", low=1, whole=True)
    batch_size: int = number(
        64, "images in a step, at most all; the last partial batch is kept", group="Training", low=1, whole=True
    )
    micro_batch: int | None = number(
        None,
        "images on the device at once; their gradients add up to those of batch_size",
        group="Training",
        low=1,
        whole=True,
    )
    image_size: int = number(
        224, "height and width of the network's input, in pixels", group="Model", low=8, high=4096, whole=True
    )
    crop_fraction: float | None = number(
        None,
        "fraction of the shorter side that evaluation keeps; default: 0.875 for photos, otherwise 1",
        group="Augmentation and labels",
        low=0.1,
        high=1,
    )
    augment: str = text("flips", describe_ops(), group="Augmentation and labels")
    augment_repeats: int | None = number(
        None,
        "epochs after which augmentation repeats itself, so that features of random crops can be cached",
        group="Augmentation and labels",
        low=1,
        whole=True,
    )
    mixup: float = number(0.0, "alpha of mixup; 0: off", group="Augmentation and labels", low=0, high=100)
    cutmix: float = number(0.0, "alpha of cutmix; 0: off", group="Augmentation and labels", low=0, high=100)
    label_smoothing: float = number(
        0.0, "fraction of each label spread over all classes", group="Augmentation and labels", low=0, high=1
    )
    class_weights: ClassWeights = choice(
        "none", "balanced: rare classes weigh more in the loss", ClassWeights, group="Augmentation and labels"
    )
    sampler: Sampler = choice(
        "shuffle",
        "shuffle: each image once an epoch; balanced: each class equally often",
        Sampler,
        group="Augmentation and labels",
    )
    optimizer: OptimizerName = choice("sgd", "update rule", OptimizerName, group="Training")
    momentum: float = number(0.9, "momentum factor (sgd, rmsprop)", group="Training", low=0, high=0.9999)
    weight_decay: float = number(
        5e-4, "L2 penalty, added to the gradient; adamw shrinks the weights instead", group="Training", low=0
    )
    decay_on: DecayOn = choice(
        "all", "weight_decay acts on all parameters, or leaves norms and biases alone", DecayOn, group="Training"
    )
    clip_norm: float | None = number(None, "gradients are clipped to this joint norm", group="Training", low=1e-12)
    schedule: ScheduleName = choice(
        "constant", "how the learning rates change over time", ScheduleName, group="Training"
    )
    step_size: int = number(
        7,
        "schedule step: epochs between drops; plateau: epochs without a lower validation loss before a drop",
        group="Training",
        low=1,
        whole=True,
    )
    gamma: float = number(0.1, "factor of each drop (schedules step and plateau)", group="Training", low=0, high=1)
    warmup: float = number(0.0, "epochs of linear warm-up", group="Training", low=0)
    ema: float | None = number(
        None,
        "decay of a moving average of the weights, which is then what is evaluated and saved",
        group="Training",
        low=0,
        high=0.999999,
    )
    patience: int | None = number(
        None, "stop after this many epochs without a better validation accuracy", group="Training", low=1, whole=True
    )
    seed: int = number(0, "random seed", group="Training", low=0, high=2**63 - 1, whole=True)
    precision: PrecisionName = choice(
        "auto",
        "auto: bfloat16 where the hardware has it and gradients are repeatable in it, otherwise float32",
        PrecisionName,
        group="Machine and files",
        affects="place",
    )
    device: str = text(
        "auto", "auto: cuda where there is one, otherwise cpu", group="Machine and files", affects="place"
    )
    workers: int = number(
        2, "threads that decode photos", group="Machine and files", low=0, high=256, whole=True, affects="speed"
    )
    feature_cache: FeatureCache = choice(
        "auto",
        "the output of a frozen backbone is cached, auto: for later runs too; run: for this run only; off: never",
        FeatureCache,
        group="Machine and files",
        affects="speed",
    )
    save_seconds: float = number(
        60.0, "seconds between two saves within an epoch", group="Machine and files", low=0, affects="speed"
    )
    out: str | None = text(
        None, "folder of this run; default: a new one below runs/", group="Machine and files", affects="place"
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None and f.default is None:
                continue
            if value is None and f.name != "data":
                raise RecipeError(f"{f.name} may not be None; its default is {f.default!r}")
            object.__setattr__(self, f.name, f.metadata["check"](f.name, value))
        self._check_options()
        self._check_model()
        if self.warmup >= self.epochs:
            raise RecipeError(f"warmup is {self.warmup} epochs, but the run has only {self.epochs}; lower warmup")

    def __repr__(self) -> str:
        """Show the fields that differ from the defaults, as Python."""
        values = ((f.name, getattr(self, f.name)) for f in self.changed())
        return f"Recipe({', '.join(f'{name}={_shown(value)}' for name, value in values)})"

    def changed(self) -> list[Any]:
        """Return the dataclass fields whose values differ from their defaults."""
        # The type comes first: comparing an array with a text gives an array.
        return [
            f for f in fields(self) if type(value := getattr(self, f.name)) is not type(f.default) or value != f.default
        ]

    def _repr_html_(self) -> str:
        shown = [(f.name, _shown(getattr(self, f.name)), f.metadata["help"]) for f in self.changed()]
        rows = "".join("<tr>" + "".join(f"<td>{as_html(text)}</td>" for text in row) + "</tr>" for row in shown)
        head = "<tr><th>field</th><th>value</th><th>what it is</th></tr>"
        return f"<table><caption>Recipe: what differs from the defaults</caption>{head}{rows}</table>"

    @property
    def strategy_name(self) -> str:
        """The strategy's name, also of one of your own."""
        return self.strategy if isinstance(self.strategy, str) else self.strategy.name

    @property
    def model_name(self) -> str:
        """The architecture's name, or the class of a module of your own."""
        return self.model if isinstance(self.model, str) else type(self.model).__name__

    @property
    def head_path(self) -> str | None:
        """The path of the head, where the recipe says it."""
        if isinstance(self.head, Mapping):
            return next(iter(self.head))
        return self.head if isinstance(self.head, str) else None

    @property
    def head_module(self) -> Any:
        """The module that becomes the head, if there is one."""
        if isinstance(self.head, Mapping):
            return next(iter(self.head.values()))
        return None if isinstance(self.head, str) else self.head

    @property
    def head_widths(self) -> tuple[int, ...]:
        """The widths of the head's hidden layers."""
        return self.hidden if isinstance(self.hidden, tuple) else ()

    def _check_options(self) -> None:
        used = named(self.strategy).customary if isinstance(self.strategy, str) else {}
        for name in used:
            if name not in Recipe.__slots__:
                raise RecipeError(f"strategy {self.strategy_name!r} takes {name!r}, which is no recipe field")
        for name in (name for name in Recipe.__slots__ if any(name in s.customary for s in STRATEGIES.values())):
            if getattr(self, name) is not None and name not in used:
                able = ", ".join(known.name for known in STRATEGIES.values() if name in known.customary)
                raise RecipeError(
                    f"strategy {self.strategy_name!r} has no {name}, but it is {shown(getattr(self, name))}; "
                    f"leave it out, or use one of: {able}"
                )

    def _check_model(self) -> None:
        own = not isinstance(self.model, str)
        if own and self.head is None:
            raise RecipeError(f"model is a {self.model_name} of your own; say which layer is its head, as head='fc'")
        for name in ("model", "data", "head"):
            value = getattr(self, name)
            if isinstance(value, str) and value.startswith("<"):
                raise RecipeError(f"{name} is {value!r}: it was a Python object; pass it again, as {name}=...")
        if own and self.head_path is None:
            raise RecipeError("head is a module; say which layer of your own model it replaces, as head={'fc': module}")
        if self.head_module is not None and (self.hidden or self.dropout):
            raise RecipeError("head is a module of your own; leave hidden and dropout to it")
        if isinstance(self.model, str):
            arch = architecture(self.model)
            if self.head_path not in (None, arch.head):
                raise RecipeError(
                    f"head is {self.head_path!r}; the head of {self.model} is {arch.head!r}: leave it out"
                )
            if self.image_size < arch.min_size:
                raise RecipeError(
                    f"image_size is {self.image_size}; {self.model} needs at least {arch.min_size} pixels"
                )
        if self.weights == ("imagenet" if own else "own"):
            raise RecipeError(
                f"weights is {self.weights!r}, but the model is {'your own' if own else 'one of the zoo'}; "
                f"use {'own, ' if own else 'imagenet, '}none, a file or a run folder"
            )
        if self.strategy == "scratch" and self.weights not in (None, "none"):
            raise RecipeError(
                f"strategy 'scratch' starts from random weights, but weights is {self.weights!r}; "
                "use strategy 'full' or leave weights out"
            )

    def resolved(self) -> Recipe:
        """Fill in what the strategy decides, so that the saved recipe says what was done."""
        strategy = named(self.strategy) if isinstance(self.strategy, str) else None
        weights: str = strategy.weights if strategy else "imagenet"
        if weights == "imagenet" and not isinstance(self.model, str):
            weights = "own"
        customary = strategy.customary if strategy else {}
        options = {name: value for name, value in customary.items() if getattr(self, name) is None}
        return replace(self, weights=self.weights or weights, **options)

    def bound_strategy(self, arch: Architecture) -> Strategy:
        """Return the strategy for an architecture."""
        if isinstance(self.strategy, Strategy):
            return self.strategy
        full, strategy = self.resolved(), named(self.strategy)
        return strategy.build(arch, self.epochs, **{name: getattr(full, name) for name in strategy.customary})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values; data and models that were passed as objects become descriptions."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        if isinstance(self.strategy, Strategy):
            values["strategy"] = self.strategy.to_dict()
        if not isinstance(self.data, str):
            values["data"] = DATA_OBJECT
        if not isinstance(self.model, str):
            values["model"] = f"<{self.model_name}>"
        if self.head_module is not None:
            values["head"] = f"<{type(self.head_module).__name__}>"
        return values

    def to_toml(self) -> str:
        """Return the recipe as TOML; a field that is None is left out."""
        import tomli_w

        values = {name: value for name, value in self.to_dict().items() if value is not None}
        return tomli_w.dumps({"recipe_version": VERSION, **values})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Build a recipe from named values. A field's earlier name is understood; an unknown one is a RecipeError."""
        return cls(**current_names(values, where))

    @classmethod
    def from_toml(
        cls, path: str | Path, overrides: Mapping[str, Any] | None = None, used: Collection[str] | None = None
    ) -> Recipe:
        """Read a recipe file; `overrides` replace its values. With `used`, only these fields are read."""
        values = read_toml(Path(path))
        version = values.pop("recipe_version", VERSION)
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise RecipeError(f"{path}: recipe_version is {shown(version)}; expected {VERSION}, or leave it out")
        if version > VERSION:
            problem = f"{path}: recipe_version {shown(version)} is newer than this tlx reads ({VERSION})"
            raise RecipeError(f"{problem}; upgrade tlx")
        if used is not None:
            values = {name: value for name, value in values.items() if name in used}
        return cls(**{**current_names(values, str(path)), **current_names(overrides or {}, "recipe")})


class RecipeFields(TypedDict, total=False):
    """The fields of a `Recipe` as keywords, for editors and type checkers; a test holds them equal to the class."""

    backend: str
    strategy: StrategyName | str | Strategy
    lr: float | None
    backbone_lr: float | None
    stages: tuple[str, ...] | None
    phase_epochs: int | None
    layer_decay: float | None
    frozen_norm: FrozenNorm
    data: DataLike
    data_root: str | None
    classes: tuple[str, ...] | None
    limit_train: int | None
    limit_test: int | None
    val_fraction: float
    test_fraction: float
    on_bad_image: OnBadImage
    max_pixels: int
    path_column: str | None
    label_column: str | None
    model: ModelLike
    head: HeadLike | None
    hidden: int | tuple[int, ...] | None
    dropout: float
    weights: str | None
    epochs: int
    batch_size: int
    micro_batch: int | None
    image_size: int
    crop_fraction: float | None
    augment: str
    augment_repeats: int | None
    mixup: float
    cutmix: float
    label_smoothing: float
    class_weights: ClassWeights
    sampler: Sampler
    optimizer: OptimizerName
    momentum: float
    weight_decay: float
    decay_on: DecayOn
    clip_norm: float | None
    schedule: ScheduleName
    step_size: int
    gamma: float
    warmup: float
    ema: float | None
    patience: int | None
    seed: int
    precision: PrecisionName
    device: str
    workers: int
    feature_cache: FeatureCache
    save_seconds: float
    out: str | None


def current_names(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return named values under the names that the fields have now.

    Raises RecipeError, with the nearest valid name, where a name is unknown; `where` begins the message.
    """
    renamed: dict[str, Any] = {}
    for name, value in values.items():
        current = RENAMED.get(name, name)
        if current not in Recipe.__slots__:
            raise RecipeError(f"{where}: unknown field {shown(name)}.{closest(str(name), Recipe.__slots__)}")
        if current in renamed:
            raise RecipeError(f"{where}: {current!r} is given twice, as {name!r} too, which is its earlier name")
        renamed[current] = value
    return renamed


def as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path | None, fields: Mapping[str, Any]) -> Recipe:
    """Make a recipe of whatever stands for one; `fields` replace its own."""
    if isinstance(recipe, Recipe):
        return replace(recipe, **current_names(fields, "recipe"))
    if isinstance(recipe, (str, Path)):
        return Recipe.from_toml(recipe, fields)
    if recipe is not None and not isinstance(recipe, Mapping):
        kinds = "a tlx.Recipe, its fields as a mapping, or the path of a TOML file"
        raise RecipeError(f"recipe is {shown(recipe)}; expected {kinds}")
    return Recipe(**{**current_names(recipe or {}, "recipe"), **current_names(fields, "recipe")})


def takes_fields(function: Function) -> Function:
    """Give a function that takes `**fields` a signature with every recipe field, which a notebook shows and completes.

    An editor reads the same from `Unpack[RecipeFields]`.
    """
    own = inspect.signature(function)
    plain = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    recipe = inspect.signature(Recipe).parameters.values()
    every = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in recipe]
    function.__signature__ = own.replace(parameters=[*plain, *every])  # type: ignore[attr-defined]
    return function


def fields_affecting(*affects: Affects) -> tuple[str, ...]:
    """Return the names of the recipe fields that affect the result, the speed or the place, in their order."""
    return tuple(f.name for f in fields(Recipe) if f.metadata["affects"] in affects)


def _shown(value: Any) -> str:
    """Write a value as Python; data, models and strategies that are objects by their kind or name."""
    if isinstance(value, Strategy):
        return f"<strategy {value.name}>"
    return repr(value) if value is None or isinstance(value, (str, int, float, tuple)) else f"<{type(value).__name__}>"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; anything wrong with it is one clear line."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe may never begin, and a device never end
            raise RecipeError(f"{path}: cannot read the recipe: it is not a file")
        with open(path, "rb") as file:
            content = file.read(LONGEST + 1)
    except (OSError, ValueError) as error:  # ValueError of a path with a NUL character
        cause = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"{path}: cannot read the recipe: {cause}") from None
    if len(content) > LONGEST:
        raise RecipeError(f"{path}: cannot read the recipe: it is longer than {LONGEST // 2**20} MB")
    if b"\0" in content:
        raise RecipeError(f"{path}: not valid TOML: it is not UTF-8 text; save it as UTF-8")
    try:
        # A path that is no UTF-8 stands in it with its own bytes.
        return tomllib.loads(content.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape"))
    except RecursionError:
        raise RecipeError(f"{path}: not a recipe: its lists or tables are nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError is one, as is that of a number of too many digits
        raise RecipeError(f"{path}: not valid TOML: {one_line(str(error))}") from None
