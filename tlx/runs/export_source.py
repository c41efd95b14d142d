"""A finished run as it is exported: what its files say of the model, and the module only where that has to be built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlx.backend import Array, Arrays, registry
from tlx.backend.export import Plain
from tlx.data.framing import Framing
from tlx.errors import TlxError
from tlx.manifest import RECIPE
from tlx.models.architecture import Architecture
from tlx.models.weights import RUN_WEIGHTS, parse_safetensors
from tlx.models.zoo import architecture
from tlx.recipe import Recipe
from tlx.runs.card import Card, read_pixels
from tlx.runs.finished import opened, restore
from tlx.training.build import is_own

FRAMEWORK = {"torch": "torch", "onnx": "torch", "oneflow": "oneflow"}  # whose loaders read what is written


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A finished run as it is exported: what its files say, and the module where that has to be built."""

    run_dir: Path
    objects: Mapping[str, Any]  # `model` and `head`, where the recipe's were Python objects
    recipe: Recipe
    card: Card
    framing: Framing
    plain: Plain
    values: dict[str, Array]  # a state_dict in tlx's names, which are those of torchvision, of timm or of the module


def read_source(run_dir: Path, kind: str, objects: Mapping[str, Any]) -> Source:
    """Read a finished run; build its module only where its files do not say how its state_dict is named."""
    contents, card, recipe = opened(run_dir, objects)
    if card.neighbors is not None:
        problem = f"{run_dir} is of strategy knn: its neighbours vote, and its module has no head to give logits"
        raise TlxError(problem, fix="use tlx.predict, or train with strategy probe and export that")
    values = parse_safetensors(contents[RUN_WEIGHTS], run_dir / RUN_WEIGHTS)
    logits = ""
    named = architecture(recipe.model) if isinstance(recipe.model, str) else None
    library = named.name.partition(":")[0] if named is not None and named.backend else ""
    if is_own(recipe) or library:
        home = recipe.backend  # which also builds what is of a library
        offered = registry.exporter(home)
        _check_home(kind, home, recipe, bool(library))
        built = restore(run_dir, home, single=True, **objects)
        values, logits = offered.state(built.model), offered.logits(built.model)
    plain = describe(recipe, card, named, library, values, logits)
    framing = read_pixels(card, run_dir, contents[RECIPE])
    return Source(run_dir, objects, recipe, card, framing, plain, values)


def _check_home(kind: str, home: str, recipe: Recipe, library: bool) -> None:
    """Refuse to write what only another framework could load."""
    wanted = FRAMEWORK.get(kind, home)
    if home not in FRAMEWORK.values():
        raise TlxError(f"a module of backend {home!r} has no loader but tlx", fix="use tlx.load_model")
    if wanted == home:
        return
    own_part = f"the head of {recipe.model_name}" if isinstance(recipe.model, str) else recipe.model_name
    what = f"{recipe.model} exists" if library else f"{own_part} is a module of your own, which exists"
    own = ".pth, .safetensors or .onnx" if home == "torch" else ".safetensors, or a folder for oneflow.load"
    goal = "ONNX is made from PyTorch's modules" if kind == "onnx" else f"{wanted} cannot load it"
    raise TlxError(f"{what} on {home} only, and {goal}", fix=f"export {own}")


def describe(
    recipe: Recipe, card: Card, named: Architecture | None, library: str, values: Arrays, logits: str
) -> Plain:
    """Say what code needs to make the model again."""
    head = named.head if named is not None else recipe.head_path
    assert head is not None
    classes, size = tuple(card.classes), card.preprocess.size
    own_head, own_module = recipe.head_module is not None, named is None
    layers: tuple[str, ...] = ()
    if not own_head and (recipe.head_widths or recipe.dropout):
        layers = _chain(recipe, head, values)
    elif own_module and not own_head and f"{head}.weight" in values and values[f"{head}.weight"].ndim == 2:
        layers = (_layer(head, values),)
    if not (own_head or own_module):
        outputs = _weight(f"{head}.{len(layers) - 1}" if layers else head, values).shape[0]
        if outputs != len(classes):
            raise TlxError(f"the run is damaged: its head has {outputs} outputs, for {len(classes)} classes")
    return Plain(
        model=recipe.model_name,
        classes=classes,
        head=head,
        size=size,
        options=() if named is None or library else named.options_at(size),
        library=library,
        own_module=own_module,
        own_head=own_head,
        head_layers=layers,
        logits=logits,
    )


def _chain(recipe: Recipe, head: str, values: Arrays) -> tuple[str, ...]:
    """Return the layers of a head with hidden layers or dropout, as `tlx.backend.module.build` chains them."""
    dropout = [f"Dropout({recipe.dropout})"] if recipe.dropout else []
    layers = [] if recipe.head_widths else [*dropout]
    layers.append(_layer(f"{head}.{len(layers)}", values))
    for _ in recipe.head_widths:
        layers += ["ReLU()", *dropout]
        layers.append(_layer(f"{head}.{len(layers)}", values))
    return tuple(layers)


def _weight(path: str, values: Arrays) -> Array:
    """Return the weight of a layer of the head; only in a run that is damaged there is none, or one of another kind."""
    weight = values.get(f"{path}.weight")
    if weight is None or weight.ndim not in (2, 4):
        raise TlxError(f"the run is damaged: its weights have no '{path}.weight' of a layer", fix="train again")
    return weight


def _layer(path: str, values: Arrays) -> str:
    shape = _weight(path, values).shape
    bias = "" if f"{path}.bias" in values else ", bias=False"
    if len(shape) == 2:
        return f"Linear({shape[1]}, {shape[0]}{bias})"
    if shape[2:] != (1, 1):
        problem = f"the head {path} is a convolution of {shape[2]} x {shape[3]} pixels, whose stride no file says"
        raise TlxError(problem, fix="use tlx.load_model")
    return f"Conv2d({shape[1]}, {shape[0]}, 1{bias})"
