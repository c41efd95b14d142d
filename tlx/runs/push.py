"""Put the model of a finished run on the Hugging Face Hub, in the layout that timm reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlx import rng
from tlx.atomic import json_bytes
from tlx.backend import Batch, registry
from tlx.errors import TlxError, printable
from tlx.models.hub import bars
from tlx.models.weights import safetensors_bytes
from tlx.runs.export_source import Source, read_source
from tlx.runs.finished import restore
from tlx.runs.hub_client import CONFIG, README, WEIGHTS, check_name, client, explained
from tlx.runs.model_card import card_text, names_of, read_facts

LIMIT = 1e-4  # by which timm's logits may differ, relative to the largest one
IMAGES = 2  # that are compared
FORMAT = 1  # of the entry "tlx" in a config.json
HARMLESS = (".gitattributes", ".gitignore", "LICENSE", README)  # files that no push replaces, or that a website adds
ENOUGH = 1 << 24  # bytes of a config.json


@dataclass(frozen=True, slots=True)
class Pushed:
    """What `tlx.push` put on the hub, or would have.

    Attributes:
        repository: its name.
        url: its address.
        commit: the commit; "" where nothing was pushed.
        timm: the model's name in timm, or "" where timm does not build it.
        card: the text of README.md.
        notes: what is worth saying, a line each.
    """

    repository: str
    url: str
    commit: str
    timm: str
    card: str
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Pushed {self.url}>"


def push(
    run_dir: str | Path, repository: str, *, private: bool = False, dry: bool = False, quiet: bool = False
) -> Pushed:
    """Put the model of a finished run into a repository of the Hugging Face Hub: weights, config.json and a card.

    A model that timm has in the same layout then runs there, by `timm.create_model("hf-hub:USER/NAME",
    pretrained=True)`; before anything is sent, timm's logits are compared with the run's. Another one is stored as
    torchvision has it, with the code that loads it in its card. `tlx.pull` takes either back. All files arrive in one
    commit, so that an upload that breaks off changes nothing.

    Args:
        run_dir: a folder that `tlx run` wrote, on either backend.
        repository: USER/NAME. It is made if it is not there; one that holds what tlx did not write is left alone.
        private: make it private.
        dry: send nothing, and ask nothing of the hub.
        quiet: show no progress.

    Raises:
        RunNotFound: there is no finished run in the folder.
        BackendUnavailable: the hub's client, PyTorch or timm is not installed.
        TlxError: there is no token, the repository is somebody else's or holds other files, the hub cannot be reached,
            or the run cannot be exported.
    """
    name = check_name(repository)
    hub = client()
    if not dry and hub.constants.HF_HUB_OFFLINE:
        raise TlxError("HF_HUB_OFFLINE is set, so nothing can be pushed", fix="unset it, or use dry (--dry)")
    if not dry and hub.get_token() is None:
        raise TlxError("there is no token for the Hugging Face Hub", fix="hf auth login, or set HF_TOKEN")
    source = read_source(Path(run_dir), "safetensors", {})
    files, timm, why = _files(name, source)
    notes = [] if timm else [f"timm does not build this model: {why}; the card has the code that loads it"]
    text = files[README].decode()
    url = f"{hub.constants.ENDPOINT}/{name}"
    if dry:
        return Pushed(name, url, "", timm, text, tuple(notes))
    with explained(name), bars(not quiet):
        notes += _prepare(hub, name, private, files)
        operations = [hub.CommitOperationAdd(path, content) for path, content in files.items()]
        commit = hub.HfApi(library_name="tlx").create_commit(
            name, operations, commit_message=f"A model of tlx: {printable(source.plain.model)}"
        )
    return Pushed(name, url, str(commit.oid), timm, text, tuple(notes))


def model_card(run_dir: str | Path, repository: str = "user/name") -> str:
    """Return the card that `tlx.push` would put beside a run's model: Markdown with the Hugging Face Hub's metadata.

    Its license is left to you. It names neither files nor folders of the machine that trained.

    Args:
        run_dir: a folder that `tlx run` wrote.
        repository: what the code in it names.

    Raises:
        RunNotFound: there is no finished run in the folder.
        BackendUnavailable: PyTorch or timm is not installed.
        TlxError: the run cannot be exported.
    """
    source = read_source(Path(run_dir), "safetensors", {})
    return _files(check_name(repository), source)[0][README].decode()


def _files(name: str, source: Source) -> tuple[dict[str, bytes], str, str]:
    """Return the files, the model's name in timm or "", and why it has none."""
    facts = read_facts(source.run_dir)
    exporter = registry.exporter("torch")
    exporter.check(source.plain)
    values = {key: v.astype(np.float32) if v.dtype.kind == "f" else v for key, v in source.values.items()}
    described, why = _described(exporter, source, values)
    timm = described["architecture"] if not why else ""
    card = card_text(name, source, facts, timm, why)
    config = _config(source, described, facts.figures)
    config["tlx"]["card_sha256"] = hashlib.sha256(card.encode()).hexdigest()
    files = {
        CONFIG: json_bytes(config),
        README: card.encode(),
        WEIGHTS: safetensors_bytes(values, {"format": "pt"}),
    }
    return files, timm, why


