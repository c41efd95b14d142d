"""Lists of photos as others write them: any columns, delimiters, encodings, ids, splits, and files that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tlx
from tlx.data import Data, load_data
from tlx.errors import DataError, DataNotFound


def photo(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Twelve photos: 00.png to 11.png."""
    for i in range(12):
        photo(tmp_path / f"{i:02}.png", i)
    return tmp_path


def listed(place: Path, header: str, row: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    """Write a list with a row for each photo; `{i}` is its number, `{c}` its class."""
    rows = [row.format(i=f"{i:02}", c=("cat", "dog")[i % 2], n=i) for i in range(12)]
    (place / name).write_bytes(("\n".join([header, *rows] if header else rows) + "\n").encode(encoding))
    return place / name


def load(source: Any, **fields: Any) -> Data:
    return load_data(source, **{"val_fraction": 0, "test_fraction": 0, **fields})


def check(data: Data) -> None:
    assert data.classes == ("cat", "dog") and len(data.train) == 12
    for i, name in enumerate(data.train.names):
        number = int(Path(name).stem)
        assert data.train.labels[i] == number % 2 and data.train.pixels(i)[0, 0, 0] == number


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("path,label", "{i}.png,{c}"),
        ("filename,class", "{i}.png,{c}"),
        ("Image Name;Category", "{i}.png;{c}"),
        ("file\tspecies", "{i}.png\t{c}"),
        ("image|target", "{i}.png|{c}"),
        (",img_path,label", "{n},{i}.png,{c}"),
        ("Unnamed: 0,width,image_id,height,breed", "{n},8,{i},8,{c}"),
        ("id,breed", "{i},{c}"),
        ("whatever,what", "{i}.png,{c}"),
        ("what,whatever", "{c},{i}.png"),
        ("", "{i}.png,{c}"),
        ("path,label,comment", '{i}.png,{c},"one, two; three\nlines"'),
        (" path , label ", " {i}.png , {c} "),
        ("path,label", ".\\{i}.png,{c}"),
        ("class index,filepaths,labels", "{n},{i}.png,{c}"),
    ],
)
def test_columns_and_delimiters_are_told(header: str, row: str, place: Path) -> None:
    data = load(listed(place, header, row))
    check(data)
    plain = header.replace(" ", "") in ("path,label", "path,label,comment")
    assert plain or not header or any("is read as the path" in note for note in data.notes)
    assert header or "the file has no header: its first line names a photo" in data.notes


def test_named_columns_are_taken_and_a_wrong_name_gets_the_nearest(place: Path) -> None:
    path = listed(place, "a,b,c", "{i}.png,{c},x")
    check(load(path, path_column="a", label_column="b"))
    with pytest.raises(
        DataError, match=r"with the columns 'a', 'b', 'c': which one is the label.*Fix: name it with label"
    ):
        load(path)
    with pytest.raises(DataError, match=r"label_column is 'lable', but there is no such column. Known: a, b, c"):
        load(path, label_column="lable")
    with pytest.raises(DataError, match="path_column and label_column are both 'a'"):
        load(path, path_column="a", label_column="a")
    with pytest.raises(DataError, match=r"no column holds paths of files\. Fix: name it with path_column"):
        load(listed(place, "a,b", "x{i},{c}"))
    with pytest.raises(DataError, match=r"digits is digits, which has no label_column. Fix: leave label_column out"):
        load("digits", label_column="a")


def test_a_recipe_names_the_columns(place: Path) -> None:
    recipe = tlx.Recipe(data=str(listed(place, "a,b,c", "{i}.png,{c},x")), path_column="a", label_column="b")
    assert 'label_column = "b"' in recipe.to_toml()
    from tlx.training.build import open_data

    assert open_data(recipe.from_dict({**recipe.to_dict(), "val_fraction": 0, "test_fraction": 0})).classes == (
        "cat",
        "dog",
    )


@pytest.mark.parametrize("name", ["list.tsv", "LIST.CSV", "list.csv"])
def test_a_tsv_is_a_list_too(name: str, place: Path) -> None:
    check(load(listed(place, "path\tlabel", "{i}.png\t{c}", name)))


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1"]
)
def test_an_encoding_is_told(encoding: str, place: Path) -> None:
    data = load(listed(place, "path,label", "{i}.png,{c}-köter", encoding=encoding))
    assert data.classes == ("cat-köter", "dog-köter")
    noted = "the list is not UTF-8 and is read as Latin-1; if names look wrong, save it as UTF-8" in data.notes
    assert noted == (encoding in ("cp1252", "latin-1"))


def test_an_encoding_that_is_damaged_is_named(place: Path) -> None:
    path = listed(place, "path,label", "{i}.png,{c}", encoding="utf-16")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cannot be read as CSV in UTF-16: truncated data\. Fix: save it as UTF-8"):
        load(path)


@pytest.mark.parametrize("folder", ["", "images", "train", "data/imgs"])
def test_ids_without_suffix_or_folder_are_found(folder: str, tmp_path: Path) -> None:
    for i in range(12):
        photo(tmp_path / folder / f"{i:02}.png", i)
    data = load(listed(tmp_path, "id,breed", "{i},{c}"))
    check(data)
    place = f" in {folder}/" if folder else ""
    assert f"photos were found by name{place} (.png)" in data.notes


