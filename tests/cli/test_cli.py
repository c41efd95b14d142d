"""The command line as a user meets it: real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from support.finished_runs import load_digits

TLX = Path(sys.executable).with_name("tlx")
RUN = [
    *("run", "--backend", "loopback", "--model", "tiny-mlp", "--weights", "none", "--data", "digits", "--epochs", "2"),
    *("--image-size", "8", "--augment", "none", "--limit-train", "200", "--limit-test", "50", "--lr", "0.05"),
]


def tlx(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TLX, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_run_prints_one_json_object_last_and_everything_else_to_stderr(tmp_path: Path) -> None:
    done = tlx(*RUN, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    result = json.loads(done.stdout)
    assert result["run_dir"] == "runs/digits-tiny-mlp-full-loopback-1"
    for shown in ("10 classes", "parameters", "epoch 2/2", "test accuracy"):
        assert shown in done.stderr
    assert "\x1b" not in done.stderr
    again = json.loads(tlx(*RUN, "--json", cwd=tmp_path).stdout)
    assert again["run_dir"].endswith("-2") and again["test_accuracy"] == result["test_accuracy"]
    saved = tlx("run", f"{result['run_dir']}/recipe.toml", "--epochs", "1", "--json", cwd=tmp_path)
    assert json.loads(saved.stdout)["epochs_run"] == 1
    evaluated = json.loads(tlx("evaluate", result["run_dir"], "--json", cwd=tmp_path).stdout)
    assert evaluated["test_accuracy"] == evaluated["recorded_accuracy"] == result["test_accuracy"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--strateg", "full"], "--strateg"),
        (["run", "--strategy", "ful"], "Unknown strategy 'ful'. Did you mean 'full'?"),
        (["run", "--epochs", "many"], "epochs"),
        (["run", "--epochs", "0"], "epochs is 0"),
        (["run", "--lr", "nan"], "lr is nan"),
        (["run", "--model", "resnet"], "Unknown model 'resnet'"),
        (["run", "nowhere.toml"], "nowhere.toml: cannot read the recipe"),
        (
            ["run", "--backend", "loopback", "--model", "tiny-mlp", "--data", "nowhere"],
            "neither a known data set nor an existing folder",
        ),
        (["run", "--backend", "loopback", "--model", "tiny-mlp", "--data", "."], "train/"),
        (["run", "--backend", "jax"], "Unknown backend 'jax'"),
        ([*RUN, "--device", "cuda"], "has no device 'cuda'"),
        ([*RUN, "--batch-size", "-1"], "batch_size is -1"),
        ([*RUN, "--classes", "1,seven"], "no class 'seven'"),
        (["run", "--optimizer", "adm"], "Unknown optimizer 'adm'. Did you mean 'adam'"),
        (
            [*RUN, "--optimizer", "adam", "--momentum", "0.5"],
            "momentum is 0.5, but optimizer adam has no momentum factor",
        ),
        ([*RUN, "--strategy", "partial", "--stages", "layer4"], "tiny-mlp has no stage 'layer4'"),
        ([*RUN, "--patience", "2", "--val-fraction", "0"], "patience watches the validation part"),
        (["run", "--resume", "nowhere"], "nowhere holds no run"),
        (["evaluate", "."], "holds no finished run"),
        (["evaluat"], "evaluat"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = tlx(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("tlx: ") and done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_ctrl_c_says_how_to_go_on_and_it_does(tmp_path: Path) -> None:
    options = ["60" if option == "2" else option for option in RUN] + ["--save-seconds", "0", "--out", "mine"]
    with subprocess.Popen([TLX, *options], cwd=tmp_path, stdout=-1, stderr=-1, text=True) as child:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "mine").glob("last/state-*")):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        out, shown = child.communicate(timeout=60)
    last = shown.splitlines()[-1]
    assert child.returncode == 130 and not out and "Traceback" not in shown
    assert "tlx: stopped" in last and last.endswith("Go on with: tlx run --resume mine")
    assert "epochs cannot change" in tlx("run", "--resume", "mine", "--epochs", "3", cwd=tmp_path).stderr
    done = tlx("run", "--resume", "mine", "--save-seconds", "60", "--json", cwd=tmp_path)
    assert "resumed in epoch" in done.stderr and json.loads(done.stdout)["epochs_run"] == 60


def test_the_tables(tmp_path: Path) -> None:
    shown = {
        name: tlx(*name.split(), cwd=tmp_path)
        for name in ("models", "backends", "strategies --backend loopback --model tiny-mlp", "--version", "--help")
    }
    assert all(done.returncode == 0 for done in shown.values()), [done.stderr for done in shown.values()]
    outputs = [done.stdout for done in shown.values()]
    assert "squeezenet1_0" in outputs[0] and "1.2 M" in outputs[0] and "tiny-mlp" not in outputs[0]
    assert max(map(len, outputs[0].splitlines())) <= 80
    assert "loopback" not in outputs[1] and "tlx_torch" not in outputs[1]
    assert all(name in outputs[2] for name in ("scratch", "diff_lr", "feature_extract", "frozen"))
    assert "evaluate" in outputs[4] and "doctor" in outputs[4]


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("models resnet", "models"),
        ("backends", "backends"),
        ("strategies --backend loopback --model tiny-mlp", "strategies"),
        ("strategies full --backend loopback --model tiny-mlp", "strategies"),
    ],
)
def test_what_is_listed_is_also_one_object_on_one_line(command: str, key: str, tmp_path: Path) -> None:
    done = tlx(*command.split(), "--json", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    listed = json.loads(done.stdout)[key]
    assert listed and all(isinstance(entry, dict) for entry in listed)


def test_a_filter_lists_only_the_models_that_match(tmp_path: Path) -> None:
    def names(pattern: str) -> list[str]:
        return [arch["name"] for arch in json.loads(tlx("models", pattern, "--json", cwd=tmp_path).stdout)["models"]]

    assert names("mnasnet1_?") == ["mnasnet1_0", "mnasnet1_3"] and names("squeeze") == [
        "squeezenet1_0",
        "squeezenet1_1",
    ]
    nothing = tlx("models", "lenet5", cwd=tmp_path)
    assert nothing.returncode == 2 and nothing.stderr == "tlx: No model matches 'lenet5'; `tlx models` lists them all\n"


def test_photos_are_predicted_and_other_data_evaluated(tmp_path: Path) -> None:
    """A run of two classes; one photo of five cannot be read."""
    made = tlx(*RUN, "--classes", "3,7", "--out", "run", "--val-fraction", "0", "--batch-size", "16", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    digits = load_digits()["test"]
    for i in np.flatnonzero((digits.labels == 3) | (digits.labels == 7))[:4]:
        path = tmp_path / "photos" / str(digits.labels[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digits.open(int(i)).save(path)
    good = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "photos").rglob("*.png"))
    (tmp_path / "bad.png").write_bytes(b"no photo")

    lines = tlx("predict", "run", "photos", "bad.png", "--top", "3", cwd=tmp_path)
    assert lines.returncode == 0 and [line.partition(":")[0] for line in lines.stdout.splitlines()] == good
    assert all(line.count(",") == 1 for line in lines.stdout.splitlines())
    assert lines.stderr.startswith("not read: bad.png") and lines.stderr.endswith("1 of 5 images cannot be read\n")
    (row,) = json.loads(tlx("predict", "run", "bad.png", "photos", "--json", cwd=tmp_path).stdout)["predictions"][:1]
    assert row["path"] == "bad.png" and "cannot be decoded" in row["error"] and row["class"] is None
    table = tlx("predict", "run", "photos", "bad.png", "--csv", "out.csv", "--json", cwd=tmp_path)
    assert json.loads(table.stdout) == {
        **{"run_dir": "run", "tta": "none", "csv": "out.csv", "predicted": 4, "unreadable": 1}
    }
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows[0] == '"path","prediction","probability","prediction_2","probability_2","error"' and len(rows) == 6
    nothing = tlx("predict", "run", "bad.png", "--csv", "none.csv", cwd=tmp_path)
    assert nothing.returncode == 2 and not nothing.stdout and nothing.stderr.count("\n") == 1
    assert (
        nothing.stderr.startswith("tlx: 1 of 1 images cannot be read: bad.png") and not (tmp_path / "none.csv").exists()
    )

    shown = tlx("evaluate", "run", "--data", "photos", "--top", "2", cwd=tmp_path).stdout.splitlines()
    assert "over 4 images of photos on loopback; the run recorded" in shown[0] and "top-2 accuracy 1.0000" in shown[1]
    assert [line.split()[:2] for line in shown[3:] if line.split()[:1] in (["3"], ["7"])] == [["3", "1"], ["7", "3"]]
    assert json.loads(tlx("evaluate", "run", "--json", cwd=tmp_path).stdout)["top_k"] is None
