"""What a backend computes of a network: logits, features, the loss and the gradients of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlx.backend import Array, Batch, Hyper, OptimizerSpec, ParamSpec, Preprocess

CLASSES = 7


def one_step(
    backend: Any, model: Any, specs: Sequence[ParamSpec], start: Mapping[str, Array], size: int, rows: int, adapts: bool
) -> tuple[Array, Array, Array, dict[str, Array]]:
    """Give eval logits, features, the loss, and gradients: what plain SGD at rate 1 takes away.

    The model holds `start`, and sees `rows` random images of `size` pixels. With `adapts`, its norms take the batch's
    statistics.
    """
    backend.load_arrays(model, start)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (rows, 3, size, size), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, rows)
    batch = backend.put(model, Batch(images, labels, np.arange(rows), Preprocess(size), (3, 5, 0)))
    logits, features = backend.fetch([backend.logits(model, batch), backend.features(model, batch)])
    trainable = frozenset(spec.name for spec in specs if spec.role != "statistic")
    norms = frozenset(spec.module for spec in specs if spec.role == "statistic") if adapts else frozenset()
    optimizer = backend.optimizer(model, OptimizerSpec("sgd"), [tuple(n.name for n in specs if n.name in trainable)])
    backend.set_phase(model, trainable, norms)
    backend.set_hyper(optimizer, [Hyper(1.0, 0.0)])
    loss = backend.fetch(backend.backward(model, batch))[0]
    backend.update(model, optimizer)
    after = backend.dump_arrays(model)
    return logits, features, loss, {name: start[name] - after[name] for name in start}
