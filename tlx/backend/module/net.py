"""What a module framework's adapter keeps beside the framework's own objects: a built model, a batch, an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from tlx.backend.module.boundary import Entered
from tlx.backend.module.build import ancestors
from tlx.backend.module.dropout import Masks
from tlx.backend.optimizers import OptimizerSpec
from tlx.backend.protocol import ParamSpec
from tlx.processes import Channel


@dataclass(eq=False)  # without slots, so that an adapter can watch for its end
class Net:
    """A built model. `module` is the framework's own; the rest is bookkeeping of the adapter."""

    module: Any
    head: str
    classes: int
    device: str
    dtype: Any  # of parameters and pixels
    autocast: bool
    training: dict[Any, bool]  # module -> mode while training, set by the phase
    specs: tuple[ParamSpec, ...]
    mode: str = "eval"
    masks: Masks = field(default_factory=Masks)
    dropouts: list[Any] = field(default_factory=list)  # the layers that `masks` is for
    salt: int = 0  # of the framework's own generators; another one shows what draws from them
    own: bool = False  # code of somebody's own is part of it
    trial: Any = None  # of an own module: the batch it was tried on
    mixes: bool = False  # an own module: an image's outputs depend on its batch
    output: Any = None  # of an own module that returns several things: the key of the logits
    library: Any = None  # of a library's model: how it takes its values, a `tlx.models.libraries.Fitting`
    notes: list[str] = field(default_factory=list)
    entering: dict[str, Entered] = field(default_factory=dict)  # by boundary
    maps: dict[tuple[int, ...], Any] = field(default_factory=dict)  # shape of an image -> the last map's `Place`
    stand_ins: dict[str, int] = field(default_factory=dict)  # boundary -> number of the one that comes to it
    shards: dict[int, list[Any]] = field(default_factory=dict)  # number -> each parameter's gradient, or None
    reduced: tuple[int, list[int]] | None = None  # how many shards this phase has, and which parameters a gradient
    shared: bool = False  # whether this phase has been seen to give over several processes what it gives on one

    def holding(self, names: Collection[str]) -> set[str]:
        """Return the paths of the modules that hold one of these parameters, by any of its names."""
        all_names = (name for s in self.specs if s.name in names for name in (s.name, *s.aliases))
        return {path for name in all_names for path in ancestors(name)}

    @property
    def foreign(self) -> bool:
        """Whether it may draw random numbers of its own: it is not of a framework's zoo, whose layers are known."""
        return self.own or self.library is not None

    @property
    def redrawn(self) -> tuple[str, ...]:
        """The paths of dropouts that tlx drew otherwise in saved runs up to version 2.

        It drew one mask for all calls in a pass, and none where the module around the dropout holds no parameter.
        """
        holding = self.holding({s.name for s in self.specs if s.role != "statistic"})
        bare = [layer.path for layer in self.dropouts if layer.p and layer.path.rpartition(".")[0] not in holding]
        return (*self.masks.by_call, *bare)

    @property
    def changing(self) -> set[Any]:
        """The modules that act otherwise in training, whether anything in them trains or not."""
        statistics = {s.module for s in self.specs if s.role == "statistic"}
        norms = {module for path, module in self.module.named_modules() if path in statistics}
        return norms.union(layer for layer in self.dropouts if layer.p)

    def active(self) -> Callable[[Any], bool]:
        """Return what tells whether a module itself, without its children, trains, adapts or drops."""
        changing = self.changing

        def active(module: Any) -> bool:
            if any(param.requires_grad for param in module.parameters(recurse=False)):
                return True
            return module in changing and self.training[module]

        return active


@dataclass(slots=True, eq=False)
class DeviceBatch:
    """A batch on the device, ready for the network."""

    images: Any
    labels: Any
    targets: Any | None
    size: int
    key: tuple[int, int, int]
    boundary: str
    among: Channel | None = None  # this and the next three as those of `Batch`
    whole: int = 0
    absent: bool = False
    shard: int | None = None

    @property
    def shared(self) -> bool:
        """Whether other processes compute the other rows. A shard's are nobody else's on any number of processes."""
        return self.among is not None and self.among.world.size > 1 and self.shard is None


@dataclass(slots=True, eq=False)
class Optimizer:
    """A native optimizer with the names of its parameters."""

    native: Any
    spec: OptimizerSpec
    params: dict[str, Any]
