"""Which process of a run this one is, settled before a backend is loaded: some connect when imported."""

from __future__ import annotations

from tlx.processes.world import ALONE, World

_here = ALONE


def settle(world: World) -> None:
    """Say which process this is; `ALONE` again where a run has ended."""
    global _here
    _here = world


def here() -> World:
    """Return which process this is; `ALONE` unless somebody has settled it."""
    return _here
