"""Transfer learning on two backends, in under three minutes and without a network connection.

A ResNet-18 learns the scanned digits 0 to 4. Then four strategies transfer it to 5 to 9 with five images of each, on
PyTorch and on OneFlow, from the same weights and with the same batches.

    python examples/digits.py [--backends torch oneflow]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import tlx

DIGITS = {"data": "digits", "image_size": 32, "augment": "none", "precision": "float32", "schedule": "cosine"}
RATES = {
    "scratch": {"lr": 0.003},
    "full": {"lr": 0.003},
    "diff_lr": {"lr": 0.01, "backbone_lr": 0.003},
    "feature_extract": {"lr": 0.01},
}


def main() -> None:
    """Train on every backend and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backends", nargs="+", default=["torch", "oneflow"])
    backends = parser.parse_args().backends
    console = Console()
    table = Table(title="Digits 5-9 from 25 images, after learning 0-4", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("strategy")
    table.add_column("trained\nparameters", justify="right")
    for backend in backends:
        table.add_column(f"accuracy\n{backend}", justify="right")
    for backend in backends:
        table.add_column(f"seconds\n{backend}", justify="right")

    with tempfile.TemporaryDirectory() as folder:
        console.rule(f"Learning 0-4 on {backends[0]}")
        source = tlx.run(
            **DIGITS,
            backend=backends[0],
            classes=("0", "1", "2", "3", "4"),
            strategy="scratch",
            epochs=8,
            batch_size=32,
            lr=0.01,
            out=f"{folder}/source",
        )
        for strategy in RATES:
            results = []
            for backend in backends:
                console.rule(f"5-9: {strategy} on {backend}")
                results.append(transfer(strategy, backend, source.run_dir, f"{folder}/{strategy}-{backend}"))
            table.add_row(
                strategy,
                f"{results[0].trainable_parameters:,}",
                *(f"{result.test_accuracy:.3f}" for result in results),
                *(f"{result.wall_seconds:.0f}" for result in results),
            )
    console.print(table)
    console.print(f"Learned first: 0-4 with {source.test_accuracy:.3f} test accuracy on {source.backend}.")


def transfer(strategy: str, backend: str, source: Path, out: str) -> tlx.Result:
    """Transfer the source model to the digits 5 to 9 with 25 images."""
    return tlx.run(
        **DIGITS,
        backend=backend,
        classes=("5", "6", "7", "8", "9"),
        strategy=strategy,
        weights=None if strategy == "scratch" else str(source),
        limit_train=25,
        val_fraction=0,
        epochs=4,
        batch_size=5,
        out=out,
        **RATES[strategy],
    )


if __name__ == "__main__":
    main()
