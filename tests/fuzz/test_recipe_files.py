"""Recipe files with hostile content, and recipe files that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from support.hostile import check, hostile_inputs
from support.hostile_recipes import FIELD_NAMES, fresh_folder, literals, recipe_text, takes_long, value_of

KEYS = [
    *(
        "epoch",
        "Epochs",
        "views",
        "recipe_version",
        "strategy.name",
        "data.train",
        '"a b"',
        '"\\u202e"',
        '""',
        "__class__",
    ),
    *("a." * 2000 + "b", "x" * 5000, "lr.x", "quiet", "resume", "on_event", "[strategy]\nname", "[[data]]\nx", "[a"),
]


@hostile_inputs
@given(text=st.text())
@example(text="seed = " + "9" * 400)
@example(text="x" * 100 + " = 1")
def test_text_that_is_no_recipe(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(text.encode(errors="surrogatepass"))
    check("recipe: any text", "run", "recipe.toml", "--data", "none", folder=tmp_path)


@hostile_inputs
@given(content=st.binary(max_size=200), place=st.integers(0, 300), cut=st.integers(0, 300))
@example(content=b"\xff\xfe" + "lr = 1".encode("utf-16-le"), place=0, cut=300)
@example(content=b"\xef\xbb\xbf", place=0, cut=0)
@example(content=b"\r\n\r\n", place=0, cut=0)
@example(content=b"out = '\xe9'\n", place=0, cut=0)
@example(content=b"#" + b"x" * 2**21 + b"\n", place=0, cut=0)
def test_bytes_within_a_recipe(content: bytes, place: int, cut: int, tmp_path: Path) -> None:
    whole = recipe_text({})
    with fresh_folder(tmp_path) as folder:
        (folder / "recipe.toml").write_bytes(whole[:place] + content + whole[place + cut :])
        check("recipe: bytes within", "run", "recipe.toml", folder=folder, writes=("runs", "out"))


@hostile_inputs
@given(name=st.sampled_from(FIELD_NAMES), text=literals)
@example(name="lr", text="1e38")
@example(name="augment", text=f"'rotate:{'9' * 5000}'")
@example(name="mixup", text="1e-300")
@example(name="out", text="'new/../..'")
@example(name="out", text=f"'{'x' * 5000}'")
@example(name="data", text="'https://['")
@example(name="weights", text=f"'{'x' * 5000}'")
def test_one_altered_field(name: str, text: str, tmp_path: Path) -> None:
    value = value_of(text)
    assume(not takes_long(name, value))
    out = [os.path.normpath(value).split("/")[0]] if name == "out" and isinstance(value, str) else []
    with fresh_folder(tmp_path) as folder:
        (folder / "recipe.toml").write_bytes(recipe_text({name: text}))
        check("recipe: one altered field", "run", "recipe.toml", folder=folder, writes=("runs", *out))


@hostile_inputs
@given(names=st.lists(st.sampled_from([*FIELD_NAMES, *KEYS]), min_size=1, max_size=4), text=literals)
@example(names=["lr", "lr"], text="1")
@example(names=["strategy", "strategy.name"], text="'full'")
def test_keys_that_do_not_belong_there(names: list[str], text: str, tmp_path: Path) -> None:
    with fresh_folder(tmp_path) as folder:
        lines = "".join(f"{name} = {text}\n" for name in names)
        (folder / "recipe.toml").write_bytes(recipe_text({}) + lines.encode(errors="surrogatepass"))
        check("recipe: keys", "run", "recipe.toml", folder=folder)


PATHS = ["none.toml", ".", "..", "", "fifo", "/dev/zero", "/dev/null", "loop", "x" * 5000, "n\udcff.toml", "a\nb", "/"]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_is_no_recipe(path: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    check("recipe: odd paths", "run", path, folder=tmp_path)
