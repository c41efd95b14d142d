"""The probe of the reference backend: what goes through each module, and one module run by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx.backend import Array, Arrays, Replay, Visit
from tlx.conformance import reference

if TYPE_CHECKING:
    from tlx.conformance.loopback import DeviceBatch, Loopback, Net, Pass


class LoopbackProbe:
    """Looks into a model, but for the gradients of outputs."""

    def __init__(self, backend: Loopback, net: Net) -> None:
        self.backend, self.net = backend, net

    def record(self, call: Callable[[], Any]) -> tuple[Visit, ...]:
        visits: list[Visit] = []
        forward = self.backend._forward

        def recorded(model: Net, batch: DeviceBatch, train: bool = False) -> Pass:
            run = forward(model, batch, train)
            visits.extend(
                Visit(path, kind, (x.copy(),), (y.copy(),))
                for path, kind, x, y in (
                    ("fc1", "Linear", run.x, run.a),
                    ("bn1", "BatchNorm", run.a, run.y),
                    ("fc", "Linear", run.h, run.logits),
                )
            )
            return run

        self.backend._forward = recorded  # type: ignore[method-assign]
        try:
            call()
        finally:
            del self.backend._forward
        return tuple(visits)

    def gradients(self) -> dict[str, Array]:
        return {name: np.array(grad) for name, grad in self.net.grads.items()}

    def set_gradients(self, gradients: Arrays) -> None:
        self.net.grads = {name: np.asarray(grad, self.net.dtype) for name, grad in gradients.items()}

    def replay(
        self,
        path: str,
        inputs: Sequence[Array],
        grads: Sequence[Array | None] = (),
        *,
        call: int = 1,
        training: bool = False,
    ) -> Replay:
        (x,), p = inputs, self.net.module.arrays
        if path != "bn1":
            weight = self.backend.adapted(self.net) if path == "fc1" else p["fc.weight"]
            return Replay((reference.linear(x, weight, p[f"{path}.bias"]),))
        moments = reference.moments(x) if training else (p["bn1.running_mean"], p["bn1.running_var"])
        normalised = reference.normalise(x, *moments, self.backend.bn_eps)
        return Replay((normalised * p["bn1.weight"] + p["bn1.bias"],))

    def replay_transposed(self, path: str, inputs: Sequence[Array], *, call: int = 1) -> Array | None:
        return None  # no weight is square
