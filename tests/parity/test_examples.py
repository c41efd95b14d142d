"""The porting tutorials run as their readers run them, and each ends with its proof."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.backends import FRAMEWORKS

PORTING = Path(__file__).parents[2] / "examples" / "porting"
# What each one prints, beyond an exit code of 0.
PRINTED = {
    "1_from_the_tutorial.py": ("EQUAL: every stage", "2. Is the recipe the loop?"),
    "2_by_hand.py": (
        "rename={'stem': 'patchify'}",
        "blocks.0.norm (LayerNorm), fed the reference's own input, gives another output",
        "blocks.0.act (GELU, in the candidate SiLU), fed the reference's own input, gives another output",
        "between blocks.0.pwconv2 and what blocks.0 returns",
        "EQUAL: every stage",
    ),
    "3_one_percent_worse.py": (
        "other samples, as from another random stream",
        "what enters the model differs, as by resizing",
        "norm (BatchNorm2d), fed the reference's own input, gives another norm.running_mean",
        "departs from the NumPy formula",
        "8 of 8 found",
    ),
    "5_your_own_loop.py": (
        "First wrong: the rate, 0.009999999776482582 against 0.019999999552965164",
        "the average moves 2 times as far",
        "as by clipping or by the scale of the loss",
        "9 of 9 judged rightly",
    ),
    "6_other_engines.py": (
        "equal in P0, P1, P3, P4, P6",
        "the fault lies in stem, or in what enters it",
        "first gradient conv.bias",
        "Equal until step 10, where the learning rate changes",
        "4 of 4 judged rightly",
    ),
    "4_a_third_backend.py": ("3 failed", "129 passed", "EQUAL: every stage"),
}


LONG = (
    "1_from_the_tutorial.py",
    "2_by_hand.py",
    "3_one_percent_worse.py",
    "4_a_third_backend.py",
    "5_your_own_loop.py",
)


def test_every_tutorial_is_listed() -> None:
    assert sorted(path.name for path in PORTING.glob("*.py")) == sorted(PRINTED)
    assert all(name in (PORTING / "README.md").read_text(encoding="utf-8") for name in PRINTED)


@pytest.mark.slow
@pytest.mark.needs(*FRAMEWORKS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.thorough) if name in LONG else name for name in PRINTED]
)
def test_a_tutorial_ends_with_its_proof(name: str) -> None:
    done = subprocess.run([sys.executable, str(PORTING / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    missing = [text for text in PRINTED[name] if text not in done.stdout]
    assert not missing, f"{missing} not in:\n{done.stdout}"


@pytest.mark.needs("torch")
def test_an_interpreter_that_is_not_there_is_refused() -> None:
    command = [sys.executable, str(PORTING / "6_other_engines.py"), "--python", "nowhere/python"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("--python nowhere/python: there is no such program\n")
