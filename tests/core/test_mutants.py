"""The suite is itself checked: it passes the reference backend and sees every injected fault."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from tlx.conformance.loopback import Loopback
from tlx.conformance.mutants import MUTANTS, Mutant

# What a third party's test file looks like; only its fixture has parameters.
FILE = """
import pytest
from tlx.conformance.loopback import Loopback
from tlx.conformance.mutants import MUTANTS
from tlx.conformance.suite import *

@pytest.fixture(params=[Loopback, *MUTANTS], ids=lambda kind: kind.__name__, scope="session")
def backend(request):
    return request.param()
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """How many tests ran and failed for each backend: all for the reference, the named one for each mutant."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "test_suite.py").write_text(FILE)
    chosen = " or ".join(["Loopback", *(f"({kind.__name__} and {kind.caught_by})" for kind in MUTANTS)])
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "--junitxml", str(folder / "out.xml")]
    command = [sys.executable, "-m", "pytest", *options, "-k", chosen, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    counts: dict[str, tuple[int, int]] = {}
    for case in ElementTree.parse(folder / "out.xml").iter("testcase"):
        kind = case.attrib["name"].partition("[")[2].rstrip("]").split("-")[0]
        assert case.find("error") is None, f"{case.attrib['name']} did not even start"
        ran, failed = counts.get(kind, (0, 0))
        failure = case.find("failure")
        if failure is not None:  # by what it asserts, not because a mutant is too broken to run
            assert failure.attrib["message"].startswith(("AssertionError", "assert", "Failed")), failure.text
        counts[kind] = ran + 1, failed + (failure is not None)
    return counts


def test_the_reference_backend_passes(outcomes: dict[str, tuple[int, int]]) -> None:
    ran, failed = outcomes[Loopback.__name__]
    assert ran > 90 and failed == 0


@pytest.mark.parametrize("kind", MUTANTS, ids=lambda kind: kind.__name__)
def test_the_suite_sees_the_fault(outcomes: dict[str, tuple[int, int]], kind: type[Mutant]) -> None:
    ran, failed = outcomes[kind.__name__]
    assert ran and failed, f"{kind.caught_by} passed"


def test_the_suite_imports_no_framework() -> None:
    code = "import sys, tlx.conformance.suite; assert not {'torch', 'oneflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
