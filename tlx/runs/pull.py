"""Take a model from the Hugging Face Hub, in the layout of timm, and make of it a folder that tlx uses like a run."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from tlx.atomic import json_bytes, sync_folder
from tlx.backend import Preprocess
from tlx.data.framing import Framing
from tlx.errors import TlxError, printable, shown
from tlx.manifest import CARD, RECIPE
from tlx.models.hub import HUB, bars
from tlx.models.weights import RUN_WEIGHTS, digest, parse_safetensors
from tlx.recipe import DATA_PULLED, VERSION, Recipe
from tlx.runs.facts import Facts, parse_object
from tlx.runs.finished import restore
from tlx.runs.folder import RESULT, RunFolder
from tlx.runs.hub_client import CONFIG, WEIGHTS, check_name, client, explained
from tlx.runs.model_card import FIGURES

LARGEST = 1 << 24  # bytes of a config.json: one of 100,000 classes has a third of that
ASPECTS = {"center": "crop", "squash": "squash", "border": "letterbox"}
_FIX = "pull another repository"


def pull(repository: str, folder: str | Path | None = None, *, backend: str | None = None, quiet: bool = False) -> Path:
    """Take a model from the Hugging Face Hub into a folder that is used like that of a run.

    `tlx.predict`, `tlx.evaluate`, `tlx.export`, `tlx.load_model` and `weights=` take it. Both what `tlx.push` wrote and
    any other repository of timm is understood. Of the repository only config.json and model.safetensors are read: no
    pickle, and no code. The folder holds a model without a history, which cannot be trained on; start a run with
    `weights=` for that.

    Args:
        repository: USER/NAME, or USER/NAME@REVISION.
        folder: a new folder; default: NAME.
        backend: where the model is built to see whether the weights fit; default: torch.
        quiet: show no progress.

    Returns:
        The folder.

    Raises:
        BackendUnavailable: the hub's client, PyTorch or timm is not installed.
        WeightsError: the weights are damaged, or of another model.
        TlxError: there is no such repository, it cannot be reached, or it is not in timm's layout.
    """
    whole, _, revision = repository.partition("@")
    name = check_name(whole)
    target = Path(name.rpartition("/")[2] if folder is None else folder)
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise TlxError(
            f"{target} is there already, and tlx overwrites nothing", fix="choose another folder (-o FOLDER)"
        )
    hub = client()
    with explained(name, revision or None), bars(not quiet):
        config, commit = _config(hub, name, revision or None)
        weights = _download(hub, name, WEIGHTS, commit)
    arrays = parse_safetensors(weights.read_bytes(), weights)
    files = _files(f"{HUB}{name}@{commit}", config, arrays, weights.read_bytes(), backend or "torch")
    _write(target, files, backend)
    return target


def _config(hub: Any, name: str, revision: str | None) -> tuple[dict[str, Any], str]:
    """Return the config.json of a repository, once its size is known, and its commit."""
    url = f"{hub.constants.ENDPOINT}/{name}"
    if not hub.constants.HF_HUB_OFFLINE:
        try:
            metadata = hub.get_hf_file_metadata(hub.hf_hub_url(name, CONFIG, revision=revision))
        except hub.errors.EntryNotFoundError as error:
            raise TlxError(f"{url} has no {CONFIG}, so it is no model of timm", fix=_FIX) from error
        if (metadata.size or 0) > LARGEST:
            raise TlxError(f"{url} has a {CONFIG} of {metadata.size:,} bytes; expected at most {LARGEST:,}", fix=_FIX)
    path = _download(hub, name, CONFIG, revision)
    content = path.read_bytes()
    if len(content) > LARGEST:
        raise TlxError(f"{path} has more than {LARGEST:,} bytes", fix=_FIX)
    return parse_object(content, f"{CONFIG} of {name}", _FIX), path.parent.name


def _download(hub: Any, name: str, file: str, revision: str | None) -> Path:
    try:
        return Path(hub.hf_hub_download(name, file, revision=revision, library_name="tlx"))
    except hub.errors.LocalEntryNotFoundError:
        raise
    except hub.errors.EntryNotFoundError as error:
        problem = f"{hub.constants.ENDPOINT}/{name} has no {file}, and tlx reads no other file of it"
        raise TlxError(problem, fix=_FIX) from error


def _files(
    source: str, config: Mapping[str, Any], arrays: Mapping[str, Any], weights: bytes, backend: str
) -> dict[str, bytes]:
    """Return the files of a run's folder that say the same as a repository."""
    where = f"{CONFIG} of {source}"
    facts = Facts(where, config, _FIX)
    own = facts.inner("tlx") if isinstance(config.get("tlx"), dict) else None
    card, recipe = _of_tlx(own) if own is not None else _of_timm(facts, arrays)
    fields = {**recipe, "backend": backend, "weights": source, "precision": "float32", "strategy": "full"}
    full = Recipe(**{k: v for k, v in fields.items() if v is not None}).resolved()
    values = {**full.to_dict(), "data": DATA_PULLED}
    text = tomli_w.dumps({"recipe_version": VERSION, **{k: v for k, v in values.items() if v is not None}})
    figures = own.values.get("figures") if own is not None else None
    known = figures if isinstance(figures, dict) else {}
    result: dict[str, Any] = {name: _share(known.get(name)) for name in FIGURES}
    if "thresholds" in card:  # several labels may apply to an image
        parts = ("val", "test")
        result |= dict.fromkeys(FIGURES)
        result["multilabel"] = {
            part: {"average_precision": _share(known.get(f"{part}_average_precision"))} for part in parts
        }
    described = {
        **card,
        "model": full.model_name,
        "weights": source,
        "precision": "float32",
        "data": {"name": source, "fingerprint": "", "notes": []},
        "sha256": digest(arrays),
    }
    return {
        RECIPE: text.encode(errors="surrogateescape"),
        CARD: json_bytes(described),
        RESULT: json_bytes({**result, "epochs_run": 1, "recipe": values, "notes": [f"pulled from {source}"]}),
        RUN_WEIGHTS: weights,
    }


