"""tlx check and tlx run --fixes on every kind of source that a run reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import tlx
from support.every_source import (
    BROKEN,
    CLASSES,
    COPY,
    COUNT,
    ORIGINAL,
    SOURCES,
    WRONG,
    Name,
    Sample,
    archive_of_photos,
    label,
)
from support.finished_runs import FIELDS
from support.server import serving
from tlx.errors import DataError

GONE = 5  # a photo that a list names, and that is not there

LABELS: dict[str, Any] = {
    "labels": True,
    "backend": "loopback",
    "model": "tiny-mlp",
    "weights": "none",
    "image_size": 8,
    "quiet": True,
}


def found(result: tlx.Check, *kinds: str) -> list[Name]:
    """The part and the name of each image that is listed with these problems."""
    problems = [result.problem(kind) for kind in kinds]
    return [(row.part, row.path) for problem in problems if problem is not None for row in problem.rows]


def labelled(sample: Sample, **options: Any) -> dict[Name, str]:
    """The class of each image, by its name and the part of the source that it comes from."""
    fields = {"root" if name == "data_root" else name: value for name, value in sample.run.items()}
    data = tlx.load_data(sample.data, val_fraction=0, **fields, **options)
    whole = sample.names[0][0] == "all"
    return {
        ("all" if whole else part, name): data.classes[number]
        for part, images in data.parts.items()
        for name, number in zip(images.names, images.labels, strict=True)
    }


def relabel_suspects(table: Path) -> list[Name]:
    """Decide for each suspected label that the suggestion is right, as a person would; return what is to be dropped."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["decision"] = "relabel" if row["problem"] == "label" else row["decision"]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return [(row["part"], row["path"]) for row in rows if row["decision"] == "drop"]


def check_and_mend(sample: Sample, tmp_path: Path) -> None:
    """What is wrong is found by name; the decisions change these images alone, in a run whose card says so."""
    names, table = sample.names, tmp_path / "decisions.csv"
    result = tlx.check(sample.data, decisions=table, **LABELS, **sample.check)
    broken = [names[BROKEN]] if sample.files else []
    repeated = "duplicate" if names[COPY][0] == names[ORIGINAL][0] else "leak"
    assert found(result, "unreadable", "truncated") == broken
    assert found(result, repeated) == [names[ORIGINAL], names[COPY]]
    assert found(result, "label") == [names[WRONG]]
    assert found(result, "two_labels", "near_two_labels", "near_leak", "near_duplicate") == []
    dropped = relabel_suspects(table)
    assert dropped == [*broken, names[ORIGINAL if repeated == "leak" else COPY]]

    before, after = labelled(sample, on_bad_image="skip"), labelled(sample, fixes=table)
    assert before[names[WRONG]] == label(WRONG) and len(before) == COUNT - len(broken)
    expected = {name: cls for name, cls in before.items() if name not in dropped}
    assert after == {**expected, names[WRONG]: CLASSES[WRONG % 2]}
    fields = {**FIELDS, "epochs": 1, **sample.run}
    run = tlx.run(data=sample.data, fixes=str(table), out=str(tmp_path / "run"), **fields)
    (note,) = [note for note in run.notes if note.startswith("fixes of")]
    assert f"1 images relabelled, {len(dropped)} dropped" in note
    assert note in json.loads((tmp_path / "run" / "card.json").read_text())["data"]["notes"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.needs("torch") if n == "torchvision_folder" else ()) for n in SOURCES]
)
def test_a_check_of_any_source_finds_what_is_wrong_and_its_decisions_change_that_alone(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    check_and_mend(SOURCES[name](tmp_path / "data"), tmp_path)


def test_so_does_one_of_an_address(tmp_path: Path) -> None:
    sample = archive_of_photos(tmp_path)
    with serving() as server:
        server.files["photos.zip"] = Path(sample.data).read_bytes()
        check_and_mend(Sample(server.url("photos.zip"), sample.names), tmp_path)


@pytest.mark.parametrize("make", [SOURCES["table_of_text"], SOURCES["parquet_of_paths"]])
def test_a_listed_photo_that_is_not_there_is_serious_and_may_be_dropped(make: Any, tmp_path: Path) -> None:
    sample, table = make(tmp_path), tmp_path / "decisions.csv"
    (tmp_path / "photos" / f"{GONE:02}.png").unlink()
    result = tlx.check(sample.data, decisions=table, quiet=True)
    assert found(result, "unreadable") == [sample.names[GONE]] and result.serious and result.images == COUNT
    with pytest.raises(DataError, match="no such file"):
        tlx.load_data(sample.data)
    assert sample.names[GONE] not in labelled(sample, fixes=table)
    table.write_text("\n".join(line for line in table.read_text().splitlines() if f"{GONE:02}.png" not in line))
    with pytest.raises(DataError, match=rf"{GONE:02}\.png cannot be read: No such file"):
        tlx.load_data(sample.data, fixes=table)


@pytest.mark.parametrize("make", [SOURCES["parquet_of_photos"], SOURCES["parquet_of_paths"]])
def test_a_row_without_a_photo_is_listed_and_may_be_dropped(make: Any, tmp_path: Path) -> None:
    sample, decisions = make(tmp_path), tmp_path / "decisions.csv"
    file = next(iter(sorted(tmp_path.rglob("*.parquet"), reverse=True)))  # the training part, where there are parts
    table = parquet.read_table(file)
    photos = table.column("image").to_pylist()
    photos[GONE] = None
    parquet.write_table(table.set_column(0, "image", pa.array(photos)), file)
    lost = (sample.names[GONE][0], sample.names[GONE][1] if isinstance(photos[0], dict) else f"list/{GONE}")
    result = tlx.check(sample.data, decisions=decisions, quiet=True)
    broken = [sample.names[BROKEN]] if isinstance(photos[0], dict) else [("all", "photos/07.png")]
    assert found(result, "unreadable", "truncated") == [lost, *broken] and result.images == COUNT
    with pytest.raises(DataError, match=f"row {GONE}: column 'image' holds no photo and no path"):
        tlx.load_data(sample.data)
    assert lost not in labelled(sample, fixes=decisions)
    fields = {**FIELDS, "epochs": 1, "on_bad_image": "skip"}
    run = tlx.run(data=sample.data, out=str(tmp_path / "run"), **fields)
    assert any(f"{lost[1]}" in note for note in run.notes), run.notes


def labelled_as(data: tlx.Data, name: str) -> str:
    return data.classes[int(data.train.labels[list(data.train.names).index(name)])]


def test_a_label_that_was_swapped_by_a_decision_is_found_in_digits(tmp_path: Path) -> None:
    rows = [f"train,digits/{place},relabel,7" for place in (10, 11)]
    (tmp_path / "swaps.csv").write_text("\n".join(["part,path,decision,suggested", *rows]))
    right, swapped = (tlx.load_data("digits", val_fraction=0, fixes=f) for f in (None, tmp_path / "swaps.csv"))
    result = tlx.check(swapped, **LABELS)
    suggested = {(row.part, row.path): row.suggested for row in result.problem("label").rows}
    for place in (10, 11):
        name = f"digits/{place}"
        assert labelled_as(swapped, name) == "7"
        assert suggested["train", name] == labelled_as(right, name)
