"""Two modules, judged by the stages that look into a pass: weights, evaluation, and one step of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tlx.proof.capture import capture
from tlx.proof.compare import compare
from tlx.proof.pair import backend_of, drawn_images
from tlx.proof.report import Report
from tlx.recipe import Recipe

STAGES = ("P1", "P3", "P4")
FIELDS: dict[str, Any] = {"weights": "own", "head": "fc", "augment": "none", "image_size": 16, "batch_size": 4}


def judged(reference: Any, candidate: Any, home: Path) -> Report:
    """Compare two modules with 5 classes, whose last layer is `fc`, on images of 16 pixels and of 29."""
    recipe = Recipe(**FIELDS, model=reference, data=drawn_images(5, 16), backend=backend_of(reference))
    capture(recipe, recipe.backend, home / "a", quick=True, stages=STAGES)
    other = replace(recipe, model=candidate, backend=backend_of(candidate))
    capture(other, other.backend, home / "b", home / "a", quick=True, copy_weights=True, stages=STAGES)
    return compare(home / "a", home / "b")
