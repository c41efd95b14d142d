"""Libraries of models beside the zoo: `timm:NAME` is the model NAME of the library `timm`.

A library belongs to one backend. Its light module registers the prefix together with the module that knows the models,
which is imported, and the library with it, when a name with that prefix is first looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast

from tlx.backend import Array, Arrays, registry
from tlx.errors import RecipeError, closest

if TYPE_CHECKING:
    from tlx.models.zoo import Architecture


class Listed(TypedDict):
    """A model as a listing shows it, without building it."""

    name: str
    image_size: int  # in pixels
    imagenet: str | None  # where its weights are published


class LibraryModels(Protocol):
    """What the module of a library offers. Names have their prefix."""

    def architecture(self, name: str) -> Architecture:
        """Describe a model; raises BackendUnavailable without the library, RecipeError for an unknown name."""

    def listed(self, pattern: str) -> Sequence[Listed]:
        """Return the models whose name contains a text, or matches it as a shell pattern."""


class Fitting(Protocol):
    """How a built model of a library takes its values: what its backend keeps as `library` of the model."""

    def first_values(self, seed: int) -> dict[str, Array]:
        """Return the values with which the library begins, drawn from a seed."""

    def translated(self, arrays: Arrays) -> Arrays:
        """Return a checkpoint under the model's names and in its shapes, as far as the library knows how."""


@dataclass(frozen=True, slots=True)
class Library:
    """A library, by its prefix: what builds its models, what knows them, and the distribution that is installed."""

    prefix: str  # without the colon
    backend: str
    module: str
    distribution: str

    def load(self) -> LibraryModels:
        """Import the module."""
        return cast(LibraryModels, import_module(self.module))


LIBRARIES: dict[str, Library] = {}


def register_library(library: Library) -> None:
    """Make the models of a library known; a backend's light module calls this.

    Raises:
        RecipeError: another library has the prefix.
    """
    if LIBRARIES.setdefault(library.prefix, library) != library:
        raise RecipeError(f"register_library: there is another library {library.prefix!r} already; choose another name")


def library_of(name: Any) -> Library | None:
    """Return the library that a model's name, or a pattern of names, belongs to; None: it has no prefix.

    Raises:
        RecipeError: there is no library of that prefix.
    """
    prefix, colon, _ = str(name).partition(":")
    if not colon:
        return None
    if prefix not in LIBRARIES:
        raise RecipeError(f"Model {name!r}: no library {prefix!r}.{closest(prefix, LIBRARIES)}")
    return LIBRARIES[prefix]


def versions_of(model: Any) -> dict[str, str]:
    """Return the version of the library that a model's name belongs to; nothing for another model."""
    library = LIBRARIES.get(model.partition(":")[0]) if isinstance(model, str) else None
    return registry.installed([library.distribution]) if library else {}
