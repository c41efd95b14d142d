"""Look up: what there is to choose from, and whether it works."""

from __future__ import annotations

import sys
from pathlib import Path
from shutil import get_terminal_size

from tlx.cli.options import Json, print_json
from tlx.errors import printable
from tlx.recipe import Recipe


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
        print_json({"strategies": [table.to_dict() for table in shown]})
    else:
        print("\n\n".join(map(repr, shown)))


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
            print_json({"models": of_library})
            return
        shown = ((entry["name"], str(entry["image_size"]), "yes" if entry["imagenet"] else "-") for entry in of_library)
        print_table(("model", "px", "weights"), shown, right=(1,))
        return
    listed = architectures(pattern)
    if json:
        print_json({"models": [arch.to_dict() for arch in listed]})
        return
    rows = []
    for arch in listed:
        parameters = "" if arch.parameters is None else f"{arch.parameters / 1e6:.1f} M"
        rows.append((arch.name, parameters, str(arch.min_size), " ".join(name for name, _ in arch.stages)))
    print_table(("model", "parameters", "min px", "stages"), rows, right=(1, 2))


def backends(*, json: Json = False) -> None:
    """List the backends that are registered, with their versions or with what keeps them from working."""
    from tlx.backend import registry
    from tlx.runs.display import print_table

    entries = [entry for entry in registry.available() if not entry.hidden]
    if json:
        print_json({"backends": [entry.to_dict() for entry in entries]})
        return
    rows = []
    for entry in entries:
        text = ", ".join(f"{name} {version}" for name, version in entry.versions.items())
        if entry.problem:
            text = f"{entry.problem.problem}. Fix: {entry.problem.fix}"
        rows.append((entry.name, entry.state, text))
    print_table(("backend", "state", "versions or problem"), rows)


def runs(folder: Path = Path("runs"), /, *, json: Json = False) -> None:
    """List the runs below a folder, the highest validation accuracy first, with the recipe fields in which they differ.

    Parameters
    ----------
    folder:
        The folder; links to other folders are not followed.
    """
    from tlx.runs.listing import list_runs, table

    entries = list_runs(folder)
    if json:
        print_json({"folder": str(folder), "runs": entries})
    elif not entries:
        print(f"no runs below {printable(str(folder))}")
    else:
        print(table(entries, get_terminal_size().columns if sys.stdout.isatty() else None))


def doctor(*, json: Json = False) -> int:
    """Check for each backend what works and what is missing, and name the one command that mends it."""
    from tlx.backend.doctor import main as diagnose

    return diagnose(json=json)
