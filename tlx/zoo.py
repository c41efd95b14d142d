"""The models: where each keeps its head, how it divides into stages, and its published ImageNet checkpoint.

An architecture is described by names alone, so the core can group parameters without building anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from tlx.errors import RecipeError, closest

# The checkpoints are torchvision's; the eight hex digits in each name begin the file's SHA-256.
IMAGENET_URL = "https://download.pytorch.org/models/"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's layout. `stages` run from input to output, each with the module paths it covers."""

    name: str
    head: str
    stages: tuple[tuple[str, tuple[str, ...]], ...]
    imagenet: str
    min_size: int = 1  # smallest image, in pixels, that no layer shrinks to nothing (torchvision's "min_size")

    def stage_of(self, module: str) -> str:
        """Return the stage that covers a module path, or ``"head"``."""
        if _covers(self.head, module):
            return "head"
        for stage, paths in self.stages:
            if any(_covers(path, module) for path in paths):
                return stage
        raise RecipeError(f"{self.name}: module {module!r} belongs to no stage")


def _covers(path: str, module: str) -> bool:
    return module == path or module.startswith(path + ".")


def _resnet(name: str, digits: str) -> Architecture:
    layers = tuple((f"layer{i}", (f"layer{i}",)) for i in range(1, 5))
    return Architecture(name, "fc", (("stem", ("conv1", "bn1")), *layers), f"{name}-{digits}.pth")


def _squeezenet(name: str, digits: str, blocks: tuple[tuple[int, ...], ...]) -> Architecture:
    # The stages end where the network halves its resolution; the head is a convolution.
    stages = tuple(
        ("stem" if i == 0 else f"fire{i}", tuple(f"features.{k}" for k in block)) for i, block in enumerate(blocks)
    )
    return Architecture(name, "classifier.1", stages, f"{name}-{digits}.pth", min_size=21)


ARCHITECTURES: dict[str, Architecture] = {
    a.name: a
    for a in (
        _resnet("resnet18", "f37072fd"),
        _resnet("resnet34", "b627a593"),
        _resnet("resnet50", "0676ba61"),
        _resnet("resnet101", "63fe2227"),
        _squeezenet("squeezenet1_0", "b66bff10", ((0,), (3, 4, 5), (7, 8, 9, 10), (12,))),
        *(Architecture(name, "fc", (("fc1", ("fc1", "bn1")),), "") for name in ("tiny-mlp", "tiny-mlp-dropout")),
    )
}


def architecture(name: str) -> Architecture:
    """Look up a model by its name."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise RecipeError(f"Unknown model {name!r}.{closest(name, ARCHITECTURES)}") from None
