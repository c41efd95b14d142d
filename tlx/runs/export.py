"""Take the model of a finished run elsewhere: files that the frameworks' own loaders read, and code that does so."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlx.atomic import replacing, sync_folder, write_atomic
from tlx.backend import Array, Arrays, registry
from tlx.backend.export import Exporter, Plain
from tlx.data.framing import Framing
from tlx.errors import TlxError, closest
from tlx.manifest import MANIFEST, OWN, RECIPE
from tlx.models.architecture import Architecture
from tlx.models.weights import RUN_WEIGHTS, parse_safetensors, safetensors_bytes
from tlx.models.zoo import architecture
from tlx.recipe import Recipe
from tlx.runs.card import Card, read_pixels
from tlx.runs.export_code import model_code
from tlx.runs.finished import opened, restore
from tlx.runs.folder import LAST, LOCK
from tlx.training.build import is_own

# What the name of OUT ends in, and what is written; a name without a suffix, or with a slash at its end, is a folder.
SUFFIXES = {".pth": "torch", ".pt": "torch", ".safetensors": "safetensors", ".onnx": "onnx"}
EXPECTED = ".pth, .safetensors, .onnx, or a name without a suffix for the folder that oneflow.load reads"
FRAMEWORK = {"torch": "torch", "onnx": "torch", "oneflow": "oneflow"}  # whose loaders read what is written


@dataclass(frozen=True, slots=True)
class Exported:
    """What `tlx.export` wrote.

    Attributes:
        out: the file, or the folder.
        format: "torch", "safetensors", "oneflow" or "onnx".
        code: Python that loads it without tlx and classifies `photo.jpg`.
        check: of ONNX: what it was compared with, and how far it is from that; otherwise "".
    """

    out: Path
    format: str
    code: str
    check: str = ""

    def __repr__(self) -> str:
        return f"<Exported {self.format} {self.out}>"


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


def export(run_dir: str | Path, out: str | Path, *, model: Any = None, head: Any = None) -> Exported:
    """Write the model of a finished run for use without tlx, on either framework, whichever trained it.

    Weights are float32, under the names that the framework's own model has: torchvision's, timm's, flowvision's, or
    those of your own module. An existing file is replaced in one step.

    Args:
        run_dir: a folder that `tlx run` wrote.
        out: a file that ends in `.pth` (what `torch.load` reads), `.safetensors` or `.onnx`; or without a suffix, or
            with a slash at its end, a new folder, which `oneflow.load` reads.
        model: the module again, where the run's `model` was a Python object.
        head: likewise.

    Returns:
        What was written, with the code that loads it and classifies a photo. `docs/export.md` says what the file holds.

    Raises:
        RunNotFound: there is no finished run in the folder.
        RunDamaged: a file of the run is missing or is not what the run wrote.
        BackendUnavailable: the framework, or for ONNX a package, that has to write the file is not installed.
        TlxError: `out` is no such name, or belongs to a run; the run cannot be exported there; or what ONNX Runtime
            computes is not what the run does.
    """
    kind = format_of(out)
    run_dir, target = Path(run_dir), Path(os.path.realpath(out))
    source = read_source(run_dir, kind, {"model": model, "head": head})
    _check_target(target, kind)
    framework = FRAMEWORK.get(kind) or _home(source.plain, source.recipe)
    exporter = exporter_of(framework, kind, source)
    if kind == "onnx":
        from tlx.runs.export_onnx import write_onnx

        code, check = write_onnx(source, target, str(out))
        return Exported(Path(out), kind, code, check)
    code = model_code(exporter, source.plain, source.framing, source.card.preprocess, os.fspath(out))
    values = {name: _single(array) for name, array in source.values.items()}
    if kind == "oneflow":
        registry.load("oneflow")
        _write_folder(target, exporter, source.plain, exporter.renamed(source.plain, values))
    elif kind == "torch":
        registry.load("torch")
        with replacing(target) as file:
            exporter.write(source.plain, file, exporter.renamed(source.plain, values))
    else:
        write_atomic(target, safetensors_bytes(values, {"format": "pt"}))
    return Exported(Path(out), kind, code)


def format_of(out: str | Path) -> str:
    """Return the format that the name of OUT says; TlxError, with the names that there are, where it says none."""
    text = os.fspath(out)
    suffix = "" if text.endswith("/") else os.path.splitext(os.path.basename(text))[1]
    if not text.strip("/") or os.path.basename(text.rstrip("/")) in (".", ".."):
        raise TlxError(f"OUT is {text!r}; expected the name of a file or of a new folder: {EXPECTED}")
    if not suffix:
        return "oneflow"
    if suffix.lower() not in SUFFIXES:
        near = closest(suffix.lower(), SUFFIXES)
        hint = near if "Did you mean" in near else ""
        raise TlxError(f"OUT is {text!r}, and nothing is written as {suffix!r}.{hint} Expected {EXPECTED}")
    return SUFFIXES[suffix.lower()]


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


def _home(plain: Plain, recipe: Recipe) -> str:
    """Return the framework whose code reads a .safetensors file: torch, but for modules of another."""
    return recipe.backend if plain.own and not plain.library else "torch"


def exporter_of(framework: str, kind: str, source: Source) -> Exporter:
    """Return what writes for a framework, once it has been asked whether it can."""
    exporter: Exporter | None = registry.exporter(framework)
    if exporter is None:
        raise TlxError(f"backend {framework!r} is not registered here, so nothing can be written for it")
    exporter.check(source.plain)
    return exporter


def _single(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _check_target(target: Path, kind: str) -> None:
    """Refuse to write over what belongs to a run, and over a folder that holds something."""
    for folder in (target.parent, target.parent.parent):
        name = target.relative_to(folder).as_posix()
        own = OWN.fullmatch(name) or name in (MANIFEST, LOCK, LAST) or name.startswith(f"{LAST}/")
        if own and (os.path.exists(folder / RECIPE) or os.path.exists(folder / MANIFEST)):
            raise TlxError(
                f"{target} is a name of the run in {folder}, whose files it may not replace", fix="rename OUT"
            )
    if kind == "oneflow" and os.path.lexists(target):
        if not target.is_dir():
            raise TlxError(f"{target} is a file, and a name without a suffix is a folder; expected {EXPECTED}")
        if any(target.iterdir()):
            raise TlxError(f"{target} is not empty, and tlx replaces no folder; remove it, or choose another one")
    elif kind != "oneflow" and target.is_dir():
        raise TlxError(f"{target} is a folder; choose another name for the file")


def _write_folder(target: Path, exporter: Exporter, plain: Plain, values: Arrays) -> None:
    """Write a folder beside its place, and put it there in one step."""
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            temporary.mkdir()
            exporter.write(plain, temporary, values)
            os.rename(temporary, target)  # an empty folder gives way, any other one does not
            sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except TlxError:
        raise
    except OSError as error:
        raise TlxError(f"Cannot write {target}: {error.strerror or error}") from error
