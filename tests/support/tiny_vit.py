"""A small vision transformer as a model of the zoo, the same on both frameworks."""

from __future__ import annotations

from typing import Any

import pytest

from support.nets import Nets
from tlx.backend import registry
from tlx.models import zoo

NAME, IMAGE_SIZE = "tiny_vit", 16
_STAGES = (("stem", ("", "patch")), ("block1", ("blocks.0",)), ("block2", ("blocks.1", "norm")))


def add_tiny_vit(patch: pytest.MonkeyPatch) -> None:
    """Let recipes name the model until the test ends."""
    patch.setitem(zoo.ARCHITECTURES, NAME, zoo.Architecture(NAME, "fc", _STAGES, "", hidden=True))
    for framework in ("torch", "oneflow"):
        backend: Any = registry.load(framework)
        patch.setattr(backend.zoo, NAME, Nets(framework).vit, raising=False)
