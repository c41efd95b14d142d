"""Models on the Hugging Face Hub: pushed to and pulled from a server that speaks its protocol, by its own client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.distance import relative_distance
from support.hub import TOKEN, Hub, ask, serving_hub
from support.multilabel import digits
from tlx.errors import TlxError

for package in ("torch", "timm", "huggingface_hub"):
    pytest.importorskip(package)
pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]

FIELDS: dict[str, Any] = {
    **{"backend": "torch", "data": "digits", "strategy": "scratch", "weights": "none", "image_size": 32, "epochs": 1},
    **{"limit_train": 24, "limit_test": 20, "val_fraction": 0, "batch_size": 8, "lr": 0.01, "precision": "float32"},
    "quiet": True,
}
SETUP = """
import json, os, tlx
from tlx.errors import TlxError
def said(call):
    try:
        return call()
    except TlxError as error:
        return str(error)
"""
# All that needs PyTorch and timm, whose imports take most of the time. `control` is what happens meanwhile elsewhere.
TOLD = (
    SETUP
    + """
import contextlib, io, urllib.request
import numpy as np, timm, torch
os.chdir(HOME)
control = lambda name: urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/control/" + name).read()
answer = {}
pushed = tlx.push(RUN, "me/digits", quiet=True)
answer["pushed"] = [pushed.url, pushed.commit, pushed.timm, list(pushed.notes), pushed.card]
images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
run = tlx.load_model(RUN)
with torch.no_grad():
    answer["own"] = run(images).tolist()
    model = timm.create_model("hf-hub:me/digits", pretrained=True).eval()
    answer["timm"] = model(images).tolist()
    answer["resnet18 is"] = tlx.push(RESNET, "me/resnet18", quiet=True).timm
    answer["resnet18"] = tlx.load_model(RESNET)(images).tolist()
    answer["resnet18 in timm"] = timm.create_model("hf-hub:me/resnet18", pretrained=True).eval()(images).tolist()
names = {}
exec(pushed.card.split("```python")[1].split("```")[0], names)
answer["transform"] = str(names["transform"])
answer["labels"] = model.pretrained_cfg["label_names"]
several = tlx.push(SEVERAL, "me/several", quiet=True)
answer["several"] = [several.timm, several.card]
with torch.no_grad():
    answer["several's logits"] = [
        model(images).tolist()
        for model in (tlx.load_model(SEVERAL), timm.create_model("hf-hub:me/several", pretrained=True).eval())
    ]
tlx.pull("me/several", "several", quiet=True)
answer["pulled"] = str(tlx.pull("me/digits", "pulled", quiet=True))
with torch.no_grad():
    answer["again"] = tlx.load_model("pulled")(images).tolist()
photos = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3)).astype(np.uint8)
answer["predictions"] = [[p["top"] for p in tlx.predict(run, photos, quiet=True)] for run in (RUN, "pulled")]
answer["without data"] = said(lambda: tlx.evaluate("pulled", quiet=True)["test_accuracy"])
both = SEVERAL, "several"
answer["several's labels"] = [[p["labels"] for p in tlx.predict(run, photos, quiet=True)] for run in both]
answer["several listed"] = tlx.list_runs("several")[0]["test_average_precision"]
answer["listed"] = [entry["state"] for entry in tlx.list_runs("pulled")]
answer["twice"] = said(lambda: tlx.pull("me/digits", "pulled", quiet=True))
answer["resumed"] = said(lambda: tlx.run(resume="pulled", epochs=9, data="digits", quiet=True))
control("edit")
answer["pushed again"] = list(tlx.push(RUN, "me/digits", quiet=True).notes)
answer["public"] = said(lambda: tlx.push(RUN, "me/digits", private=True, quiet=True))
answer["foreign"] = said(lambda: tlx.push(RUN, "me/foreign", quiet=True))
control("strangers")
answer["of timm"] = said(lambda: tlx.push(RUN, "me/of-timm", quiet=True))
answer["of another"] = said(lambda: tlx.push(RUN, "somebody/digits", quiet=True))
tlx.push(RUN, "me/secret", private=True, quiet=True)
other = tlx.push(SQUEEZENET, "me/squeezenet", quiet=True)
answer["squeezenet"] = [other.timm, list(other.notes), other.card]
answer["squeezenet again"] = said(lambda: tlx.pull("me/squeezenet", "squeezenet", quiet=True).name)
answer["stranger"] = said(lambda: tlx.pull("someone/net", quiet=True).name)
answer["stranger's classes"] = said(lambda: list(tlx.load_model("net").classes))
FIELDS |= {"model": "timm:test_resnet", "strategy": "full", "weights": "net", "out": "next"}
answer["stranger's weights"] = said(lambda: tlx.run(**FIELDS).recipe.weights)
for name in NAMES:
    answer[name] = said(lambda: str(tlx.pull(name, quiet=True)))
