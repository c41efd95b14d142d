"""The processes over which one run spreads: who they are, and how they talk."""

from tlx.processes.agree import all_true, highest, of_first
from tlx.processes.world import ALONE, Alone, Channel, World

__all__ = ["ALONE", "Alone", "Channel", "World", "all_true", "highest", "of_first"]
