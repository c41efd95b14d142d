"""The arrays and modules of a user's own module, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tlx.backend import ParamSpec
from tlx.backend.module.build import describe
from tlx.proof.mapping import Shape

Axes: TypeAlias = tuple[int, ...]
Layout: TypeAlias = tuple[Axes | None, Axes | None]  # of what enters a module, and of what leaves it


@dataclass(frozen=True, slots=True)
class Names:
    """A module's arrays and modules by name; what is shared has several names, and goes by its first."""

    side: str
    specs: Mapping[str, ParamSpec]
    first: Mapping[str, str]  # every name of an array -> its first
    modules: Mapping[str, str]  # every path of a module -> its first
    calls: Mapping[str, int] = field(default_factory=dict)  # path -> its place in the order of execution, where known

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the arrays."""
        return {name: spec.shape for name, spec in self.specs.items()}

    def executed(self) -> list[ParamSpec]:
        """Return the arrays in the order in which their modules, or those around them, are called."""

        def place(spec: ParamSpec) -> int:
            around = (*reversed(prefixes(spec.name)), "")
            return next((self.calls[path] for path in around if path in self.calls), len(self.calls))

        return sorted(self.specs.values(), key=place)

    def paths(self) -> set[str]:
        """Return every name and path, which a rule may speak of."""
        return {"", *self.first, *self.modules, *(path for name in self.first for path in prefixes(name))}


def names_of(backend: Any, module: Any, side: str) -> Names:
    """Describe a module by its backend."""
    specs = {spec.name: spec for spec in describe(module, getattr(backend, "norms", ()))}
    first = {name: spec.name for spec in specs.values() for name in (spec.name, *spec.aliases)}
    paths = {id(part): path for path, part in module.named_modules()}
    return Names(side, specs, first, {path: paths[id(part)] for path, part in _every_module(module)})


def _every_module(module: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _every_module(child, f"{path}.{name}".lstrip("."))


def prefixes(name: str) -> list[str]:
    """Return the paths around a name, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
