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
from typing import Any, TypeVar

from tlx.backend.protocol import Lora
from tlx.data.fixes import PIN
from tlx.errors import RecipeError, as_html, closest, one_line, shown
from tlx.manifest import FIXES
from tlx.models.pixels import IMAGENET, Pixels
from tlx.models.zoo import Architecture, architecture
from tlx.recipe_fields import Affects
from tlx.recipe_schema import RecipeFields as RecipeFields
from tlx.recipe_schema import Schema
from tlx.strategy.built_in import STRATEGIES, named
from tlx.strategy.plan import Fits, Strategy

Function = TypeVar("Function", bound=Callable[..., Any])

VERSION = 3  # of the recipe's format; a file with a higher one was written by a later tlx
PIXELS_SINCE = 3  # the version since when a model may have pixels of its own; before, all had ImageNet's
LONGEST = 2**20  # bytes of a recipe file
RENAMED = {"views": "augment_repeats"}  # names that format 1 had

DATA_OBJECT = "<arrays>"  # what stands in a saved recipe for data that was passed in Python
DATA_PULLED = "<pulled>"  # and of a model that was pulled from a hub, without its data


@dataclass(frozen=True, slots=True, repr=False)
class Recipe(Schema):
    """Everything a result depends on. The defaults are the CIFAR-10 tutorial's job.

    A field that is None takes the strategy's customary value, the model's, or the value that its help names.

    Raises:
        RecipeError: a value is out of range, of the wrong type, or contradicts another.
    """

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
    def fits(self) -> Fits | None:
        """What the strategy does where it takes no steps."""
        return named(self.strategy).fits if isinstance(self.strategy, str) else None

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

    @property
    def loggers(self) -> tuple[str, ...]:
        """The loggers, by their names."""
        return self.log if isinstance(self.log, tuple) else ()

    @property
    def pixels(self) -> Pixels:
        """How the network sees a photo: as the model's weights were trained to, where no field says otherwise."""
        return self.overruled(architecture(self.model).pixels if isinstance(self.model, str) else IMAGENET)

    def overruled(self, own: Pixels) -> Pixels:
        """Return what is `own` to a model, but for the fields that say otherwise."""
        aspect = self.aspect or own.aspect
        # A photo of which nothing was to be cropped is taken whole.
        fraction = own.crop_fraction if aspect in ("crop", own.aspect) else 1.0
        return Pixels(
            size=self.image_size or own.size,
            mean=self.mean or own.mean,
            std=self.std or own.std,
            interpolation=self.interpolation or own.interpolation,
            crop_fraction=self.crop_fraction or fraction,
            aspect=aspect,
        )

    @property
    def lora(self) -> Lora | None:
        """The low-rank adapters of the model, where the strategy takes a rank."""
        recipe = self.resolved()
        return None if recipe.rank is None else Lora(recipe.rank, recipe.alpha or recipe.rank, recipe.lora_targets)

    def _check_options(self) -> None:
        used = named(self.strategy).customary if isinstance(self.strategy, str) else {}
        for name in used:
            if name not in Recipe.__dataclass_fields__:
                raise RecipeError(f"strategy {self.strategy_name!r} takes {name!r}, which is no recipe field")
        options = {name for strategy in STRATEGIES.values() for name in strategy.customary}
        for name in filter(options.__contains__, Recipe.__dataclass_fields__):
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
            if isinstance(value, str) and value == DATA_PULLED:
                raise RecipeError(
                    "the model was pulled without the data that it was trained on; pass some, as data=..."
                )
            if isinstance(value, str) and value.startswith("<"):
                raise RecipeError(f"{name} is {value!r}: it was a Python object; pass it again, as {name}=...")
        if own and self.head_path is None:
            raise RecipeError("head is a module; say which layer of your own model it replaces, as head={'fc': module}")
        if self.head_module is not None and (self.hidden or self.dropout):
            raise RecipeError("head is a module of your own; leave hidden and dropout to it")
        if self.head_module is not None and self.fits:
            raise RecipeError(
                f"head is a module of your own, but strategy {self.strategy!r} has a head of one linear layer; "
                "say only where it is, or use strategy 'feature_extract'"
            )
        if isinstance(self.model, str):
            arch = architecture(self.model)
            if self.head_path not in (None, arch.head):
                raise RecipeError(
                    f"head is {self.head_path!r}; the head of {self.model} is {arch.head!r}: leave it out"
                )
            arch.check_size(self.pixels.size)
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

    def resolved(self, own: Pixels | None = None) -> Recipe:
        """Fill in what strategy and model decide, so that the saved recipe says what was done.

        What a part of a data set keeps of its images is left: see `tlx.training.build.frame`.

        Args:
            own: what the model expects of its pixels; default: the value of its architecture.
        """
        strategy = named(self.strategy) if isinstance(self.strategy, str) else None
        weights: str = strategy.weights if strategy else "imagenet"
        if weights == "imagenet" and not isinstance(self.model, str):
            weights = "own"
        customary = strategy.customary if strategy else {}
        options = {name: value for name, value in customary.items() if getattr(self, name) is None}
        pixels = self.pixels if own is None else self.overruled(own)
        seen = {name: getattr(pixels, name) for name in ("mean", "std", "interpolation")}
        if self.fits:  # one view of each image, once
            options |= {"epochs": 1, "augment": "none"}
        return replace(self, weights=self.weights or weights, image_size=pixels.size, **seen, **options)

    def bound_strategy(self, arch: Architecture) -> Strategy:
        """Return the strategy for an architecture."""
        if isinstance(self.strategy, Strategy):
            return self.strategy
        full, strategy = self.resolved(), named(self.strategy)
        built = strategy.build(arch, self.epochs, **{name: getattr(full, name) for name in strategy.customary})
        return replace(built, fits=strategy.fits)

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
        cls,
        path: str | Path,
        overrides: Mapping[str, Any] | None = None,
        used: Collection[str] | None = None,
        content: bytes | None = None,
    ) -> Recipe:
        """Read a recipe file, or what was read from it already; `overrides` replace its values.

        With `used`, only these fields are read.
        """
        values = read_toml(Path(path), content)
        version = values.pop("recipe_version", VERSION)
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise RecipeError(f"{path}: recipe_version is {shown(version)}; expected {VERSION}, or leave it out")
        if version > VERSION:
            problem = f"{path}: recipe_version {shown(version)} is newer than this tlx reads ({VERSION})"
            raise RecipeError(f"{problem}; upgrade tlx")
        if used is not None:
            values = {name: value for name, value in values.items() if name in used}
        copy = Path(path).parent / FIXES  # of a run, which the file that it was made from may not outlive
        if isinstance(fixes := values.get("fixes"), str) and PIN in fixes and copy.is_file():
            values["fixes"] = f"{copy}{PIN}{fixes.partition(PIN)[2]}"
        return cls(**{**current_names(values, str(path)), **current_names(overrides or {}, "recipe")})


def current_names(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return named values under the names that the fields have now.

    Raises RecipeError, with the nearest valid name, where a name is unknown; `where` begins the message.
    """
    renamed: dict[str, Any] = {}
    for name, value in values.items():
        current = RENAMED.get(name, name)
        if current not in Recipe.__dataclass_fields__:
            raise RecipeError(f"{where}: unknown field {shown(name)}.{closest(str(name), Recipe.__dataclass_fields__)}")
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


def read_toml(path: Path, content: bytes | None = None) -> dict[str, Any]:
    """Read a TOML file, or what was read from it already; anything wrong with it is one clear line."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if content is None:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe may never begin, and a device never end
                raise ValueError("it is not a file")
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
