"""The probe of a `ModuleBackend`: what goes through each module, and one module run by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx.backend import Array, Arrays, Draw, Randomness, Replay, Visit
from tlx.backend.module import own
from tlx.backend.module.calls import Call, Place, leaves, taken
from tlx.backend.module.random_search import find
from tlx.backend.module.shared_masks import share
from tlx.errors import BackendError

if TYPE_CHECKING:
    from tlx.backend.module.base import ModuleBackend
    from tlx.backend.module.net import Net

KEY = "tlx-probe"


class ModuleProbe:
    """Looks into each call of each module, by a `forward` that stands before the module's own."""

    def __init__(self, backend: ModuleBackend, net: Net) -> None:
        self.backend, self.net = backend, net
        self.modules = dict(net.module.named_modules())
        self.calls: dict[tuple[str, int], Call] = {}

    def record(self, call: Callable[[], Any]) -> tuple[Visit, ...]:
        tape = Tape(self.backend, self.net)
        with tape.watching(self.modules):
            call()
        self.calls = tape.calls
        return tape.visits()

    def gradients(self) -> dict[str, Array]:
        named = self.net.module.named_parameters()
        return self.backend.arrays({name: p.grad for name, p in named if p.grad is not None})

    def set_gradients(self, gradients: Arrays) -> None:
        with self.backend.fw.no_grad():
            for name, param in self.net.module.named_parameters():
                param.grad = None
                if name in gradients:
                    like = self.backend.fw.zeros_like(param)  # in the layout in which autograd would add to it
                    like.copy_(self.backend.tensor(gradients[name], self.net.device))
                    param.grad = like

    def replay(
        self,
        path: str,
        inputs: Sequence[Array],
        grads: Sequence[Array | None] = (),
        *,
        call: int = 1,
        training: bool = False,
    ) -> Replay:
        module, fw = self.modules[path], self.backend.fw
        recorded = self.calls.get((path, call), Call((tuple(map(Place, range(len(inputs)))), {}), len(inputs)))
        prefix = path + "." if path else ""
        with self._untouched(module, training), self.net.masks.alone():
            if not any(grad is not None for grad in grads):
                with fw.no_grad():
                    args, kwargs = recorded.filled([self._fed(x) for x in inputs])
                    return Replay(self._arrays(module(*args, **kwargs)))
            for param in module.parameters():
                param.requires_grad_(True)
                param.grad = None
            with fw.enable_grad():
                fed = [self._fed(x) for x in inputs]
                for tensor in fed:
                    if tensor.is_floating_point():
                        tensor.requires_grad_(True)
                # Products, as a module may change its inputs in place, which a leaf forbids.
                args, kwargs = recorded.filled([t * 1 if t.requires_grad else t for t in fed])
                outputs = list(leaves(module(*args, **kwargs), self.is_tensor))
                copied = tuple(self.backend.array(output) for output in outputs)
                self._backward(outputs, grads)
            return Replay(
                copied,
                tuple(None if t.grad is None else self.backend.array(t.grad) for t in fed),
                self.backend.arrays({prefix + n: p.grad for n, p in module.named_parameters() if p.grad is not None}),
                self.backend.arrays({prefix + n: b for n, b in module.named_buffers()}),
            )

    def _backward(self, outputs: Sequence[Any], grads: Sequence[Array | None]) -> None:
        """Run backward from these gradients: each is the gradient of its product with the output."""
        if len(outputs) < len(grads):
            raise BackendError(f"it gives {len(outputs)} tensors here, and the reference's gives {len(grads)}")
        parts = [
            (output * self.backend.tensor(grad, self.net.device).to(output.dtype)).sum()
            for output, grad in zip(outputs, grads, strict=False)
            if grad is not None and output.requires_grad
        ]
        if parts:
            sum(parts[1:], parts[0]).backward()

    def replay_transposed(self, path: str, inputs: Sequence[Array], *, call: int = 1) -> Array | None:
        weight = self.modules[path]._parameters.get("weight")
        if weight is None or weight.ndim < 2 or weight.shape[0] != weight.shape[1]:
            return None
        original = self.backend.array(weight)
        self._set(weight, original.swapaxes(0, 1))
        try:
            return self.replay(path, inputs, call=call).outputs[0]
        finally:
            self._set(weight, original)

    def is_tensor(self, value: Any) -> bool:
        return is_tensor(self.backend, value)

    def _fed(self, x: Array) -> Any:
        tensor = self.backend.tensor(x, self.net.device)
        return tensor.to(self.net.dtype) if tensor.is_floating_point() else tensor

    def _arrays(self, output: Any) -> tuple[Array, ...]:
        return tuple(self.backend.array(tensor) for tensor in leaves(output, self.is_tensor))

    def draws(self, call: Callable[[], Any]) -> tuple[Draw, ...]:
        masks = share(self.backend, self.net)
        self.modules = dict(self.net.module.named_modules())
        with masks.logged() as log:
            self.record(call)
        return tuple(log)

    def follow(self, partners: Sequence[Draw | None]) -> None:
        share(self.backend, self.net).follow(partners)

    def act(self, acting: Sequence[bool]) -> None:
        share(self.backend, self.net).act(acting)

    def random(self, call: Callable[[], Any]) -> Randomness | None:
        share(self.backend, self.net)
        return find(self.backend, self.net, call)

    def _set(self, weight: Any, value: Array) -> None:
        with self.backend.fw.no_grad():
            weight.copy_(self.backend.tensor(np.ascontiguousarray(value), self.net.device))

    @contextmanager
    def _untouched(self, module: Any, training: bool) -> Iterator[None]:
        """Give back modes, buffers, gradients, what trains and the random state, whatever happens."""
        modes = {m: m.training for m in module.modules()}
        buffers = [(b, self.backend.array(b)) for _, b in module.named_buffers()]
        params = [(p, p.requires_grad, p.grad) for p in module.parameters()]
        try:
            for m in modes:
                m.training = training
            with own.seeded(self.backend, self.net, own.EVALUATION) if self.net.foreign else nullcontext():
                yield
        finally:
            for m, mode in modes.items():
                m.training = mode
            with self.backend.fw.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(self.backend.tensor(value, self.net.device))
            for param, trains, grad in params:
                param.requires_grad_(trains)
                param.grad = grad


