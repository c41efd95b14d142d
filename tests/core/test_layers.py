"""The folders of tlx are layers: imports go down only, and no file needs itself, not even through others."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import tlx

CORE = Path(tlx.__file__).parent
# From the bottom up. Files and folders of one line are siblings, which do not import each other.
LAYERS = (
    ("errors", "files", "rng", "signals", "streams"),
    ("atomic", "console", "leases"),
    ("download", "loggers", "manifest", "processes"),
    ("backend",),
    ("data", "models", "conformance"),
    ("strategy",),
    ("recipe_fields",),
    ("recipe_schema",),
    ("recipe",),
    ("training",),
    ("runs",),
    ("audit", "comparison", "proof"),
    ("cli",),
    ("__main__",),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
# These two only re-export what others import from them: the public names, and an import path of third parties.
RE_EXPORTS = ("tlx", "tlx.registry")


@dataclass(frozen=True, slots=True)
class Import:
    """One import of a module of tlx. `runtime` is False under `if TYPE_CHECKING`, which never runs."""

    importer: str
    imported: str
    line: int
    runtime: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def sources(root: Path = CORE) -> dict[str, str]:
    """The text of each module under a package's folder, by the module's name."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return modules


def imports(modules: Mapping[str, str], names: Collection[str] | None = None) -> list[Import]:
    """Every import that these modules make of those with these names, inside functions too. Default: of each other."""
    return [
        Import(importer, imported, line, runtime)
        for importer, text in modules.items()
        for imported, line, runtime in walk(ast.parse(text), modules if names is None else names, importer)
    ]


def walk(
    node: ast.AST, modules: Collection[str], importer: str, runtime: bool = True
) -> Iterator[tuple[str, int, bool]]:
    """Yield the modules that a piece of code imports. A parent package counts only where it is named."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name in modules:
                yield alias.name, node.lineno, runtime
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{importer}:{node.lineno} is a relative import, which this test cannot place"
        base = node.module or ""
        for alias in node.names:
            if f"{base}.{alias.name}" in modules:
                yield f"{base}.{alias.name}", node.lineno, runtime
            elif base in modules:
                yield base, node.lineno, runtime
    elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for statement in node.body:
            yield from walk(statement, modules, importer, False)
        for statement in node.orelse:
            yield from walk(statement, modules, importer, runtime)
    else:
        for child in ast.iter_child_nodes(node):
            yield from walk(child, modules, importer, runtime)


def against_the_order(edges: list[Import]) -> list[str]:
    """The imports that go up, or sideways from one folder to a sibling."""
    wrong = []
    for edge in edges:
        if edge.importer in RE_EXPORTS:
            continue
        if edge.imported in RE_EXPORTS:
            # The command line uses the public names, as its users' scripts do.
            if not edge.importer.startswith("tlx.cli"):
                wrong.append(str(edge))
            continue
        importer, imported = edge.importer.split(".")[1], edge.imported.split(".")[1]
        if importer != imported and LEVELS[imported] >= LEVELS[importer]:
            wrong.append(str(edge))
    return wrong


def circles(edges: list[Import]) -> list[str]:
    """One path for each circle among imports that run, from a module back to itself."""
    graph: dict[str, list[str]] = {}
    for edge in edges:
        if edge.runtime and edge.importer not in RE_EXPORTS and edge.imported not in RE_EXPORTS:
            graph.setdefault(edge.importer, []).append(edge.imported)
    paths: list[str] = []
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circle = " -> ".join([*path[path.index(module) :], module])
            if circle not in paths:
                paths.append(circle)
        elif module not in finished:
            for imported in graph.get(module, ()):
                visit(imported, [*path, module])
            finished.add(module)

    for module in graph:
        visit(module, [])
    return paths


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    return sources()


@pytest.fixture(scope="module")
def edges(modules: dict[str, str]) -> list[Import]:
    return imports(modules)


def test_every_file_has_its_layer(modules: dict[str, str]) -> None:
    names = {name.split(".")[1] for name in modules if name not in RE_EXPORTS}
    assert names == set(LEVELS)


def test_no_import_goes_against_the_order(edges: list[Import]) -> None:
    assert len(edges) > 200
    assert against_the_order(edges) == []


def test_no_file_needs_itself(edges: list[Import]) -> None:
    assert circles(edges) == []


@pytest.mark.parametrize(
    ("module", "line", "wrong"),
    [
        ("tlx.data.images", "from tlx.recipe import Recipe", "tlx.data.images:1 imports tlx.recipe"),
        ("tlx.data.images", "import tlx.models.zoo", "tlx.data.images:1 imports tlx.models.zoo"),
        ("tlx.rng", "from tlx.errors import TlxError", "tlx.rng:1 imports tlx.errors"),
        ("tlx.runs.job", "def f():\n    from tlx import cli", "tlx.runs.job:2 imports tlx.cli"),
        ("tlx.recipe", "if TYPE_CHECKING:\n    from tlx.runs import job", "tlx.recipe:2 imports tlx.runs.job"),
        ("tlx.proof.prove", "import tlx", "tlx.proof.prove:1 imports tlx"),
    ],
)
def test_a_planted_import_against_the_order_is_found(
    module: str, line: str, wrong: str, modules: dict[str, str], edges: list[Import]
) -> None:
    planted = imports({module: line}, modules)
    assert [text for text in against_the_order([*edges, *planted]) if text not in against_the_order(edges)] == [wrong]


@pytest.mark.parametrize("again", ["from tlx.errors import x", "def f():\n    from tlx import errors"])
def test_a_planted_circle_is_found(again: str) -> None:
    modules = {"tlx": "", "tlx.errors": "from tlx.atomic import x", "tlx.atomic": "import tlx.rng", "tlx.rng": again}
    assert circles(imports(modules)) == ["tlx.errors -> tlx.atomic -> tlx.rng -> tlx.errors"]
    modules["tlx.rng"] = "if TYPE_CHECKING:\n    from tlx.errors import x"
    assert circles(imports(modules)) == []
