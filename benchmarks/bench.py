"""tlx against the loops that people write and the libraries that they use, on this machine, in one run.

Each job runs by all its contenders in turn, round after round, each time in a process of its own, so that what else the
machine does falls on all alike. Figures are medians over the rounds; a ratio is the median of each round's own ratio.

    python benchmarks/bench.py                 # all jobs, three rounds: 4.5 hours on 2 cores
    python benchmarks/bench.py full import     # some
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TLX_TEST_DATA", "~/.cache/tlx/test-data")).expanduser()
WEIGHTS = DATA / "weights" / "resnet18-imagenet200-32px.safetensors"
FORWARD_FLOPS = 2 * 1.814e9  # of ResNet-18 at 224 px, a multiply-add counted as two: torchvision's published figure
FIELDS = ("train_images_per_second", "eval_images_per_second", "wall_seconds", "memory_gb", "accuracy")


@dataclass(frozen=True)
class Contender:
    name: str
    script: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """What is raced, over how many images, by whom; the first contender is what ratios are to."""

    name: str
    measure: str  # of FIELDS; higher is better for rates, lower for seconds and memory
    options: tuple[str, ...]
    train: int
    test: int
    contenders: tuple[Contender, ...]
    targets: dict[str, float] = field(default_factory=dict)


HAND, HAND_FLOW = Contender("by hand", "by_hand"), Contender("by hand, OneFlow", "by_hand", ("--backend", "oneflow"))
KEPT = Contender("by hand, statistics kept", "by_hand", ("--frozen-norm", "keep"))
TLX, TLX32 = Contender("tlx", "with_tlx"), Contender("tlx, fp32", "with_tlx", ("--precision", "float32"))
TLX_FLOW = Contender("tlx, OneFlow", "with_tlx", ("--backend", "oneflow"))
FAST = Contender("best by hand", "by_hand_fast")
PEERS = (Contender("fastai", "with_fastai"), Contender("Lightning", "with_lightning"))


def job(name: str, measure: str, strategy: str, epochs: int, augment: str, **rest: Any) -> Job:
    options = ("--strategy", strategy, "--epochs", str(epochs), "--augment", augment, *rest.pop("options", ()))
    return Job(name, measure, options, **rest)


RATE, WALL = "train_images_per_second", "wall_seconds"
JOBS = (
    job(
        "full",
        RATE,
        "full",
        1,
        "flips",
        train=768,
        test=128,
        contenders=(HAND, TLX, TLX32, FAST, *PEERS),
        targets={"tlx": 2.8, "tlx, fp32": 1.15},
    ),
    job(
        "diff_lr",
        RATE,
        "diff_lr",
        1,
        "flips",
        train=768,
        test=128,
        contenders=(HAND, TLX, TLX32, FAST, *PEERS),
        targets={"tlx": 2.8, "tlx, fp32": 1.15},
    ),
    job(
        "feature_extract",
        WALL,
        "feature_extract",
        10,
        "none",
        train=3072,  # a start of 5 s counts little in the minutes or hours of a real job
        test=1536,
        contenders=(HAND, TLX),
        targets={"tlx": 25},
    ),
    job(
        "feature_extract, flips",
        WALL,
        "feature_extract",
        10,
        "flips",
        train=1024,
        test=512,
        contenders=(HAND, TLX),
        targets={"tlx": 10},
    ),
    job(
        "partial",
        WALL,
        "partial",
        10,
        "none",
        train=512,
        test=256,
        contenders=(HAND, TLX),
        targets={"tlx": 5},
    ),
    # Fewer images, as the libraries would take half an hour: what a job costs once counts more against tlx.
    job(
        "feature_extract, flips, libraries",
        WALL,
        "feature_extract",
        10,
        "flips",
        train=256,
        test=128,
        contenders=(HAND, KEPT, TLX, *PEERS),
    ),
    job(
        "partial, libraries",
        WALL,
        "partial",
        10,
        "none",
        train=256,
        test=128,
        contenders=(HAND, TLX, *PEERS),
    ),
    job(
        "evaluate",
        "eval_images_per_second",
        "feature_extract",
        1,
        "none",
        options=("--evaluate",),
        train=128,
        test=1024,
        contenders=(HAND, TLX),
        targets={"tlx": 4},
    ),
    job(
        "OneFlow: full",
        RATE,
        "full",
        1,
        "flips",
        train=256,
        test=64,
        contenders=(HAND_FLOW, TLX_FLOW),
        targets={"tlx, OneFlow": 1.8},
    ),
    job(
        "OneFlow: feature_extract, flips",
        WALL,
        "feature_extract",
        10,
        "flips",
        train=128,
        test=64,
        contenders=(HAND_FLOW, TLX_FLOW),
        targets={"tlx, OneFlow": 5},
    ),
)
STARTS = {  # seconds, and at most so many
    "import tlx": (("-c", "import tlx"), 0.15),
    "tlx --help": (("-m", "tlx", "--help"), 0.4),
}


def images(folder: Path, train: int, test: int) -> Path:
    """A part of CIFAR-10 with as many of each class, uint8 NHWC."""
    import tlx

    path = folder / f"{train}-{test}.npz"
    if not path.exists():
        data = tlx.load_data("cifar10", root=DATA, limit_train=train, limit_test=test, val_fraction=0)
        assert data.test is not None
        parts = {"tr": data.train, "te": data.test}
        arrays: dict[str, Any] = {f"y{name}": part.labels for name, part in parts.items()}
        for name, part in parts.items():
            arrays[f"x{name}"] = np.stack([part.pixels(i) for i in range(len(part))])
        np.savez(path, **arrays)
    return path


def run(contender: Contender, job: Job, folder: Path) -> dict[str, float]:
    """One job by one contender in a new process, which finds nothing that another one kept.

    Before it, the libraries' files are read once: after a contender of a quarter of an hour they may have left memory.
    """
    subprocess.run([sys.executable, "-c", "import torch, torchvision, tlx.cli"], check=True, capture_output=True)
    command = [
        *(sys.executable, str(HERE / "contenders" / f"{contender.script}.py"), *job.options, *contender.options),
        "--data",
        str(images(folder, job.train, job.test)),
        "--weights",
        str(WEIGHTS),
    ]
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=folder, env={**os.environ, "TLX_CACHE": cache})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        out.seek(0), err.seek(0)
        if status:
            raise SystemExit(f"{contender.name} failed at {job.name}:\n{err.read().decode()[-2000:]}")
        line = json.loads(out.read().decode().strip().splitlines()[-1])
    return {**line, "wall_seconds": seconds, "memory_gb": usage.ru_maxrss / 1e6}


def race(job: Job, rounds: int, folder: Path) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in job.contenders}
    for number in range(rounds):
        # Each round starts with another contender, so that none always runs on the warmer or colder machine.
        turn = number % len(job.contenders)
        for contender in (*job.contenders[turn:], *job.contenders[:turn]):
            runs[contender.name].append(run(contender, job, folder))
            shown = ", ".join(
                f"{name} {runs[contender.name][-1][name]:.4g}" for name in FIELDS if runs[contender.name][-1][name]
            )
            print(f"{job.name}, round {number + 1}: {contender.name}: {shown}", file=sys.stderr, flush=True)
    return runs


def ratios(job: Job, runs: dict[str, list[dict[str, float]]], name: str) -> list[float]:
    """How many times better than the first contender, round by round."""
    pairs = zip(runs[job.contenders[0].name], runs[name], strict=True)
    if job.measure == WALL:
        return [a[WALL] / b[WALL] for a, b in pairs]
    return [b[job.measure] / a[job.measure] for a, b in pairs]


def table(job: Job, runs: dict[str, list[dict[str, float]]]) -> list[str]:
    rows = []
    for name, figures_of in runs.items():
        of = {f: [line[f] for line in figures_of if line[f] is not None] for f in FIELDS}
        ratio = ratios(job, runs, name)
        target = f"≥ {job.targets[name]:g}" if name in job.targets else ""
        spread = f"{min(ratio):.2f} to {max(ratio):.2f}"
        figures = [f"{median(of[f]):.4g}" if of[f] else "-" for f in FIELDS]
        rows.append(f"| {job.name} | {name} | {' | '.join(figures)} | **{median(ratio):.2f}** ({spread}) | {target} |")
    return rows


def matrix_rates() -> dict[str, float]:
    """The machine's rate in FLOP/s for products of large matrices, by torch, in each precision."""
    import torch

    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
        best = float("inf")
        for _ in range(8):
            started = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - started)
        rates[str(dtype).removeprefix("torch.")] = 2 * 2048**3 / best
    return rates


