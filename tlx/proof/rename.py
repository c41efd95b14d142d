"""A port in progress: its backend, seen through the names that the reference's module uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

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
from tlx.errors import RecipeError, closest
from tlx.proof.recorder import Proxy


def partners(reference: Any, candidate: Any, rename: Mapping[str, str]) -> dict[str, str]:
    """Return the candidate's name of each parameter, buffer and module that owns one.

    A prefix in `rename` stands for all below it.

    Raises:
        RecipeError: a name is left without a partner; it suggests a whole mapping where order and shapes agree.
    """
    ours, theirs = _shapes(reference), _shapes(candidate)
    for old, new in rename.items():
        for path, names, which in ((old, ours, "reference"), (new, theirs, "candidate")):
            paths = {".".join(n.split(".")[:k]) for n in names for k in range(1, n.count(".") + 2)}
            if path not in paths:
                raise RecipeError(f"rename: the {which} has no {path!r}.{closest(path, paths)}")
    pairs = {name: _translated(name, rename) for name in ours}
    missing = [name for name, new in pairs.items() if new not in theirs]
    extra = [name for name in theirs if name not in pairs.values()]
    if missing or extra or len(set(pairs.values())) < len(pairs):
        unmatched = f"without a partner: in the reference {_few(missing)}; in the candidate {_few(extra)}"
        fix = _suggestion([ours[n] for n in missing] == [theirs[n] for n in extra], missing, extra)
        raise RecipeError(f"The modules' names do not match; {unmatched}.{fix}")
    return {**{a.rpartition(".")[0]: b.rpartition(".")[0] for a, b in pairs.items()}, **pairs}


def _translated(name: str, rename: Mapping[str, str]) -> str:
    """Replace the longest prefix that `rename` knows."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in rename:
            return ".".join([rename[prefix], *parts[length:]])
    return name


def _shapes(module: Any) -> dict[str, tuple[int, ...]]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tuple(tensor.shape) for name, tensor in named}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "none"


def _suggestion(alike: bool, missing: Sequence[str], extra: Sequence[str]) -> str:
    if not (alike and missing):
        return " Pass rename={reference: candidate}."
    pairs = {a.rpartition(".")[0] or a: b.rpartition(".")[0] or b for a, b in zip(missing, extra, strict=True)}
    return f" By order and shape this may be right: rename={ ({a: b for a, b in pairs.items() if a != b}) }"


class Renamed(Proxy):
    """A backend whose model carries the reference's names; everything else passes through."""

    def __init__(self, inner: Any, partners: Mapping[str, str]) -> None:
        """Rename what passes to and from `inner`: see `partners`."""
        super().__init__(inner)
        self._theirs, self._ours = partners, {new: old for old, new in partners.items()}

    def _in(self, name: str) -> str:
        return self._theirs.get(name, name)

    def _out(self, name: str) -> str:
        return self._ours.get(name, name)

    def _arrays_in(self, arrays: Arrays) -> dict[str, Array]:
        return {self._in(name): array for name, array in arrays.items()}

    def _arrays_out(self, arrays: Arrays) -> dict[str, Array]:
        return {self._out(name): array for name, array in arrays.items()}

    def _names_in(self, names: Iterable[str]) -> frozenset[str]:
        return frozenset(map(self._in, names))

    def build(self, spec: ModelSpec, device: str, precision: Precision) -> Model:
        return self.inner.build(replace(spec, head=self._in(spec.head)), device, precision)

    def param_specs(self, model: Model) -> tuple[ParamSpec, ...]:
        return tuple(
            replace(s, name=self._out(s.name), module=self._out(s.module)) for s in self.inner.param_specs(model)
        )

    def load_arrays(self, model: Model, arrays: Arrays) -> None:
        self.inner.load_arrays(model, self._arrays_in(arrays))

    def dump_arrays(self, model: Model) -> dict[str, Array]:
        return self._arrays_out(self.inner.dump_arrays(model))

    def set_phase(self, model: Model, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        self.inner.set_phase(model, self._names_in(trainable), self._names_in(batch_norm))

    def optimizer(self, model: Model, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Handle:
        return self.inner.optimizer(model, spec, [tuple(map(self._in, group)) for group in groups])

    def dump_optimizer(self, optimizer: Handle) -> dict[str, Array]:
        return _slots(self.inner.dump_optimizer(optimizer), self._out)

    def load_optimizer(self, optimizer: Handle, state: Arrays) -> None:
        self.inner.load_optimizer(optimizer, _slots(state, self._in))

    def probe(self, model: Model) -> RenamedProbe:
        return RenamedProbe(self.inner.probe(model), self)


def _slots(state: Arrays, translate: Callable[[str], str]) -> dict[str, Array]:
    parts = ((key.rpartition("/"), array) for key, array in state.items())
    return {f"{translate(name)}/{slot}": array for (name, _, slot), array in parts}


class RenamedProbe(Proxy):
    """The probe of such a backend."""

    def __init__(self, inner: Any, names: Renamed) -> None:
        """Rename what passes to and from `inner`."""
        super().__init__(inner)
        self.names = names

    def record(self, call: Callable[[], Any]) -> tuple[Visit, ...]:
        return tuple(replace(visit, path=self.names._out(visit.path)) for visit in self.inner.record(call))

    def gradients(self) -> dict[str, Array]:
        return self.names._arrays_out(self.inner.gradients())

    def set_gradients(self, gradients: Arrays) -> None:
        self.inner.set_gradients(self.names._arrays_in(gradients))

    def replay(self, path: str, x: Array, dy: Array | None = None, *, training: bool = False) -> Replay:
        alone = self.inner.replay(self.names._in(path), x, dy, training=training)
        out = self.names._arrays_out
        renamed: Replay = replace(alone, gradients=out(alone.gradients), buffers=out(alone.buffers))
        return renamed

    def draws(self, call: Callable[[], Any]) -> tuple[Draw, ...]:
        out = self.names._out
        return tuple(
            replace(d, path=out(d.path), after=out(d.after), around=tuple(map(out, d.around)))
            for d in self.inner.draws(call)
        )

    def random(self, call: Callable[[], Any]) -> Randomness | None:
        found: Randomness | None = self.inner.random(call)
        out = self.names._out
        return found and replace(found, path=out(found.path), before=tuple(map(out, found.before)))

    def replay_transposed(self, path: str, x: Array) -> Array | None:
        output: Array | None = self.inner.replay_transposed(self.names._in(path), x)
        return output
