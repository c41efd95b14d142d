"""Architectures, their initial values, and weights on disk."""

from tlx.models.zoo import ARCHITECTURES, Architecture, architecture

__all__ = ["ARCHITECTURES", "Architecture", "architecture"]