answer["left"] = sorted(os.listdir())
control("break")
answer["broken"] = said(lambda: tlx.push(SQUEEZENET, "me/x", quiet=True))
from tlx.cli import app
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
    app(["push", SQUEEZENET, "me/other", "--dry"], exit_on_error=False)
answer["dry"] = out.getvalue()
"""
)
REFUSED = {
    "someone/none": "has no repository 'someone/none', or keeps it private",
    "someone/pickled": "has no model.safetensors, and tlx reads no other file of it",
    "someone/bare": "has no config.json, so it is no model of timm",
    "someone/huge": "has a config.json of 20,000,000 bytes; expected at most 16,777,216",
    "someone/list": "config.json of someone/list",
    "someone/deep": "config.json of someone/deep",
    "someone/other": "pretrained_cfg.input_size",
    "someone/args": "builds its model with 'in_chans', which tlx does not do",
    "someone/path": "Unknown model 'timm:../../etc/passwd'",
    "someone/garbage": "damaged or not a .safetensors file",
    "someone/unfit": "Weights do not fit",
    "someone": "REPOSITORY is 'someone'; expected USER/NAME",
    "../net": "expected USER/NAME",
    "a/b/c": "expected USER/NAME",
    "someone/bare@v9": "has no revision 'v9'",
}


def run_of(model: str, home: Path) -> Path:
    return tlx.run(**FIELDS, model=model, out=str(home / model.rpartition(":")[2])).run_dir


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("hub")
    made = {name: run_of(name, home) for name in ("resnet18", "squeezenet1_1", "timm:test_resnet")}
    job = {**FIELDS, "data": digits(60), "limit_train": None, "val_fraction": 0.3, "model": "timm:test_resnet"}
    return {**made, "several": tlx.run(**job, out=str(home / "several")).run_dir}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving_hub() as hub:
        yield hub


def add_strangers(hub: Hub) -> None:
    """Put repositories beside one that tlx pushed: what timm itself writes of such a model, and what nobody should."""
    pushed = hub.repositories["me/digits"]
    known = {"input_size": [3, 40, 40], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center"}
    labels = ["cat", "dog\x1b[2J", "\u202eowl", *map(str, range(7))]
    config = {
        "architecture": "test_resnet",
        "num_classes": 10,
        "label_names": labels,
        "pretrained_cfg": {**known, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }
    weights = pushed["model.safetensors"]

    def repository(**values: Any) -> dict[str, bytes]:
        return {"config.json": json.dumps({**config, **values}).encode(), "model.safetensors": weights}

    whole = repository()
    hub.repositories |= {
        "me/of-timm": whole,
        "someone/net": {**whole, "../../evil": b"x", "pytorch_model.bin": b"cos\nsystem\n"},
        "someone/unfit": repository(num_classes=2, label_names=["a", "b"]),
        "someone/pickled": {"config.json": whole["config.json"], "pytorch_model.bin": b"cos\nsystem\n"},
        "someone/bare": {"model.safetensors": weights},
        "someone/huge": {**whole, "config.json": b" " * 20_000_000},
        "someone/list": {**whole, "config.json": b"[]"},
        "someone/deep": {**whole, "config.json": b"[" * 100_000},
        "someone/other": repository(pretrained_cfg={}),
        "someone/args": repository(model_args={"in_chans": 5}),
        "someone/path": repository(architecture="../../etc/passwd"),
        "someone/garbage": {**whole, "model.safetensors": b"\xff" * 100},
    }


@pytest.fixture(scope="module")
def told(runs: dict[str, Path], hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All that one process did with the hub, whose client reads its environment once."""
    home = tmp_path_factory.mktemp("told")
    hub.repositories["me/foreign"] = {"README.md": b"mine", "weights.bin": b"x"}

    def edit() -> None:
        hub.repositories["me/digits"]["README.md"] = b"edited by hand"

    def break_off() -> None:
        hub.stored.clear()
        hub.uploads_break = True

    hub.controls = {"edit": edit, "strangers": lambda: add_strangers(hub), "break": break_off}
    names = {
        "RUN": str(runs["timm:test_resnet"]),
        "RESNET": str(runs["resnet18"]),
        "SQUEEZENET": str(runs["squeezenet1_1"]),
        "SEVERAL": str(runs["several"]),
        "HOME": str(home),
    }
    values = {**names, "FIELDS": FIELDS, "NAMES": [*REFUSED]}
    code = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + TOLD
    answer = ask(code, hub, home.parent / "cache", HF_TOKEN=TOKEN)
    assert isinstance(answer, dict), answer
    return {**answer, "home": home}


