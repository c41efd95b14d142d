"""WebDataset shards, written by the package itself: read at random, in exact order, damaged and strange ones too."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from support.server import serving
from tlx.data import Data, load_data
from tlx.data.sources.packed import PackedImages
from tlx.download import cache_folder
from tlx.errors import DataError, DataNotFound

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def sample(i: int, **label: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (10 + i % 3, 8), (i, 0, 0)).save(file, "PNG")
    return {"__key__": f"{i:06}", "png": file.getvalue(), **(label or {"cls": i % 3})}


def write(pattern: Path, samples: list[dict[str, Any]], size: int = 10) -> None:
    pattern.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(pattern), maxcount=size, verbose=0) as writer:
        for one in samples:
            writer.write(one)


def load(source: Any, **fields: Any) -> Data:
    return load_data(source, **{"val_fraction": 0, "test_fraction": 0, **fields})


def check(data: Data, count: int = 30) -> None:
    """Image i is red i, of class i % 3, in this order."""
    assert isinstance(data.train, PackedImages) and data.train.size is None
    assert data.train.labels.tolist() == [i % 3 for i in range(count)]
    for i in np.random.default_rng(0).permutation(count):
        assert data.train.pixels(i).shape == (8, 10 + i % 3, 3) and data.train.pixels(i)[0, 0].tolist() == [i, 0, 0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "set" / "shard-%06d.tar", [sample(i) for i in range(30)])
    return tmp_path / "set"


@pytest.mark.parametrize("source", ["", "shard-{000000..000002}.tar", "shard-00000{0,1,2}.tar"])
def test_a_folder_or_a_pattern_of_shards_is_read_in_order(source: str, folder: Path) -> None:
    data = load(str(folder / source))
    check(data)
    assert data.classes == ("0", "1", "2") and data.name == ("shard" if source else "set")
    assert data.train.names[:2] == ["shard-000000/000000", "shard-000000/000001"]
    assert load(str(folder / source)).fingerprint == data.fingerprint


def test_one_shard_and_shards_below_a_root(folder: Path) -> None:
    check(load(folder / "shard-000000.tar"), 10)
    check(load("set/shard-{000000..000002}.tar", root=folder.parent))
    data = load(folder, test_fraction=0.2)
    assert (len(data.train), len(data.test)) == (24, 6)


def test_names_of_shards_or_of_their_folders_make_parts(tmp_path: Path) -> None:
    for flat in (True, False):
        for part, count in (("train", 24), ("val", 6), ("test", 9)):
            name = f"{part}-%04d.tar" if flat else f"{part}/%04d.tar"
            write(tmp_path / str(flat) / name, [sample(i) for i in range(count)])
        data = load(tmp_path / str(flat), test_fraction=0.5)
        assert {part: len(images) for part, images in data.parts.items()} == {"train": 24, "val": 6, "test": 9}
    (tmp_path / "True" / "train-0000.tar").rename(tmp_path / "True" / "other-0000.tar")
    with pytest.raises(DataError, match=r"other-0000\.tar is of no part by its name, but .* is of \w+\. Fix: begin"):
        load(tmp_path / "True")


def test_a_missing_shard_of_a_pattern_is_named(folder: Path) -> None:
    with pytest.raises(DataNotFound, match=r"2 of 5 shards are not there: .*shard-000003\.tar, .*shard-000004\.tar"):
        load(str(folder / "shard-{000000..000004}.tar"))
    with pytest.raises(DataNotFound, match="is neither a known data set nor an existing folder or file"):
        load(str(folder / "shrad-{000000..000004}.tar"))
    with pytest.raises(DataError, match="counts down"):
        load(str(folder / "shard-{000004..000000}.tar"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "ant\nbee\ncat\n"),
        ("classnames.txt", "ant\r\nbee\r\ncat"),
        ("classes.json", '["ant", "bee", "cat"]'),
        ("classes.json", '{"0": "ant", "1": "bee", "2": "cat"}'),
        ("class_to_idx.json", '{"bee": 1, "ant": 0, "cat": 2}'),
    ],
)
def test_names_of_classes_beside_the_shards(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content)
    data = load(folder)
    check(data)
    assert data.classes == ("ant", "bee", "cat")
    (folder / name).write_text(content.replace("cat", "ant"))
    with pytest.raises(DataError, match=f"{name}: the class names are not texts that are all different|class names"):
        load(folder)


LETTERS = ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("label", "options"),
    [
        (lambda i: {"cls": LETTERS[i % 3]}, {}),
        (lambda i: {"json": {"label": LETTERS[i % 3], "other": i}}, {}),
        (lambda i: {"json": {"class_name": LETTERS[i % 3], "width": 7}}, {}),
        (lambda i: {"json": {"what": LETTERS[i % 3], "label": i}}, {"label_column": "what"}),
        (lambda i: {"json": {"what": LETTERS[i % 3]}, "cls": i}, {"label_column": "what"}),
    ],
)
def test_labels_are_text_or_stand_in_a_json(label: Any, options: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "set" / "s-%d.tar", [sample(i, **label(i)) for i in range(30)])
    data = load(tmp_path / "set", **options)
    check(data)
    assert data.classes == LETTERS


def test_numbers_of_classes_keep_their_order(tmp_path: Path) -> None:
    write(tmp_path / "set" / "s-%d.tar", [sample(i, cls=(2, 10, 100)[i % 3]) for i in range(30)], 100)
    data = load(tmp_path / "set")
    check(data)
    assert data.classes == ("2", "10", "100")


def test_a_json_without_a_label_is_named(tmp_path: Path) -> None:
    write(tmp_path / "set" / "s-%d.tar", [sample(i, json={"lable": i}) for i in range(4)])
    with pytest.raises(DataError, match=r"000000\.json has no 'label'; it has lable.*Fix: say what is the label"):
        load(tmp_path / "set")
    with pytest.raises(DataError, match=r"has no 'lab'; it has lable\. Did you mean 'lable'"):
        load(tmp_path / "set", label_column="lab")


def test_samples_without_a_label_or_a_photo_are_counted(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(30)]
    samples += [{key: value for key, value in sample(i).items() if key != "cls"} for i in (30, 31)]
    samples += [{key: value for key, value in sample(i).items() if key != "png"} for i in (32,)]
    write(tmp_path / "set" / "s-%d.tar", samples, 100)
    data = load(tmp_path / "set")
    check(data)
    assert "left out 2 samples without a label: s-0/000030, s-0/000031" in data.notes
    assert "left out 1 sample without a photo: s-0/000032" in data.notes


def test_the_index_is_kept_and_built_again_for_a_changed_shard(folder: Path) -> None:
    check(load(folder))
    kept = sorted((cache_folder() / "shards").iterdir())
    assert len(kept) == 3
    times = [path.stat().st_mtime_ns for path in kept]
    check(load(folder))
    assert [path.stat().st_mtime_ns for path in kept] == times
    kept[0].write_text("{")
    check(load(folder))
    write(folder / "shard-%06d.tar", [sample(i) for i in range(27)], 9)
    data = load(folder)
    check(data, 27)


def test_the_index_does_without_a_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "file").touch()
    monkeypatch.setenv("TLX_CACHE", str(folder.parent / "file"))
    check(load(folder))


def test_a_shard_that_is_cut_off_is_named(folder: Path) -> None:
    shard = folder / "shard-000001.tar"
    content = shard.read_bytes()
    for length in (len(content.rstrip(b"\0")) - 300, 5000, 5300):
        shard.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"shard-000001\.tar cannot be read as a tar shard: .*Fix: download"):
            load(folder)
    damaged = bytearray(content)
    damaged[1024:1030] = b"XXXXXX"  # within the second header
    shard.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r"shard-000001\.tar cannot be read as a tar shard"):
        load(folder)


def test_a_bad_photo_is_named_with_its_shard_and_left_out_when_asked(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(33)]
    for i in (30, 31):
        samples[i]["png"] = b"no photo"
    write(tmp_path / "set" / "s-%d.tar", samples, 100)
    data = load(tmp_path / "set")
    with pytest.raises(DataError, match=r"2 of 33 photos cannot be decoded: s-0/000030 cannot be .*s-0/000031"):
        data.train.pixels(30)
    data = load(tmp_path / "set", on_bad_image="skip")
    assert len(data.train) == 31 and data.train.pixels(30)[0, 0].tolist() == [32, 0, 0]
    assert "left out 2 of 33 photos that cannot be decoded: s-0/000030, s-0/000031" in data.notes


def test_a_tar_of_photos_in_folders_is_no_shard(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for i in range(20):
            info = tarfile.TarInfo(f"photos/{LETTERS[i % 2]}/{i}.png")
            info.size = len(sample(i)["png"])
            archive.addfile(info, io.BytesIO(sample(i)["png"]))
    data = load(tmp_path / "photos.tar")
    assert data.classes == ("ant", "bee") and len(data.train) == 20


def test_two_photos_in_a_sample_are_named(tmp_path: Path) -> None:
    write(tmp_path / "set" / "s-%d.tar", [{**sample(0), "jpg": sample(0)["png"]}])
    with pytest.raises(DataError, match=r"the sample 000000 has two members \.(png|jpg)"):
        load(tmp_path / "set")


def test_labels_beyond_the_names_are_refused(folder: Path) -> None:
    (folder / "classes.json").write_text(json.dumps(["ant", "bee"]))
    with pytest.raises(DataError, match="there is a label 2, but only 2 class names"):
        load(folder)


def test_a_photo_that_stands_in_two_parts_is_found(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train-%d.tar", [sample(i) for i in range(30)], 100)
    write(tmp_path / "set" / "test-%d.tar", [sample(i) for i in range(29, 35)], 100)
    (note,) = load(tmp_path / "set").notes
    assert "1 of 6 images of the test part are in the train part too" in note
    assert "test-0/000029 = train-0/000029" in note


def test_an_archive_and_an_address_may_hold_shards(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for shard in folder.iterdir():
            archive.write(shard, f"wrap/{shard.name}")
    check(load(tmp_path / "set.zip"))
    with serving() as server:
        server.files["pets.tar"] = (folder / "shard-000000.tar").read_bytes()
        data = load(server.url("pets.tar"))
    check(data, 10)
    assert data.name == "pets"