def test_an_id_that_may_be_two_photos_is_named(place: Path) -> None:
    photo(place / "train" / "x.png")
    photo(place / "test" / "x.jpg")
    (place / "list.csv").write_text("id,breed\n00,cat\n01,dog\nx,dog\n")
    with pytest.raises(DataError, match=r"line 4: x may be test/x\.jpg or train/x\.png\. Fix: write the whole path"):
        load(place / "list.csv")
    (place / "list.csv").write_text("id,breed\nx,dog\n00,cat\ntrain/x,dog\n")
    with pytest.raises(DataError, match="line 2: x may be"):
        load(place / "list.csv")


def test_the_folder_of_a_contest_is_read_by_its_list(tmp_path: Path) -> None:
    for i in range(12):
        photo(tmp_path / "train" / f"{i:02}.png", i)
        photo(tmp_path / "test" / f"{i:02}x.png", i)
    listed(tmp_path, "id,breed", "{i},{c}", "labels.csv")
    (tmp_path / "sample_submission.csv").write_text("id,cat,dog\n00x,0.5,0.5\n")
    data = load(tmp_path)
    check(data)
    assert data.name == tmp_path.name and "the list is labels.csv" in data.notes
    assert "not used: sample_submission.csv" in data.notes
    listed(tmp_path, "id,breed", "{i},{c}", "more.csv")
    with pytest.raises(DataError, match=r"holds several lists of photos: labels\.csv, more\.csv\. Fix: pass one"):
        load(tmp_path)


def test_a_folder_of_photos_with_a_list_among_them_is_read_by_it(place: Path) -> None:
    listed(place, "path,label", "{i}.png,{c}")
    check(load(place))


def test_folders_of_classes_come_before_a_list_beside_them(tmp_path: Path) -> None:
    for i in range(12):
        photo(tmp_path / ("even", "odd")[i % 2] / f"{i:02}.png", i)
    listed(tmp_path, "id,breed", "{i},{c}", "labels.csv")
    assert load(tmp_path).classes == ("even", "odd")


PARTS = {"train": 6, "val": 2, "test": 4}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("split", ("train", "val", "test")),
        ("Set", ("Training", "VALIDATION", "Testing")),
        ("fold", ("train", "dev", "eval")),
        ("data set", ("train", "valid", "test")),
        ("partition", ("training", "val", "eval")),
        ("is_valid,is_test", ("False,False", "True,False", "False,True")),
        ("is_val,is_test", ("0,0", "1,0", "0,1.0")),
    ],
)
def test_a_split_is_told(column: str, values: tuple[str, str, str], place: Path) -> None:
    splits = np.repeat(values, list(PARTS.values()))
    rows = [f"{i:02}.png,{('cat', 'dog')[i % 2]},{split}" for i, split in enumerate(splits)]
    (place / "list.csv").write_text("\n".join([f"path,label,{column}", *rows]))
    data = load(place / "list.csv", test_fraction=0.5)
    assert {part: len(images) for part, images in data.parts.items()} == PARTS and not data.notes
    assert list(data.test.names) == ["08.png", "09.png", "10.png", "11.png"]


def test_is_train_alone_leaves_the_rest_for_the_test(place: Path) -> None:
    rows = [f"{i:02}.png,{('cat', 'dog')[i % 2]},{str(i < 8).lower()}" for i in range(12)]
    (place / "list.csv").write_text("\n".join(["path,label,is_train", *rows]))
    data = load(place / "list.csv")
    assert (len(data.train), len(data.test)) == (8, 4)


def test_a_column_that_names_no_parts_is_passed_over_and_noted(place: Path) -> None:
    data = load(listed(place, "path,label,fold", "{i}.png,{c},{n}"))
    assert "column 'fold' names no parts ('0') and is passed over" in data.notes and len(data.train) == 12
    with pytest.raises(DataError, match=r"line 2: is_test is 'maybe'; expected true or false"):
        load(listed(place, "path,label,is_test", "{i}.png,{c},maybe"))
    (place / "list.csv").write_text("path,label,set\n00.png,cat,train\n01.png,dog,other\n")
    with pytest.raises(DataError, match=r"line 3: set is 'other'; expected train, val or test"):
        load(place / "list.csv")


def test_missing_files_are_all_counted_and_left_out_only_when_asked(place: Path) -> None:
    path = listed(place, "path,label", "{i}.png,{c}")
    gone = "".join(f"gone{i}.png,cat\n" for i in range(12))
    path.write_text(path.read_text() + gone)
    with pytest.raises(DataNotFound) as error:
        load(path)
    text = str(error.value)
    assert "12 of 24 rows name files that are not there: gone0.png (line 14), gone1.png (line 15)" in text
    assert "gone9.png (line 23) and 2 more" in text and "gone10" not in text and "\n" not in text
    assert "on_bad_image='skip'" in text
    data = load(path, on_bad_image="skip")
    check(data)
    assert any(
        note.startswith("left out 12 of 24 rows whose files are missing: gone0.png (line 14)") for note in data.notes
    )


def test_rows_that_repeat_are_counted_once_and_contradictions_refused(place: Path) -> None:
    path = listed(place, "path,label", "{i}.png,{c}")
    text = path.read_text()
    path.write_text(text + "00.png,cat\n./01.png,dog\n")
    data = load(path)
    check(data)
    assert "2 rows repeat an earlier row and are used once" in data.notes
    path.write_text(text + "00.png,dog\n")
    with pytest.raises(DataError, match=r"line 14: 00\.png stands in line 2 already"):
        load(path)


def test_the_number_of_a_line_counts_blank_lines(place: Path) -> None:
    (place / "list.csv").write_text("path,label\n\n00.png,cat\n\n\ngone.png,dog\n")
    with pytest.raises(DataNotFound, match="line 6: no such file"):
        load(place / "list.csv")
