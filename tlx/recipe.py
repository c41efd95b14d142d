"""The recipe: one frozen value that holds everything a result depends on, in Python, TOML and on the command line."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tlx.errors import RecipeError, closest
from tlx.models.zoo import Architecture, architecture
from tlx.strategy.built_in import OPTIONS, STRATEGIES, Options, built_in, make
from tlx.strategy.plan import DecayOn, FrozenNorm, Strategy
from tlx.strategy.schedule import SCHEDULES

VERSION = 1  # of the recipe's format; a file with a higher one was written by a later tlx

DATA_OBJECT = "<arrays>"  # what stands in a saved recipe for data that was passed in Python
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
PRECISIONS = ("auto", "float32", "bfloat16", "float64")


def _field(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """Declare a field with its help and the values it accepts; the bounds are inclusive."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything a result depends on. The defaults are the CIFAR-10 tutorial's job.

    A field that is None takes the strategy's customary value or the value that its help names. Raises RecipeError on
    construction where a value is out of range or contradicts another.
    """

    backend: str = _field("torch", "which stack computes")
    strategy: str | Strategy = _field("full", "what trains, and how fast: see `tlx strategies`")
    lr: float | None = _field(None, "learning rate of the head, or of everything", low=0)
    backbone_lr: float | None = _field(None, "learning rate of the backbone, where the strategy has one", low=0)
    stages: tuple[str, ...] | None = _field(None, "strategy partial: the stages that train; default: the last")
    phase_epochs: int | None = _field(
        None, "strategy head_then_full: epochs of the head alone; gradual: epochs between two stages", low=1
    )
    layer_decay: float | None = _field(
        None, "strategy layer_decay: a stage's rate over that of the next", low=0, high=1
    )
    frozen_norm: FrozenNorm = _field(
        "keep",
        "BatchNorm in a frozen part keeps its statistics, or goes on adapting them as in the tutorials",
        choices=("keep", "adapt"),
    )
    data: object = _field("cifar10", "cifar10, digits, a folder of photos, a .csv of path,label, or an .npz of arrays")
    data_root: str | None = _field(None, "folder that holds the published data set; default: the download cache")
    classes: tuple[str, ...] | None = _field(None, "take only these classes, in this order")
    limit_train: int | None = _field(None, "take at most this many training images, classes in proportion", low=1)
    limit_test: int | None = _field(None, "take at most this many test images, likewise", low=1)
    val_fraction: float = _field(0.1, "part of train that chooses the best epoch; 0: keep the last", low=0, high=0.9)
    test_fraction: float = _field(
        0.2, "part that is kept for the test where the data has no such part", low=0, high=0.9
    )
    on_bad_image: str = _field(
        "error", "an image that cannot be decoded stops the run, or is left out and counted", choices=("error", "skip")
    )
    model: object = _field("resnet18", "architecture: see `tlx models`; in Python also a module of the framework")
    head: str | None = _field(None, "path of the layer to replace in a module of your own, such as classifier.2")
    weights: str | None = _field(None, "imagenet, none, a .safetensors or .pth file, or a run folder")
    epochs: int = _field(3, "passes over the training images", low=1)
    batch_size: int = _field(64, "images in a step; the last partial batch is kept", low=1)
    micro_batch: int | None = _field(
        None, "images that enter the device at once; their gradients add up to those of batch_size", low=1
    )
    image_size: int = _field(224, "height and width that enter the network, in pixels", low=8, high=4096)
    crop_fraction: float | None = _field(
        None, "evaluation crops this part of the shorter side; default: 0.875 for photos, else 1", low=0.1, high=1
    )
    augment: str = _field(
        "flips", "none, flips, photo, or hflip, vflip, crop, rotate, color, randaugment joined with +"
    )
    views: int | None = _field(
        None, "augmentation repeats itself after so many epochs; random crops can then be kept as features", low=1
    )
    mixup: float = _field(0.0, "alpha of mixup; 0: off", low=0, high=100)
    cutmix: float = _field(0.0, "alpha of cutmix; 0: off", low=0, high=100)
    label_smoothing: float = _field(0.0, "part of each label that is spread over all classes", low=0, high=1)
    class_weights: str = _field("none", "balanced: rare classes weigh more in the loss", choices=("none", "balanced"))
    sampler: str = _field(
        "shuffle",
        "shuffle: each image once an epoch; balanced: each class equally often",
        choices=("shuffle", "balanced"),
    )
    optimizer: str = _field("sgd", "update rule", choices=OPTIMIZERS)
    momentum: float = _field(0.9, "of sgd and rmsprop", low=0, high=0.9999)
    weight_decay: float = _field(5e-4, "L2 penalty, added to the gradient; adamw shrinks the weights instead", low=0)
    decay_on: DecayOn = _field(
        "all", "weight_decay acts on all parameters, or leaves norms and biases alone", choices=("all", "weights")
    )
    clip_norm: float | None = _field(None, "gradients are clipped to this joint norm", low=1e-12)
    schedule: str = _field("constant", "how the rates change", choices=tuple(SCHEDULES))
    step_size: int = _field(7, "schedule step: epochs between drops; plateau: epochs without a lower val loss", low=1)
    gamma: float = _field(0.1, "factor of each drop of schedules step and plateau", low=0, high=1)
    warmup: float = _field(0.0, "epochs of linear warm-up", low=0)
    ema: float | None = _field(
        None, "decay of a moving average of the weights, which is then evaluated and kept", low=0, high=0.999999
    )
    patience: int | None = _field(None, "stop after this many epochs without a better validation accuracy", low=1)
    seed: int = _field(0, "names all random streams", low=0, high=2**63 - 1)
    precision: str = _field("auto", "auto: bfloat16 where the hardware has it, else float32", choices=PRECISIONS)
    device: str = _field("auto", "auto: cuda where there is one, else cpu")
    workers: int = _field(2, "threads that decode photos; never changes a result", low=0, high=256)
    feature_cache: str = _field(
        "auto",
        "auto: what enters the part that trains is computed once and kept, for later runs too; run: for this run; "
        "off: not kept; never changes a result",
        choices=("auto", "run", "off"),
    )
    save_seconds: float = _field(60.0, "seconds between two saves within an epoch; never changes a result", low=0)
    out: str | None = _field(None, "folder of this run; default: a new one below runs/")

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        self._check_options()
        self._check_model()
        if self.warmup >= self.epochs:
            raise RecipeError(f"warmup is {self.warmup} epochs, but the run has only {self.epochs}; lower warmup")

    @property
    def strategy_name(self) -> str:
        return self.strategy if isinstance(self.strategy, str) else self.strategy.name

    @property
    def model_name(self) -> str:
        return self.model if isinstance(self.model, str) else type(self.model).__name__

    def _check_options(self) -> None:
        used = built_in(self.strategy).customary if isinstance(self.strategy, str) else {}
        for name in OPTIONS:
            if getattr(self, name) is not None and name not in used:
                able = ", ".join(known for known, b in STRATEGIES.items() if name in b.customary)
                raise RecipeError(
                    f"strategy {self.strategy_name!r} has no {name}, but it is {getattr(self, name)!r}; "
                    f"leave it out, or use one of: {able}"
                )

    def _check_model(self) -> None:
        own = not isinstance(self.model, str)
        if own and self.head is None:
            raise RecipeError(f"model is a {self.model_name} of your own; say which layer is its head, as head='fc'")
        for name in ("model", "data"):
            given = getattr(self, name)
            if isinstance(given, str) and given.startswith("<"):
                raise RecipeError(f"{name} is {given!r}: it was a Python object; pass it again, as {name}=...")
        if isinstance(self.model, str):
            arch = architecture(self.model)
            if self.head not in (None, arch.head):
                raise RecipeError(f"head is {self.head!r}; the head of {self.model} is {arch.head!r}: leave it out")
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
        custom = built_in(self.strategy) if isinstance(self.strategy, str) else None
        weights = custom.weights if custom else "imagenet"
        if weights == "imagenet" and not isinstance(self.model, str):
            weights = "own"
        options = custom.customary if custom else {}
        chosen = {name: value for name, value in options.items() if getattr(self, name) is None}
        return replace(self, weights=self.weights or weights, **chosen)

    def bound_strategy(self, arch: Architecture) -> Strategy:
        """Return the strategy for an architecture."""
        if isinstance(self.strategy, Strategy):
            return self.strategy
        full = self.resolved()
        return make(self.strategy, Options(**{name: getattr(full, name) for name in OPTIONS}), arch, self.epochs)

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
        return values

    def to_toml(self) -> str:
        """Return the recipe as TOML; a field that is None is left out."""
        import tomli_w

        values = {name: value for name, value in self.to_dict().items() if value is not None}
        return tomli_w.dumps({"recipe_version": VERSION, **values})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Build a recipe from named values; an unknown name is an error with the nearest valid one."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise RecipeError(f"{where}: unknown field {name!r}.{closest(name, known)}")
        return cls(**values)

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Read a recipe file; `overrides` replace its values."""
        values = read_toml(Path(path))
        version = values.pop("recipe_version", VERSION)
        if not isinstance(version, int) or version > VERSION:
            raise RecipeError(f"{path}: recipe_version {version} is newer than this tlx reads ({VERSION}); upgrade tlx")
        return cls.from_dict({**values, **(overrides or {})}, str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; anything wrong with it is one clear line."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None


def _checked(f: Any, value: Any) -> Any:
    """Return a field's value in its declared type, or raise with what was expected."""
    kind = str(f.type)
    if f.name == "data":
        if isinstance(value, Path):
            return str(value)
        if value is None or (isinstance(value, str) and not value):
            raise RecipeError(f"data is {value!r}; expected {f.metadata['help']}")
        return value
    if f.name == "strategy" and not isinstance(value, str):
        if isinstance(value, Mapping):
            return Strategy.from_dict(value)
        if not isinstance(value, Strategy):
            raise RecipeError(f"strategy is {value!r}; expected a name, a tlx.Strategy or a table of one")
        return value
    if f.name == "model" and not isinstance(value, str):
        if not hasattr(value, "named_parameters"):
            raise RecipeError(f"model is {value!r}; expected a name of `tlx models`, or a module of the framework")
        return value
    if value is None:
        if "None" in kind:
            return None
        raise RecipeError(f"{f.name} may not be None; its default is {f.default!r}")
    if kind.startswith("tuple"):
        return _names(f.name, value)
    if kind.startswith("str") or f.name == "model" or f.metadata["choices"]:
        if not isinstance(value, (str, Path)) or not str(value):
            raise RecipeError(f"{f.name} is {value!r}; expected text: {f.metadata['help']}")
        choices = f.metadata["choices"]
        if choices and value not in choices:
            raise RecipeError(f"Unknown {f.name} {value!r}.{closest(str(value), choices)}")
        return str(value)
    return _number(f, value, kind)


def _names(field: str, value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    example = "['cat', 'dog']" if field == "classes" else "['layer3', 'layer4']"
    if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) and n.strip() for n in names):
        raise RecipeError(f"{field} is {value!r}; expected a list of names, such as {example}")
    names = tuple(n.strip() for n in names)
    least = 2 if field == "classes" else 1
    if len(names) < least or len(set(names)) != len(names):
        raise RecipeError(f"{field} is {value!r}; expected at least {least} names, all different")
    return names


def _number(f: Any, value: Any, kind: str) -> int | float:
    whole = kind.startswith("int")
    if isinstance(value, bool) or not hasattr(value, "__index__" if whole else "__float__"):
        raise RecipeError(f"{f.name} is {value!r}; expected {'a whole number' if whole else 'a number'}")
    number: int | float = int(value) if whole else float(value)
    low, high = f.metadata["low"], f.metadata["high"]
    if not math.isfinite(number) or (low is not None and number < low) or (high is not None and number > high):
        bounds = " and ".join(
            text for bound, text in ((low, f"at least {low}"), (high, f"at most {high}")) if bound is not None
        )
        raise RecipeError(f"{f.name} is {value}; expected a finite number, {bounds}")
    return number
