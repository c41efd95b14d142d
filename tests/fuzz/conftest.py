"""Generated hostile input: a few of each target in the test suite, and 20,000 in all with `make fuzz`.

`make fuzz` writes how many inputs of each target ended how to docs/fuzz.md. An input that once failed stays as an
`@example` of its test.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import tlx
from support.finished_runs import FIELDS
from support.hostile import INPUTS, outcomes, snapshot
from tlx.backend import registry
from tlx.errors import TlxError

HEAD = f"""\
# Hostile input

Written by `make fuzz`, with TLX_FUZZ={INPUTS}: how many generated inputs of each target ended with exit code 0, as they
are valid, and with 2, as one line of error. There is no third column: a traceback, a hang, an execution or a changed
file fails the target's test in tests/fuzz.

| target | inputs | exit code 0 | exit code 2 |
|---|--:|--:|--:|
"""


@pytest.fixture(scope="session", autouse=True)
def frameworks() -> None:
    """Import what is installed before anything is timed: that takes seconds, and PyTorch calls ldconfig as it loads."""
    for entry in registry.available():
        with contextlib.suppress(TlxError):
            registry.load(entry.name)


@pytest.fixture(autouse=True)
def home_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No input, whatever it holds, finds the user's own files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TLX_DATA_ROOT", raising=False)


def pytest_sessionfinish(exitstatus: int) -> None:
    """Write the table that TLX_FUZZ_TABLE asks for, unless a test failed."""
    path = os.environ.get("TLX_FUZZ_TABLE")
    if path is None or exitstatus != pytest.ExitCode.OK:
        return
    counts = [(target, outcomes[target, 0], outcomes[target, 2]) for target in sorted({name for name, _ in outcomes})]
    counts.append(("all", sum(row[1] for row in counts), sum(row[2] for row in counts)))
    rows = [f"| {target} | {good + bad:,} | {good:,} | {bad:,} |\n" for target, good, bad in counts]
    Path(path).write_text(HEAD + "".join(rows))


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run, which no command that reads it changes."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    tlx.run(data="digits", limit_train=100, out=str(run_dir), **FIELDS)
    before = snapshot(run_dir)
    yield run_dir
    assert snapshot(run_dir) == before
