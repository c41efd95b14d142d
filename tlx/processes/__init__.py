"""The processes over which one run spreads: who they are, and how they talk."""

from tlx.processes.agree import all_true, highest, of_first
from tlx.processes.connect import connected
from tlx.processes.here import here, settle
from tlx.processes.launcher import world_of
from tlx.processes.world import ALONE, Alone, Channel, World

__all__ = [
    "ALONE",
    "Alone",
    "Channel",
    "World",
    "all_true",
    "connected",
    "here",
    "highest",
    "of_first",
    "settle",
    "world_of",
]
