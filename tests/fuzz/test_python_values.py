"""`tlx.run`, `tlx.plan` and `tlx.Recipe` with values of any type: a mistake is a TlxError of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import tlx
from support.hostile import hostile_inputs, mistake_or_none
from support.hostile_recipes import BASE, FIELD_NAMES, anything, fresh_folder, takes_long


@hostile_inputs
@given(name=st.sampled_from(FIELD_NAMES), value=anything)
@example(name="lr", value=float)
@example(name="seed", value=10**5000)
def test_values_of_fields(name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assume(not takes_long(name, value))
    with fresh_folder(tmp_path) as folder:
        monkeypatch.chdir(folder)
        mistake_or_none("Python: tlx.run with one altered field", lambda: tlx.run(**{**BASE, name: value}, quiet=True))
        monkeypatch.chdir(tmp_path)


@hostile_inputs
@given(recipe=anything, fields=st.dictionaries(st.sampled_from(FIELD_NAMES) | st.text(), anything, max_size=3))
@example(recipe=[1], fields={})
@example(recipe={1: 2}, fields={})
def test_values_of_a_plan(recipe: Any, fields: dict[str, Any]) -> None:
    fields.pop("recipe", None)
    fields.setdefault("backend", "loopback")
    mistake_or_none("Python: tlx.plan", lambda: tlx.plan(recipe, **fields))


@hostile_inputs
@given(resume=anything, quiet=st.booleans(), on_event=st.none() | anything)
@example(resume=Path("x" * 300), quiet=False, on_event=None)
def test_other_arguments_of_a_run(
    resume: Any, quiet: bool, on_event: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mistake_or_none(
        "Python: tlx.run, other arguments", lambda: tlx.run(resume=resume, quiet=quiet, on_event=on_event, **BASE)
    )
