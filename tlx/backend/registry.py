"""Find, inspect and load backends: packages that offer an entry point in the group `tlx.backends`.

An entry point names a light module. Importing it must not import its framework; it offers

- ``DISTRIBUTIONS``: the framework's distributions, the one that decides whether it is installed first;
- ``check() -> list[Check]``: what the backend needs and what is wrong with it, without importing the framework;
- ``create() -> Backend``: imports the framework and returns the adapter;
- ``smoke()``: raises if the framework cannot multiply two matrices, and otherwise may return a line about how it
  computes (`tlx doctor` runs it in a process of its own);
- ``exporter() -> tlx.backend.export.Exporter``: what writes files for the framework's own loaders, without importing it
  before it has to;
- ``HIDDEN = True`` if only tests use the backend: it can be loaded, and listings leave it out.

`exporter` may be absent, and without a framework `DISTRIBUTIONS` and `smoke` too; `HIDDEN` is False by default. A
module that brings models of its own registers them with `tlx.models.register`. Nothing here ever falls back to another
backend.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from tlx.backend.threads import settle_threads
from tlx.errors import BackendError, BackendUnavailable, TlxError, closest, one_line
from tlx.signals import deferred

if TYPE_CHECKING:
    from tlx.backend import Backend

GROUP = "tlx.backends"
_computes_here: set[str] = set()  # backends whose framework has threads in this process
_computed_before_fork: set[str] = set()  # and in a process of which this one is a copy, without the threads


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a backend needs, and what was found. `problem` is what is wrong, and `fix` the command for it."""

    what: str
    found: str
    problem: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered backend, as its light module describes it: no framework was imported."""

    name: str
    module: str
    installed: bool
    versions: Mapping[str, str]  # of the framework's distributions that are installed
    checks: tuple[Check, ...]
    hidden: bool = False  # only tests use it

    @property
    def problem(self) -> Check | None:
        """The first thing that keeps the backend from working, or None."""
        return next((check for check in self.checks if check.problem), None)

    @property
    def state(self) -> str:
        """``"installed"``, ``"broken"`` or ``"not installed"``, by the checks alone."""
        return "not installed" if not self.installed else "broken" if self.problem else "installed"

    def to_dict(self) -> dict[str, Any]:
        """Return what a listing shows, as plain values."""
        problem = self.problem
        return {
            "name": self.name,
            "state": self.state,
            "versions": dict(self.versions),
            "problem": problem.problem if problem else None,
            "fix": problem.fix if problem else None,
        }


def available() -> list[Entry]:
    """Describe every registered backend, sorted by name. Broken ones are listed with their problem; never raises."""
    return [_describe(name, modules) for name, modules in sorted(_modules().items())]


@cache
def load(name: str) -> Backend:
    """Import the backend `name` and return its one instance.

    Raises:
        BackendUnavailable: it is not installed, or does not import.
        BackendError: it is unknown, does not have the protocol's methods, or was loaded before this process was forked.
    """
    modules = _modules()
    if not modules:
        raise BackendUnavailable("No backend is registered, because tlx itself is not installed", fix="make setup")
    if name not in modules:
        raise BackendError(f"Unknown backend {name!r}.{closest(name, [e.name for e in available() if not e.hidden])}")
    entry = _describe(name, modules[name])
    if entry.problem:
        raise BackendUnavailable(f"Backend {name!r}: {entry.problem.problem}", fix=entry.problem.fix)
    if name in _computed_before_fork:
        problem = f"this process was forked after backend {name!r} had begun to compute, and would wait for its threads"
        raise BackendError(problem, fix="start it by multiprocessing.get_context('spawn')")
    settle_threads()
    try:
        with deferred():
            backend: Backend = import_module(entry.module).create()
    except TlxError:
        raise
    except Exception as error:
        cause = one_line(f"{type(error).__name__}: {error}")
        raise BackendUnavailable(f"Backend {name!r} does not load: {cause}", fix=reinstall(entry)) from error
    if entry.versions.keys() - {"numpy"}:  # which survives a fork
        _computes_here.add(name)
    if differing := differences(backend):
        cause = f"does not follow tlx.backend.Backend: {'; '.join(differing)}"
        raise BackendError(f"Backend {name!r} {cause}", fix=f"upgrade the package that offers {entry.module}")
    return backend


def exporter(name: str) -> Any:
    """Return the `tlx.backend.export.Exporter` of a backend, whose framework may be missing; None: it has none."""
    modules = _modules().get(name, [])
    offered = getattr(import_module(modules[0]), "exporter", None) if len(modules) == 1 else None
    return None if offered is None else offered()


def _after_fork() -> None:
    _computed_before_fork.update(_computes_here)
    load.cache_clear()


os.register_at_fork(after_in_child=_after_fork)


def differences(backend: object) -> list[str]:
    """List where an object departs from the Backend protocol: attributes, methods, and their parameters' names."""
    from tlx.backend import Backend

    departures = [] if isinstance(getattr(backend, "name", None), str) else ["name: expected a string"]
    for name, method in vars(Backend).items():
        if name.startswith("_") or not callable(method):
            continue
        expected = list(inspect.signature(method).parameters.values())[1:]
        actual = getattr(backend, name, None)
        if not callable(actual):
            departures.append(f"{name} is missing")
        elif not _accepts(list(inspect.signature(actual).parameters.values()), expected):
            shown = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in expected)
            departures.append(f"{name}{_names(inspect.signature(actual))} should be {name}({shown})")
    return departures


