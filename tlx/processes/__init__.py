"""The processes over which one run spreads: who they are, and how they talk."""

from tlx.processes.connect import connected
from tlx.processes.exchange import barrier, broadcast, flags
from tlx.processes.here import here, settle
from tlx.processes.launcher import world_of
from tlx.processes.world import ALONE, Channel, World

__all__ = ["ALONE", "Channel", "World", "barrier", "broadcast", "connected", "flags", "here", "settle", "world_of"]
