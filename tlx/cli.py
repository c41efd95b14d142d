"""The command line: a thin layer over the Python interface. Errors are one line on stderr and exit code 2."""

from __future__ import annotations

import json as jsonlib
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

from cyclopts import App, CycloptsError, Parameter

from tlx.errors import Interrupted, TlxError
from tlx.recipe import Recipe

app = App(
    name="tlx",
    help="Transfer learning for computer vision in one call, with the same numbers on PyTorch and on OneFlow.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)


def _option(name: str) -> Any:
    """Return a recipe field as an option: its type, and its help with the default."""
    f = Recipe.__dataclass_fields__[name]
    hint = str if name in ("data", "classes", "stages", "strategy", "model") else get_type_hints(Recipe)[name]
    default = "" if f.default is None else f" [default: {f.default}]"
    choices = f" ({', '.join(f.metadata['choices'])})" if f.metadata["choices"] else ""
    return Annotated[hint, Parameter(help=f"{f.metadata['help']}{choices}{default}", show_default=False)]


# The options of `tlx run` are the recipe's fields, so they are made from it; only those given are passed on.
Fields = TypedDict("Fields", {f.name: _option(f.name) for f in fields(Recipe)}, total=False)  # type: ignore[misc]

Json = Annotated[bool, Parameter(help="Print one JSON object as the last line of stdout.", negative="")]


@app.command
def run(
    recipe: Annotated[Path | None, Parameter(help="A recipe file (TOML). Options replace its values.")] = None,
    /,
    *,
    resume: Annotated[
        Path | None, Parameter(help="Go on with an interrupted run; takes --backend, --device, --workers and the like.")
    ] = None,
    overrides: Annotated[Fields | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Train, keep the best epoch, evaluate once on the test part. Without arguments: the CIFAR-10 tutorial's job."""
    import tlx

    result = tlx.run(recipe, resume=resume, **(overrides or {}))
    if json:
        print(jsonlib.dumps(result.to_dict()))
    elif result.test_accuracy is not None:
        print(f"test accuracy {result.test_accuracy:.4f}  {result.run_dir}")
    else:
        print(result.run_dir)


@app.command
def evaluate(run_dir: Path, /, *, backend: str | None = None, json: Json = False) -> None:
    """Evaluate a finished run on its test part.

    Parameters
    ----------
    run_dir:
        A folder that `tlx run` wrote.
    backend:
        Evaluate on this stack instead of the one that trained.
    """
    import tlx

    found = tlx.evaluate(run_dir, backend)
    if json:
        print(jsonlib.dumps(found))
    else:
        print(
            f"test accuracy {found['test_accuracy']:.4f} over {found['images']} images on {found['backend']}; "
            f"the run recorded {found['recorded_accuracy']:.4f}"
        )


@app.command
def predict(
    run_dir: Path,
    /,
    *images: Path,
    backend: str | None = None,
    top: int | None = None,
    json: Json = False,
) -> None:
    """Classify photos with a finished run.

    Parameters
    ----------
    run_dir:
        A folder that `tlx run` wrote.
    images:
        Files, or folders of which every photo is taken.
    backend:
        Classify on this stack instead of the one that trained.
    top:
        Print so many classes for each image, the most probable first. [default: 1; with --json: up to 5]
    """
    import tlx

    found = tlx.predict(run_dir, images, backend, top)
    if json:
        print(jsonlib.dumps({"run_dir": str(run_dir), "predictions": found}))
        return
    for image in found:
        listed = ", ".join(f"{each['class']} {each['probability']:.4f}" for each in image["top"][: top or 1])
        print(f"{image['path']}: {listed}")


parity = App(name="parity", help="Prove that two stacks train alike, and say where they part if they do not.")
app.command(parity)


class Shown(TypedDict, total=False):
    """How `tlx parity` reports."""

    json: Json
    html: Annotated[Path, Parameter(help="Write the whole comparison as one self-contained page.")]


@parity.default
def prove(
    recipe: Annotated[Path | None, Parameter(help="A recipe file (TOML). Options replace its values.")] = None,
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
    """Compare two stacks on one recipe: exit code 0 equal, 1 different, 2 not comparable, 3 too few seeds to tell.

    The recipe is shortened to at least 40 small steps that cross each boundary of its strategy. Without a recipe and
    options: ResNet-18 on scanned digits, the head first, then everything.

    Parameters
    ----------
    reference:
        The stack that counts as right.
    candidate:
        The stack that is held against it.
    quick:
        Smaller images, and without the stage that is no gate (P9).
    seeds:
        Train so many times on each by the whole recipe, and test whether their accuracies are equivalent.
    margin:
        The difference in accuracy that would matter.
    keep:
        Folder for the two captures, which are else thrown away.
    """
    import tlx

    given: Any = {**(overrides or {})}
    given.update(quick=quick, seeds=seeds, margin=margin, keep=keep)
    return _report(tlx.parity(recipe, reference=reference, candidate=candidate, **given), shown)


@parity.command
def capture(
    recipe: Annotated[Path | None, Parameter(help="A recipe file (TOML). Options replace its values.")] = None,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--output", "-o"])],
    plan: Path | None = None,
    quick: bool = False,
    overrides: Annotated[Fields | None, Parameter(name="*")] = None,
) -> None:
    """Write down what one stack (--backend) does with a recipe, for `tlx parity compare`, here or on another machine.

    Parameters
    ----------
    out:
        A new folder for the capture: a manifest, JSON lines and .npy files.
    plan:
        The other stack's capture. Without recipe and options but --backend, recipe, weights and batches come from it.
    quick:
        Smaller images, and without the stage that is no gate (P9).
    """
    from tlx.proof.prove import capture_recipe

    print(capture_recipe(recipe, out, plan, quick, overrides or {}))


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
        The capture that is held against it.
    """
    from tlx.proof.compare import compare

    return _report(compare(reference, candidate), shown)


@parity.command(name="selftest")
def check_the_checker(*, backend: str = "torch", json: Json = False) -> int:
    """Plant faults in a stack and find them all, and none where there is none: exit code 1 where that fails.

    Parameters
    ----------
    backend:
        The stack: torch, oneflow or, without any framework, loopback.
    """
    from tlx.backend import registry
    from tlx.proof.selftest import show

    return show(registry.load(backend), json=json)


def _report(report: Any, shown: Shown | None) -> int:
    from tlx.proof.report import to_html, to_json

    options = shown or {}
    if "html" in options:
        from tlx.atomic import write_atomic

        write_atomic(options["html"], to_html(report).encode())
    print(to_json(report) if options.get("json") else report)
    return int(report.verdict)


@app.command
def strategies(
    strategy: str | None = None,
    /,
    *,
    model: str = "resnet18",
    backend: str = "torch",
    epochs: int = 3,
    classes: int = 10,
) -> None:
    """Show what each strategy trains in a model, at which rates, before any training.

    Parameters
    ----------
    strategy:
        Show only this one, or the one of a recipe file (TOML).
    model:
        The architecture: see `tlx models`.
    backend:
        The stack that describes the model's parameters.
    epochs:
        Length of the run.
    classes:
        Outputs of the new head.
    """
    from rich.console import Console

    from tlx.backend import ModelSpec, registry
    from tlx.models.zoo import architecture
    from tlx.runs.display import group_table
    from tlx.strategy.built_in import STRATEGIES
    from tlx.strategy.schedule import Schedule

    console = Console()
    if strategy is not None and strategy.endswith(".toml"):
        recipes = [Recipe.from_toml(strategy)]
    else:
        names = [strategy] if strategy else list(STRATEGIES)
        recipes = [Recipe(strategy=name, model=model, epochs=epochs) for name in names]
    arch = architecture(recipes[0].model_name)
    stack = registry.load(backend)
    specs = stack.param_specs(stack.build(ModelSpec(arch.name, classes, arch.head, arch.options), "cpu", "float32"))
    for recipe in recipes:
        schedule = Schedule(recipe.schedule, recipe.epochs, 1)
        bound = recipe.bound_strategy(arch).bind(
            specs, arch, schedule, recipe.weight_decay, recipe.frozen_norm, recipe.decay_on
        )
        console.print(group_table(recipe.strategy_name, bound.table()))
        if isinstance(recipe.strategy, str):
            custom = STRATEGIES[recipe.strategy]
            console.print(f"{custom.summary}; weights {custom.weights}\n")


@app.command
def models() -> None:
    """List the architectures: head, stages, and the published ImageNet checkpoint."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from tlx.models.zoo import ARCHITECTURES

    table = Table("model", "head", "stages", "ImageNet weights", box=SIMPLE_HEAD)
    table.columns[-1].overflow = "fold"
    for arch in ARCHITECTURES.values():
        table.add_row(arch.name, arch.head, " ".join(name for name, _ in arch.stages), arch.imagenet or "-")
    Console().print(table)


@app.command
def backends() -> None:
    """List the backends that are registered, with their versions or with what keeps them from working."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from tlx.backend import registry

    table = Table("backend", "state", "versions or problem", box=SIMPLE_HEAD)
    for entry in registry.available():
        state = "not installed" if not entry.installed else "broken" if entry.problem else "installed"
        found = ", ".join(f"{name} {version}" for name, version in entry.versions.items())
        if entry.problem:
            found = f"{entry.problem.problem}. Fix: {entry.problem.fix}"
        table.add_row(entry.name, state, found)
    Console().print(table)


@app.command
def doctor() -> int:
    """Check for each backend what works, what is missing, and name the one command that mends it."""
    from tlx.backend.doctor import main as diagnose

    return diagnose()


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 a mistake in the input, 130 stopped by Ctrl-C."""
    try:
        code = app(exit_on_error=False, print_error=False)
        sys.exit(code if isinstance(code, int) else 0)
    except TlxError as error:
        print(f"tlx: {error}", file=sys.stderr)
    except CycloptsError as error:
        print(f"tlx: {' '.join(str(error).split())} See `tlx --help`.", file=sys.stderr)
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt as stop:
        print(f"tlx: {str(stop) or 'interrupted'}", file=sys.stderr)
        sys.exit(128 + (stop.signum if isinstance(stop, Interrupted) else signal.SIGINT))
    sys.exit(2)
