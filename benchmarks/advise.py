"""Judge `tlx advise`: is what it advises within a point of the best strategy, which running all of them finds?

    python benchmarks/advise.py [FOLDER of the test data] [--only "cats and dogs, 50"] [--work build/advise] [--jobs 2]
    python benchmarks/advise.py --distances

The advice is taken for all tasks first, while nothing else runs, and each line that it gives is run as it is printed.
Then every strategy is trained by `tlx.compare`, with two learning rates of which the validation part chooses. All are
judged by their accuracy on the test part, which neither advice nor choice saw. What was done already is not done again:
of a task that was stopped the cells that are finished stay, and the results of finished tasks stand in
benchmarks/advise.json. On 2 cores all tasks take some hours.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tlx
from tlx.comparison.evidence import distance_of
from tlx.runs.extractor import extractor_of
from tlx.strategy import STRATEGIES
from tlx.training.build import open_data

RESULTS = Path(__file__).with_suffix(".json")
ALL = [name for name in STRATEGIES if name != "lora"]  # for linear layers, which these models do not have
COMMON: dict[str, Any] = {
    "schedule": "cosine",
    "backbone_lr": 1e-3,
    "lr": 1e-2,
    "val_fraction": 0.2,
    "limit_test": 2000,
}
GRID = {"lr": [1e-2, 3e-3], "backbone_lr": [COMMON["backbone_lr"]]}
POINT = 0.01


def tasks(home: Path) -> dict[str, dict[str, Any]]:
    """Return the fields of each task: its data, its model and its epochs, the more the fewer images there are."""
    cifar = {"data": "cifar10", "data_root": str(home)}
    pair = {**cifar, "classes": ("cat", "dog")}
    photos = {"data": str(home / "hymenoptera_data"), "epochs": 20}
    resnet, mobilenet = (
        {"model": model, "weights": str(home / "weights" / f"{model}-imagenet-backbone.safetensors")}
        for model in ("resnet18", "mobilenet_v2")
    )
    return {
        "cats and dogs, 50": {**pair, **resnet, "limit_train": 50, "epochs": 30, "image_size": 64},
        "cats and dogs, 200": {**pair, **resnet, "limit_train": 200, "epochs": 20, "image_size": 64},
        "cats and dogs, 1,000": {**pair, **resnet, "limit_train": 1000, "epochs": 10, "image_size": 64},
        "cats and dogs, 5,000": {**pair, **resnet, "limit_train": 5000, "epochs": 6, "image_size": 64},
        "10 classes, 1,000": {**cifar, **resnet, "limit_train": 1000, "epochs": 15, "image_size": 64},
        "10 classes, 5,000": {**cifar, **resnet, "limit_train": 5000, "epochs": 8, "image_size": 64},
        "ants and bees": {**photos, **resnet, "image_size": 96},
        "digits": {"data": "digits", **resnet, "epochs": 10, "image_size": 64},
        "ants and bees, MobileNet": {**photos, **mobilenet, "image_size": 96},
        "cats and dogs, 1,000, MobileNet": {**pair, **mobilenet, "limit_train": 1000, "epochs": 10, "image_size": 64},
    }


def print_distances(known: dict[str, dict[str, Any]]) -> None:
    """Print how far each task's images lie from the pretraining, with both backends."""
    larger = {"digits, 96 px": {**known["digits"], "image_size": 96}}
    for name, task in {**known, **larger}.items():
        data = open_data(tlx.Recipe(**{key: value for key, value in task.items() if key != "epochs"}))
        for backend in ("torch", "oneflow"):
            of_model = {key: task[key] for key in ("model", "weights", "image_size")}
            extractor = extractor_of(tlx.Recipe(strategy="probe", backend=backend, **of_model))
            print(f"{name}, {backend}: {distance_of(extractor, data.train):.3f}", flush=True)


def advised(name: str, task: dict[str, Any], work: Path) -> dict[str, Any]:
    """Return the advice for a task, and the test accuracy of the line that it gives."""
    file = work / f"{name}.json"
    if file.is_file():
        return json.loads(file.read_text())
    started = time.perf_counter()
    advice = tlx.advise(**COMMON, **task)
    took = time.perf_counter() - started
    out = work / f"{name}, the line"
    subprocess.run([sys.executable, "-m", "tlx", *shlex.split(advice.command)[1:], "--out", out], check=True)
    accuracy = json.loads((out / "result.json").read_text())["test_accuracy"]
    answer = {**advice.to_dict(), "took": took, "test_accuracy": accuracy}
    file.write_text(json.dumps(answer))
    return answer


def judged(name: str, task: dict[str, Any], advice: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train all strategies for a task, and return how far the advised line is from the best."""
    fields = {**COMMON, **task}
    del fields["backbone_lr"]  # not every strategy has it, so it is in the grid
    comparison = tlx.compare(**fields, strategies=ALL, grid=GRID, jobs=options.jobs, out=str(options.work / name))
    if comparison.problems:
        raise SystemExit(f"{name}: {comparison.problems}")
    tested = ((e.candidate.arm.strategy, e.test_accuracy) for e in comparison.entries if e.chosen)
    accuracy = {strategy: round(value, 4) for strategy, value in tested if value is not None}
    best = max(accuracy, key=accuracy.__getitem__)
    return {
        **{key: advice[key] for key in ("rule", "strategy", "close", "distance")},
        "seconds": round(advice["took"], 1),
        "accuracy": round(advice["test_accuracy"], 4),
        "best": best,
        "behind": round(accuracy[best] - advice["test_accuracy"], 4),
        "all": accuracy,
    }


def table(results: dict[str, dict[str, Any]], names: list[str]) -> str:
    """Return the rows of docs/advise.md."""
    lines = ["| task | rule | advised | its line | best of all | accuracy | behind |", "|---|---|---|---|---|---|---|"]
    for name in names:
        if (row := results.get(name)) is None:
            lines.append(f"| {name} | not run yet | | | | | |")
            continue
        cells = (row["rule"], row["strategy"], f"{row['accuracy']:.1%}", row["best"], f"{row['all'][row['best']]:.1%}")
        lines.append(f"| {name} | {' | '.join(cells)} | {100 * row['behind']:.1f} points |")
    within = sum(row["behind"] <= POINT for row in results.values())
    return "\n".join([*lines, "", f"{within} of {len(results)} within a point of the best."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="~/.cache/tlx/test-data")
    parser.add_argument("--only", action="append", help="a task; may be repeated")
    parser.add_argument("--work", default="build/advise", type=Path, help="where the runs are")
    parser.add_argument("--jobs", default=2, type=int, help="how many runs train at the same time")
    parser.add_argument("--distances", action="store_true", help="print the distances of the tasks, and train nothing")
    options = parser.parse_args()
    known = tasks(Path(options.folder).expanduser())
    if unknown := set(options.only or ()) - known.keys():
        parser.error(f"no task {', '.join(unknown)}; there are: {'; '.join(known)}")
    if options.distances:
        print_distances(known)
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    names = [name for name in options.only or known if name not in results]
    options.work.mkdir(parents=True, exist_ok=True)
    advice = {name: advised(name, known[name], options.work) for name in names}
    for name in options.only or known:
        if name not in results:
            results[name] = judged(name, known[name], advice[name], options)
            RESULTS.write_text(json.dumps({name: results[name] for name in known if name in results}, indent=1) + "\n")
        print(f"{name}: {results[name]}", flush=True)
    print(table(results, list(known)))


if __name__ == "__main__":
    main()