def test_what_is_pushed_gives_the_same_logits_in_timm(told: dict[str, Any], hub: Hub) -> None:
    url, commit, timm, notes, _ = told["pushed"]
    assert (url, timm, notes) == (hub.url("me/digits"), "test_resnet", []) and len(commit) == 40
    assert relative_distance(told["own"], told["timm"]) < 1e-5
    assert told["resnet18 is"] == "resnet18"
    assert relative_distance(told["resnet18"], told["resnet18 in timm"]) < 1e-5
    assert told["labels"] == [str(digit) for digit in range(10)]
    assert "32" in told["transform"] and "0." in told["transform"]  # the lines of the card run


def test_what_is_pulled_is_a_folder_like_that_of_a_run(told: dict[str, Any]) -> None:
    np.testing.assert_array_equal(told["again"], told["own"])
    assert told["predictions"][0] == told["predictions"][1] and told["listed"] == ["finished"]
    assert "pulled without the data that it was trained on; pass some" in told["without data"]
    assert "holds no state" in told["resumed"]
    assert told["twice"].startswith("pulled is there already, and tlx overwrites nothing")


def test_the_card_says_what_the_run_found_and_names_no_place(told: dict[str, Any], runs: dict[str, Path]) -> None:
    import yaml

    card = told["pushed"][-1]
    metadata = yaml.safe_load(card.split("---")[1])
    result = json.loads((runs["timm:test_resnet"] / "result.json").read_text())
    (found,) = metadata["model-index"][0]["results"]
    assert [(metric["type"], metric["name"], metric["value"]) for metric in found["metrics"]] == [
        ("accuracy", "test accuracy", result["test_accuracy"]),
        ("balanced_accuracy", "balanced accuracy", result["test_balanced_accuracy"]),
        ("f1", "macro F1", result["test_macro_f1"]),
    ]
    assert found["dataset"]["name"] == "digits"
    assert metadata["library_name"] == "timm" and metadata["pipeline_tag"] == "image-classification"
    assert "license" not in metadata and str(runs["resnet18"].parent) not in card


def test_a_run_of_several_labels_is_pushed_and_pulled_with_its_thresholds(
    told: dict[str, Any], runs: dict[str, Path]
) -> None:
    import yaml

    timm, card = told["several"]
    several = json.loads((runs["several"] / "result.json").read_text())["multilabel"]
    assert timm == "test_resnet"
    own, theirs = told["several's logits"]
    assert relative_distance(own, theirs) < 1e-5
    one, other = told["several's labels"]
    assert one == other and any(one)
    (found,) = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    assert {metric["name"]: metric["value"] for metric in found["metrics"]} == {
        "mAP": several["test"]["average_precision"],
        "micro F1": several["test"]["micro_f1"],
        "macro F1": several["test"]["macro_f1"],
    }
    assert told["several listed"] == several["test"]["average_precision"]
    assert all(f"{name} {least:.4f}" in card for name, least in several["thresholds"].items())
    assert "sigmoid of its logit" in card and "accuracy" not in card


def test_a_second_push_keeps_a_card_that_was_edited_there(told: dict[str, Any], hub: Hub) -> None:
    assert told["pushed again"] == ["README.md was edited there and stays as it is; see --dry for the new one"]
    assert hub.repositories["me/digits"]["README.md"].startswith(b"edited")


