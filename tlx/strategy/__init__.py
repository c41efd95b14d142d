"""What trains, at which rate and how normalisation behaves, as a pure function of the step."""

from tlx.strategy.built_in import STRATEGIES, register
from tlx.strategy.plan import Group, Phase, Plan, Strategy

__all__ = ["STRATEGIES", "Group", "Phase", "Plan", "Strategy", "register"]
