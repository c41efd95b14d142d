"""Train and use: the commands on runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from tlx.cli.options import Fields, Json, RecipeFile, as_json, print_json
from tlx.errors import printable
from tlx.runs.ending import print_outcome


def run(
    recipe: RecipeFile = None,
    /,
    *,
    resume: Annotated[
        Path | None,
        Parameter(
            help="Continue an interrupted run, or add epochs to a finished one with --epochs, its new total; takes "
            "--backend, --device, --workers and the like too."
        ),
    ] = None,
    processes: Annotated[
        int | None,
        Parameter(
            help="Train in so many processes of this machine, such as one for each GPU; the result is that of one. "
            "torchrun and srun start them on several machines, without this option. [default: 1]"
        ),
    ] = None,
    overrides: Annotated[Fields | None, Parameter(name="*")] = None,
    json: Json = False,
) -> int | None:
    """Train, keep the best epoch, evaluate once on the test part. Without arguments: the CIFAR-10 tutorial's job."""
    from tlx.processes import connected
    from tlx.processes.start import asked_for, start_all
    from tlx.runs.display import Display, summary
    from tlx.runs.job import start

    if asked_for(processes):
        return start_all(asked_for(processes), sys.argv[1:])
    with connected() as channel:
        first = channel.world.rank == 0
        display = Display(quiet=not first)
        result = start(recipe, resume, overrides or {}, display, channel=channel)
    if not first:
        return None
    if json:
        display.result(result)
    print_outcome(as_json(result.to_dict()) if json else printable(summary(result)), result.run_dir)
    return None


def evaluate(
    run_dir: Path,
    /,
    *,
    backend: str | None = None,
    data: str | None = None,
    top: int | None = None,
    tta: str = "none",
    csv: Path | None = None,
    json: Json = False,
) -> None:
    """Evaluate a finished run on its test part, or on other data.

    Parameters
    ----------
    run_dir:
        A folder that `tlx run` wrote.
    backend:
        Evaluate on this backend instead of the one that trained.
    data:
        Other data, whatever `tlx run --data` takes: its test part, or all of it where it has only one part. Classes are
        matched by name.
    top:
        Count an image as correct if its class is among this many, the most probable first. [default: 5 where there are
        more classes]
    tta:
        Test-time augmentation: none, or hflip, which averages the probabilities of an image and of its mirror image.
    csv:
        Write a table to this file, a row for each image: path, label, prediction, probability, loss, margin.
    """
    import tlx
    from tlx.runs.classify import check_tta
    from tlx.runs.display import print_evaluation

    evaluation = tlx.evaluate(run_dir, backend, data=data, top=top, tta=check_tta(tta), csv=csv)
    if json:
        print_json(evaluation)
        return
    print_evaluation(evaluation)


def predict(
    run_dir: Path,
    /,
    *images: Path,
    backend: str | None = None,
    top: int | None = None,
    tta: str = "none",
    reject: float | None = None,
    calibrated: Annotated[bool, Parameter(negative="")] = False,
    csv: Path | None = None,
    json: Json = False,
) -> None:
    """Classify photos with a finished run. One that cannot be read is listed on stderr, and the rest classified.

    Parameters
    ----------
    run_dir:
        A folder that `tlx run` wrote.
    images:
        Files, folders from which every photo is taken, or data sets, such as an .npz file, of which every image is.
    backend:
        Classify on this backend instead of the one that trained.
    top:
        Print this many classes for each image, the most probable first. [default: 1; with --json or --csv: up to 5]
    tta:
        Test-time augmentation: none, or hflip, which averages the probabilities of an image and of its mirror image.
    reject:
        Answer "unknown" below a probability from which on, with 95 % confidence, at most this part of the answers is
        wrong, such as 0.05, judged by the run's validation part.
    calibrated:
        Divide the logits by the temperature that fits the run's validation part best, before the softmax.
    csv:
        Write a table to this file: path, prediction, probability, then the next classes, and what could not be read.
    """
    from tlx.runs.classify import check_tta
    from tlx.runs.prediction import predictions, reported, write_csv

    rows = predictions(run_dir, images, backend, top, tta=check_tta(tta), reject=reject, calibrated=calibrated)
    asked = {"reject": reject, "calibrated": calibrated or None}
    source = {"run_dir": str(run_dir), "tta": tta, **{name: v for name, v in asked.items() if v is not None}}
    if csv is not None:
        predicted, unreadable = write_csv(csv, reported(rows))
        if json:
            print_json({**source, "csv": str(csv), "predicted": predicted, "unreadable": unreadable})
        else:
            print(f"{predicted} predictions in {printable(str(csv))}")
    elif json:
        print_json({**source, "predictions": list(reported(rows))})
    else:
        for row in rows:
            labels: Any = dict(row).get("labels")
            if labels is not None:
                applies = (entry for entry in row["top"] if entry["class"] in labels)
                listed = [f"{printable(entry['class'])} {entry['probability']:.4f}" for entry in applies]
                print(f"{printable(row['path'])}: {', '.join(listed) or 'no label'}", flush=True)
                continue
            ranked = (f"{printable(entry['class'])} {entry['probability']:.4f}" for entry in row["top"][: top or 1])
            if not row["error"]:
                answer = ", ".join(ranked) if row["class"] is not None else f"unknown ({', '.join(ranked)})"
                print(f"{printable(row['path'])}: {answer}", flush=True)
