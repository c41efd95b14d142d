"""Names are text wherever they are shown: no markup, no HTML, no control characters."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tlx
from support.hostile_recipes import BASE, nested
from tlx.console import Console, styled
from tlx.errors import RecipeError, TlxError, printable, shown
from tlx.proof.report import Report, to_html, to_json
from tlx.proof.result import Difference, Row, Stage, Verdict
from tlx.runs.display import print_table

TAG = "<script>alert(1)</script>"
NAMES = ["[red]", "[/]", ":smile:", "a\x1b[31m", "a\rb", "a\nb", "\x9b2J", "\x1b]0;t\x07", "\u202egnp", "\u200b"]


class Silent:
    """An object whose `repr` is broken."""

    def __repr__(self) -> str:
        raise ValueError("broken")


VALUES = {"digits": 10**5000, "depth": nested(), "silent": Silent(), "long": "x" * 10**6, "silent ones": [Silent()]}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_an_error_shows_any_value_in_a_few_words(value: object) -> None:
    assert 0 < len(shown(value)) <= 200
    with pytest.raises(RecipeError) as caught:
        tlx.Recipe(lr=value)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", NAMES)
def test_a_console_prints_a_name_as_it_is_or_escaped(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    console = Console(file=file, width=200, force_terminal=True, color_system=None)
    console.print(name, "|", styled(name, "bold"), sep="")
    print_table([name, "x"], [[name, name]])
    assert re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()) == f"{printable(name)}|{printable(name)}\n"
    assert capsys.readouterr().out.count(printable(name)) == 3


def test_letters_of_all_alphabets_and_emoji_are_printed_as_they_are() -> None:
    for name in ("Äpfel", "猫", "ñ é", "کتاب", "हिन्दी", "\U0001f600", "e\u0301"):
        assert printable(name) == name
    assert printable("\U0001f468\u200d\U0001f469") == "\U0001f468\\u200d\U0001f469"


def test_all_that_has_colours_is_printed_through_one_console() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in Path(tlx.__file__).parent.rglob("*.py")}
    direct = re.compile(r"rich\.(console|text|markup)|rich import|TextColumn")
    assert [name for name, text in sources.items() if direct.search(text)] == ["console.py"]


def test_what_a_notebook_shows_has_no_tag_of_a_name() -> None:
    images = np.zeros((20, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = range(20)
    arrays = {"train": (images, np.arange(20) % 2), "classes": [TAG, "\u202ex"]}
    strategy = tlx.Strategy(TAG, (tlx.Group(TAG, "all"),), (tlx.Phase(TAG, {TAG: 0.1}),))
    fields = {name: value for name, value in BASE.items() if name != "lr"}
    shown_as = [
        tlx.load_data(arrays)._repr_html_(),
        tlx.plan(**fields, strategy=strategy)._repr_html_(),
        tlx.Recipe(weights=TAG, strategy=strategy, out="\x1b[31m")._repr_html_(),
    ]
    for html in shown_as:
        assert "<script" not in html and "\u202e" not in html and "\x1b" not in html
    assert "&lt;script&gt;" in shown_as[0] and "\\u202e" in shown_as[0]


def test_a_report_has_no_tag_and_no_control_character_of_a_name() -> None:
    names = f"{TAG}\x1b[2J\u202e[/]"
    row = Row(kind="output", path=names, error=1.0, passed=False, values=(names, names))
    field = replace(row, kind="field")
    stages = (Stage("P0", 1.0, 0, False, (field,), {"equal": 1}), Stage("P3", 1.0, 1e-10, False, (row,)))
    difference = Difference(stages[1], row)
    report = Report(names, names, names, Verdict.DIFFERENT, stages, difference, (names,))
    for text in (to_html(report), to_json(report), str(report)):
        assert "\x1b" not in text and "\u202e" not in text
    assert "<script" not in to_html(report) and "[/]" in str(report)


def test_a_class_name_with_control_characters_is_refused_in_python_too() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(TlxError, match=r"control characters") as caught:
        tlx.load_data({"train": (images, np.arange(4) % 2), "classes": ["a\x1b[31m", "b"]})
    assert "\x1b" not in str(caught.value)
