"""Every block of code in the documents runs, and prints what the document shows.

A fenced block of python, bash, console or toml is code. A comment before it says how a test runs it, unless it is run
as it stands:

    <!-- run with: epochs=1 data=digits -->   with these recipe fields replaced, to be small
    <!-- run as a test file -->               by pytest
    <!-- not run: REASON -->                  parsed only, for a reason

A block of text after `<!-- output -->` is what the block before it prints; after `<!-- output of one machine -->` only
the numbers may differ. A last line `...` stands for the rest.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tlx
from tlx import cli
from tlx.data import KINDS, OPS
from tlx.strategy import STRATEGIES

ROOT = Path(__file__).parents[2]
CODE = ("python", "bash", "console", "toml")
FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=ticks) *$", re.M | re.S)
COMMENT = re.compile(r"<!--\s*(?P<text>(?:(?!-->).)*?)\s*-->\s*\Z", re.S)
NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?(?:\+cu\d+)?")

# Blocks that are parsed only; each says why, before it. One more is a decision, so it is counted here.
NOT_RUN = {
    "README.md": 2,
    "CONTRIBUTING.md": 3,
    "backends.md": 3,
    "advise.md": 2,
    "distributed.md": 3,
    "capture.md": 1,
    "embeddings.md": 3,
    "hub.md": 3,
    "logging.md": 1,
    "compare.md": 3,
    "check.md": 2,
    "parity.md": 4,
    "results.md": 3,
    "runs.md": 1,
    "serve.md": 2,
    "speed.md": 2,
    "timm.md": 1,
    "strategies.md": 1,
}


@dataclass(frozen=True, slots=True)
class Snippet:
    """A block of code in a document."""

    file: str
    line: int
    language: str
    code: str
    skipped: str = ""  # why it is not run
    fields: dict[str, str] = field(default_factory=dict)  # recipe fields that a test replaces
    is_test: bool = False  # whether pytest runs it
    output: str | None = None
    exact: bool = True  # whether the numbers in the output count

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def documents() -> list[Path]:
    """Return every document that has code for a reader."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(file: Path) -> list[Snippet]:
    """Return the blocks of code of a document, in their order."""
    text = file.read_text(encoding="utf-8")
    blocks: list[Snippet] = []
    for match in FENCE.finditer(text):
        language = match["info"].strip()
        line = text.count("\n", 0, match.start()) + 1
        comment = COMMENT.search(text[: match.start()])
        note = comment["text"] if comment else ""
        if note.startswith("output"):
            assert blocks and language == "text", f"{file.name}:{line}: an output belongs to the block before it"
            before = blocks.pop()
            exact = note == "output"
            assert exact or note == "output of one machine", f"{file.name}:{line}: {note!r}"
            blocks.append(replace(before, output=match["body"], exact=exact))
        elif language in CODE:
            kind, _, rest = note.partition(":")
            fields = dict(pair.split("=", 1) for pair in rest.split()) if kind == "run with" else {}
            skipped = rest.strip() if kind == "not run" else ""
            is_test = note == "run as a test file"
            blocks.append(Snippet(file.name, line, language, match["body"], skipped, fields, is_test))
        else:
            # A block without a language would go unnoticed.
            assert language == "text" or language.startswith("{"), f"{file.name}:{line}: {language!r}"
    return blocks


def differs(snippet: Snippet, printed: str) -> str:
    """Return how what a snippet printed differs from what the document shows, or nothing."""
    shown, actual = _lines(snippet.output or ""), _lines(printed)
    if shown and shown[-1] == "...":
        shown, actual = shown[:-1], actual[: len(shown) - 1]
    if not snippet.exact:
        shown, actual = ([NUMBER.sub("#", line) for line in lines] for lines in (shown, actual))
    if shown == actual:
        return ""
    return "\n".join(["the document shows", *shown, "and it prints", *actual])


def _lines(text: str) -> list[str]:
    """Return the lines that hold something, with runs of blanks as one: tables align themselves by their numbers."""
    lines = (" ".join(line.replace("─", "").split()) for line in text.splitlines())
    return [line for line in lines if line]


ALL = [snippet for file in documents() for snippet in snippets(file)]
LONG = ("training.md", "strategies.md", "backends.md", "index.md")  # much of which the other documents run too
RUN = list(dict.fromkeys(snippet.file for snippet in ALL if not snippet.skipped))


