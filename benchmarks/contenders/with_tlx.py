"""tlx, as its users call it; the test images also serve as the validation part, to be evaluated after each epoch."""

from __future__ import annotations

import tempfile
import time

from common import DECAY, HEAD_LR, LR, MOMENTUM, arguments, report

import tlx

a = arguments()
test = (a.xte, a.yte)
rates = {"lr": HEAD_LR, **({"backbone_lr": LR} if a.strategy in ("diff_lr", "partial") else {})}
data = {"train": (a.xtr, a.ytr), "val": test, "test": test}
seconds = 0.0
with tempfile.TemporaryDirectory() as scratch:
    result = tlx.run(
        backend=a.backend,
        strategy=a.strategy,
        model="resnet18",
        weights=a.weights,
        data=data,
        epochs=a.epochs,
        batch_size=a.batch,
        image_size=a.size,
        augment=a.augment,
        precision=a.precision,
        optimizer="sgd",
        momentum=MOMENTUM,
        weight_decay=DECAY,
        out=f"{scratch}/run",
        quiet=True,
        **rates,
    )
    if a.evaluate:
        started = time.perf_counter()
        tlx.evaluate(result.run_dir, quiet=True, data=data)
        seconds = time.perf_counter() - started
assert result.test_accuracy is not None
report(a, sum(epoch["seconds"] for epoch in result.history), seconds, len(a.xte), result.test_accuracy)
