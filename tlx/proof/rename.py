"""A side of a comparison of two modules: its backend, seen through the arrays and names that both sides share.

An array that only one side has is a constant there: it keeps the value that the module came with, and does not train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from tlx.backend import (
    Array,
    Arrays,
    Draw,
    Handle,
    Model,
    ModelSpec,
    OptimizerSpec,
    ParamSpec,
    Precision,
    Randomness,
    Replay,
    Visit,
)
from tlx.backend.module.build import ancestors
from tlx.proof.mapping import Target, leaves, put_together, taken_apart
from tlx.proof.matching import Match
from tlx.proof.names import Axes, Layout, Names
from tlx.proof.recorder import Proxy


@dataclass(frozen=True, slots=True)
class View:
    """How one side keeps what both have, by the names that the proof uses."""

    specs: tuple[ParamSpec, ...]
    targets: Mapping[str, Target]  # by shared name: where this side keeps the array
    names: Names
    modules: Mapping[str, str]  # of the reference -> of this side
    layouts: Mapping[str, Layout]  # by path of this side: from the reference's order of axes to its own


def views(match: Match, reference: Names, candidate: Names) -> tuple[View, View]:
    """Return both sides of a match."""
    specs = tuple(pair.spec for pair in match.pairs)
    here = {path: path for path in reference.modules.values()}
    there = _distinct(match.modules, reference, candidate)
    layouts = {there[path]: axes for path, axes in match.layouts.items() if path in there}
    return (
        View(specs, {pair.spec.name: pair.reference for pair in match.pairs}, reference, here, {}),
        View(specs, {pair.spec.name: pair.candidate for pair in match.pairs}, candidate, there, layouts),
    )


def _distinct(modules: Mapping[str, str], reference: Names, candidate: Names) -> dict[str, str]:
    """Give the candidate's modules that have no partner names that none of the reference has."""
    taken = set(modules.values())
    others = [path for path in candidate.modules.values() if path not in taken]
    return {**modules, **{f"{path} (candidate)" if path in reference.modules else path: path for path in others}}


