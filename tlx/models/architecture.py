"""What the core knows of a model: its layout by the paths of its modules, its weights, and how it starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tlx.errors import RecipeError, WeightsError
from tlx.models.pixels import IMAGENET, Pixels

if TYPE_CHECKING:
    from tlx.backend import ParamSpec

# How an array starts: "constant", at the value; "deviation", uniform with the value as its standard deviation;
# "fan_in", with 1 / sqrt(fan-in); "xavier", by Glorot & Bengio 2010, equation 16; "linear", as linear layers do.
Start = tuple[Literal["constant", "deviation", "fan_in", "xavier", "linear"], float]
Starts = tuple[tuple[str, Start], ...]
Stages = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's layout, by the paths of its modules."""

    name: str
    head: str  # path of the last layer, which is replaced
    stages: Stages  # from input to output: name, and the module paths it covers
    imagenet: str  # its published checkpoint: a file name, or for a library's model an address; "": none
    min_size: int = 1  # smallest image, in pixels, that no layer shrinks to nothing (torchvision's "min_size")
    options: tuple[tuple[str, int], ...] = ()  # of the zoo's constructor, the same on every backend
    left_out: tuple[str, ...] = ()  # beginnings of names in the checkpoint that the model does without
    renamed: tuple[str, str] = ("", "")  # pattern and replacement for names in the checkpoint
    hidden: bool = False  # only tests use it: listings leave it out
    parameters: int | None = None  # with 1,000 classes
    pixels: Pixels = IMAGENET  # what its weights expect
    starts: Starts = ()  # by a pattern of names, the first that matches: what is not customary
    patch: int = 0  # pixels of a patch, where the model is built for one image size, in whole patches; 0: any size
    positions: str = ""  # name of the embedding of such patches, after one of the class token
    backend: str = ""  # of a library's model: the only one that builds it

    def to_dict(self) -> dict[str, Any]:
        """Return what a listing shows, as plain values."""
        values = {"name": self.name, "head": self.head, "parameters": self.parameters, "min_size": self.min_size}
        return {**values, "stages": [name for name, _ in self.stages], "imagenet": self.imagenet or None}

    def start_of(self, name: str) -> Start | None:
        """Return how an array starts from random weights, where that is not as its role customarily does."""
        return next((start for pattern, start in self.starts if re.search(pattern, name)), None)

    def options_at(self, image_size: int) -> tuple[tuple[str, int], ...]:
        """Return the options of the zoo's constructor for images of this size, in pixels."""
        return (*self.options, ("image_size", image_size)) if self.patch else self.options

    def fitting(self, image_size: int) -> int:
        """Return the smallest size of images that the model takes, from `image_size` on, in pixels."""
        size = max(image_size, self.min_size)
        return -(-size // self.patch) * self.patch if self.patch else size

    def check_size(self, image_size: int) -> None:
        """Raise RecipeError, with the nearest sizes that it takes, where images of this size do not fit the model."""
        if image_size < self.min_size:
            raise RecipeError(f"image_size is {image_size}; {self.name} needs at least {self.min_size} pixels")
        if (size := self.fitting(image_size)) != image_size:
            raise RecipeError(
                f"image_size is {image_size}; {self.name} takes whole patches of {self.patch} pixels: "
                f"use {size - self.patch} or {size}"
            )

    def stage_of(self, module: str) -> str:
        """Return the stage whose path is the nearest around a module, or ``"head"``."""
        if _covers(self.head, module):
            return "head"
        around = [(len(path), stage) for stage, paths in self.stages for path in paths if _covers(path, module)]
        if not around:
            raise RecipeError(f"{self.name}: module {module!r} belongs to no stage")
        return max(around, key=lambda pair: pair[0])[1]

    def translate(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return a checkpoint's arrays under the model's names, without what it leaves out."""
        pattern, replacement = self.renamed
        names = {name: re.sub(pattern, replacement, name) if pattern else name for name in arrays}
        if len(set(names.values())) != len(names):
            raise WeightsError(f"{self.name}: the weights hold an entry under its old name and under its new one")
        return {new: arrays[old] for old, new in names.items() if not old.startswith(self.left_out or ("\0",))}


def own_architecture(name: str, head: str, specs: Sequence[ParamSpec]) -> Architecture:
    """Describe a module of the user's own: its stages are the children that own parameters, in the module's order.

    Where one container holds all of them but the head, the stages are that container's children.
    """
    modules = list(dict.fromkeys(spec.module for spec in specs if not _covers(head, spec.module)))
    depth = 1
    while len({_first(module, depth) for module in modules}) == 1 and any(m.count(".") >= depth for m in modules):
        depth += 1
    stages = dict.fromkeys(_first(module, depth) for module in modules)
    return Architecture(name, head, tuple((stage_name(stage), (stage,)) for stage in stages), "")


def stage_name(path: str) -> str:
    """Name a stage by the first path that it covers; "head" is what is replaced, and not what comes before it."""
    return "before_head" if path == "head" else path or "root"


def _first(module: str, depth: int) -> str:
    return ".".join(module.split(".")[:depth])


def _covers(path: str, module: str) -> bool:
    return module == path or module.startswith(path + ".")


def stages_of(prefix: str, **numbers: Iterable[int | str]) -> Stages:
    """Name stages by the numbered children of one container."""
    return tuple((stage, tuple(f"{prefix}.{child}" for child in children)) for stage, children in numbers.items())
