"""Which loggers there are, by their names. No client is imported here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module, metadata
from importlib.util import find_spec
from types import ModuleType

from tlx.errors import BackendUnavailable, RecipeError, closest, one_line, shown

GROUP = "tlx.loggers"
OWN = {name: f"tlx.loggers.{name}" for name in ("tensorboard", "wandb", "mlflow", "trackio")}


def modules() -> dict[str, str]:
    """Return the light module of each logger, by its name: tlx's own, and those that packages offer."""
    return {**{point.name: point.value for point in metadata.entry_points(group=GROUP)}, **OWN}


def check_names(names: Iterable[str]) -> None:
    """Raise RecipeError, with the nearest valid name, where there is no logger of a name."""
    for name in names:
        if name not in OWN and name not in (known := modules()):
            raise RecipeError(f"log is {shown(name)}, which is no logger.{closest(name, known)}")


def load(name: str) -> ModuleType:
    """Return the light module of a logger.

    Raises:
        BackendUnavailable: its client is not installed, or the module itself does not import.
    """
    module_name = modules()[name]
    try:
        module = import_module(module_name)
        needs = getattr(module, "NEEDS", "")
        spec = find_spec(needs) if needs else None
        missing = bool(needs) and (spec is None or spec.origin is None)  # such as of a folder "wandb" that lies here
    except Exception as error:  # whatever a package of somebody else's raises
        cause = one_line(f"{type(error).__name__}: {error}")
        problem = f"log {name!r}: its module {module_name} is broken ({cause})"
        raise BackendUnavailable(problem, fix="reinstall the package that offers it") from error
    if missing:
        fix = getattr(module, "INSTALL", f"pip install {needs}")
        raise BackendUnavailable(f"log {name!r} needs {needs}, which is not installed", fix=f"{fix}; or leave log out")
    return module