def starts(rounds: int) -> list[str]:
    """Seconds until `import tlx` and `tlx --help` are done, less those of an empty Python."""
    rows = []
    for name, (arguments, most) in STARTS.items():
        seconds = []
        for _ in range(max(rounds, 5)):
            both = []
            for command in (("-c", ""), arguments):
                started = time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
                both.append(time.perf_counter() - started)
            seconds.append(both)
        whole, bare = median(s[1] for s in seconds), median(s[0] for s in seconds)
        rows.append(f"| {name} | {whole:.2f} s, of which Python itself {bare:.2f} s | ≤ {most} s |")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [job.name for job in JOBS] + ["import"]
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"default: all of {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="write the tables into this file")
    a = parser.parse_args()
    wrong = [name for name in a.jobs if name not in known]
    if wrong or not WEIGHTS.exists():
        parser.error(f"unknown job {wrong[0]!r}; known: {', '.join(known)}" if wrong else f"{WEIGHTS} does not exist")
    chosen = [job for job in JOBS if not a.jobs or job.name in a.jobs]
    lines = [f"On {cpu()}, {os.cpu_count()} cores, Python {platform.python_version()}, {a.rounds} rounds.", ""]
    if chosen:
        rates = matrix_rates()
        lines += [
            "| job | by | train images/s | evaluation images/s | wall s | memory GB | accuracy | ratio | target |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        limits = []
        with tempfile.TemporaryDirectory() as scratch:
            for job in chosen:
                runs = race(job, a.rounds, Path(scratch))
                lines += table(job, runs)
                if job.name == "full":
                    limits = distance(runs, rates)
        lines += ["", *limits]
    if not a.jobs or "import" in a.jobs:
        lines += ["", "| start | seconds | target |", "|---|---|---|", *starts(a.rounds)]
    text = "\n".join(lines) + "\n"
    print(text)
    if a.output:
        a.output.write_text(text, encoding="utf-8")
    return 0


def distance(runs: dict[str, list[dict[str, float]]], rates: dict[str, float]) -> list[str]:
    """How near training comes to the machine's own rate for matrices; a training step is three forward passes."""
    rows = ["| training, everything free | FLOP/s over the matrix rate |", "|---|---|"]
    for name, dtype in (
        ("by hand", "float32"),
        ("tlx, fp32", "float32"),
        ("tlx", "bfloat16"),
        ("best by hand", "bfloat16"),
    ):
        rate = median(line[RATE] for line in runs[name]) * 3 * FORWARD_FLOPS
        rows.append(f"| {name} | {rate / rates[dtype]:.0%} of {rates[dtype] / 1e9:.0f} GFLOP/s ({dtype}) |")
    return rows


def cpu() -> str:
    """The processor's name, and whether it has bfloat16."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    kinds = [kind for kind in ("amx_bf16", "avx512_bf16") if kind in text]
    return f"{name} ({', '.join(kinds) or 'no bfloat16'})"


if __name__ == "__main__":
    sys.exit(main())
