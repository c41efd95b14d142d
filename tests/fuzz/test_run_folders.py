"""Run folders that a stranger wrote: every value of every file altered, with digests that agree with it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tlx
from support.altered import DEEP, alterations, fewer_inputs, mutated, of_many, to_json, workplace
from support.finished_runs import FIELDS
from support.hostile import Outcome, check
from support.run_files import state_file
from tlx.errors import Interrupted
from tlx.manifest import MANIFEST, RECIPE, Entry, Manifest, _digest, read_manifest
from tlx.models.weights import digest, read_weights, write_safetensors
from tlx.recipe import read_toml
from tlx.training.metrics import Stepped

# With all that a state can hold: frozen arrays, a moving average, an optimizer's slots, a validation part.
JOB: dict[str, Any] = {
    **FIELDS,
    "data": "digits",
    "limit_train": 60,
    "limit_test": 20,
    "val_fraction": 0.2,
    "strategy": "head_then_full",
    "phase_epochs": 2,
    "ema": 0.9,
    "epochs": 3,
    "workers": 0,
    "save_seconds": 0,
}
COMMANDS = {
    "evaluate": ("evaluate", "runs/r", "--json"),
    "evaluate other data": ("evaluate", "runs/r", "--data", "digits"),
    "predict": ("predict", "runs/r", "photo.png"),
    "explain": ("explain", "runs/r", "photo.png", "--output", "runs/explained"),
    "listing": ("runs", "runs", "--json"),
    "export": ("export", "runs/r", "model.safetensors"),
    "embed": ("embed", "runs/r", "photo.png", "-o", "runs/photo.parquet"),
    "similar": ("similar", "runs/r", "photo.png", "--in", "runs/r/images.parquet", "--sheet", "runs/sheet.png"),
    "tsne": ("tsne", "runs/r/images.parquet", "-o", "runs/map.csv"),
    "report": ("report", "runs/r"),
    "comparison": ("report", "runs/r", "runs/r", "-o", "runs/page.html"),
    "report explained": ("report", "runs/r", "--explain", "-o", "runs/page.html"),
    "resume": ("run", "--resume", "runs/r"),
    "add epochs": ("run", "--resume", "runs/r", "--epochs", "4"),
    "weights": (
        *("run", "--weights", "runs/r", "--backend", "loopback", "--model", "tiny-mlp", "--data", "digits"),
        *("--image-size", "8", "--limit-train", "40", "--limit-test", "20", "--epochs", "1"),
        *("--workers", "0", "--val-fraction", "0"),
    ),
}
commands = st.sampled_from(sorted(COMMANDS))
JSON_FILES = ("card.json", "result.json", "manifest.json")
SIGNED = st.sampled_from(("as it was", "signed anew", "not at all"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "r"
    tlx.run(**JOB, out=str(run_dir))
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)  # so few take no t-SNE
    tlx.embed(run_dir, images, run_dir / "images.parquet", quiet=True)
    return run_dir


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in the middle of its second epoch, while its backbone is frozen."""
    run_dir = tmp_path_factory.mktemp("unfinished") / "r"
    steps: list[object] = []

    def stop(event: object) -> None:
        steps.append(event)
        if sum(isinstance(event, Stepped) for event in steps) == 6:  # three of training, one of validation, two more
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        tlx.run(**JOB, out=str(run_dir), on_event=stop)
    return run_dir


def resign(run_dir: Path) -> None:
    """Make the manifest agree with the files, as a stranger would."""
    manifest = read_manifest(run_dir)
    assert manifest is not None
    contents = {name: (run_dir / name).read_bytes() for name in manifest.files if (run_dir / name).is_file()}
    files = {name: Entry(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
    Manifest({**manifest.files, **files}, contents.get(RECIPE, b"").decode(errors="surrogateescape")).write(run_dir)


def use(target: str, run: Path, command: str, folder: Path, signed: str) -> Outcome:
    if signed == "signed anew":
        resign(run)
    elif signed == "not at all":
        (run / MANIFEST).unlink()
    Image.new("RGB", (9, 8), (60, 99, 7)).save(folder / "photo.png")
    return check(f"run folder: {target}", *COMMANDS[command], folder=folder)


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "runs" / "r"))


def state_of(run: Path) -> Path:
    file = state_file(run)
    assert file is not None
    return file


def facts_of(run: Path) -> dict[str, Any]:
    content = state_of(run).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts: dict[str, Any] = json.loads(header["__metadata__"]["tlx"])
    return facts


def write_state(run: Path, facts: Any, arrays: dict[str, Any]) -> None:
    write_safetensors(state_of(run), arrays, {"tlx": json.dumps(facts)})


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"export"}))  # no framework has this network
def test_a_run_that_nobody_touched_is_used(command: str, finished: Path, unfinished: Path, tmp_path: Path) -> None:
    run = copied(unfinished if command == "resume" else finished, tmp_path)
    write_state(run, facts_of(run), read_weights(state_of(run)))
    assert use("untouched", run, command, tmp_path, signed="signed anew").code == 0