def photo(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has: photos in a folder with parts and in one without, a list of photos, and arrays."""
    rng = np.random.default_rng(0)
    for name in ("ants", "bees"):
        for i in range(12):
            photo(tmp_path / "my_photos" / "train" / name / f"{i}.jpg", rng)
        for i in range(4):
            photo(tmp_path / "my_photos" / "test" / name / f"{i}.jpg", rng)
            photo(tmp_path / "more_photos" / name / f"{i}.jpg", rng)
    shutil.make_archive(str(tmp_path / "my_photos"), "zip", tmp_path, "my_photos")
    photo(tmp_path / "photo.jpg", rng)
    rows = [f"more_photos/{name}/{i}.jpg,{name}" for name in ("ants", "bees") for i in range(4)]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label", *rows]) + "\n", encoding="utf-8")
    images = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "digits.npz", images=images, labels=np.arange(60) % 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture(autouse=True)
def same_tables() -> Iterator[None]:
    """Forget the strategies, ops and data sources that a document registers."""
    tables: tuple[dict[str, Any], ...] = (STRATEGIES, OPS, KINDS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.slow
@pytest.mark.needs("torch", "oneflow")
@pytest.mark.parametrize(
    "document", [pytest.param(name, marks=pytest.mark.thorough) if name in LONG else name for name in RUN]
)
def test_the_code_of_a_document_runs(document: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "snippet"}  # a document's blocks share their names, as in a notebook
    for snippet in ALL:
        if snippet.file != document or snippet.skipped:
            continue
        with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
            patch.setattr(tlx, "run", with_fields(tlx.run, snippet))
            try:
                if snippet.is_test:
                    file = folder / "test_snippet.py"
                    file.write_text(snippet.code, encoding="utf-8")
                    shell(f"{sys.executable} -m pytest -q -p no:cacheprovider {file}", snippet)
                elif snippet.language == "python":
                    exec(compile(snippet.code, str(snippet), "exec"), names)
                elif snippet.language == "toml":
                    file = folder / "snippet.toml"
                    file.write_text(snippet.code, encoding="utf-8")
                    tlx.Recipe.from_toml(file)
                else:
                    for command in commands(snippet):
                        shell(command, snippet)
            except Exception as error:
                pytest.fail(f"{snippet}: {type(error).__name__}: {error}\n{printed.getvalue()}")
        if snippet.output is not None:
            assert not (why := differs(snippet, printed.getvalue())), f"{snippet}: {why}"


def with_fields(run: Callable[..., Any], snippet: Snippet) -> Callable[..., Any]:
    """Return `tlx.run` with the fields that a snippet's comment replaces."""
    values = {name: literal(text) for name, text in snippet.fields.items()}
    return lambda *args, **fields: run(*args, **{**fields, **values})


def literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def commands(snippet: Snippet) -> list[str]:
    """Return the commands of a block, with continued lines joined."""
    lines = snippet.code.replace("\\\n", " ").splitlines()
    if snippet.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def shell(command: str, snippet: Snippet) -> None:
    """Run a command: one of tlx in this process, which spares it the start, any other in a shell."""
    words = shlex.split(command, comments=True)
    if words[0] != "tlx":
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
        print(done.stdout)
        return
    if words[1] in ("run", "compare", "find-lr"):
        for name, value in snippet.fields.items():
            option = f"--{name.replace('_', '-')}"
            if option in words:
                at = words.index(option)
                del words[at : at + 2]
            words += [option, value]
    code = cli.app(words[1:], exit_on_error=False, print_error=False, result_action="return_value")
    assert not code, f"`{command}` ended with exit code {code}"


@pytest.mark.parametrize("snippet", [s for s in ALL if s.skipped], ids=str)
def test_code_that_is_not_run_is_right_as_far_as_it_can_be_read(snippet: Snippet) -> None:
    if snippet.language == "python":
        compile(snippet.code, str(snippet), "exec")
    elif snippet.language == "toml":
        toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
        toml.loads(snippet.code)
    else:
        subprocess.run(["bash", "-n"], input=snippet.code, text=True, check=True)
        for command in commands(snippet):
            words = shlex.split(command, comments=True)
            if words[0] == "tlx":
                cli.app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_code_that_is_not_run_is_counted() -> None:
    assert Counter(snippet.file for snippet in ALL if snippet.skipped) == NOT_RUN


def test_a_wrong_output_is_noticed() -> None:
    shown = Snippet("a.md", 1, "python", "", output="a 1.50\n...\n", exact=False)
    assert not differs(shown, "a  1.49\nmore\n")
    assert differs(shown, "b  1.49\nmore\n")
    assert differs(Snippet("a.md", 1, "python", "", output="a 1.50\n"), "a 1.49\n")
