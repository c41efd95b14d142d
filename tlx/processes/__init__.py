"""The processes over which one run spreads: who they are, and how they talk."""

from tlx.processes.here import here, settle
from tlx.processes.world import ALONE, Channel, World

__all__ = ["ALONE", "Channel", "World", "here", "settle"]