@fewer_inputs
@given(st.data())
def test_values_of_the_card_of_the_result_and_of_the_manifest(
    finished: Path, tmp_path: Path, data: st.DataObject
) -> None:
    with workplace(tmp_path) as folder:
        run = copied(finished, folder)
        file = run / data.draw(st.sampled_from(JSON_FILES))
        values = data.draw(alterations(json.loads(file.read_bytes())))
        if file.name == MANIFEST and isinstance(values, dict) and data.draw(st.booleans()):
            values["sha256"] = _digest({name: values.get(name) for name in ("format", "files", "recipe")})
        file.write_bytes(to_json(values))
        signed = "as it was" if file.name == MANIFEST else data.draw(SIGNED)
        use("card, result and manifest", run, data.draw(commands), folder, signed)


@fewer_inputs
@given(st.data())
def test_values_of_the_history(finished: Path, unfinished: Path, tmp_path: Path, data: st.DataObject) -> None:
    with workplace(tmp_path) as folder:
        run = copied(data.draw(st.sampled_from((finished, unfinished))), folder)
        file = run / "history.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        altered = data.draw(alterations(lines))
        lines = altered if isinstance(altered, list) else [altered]
        file.write_bytes(b"".join(to_json(line) + b"\n" for line in lines))
        command = data.draw(st.sampled_from(("resume", "add epochs", "evaluate")))
        use("history", run, command, folder, data.draw(SIGNED))


@fewer_inputs
@given(st.data())
def test_values_of_the_recipe(finished: Path, unfinished: Path, tmp_path: Path, data: st.DataObject) -> None:
    with workplace(tmp_path) as folder:
        run = copied(data.draw(st.sampled_from((finished, unfinished))), folder)
        values = data.draw(alterations(read_toml(run / "recipe.toml")))
        if isinstance(values, dict) and isinstance(epochs := values.get("epochs"), int):
            values["epochs"] = min(epochs, 8)  # more is an honest wish, and takes its time
        try:
            text = tomli_w.dumps(values)
        except (TypeError, AttributeError):  # TOML has no null
            text = "x = [" if values is None else f"x = {values!r}"
        (run / "recipe.toml").write_bytes(text.encode(errors="surrogatepass"))
        use("recipe", run, data.draw(commands), folder, data.draw(SIGNED))


@fewer_inputs
@given(st.data())
def test_values_of_the_state(finished: Path, unfinished: Path, tmp_path: Path, data: st.DataObject) -> None:
    with workplace(tmp_path) as folder:
        run = copied(data.draw(st.sampled_from((finished, unfinished))), folder)
        facts = data.draw(alterations(facts_of(run)))
        write_state(run, facts, read_weights(state_of(run)))
        command = data.draw(st.sampled_from(("resume", "add epochs")))
        use("saved state", run, command, folder, data.draw(SIGNED))


@fewer_inputs
@given(st.data())
def test_arrays_of_the_state_and_of_the_model(
    finished: Path, unfinished: Path, tmp_path: Path, data: st.DataObject
) -> None:
    with workplace(tmp_path) as folder:
        run = copied(data.draw(st.sampled_from((finished, unfinished))), folder)
        file = data.draw(st.sampled_from(sorted(run.rglob("*.safetensors"))))
        arrays = data.draw(of_many(read_weights(file)))
        if file == state_of(run):
            write_state(run, facts_of(run), arrays)
        else:
            write_safetensors(file, arrays)
            if (run / "card.json").exists():
                card = json.loads((run / "card.json").read_bytes())
                (run / "card.json").write_bytes(to_json({**card, "sha256": digest(arrays)}))
        use("arrays", run, data.draw(commands), folder, data.draw(SIGNED))


@fewer_inputs
@given(st.data())
def test_files_that_are_cut_missing_or_of_another_kind(
    finished: Path, unfinished: Path, tmp_path: Path, data: st.DataObject
) -> None:
    with workplace(tmp_path) as folder:
        run = copied(data.draw(st.sampled_from((finished, unfinished))), folder)
        file = data.draw(st.sampled_from(sorted(path for path in run.rglob("*") if path.is_file())))
        content = file.read_bytes()
        kind = data.draw(st.sampled_from(("bytes", "bytes", "missing", "folder", "pipe", "circle", "zero", "deep")))
        if kind == "bytes":
            file.write_bytes(data.draw(mutated(content)))
        elif kind == "deep":
            file.write_text(f'{{"classes": {DEEP}}}')
        else:
            file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind == "pipe":
            os.mkfifo(file)
        elif kind == "circle":
            file.symlink_to(file.name)
        elif kind == "zero":
            file.symlink_to("/dev/zero")
        signed = "as it was" if file.name == MANIFEST else data.draw(SIGNED)
        use("bytes", run, data.draw(commands), folder, signed)