@dataclass(slots=True, eq=False)
class _Noted:
    """A visit that is being written."""

    path: str
    kind: str
    call: int
    depth: int
    inputs: list[Array]
    outputs: list[Array] = field(default_factory=list)
    grads: dict[int, Array] = field(default_factory=dict)  # by the output's number


class Tape:
    """Notes every call of every module during one pass."""

    def __init__(self, backend: ModuleBackend, net: Net) -> None:
        self.backend, self.net = backend, net
        self.calls: dict[tuple[str, int], Call] = {}
        self._noted: list[_Noted] = []
        self._counts: Counter[str] = Counter()
        self._depth = 0
        self._kept: dict[bytes, Array] = {}

    @contextmanager
    def watching(self, modules: dict[str, Any]) -> Iterator[None]:
        """Watch modules while the block runs."""
        before = {path: vars(module).get("forward") for path, module in modules.items()}
        for path, module in modules.items():
            vars(module)["forward"] = self._watched(path, module, module.forward)
            module._forward_hooks[KEY] = _nothing  # where a module has a hook, torch takes no way around its children
        try:
            yield
        finally:
            for path, module in modules.items():
                del module._forward_hooks[KEY]
                if before[path] is None:
                    del vars(module)["forward"]
                else:
                    vars(module)["forward"] = before[path]

    def visits(self) -> tuple[Visit, ...]:
        """Return what was noted."""
        return tuple(
            Visit(
                n.path,
                n.kind,
                tuple(n.inputs),
                tuple(n.outputs),
                tuple(n.grads.get(i) for i in range(len(n.outputs))) if n.grads else (),
                n.call,
                n.depth,
            )
            for n in self._noted
        )

    def _watched(self, path: str, module: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)  # so that its signature can still be asked for
        def watched(*args: Any, **kwargs: Any) -> Any:
            if path and not self._depth:  # computed again during the backward pass, to save memory
                return forward(*args, **kwargs)
            self._counts[path] += 1
            call, tensors = taken(forward, args, kwargs, self._is_tensor)
            self.calls[path, self._counts[path]] = call
            noted = _Noted(path, type(module).__name__, self._counts[path], self._depth, [*map(self._array, tensors)])
            self._depth += 1
            try:
                output = forward(*args, **kwargs)
            finally:
                self._depth -= 1
            if module._parameters:
                self.net.masks.after = path
            self._note(noted, output)
            return output

        return watched

    def _note(self, noted: _Noted, output: Any) -> None:
        self._noted.append(noted)
        for number, tensor in enumerate(leaves(output, self._is_tensor)):
            noted.outputs.append(self._array(tensor))
            if tensor.requires_grad:
                tensor.register_hook(self._keeping(noted, number))

    def _keeping(self, noted: _Noted, number: int) -> Callable[[Any], None]:
        def keep(grad: Any) -> None:
            noted.grads[number] = self._array(grad)

        return keep

    def _is_tensor(self, value: Any) -> bool:
        return is_tensor(self.backend, value)

    def _array(self, tensor: Any) -> Array:
        """Copy a tensor; equal ones are one array, as what leaves a module mostly enters the next."""
        array = self.backend.array(tensor)
        digest = sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).digest()
        return self._kept.setdefault(digest, array)


def is_tensor(backend: ModuleBackend, value: Any) -> bool:
    """Whether it is a tensor of real numbers, integers or truth values, as NumPy has them."""
    return isinstance(value, backend.fw.Tensor) and not any(kind in str(value.dtype) for kind in UNREADABLE)


UNREADABLE = ("complex", "bfloat16")


def _nothing(module: Any, args: Any, output: Any) -> None:
    """Change nothing."""
