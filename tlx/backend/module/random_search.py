"""Where a model draws random numbers that are not the core's: found by watching the generators, and by two passes."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from tlx.backend.module.own import random_state
from tlx.backend.protocol import Randomness

if TYPE_CHECKING:
    from tlx.backend.module.base import ModuleBackend
    from tlx.backend.module.net import Net

KEY = "tlx-random"
Event = tuple[str, bytes]  # a module that ended, and a digest of its output where that is one tensor


def find(backend: ModuleBackend, net: Net, call: Callable[[], Any]) -> Randomness | None:
    """Run `call` under two seeds; return where a generator was first drawn from, or an output was first another."""
    watches = []
    try:
        for net.salt in (0, 1):
            watches.append(_Watch(backend, net))
            watches[-1].run(call)
    finally:
        net.salt = 0
    events = watches[0].events
    pairs = enumerate(zip_longest(*(watch.events for watch in watches)))
    differing = next((number for number, (x, y) in pairs if x != y), None)
    drawn = watches[0].drawn
    if differing is None and drawn is None:
        return None
    # A generator is drawn from in the code of a module that ends later, with an output that may differ.
    if drawn is not None and (differing is None or drawn[0] <= differing):
        number, path = drawn
    else:
        assert differing is not None
        number, path = differing, events[differing][0] if differing < len(events) else ""
    modules = dict(net.module.named_modules())
    later = {path for path, _ in events[number:]}
    owners = [path for path, _ in events[:number] if any(True for _ in modules[path].parameters(recurse=False))]
    before = tuple(path for path in dict.fromkeys(owners) if path not in later)
    return Randomness(path, type(modules[path]).__name__, before)


def drawing(backend: ModuleBackend, net: Net, call: Callable[[], Any]) -> tuple[Any, str | None]:
    """Run `call`, a forward pass; return what it returns, and the module whose code first draws from a generator."""
    watch = _Watch(backend, net, digest=False)
    result = watch.run(call)
    return result, None if watch.drawn is None else watch.drawn[1]


class _Watch:
    """Looks at the generators whenever a module begins and ends."""

    def __init__(self, backend: ModuleBackend, net: Net, digest: bool = True) -> None:
        self.backend, self.net, self.digest = backend, net, digest
        self.events: list[Event] = []
        self.drawn: tuple[int, str] | None = None  # after how many events, and in the code of which module
        self.running: list[str] = []
        self.state: Any = None

    def run(self, call: Callable[[], Any]) -> Any:
        modules = dict(self.net.module.named_modules())
        for path, module in modules.items():
            module._forward_pre_hooks[KEY] = self._begins(path)
            module._forward_hooks[KEY] = self._ends(path)
        try:
            return call()
        finally:
            for module in modules.values():
                del module._forward_pre_hooks[KEY], module._forward_hooks[KEY]

    def _look(self) -> None:
        if self.drawn is None:
            state = random_state(self.backend, self.net.device)
            if self.running and state != self.state:
                self.drawn = len(self.events), self.running[-1]
            self.state = state

    def _begins(self, path: str) -> Callable[[Any, Any], None]:
        def hook(module: Any, args: Any) -> None:
            self._look()
            self.running.append(path)

        return hook

    def _ends(self, path: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            self._look()
            self.running.pop()
            values = self.backend.array(output).tobytes() if self.digest and hasattr(output, "detach") else b""
            self.events.append((path, sha256(values).digest()))

        return hook
