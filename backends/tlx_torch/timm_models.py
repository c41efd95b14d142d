"""The models of timm: where each keeps its head, how it divides into stages, what its weights expect of pixels.

All of it is timm's own: `get_classifier`, `group_matcher` and `pretrained_cfg`. A model is described from a skeleton, a
model on PyTorch's meta device, whose tensors have shapes and no values. timm is imported when it is first needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import nn

from tlx.backend import ParamSpec
from tlx.backend.module.build import describe
from tlx.backend.preprocess import Aspect
from tlx.errors import BackendError, BackendUnavailable, RecipeError, closest, one_line
from tlx.models.architecture import stage_name
from tlx.models.hub import HUB
from tlx.models.libraries import Listed
from tlx.models.pixels import Pixels
from tlx.models.zoo import Architecture

PREFIX = "timm:"
CLASSES = 1000  # of a skeleton: what listings count parameters with
ASPECTS: Mapping[str, Aspect] = {"center": "crop", "squash": "squash", "border": "letterbox"}

Stages = tuple[tuple[str, tuple[str, ...]], ...]


def library() -> Any:
    """Import timm.

    Raises:
        BackendUnavailable: it is not installed, or does not import.
    """
    try:
        import timm
    except Exception as error:  # whatever the modules of an environment raise
        missing = isinstance(error, ImportError) and error.name == "timm"
        problem = "is not installed" if missing else f"does not import: {one_line(str(error))}"
        problem = f"models {PREFIX}... need timm, which {problem}"
        raise BackendUnavailable(problem, fix='pip install "tlx[timm]"') from error
    return timm


@cache
def names() -> tuple[str, ...]:
    """Return the names of all models: with the tag of its weights where it has some, else plain."""
    timm = library()
    with_weights = timm.list_models(pretrained=True)
    plain = {name.partition(".")[0] for name in with_weights}
    return tuple(sorted({*with_weights, *(name for name in timm.list_models() if name not in plain)}))


def listed(pattern: str) -> list[Listed]:
    """Return the models whose name contains a text, or matches it as a shell pattern, without building them."""
    wanted = pattern.removeprefix(PREFIX)
    matching = [name for name in names() if wanted in name or fnmatchcase(name, wanted)]
    return [
        Listed(name=PREFIX + name, image_size=_pixels(cfg).size, imagenet=_published(cfg) or None)
        for name in matching
        for cfg in (_config(name),)
    ]


@dataclass(frozen=True, slots=True)
class Layout:
    """What tlx knows of a model of timm: its architecture, and how it is built."""

    arch: Architecture
    twin: str  # path of a second classifier, of distillation, which the model averages with the first; "": none
    sized: bool  # the model is built for one size of images, which it takes as `img_size`


def architecture(name: str) -> Architecture:
    """Describe a model by its name with the prefix.

    Raises:
        RecipeError: there is no such model; or it is no classifier, or one with several heads, so it cannot be adapted.
        BackendUnavailable: timm is not installed.
    """
    return layout(name).arch


@cache
def layout(name: str) -> Layout:
    """Describe a model and how it is built; raises as `architecture`."""
    cfg = _config(_checked(name))
    pixels, sized = _pixels(cfg), bool(cfg.fixed_input_size)
    with torch.device("meta"):
        skeleton = created(name, CLASSES, pixels.size if sized else 0)
    first, *others = classifiers(skeleton, name)
    if len(others) > 1 or (others and _inputs(skeleton, first) != _inputs(skeleton, others[0])):
        heads = ", ".join((first, *others))
        raise RecipeError(f"{name} has several heads ({heads}), whose outputs it adds up; tlx replaces one")
    arch = Architecture(
        name=name,
        head=first,
        stages=_stages(skeleton, (first, *others)),
        imagenet=_published(cfg),
        min_size=min(cfg.min_input_size[1:]) if cfg.min_input_size else 1,
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        pixels=pixels,
        backend="torch",
    )
    return Layout(arch, others[0] if others else "", sized)


def created(name: str, classes: int, size: int = 0, **options: Any) -> nn.Module:
    """Let timm make a model with new values; with `size`, for images of so many pixels."""
    sized = {"img_size": size} if size else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that timm has renamed, and of versions of others
        module = library().create_model(name.removeprefix(PREFIX), num_classes=classes, **sized, **options)
    assert isinstance(module, nn.Module)
    return module


def classifiers(module: nn.Module, name: str) -> list[str]:
    """Return the paths of the layers that give the logits: one, but for models that were distilled or ensembled.

    Raises:
        RecipeError: timm names none.
    """
    if not hasattr(module, "get_classifier"):
        kind = type(module).__name__
        raise RecipeError(f"{name} is no classifier, but an encoder without a head (a {kind} of timm)")
    heads: Any = module.get_classifier()  # type: ignore[operator]
    paths = {id(part): path for path, part in module.named_modules()}
    layers = [path for head in (heads if isinstance(heads, tuple) else (heads,)) for path in _last_layers(head, paths)]
    if not layers:
        raise RecipeError(f"{name}: timm gives it no layer for classes (its classifier is a {type(heads).__name__})")
    return layers


def _last_layers(head: Any, paths: Mapping[int, str]) -> list[str]:
    """Return the layer with an output for each class in a classifier; of several side by side each."""
    if isinstance(head, (nn.Linear, nn.Conv2d)):
        return [paths[id(head)]]
    if isinstance(head, nn.ModuleList) or any("dist" in name for name, _ in head.named_children()):
        return [path for child in head.children() for path in _last_layers(child, paths)]
    return [paths[id(part)] for part in head.modules() if isinstance(part, (nn.Linear, nn.Conv2d))][-1:]


def _inputs(module: nn.Module, path: str) -> tuple[int, ...]:
    return tuple(module.get_parameter(f"{path}.weight").shape[1:])


def constants(module: nn.Module) -> set[str]:
    """Return the names of buffers that a model computes when it is made and does not save, such as index tables."""
    named = ((path, name) for path, part in module.named_modules() for name in part._non_persistent_buffers_set)
    return {f"{path}.{name}".lstrip(".") for path, name in named}


def norms() -> tuple[type[nn.Module], ...]:
    """Return the classes of normalisation layers that are timm's own."""
    from timm import layers

    named = ("RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d", "FilterResponseNormTlu2d", "FilterResponseNormAct2d")
    kinds = [getattr(layers, name, None) for name in (*named, *(n for n in dir(layers) if n.startswith("EvoNorm2d")))]
    return tuple(kind for kind in kinds if isinstance(kind, type))


