"""Which backends are tested: the one place that reads TLX_BACKENDS.

`TLX_BACKENDS=torch,loopback pytest` tests these two; by default all three of this repository are tested. A test that
needs a backend that was not asked for is skipped, with the reason. One that was asked for and does not load fails.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

FRAMEWORKS = ("torch", "oneflow")
OWN = ("loopback", *FRAMEWORKS)


def asked_for(value: str | None) -> tuple[str, ...]:
    """Read the value of TLX_BACKENDS: names with commas between them."""
    if value is None:
        return OWN
    names = tuple(name.strip() for name in value.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise pytest.UsageError(f"TLX_BACKENDS is {value!r}; expected names such as 'torch,loopback', each once")
    return names


ASKED = asked_for(os.environ.get("TLX_BACKENDS"))


def reason_to_skip(names: tuple[str, ...], asked: tuple[str, ...] = ASKED) -> str:
    """Say which of these backends were not asked for; an empty text where all were."""
    missing = [name for name in names if name not in asked]
    return f"needs {', '.join(missing)}, and TLX_BACKENDS asks only for {', '.join(asked)}" if missing else ""


def each_backend(*names: str) -> list[Any]:
    """Return parameters for `pytest.mark.parametrize` or a fixture; each one needs the backend that it names."""
    return [pytest.param(name, marks=pytest.mark.needs(name)) for name in names]


def skip_module_without(*names: str) -> None:
    """Skip the calling module where a backend whose framework it imports was not asked for; call it before that."""
    if reason := reason_to_skip(names):
        pytest.skip(reason, allow_module_level=True)
