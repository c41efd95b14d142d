"""The values a run starts from, drawn and read in the core, so that every backend starts from the same bits."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlx import rng
from tlx.backend import Array, Arrays, ParamSpec
from tlx.download import cache_folder, fetch
from tlx.errors import DataError, TlxError, WeightsError
from tlx.manifest import CARD, read_files, read_manifest
from tlx.models.architecture import Architecture, Start
from tlx.models.hub import HUB, fetch_hosted
from tlx.models.libraries import Fitting
from tlx.models.matching import match_backbone, match_head
from tlx.models.positions import fit_positions
from tlx.models.weights import RUN_WEIGHTS, check_digest, read_checkpoint
from tlx.models.zoo import IMAGENET_URL


def initial_values(
    specs: Sequence[ParamSpec],
    arch: Architecture,
    weights: str,
    seed: int,
    progress: bool = False,
    own: Arrays | None = None,
    classes: Sequence[str] = (),
    library: Fitting | None = None,
) -> tuple[dict[str, Array], list[str]]:
    """Return every parameter and buffer of a model, and notes on how a checkpoint was read.

    `weights` is ``"none"``, ``"imagenet"`` (downloaded, hash-checked), ``"hf-hub:OWNER/NAME"``, a weights file, a run
    folder, or ``"own"``: the values in `own`, which a user's module brought along. They fill the backbone. The head is
    drawn from the seed, but that of a run with the same `classes` is kept. So are low-rank adapters, which add nothing
    at first.
    Of the values in `own`, what has no customary start keeps its value whatever `weights` is. The `library` of a model
    reads checkpoints that have other names or shapes.
    """
    arrays: dict[str, Array] = {}
    notes: list[str] = []
    plain = [spec for spec in specs if spec.role != "adapter"]
    if weights == "own":
        assert own is not None
        arrays = {spec.name: own[spec.name] for spec in plain if arch.stage_of(spec.module) != "head"}
    elif weights != "none":
        checkpoint = read_checkpoint(source_file(weights, arch, progress))
        found: Arrays = checkpoint.arrays
        if weights == "imagenet":  # of which nothing else is worth a word
            found, notes = fit_positions(found, plain, arch)
        arrays, changes = match_backbone(found, plain, arch, library.translated if library else None)
    if weights not in ("own", "imagenet", "none"):
        card = None if weights.startswith(HUB) else _card(Path(weights))
        if card is not None:
            check_digest(checkpoint.arrays, card, Path(weights) / RUN_WEIGHTS)
        if classes and card is not None:
            head, kept = match_head(checkpoint.arrays, specs, arch, _classes(card, Path(weights)), classes)
            arrays, changes = {**arrays, **head}, [kept] if head else [*changes, kept]
        notes = [*checkpoint.notes, *(f"{Path(weights).name}: {change}" for change in changes)]
    if own is not None:
        layers = {s.module for s in specs if len(s.shape) > 1 and s.name.endswith("weight")}
        missing = [spec for spec in plain if spec.name not in arrays]
        arrays |= {spec.name: own[spec.name] for spec in missing if not _has_customary_start(spec, layers)}
    return {s.name: arrays[s.name] if s.name in arrays else _draw(s, specs, arch, seed) for s in specs}, notes


def _card(folder: Path) -> Any:
    """Return the card of a run's folder, verified; None where there is none."""
    path = folder / CARD
    try:
        if folder.is_dir() and read_manifest(folder) is not None:
            return json.loads(read_files(folder, (CARD,))[CARD])
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, TlxError):
            raise
        raise WeightsError(f"{path} cannot be read: {error}") from error


def _classes(card: Any, folder: Path) -> list[str]:
    """Return the class names of a run, from its card."""
    try:
        classes = card["classes"]
    except (LookupError, TypeError) as error:
        raise WeightsError(f"{folder / CARD} cannot be read: {error}") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise WeightsError(f"{folder / CARD} is damaged: classes is no list of names")
    return classes


def _has_customary_start(spec: ParamSpec, layers: Collection[str]) -> bool:
    """Whether it is a norm's, or the weight or bias of a layer, and not a scale, a token or a constant."""
    if spec.role == "statistic":
        return spec.name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    return spec.role == "norm" or (spec.module in layers and spec.name.endswith(("weight", "bias")))


