"""The probe of a `ModuleBackend`: what goes through each module, and one module run by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tlx.backend import Array, Arrays, Draw, Randomness, Replay, Visit
from tlx.backend.module.random_search import find
from tlx.backend.module.shared_masks import share

if TYPE_CHECKING:
    from tlx.backend.module.base import ModuleBackend
    from tlx.backend.module.net import Net

KEY = "tlx-probe"  # OneFlow numbers its hooks by their count, so removing one and adding one overwrites another


class ModuleProbe:
    """Hooks the modules that own parameters, and those without children, whose kind alone is kept."""

    def __init__(self, backend: ModuleBackend, net: Net) -> None:
        self.backend, self.net = backend, net
        self.modules = dict(net.module.named_modules())

    def record(self, call: Callable[[], Any]) -> tuple[Visit, ...]:
        visits: list[dict[str, Any]] = []
        hooked = {path: m for path, m in self.modules.items() if _owns(m) or not any(True for _ in m.children())}
        for path, module in hooked.items():
            module._forward_hooks[KEY] = self._hook(path, visits)
        try:
            call()
        finally:
            for module in hooked.values():
                del module._forward_hooks[KEY]
        return tuple(Visit(**visit) for visit in visits)

    def _hook(self, path: str, visits: list[dict[str, Any]]) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            visit: dict[str, Any] = {"path": path, "kind": type(module).__name__}
            visits.append(visit)
            if not _owns(module):
                return
            self.net.masks.after = path
            if not hasattr(output, "detach"):
                return
            first = args[0] if isinstance(args, (tuple, list)) else args
            visit["input"], visit["output"] = self.backend.array(first), self.backend.array(output)
            if output.requires_grad:

                def keep(grad: Any) -> None:
                    visit["grad"] = self.backend.array(grad)

                output.register_hook(keep)

        return hook

    def gradients(self) -> dict[str, Array]:
        named = self.net.module.named_parameters()
        return {name: self.backend.array(p.grad) for name, p in named if p.grad is not None}

    def set_gradients(self, gradients: Arrays) -> None:
        for name, param in self.net.module.named_parameters():
            gradient = gradients.get(name)
            param.grad = None if gradient is None else self.backend.tensor(gradient, self.net.device).to(param.dtype)

    def replay(self, path: str, x: Array, dy: Array | None = None, *, training: bool = False) -> Replay:
        module, backend, fw = self.modules[path], self.backend, self.backend.fw
        prefix = path + "." if path else ""
        with self._untouched(module, training), self.net.masks.alone():
            fed = backend.tensor(x, self.net.device).to(self.net.dtype)
            if dy is None:
                with fw.no_grad():
                    output = module(fed)
                return Replay(backend.array(output))
            for param in module.parameters():
                param.requires_grad_(True)
                param.grad = None
            fed.requires_grad_(True)
            output = module(fed)
            # The product's gradient is dy itself; the output may be changed in place, so it is copied first.
            copied = backend.array(output)
            (output * backend.tensor(dy, self.net.device).to(output.dtype)).sum().backward()
            return Replay(
                copied,
                backend.array(fed.grad),
                {prefix + n: backend.array(p.grad) for n, p in module.named_parameters() if p.grad is not None},
                {prefix + n: backend.array(b) for n, b in module.named_buffers()},
            )

    def replay_transposed(self, path: str, x: Array) -> Array | None:
        weight = getattr(self.modules[path], "weight", None)
        if weight is None or weight.ndim < 2 or weight.shape[0] != weight.shape[1]:
            return None
        original = self.backend.array(weight)
        self._set(weight, original.swapaxes(0, 1))
        try:
            return self.replay(path, x).output
        finally:
            self._set(weight, original)

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
            weight.copy_(self.backend.tensor(value, self.net.device))

    @contextmanager
    def _untouched(self, module: Any, training: bool) -> Iterator[None]:
        """Give back modes, buffers, gradients and what trains, whatever happens."""
        modes = {m: m.training for m in module.modules()}
        buffers = [(b, self.backend.array(b)) for _, b in module.named_buffers()]
        params = [(p, p.requires_grad, p.grad) for p in module.parameters()]
        try:
            for m in modes:
                m.training = training
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


def _owns(module: Any) -> bool:
    return any(True for _ in module.parameters(recurse=False))