def test_repositories_that_are_not_of_tlx_are_left_alone(told: dict[str, Any], hub: Hub) -> None:
    fix = "which tlx did not write; nothing was changed. Fix: choose another name"
    assert told["foreign"] == f"me/foreign exists and holds 'weights.bin', {fix}"
    assert told["of timm"] == f"me/of-timm exists and holds 'config.json', {fix}"
    assert told["public"].startswith("me/digits exists and is public")
    assert "the hub answers 403" in told["of another"] and "may write there" in told["of another"]
    assert hub.private == {"me/secret"} and set(hub.written) == {
        "me/digits",
        "me/resnet18",
        "me/secret",
        "me/several",
        "me/squeezenet",
    }


def test_a_model_that_timm_does_not_build_is_pushed_with_the_code_that_loads_it(told: dict[str, Any], hub: Hub) -> None:
    timm, notes, card = told["squeezenet"]
    (note,) = notes
    assert timm == "" and note.startswith("timm does not build this model: timm has no model 'squeezenet1_1'")
    assert "model = torchvision.models.squeezenet1_1(num_classes=10)" in card and "library_name: pytorch" in card
    assert told["squeezenet again"] == "squeezenet"


def test_a_strangers_model_of_timm_is_pulled(told: dict[str, Any], hub: Hub) -> None:
    assert told["stranger"] == "net"
    assert told["stranger's classes"] == ["cat", "dog\\x1b[2J", "\\u202eowl", *map(str, range(7))]
    card = json.loads((told["home"] / "net" / "card.json").read_text())
    assert card["preprocess"]["size"] == 40 and card["crop_fraction"] == 0.95 and card["pixels"]["aspect"] == "crop"
    assert sorted(path.name for path in (told["home"] / "net").iterdir()) == [
        *("card.json", "manifest.json", "model.safetensors", "recipe.toml", "result.json")
    ]
    asked = {path for _, path, _ in hub.asked if path.startswith("/someone/net/")}
    assert all(path.endswith(("/config.json", "/model.safetensors")) for path in asked)
    assert told["stranger's weights"] == "net"


def test_what_cannot_be_pulled_is_one_line(told: dict[str, Any]) -> None:
    for name, said in REFUSED.items():
        assert said in told[name] and "\n" not in told[name] and len(told[name]) < 600, told[name]
    assert told["left"] == ["net", "next", "pulled", "several", "squeezenet"]  # and nothing of those


def test_what_cannot_be_pushed_is_one_line_before_anything_is_asked(
    runs: dict[str, Path], hub: Hub, tmp_path: Path
) -> None:
    code = f"{SETUP}answer = [said(lambda: tlx.push({str(runs['resnet18'])!r}, name)) for name in ('me/x', 'me')]"
    asked = len(hub.asked)
    assert ask(code, hub, tmp_path) == [
        "there is no token for the Hugging Face Hub. Fix: hf auth login, or set HF_TOKEN",
        "REPOSITORY is 'me'; expected USER/NAME, as on the Hugging Face Hub",
    ]
    offline, _ = ask(code, hub, tmp_path, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1")
    assert offline.startswith("HF_HUB_OFFLINE is set, so nothing can be pushed") and len(hub.asked) == asked


def test_an_upload_that_breaks_off_changes_nothing_there(told: dict[str, Any], hub: Hub) -> None:
    assert "the hub answers 403" in told["broken"] or "cannot be reached" in told["broken"]
    assert "\n" not in told["broken"] and [*hub.repositories["me/x"]] == [".gitattributes"]
    assert "me/x" not in hub.written


def test_the_command_prints_the_card_alone_and_ends_with_2_where_nothing_can_be_had(
    told: dict[str, Any], hub: Hub, tmp_path: Path
) -> None:
    assert told["dry"].startswith("---\n") and "tlx pull me/other" in told["dry"]
    assert "me/other" not in hub.repositories
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tlx", "pull", "me/x"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and "HF_HUB_OFFLINE is set" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_that_no_repository_can_hold_is_refused(tmp_path: Path) -> None:
    fields = {**FIELDS, "backend": "loopback", "model": "tiny-mlp", "image_size": 8}
    run = tlx.run(**fields, out=str(tmp_path / "run")).run_dir
    with pytest.raises(TlxError, match="torchvision has no model 'tiny-mlp'"):
        tlx.model_card(run)
