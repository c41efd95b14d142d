"""What an adapter says about its framework, and may replace, each with its reason."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np

from tlx.backend import Array, ModelSpec, OptimizerSpec
from tlx.backend.module.boundary import proxy_class, stand_ins, stop_class
from tlx.backend.module.dropout import FUNCTIONS, Drop, function
from tlx.backend.module.net import Net, Optimizer
from tlx.backend.module.shared_norm import Normalise
from tlx.errors import BackendError
from tlx.processes import Channel

Groups = list[dict[str, Any]]  # parameter groups of the framework's optimizers; their rates are set before every step
MakeOptimizer = Callable[[Groups, OptimizerSpec], Any]  # makes the framework's own optimizer


class Framework:
    """A framework with modules, autograd and in-place tensors, and its model zoo."""

    name: str
    optimizers: ClassVar[Mapping[str, MakeOptimizer]]  # by their names in `tlx.backend.optimizers.RULES`
    # What a comparison replaces, as (owner, name, function), because the framework's own is not exact.
    exact_functions: ClassVar[Sequence[tuple[Any, str, Callable[..., Any]]]] = ()
    restores_generators = True  # whether a generator's state can be set back
    norms_as_given: frozenset[str] = frozenset()  # paths of BatchNorms that keep eps and momentum

    def __init__(self, framework: Any, zoo: Any, depth: Any) -> None:
        self.fw, self.zoo = framework, zoo
        self.depth = depth  # the zoo's stochastic depth
        nn = framework.nn
        self.batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        self.norms = (*self.batch_norms, nn.LayerNorm, nn.GroupNorm)
        self.stop, self.proxy = stop_class(nn.Module), proxy_class(nn.Module)

    def construct(self, name: str, **options: int) -> Any:
        """Build a zoo model with whatever initial values the zoo gives it."""
        return getattr(self.zoo, name)(**options)

    def made(self, spec: ModelSpec) -> Any:
        """Build the model that a spec names."""
        if not hasattr(self.zoo, spec.name):
            raise BackendError(f"backend {self.name!r} has no model {spec.name!r}; `tlx models` lists what it has")
        return self.construct(spec.name, **dict(spec.options))

    def unwrapped(self, module: Any) -> Any:
        """Return a user's own module without what was put around it; refuse what cannot be trained."""
        return module

    def copied(self, module: Any) -> Any:
        """Copy a user's own module, which stays as it is."""
        return copy.deepcopy(module)

    def generators(self, device: str) -> Sequence[Any]:
        """Return the framework's own generators, from which a module may draw on a device."""
        return ()

    def dropping_functions(self, drop: Drop) -> list[tuple[Any, str, Callable[..., Any]]]:
        """Return the framework's functions that drop, as (owner, name, what does the same by `drop`)."""
        functional = self.fw.nn.functional
        return [
            (functional, name, function(drop, axes)) for name, axes in FUNCTIONS.items() if hasattr(functional, name)
        ]

    def lay_out_plainly(self, net: Net) -> bool:
        """Undo what `prepare` did to the layout in memory; False: it did nothing."""
        return False

    def prepare(self, net: Net) -> None:
        """Adjust a freshly built model, for example its layout in memory."""

    def reuse_memory(self, net: Net, wanted: bool) -> None:
        """Keep what is freed for the next batch, where the gaps that this leaves are small; or give it back."""

    def autocast(self, net: Net) -> AbstractContextManager[Any]:
        """Return the context in which a net computes in its precision."""
        return nullcontext()

    def stand_ins(self, features: Any, pixels: tuple[int, ...]) -> list[Any]:
        """What may travel to a boundary in place of pixels: see `stand_ins`."""
        return stand_ins(features, pixels)

    def exact(self, logits: Any) -> Any:
        """Cast logits to the dtype in which the loss is taken."""
        raise NotImplementedError

    def optimizer_slots(self, optimizer: Optimizer, param: Any) -> Mapping[str, Any] | None:
        """Return a parameter's portable slots, or None before its first update."""
        raise NotImplementedError

    def set_optimizer_slots(self, optimizer: Optimizer, param: Any, slots: Mapping[str, Any] | None) -> None:
        """Set a parameter's portable slots; None: those before its first update."""
        raise NotImplementedError

    def tensor(self, array: Array, device: str) -> Any:
        """Copy an array to a device; later changes to the array do not reach the tensor."""
        return self.fw.tensor(array, device=device)

    def array(self, tensor: Any) -> Array:
        """Copy a tensor to the host, in C order."""
        return np.array(tensor.detach().cpu().numpy(), order="C", copy=True)

    def arrays(self, tensors: Mapping[str, Any]) -> dict[str, Array]:
        """Copy tensors to the host, each as `array` does."""
        return {name: self.array(tensor) for name, tensor in tensors.items()}

    def sum_over(self, tensor: Any, channel: Channel) -> Any:
        """Return the sum of a contiguous tensor over all processes, the same bits in each; it may be added up in place.

        Raises RuntimeError where another process does not take part.
        """
        own = self.array(tensor)
        parts = [np.frombuffer(part, own.dtype) for part in channel.gather(own.tobytes())]
        return self.tensor(sum(parts[1:], parts[0]).reshape(own.shape), str(tensor.device))

    def batch_norm_functions(self, normalise: Normalise) -> list[tuple[Any, str, Callable[..., Any]]]:
        """Return the framework's functions that normalise by the batch, as (owner, name, what does so by the whole)."""
        raise NotImplementedError

    def laid_out(self, tensor: Any, strides: tuple[int, ...]) -> Any:
        """Return a tensor with these strides, where the framework knows other orders in memory than that of C."""
        return tensor
