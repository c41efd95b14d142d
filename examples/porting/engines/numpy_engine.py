"""The network in NumPy float64, forward and backward by hand, and its training loop; recorded for `tlx parity compare`.

    python numpy_engine.py A B [FAULT]

needs NumPy and capture_writer.py beside it, no framework. A is the capture of the reference, B the folder to write.
"""

from __future__ import annotations

import sys

import numpy as np
from capture_writer import CaptureWriter, Reference, float32_exact

FAULTS = ("the convolution pads by its edge", "the gradient of the mean is not divided", "the rate drops a step late")
EPS, MOMENTUM = float32_exact(1e-5), 1 - float32_exact(0.9)  # of BatchNorm, as tlx rounds them


def pad(x, fault):
    return np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), "edge" if fault == FAULTS[0] else "constant")


def windows(x, stride):
    """Every 3 x 3 window: [N, C, H, W] to [N, C, rows, columns, 3, 3]."""
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::stride, ::stride]


def convolved(x, weight, bias, stride):
    return np.einsum("nchwij,ocij->nohw", windows(x, stride), weight) + bias[None, :, None, None]


def convolution_gradients(x, weight, stride, dy):
    """Gradients to the padded input, the weight and the bias."""
    dx = np.zeros_like(x)
    height, width = dy.shape[2:]
    for i in range(3):
        for j in range(3):
            rows, columns = slice(i, i + stride * height, stride), slice(j, j + stride * width, stride)
            dx[:, :, rows, columns] += np.einsum("nohw,oc->nchw", dy, weight[:, :, i, j])
    return dx, np.einsum("nohw,nchwij->ocij", dy, windows(x, stride)), dy.sum((0, 2, 3))


def forward(p, x, training, fault=""):
    """What each layer gives, by its name; training, the statistics of the batch count and move the running ones."""
    y = {"padded": pad(x, fault)}
    y["stem"] = convolved(y["padded"], p["stem.weight"], p["stem.bias"], 2)
    mean, var = p["norm.running_mean"], p["norm.running_var"]
    if training:
        mean, var = y["stem"].mean((0, 2, 3)), y["stem"].var((0, 2, 3))
        count = y["stem"].size // len(mean)
        p["norm.running_mean"] += MOMENTUM * (mean - p["norm.running_mean"])
        p["norm.running_var"] += MOMENTUM * (var * count / (count - 1) - p["norm.running_var"])
    y["scale"] = 1 / np.sqrt(var + EPS)
    y["normal"] = (y["stem"] - mean[:, None, None]) * y["scale"][:, None, None]
    y["norm"] = y["normal"] * p["norm.weight"][:, None, None] + p["norm.bias"][:, None, None]
    y["between"] = pad(np.maximum(y["norm"], 0), fault)
    y["conv"] = convolved(y["between"], p["conv.weight"], p["conv.bias"], 1)
    y["pooled"] = np.maximum(y["conv"], 0).mean((2, 3))
    y["mix"] = y["pooled"] @ p["mix.weight"].T + p["mix.bias"]
    y["fc"] = np.maximum(y["mix"], 0) @ p["fc.weight"].T + p["fc.bias"]
    return y


def backward(p, y, labels, fault=""):
    """The loss, the mean of the cross-entropy, and its gradient to every parameter."""
    shifted = y["fc"] - y["fc"].max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    rows = np.arange(len(labels))
    loss = -logs[rows, labels].mean()
    d = np.exp(logs)
    d[rows, labels] -= 1
    d /= len(labels)
    g = {"fc.weight": d.T @ np.maximum(y["mix"], 0), "fc.bias": d.sum(0)}
    d = (d @ p["fc.weight"]) * (y["mix"] > 0)
    g |= {"mix.weight": d.T @ y["pooled"], "mix.bias": d.sum(0)}
    d = (d @ p["mix.weight"])[:, :, None, None] * (y["conv"] > 0)
    d = d if fault == FAULTS[1] else d / (y["conv"].shape[2] * y["conv"].shape[3])
    d, g["conv.weight"], g["conv.bias"] = convolution_gradients(y["between"], p["conv.weight"], 1, d)
    d = d[:, :, 1:-1, 1:-1] * (y["norm"] > 0)
    g |= {"norm.weight": (d * y["normal"]).sum((0, 2, 3)), "norm.bias": d.sum((0, 2, 3))}
    d = d * p["norm.weight"][:, None, None]
    mean, along = d.mean((0, 2, 3)), (d * y["normal"]).mean((0, 2, 3))
    d = (d - mean[:, None, None] - y["normal"] * along[:, None, None]) * y["scale"][:, None, None]
    _, g["stem.weight"], g["stem.bias"] = convolution_gradients(y["padded"], p["stem.weight"], 2, d)
    return loss, g


def initial(reference):
    return {n: a.astype(np.float64) for n, a in reference.weights.items() if a.dtype.kind == "f"}


def passes(cap, reference, fault):
    """P1, P3 and P4: the weights, a forward pass in eval mode, and a backward pass."""
    p = initial(reference)
    cap.weights(p)
    y = forward(p, reference.inputs, False, fault)
    for name in ("stem", "norm", "conv", "mix", "fc"):
        cap.output(name, y[name])
    cap.logits(y["fc"])
    batch = reference.batches[0]
    y = forward(p, batch.inputs, True, fault)
    loss, gradients = backward(p, y, batch.labels, fault)
    cap.loss(loss)
    for name in ("stem", "norm", "conv", "mix", "fc"):
        cap.output(name, y[name], training=True)
    for name, gradient in gradients.items():
        cap.gradient(name, gradient)
    for name in ("norm.running_mean", "norm.running_var"):
        cap.buffer(name, p[name])


def loop(cap, reference, fault):
    """P6: SGD with momentum and decay; the rate falls to a tenth after each epoch."""
    p, slots, recipe = initial(reference), {}, reference.recipe
    momentum, decay = float32_exact(recipe["momentum"]), float32_exact(recipe["weight_decay"])
    batches = list(reference.steps())
    for step, batch in enumerate(batches):
        epoch = (step - (fault == FAULTS[2])) * recipe["epochs"] // len(batches)
        rate = float32_exact(recipe["lr"] * recipe["gamma"] ** max(epoch, 0))
        loss, gradients = backward(p, forward(p, batch.inputs, True), batch.labels)
        for name, gradient in gradients.items():
            d = gradient + decay * p[name]
            slots[name] = d if name not in slots else momentum * slots[name] + d
            p[name] -= rate * slots[name]
        cap.step(loss, p, {f"{name}/momentum": slot for name, slot in slots.items()}, lr=rate)


if __name__ == "__main__":
    capture, out, fault = sys.argv[1], sys.argv[2], "".join(sys.argv[3:4])
    served = Reference(capture)
    with CaptureWriter(out, f"numpy {np.__version__}", reference=served) as writer:
        passes(writer, served, fault)
        loop(writer, served, fault)
