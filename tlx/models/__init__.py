"""Architectures, their initial values, and weights on disk."""

from tlx.models.zoo import ARCHITECTURES, Architecture, architecture, architectures, register

__all__ = ["ARCHITECTURES", "Architecture", "architecture", "architectures", "register"]
