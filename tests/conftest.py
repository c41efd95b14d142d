"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.backends import reason_to_skip

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Containers often forbid compiled modules to be kept; then each process that a test starts would compile tlx anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A shell starts what runs in the background with SIGINT ignored, and tlx leaves an ignored signal ignored.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a backend that was not asked for; leave out what is thorough, unless it is asked for."""
    if "thorough" not in config.option.markexpr:
        thorough = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=thorough)
        items[:] = [item for item in items if item not in thorough]
    for item in items:
        for mark in item.iter_markers("needs"):
            if reason := reason_to_skip(mark.args):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data: CIFAR-10, ants and bees, ImageNet weights (CONTRIBUTING.md says where)."""
    variable = os.environ.get("TLX_TEST_DATA")
    root = Path(variable or "~/.cache/tlx/test-data").expanduser()
    if not (root / "weights").is_dir():
        message = f"no test data in {root}; set TLX_TEST_DATA to a folder that holds it"
        pytest.fail(message) if variable else pytest.skip(message)
    return root


@pytest.fixture(scope="module")  # while it is open, an event loop runs in this thread, and no other can
def browser() -> Iterator[Browser]:
    """A real, headless Chromium, which reaches nothing but this machine."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.fail("Chromium not found. Install it: make browser")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=[*quiet, "--disable-component-update"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own cache is neither read nor filled, not even by fixtures that outlive one test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def cache_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that one test caches must not spare another one the work."""
    monkeypatch.setenv("TLX_CACHE", f"{tmp_path}-cache")


@pytest.fixture(autouse=True)
def first_values_of_the_test() -> None:
    """Modules that a test makes itself begin with the same values each time, whichever tests ran before."""
    for framework in ("torch", "oneflow"):
        if framework in sys.modules:
            sys.modules[framework].manual_seed(0)
