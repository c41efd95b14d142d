"""The core is framework-neutral, and importing it costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tlx

CORE = Path(tlx.__file__).parent
FRAMEWORKS = {"torch", "torchvision", "oneflow", "flowvision", "timm"}


def imported_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_tlx_is_light() -> None:
    assert not imported_by("import tlx") & {*FRAMEWORKS, "numpy", "rich", "PIL", "sklearn", "cyclopts"}


def test_help_imports_no_framework() -> None:
    code = (
        "import tlx.cli\nsys.argv = ['tlx', '--help']\ntry: tlx.cli.main()\nexcept SystemExit as e: assert e.code == 0"
    )
    assert not imported_by(code) & {*FRAMEWORKS, "sklearn"}


def test_a_whole_run_on_the_loopback_imports_no_framework(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    fields = (
        "backend='loopback', model='tiny-mlp', weights='none', data='digits', image_size=8, limit_train=40, epochs=1"
    )
    code = f"import tlx\ntlx.run({fields}, batch_size=20, limit_test=20, val_fraction=0, quiet=True, out={out!r})"
    assert not imported_by(code) & FRAMEWORKS


@pytest.mark.parametrize("file", sorted(CORE.rglob("*.py")), ids=lambda file: str(file.relative_to(CORE)))
def test_no_file_of_the_core_imports_a_framework(file: Path) -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert not names & FRAMEWORKS


# Whoever changes this tuple changes what scripts of users rely on, and says so in CHANGELOG.md.
PUBLIC = (
    *("Advice", "Check", "Comparison", "Data", "Embedded", "EmbeddingMap", "Embeddings", "Evaluation", "Explanation"),
    *("Exported", "FoundLr", "Group", "GroupTable", "HistoryEntry", "Phase", "Prediction", "Predictions", "Pushed"),
    *(
        "Recipe",
        "Result",
        "RunEntry",
        "Similar",
        "Strategy",
        "TlxError",
        "__version__",
        "advise",
        "check",
        "compare",
        "draw",
    ),
    *("embed", "errors", "evaluate", "explain", "export", "find_lr", "list_runs", "load_data", "load_embeddings"),
    *("load_model", "load_predictions", "mapping", "model_card", "parity", "plan", "predict", "pull", "push"),
    *("report", "run", "serve", "similar", "tsne"),
)


def test_the_public_names_are_these() -> None:
    assert tuple(tlx.__all__) == PUBLIC
    assert tuple(dir(tlx)) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_resolves_to_what_is_called_so(name: str) -> None:
    value = getattr(tlx, name)
    assert isinstance(value, str) or value.__name__.rpartition(".")[2] == name


def test_type_checkers_see_every_public_name() -> None:
    """They read the imports under TYPE_CHECKING, not the table from which names are imported on first use."""
    tree = ast.parse(Path(tlx.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    imported = {alias.asname or alias.name for node in imports for alias in node.names}
    declared = {ast.unparse(node.target) for node in block.body if isinstance(node, ast.AnnAssign)}
    assert imported | declared == set(PUBLIC)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = tlx.runn