class Renamed(Proxy):
    """A backend whose model has the arrays that both sides share; everything else passes through."""

    def __init__(self, inner: Any, view: View, replaces_head: bool = False) -> None:
        """Translate what passes to and from `inner`; the head stays as it is unless it is replaced by a new one."""
        super().__init__(inner)
        self.view, self.replaces_head = view, replaces_head
        self._shapes = view.names.shapes
        self._module_out = {own: path for path, own in view.modules.items()}
        self._shared = {own: name for name, target in view.targets.items() for own in leaves(target)}
        self._alone: WeakKeyDictionary[Any, dict[str, Array]] = WeakKeyDictionary()

    def _in(self, path: str) -> str:
        return self.view.modules.get(path, path)

    def _out(self, name: str) -> str:
        """Return the shared name of a module's path, or of an array."""
        return self._module_out.get(name, self._shared.get(name, name))

    def _arrays_in(self, arrays: Arrays) -> dict[str, Array]:
        own: dict[str, Array] = {}
        for name, array in arrays.items():
            target = self.view.targets[name]
            if isinstance(target, str):
                own[target] = array
            else:
                parts = taken_apart(target, array, self._shapes)
                own |= {name: np.array(part, order="C") for name, part in parts.items()}
        return own

    def _arrays_out(self, arrays: Arrays) -> dict[str, Array]:
        """Put together what is there as a whole, in the order that both sides share."""
        shared = {}
        for spec in self.view.specs:
            target = self.view.targets[spec.name]
            if all(own in arrays for own in leaves(target)):
                shared[spec.name] = put_together(target, arrays, spec.shape, self._shapes)
        return shared

    def _names_in(self, names: Iterable[str]) -> list[str]:
        return [own for name in names for own in leaves(self.view.targets[name])]

    def build(self, spec: ModelSpec, device: str, precision: Precision) -> Model:
        given = self.view.layouts.get("")  # what tries a model out gives it images as the reference takes them
        head = self._in(spec.head) if self.replaces_head and spec.head else ""
        spec = replace(spec, head=head, image_size=0 if given else spec.image_size)
        model = self.inner.build(spec, device, precision)
        arrays = self.inner.dump_arrays(model)
        self._alone[model] = {name: array for name, array in arrays.items() if name not in self._shared}
        return model

    def param_specs(self, model: Model) -> tuple[ParamSpec, ...]:
        own = {spec.name: spec for spec in self.inner.param_specs(model)}
        specs = []
        for spec in self.view.specs:
            target = self.view.targets[spec.name]
            shape = own[target].shape if isinstance(target, str) else spec.shape
            specs.append(replace(spec, shape=shape, dtype=own[leaves(target)[0]].dtype))
        return tuple(specs)

    def load_arrays(self, model: Model, arrays: Arrays) -> None:
        self.inner.load_arrays(model, {**self._arrays_in(arrays), **self._alone[model]})

    def dump_arrays(self, model: Model) -> dict[str, Array]:
        return self._arrays_out(self.inner.dump_arrays(model))

    def set_phase(self, model: Model, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        trains = frozenset(self._names_in(trainable))
        self.inner.set_phase(model, trains, self._adapting(model, trains, batch_norm))

    def _adapting(self, model: Model, trains: frozenset[str], batch_norm: frozenset[str]) -> frozenset[str]:
        """Return the modules whose statistics adapt; one whose buffers the other side lacks acts as those around it."""
        own = {s.name: s.module for s in self.inner.param_specs(model) if s.role == "statistic"}
        adapts: dict[str, bool] = {}
        for spec in self.view.specs:
            if spec.role == "statistic":
                modules = {own[name] for name in leaves(self.view.targets[spec.name]) if name in own}
                adapts |= {module: spec.module in batch_norm for module in modules}
        holding = {path for name in self._shapes if name not in own for path in ancestors(name)}
        around = {path for name in trains for path in ancestors(name)}
        return frozenset(m for m in own.values() if adapts.get(m, (m if m in holding else _owner(m)) in around))

    def optimizer(self, model: Model, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Handle:
        own = [tuple(self._names_in(group)) for group in groups]
        frozen = (s.name for s in self.inner.param_specs(model) if s.role != "statistic")
        own[-1] += tuple(name for name in frozen if not any(name in group for group in own))
        return self.inner.optimizer(model, spec, own)

    def dump_optimizer(self, optimizer: Handle) -> dict[str, Array]:
        slots: dict[str, dict[str, Array]] = {}
        for key, array in self.inner.dump_optimizer(optimizer).items():
            name, _, slot = key.rpartition("/")
            slots.setdefault(slot, {})[name] = array
        return {
            f"{spec.name}/{slot}": self._slot_out(spec, arrays)
            for spec in self.view.specs
            for slot, arrays in slots.items()
            if any(own in arrays for own in leaves(self.view.targets[spec.name]))
        }

    def _slot_out(self, spec: ParamSpec, arrays: Arrays) -> Array:
        """Put one slot of an array's parts together; a count that they do not share is no number."""
        target = self.view.targets[spec.name]
        parts = {own: arrays[own] for own in leaves(target) if own in arrays}
        first = next(iter(parts.values()))
        if all(part.shape == self._shapes[own] for own, part in parts.items()) and len(parts) == len(leaves(target)):
            return put_together(target, parts, spec.shape, self._shapes)
        whole = len(parts) == len(leaves(target)) and all(np.array_equal(part, first) for part in parts.values())
        return first if whole else np.full(spec.shape, np.nan)

    def load_optimizer(self, optimizer: Handle, state: Arrays) -> None:
        own = {}
        for key, array in state.items():
            name, _, slot = key.rpartition("/")
            whole = array.shape == next(spec.shape for spec in self.view.specs if spec.name == name)
            ends = leaves(self.view.targets[name])
            parts = self._arrays_in({name: array}) if whole else dict.fromkeys(ends, array)
            own.update({f"{end}/{slot}": part for end, part in parts.items()})
        self.inner.load_optimizer(optimizer, own)

    def put(self, model: Model, batch: Any) -> Handle:
        ready = self.inner.put(model, batch)
        if (axes := self.view.layouts.get("", (None, None))[0]) is not None:
            ready.images = turned(ready.images, axes, "permute")
        return ready

    def probe(self, model: Model) -> RenamedProbe:
        return RenamedProbe(self.inner.probe(model), self)


def _owner(path: str) -> str:
    return path.rpartition(".")[0]


def turned(value: Any, axes: Axes | None, how: str = "transpose") -> Any:
    """Give every array, or tensor, with so many axes another order of them, also in tuples, lists and dictionaries."""
    if axes is None:
        return value
    if isinstance(value, Mapping):
        return {key: turned(part, axes, how) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(turned(part, axes, how) for part in value)
    if getattr(value, "ndim", None) != len(axes):
        return value
    moved = getattr(value, how)(*axes)
    return np.array(moved, order="C") if isinstance(moved, np.ndarray) else moved.contiguous()


def _back(axes: Axes | None) -> Axes | None:
    return None if axes is None else tuple(int(axis) for axis in np.argsort(axes))


class RenamedProbe(Proxy):
    """The probe of such a backend: paths, arrays and activations as the reference has them."""

    def __init__(self, inner: Any, names: Renamed) -> None:
        """Translate what passes to and from `inner`."""
        super().__init__(inner)
        self.names = names

    def record(self, call: Callable[[], Any]) -> tuple[Visit, ...]:
        visits = self.inner.record(call)
        return tuple(replace(self._turned_back(v, v.path), path=self.names._out(v.path)) for v in visits)

    def _turned_back(self, facts: Any, own: str) -> Any:
        """Give activations the reference's layout: those that entered a module of this side, and those that left it."""
        entering, leaving = map(_back, self._layout(own))
        activations = {
            f.name: entering if f.name.startswith("input") else leaving
            for f in fields(facts)
            if f.name.startswith(("input", "output", "grad")) and f.name != "gradients"
        }
        return replace(facts, **{name: turned(getattr(facts, name), axes) for name, axes in activations.items()})

    def _layout(self, own: str) -> Layout:
        return self.names.view.layouts.get(own, (None, None))

    def gradients(self) -> dict[str, Array]:
        return self.names._arrays_out(self.inner.gradients())

    def set_gradients(self, gradients: Arrays) -> None:
        self.inner.set_gradients(self.names._arrays_in(gradients))

    def replay(self, path: str, *tensors: Any, **options: Any) -> Replay:
        own = self.names._in(path)
        entering, leaving = self._layout(own)
        given = [turned(tensor, axes) for tensor, axes in zip(tensors, (entering, leaving), strict=False)]
        alone = self.inner.replay(own, *given, **options)
        shared = {name: self.names._arrays_out(getattr(alone, name)) for name in ("gradients", "buffers")}
        renamed: Replay = replace(self._turned_back(alone, own), **shared)
        return renamed

    def draws(self, call: Callable[[], Any]) -> tuple[Draw, ...]:
        out, shared = self.names._out, self.names._shared
        return tuple(
            replace(
                d,
                path=out(d.path),
                after=out(d.after),
                around=tuple(dict.fromkeys(shared[name] for name in d.around if name in shared)),
            )
            for d in self.inner.draws(call)
        )

    def random(self, call: Callable[[], Any]) -> Randomness | None:
        found: Randomness | None = self.inner.random(call)
        out = self.names._out
        return found and replace(found, path=out(found.path), before=tuple(map(out, found.before)))

    def replay_transposed(self, path: str, tensors: Any, **options: Any) -> Array | None:
        own = self.names._in(path)
        entering, leaving = self._layout(own)
        output: Array | None = self.inner.replay_transposed(own, turned(tensors, entering), **options)
        return turned(output, _back(leaving))  # type: ignore[no-any-return]
