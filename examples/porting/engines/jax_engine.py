"""The network in JAX, and its training loop, recorded for `tlx parity compare`.

    python jax_engine.py A B [FAULT [PRECISION]]

needs JAX and capture_writer.py beside it, no other framework. A is the capture of the reference, B the folder to write.
In float32 there is no loop, whose rounding would grow beyond all measure, but each of the five batches is recorded.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
from capture_writer import CaptureWriter, Reference, float32_exact

FAULTS = (
    "GELU in place of the last ReLU",
    "the loss is summed",
    "Nesterov's momentum",
    "BatchNorm's eps is 1e-3",
)
EPS, MOMENTUM = float32_exact(1e-5), 1 - float32_exact(0.9)  # of BatchNorm, as tlx rounds them
LAYERS = ("stem", "norm", "conv", "mix", "fc")


def convolved(p, name, x, stride):
    layout = ("NCHW", "OIHW", "NCHW")
    y = jax.lax.conv_general_dilated(
        x, p[f"{name}.weight"], (stride, stride), [(1, 1), (1, 1)], dimension_numbers=layout, precision="highest"
    )
    return y + p[f"{name}.bias"][:, None, None]


def dense(p, name, x):
    return jnp.matmul(x, p[f"{name}.weight"].T, precision="highest") + p[f"{name}.bias"]


def forward(p, x, training, fault):
    """What each layer gives, by its name, and the running statistics after it."""
    eps = 1e-3 if fault == FAULTS[3] else EPS
    y, moved = {"stem": convolved(p, "stem", x, 2)}, {}
    mean, var = p["norm.running_mean"], p["norm.running_var"]
    if training:
        count = y["stem"].size // len(mean)
        batch_mean, batch_var = y["stem"].mean((0, 2, 3)), y["stem"].var((0, 2, 3))
        moved["norm.running_mean"] = mean + MOMENTUM * (batch_mean - mean)
        moved["norm.running_var"] = var + MOMENTUM * (batch_var * count / (count - 1) - var)
        mean, var = batch_mean, batch_var
    normal = (y["stem"] - mean[:, None, None]) / jnp.sqrt(var + eps)[:, None, None]
    y["norm"] = normal * p["norm.weight"][:, None, None] + p["norm.bias"][:, None, None]
    y["conv"] = convolved(p, "conv", jax.nn.relu(y["norm"]), 1)
    y["mix"] = dense(p, "mix", jax.nn.relu(y["conv"]).mean((2, 3)))
    y["fc"] = dense(p, "fc", jax.nn.gelu(y["mix"]) if fault == FAULTS[0] else jax.nn.relu(y["mix"]))
    return y, moved


def objective(trained, statistics, x, labels, fault):
    y, moved = forward({**trained, **statistics}, x, True, fault)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(y["fc"]), labels[:, None], 1)
    return (losses.sum() if fault == FAULTS[1] else losses.mean()), (y, moved)


differentiated = jax.jit(jax.value_and_grad(objective, has_aux=True), static_argnames="fault")


def initial(reference, dtype):
    arrays = {n: jnp.asarray(a, dtype) for n, a in reference.weights.items() if a.dtype.kind == "f"}
    statistics = {n: a for n, a in arrays.items() if "running" in n}
    return {n: a for n, a in arrays.items() if n not in statistics}, statistics


def passes(cap, reference, dtype, fault):
    """P1, P3 and P4: the weights, a forward pass in eval mode, and a backward pass for each batch."""
    trained, statistics = initial(reference, dtype)
    cap.weights({**trained, **statistics})
    y, _ = forward({**trained, **statistics}, jnp.asarray(reference.inputs, dtype), False, fault)
    for name in LAYERS:
        cap.output(name, y[name])
    cap.logits(y["fc"])
    for number, batch in enumerate(reference.batches):
        x, labels = jnp.asarray(batch.inputs, dtype), jnp.asarray(batch.labels)
        (loss, (y, moved)), gradients = differentiated(trained, statistics, x, labels, fault)
        cap.loss(loss, number)
        for name in LAYERS if number == 0 else ():
            cap.output(name, y[name], training=True)
        for name, gradient in gradients.items():
            cap.gradient(name, gradient, number)
        for name, buffer in moved.items():
            cap.buffer(name, buffer, number)


def loop(cap, reference, fault):
    """P6: SGD with momentum and decay; the rate falls to a tenth after each epoch."""
    trained, statistics = initial(reference, jnp.float64)
    slots, recipe, batches = {}, reference.recipe, list(reference.steps())
    momentum, decay = float32_exact(recipe["momentum"]), float32_exact(recipe["weight_decay"])
    for step, batch in enumerate(batches):
        rate = float32_exact(recipe["lr"] * recipe["gamma"] ** (step * recipe["epochs"] // len(batches)))
        (loss, (_, statistics)), gradients = differentiated(
            trained, statistics, jnp.asarray(batch.inputs), jnp.asarray(batch.labels), ""
        )
        for name, gradient in gradients.items():
            d = gradient + decay * trained[name]
            slots[name] = d if name not in slots else momentum * slots[name] + d
            trained[name] -= rate * (d + momentum * slots[name] if fault == FAULTS[2] else slots[name])
        cap.step(loss, {**trained, **statistics}, {f"{n}/momentum": slot for n, slot in slots.items()}, lr=rate)


if __name__ == "__main__":
    capture, out, *others = sys.argv[1:]
    fault, precision = [*others, *("", "float64")[len(others) :]]
    jax.config.update("jax_enable_x64", True)
    served = Reference(capture)
    with CaptureWriter(out, f"jax {jax.__version__}", precision, served) as writer:
        passes(writer, served, np.dtype(precision), fault)
        if precision == "float64":
            loop(writer, served, fault)