def _checked(name: str) -> str:
    """Return a name without the prefix that timm knows."""
    timm, bare = library(), name.removeprefix(PREFIX)
    model, _, tag = bare.partition(".")
    known = [*names(), *(n.partition(".")[0] for n in names())]
    if not timm.is_model(model):
        near = [repr(PREFIX + n) for n in get_close_matches(bare, sorted(set(known)), n=3, cutoff=0.5)]
        hint = f"Did you mean {' or '.join(near)}?" if near else f"`tlx models '{PREFIX}*'` lists them all"
        raise RecipeError(f"Unknown model {name!r}. {hint}")
    tags = [n.partition(".")[2] for n in known if n.startswith(model + ".")]
    if tag and tag not in tags:
        raise RecipeError(f"Unknown weights {tag!r} of {PREFIX}{model}.{closest(tag, tags)}")
    return bare


def _config(bare: str) -> Any:
    from timm.models import get_pretrained_cfg

    return get_pretrained_cfg(bare)


def _pixels(cfg: Any) -> Pixels:
    size = min(cfg.input_size[1:])  # a few were trained on oblong images
    interpolation = "bilinear" if cfg.interpolation == "bilinear" else "bicubic"
    mean, std = (tuple(map(float, values)) for values in (cfg.mean, cfg.std))
    return Pixels(size, mean, std, interpolation, float(cfg.crop_pct), ASPECTS[cfg.crop_mode])  # type: ignore[arg-type]


def _published(cfg: Any) -> str:
    """Return where weights are: a repository of the hub, an address, or "" for nowhere."""
    if cfg.hf_hub_id:
        return f"{HUB}{cfg.hf_hub_id}"
    url = cfg.url or ""
    return url[0] if isinstance(url, tuple) else url


# Stages -------------------------------------------------------------------------------------------------------------


def _stages(module: nn.Module, heads: Sequence[str]) -> Stages:
    """Return timm's coarse groups as module paths, named by the first path but for the stem.

    What timm puts into no group, such as a norm before the head, belongs to the last stage.
    """
    specs = [spec for spec in describe(module, ()) if spec.name not in constants(module)]
    inner = [spec for spec in specs if not any(_covers(head, spec.module) for head in heads)]
    groups: dict[str, int] = {}
    names = [spec.name for spec in inner]
    numbers = _grouped(module, names, f"{heads[0]}.weight") or _by_children(module, inner, heads[0])
    for spec in inner:
        number = numbers[spec.name]
        groups[spec.module] = min(number, groups.get(spec.module, number))  # of a module with parameters in several
    stages: dict[int, list[str]] = {}
    for path, group in _covering(groups):
        stages.setdefault(group, []).append(path)
    ordered = [tuple(paths) for _, paths in sorted(stages.items())]
    return tuple(("stem" if number == 0 else stage_name(paths[0]), paths) for number, paths in enumerate(ordered))


