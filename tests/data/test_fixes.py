"""Decisions on single images: what they change, what they leave, and what is refused."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.finished_runs import FIELDS
from tlx.errors import DataError
from tlx.recipe import Recipe

CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twenty small photos, in no parts."""
    from PIL import Image

    root, draw = tmp_path_factory.mktemp("fixes") / "photos", np.random.default_rng(0)
    for i in range(40):
        path = root / CLASSES[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)
    return root


def write(path: Path, *rows: dict[str, str]) -> str:
    names = ("part", "path", "decision", "suggested", "content")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({"part": "all", **row} for row in rows)
    return str(path)


def placed(data: tlx.Data) -> dict[str, tuple[str, str]]:
    """The part and the class of each image."""
    return {
        name: (part, data.classes[label])
        for part, images in data.parts.items()
        for name, label in zip(images.names, images.labels, strict=True)
    }


def test_an_image_goes_and_all_others_stay_where_they_were(photos: Path, tmp_path: Path) -> None:
    before = placed(tlx.load_data(photos))
    rows = [{"path": name, "decision": "drop"} for name in ("cat/02.png", "dog/17.png")]
    data = tlx.load_data(photos, fixes=write(tmp_path / "f.csv", *rows, {"path": "cat/04.png", "decision": "keep"}))
    assert placed(data) == {name: place for name, place in before.items() if name not in ("cat/02.png", "dog/17.png")}
    assert any("0 images relabelled, 2 dropped, 1 kept as they are" in note for note in data.notes)


def test_a_label_changes_before_classes_are_chosen_and_the_fingerprint_with_it(photos: Path, tmp_path: Path) -> None:
    row = {"path": "cat/02.png", "decision": "relabel", "suggested": "dog"}
    before, data = tlx.load_data(photos), tlx.load_data(photos, fixes=write(tmp_path / "f.csv", row))
    assert placed(data)["cat/02.png"][1] == "dog" and before.fingerprint != data.fingerprint
    moved = [name for name, place in placed(data).items() if place[0] != placed(before)[name][0]]
    assert len(moved) <= 4


def test_what_is_dropped_need_not_be_readable(photos: Path, tmp_path: Path) -> None:
    parts = {"train": [(image, i % 2) for i, image in enumerate(np.zeros((8, 9, 9, 3), np.uint8))]}
    parts["train"][3] = ("no image", 1)
    with pytest.raises(DataError, match=r"item 3"):
        tlx.load_data(parts, test_fraction=0, val_fraction=0)
    row = tlx.check(parts, quiet=True).problem("unreadable").rows[0]
    fixes = write(tmp_path / "f.csv", {"part": row.part, "path": row.path, "decision": "drop"})
    assert len(tlx.load_data(parts, test_fraction=0, val_fraction=0, fixes=fixes).train) == 7


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"path": "cat/99.png", "decision": "drop"}], r"1 rows name no image of the data: all cat/99\.png"),
        ([{"part": "train", "path": "cat/02.png", "decision": "drop"}], "names the part 'train', which the data has"),
        ([{"path": "cat/02.png", "decision": "dorp"}], r"row 2: unknown decision 'dorp'\. Did you mean 'drop'"),
        ([{"path": "cat/02.png", "decision": "relabel"}], "row 2: relabel, but the column suggested is empty"),
        (
            [{"path": "cat/02.png", "decision": "relabel", "suggested": "dgo"}],
            r"relabelled 'dgo', which is no class of the data\. Did you mean 'dog'",
        ),
        (
            [{"path": "cat/02.png", "decision": "relabel", "suggested": name} for name in CLASSES],
            "is relabelled to 'dog' and to 'cat'",
        ),
        ([{"path": "cat/02.png", "decision": "drop", "content": "00" * 16}], "1 images have changed since"),
        ([{"path": f"cat/{i:02}.png", "decision": "drop"} for i in range(0, 40, 2)], "no training image of class"),
    ],
)
def test_a_decision_that_does_not_fit_is_refused(
    rows: list[dict[str, str]], said: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        tlx.load_data(photos, fixes=write(tmp_path / "f.csv", *rows))


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "there is no file"), (b"a,b\n1,2\n", "has no column part and path and decision"), (b"", "it has none")],
)
def test_another_file_is_refused(content: bytes | None, said: str, photos: Path, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "f.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        tlx.load_data(photos, fixes=tmp_path / "f.csv")


def test_what_a_check_writes_a_run_applies_and_keeps(photos: Path, tmp_path: Path) -> None:
    copy = photos / "dog" / "copy.png"
    os.link(photos / "dog" / "01.png", copy)
    try:
        fixes = tmp_path / "decisions.csv"
        tlx.check(photos, decisions=fixes, quiet=True)
        options: dict[str, Any] = {**FIELDS, "data": str(photos), "epochs": 1}
        result = tlx.run(**options, fixes=str(fixes), out=str(tmp_path / "run"))
        assert any("1 dropped" in note for note in result.notes)
        assert (result.run_dir / "fixes.csv").read_bytes() == fixes.read_bytes()
        fixes.unlink()  # the run's copy serves
        assert tlx.evaluate(result.run_dir, quiet=True)["test_accuracy"] == result.test_accuracy
        again = tlx.run(result.run_dir / "recipe.toml", out=str(tmp_path / "again"), quiet=True)
        assert again.test_accuracy == result.test_accuracy
        assert tlx.run(resume=result.run_dir, epochs=2, quiet=True).epochs_run == 2
        with (result.run_dir / "fixes.csv").open("a") as file:
            file.write("all,cat/02.png,,,,drop,,,\n")
        with pytest.raises(DataError, match=r"fixes\.csv has changed"):
            Recipe.from_toml(result.run_dir / "recipe.toml")
            tlx.evaluate(result.run_dir, quiet=True)
    finally:
        copy.unlink()