def _described(exporter: Any, source: Source, values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return what timm says of the model; where it has none like it, torchvision's name, and why."""
    plain = source.plain
    other = {"architecture": plain.model.rpartition(":")[2], "library": plain.library or "torchvision"}
    if plain.own:
        raise TlxError("the model or its head is a module of your own, whose code no repository of timm holds")
    run = restore(source.run_dir, "torch", single=True)
    size = plain.size
    images = (rng.uniform(0, "push", (IMAGES, 3, size, size)) * 256).astype(np.uint8)
    answer = exporter.timm_twin(plain, values, source.card.preprocess.apply(images))
    if isinstance(answer, str):
        return other, answer
    described, logits = answer
    batch = Batch(images, np.zeros(IMAGES, np.int64), np.arange(IMAGES), run.preprocess)
    expected = run.logits(run.backend.fetch([run.outputs(batch)])[0])
    error = float(np.abs(expected - logits).max() / (np.abs(expected).max() or 1.0))
    if not error <= LIMIT:
        return other, f"its {described['architecture']} has the same layout, and computes other logits"
    return described, ""


def _config(source: Source, described: Mapping[str, Any], figures: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the config.json: what timm reads, and under "tlx" what it has no word for."""
    plain, framing, preprocess = source.plain, source.framing, source.card.preprocess
    modes = {"crop": "center", "squash": "squash", "letterbox": "border"}
    seen = {
        "input_size": [3, plain.size, plain.size],
        "interpolation": preprocess.interpolation,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "crop_pct": framing.crop_fraction,
        "crop_mode": modes[framing.aspect],
        "num_classes": len(plain.classes),
    }
    recipe = source.recipe
    card = {
        "format": 2,
        "classes": list(plain.classes),
        "preprocess": asdict(preprocess),
        "crop_fraction": framing.crop_fraction,
        "pixels": {**framing.facts(), "image_size": None},
        "images": "fixed" if source.card.photos is False else "photos",
        **({} if source.card.temperature is None else {"temperature": source.card.temperature}),
        **({} if source.card.thresholds is None else {"thresholds": list(source.card.thresholds)}),
    }
    return {
        **described,
        "num_classes": len(plain.classes),
        "label_names": names_of(plain.classes),
        "pretrained_cfg": {**described.get("pretrained_cfg", {}), **seen},
        "tlx": {
            "format": FORMAT,
            "model": plain.model,
            "hidden": list(recipe.head_widths),
            "dropout": recipe.dropout,
            "figures": dict(figures),
            "card": card,
        },
    }


def _prepare(hub: Any, name: str, private: bool, files: dict[str, bytes]) -> list[str]:
    """Make the repository, or see whether it may be written to; takes out of `files` a card that was edited there."""
    api = hub.HfApi(library_name="tlx")
    try:
        info = api.model_info(name)
    except hub.errors.RepositoryNotFoundError:
        api.create_repo(name, private=private or None)
        return []
    there = {sibling.rfilename for sibling in info.siblings or ()}
    foreign = sorted(there - {CONFIG, WEIGHTS, *HARMLESS})
    before = _config_there(hub, name) if CONFIG in there else None
    mine = isinstance(before, dict) and isinstance(before.get("tlx"), dict)
    if foreign or (not mine and there & {CONFIG, WEIGHTS}):
        example = foreign[0] if foreign else CONFIG if CONFIG in there else WEIGHTS
        problem = f"{name} exists and holds {example!r}, which tlx did not write; nothing was changed"
        raise TlxError(problem, fix="choose another name")
    if private and not info.private:
        raise TlxError(f"{name} exists and is public", fix="make it private on its page first")
    if README in there:
        path = Path(hub.hf_hub_download(name, README))
        known = before["tlx"].get("card_sha256") if mine and before else None
        if hashlib.sha256(path.read_bytes()).hexdigest() != known:
            del files[README]
            return ["README.md was edited there and stays as it is; see --dry for the new one"]
    return []


def _config_there(hub: Any, name: str) -> Any:
    """Return the config.json of a repository; None where it is none."""
    try:
        metadata = hub.get_hf_file_metadata(hub.hf_hub_url(name, CONFIG))
        if (metadata.size or 0) > ENOUGH:
            return None
        return json.loads(Path(hub.hf_hub_download(name, CONFIG)).read_bytes())
    except (ValueError, RecursionError):
        return None
