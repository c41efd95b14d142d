"""A folder without parts, a CSV, an .npz, sequences; photos of every kind, and photos that are none."""

from __future__ import annotations

import io
import os
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tlx.data import Data, load_data
from tlx.errors import DataError


def photo(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Two classes, twenty photos each, in one folder."""
    for i in range(40):
        photo(tmp_path / "pets" / ("cat" if i % 2 else "dog") / f"{i:02}.png", (i, i, i))
    return tmp_path / "pets"


def names(data: Data) -> dict[str, list[str]]:
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {part: list(images.names) for part, images in parts.items() if images is not None}


def test_one_folder_is_split_the_same_way_whatever_the_seed(whole: Path) -> None:
    first, second = (load_data(whole, seed=seed) for seed in (0, 1))
    assert first.classes == ("cat", "dog") and first.test is not None and first.val is not None
    assert (len(first.train), len(first.val), len(first.test)) == (29, 3, 8)
    assert np.bincount(first.test.labels).tolist() == [4, 4]
    parts = names(first)
    assert sorted(chain.from_iterable(parts.values())) == sorted(
        p.relative_to(whole).as_posix() for p in whole.rglob("*.png")
    )
    assert names(second)["test"] == parts["test"] and names(second)["val"] != parts["val"]
    assert any("8 of 40 images were drawn for the test" in note for note in first.notes)
    assert load_data(whole, test_fraction=0).test is None
    with pytest.raises(DataError, match=r"test_fraction=0\.01 of 40 images is 0, which cannot leave an image of each"):
        load_data(whole, test_fraction=0.01)


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "list.csv").write_bytes(text.encode(encoding))
    return folder / "list.csv"


def test_a_csv_lists_paths_and_labels(whole: Path) -> None:
    lines = [
        f"pets/{p.relative_to(whole).as_posix()},{'köter' if 'dog' in p.parts else '猫'}" for p in whole.rglob("*.png")
    ]
    path = table(whole.parent, "\ufeffpath,label\r\n" + "\r\n".join(lines) + "\r\n\r\n")
    data = load_data(path)
    assert data.classes == ("köter", "猫") and data.name == "list" and data.test is not None
    for images in (data.train, data.test):
        assert all(("dog" in name) == (label == 0) for name, label in zip(images.names, images.labels, strict=True))
    assert load_data(whole.parent / "list.csv").fingerprint == data.fingerprint


def test_a_csv_may_say_the_split_and_its_root_may_be_elsewhere(whole: Path, tmp_path: Path) -> None:
    splits = ["train"] * 28 + ["val"] * 4 + ["test"] * 8
    photos = sorted(p.relative_to(whole).as_posix() for p in whole.rglob("*.png"))
    order = [*photos[::2], *photos[1::2]]
    rows = [f'"{name}",{name[:3]},{split}' for name, split in zip(order, splits, strict=True)]
    (tmp_path / "lists").mkdir()
    path = table(tmp_path / "lists", "path,label,split\n" + "\n".join(rows))
    data = load_data(path, root=whole)
    assert names(data) == {part: [n for n, s in zip(order, splits, strict=True) if s == part] for part in set(splits)}
    with pytest.raises(DataError, match=r"list\.csv, line 2: no such file: .*Paths are relative to"):
        load_data(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line is ''; expected path,label"),
        ("path,label\n", "lists no photo"),
        ("path,lable,lens\na.png,y,z", "which one is the label? Did you mean 'lable'"),
        ("path,path\nx,y", "expected path,label"),
        ("path,label\na.png", "line 2: 1 cells; expected 2"),
        ("path,label\na.png,", "line 2: the label is empty"),
        ("path,label\n,cat", "line 2: the path is empty"),
        ("path,label,split\na.png,cat,later", "line 2: split is 'later'; expected train, val or test"),
        ("path,label\na.png,cat\nmissing.png,dog", "line 3: no such file"),
        ("path,label\na.png,cat\na.png,dog", "line 3: a.png stands in line 2 already"),
        ("path,label\na.png,cat\nb.png,cat", "has 1 class to tell apart"),
        ("path,label,split\na.png,cat,test\nb.png,dog,test", "no line has split 'train'"),
        ('path,label\n"a.png,cat', "cannot be read as CSV"),
    ],
)
def test_a_mistake_in_a_csv_names_its_line(text: str, message: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        photo(tmp_path / name)
    with pytest.raises(DataError) as error:
        load_data(table(tmp_path, text))
    assert message in str(error.value) and "list" in str(error.value) and "\n" not in str(error.value)


RNG = np.random.default_rng(0)
PIXELS, LABELS = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8), np.arange(30) % 3


def test_an_npz_gives_what_its_arrays_give(tmp_path: Path) -> None:
    np.savez_compressed(
        tmp_path / "set.npz",
        x_train=PIXELS,
        y_train=LABELS,
        x_test=PIXELS[:6],
        y_test=LABELS[:6],
        classes=["a", "b", "ç"],
    )
    data = load_data(tmp_path / "set.npz")
    same = load_data({"train": (PIXELS, LABELS), "test": (PIXELS[:6], LABELS[:6]), "classes": ["a", "b", "ç"]})
    assert data.classes == ("a", "b", "ç") and data.name == "set" and data.test is not None and same.test is not None
    assert np.array_equal(data.train.pixels(3), same.train.pixels(3)) and names(data) == names(same)
    np.savez(tmp_path / "whole.npz", images=PIXELS, labels=LABELS)
    drawn = load_data(tmp_path / "whole.npz", val_fraction=0)
    assert drawn.test is not None and len(drawn.test) == 6 and len(drawn.train) == 24


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": PIXELS}, "has x_train but not y_train"),
        ({"x_trian": PIXELS}, "unknown array 'x_trian'. Did you mean 'x_train'"),
        ({"classes": np.array(["a"])}, "expected x_train, y_train or images, labels"),
        ({"images": PIXELS, "labels": LABELS, "x_test": PIXELS, "y_test": LABELS}, "beside parts of their own"),
        ({"images": np.array([{}], dtype=object), "labels": LABELS}, "holds Python objects, which are not read"),
        (
            {"images": PIXELS.astype(np.float32), "labels": LABELS},
            "pixels are float32 from 0 to 255; expected floats 0 .. 1 or",
        ),
        ({"images": PIXELS, "labels": LABELS + 0.5}, "label 0.5 of sample 0 is not a whole number"),
        ({"images": PIXELS, "labels": LABELS, "classes": np.array([1.5, 2, 3])}, "classes are float64; expected text"),
        ({"images": PIXELS, "labels": LABELS, "classes": np.array(["a", "b"])}, "label 2 of sample 2 is not in 0 .. 1"),
    ],
)
def test_a_mistake_in_an_npz_is_named(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError) as error:
        load_data(tmp_path / "set.npz")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_npz_that_declares_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    write_header: Any = np.lib.format.write_array_header_1_0
    write_header(header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8, 3)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(1000))
    with pytest.raises(DataError, match=r"declares .* more than it holds"):
        load_data(tmp_path / "bomb.npz")


def valid_npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, images=PIXELS, labels=LABELS)
    return file.getvalue()


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.data())
def test_a_damaged_npz_is_data_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(valid_npz())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    path.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        load_data(path)
    except DataError as error:
        assert "\n" not in str(error)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text(alphabet=st.sampled_from('path,label\n\r"\0 \ufeffé'), max_size=60))
def test_any_text_called_csv_is_data_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_text("path,label\n" + text, encoding="utf-8", newline="")
    with pytest.raises(DataError) as error:
        load_data(path)
    assert str(error.value)


class Listed:
    """A data set as Python programs have them: length, items, class names."""

    classes = ("none", "some", "all")

    def __init__(self, count: int = 30, mode: str = "RGB") -> None:
        self.count, self.mode = count, mode
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Any, int]:
        self.read.append(i)
        return Image.fromarray(PIXELS[i]).convert(self.mode), int(LABELS[i])


def test_a_sequence_of_images_and_labels_is_read_when_needed() -> None:
    source: Any = Listed()
    data = load_data(source, val_fraction=0)
    assert data.classes == ("none", "some", "all") and data.test is not None
    place = int(data.test.names[2])
    assert np.array_equal(data.test.pixels(2), PIXELS[place]) and data.test.labels[2] == LABELS[place]
    source.targets = LABELS.tolist()
    assert load_data(source, val_fraction=0).fingerprint == data.fingerprint
    pair = load_data((Listed(), Listed(6)), val_fraction=0)
    assert (len(pair.train), len(pair.test or ())) == (30, 6)
    assert load_data({"train": Listed(mode="L"), "test": Listed(6)}, val_fraction=0).train.pixels(0).shape == (6, 5, 3)


def test_a_list_of_arrays_of_one_size_is_held_in_memory() -> None:
    images: Any = list(zip(PIXELS, LABELS, strict=True))
    data = load_data(images, test_fraction=0, val_fraction=0)
    assert data.train.size == (6, 5) and np.array_equal(data.train.pixels(7), PIXELS[7])
    images = [(PIXELS[i][: 3 + i % 2], i % 2) for i in range(10)]
    mixed = load_data(images, test_fraction=0, val_fraction=0)
    assert mixed.train.size is None and mixed.train.pixels(0).shape == (3, 5, 3)


@pytest.mark.needs("torch")
def test_a_torchvision_data_set(tmp_path: Path, whole: Path) -> None:
    from torchvision import datasets, transforms

    ours, theirs = load_data(whole, val_fraction=0, test_fraction=0), datasets.ImageFolder(str(whole))
    data = load_data(theirs, val_fraction=0, test_fraction=0)
    assert data.classes == ours.classes and np.array_equal(data.train.labels, ours.train.labels)
    assert all(np.array_equal(data.train.pixels(i), ours.train.pixels(i)) for i in range(40))
    normalised = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    with pytest.raises(DataError, match=r"image 0 of FakeData: .*normalised. Fix: .*without Normalize: tlx does the"):
        load_data(datasets.FakeData(8, (3, 6, 6), 2, transform=normalised))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "all is empty"),
        ([1, 2, 3], "item 0 is not a pair"),
        (
            [(PIXELS[0], "cat"), (PIXELS[1], "dog"), (PIXELS[1], 1)],
            "the label of sample 2 is the number 1; most others",
        ),
        ([(PIXELS[0], 0.5), (PIXELS[1], 1.0), (PIXELS[1], 1.0)], "label 0.5 of sample 0 is not a whole number"),
        ([("a.png", 0), ("b.png", 1), ("b.png", 1)], "all: item 0: no such file: a.png"),
        ([(PIXELS[0].astype(float), 0)] * 3, "pixels are float64 from"),
        ([(PIXELS[0], 0), (PIXELS[0], 9), (PIXELS[0], 1)], "label 9 among 3 training images"),
    ],
)
def test_a_sequence_of_the_wrong_kind_is_named(source: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        load_data(source)
    assert message in str(error.value) and "\n" not in str(error.value)


def spoil(whole: Path) -> list[str]:
    """Make four photos unreadable, each in its own way."""
    good = (whole / "cat" / "01.png").read_bytes()
    for name, content in (
        ("cat/03.png", good[:40]),
        ("cat/05.png", b""),
        ("dog/02.png", b"This is a text, whatever its name says.\n"),
        ("dog/04.png", b"\xff\xd8\xff\xe0" + bytes(50)),
    ):
        (whole / name).write_bytes(content)
    return ["cat/03.png", "cat/05.png", "dog/02.png", "dog/04.png"]


def test_the_first_bad_photo_has_all_of_them_listed(whole: Path) -> None:
    bad = spoil(whole)
    data = load_data(whole, test_fraction=0, val_fraction=0)
    with pytest.raises(DataError) as error:
        data.train.pixels(list(data.train.names).index("dog/04.png"))
    assert all(name in str(error.value) for name in bad) and "4 of 40 photos cannot be decoded" in str(error.value)
    assert "on_bad_image='skip'" in str(error.value) and "\n" not in str(error.value)


def test_bad_photos_are_left_out_and_counted_when_asked(whole: Path) -> None:
    bad = spoil(whole)
    data = load_data(whole, on_bad_image="skip", test_fraction=0.25)
    names_left = list(chain.from_iterable(names(data).values()))
    assert len(names_left) == 36 and not set(bad) & set(names_left)
    assert (
        "left out 4 of 40 photos that cannot be decoded: cat/03.png, cat/05.png, dog/02.png, dog/04.png" in data.notes
    )
    for name in list((whole / "cat").iterdir()):
        name.write_bytes(b"no photo")
    with pytest.raises(DataError, match="no training image of class 'cat'"):
        load_data(whole, on_bad_image="skip", test_fraction=0, val_fraction=0)
    with pytest.raises(DataError, match="on_bad_image is 'ignore'; expected error or skip"):
        load_data(whole, on_bad_image="ignore")


@pytest.mark.parametrize(
    "name",
    ["ämeise.png", "蚂蚁.png", "муравей 1.png", "e\u0301.png", "\u00e9.png", "a\udce9b.png", "نملة.png", "🐜.png"],
)
def test_a_name_in_any_script(name: str, tmp_path: Path) -> None:
    try:
        stem = os.path.splitext(name)[0].encode("utf-8", "replace").decode()  # a class is named in UTF-8, a file in any
        path = photo(tmp_path / "set" / "train" / stem / "x.png").parent / name
        photo(path, (7, 8, 9))
    except (OSError, UnicodeEncodeError) as error:
        pytest.skip(f"this file system cannot hold the name: {error}")
    photo(tmp_path / "set" / "train" / "b" / "y.png")
    data = load_data(tmp_path / "set", val_fraction=0)
    index = [i for i, known in enumerate(data.train.names) if known.endswith(name)]
    assert len(index) == 1 and data.train.pixels(index[0])[0, 0].tolist() == [7, 8, 9]


def test_a_link_that_leads_in_a_circle_is_named(whole: Path) -> None:
    (whole / "cat" / "again").symlink_to(whole / "cat", target_is_directory=True)
    with pytest.raises(DataError, match=r"again is a link to .*cat, which is read already"):
        load_data(whole)


def test_what_is_no_file_is_named_and_never_waited_for(whole: Path) -> None:
    (whole / "cat" / "dangling.png").symlink_to(whole / "nowhere.png")
    with pytest.raises(DataError, match=r"dangling\.png cannot be read: No such file"):
        load_data(whole)
    os.mkfifo(whole / "cat" / "pipe.png")
    (whole / "dog" / "folder.png").mkdir()
    photo(whole / "dog" / "folder.png" / "inside.png")
    data = load_data(whole, on_bad_image="skip")
    assert any(
        "left out 2 of 43 photos" in note and "dangling.png" in note and "pipe.png" in note for note in data.notes
    )
    assert "dog/folder.png/inside.png" in chain.from_iterable(names(data).values())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(whole: Path) -> None:
    (whole / "cat").chmod(0)
    try:
        with pytest.raises(DataError, match="cat cannot be read: Permission denied"):
            load_data(whole)
    finally:
        (whole / "cat").chmod(0o755)


def test_one_photo_under_two_spellings_is_found(whole: Path) -> None:
    path = table(whole.parent, "path,label\npets/cat/01.png,cat\n./pets//cat/01.png,dog\n")
    with pytest.raises(DataError, match=r"line 3: ./pets//cat/01.png stands in line 2 already"):
        load_data(path)
    with pytest.raises(DataError, match="line 2: no such file"):
        load_data(table(whole.parent, f"path,label\n{'x' * 300},cat\n"))


def test_an_npz_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(
        tmp_path / "flat.npz", images=np.zeros((2**17, 32, 32, 3), np.uint8), labels=np.zeros(2**17, int)
    )
    with pytest.raises(DataError, match=r"it unpacks to \d{9} bytes, suspiciously many"):
        load_data(tmp_path / "flat.npz")


class Faulty(Listed):
    def __getitem__(self, i: int) -> tuple[Any, int]:
        if i == 7:
            raise OSError("the disk\nis gone")
        return super().__getitem__(i)


def test_an_item_that_cannot_be_read_is_named() -> None:
    faulty: Any = Faulty()
    with pytest.raises(DataError, match="all: item 7 cannot be read: the disk is gone"):
        load_data(faulty)
