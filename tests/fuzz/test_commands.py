"""Every command of `tlx`, with hostile arguments and options."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from support.hostile import check, hostile_inputs
from support.hostile_recipes import BASE, FIELD_NAMES, fresh_folder, texts

FLAGS = ["--json", "--quick", "--help", "--version", "--no-json", "--", "-o", "-", "--lr", "--epochs", "--x", "-x"]
WORDS = [
    *("[", "[z-a]", "*" * 5000, "*a" * 3000, "?", "[!", "resnet*", "9" * 400, "-" + "9" * 400, "1e999", "nan", "-1"),
    *("1_000", "\u0661", "0x10", "1.5", " 1", "1,2", "true", "no", '{"a": 1}', "[1]", "a=b", "[/]", "\x1b[31m", "\n"),
    *("recipe.toml", "runs", "none", "file", "\udcff", "\u202e", "x" * 5000, "selftest", "compare", "capture", "", "0"),
]
words = st.sampled_from(WORDS) | texts
OPTIONS = {
    "strategies": ["--model", "--backend", "--epochs"],
    "models": ["--pattern"],
    "backends": [],
    "runs": [],
    "export": [],
    "embed": ["-o", "--backend", "--weights", "--dtype", "--shard", "--on-bad-image"],
    "similar": ["--in", "--top", "--sheet", "--backend", "--weights"],
    "tsne": ["-o", "--seed"],
    "push": ["--private", "--dry"],  # without a token, it ends before it asks anybody
    "evaluate": ["--backend", "--data", "--top", "--csv"],
    "predict": ["--backend", "--top", "--csv", "--reject", "--calibrated"],
    "explain": ["--backend", "--class", "--output"],
    "serve": ["--backend", "--port", "--reject", "--calibrated"],
    "report": ["-o", "--explain", "--backend"],
    "check": ["--labels", "--html", "--decisions", "--model", "--run", "--path-column"],
    "compare": ["--strategies", "--models", "--backends", "--grid", "--seeds", "--jobs", "--out", "--dry-run"],
    "advise": ["--budget", "--model", "--epochs"],
    "find-lr": ["--picture", "--strategy"],
    "parity": ["--reference", "--candidate", "--seeds", "--margin", "--keep", "--html"],
    "": [],
    "run": ["--resume"],
    "plan": [],
    "parity capture": ["--output", "--reference"],
    "parity compare": ["--html"],
    "parity selftest": ["--backend"],
}
DASHED = [f"--{name.replace('_', '-')}" for name in FIELD_NAMES]
TRAINING = {
    "run",
    "parity",
    "parity capture",
    "compare",
    "advise",
    "find-lr",
}  # here only with what is wrong; `test_options_of_a_run` trains
# What a valid call would do takes seconds, or starts other processes on purpose.
SLOW = {"selftest", "doctor"}


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """A command with words and options of its own, of `run`, or of none."""
    name = draw(st.sampled_from([*OPTIONS, "strategies", "models"]) | words)
    known = [*OPTIONS.get(name, []), *FLAGS, "--backend"]
    option = st.tuples(st.sampled_from(known), words).map(list)
    parts = draw(st.lists(words.map(lambda word: [word]) | option, max_size=4))
    trains = ["--data=none"] if name in TRAINING else []
    return [*name.split(" "), *(word for part in parts for word in part), *trains]


@hostile_inputs
@given(argv=commands())
@example(argv=["models", "["])
@example(argv=["strategies", "x\x1b[31m"])
@example(argv=["strategies", "--epochs", "9" * 5000])
@example(argv=["strategies", "partial", "--model", "tiny-mlp", "--backend", "loopback"])
@example(argv=["predict", "runs", "--top", "-1"])
@example(argv=["evaluate", "runs", "--top", "-1"])
@example(argv=["export", "runs", "file.onnx"])
@example(argv=["embed", "runs", "file", "-o", "e.parquet", "--shard", "0/0"])
@example(argv=["embed", "x\x1b[31m", "digits", "-o", "file"])
@example(argv=["similar", "runs", "file", "--in", "file", "--top", "-1"])
@example(argv=["tsne", "file", "-o", "map.png", "--seed", "9" * 400])
@example(argv=["explain", "runs", "file", "--output", "file"])
@example(argv=["serve", "runs", "--port", "65536"])
@example(argv=["check", "file", "--decisions", "file"])
@example(argv=["compare", "--data=none", "--grid", "lr=1|nan"])
def test_any_arguments(argv: list[str], tmp_path: Path) -> None:
    with fresh_folder(tmp_path) as folder:
        (folder / "file").write_text("x")
        if not SLOW & set(argv):
            check("commands: any arguments", *argv, folder=folder, writes=("runs", *argv))


@hostile_inputs
@given(options=st.lists(st.tuples(st.sampled_from(DASHED), words), min_size=1, max_size=2), joined=st.booleans())
@example(options=[("--epochs", "1e999")], joined=False)
@example(options=[("--seed", "9" * 5000)], joined=True)
def test_options_of_a_run(options: list[tuple[str, str]], joined: bool, tmp_path: Path) -> None:
    given_here = {name for name, _ in options}
    base = [f"--{name.replace('_', '-')}={value}" for name, value in BASE.items()]
    kept = [word for word in base if word.partition("=")[0] not in given_here]
    words = [f"{name}={word}" for name, word in options] if joined else [word for pair in options for word in pair]
    with fresh_folder(tmp_path) as folder:
        writes = ("runs", *(os.path.normpath(word).split("/")[0] for name, word in options if name == "--out"))
        check("commands: options of a run", "run", *kept, *words, folder=folder, writes=writes)