def installed(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed, from their metadata."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def requirement(name: str, extra: str) -> str:
    """Return what tlx's own extra requires of the distribution `name`, such as ``"numpy<2"``."""
    for line in metadata.requires("tlx") or []:
        wanted, _, marker = line.partition(";")
        if re.split(r"[^\w.-]", wanted, maxsplit=1)[0] == name and f"'{extra}'" in marker.replace('"', "'"):
            return wanted.strip()
    raise KeyError(f"tlx[{extra}] does not ask for {name}")


def pip_install(*arguments: str) -> str:
    """Return the shell command that installs into the running environment, whether pip or uv made it."""
    python = os.path.relpath(sys.executable)
    python = sys.executable if python.startswith("..") else python
    command = [python, "-m", "pip", "install"] if installed(["pip"]) else ["uv", "pip", "install", "--python", python]
    return shlex.join([*command, *arguments])


def reinstall(entry: Entry) -> str:
    """Return the shell command that installs a framework's own files again and leaves everything else as it is."""
    wanted = [f"{name}=={version}" for name, version in entry.versions.items()][:1]
    if not wanted:
        return f"reinstall the package that offers {entry.module}"
    return pip_install("--force-reinstall", "--no-deps", *wanted)


def _modules() -> dict[str, list[str]]:
    """Map each backend's name to the light modules offered for it: one, unless two packages clash."""
    modules: dict[str, list[str]] = {}
    for point in metadata.entry_points(group=GROUP):
        offered = modules.setdefault(point.name, [])
        if point.value not in offered:
            offered.append(point.value)
    return modules


def _describe(name: str, modules: list[str]) -> Entry:
    module_name = " and ".join(sorted(modules))
    if len(modules) > 1:
        check = Check("entry point", module_name, f"several packages offer it: {module_name}", "uninstall all but one")
        return Entry(name, module_name, installed=True, versions={}, checks=(check,))
    try:
        module = import_module(module_name)
        distributions = tuple(getattr(module, "DISTRIBUTIONS", ()))
        versions = installed(distributions)
        checks = tuple(module.check())
    except Exception as error:
        cause = one_line(f"{type(error).__name__}: {error}")
        problem = f"its module {module_name} is broken ({cause})"
        check = Check("module", module_name, problem, "reinstall the package that offers it")
        return Entry(name, module_name, installed=True, versions={}, checks=(check,))
    is_installed = not distributions or distributions[0] in versions
    hidden = bool(getattr(module, "HIDDEN", False))
    return Entry(name, module_name, installed=is_installed, versions=versions, checks=checks, hidden=hidden)


def _accepts(actual: list[inspect.Parameter], expected: list[inspect.Parameter]) -> bool:
    """Whether a method takes the protocol's arguments by position and by name; it may have further optional ones."""
    shared = actual[: len(expected)]
    return (
        [(p.name, p.default) for p in shared] == [(p.name, p.default) for p in expected]
        and all(p.kind is p.POSITIONAL_OR_KEYWORD for p in shared)
        and all(
            p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in actual[len(expected) :]
        )
    )


def _names(signature: inspect.Signature) -> str:
    return "(" + ", ".join(signature.parameters) + ")"
