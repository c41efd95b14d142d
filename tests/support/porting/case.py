"""What a pair is: a network, how its port is written, what goes in, and where a planted fault is to be found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

Rename = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A network written twice. `port(fw, **choices)` is written for either framework; without choices it is equal."""

    name: str
    reference: Callable[[], Any]
    port: Callable[..., Any]
    rename: Callable[..., Rename]  # by the same choices
    fields: Mapping[str, Any]  # of the recipe
    batch: Callable[[], Any] | None = None  # its own inputs, where they are no images
    loss: Callable[..., Any] | None = None  # of a framework: the loss for its own inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pair. One with `places` or `says` has a fault, and these say where it must be found."""

    name: str
    choices: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[str, ...] = ()  # paths of the reference that may be named; "a>b" is the stretch between two
    says: str = ""  # or a pattern that the report's sentence must have
    refused: bool = False  # the two cannot be compared, and the error must say so
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the recipe, beside the network's
    plant: Callable[[Any], Any] | None = None  # stands in front of the candidate's backend
    prepare: Callable[[Any, Any], None] | None = None  # changes the reference or the port before they are compared
    loss: Callable[..., Any] | None = None  # the candidate's, where it is another
    copies: bool = True  # the port gets the reference's values
    framework: str = ""  # of the port; empty: the other case's turn
    net: str = ""

    @property
    def equal(self) -> bool:
        """Whether the two sides mean the same."""
        return not self.places and not self.says

    @property
    def id(self) -> str:
        """What the results call it."""
        return f"{self.net}/{self.framework}/{self.name}"


def spread(net: str, equal: list[Case], faults: list[Case]) -> list[Case]:
    """Give each equal pair both frameworks, and each fault one in turn."""
    frameworks = ("torch", "oneflow")
    pairs = [replace(case, net=net, framework=f) for case in equal for f in frameworks if case.framework in ("", f)]
    turns = (
        replace(case, net=net, framework=case.framework or frameworks[turn % 2]) for turn, case in enumerate(faults)
    )
    return [*pairs, *turns]


def chosen(defaults: Mapping[str, Any], choices: Mapping[str, Any]) -> SimpleNamespace:
    """Return the defaults with the choices in their places; a name that none of the defaults has is an error."""
    if unknown := choices.keys() - defaults.keys():
        raise TypeError(f"the port has no choice {sorted(unknown)}; it has {sorted(defaults)}")
    return SimpleNamespace(**{**defaults, **choices})


def drawn(module: Any, seed: int = 0) -> Any:
    """Fill a torch module with values at which no fault hides: no bias is 0, no scale 1, no statistic at its start."""
    import torch

    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            shape = tuple(tensor.shape)
            if not tensor.is_floating_point() or name.endswith("fixed"):
                continue
            values = rng.standard_normal(shape)
            if name.endswith("running_var"):
                values = np.exp(0.3 * values)
            elif len(shape) > 1:
                values *= (2 / max(np.prod(shape[1:]), 1)) ** 0.5
            elif name.endswith(("weight", "gamma")):
                values = 1 + 0.2 * values
            else:
                values *= 0.2
            tensor.copy_(torch.from_numpy(values.astype(np.float32)))
    return module


def train_mode(reference: Any, candidate: Any) -> None:
    """Hand the port over in training mode."""
    candidate.train()


def double(reference: Any, candidate: Any) -> None:
    """Hand the port over in float64."""
    candidate.double()
