"""The command line: a thin layer over the Python interface. Errors are one line on stderr and exit code 2."""

from __future__ import annotations

import json as jsonlib
import os
import shlex
import sys
from dataclasses import fields
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, TypedDict

from cyclopts import App, Group, Parameter

from tlx.errors import printable
from tlx.recipe import Recipe
from tlx.recipe_fields import FIELD_GROUPS
from tlx.runs.ending import exit_code, print_outcome

app = App(
    name="tlx",
    help="Transfer learning for computer vision in one call, with the same numbers on PyTorch and on OneFlow.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)
TRAIN, PROVE, LOOK_UP = (
    Group(name, sort_key=place) for place, name in enumerate(("Train and use", "Prove", "Look up"))
)
_GROUPS = {name: Group(name, sort_key=place) for place, name in enumerate(FIELD_GROUPS, 1)}


def _option(name: str) -> Any:
    """Return a recipe field as an option: its type, and its help with the default."""
    f = Recipe.__dataclass_fields__[name]
    facts, kind = f.metadata, f.metadata["option"]  # a choice is text here, so that tlx names the nearest one
    choices = f" [choices: {', '.join(facts['choices'])}]" if facts["choices"] else ""
    default = "" if f.default is None else f" [default: {f.default}]"
    shown = Parameter(help=f"{facts['help']}{choices}{default}", show_default=False, group=_GROUPS[facts["group"]])
    return Annotated[kind, shown]


# The options of `tlx run` are the recipe's fields, so they are made from it; only those given are passed on.
Fields = TypedDict("Fields", {f.name: _option(f.name) for f in fields(Recipe)}, total=False)  # type: ignore[misc]

RecipeFile = Annotated[Path | None, Parameter(help="A recipe file (TOML). Options replace its values.")]
Json = Annotated[bool, Parameter(help="Print one JSON object as the last line of stdout.", negative="")]


@app.command(group=TRAIN, sort_key=1)
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
    overrides: Annotated[Fields | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Train, keep the best epoch, evaluate once on the test part. Without arguments: the CIFAR-10 tutorial's job."""
    from tlx.runs.display import Display, summary
    from tlx.runs.job import start

    display = Display()
    result = start(recipe, resume, overrides or {}, display)
    if json:
        display.result(result)
    print_outcome(_as_json(result.to_dict()) if json else printable(summary(result)), result.run_dir)


@app.command(group=TRAIN, sort_key=2)
def evaluate(
    run_dir: Path,
    /,
    *,
    backend: str | None = None,
    data: str | None = None,
    top: int | None = None,
    tta: str = "none",
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
    """
    import tlx
    from tlx.runs.classify import check_tta
    from tlx.runs.display import print_evaluation

    evaluation = tlx.evaluate(run_dir, backend, data=data, top=top, tta=check_tta(tta))
    if json:
        _print_json(evaluation)
        return
    print_evaluation(evaluation)


@app.command(group=TRAIN, sort_key=3)
def predict(
    run_dir: Path,
    /,
    *images: Path,
    backend: str | None = None,
    top: int | None = None,
    tta: str = "none",
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
    csv:
        Write a table to this file: path, prediction, probability, then the next classes, and what could not be read.
    """
    from tlx.runs.classify import check_tta
    from tlx.runs.prediction import predictions, reported, write_csv

    rows = predictions(run_dir, images, backend, top, tta=check_tta(tta))
    source = {"run_dir": str(run_dir), "tta": tta}
    if csv is not None:
        predicted, unreadable = write_csv(csv, reported(rows))
        if json:
            _print_json({**source, "csv": str(csv), "predicted": predicted, "unreadable": unreadable})
        else:
            print(f"{predicted} predictions in {printable(str(csv))}")
    elif json:
        _print_json({**source, "predictions": list(reported(rows))})
    else:
        for row in rows:
            ranked = (f"{printable(entry['class'])} {entry['probability']:.4f}" for entry in row["top"][: top or 1])
            if not row["error"]:
                print(f"{printable(row['path'])}: {', '.join(ranked)}", flush=True)


parity = App(
    name="parity", group=PROVE, help="Prove that two backends train alike, and say where they differ if they do not."
)
app.command(parity)


class Shown(TypedDict, total=False):
    """How `tlx parity` reports."""

    json: Json
    html: Annotated[Path, Parameter(help="Write the whole comparison as one self-contained page.")]


@parity.default
def prove(
    recipe: RecipeFile = None,
    /,
    *,
    reference: str = "torch",
    candidate: str = "oneflow",
    quick: bool = False,
    seeds: int = 0,
    margin: float = 0.005,
    keep: Path | None = None,
    overrides: Annotated[Fields | None, Parameter(name="*")] = None,
    shown: Annotated[Shown | None, Parameter(name="*")] = None,
) -> int:
    """Compare two backends on one recipe: exit code 0 equal, 1 different, 2 not comparable, 3 too few seeds to tell.

    The recipe is shortened to at least 40 small steps that cross each boundary of its strategy. Without a recipe and
    options: ResNet-18 on scanned digits, the head first, then everything.

    Parameters
    ----------
    reference:
        The backend that counts as right.
    candidate:
        The backend that is compared with it.
    quick:
        Smaller images, and without the stage that is advisory (P9).
    seeds:
        Train this many times on each by the whole recipe, and test whether their accuracies are equivalent.
    margin:
        The difference in accuracy that would matter.
    keep:
        Folder for the two captures, which are otherwise deleted.
    """
    import tlx

    options: Any = {**(overrides or {})}
    options.update(quick=quick, seeds=seeds, margin=margin, keep=keep)
    return _report(tlx.parity(recipe, reference=reference, candidate=candidate, **options), shown)


@parity.command
def capture(
    recipe: RecipeFile = None,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--output", "-o"])],
    reference: Path | None = None,
    quick: bool = False,
    overrides: Annotated[Fields | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Write down what one backend (--backend) does with a recipe, for `tlx parity compare`, here or elsewhere.

    Parameters
    ----------
    out:
        A new folder for the capture: a manifest, JSON lines and .npy files.
    reference:
        The capture of the other backend. With no recipe and no option but --backend, recipe, weights and batches come
        from it.
    quick:
        Smaller images, and without the stage that is advisory (P9).
    """
    from tlx.proof.prove import capture_recipe

    folder = capture_recipe(recipe, out, reference, quick, overrides or {})
    if json:
        _print_json({"capture": str(folder)})
    else:
        print(printable(str(folder)))


@parity.command(name="compare")
def compare_captures(
    reference: Path, candidate: Path, /, *, shown: Annotated[Shown | None, Parameter(name="*")] = None
) -> int:
    """Compare two captures; needs no framework.

    Parameters
    ----------
    reference:
        The capture that counts as right.
    candidate:
        The capture that is compared with it.
    """
    from tlx.proof.compare import compare

    return _report(compare(reference, candidate), shown)


@parity.command(name="selftest")
def check_the_checker(*, backend: str = "torch", json: Json = False) -> int:
    """Plant faults in a backend and find them all, and none where there is none: exit code 1 where that fails.

    Parameters
    ----------
    backend:
        The backend: torch, oneflow or, without any framework, loopback.
    """
    from tlx.backend import registry
    from tlx.proof.selftest import show

    return show(registry.load(backend), json=json)


def _report(report: Any, shown: Shown | None) -> int:
    from tlx.proof.report import to_html, to_json

    options = shown or {}
    if "html" in options:
        from tlx.atomic import write_atomic

        write_atomic(os.path.realpath(options["html"]), to_html(report).encode(errors="backslashreplace"))
    print(to_json(report) if options.get("json") else report)
    return int(report.verdict)


@app.command(group=LOOK_UP)
def strategies(
    strategy: str | None = None,
    /,
    *,
    model: str = "resnet18",
    backend: str = "torch",
    epochs: int = 3,
    json: Json = False,
) -> None:
    """Show what each strategy trains in a model, at which rates, before any training.

    Parameters
    ----------
    strategy:
        Show only this one, or the one of a recipe file (TOML).
    model:
        The architecture: see `tlx models`.
    backend:
        The backend that describes the model's parameters.
    epochs:
        Length of the run.
    """
    from tlx.runs.planning import tables
    from tlx.strategy import STRATEGIES

    if strategy is not None and strategy.endswith(".toml"):
        recipes = [Recipe.from_toml(strategy)]
    else:
        names = [strategy] if strategy else list(STRATEGIES)
        recipes = [Recipe(strategy=name, model=model, backend=backend, epochs=epochs) for name in names]
    shown = tables(recipes)
    if json:
        _print_json({"strategies": [table.to_dict() for table in shown]})
    else:
        print("\n\n".join(map(repr, shown)))


@app.command(group=LOOK_UP)
def models(pattern: str | None = None, /, *, json: Json = False) -> None:
    """List the architectures: parameters with 1,000 classes, smallest image, stages for the strategies.

    Parameters
    ----------
    pattern:
        Show only the models whose name holds this, or matches it as a shell pattern: `resnet`, `efficientnet_b?`. With
        the prefix of a library, such as `timm:vit*`, its models, with the size of their images and their weights.
    """
    from tlx.models.zoo import architectures
    from tlx.models.zoo import listed as listed_of_library
    from tlx.runs.display import print_table

    if (of_library := listed_of_library(pattern or "")) is not None:
        if json:
            _print_json({"models": of_library})
            return
        shown = ((entry["name"], str(entry["image_size"]), "yes" if entry["imagenet"] else "-") for entry in of_library)
        print_table(("model", "px", "weights"), shown, right=(1,))
        return
    listed = architectures(pattern)
    if json:
        _print_json({"models": [arch.to_dict() for arch in listed]})
        return
    rows = []
    for arch in listed:
        parameters = "" if arch.parameters is None else f"{arch.parameters / 1e6:.1f} M"
        rows.append((arch.name, parameters, str(arch.min_size), " ".join(name for name, _ in arch.stages)))
    print_table(("model", "parameters", "min px", "stages"), rows, right=(1, 2))


@app.command(group=LOOK_UP)
def backends(*, json: Json = False) -> None:
    """List the backends that are registered, with their versions or with what keeps them from working."""
    from tlx.backend import registry
    from tlx.runs.display import print_table

    entries = [entry for entry in registry.available() if not entry.hidden]
    if json:
        _print_json({"backends": [entry.to_dict() for entry in entries]})
        return
    rows = []
    for entry in entries:
        text = ", ".join(f"{name} {version}" for name, version in entry.versions.items())
        if entry.problem:
            text = f"{entry.problem.problem}. Fix: {entry.problem.fix}"
        rows.append((entry.name, entry.state, text))
    print_table(("backend", "state", "versions or problem"), rows)


@app.command(group=LOOK_UP)
def doctor(*, json: Json = False) -> int:
    """Check for each backend what works and what is missing, and name the one command that mends it."""
    from tlx.backend.doctor import main as diagnose

    return diagnose(json=json)


def _print_json(value: Any) -> None:
    """Print one object on one line, as the last line of stdout."""
    print(_as_json(value))


def _as_json(value: Any) -> str:
    return jsonlib.dumps(value, allow_nan=False)


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 a mistake in the input, 128 and more for a signal."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character, or a path that is no UTF-8
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:]
    command = partial(app, arguments, exit_on_error=False, print_error=False)
    sys.exit(exit_code(command, again=shlex.join(["tlx", *arguments])))
