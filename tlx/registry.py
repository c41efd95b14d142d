"""The name under which packages of third parties import `tlx.backend.registry`."""

from tlx.backend.registry import (
    GROUP,
    Check,
    Entry,
    available,
    differences,
    installed,
    load,
    pip_install,
    reinstall,
    requirement,
)

__all__ = [
    "GROUP",
    "Check",
    "Entry",
    "available",
    "differences",
    "installed",
    "load",
    "pip_install",
    "reinstall",
    "requirement",
]
