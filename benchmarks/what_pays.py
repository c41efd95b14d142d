"""What each means of being fast brings, alone: seconds of one batch of ResNet-18, and the ratio to the line before it.

python benchmarks/what_pays.py             # a quarter of an hour on 2 cores
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

SIDE, BATCH, ROUNDS = 224, 64, 5
ONEFLOW = {  # what of it is switched off by hand
    "OneFlow as installed": ("blas layers", "1"),
    "with SciPy's BLAS": ("layers", "1"),
    "patches copied at once": ("", "1"),
    "computing on its scheduler's thread": ("", "0"),
}


def interleaved(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, in turn, so that what else the machine does falls on all; the second of two counts."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            step()
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    return {name: median(seconds) for name, seconds in times.items()}


def by_torch() -> None:
    import torch
    from tlx_torch import memory
    from torch.fx.experimental.optimization import fuse
    from torchvision.models import resnet18

    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.arange(BATCH) % 10
    last = images.contiguous(memory_format=torch.channels_last)
    plain = resnet18(num_classes=10)

    def module(train: bool, fold: bool = False) -> Any:
        made = copy.deepcopy(plain).train(train)
        return (fuse(made) if fold else made).to(memory_format=torch.channels_last)

    def infer(net: Any, x: Any, half: bool, kept: bool = False) -> Callable[[], object]:
        def step() -> object:
            memory.keep(kept)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                return net(x)

        return step

    def learn(net: Any, x: Any, half: bool) -> Callable[[], object]:
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = net(x)
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    first = {}
    compiled = {"evaluation": torch.compile(module(False, fold=True)), "training": torch.compile(module(True))}
    with tempfile.TemporaryDirectory() as cache:  # an empty one: what an earlier compilation left would be quicker
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for name, net, of in (("evaluation", compiled["evaluation"], infer), ("training", compiled["training"], learn)):
            started = time.perf_counter()
            of(net, last, True)()
            first[name] = time.perf_counter() - started
    show(
        "evaluation, torch",
        interleaved(
            {
                "float32": infer(copy.deepcopy(plain).eval(), images, False),
                "channels last": infer(module(False), last, False),
                "bfloat16": infer(module(False), last, True),
                "freed memory kept": infer(module(False), last, True, kept=True),
                "BatchNorm folded into convolutions": infer(module(False, fold=True), last, True, kept=True),
                f"compiled (the first batch takes {first['evaluation']:.0f} s)": infer(
                    compiled["evaluation"], last, True, kept=True
                ),
            }
        ),
    )
    memory.keep(False)
    show(
        "training, torch",
        interleaved(
            {
                "float32": learn(copy.deepcopy(plain).train(), images, False),
                "channels last": learn(module(True), last, False),
                "bfloat16": learn(module(True), last, True),
                f"compiled (the first batch takes {first['training']:.0f} s)": learn(compiled["training"], last, True),
            }
        ),
    )
    small = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)

    def enlarged(x: Any) -> Any:
        return torch.nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)

    show(
        "pixels, torch",
        interleaved(
            {
                "enlarged, then normalised": lambda: (enlarged(small.float()) / 255 - 0.5) / 0.2,
                "normalised, then enlarged": lambda: enlarged((small.float() / 255 - 0.5) / 0.2),
            }
        ),
    )


def by_oneflow(off: str) -> float:
    """Median seconds of a training step of tlx's adapter, in this process."""
    import numpy as np
    from tlx_oneflow import blas

    if "blas" in off:
        blas.install = lambda flow: "OneFlow's own"  # type: ignore[assignment]
    from tlx_oneflow import layers

    if "layers" in off:
        layers.Conv2d = layers.flow.nn.Conv2d  # type: ignore[misc]
    from tlx.backend import Batch, Hyper, ModelSpec, OptimizerSpec, Preprocess
    from tlx.backend.registry import load
    from tlx.models.zoo import architecture

    backend, arch = load("oneflow"), architecture("resnet18")
    model = backend.build(ModelSpec("resnet18", 10, arch.head, arch.options), "cpu", "float32")
    specs = backend.param_specs(model)
    names = [spec.name for spec in specs if spec.role != "statistic"]
    backend.set_phase(model, frozenset(names), frozenset(s.module for s in specs if s.role == "statistic"))
    optimizer = backend.optimizer(model, OptimizerSpec("sgd", 0.9), [tuple(names)])
    backend.set_hyper(optimizer, [Hyper(1e-3, 0.0)])
    images = np.random.default_rng(0).integers(0, 256, (BATCH // 2, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(BATCH // 2) % 10
    batch = Batch(images, labels, labels, Preprocess(SIDE))

    def step() -> None:
        backend.backward(model, backend.put(model, batch))
        backend.update(model, optimizer)
        backend.dump_arrays(model)  # waits until it is done

    return interleaved({"": step})[""]


def show(title: str, times: dict[str, float]) -> None:
    print(f"| {title} | seconds | to the line before |\n|---|---|---|")
    before = None
    for name, seconds in times.items():
        ratio = f"{before / seconds:.2f}" if before else ""
        print(f"| {name} | {seconds:.3f} | {ratio} |")
        before = seconds
    print(flush=True)


def main() -> int:
    if len(sys.argv) > 2:
        print(by_oneflow(sys.argv[2]))
        return 0
    by_torch()
    times: dict[str, list[float]] = {name: [] for name in ONEFLOW}
    for _ in range(2):
        for name, (off, worker) in ONEFLOW.items():
            command = [sys.executable, __file__, "--oneflow", off]
            env = {**os.environ, "ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD": worker}
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
            times[name].append(float(done.stdout))
    show(f"training, OneFlow, batch of {BATCH // 2}", {name: min(seconds) for name, seconds in times.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
