"""Tutorial 5. Your own training loop, proven against tlx's, and its port to OneFlow proven against yours.

tlx writes down what it does; your loop starts from the same weights, steps over the same batches, and writes down what
it does by one call a step. What differs first is named: loss, gradient, rate, optimizer, value or average.

    python examples/porting/5_your_own_loop.py
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import oneflow as flow
import torch

from tlx.proof.capture_writer import CaptureWriter, Reference, float32_exact, nudged
from tlx.proof.compare import compare
from tlx.proof.prove import capture_module

# The job, as tlx and the loop below both do it.
RECIPE: dict[str, Any] = {
    "strategy": "full",
    "lr": 0.02,
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "schedule": "step",
    "step_size": 1,
    "gamma": 0.5,
    "epochs": 4,
    "batch_size": 8,
    "clip_norm": 0.25,
    "image_size": 16,
}
DECAY, MOMENTUM = float32_exact(RECIPE["weight_decay"]), float32_exact(RECIPE["momentum"])
AVERAGE = 0.95  # of the loops by hand


def network(fw: Any) -> Any:
    """The same on either framework."""
    nn = fw.nn
    layers = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def train(fw: Any, cap: CaptureWriter, weights: Mapping[str, np.ndarray], batches: Any, fault: str, **how: Any) -> None:
    """The loop by hand. Each fault is one wrong line."""
    model = network(fw).to(fw.float64)
    model.load_state_dict({name: fw.tensor(array) for name, array in weights.items()})
    model[1].eps, model[1].momentum = float32_exact(1e-5), 1 - float32_exact(0.9)  # as on every backend of tlx
    params = dict(model.named_parameters())
    momentum = float32_exact(0.8) if fault == "another momentum" else MOMENTUM
    optimizer = fw.optim.SGD(list(params.values()), lr=0.1, momentum=momentum, weight_decay=DECAY)
    smoothing = 0.1 if fault == "label smoothing" else 0.0
    average = arrays(params)
    model.train()
    batches = list(batches)
    for step, batch in enumerate(batches):
        epoch = step * RECIPE["epochs"] // len(batches)
        rate = float32_exact(RECIPE["lr"] * RECIPE["gamma"] ** (epoch if fault != "no schedule" else 0))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        logits = model(fw.tensor(batch.inputs))
        loss = fw.nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, fw.tensor(batch.labels))
        loss.backward()
        if fault != "no clipping":
            fw.nn.utils.clip_grad_norm_(list(params.values()), RECIPE["clip_norm"])
        gradients = arrays({name: p.grad for name, p in params.items()})
        optimizer.step()
        share = 1 - (0.9 if fault == "another average" and step else AVERAGE)
        average = {name: average[name] + share * (new - average[name]) for name, new in arrays(params).items()}
        cap.step(
            float(loss.detach().numpy()),
            arrays(model.state_dict()),
            slots(fw, optimizer, params),
            gradients=gradients,
            average=average,
            lr=rate,
            batch=batch,
            **how,
        )


def arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(tensor.detach().numpy()) for name, tensor in tensors.items()}


def slots(fw: Any, optimizer: Any, params: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """PyTorch's momentum; OneFlow does not show its own, and what is not given is not compared."""
    if fw is not torch:
        return None
    return arrays({f"{name}/momentum": optimizer.state[p]["momentum_buffer"] for name, p in params.items()})


def main() -> int:
    torch.manual_seed(0)
    right = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        capture_module(network(torch), home / "tlx", quick=True, **RECIPE)
        reference = Reference(home / "tlx")

        print("1. The loop by hand, in PyTorch, against tlx:")
        for fault in ("", "another momentum", "no schedule", "no clipping", "label smoothing"):
            folder = home / f"by hand {fault}"
            with CaptureWriter(folder, f"loop {torch.__version__}", reference=reference) as cap:
                cap.weights(reference.weights)
                train(torch, cap, reference.weights, reference.steps(), fault)
            right.append(judged(home / "tlx", folder, fault))

        print("2. The loop by hand as the reference; a second run from weights one unit off shows what rounding does.")
        with CaptureWriter(home / "mine", f"loop {torch.__version__}") as cap:
            cap.weights(reference.weights)
            train(torch, cap, reference.weights, reference.steps(), "")
            train(torch, cap, nudged(reference.weights), reference.steps(), "", nudged=True)

        print("   Its port to OneFlow:")
        mine = Reference(home / "mine")
        for fault in ("", "another average", "no clipping", "another momentum"):
            folder = home / f"port {fault}"
            with CaptureWriter(folder, f"oneflow {flow.__version__}", reference=mine) as cap:
                cap.weights(mine.weights)
                train(flow, cap, mine.weights, mine.steps(), fault)
            right.append(judged(home / "mine", folder, fault))
    print(f"{sum(right)} of {len(right)} judged rightly")
    return 0 if all(right) else 1


def judged(reference: Path, candidate: Path, fault: str) -> bool:
    """Compare, print the verdict, and say whether it is right."""
    report = compare(reference, candidate)
    print(f"   {fault or 'no fault'}: {report.verdict.name}. {report.first}")
    return (report.verdict.name == "DIFFERENT") == bool(fault)


if __name__ == "__main__":
    sys.exit(main())
