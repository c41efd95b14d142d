"""Recipe files with hostile content."""

from __future__ import annotations

from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from support.hostile import check, hostile_inputs


@hostile_inputs
@given(text=st.text())
@example(text="seed = " + "9" * 400)
@example(text="x" * 100 + " = 1")
def test_text_that_is_no_recipe(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(text.encode(errors="surrogatepass"))
    check("recipe: any text", "run", "recipe.toml", "--data", "none", folder=tmp_path)
