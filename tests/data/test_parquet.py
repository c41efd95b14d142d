"""Parquet files as the Hugging Face Hub has them: any image column, names of classes, parts, and flat memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tlx.data import Data, load_data
from tlx.data.images import FileImages
from tlx.data.sources.kept import RECORD, SEAL, _digest
from tlx.data.sources.packed import PackedImages
from tlx.download import cache_folder
from tlx.errors import DataError, DataNotFound

NAMES = ("ant", "bee", "cat")
HUB = {
    "info": {
        "features": {
            "picture": {"_type": "Image"},
            "kind": {"names": list(NAMES), "_type": "ClassLabel"},
            "extra": {"dtype": "string", "_type": "Value"},
        }
    }
}


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (10 + i % 3, 8), (i, 0, 0)).save(file, "PNG")
    return file.getvalue()


def hub(count: int, hidden: bool = False) -> pa.Table:
    """A table as the `datasets` library writes it."""
    table = pa.table(
        {
            "extra": [f"text {i}" for i in range(count)],
            "kind": pa.array([-1 if hidden else i % 3 for i in range(count)], pa.int64()),
            "picture": [{"bytes": png(i), "path": f"{i}.png"} for i in range(count)],
        }
    )
    return table.replace_schema_metadata({"huggingface": json.dumps(HUB)})


def write(path: Path, table: pa.Table, rows: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=rows)
    return path


def load(source: Any, **fields: Any) -> Data:
    return load_data(source, **{"val_fraction": 0, "test_fraction": 0, **fields})


def check(data: Data, count: int = 30, classes: tuple[str, ...] = NAMES) -> None:
    """Image i is red i, of class i % 3, in this order."""
    assert data.classes == classes and data.train.size is None
    assert data.train.labels.tolist() == [i % 3 for i in range(count)]
    for i in np.random.default_rng(0).permutation(count):
        assert data.train.pixels(i).shape == (8, 10 + i % 3, 3) and data.train.pixels(i)[0, 0].tolist() == [i, 0, 0]


def test_a_file_of_the_hub_is_read_in_order_and_once(tmp_path: Path) -> None:
    path = write(tmp_path / "pets.parquet", hub(30))
    data = load(path)
    check(data)
    assert isinstance(data.train, PackedImages) and data.name == "pets" and data.notes == ("there is no test part",)
    assert data.train.names[:2] == ["pets/0", "pets/1"]
    kept = {file: file.stat().st_mtime_ns for file in cache_folder().rglob("photos-*")}
    assert load(path).fingerprint == data.fingerprint
    assert {file: file.stat().st_mtime_ns for file in cache_folder().rglob("photos-*")} == kept
    write(path, hub(27))
    check(load(path), 27)
    assert len(list(cache_folder().rglob("photos-*"))) == 1


@pytest.mark.parametrize("folder", ["data", ".", "default/train"])
def test_a_folder_of_the_hub_has_its_parts(folder: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    whole = hub(30)
    if folder == "default/train":
        write(root / "default" / "train" / "0000.parquet", whole.slice(0, 11))
        write(root / "default" / "train" / "0001.parquet", whole.slice(11))
        write(root / "default" / "validation" / "0000.parquet", hub(6))
        write(root / "default" / "test" / "0000.parquet", hub(9))
    else:
        write(root / folder / "train-00000-of-00002.parquet", whole.slice(0, 11))
        write(root / folder / "train-00001-of-00002.parquet", whole.slice(11))
        write(root / folder / "validation-00000-of-00001.parquet", hub(6))
        write(root / folder / "test-00000-of-00001.parquet", hub(9))
    data = load(root, test_fraction=0.5)
    check(data)
    assert {part: len(images) for part, images in data.parts.items()} == {"train": 30, "val": 6, "test": 9}
    assert data.name == "set"


def test_a_test_part_without_labels_is_left_out_and_validation_is_the_test(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train-0.parquet", hub(30))
    write(tmp_path / "set" / "validation-0.parquet", hub(6))
    write(tmp_path / "set" / "test-0.parquet", hub(9, hidden=True))
    data = load(tmp_path / "set", test_fraction=0.2)
    check(data)
    assert "left out the part test: its rows have no labels" in data.notes
    assert {part: len(images) for part, images in data.parts.items()} == {"train": 30, "test": 6}


def test_a_train_file_alone_is_a_whole_from_which_the_test_is_drawn(tmp_path: Path) -> None:
    write(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", hub(30))
    data = load(tmp_path / "set", test_fraction=0.2)
    assert (len(data.train), len(data.test)) == (24, 6)


@pytest.mark.parametrize(
    ("columns", "classes"),
    [
        ({"image": [{"bytes": png(i), "path": None} for i in range(30)], "label": [i % 3 for i in range(30)]}, "012"),
        ({"image": [png(i) for i in range(30)], "label": [NAMES[i % 3] for i in range(30)]}, NAMES),
        ({"blob": [png(i) for i in range(30)], "what": [NAMES[i % 3] for i in range(30)]}, NAMES),
        ({"img": [png(i) for i in range(30)], "id": list(range(30)), "class": [i % 3 for i in range(30)]}, "012"),
        ({"image": [png(i) for i in range(30)], "label": [float(i % 3) for i in range(30)]}, "012"),
        (
            {
                "image": [png(i) for i in range(30)],
                "label": pa.array([NAMES[i % 3] for i in range(30)]).dictionary_encode(),
            },
            NAMES,
        ),
    ],
)
def test_columns_are_told_by_name_or_type(columns: dict[str, Any], classes: Any, tmp_path: Path) -> None:
    check(load(write(tmp_path / "x.parquet", pa.table(columns))), classes=tuple(classes))


def test_columns_can_be_named(tmp_path: Path) -> None:
    columns = {"a": [png(i) for i in range(30)], "b": [i % 3 for i in range(30)], "c": ["x"] * 30}
    path = write(tmp_path / "x.parquet", pa.table(columns))
    with pytest.raises(
        DataError, match=r"which column is it\? It has a \(binary\), b \(int64\), c \(string\)\. Fix: name it"
    ):
        load(path)
    check(load(path, path_column="a", label_column="b"), classes=tuple("012"))
    with pytest.raises(DataError, match="label_column is 'd', but there is no such column"):
        load(path, label_column="d")


def test_paths_are_read_from_their_folder(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    columns = {"image": [f"{i}.png" for i in range(30)], "label": [i % 3 for i in range(30)]}
    path = write(tmp_path / "lists" / "x.parquet", pa.table(columns))
    data = load(path, root=tmp_path)
    check(data, classes=tuple("012"))
    assert isinstance(data.train, FileImages) and data.train.names[0] == "0.png"
    (record,) = cache_folder().rglob(RECORD)
    kept = {name: value for name, value in json.loads(record.read_text()).items() if name != SEAL} | {"sizes": []}
    earlier = json.dumps({**kept, SEAL: _digest(kept)})  # as an earlier tlx kept it
    record.write_text(earlier)
    check(load(path, root=tmp_path), classes=tuple("012"))
    assert record.read_text() == earlier
    with pytest.raises(DataNotFound, match=r"x\.parquet, row 0: no such file: .*Fix: pass its folder as data_root"):
        load(path)


def test_rows_without_a_label_are_counted_and_rows_without_a_photo_named(tmp_path: Path) -> None:
    labels = [i % 3 for i in range(30)]
    table = pa.table({"image": [png(i) for i in range(32)], "label": [*labels, None, -1]})
    data = load(write(tmp_path / "x.parquet", table))
    check(data, classes=tuple("012"))
    assert "left out 2 rows of all without a label" in data.notes
    table = pa.table({"image": [*(png(i) for i in range(29)), None], "label": labels})
    path = write(tmp_path / "y.parquet", table)
    with pytest.raises(DataError, match="row 29: column 'image' holds no photo and no path"):
        load(path)
    assert len(load(path, on_bad_image="skip").train) == 29


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text" * 100, b"PAR1" + bytes(200) + b"PAR1"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet cannot be read as Parquet: ") as error:
        load(tmp_path / "x.parquet")
    assert "\n" not in str(error.value)


def test_a_file_that_lacks_a_column_of_those_beside_it_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", hub(30))
    write(tmp_path / "train-1.parquet", hub(30).drop_columns(["kind"]))
    with pytest.raises(DataError, match=r"train-1\.parquet has no column 'kind', which the files beside it have"):
        load(tmp_path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([b"x"]), pa.array([b"y"]), pa.array([0])], names=["image", "image", "label"])
    with pytest.raises(DataError, match=r"two columns are called 'image'\. Fix: give one of them another name"):
        load(write(tmp_path / "x.parquet", table))


def test_damage_among_the_rows_is_named_and_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", hub(300))
    content = bytearray(path.read_bytes())
    content[20_000:20_400] = bytes(400)
    path.write_bytes(bytes(content))
    try:
        load(path)
    except DataError as error:
        assert "x.parquet" in str(error) and not list(cache_folder().rglob("record.json"))


WITHOUT = """
import sys
sys.modules["pyarrow"] = None
import tlx
try:
    tlx.load_data(sys.argv[1])
except tlx.TlxError as error:
    print(error)
"""


def test_without_pyarrow_one_line_says_how_to_install_it(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", hub(30))
    said = subprocess.run([sys.executable, "-c", WITHOUT, str(path)], capture_output=True, text=True, check=True)
    assert 'pyarrow, which reads them, is not installed. Fix: pip install "tlx[parquet]"' in said.stdout


FLAT = """
import sys
import pyarrow
import tlx
data = tlx.load_data(sys.argv[1], val_fraction=0, test_fraction=0)
print(len(data.train), pyarrow.default_memory_pool().max_memory())
"""


def test_memory_holds_a_row_group_and_never_the_file(tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).bytes(100_000) for i in range(400)]
    table = pa.table({"image": noise, "label": [i % 3 for i in range(400)]})
    path = write(tmp_path / "x.parquet", table, rows=50)
    said = subprocess.run([sys.executable, "-c", FLAT, str(path)], capture_output=True, text=True, check=True)
    count, peak = map(int, said.stdout.split())
    assert count == 400 and peak < 25_000_000 < path.stat().st_size