def _grouped(module: nn.Module, names: Sequence[str], head: str) -> dict[str, int]:
    """Return the number of each parameter's group; nothing where timm does not group the model."""
    from timm.models._manipulate import group_with_matcher

    for coarse in (True, False):
        try:
            matcher = module.group_matcher(coarse=coarse)  # type: ignore[operator]
        except (AttributeError, AssertionError, TypeError):
            continue
        # A name that no pattern matches comes last, with the head; a function groups the head as it likes.
        unmatched = "." if isinstance(matcher, dict) else head
        groups = group_with_matcher(((name, name) for name in (*names, unmatched)), matcher, reverse=True)
        last = groups.pop(unmatched)
        numbers = [number for number in groups.values() if number != last]
        return {name: number if number != last else max(numbers) for name, number in groups.items()} if numbers else {}
    return {}


def _by_children(module: nn.Module, specs: Sequence[ParamSpec], head: str) -> dict[str, int]:
    """Number parameters by the model's children, and in a sequence by its own.

    The root's own belong to the first; what lies around the head, and a norm at the end, to the last.
    """
    keys: dict[str, str] = {}
    for spec in specs:
        child, _, rest = spec.module.partition(".")
        part = getattr(module, child, None)
        sequence = isinstance(part, (nn.Sequential, nn.ModuleList)) and child != head.partition(".")[0]
        keys[spec.name] = f"{child}.{rest.partition('.')[0]}" if sequence and rest else child
    layers = {keys[spec.name] for spec in specs if len(spec.shape) > 1} - {head.partition(".")[0]}
    order = [key for key in dict.fromkeys(keys.values()) if key and key in layers]
    places = {key: place for place, key in enumerate(order)}
    return {name: places.get(key, len(order) - 1) if key else 0 for name, key in keys.items()}


def _covering(groups: Mapping[str, int], path: str = "") -> Iterator[tuple[str, int]]:
    """Cover the modules of each group by as few paths as can be, in the model's order."""
    inner = [owner for owner in groups if _covers(path, owner)]
    if path and len({groups[owner] for owner in inner}) == 1:
        yield path, groups[inner[0]]
        return
    if path in groups:
        yield path, groups[path]
    depth = path.count(".") + 1 if path else 0
    children = dict.fromkeys(".".join(owner.split(".")[: depth + 1]) for owner in inner if owner != path)
    for child in children:
        yield from _covering(groups, child)


def _covers(path: str, module: str) -> bool:
    return not path or module == path or module.startswith(path + ".")


# Sizes --------------------------------------------------------------------------------------------------------------


def check_size(name: str, size: int) -> None:
    """Pass images without values through a skeleton; where it refuses them, raise BackendError with sizes that fit."""
    known = layout(name)
    default = known.arch.pixels.size
    if size == default or not (why := _refusal(name, size)):
        return
    if _refusal(name, default):  # its code needs values: the first batch will tell
        return
    steps = (8, 14, 16, 32, 64)
    around = {step * (size // step + more) for step in steps for more in (0, 1)} - {0, size}
    near = sorted(around, key=lambda candidate: abs(candidate - size))
    fitting = [candidate for candidate in near if not _refusal(name, candidate)][:2]
    fix = f"use image_size {' or '.join(map(str, sorted({*fitting, default})))}"
    raise BackendError(f"{name} cannot take images of {size} pixels: {why}", fix=fix)


@cache
def _refusal(name: str, size: int) -> str:
    """Say why a model does not run on images of a size, or nothing."""
    try:
        with torch.device("meta"), torch.no_grad():
            skeleton = created(name, 2, size if layout(name).sized else 0).eval()
            outputs = skeleton(torch.zeros(1, 3, size, size))
    except Exception as error:  # whatever the model's code raises
        return one_line(str(error) or type(error).__name__)
    shape = list(getattr(outputs, "shape", ()))
    return "" if shape == [1, 2] else f"it returns {shape} instead of logits [1, 2]"
