"""A port of the model "tiny-mlp" and of its training loop that knows neither tlx nor a framework; tests run it alone.

python numpy_port.py REFERENCE FOLDER PRECISION [FAULT]
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from capture_writer import Batch, CaptureWriter, Reference, float32_exact  # type: ignore[import-not-found]

Arrays = dict[str, Any]
KEPT = float32_exact(0.9)  # of BatchNorm's statistics


def forward(p: Arrays, inputs: Any, training: bool, eps: float) -> Arrays:
    n, channels, height, width = inputs.shape
    pooled = inputs.reshape(n, channels, 8, height // 8, 8, width // 8).mean((3, 5))
    x = pooled.reshape(n, -1).astype(p["fc.bias"].dtype)
    y: Arrays = {"x": x, "fc1": x @ p["fc1.weight"].T + p["fc1.bias"]}
    mean, var = p["bn1.running_mean"], p["bn1.running_var"]
    if training:
        mean, var = y["fc1"].mean(0), y["fc1"].var(0)
        p["bn1.running_mean"] = p["bn1.running_mean"] + (1 - KEPT) * (mean - p["bn1.running_mean"])
        p["bn1.running_var"] = p["bn1.running_var"] + (1 - KEPT) * (var * n / (n - 1) - p["bn1.running_var"])
    y["scale"] = 1 / np.sqrt(var + var.dtype.type(eps))
    y["normal"] = (y["fc1"] - mean) * y["scale"]
    y["bn1"] = y["normal"] * p["bn1.weight"] + p["bn1.bias"]
    y["fc"] = np.maximum(y["bn1"], 0) @ p["fc.weight"].T + p["fc.bias"]
    return y


def backward(p: Arrays, y: Arrays, batch: Batch, fault: str) -> tuple[float, Arrays]:
    logits = y["fc"]
    target = np.eye(logits.shape[1], dtype=logits.dtype)[batch.labels]
    if batch.targets is not None and fault != "label smoothing is forgotten":
        target = batch.targets.astype(logits.dtype)
    shifted = logits - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    d = (np.exp(logs) - target) / len(logits)
    g = {"fc.weight": d.T @ np.maximum(y["bn1"], 0), "fc.bias": d.sum(0)}
    d = (d @ p["fc.weight"]) * (y["bn1"] > 0)
    g |= {"bn1.weight": (d * y["normal"]).sum(0), "bn1.bias": d.sum(0)}
    d = d * p["bn1.weight"]
    along = 0 if fault == "BatchNorm's variance is a constant" else y["normal"] * (d * y["normal"]).mean(0)
    d = (d - d.mean(0) - along) * y["scale"]
    return float(-(target * logs).sum() / len(logits)), {**g, "fc1.weight": d.T @ y["x"], "fc1.bias": d.sum(0)}


def passes(cap: CaptureWriter, reference: Reference, dtype: Any, fault: str) -> None:
    eps = 1e-3 if fault == "BatchNorm's eps is 1e-3" else float32_exact(1e-5)
    initial = {name: a.astype(dtype) for name, a in reference.weights.items() if a.dtype.kind == "f"}
    cap.weights(initial)
    y = forward(dict(initial), reference.inputs, False, eps)
    for name in ("fc1", "bn1", "fc"):
        cap.output(name, y[name])
    cap.logits(y["fc"])
    for number, batch in enumerate(reference.batches):
        p = dict(initial)
        y = forward(p, batch.inputs, True, eps)
        loss, gradients = backward(p, y, batch, fault)
        cap.loss(loss, number)
        if number == 0:
            for name in ("fc1", "bn1", "fc"):
                cap.output(name, y[name], training=True)
        for name, gradient in gradients.items():
            cap.gradient(name, gradient, number)
        for name in ("bn1.running_mean", "bn1.running_var"):
            cap.buffer(name, p[name], number)


def loop(cap: CaptureWriter, reference: Reference, fault: str) -> None:
    recipe = reference.recipe
    slots: Arrays = {}
    p = {name: a for name, a in reference.weights.items() if a.dtype.kind == "f"}
    momentum, decay = float32_exact(recipe["momentum"]), float32_exact(recipe["weight_decay"])
    batches = list(reference.steps())
    for step, batch in enumerate(batches):
        late = 1 if fault == "the rate drops a step late" else 0
        epoch = max(step - late, 0) * recipe["epochs"] // len(batches)
        rate = float32_exact(recipe["lr"] * recipe["gamma"] ** epoch)
        loss, gradients = backward(p, forward(p, batch.inputs, True, float32_exact(1e-5)), batch, "")
        for name, gradient in gradients.items():
            spared = fault == "biases do not decay" and name.endswith("bias")
            d = gradient + (0 if spared else decay) * p[name]
            slots[name] = d if name not in slots else momentum * slots[name] + d
            p[name] = p[name] - rate * slots[name]
        named = {f"{name}/momentum": slot for name, slot in slots.items()}
        told = None if fault == "the rate drops a step late" else rate
        cap.step(loss, p, named, lr=told)


if __name__ == "__main__":
    capture, folder, precision, fault = (*sys.argv[1:4], "".join(sys.argv[4:]))
    served = Reference(capture)
    with CaptureWriter(folder, f"numpy {np.__version__}", precision, served) as writer:
        passes(writer, served, np.dtype(precision).type, fault)
        if precision == "float64":
            loop(writer, served, fault)
