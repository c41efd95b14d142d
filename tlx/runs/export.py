"""Take the model of a finished run elsewhere: files that the frameworks' own loaders read, and code that does so."""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlx.atomic import replacing, sync_folder, write_atomic
from tlx.backend import Array, Arrays, registry
from tlx.backend.export import Exporter, Plain
from tlx.errors import TlxError, closest
from tlx.manifest import MANIFEST, OWN, RECIPE
from tlx.models.weights import safetensors_bytes
from tlx.recipe import Recipe
from tlx.runs.export_code import model_code
from tlx.runs.export_onnx import write_onnx
from tlx.runs.export_source import FRAMEWORK, Source, read_source
from tlx.runs.folder import LAST, LOCK

# What the name of OUT ends in, and what is written; a name without a suffix, or with a slash at its end, is a folder.
SUFFIXES = {".pth": "torch", ".pt": "torch", ".safetensors": "safetensors", ".onnx": "onnx"}
EXPECTED = ".pth, .safetensors, .onnx, or a name without a suffix for the folder that oneflow.load reads"


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
    check_target(target, kind)
    framework = FRAMEWORK.get(kind) or _home(source.plain, source.recipe)
    exporter = exporter_of(framework, source)
    if kind == "onnx":
        code, check = write_onnx(source, target, str(out))
        return Exported(Path(out), kind, code, check)
    code = model_code(
        exporter, source.plain, source.framing, source.card.preprocess, os.fspath(out), source.card.thresholds
    )
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


def _home(plain: Plain, recipe: Recipe) -> str:
    """Return the framework whose code reads a .safetensors file: torch, but for modules of another."""
    return recipe.backend if plain.own and not plain.library else "torch"


def exporter_of(framework: str, source: Source) -> Exporter:
    """Return what writes for a framework, once it has been asked whether it can."""
    exporter: Exporter | None = registry.exporter(framework)
    if exporter is None:
        raise TlxError(f"backend {framework!r} is not registered here, so nothing can be written for it")
    exporter.check(source.plain)
    return exporter


def _single(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def check_target(target: Path, kind: str) -> None:
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