def source_file(weights: str, arch: Architecture, progress: bool) -> Path:
    """Return the file or folder that `weights` names, from the cache or downloaded where it lies elsewhere."""
    source = arch.imagenet if weights == "imagenet" else weights
    if source.startswith(HUB):
        return fetch_hosted(source, progress).path
    return imagenet_file(arch, progress) if weights == "imagenet" else Path(weights)


def imagenet_file(arch: Architecture, progress: bool) -> Path:
    """Return the published ImageNet checkpoint of a model, from the cache or downloaded."""
    if not arch.imagenet:
        raise WeightsError(f"{arch.name} has no published ImageNet weights; pass weights='none' or a file")
    url, dest = IMAGENET_URL + arch.imagenet, cache_folder() / "weights" / arch.imagenet
    if "://" in arch.imagenet:  # of a library; names of files may repeat between addresses
        url, file = arch.imagenet, arch.imagenet.rpartition("/")[2]
        dest = dest.parent / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{file}"
    digits = re.search(r"-([0-9a-f]{8,})\.\w+$", url)  # by the custom of torch.hub
    try:
        return fetch(url, dest, sha256_prefix=digits[1] if digits else None, progress=progress)
    except DataError as error:
        raise WeightsError(
            f"{str(error).rstrip('.')}. Pass weights as a file instead (--weights FILE, .safetensors or .pth), "
            f"copy {arch.imagenet} into {dest.parent}, or train from random weights (--weights none)."
        ) from error


def _draw(spec: ParamSpec, specs: Sequence[ParamSpec], arch: Architecture, seed: int) -> Array:
    """Draw a parameter's first value; all draws are float32 numbers, whatever the model's dtype."""
    if spec.name.endswith("relative_position_index"):
        return relative_position_index(math.isqrt(math.isqrt(math.prod(spec.shape)))).astype(spec.dtype)
    ones = spec.name.endswith("running_var") or (spec.role == "norm" and spec.name.endswith("weight"))
    if spec.role in ("norm", "statistic"):
        return np.full(spec.shape, 1 if ones else 0, spec.dtype)
    if spec.role == "adapter" and spec.name.endswith("_B"):  # Hu et al. 2021, section 4.1: training starts at the base
        return np.zeros(spec.shape, spec.dtype)
    of_layer = (s for s in specs if s.module == spec.module and s.role == "weight")
    weight = spec if spec.role == "adapter" else next(of_layer, spec)
    is_head = arch.stage_of(spec.module) == "head"
    start = None if is_head else arch.start_of(spec.name)
    if start is not None and start[0] == "constant":
        return np.full(spec.shape, start[1], np.float32).astype(spec.dtype)
    if start is not None and start[0] != "linear":
        bound = _bound(start, weight if spec.role == "bias" else spec)
    elif len(weight.shape) == 4 and not is_head and start is None:
        # He et al. 2015, equation 10 with fan-out, as ResNet uses it; uniform, because that needs no logarithm.
        # A depthwise filter feeds one channel, not all: otherwise activations die where no BatchNorm has seen data.
        fan_out = (1 if weight.shape[1] == 1 else weight.shape[0]) * math.prod(weight.shape[2:])
        bound = math.sqrt(6.0 / fan_out) if spec.role == "weight" else 0.0
    else:
        # The customary default of linear layers: uniform within 1 / sqrt(fan-in), for weight and bias.
        bound = 1.0 / math.sqrt(math.prod(weight.shape[1:]))
    return rng.within(seed, f"init/{spec.name}", spec.shape, bound).astype(spec.dtype, copy=False)


def _bound(start: Start, weight: ParamSpec) -> float:
    """Return the bound of a uniform distribution that is as wide as an architecture asks for."""
    kind, value = start
    outputs, fan_in = weight.shape[0], math.prod(weight.shape[1:])
    if kind == "xavier":
        return math.sqrt(6.0 / (fan_in + outputs))
    return math.sqrt(3.0) * (1.0 / math.sqrt(fan_in) if kind == "fan_in" else value)


def relative_position_index(window: int) -> Array:
    """Return for each two pixels of a window the row of their offset in a table of biases: int64 [window ** 4].

    Liu et al. 2021, section 3.2, "Relative position bias".
    """
    row, column = (axis.flatten() for axis in np.indices((window, window)))
    down, across = (axis[:, None] - axis[None, :] + window - 1 for axis in (row, column))
    return np.asarray(down * (2 * window - 1) + across, np.int64).flatten()
