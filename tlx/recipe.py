"""The recipe: one frozen value that holds everything a result depends on, in Python, TOML and on the command line."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tlx.errors import RecipeError, closest
from tlx.schedule import SCHEDULES
from tlx.strategy import FrozenNorm, built_in
from tlx.zoo import architecture

VERSION = 1  # of the recipe's format; a file with a higher one was written by a later tlx

OPTIMIZERS = ("sgd", "adam")
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

    A field that is None takes the strategy's customary value (`weights`, `lr`, `backbone_lr`) or the value that
    its help names. Raises RecipeError on construction where a value is out of range or contradicts another.
    """

    backend: str = _field("torch", "which stack computes")
    strategy: str = _field("full", "what trains, and how fast: see `tlx strategies`")
    data: object = _field("cifar10", "cifar10, digits, or a folder with train/ and test/ (or val/)")
    data_root: str | None = _field(None, "folder that holds the published data set; default: the download cache")
    classes: tuple[str, ...] | None = _field(None, "take only these classes, in this order")
    limit_train: int | None = _field(None, "take at most this many training images, classes in proportion", low=1)
    limit_test: int | None = _field(None, "take at most this many test images, likewise", low=1)
    val_fraction: float = _field(0.1, "part of train that chooses the best epoch; 0: keep the last", low=0, high=0.9)
    model: str = _field("resnet18", "architecture: see `tlx models`")
    weights: str | None = _field(None, "imagenet, none, a .safetensors or .pth file, or a run folder")
    epochs: int = _field(3, "passes over the training images", low=1)
    batch_size: int = _field(64, "images in a step; the last partial batch is kept", low=1)
    image_size: int = _field(224, "height and width that enter the network, in pixels", low=8, high=4096)
    crop_fraction: float | None = _field(
        None, "evaluation crops this part of the shorter side; default: 0.875 for photos, else 1", low=0.1, high=1
    )
    augment: str = _field("flips", "none, flips, photo, or hflip, vflip, crop joined with +")
    optimizer: str = _field("sgd", "update rule", choices=OPTIMIZERS)
    lr: float | None = _field(None, "learning rate of the head, or of everything", low=0)
    backbone_lr: float | None = _field(None, "learning rate of the backbone, where the strategy has one", low=0)
    momentum: float = _field(0.9, "of sgd", low=0, high=0.9999)
    weight_decay: float = _field(5e-4, "L2 penalty, added to the gradient", low=0)
    schedule: str = _field("constant", "how the rates change", choices=tuple(SCHEDULES))
    step_size: int = _field(7, "epochs between the drops of schedule step", low=1)
    gamma: float = _field(0.1, "factor of each drop of schedule step", low=0, high=1)
    warmup: float = _field(0.0, "epochs of linear warm-up", low=0)
    frozen_norm: FrozenNorm = _field(
        "keep",
        "BatchNorm in a frozen part keeps its statistics, or goes on adapting them as in the tutorials",
        choices=("keep", "adapt"),
    )
    seed: int = _field(0, "names all random streams", low=0, high=2**63 - 1)
    precision: str = _field("auto", "auto: bfloat16 where the hardware has it, else float32", choices=PRECISIONS)
    device: str = _field("auto", "auto: cuda where there is one, else cpu")
    workers: int = _field(2, "threads that decode photos; never changes a result", low=0, high=256)
    out: str | None = _field(None, "folder of this run; default: a new one below runs/")

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        custom = built_in(self.strategy)
        smallest = architecture(self.model).min_size
        if self.image_size < smallest:
            raise RecipeError(f"image_size is {self.image_size}; {self.model} needs at least {smallest} pixels")
        if custom.backbone_lr is None and self.backbone_lr is not None:
            raise RecipeError(
                f"strategy {self.strategy!r} has no separate rate for the backbone, but backbone_lr is "
                f"{self.backbone_lr}; use strategy 'diff_lr' or leave backbone_lr out"
            )
        if custom.weights == "none" and self.weights not in (None, "none"):
            raise RecipeError(
                f"strategy {self.strategy!r} starts from random weights, but weights is {self.weights!r}; "
                "use strategy 'full' or leave weights out"
            )
        if self.warmup >= self.epochs:
            raise RecipeError(f"warmup is {self.warmup} epochs, but the run has only {self.epochs}; lower warmup")

    def resolved(self) -> Recipe:
        """Fill in what the strategy decides, so that the saved recipe says what was done."""
        custom = built_in(self.strategy)
        return replace(
            self,
            weights=custom.weights if self.weights is None else self.weights,
            lr=custom.lr if self.lr is None else self.lr,
            backbone_lr=custom.backbone_lr if self.backbone_lr is None else self.backbone_lr,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values; data that was passed as arrays becomes its description."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["classes"] = list(self.classes) if self.classes is not None else None
        if not isinstance(self.data, str):
            values["data"] = "<arrays>"
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
        if value is None or value == "":
            raise RecipeError(f"data is {value!r}; expected {f.metadata['help']}")
        return value
    if value is None:
        if "None" in kind:
            return None
        raise RecipeError(f"{f.name} may not be None; its default is {f.default!r}")
    if kind.startswith("tuple"):
        return _class_names(value)
    if kind.startswith("str") or f.metadata["choices"]:
        if not isinstance(value, (str, Path)) or not str(value):
            raise RecipeError(f"{f.name} is {value!r}; expected text: {f.metadata['help']}")
        choices = f.metadata["choices"]
        if choices and value not in choices:
            raise RecipeError(f"Unknown {f.name} {value!r}.{closest(str(value), choices)}")
        return str(value)
    return _number(f, value, kind)


def _class_names(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) and n.strip() for n in names):
        raise RecipeError(f"classes is {value!r}; expected a list of class names, such as ['cat', 'dog']")
    names = tuple(n.strip() for n in names)
    if len(names) < 2 or len(set(names)) != len(names):
        raise RecipeError(f"classes is {value!r}; expected at least two different names")
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