def _share(value: Any) -> float | None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if ok else None


def _of_tlx(own: Facts) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return card and recipe of what tlx pushed. The card is checked where it is read, as every run's is."""
    if own.whole("format", 1) > 1:
        raise TlxError(f"{own.where} was written by a newer tlx", fix="upgrade tlx")
    card = dict(own.inner("card").values)
    pixels = own.inner("card").inner("preprocess")
    hidden = own.values.get("hidden") or None
    recipe = {
        "model": own.text("model"),
        "hidden": hidden,
        "dropout": own.real("dropout", 0, 0.99),
        "image_size": pixels.whole("size", 8, 4096),
    }
    return card, recipe


def _of_timm(facts: Facts, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return card and recipe of anybody's model of timm, whose config.json comes in an older and in a newer form."""
    nested = isinstance(facts.values.get("pretrained_cfg"), dict)
    pixels = facts.inner("pretrained_cfg") if nested else facts
    architecture = facts.text("architecture")
    library = facts.values.get("library", "timm")
    if library != "timm":
        raise TlxError(f"{facts.where} is of {shown(library)}, and tlx pulls models of timm", fix=_FIX)
    arguments = facts.inner("model_args").values if facts.has("model_args") else {}
    if other := sorted(arguments.keys() - {"img_size"}):
        raise TlxError(f"{facts.where} builds its model with {shown(other[0])}, which tlx does not do", fix=_FIX)
    sizes = pixels.reals("input_size", 1, 4096)
    if len(sizes) != 3 or sizes[0] != 3:
        raise pixels.wrong("input_size", "[3, height, width]: images of three colours")
    size = int(min(sizes[1:]))
    interpolation = pixels.values.get("interpolation", "bicubic")
    aspect = ASPECTS.get(str(pixels.values.get("crop_mode") or "center"), "crop")
    fraction = pixels.real("crop_pct", 0.1, 1) if pixels.has("crop_pct") else 0.875
    mean, std = pixels.reals("mean", -10, 10, 3), pixels.reals("std", 1e-3, 10, 3)
    how = "bilinear" if interpolation == "bilinear" else "bicubic"
    card = {
        "format": 2,
        "classes": _labels(facts, pixels),
        "preprocess": {"size": size, "mean": list(mean), "std": list(std), "interpolation": how},
        "crop_fraction": fraction,
        "images": "photos",
    }
    seen = Preprocess(size, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), how)  # type: ignore[arg-type]
    framing = Framing.from_preprocess(seen, fraction, aspect, antialias=True, enlarges=True)  # type: ignore[arg-type]
    card["pixels"] = {**framing.facts(), "image_size": None}
    return card, {"model": f"timm:{architecture}", "image_size": size}


def _labels(facts: Facts, pixels: Facts) -> list[str]:
    """Return the names of the classes; their numbers where the repository names none."""
    for place in (facts, pixels):
        for name in ("label_names", "labels"):
            labels = place.values.get(name)
            if isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels):
                names = [printable(label) for label in labels]
                if len(set(names)) == len(names):
                    return names
    place = facts if facts.has("num_classes") else pixels
    return [str(number) for number in range(place.whole("num_classes", 1, 1_000_000))]


def _write(target: Path, files: Mapping[str, bytes], backend: str | None) -> None:
    """Write a folder beside its place, see whether the model can be built from it, and put it there in one step."""
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            temporary.mkdir(parents=True)
            folder = RunFolder(temporary)
            for name, content in files.items():
                folder.put(name, content)
            folder.commit()
            restore(temporary, backend)
            os.rename(temporary, target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except TlxError:
        raise
    except OSError as error:
        raise TlxError(f"Cannot write {target}: {error.strerror or error}") from error
