"""Named sources, arrays, subsets: what is taken, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlx.data import load_data
from tlx.errors import DataError, DataNotFound


def test_classes_are_renumbered_in_the_order_given() -> None:
    whole, part = load_data("digits", val_fraction=0), load_data("digits", classes=("7", "3"), val_fraction=0)
    assert part.classes == ("7", "3")
    indices = np.flatnonzero(np.isin(whole.train.labels, [3, 7]))
    assert part.train.labels.tolist() == [int(label == 3) for label in whole.train.labels[indices]]
    assert all(np.array_equal(part.train.pixels(i), whole.train.pixels(int(k))) for i, k in enumerate(indices[:20]))
    with pytest.raises(DataError, match="no class 'x'"):
        load_data("digits", classes=("7", "x"))


def test_limits_and_the_validation_split_are_stratified_and_repeatable() -> None:
    data = [load_data("digits", limit_train=200, val_fraction=0.2, seed=seed) for seed in (0, 0, 1)]
    assert (len(data[0].train), len(data[0].val)) == (160, 40)
    assert set(np.bincount(data[0].val.labels)) <= {3, 4, 5}
    assert not set(data[0].train.names) & set(data[0].val.names)
    assert data[0].fingerprint == data[1].fingerprint != data[2].fingerprint
    chosen = [{*d.train.names, *d.val.names} for d in data]
    assert chosen[0] == chosen[2]  # the limit does not depend on the seed, only the split does
    with pytest.raises(DataError, match="limit_train=3 leaves a class without an image"):
        load_data("digits", limit_train=3)


IMAGES = np.zeros((6, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((IMAGES, np.array([0, 1, 0, 1, 0, -1])), "label -1"),
        ((IMAGES, np.array([0.5, 1, 0, 1, 0, 1])), "label 0.5 of sample 0 is not a whole number"),
        ((IMAGES, np.array([0, 1])), "6"),
        ((IMAGES.astype(np.float32) + 2, np.array([0, 1] * 3)), r"from 2 to 2; .*images\.astype\(np\.uint8\)"),
        ((IMAGES, np.array([[2, 1]] * 6)), "their rows are not one-hot"),
        ((IMAGES, [0, 1, 0, 1, 0, [1]]), "the label of sample 5 is a list; most others are numbers"),
        (([IMAGES[0], "gone.png"], [0, 1]), "item 1: no such file: gone.png"),
        ((IMAGES[:0], np.zeros(0, int)), r"got uint8 \[0, 8, 8, 3\]"),
        ((IMAGES[..., :2], np.array([0, 1] * 3)), r"got uint8 \[6, 8, 8, 2\]"),
        (IMAGES, "must be a pair"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(part: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data({"train": part}, val_fraction=0)


@pytest.mark.parametrize("written", ["my_photo", "my-photos", "sub/my_photo"])
def test_a_path_that_does_not_exist_is_told_with_the_near_one_that_does(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my_photos", "sub/my_photos", "notes"):
        Path(name).mkdir(parents=True)
    near = Path(written).with_name("my_photos")
    with pytest.raises(DataNotFound, match=rf"nor an existing folder or file\. Did you mean '{near}'\?"):
        load_data(written, val_fraction=0)


TWO = (IMAGES, np.array([0, 1] * 3))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("digts", {}, r"neither a known data set nor an existing folder or file\. Did you mean 'digits'"),
        ("~no-such-user/photos", {}, "home directory. Fix: write the path in full"),
        (7, {}, "must be one of cifar10, digits, a folder of photos, a .csv.* an .npz.*got int"),
        (__file__, {}, "is a file, but neither .csv nor .npz"),
        ((TWO,), {}, r"must be \(train, test\).*got 1 items"),
        ({"test": TWO}, {}, "need a 'train' entry"),
        ({"train": TWO, "tset": TWO}, {}, "unknown key 'tset'. Did you mean 'test'"),
        ({"train": TWO, "classes": ["a", "a"]}, {}, "holds a name twice: a, a"),
        ({"train": TWO, "classes": ["a", "b", "c"]}, {}, "no training image of class 'c'"),
        ({"train": TWO, "test": (IMAGES, np.array([0, 9] * 3)), "classes": ["a", "b"]}, {}, "label 9 of sample 1"),
        ({"train": (IMAGES, np.array([0, 10**6] * 3))}, {}, "number the classes from 0"),
        ("digits", {"classes": ("7", "7")}, "'7' is given twice"),
        ("digits", {"classes": "7"}, "1 class to tell apart"),
        ("digits", {"val_fraction": 1.0}, "at least 0 and below 1"),
        ("digits", {"val_fraction": float("nan")}, "at least 0 and below 1"),
        ("digits", {"limit_train": 20, "val_fraction": 0.1}, "cannot leave an image of each of 10 classes"),
        ("digits", {"limit_test": 0}, "limit_test=0 leaves a class without an image"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        load_data(source, **{"val_fraction": 0, **options})
    assert "\n" not in str(error.value)


def test_arrays_keep_their_pixels_and_grey_becomes_three_equal_channels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    data = load_data(((pixels, TWO[1]), (pixels[..., 0], TWO[1])), val_fraction=0)
    assert data.classes == ("0", "1") and data.train.size == (4, 5)
    for i in range(6):
        assert np.array_equal(data.train.pixels(i), pixels[i])
        assert np.array_equal(data.test.pixels(i), np.repeat(pixels[i, ..., :1], 3, axis=2))


@pytest.mark.parametrize(("count", "shares"), [(7, [2, 3, 2]), (10, [3, 5, 2]), (3, [1, 1, 1]), (19, [6, 8, 5])])
def test_a_limit_is_divided_by_largest_remainders(count: int, shares: list[int]) -> None:
    labels = np.repeat([0, 1, 2], [6, 9, 5])
    data = load_data({"train": (np.zeros((20, 2, 2), np.uint8), labels)}, limit_train=count, val_fraction=0)
    assert np.bincount(data.train.labels).tolist() == shares


def test_a_limit_beyond_the_data_and_a_missing_test_part_are_noted() -> None:
    data = load_data({"train": TWO}, limit_train=9, val_fraction=0)
    assert data.notes == ("limit_train=9 is more than there are: all 6 are used", "there is no test part")
    assert len(data.train) == 6 and data.test is None


def test_data_shows_itself_in_one_line_and_in_a_notebook_as_a_table() -> None:
    data = load_data({"train": TWO, "test": TWO, "classes": ["<cat>", "dog"]}, val_fraction=0)
    assert repr(data) == "<Data arrays: 2 classes; images: 6 train, 6 test>"
    assert data._repr_html_() == (
        "<table><caption>arrays: 2 classes</caption><tr><th>part</th><th>images</th><th>of each class</th></tr>"
        "<tr><th>train</th><td>6</td><td>&lt;cat&gt; 3, dog 3</td></tr>"
        "<tr><th>test</th><td>6</td><td>&lt;cat&gt; 3, dog 3</td></tr></table>"
    )
    many = load_data({"train": (np.zeros((12, 2, 2), np.uint8), np.arange(12))}, val_fraction=0)
    assert "9 1, and 2 more classes</td>" in many._repr_html_()


def test_what_is_missing_is_also_a_file_not_found_error(tmp_path: Path) -> None:
    for source, root in (("nowhere", None), ("cifar10", tmp_path), (tmp_path / "x.csv", None)):
        with pytest.raises(FileNotFoundError):
            load_data(source, root=root)
    (tmp_path / "list.csv").write_text("path,label\ngone.png,cat\n")
    with pytest.raises(FileNotFoundError, match="line 2: no such file"):
        load_data(tmp_path / "list.csv")


def test_the_fingerprint_changes_with_one_pixel_or_one_name() -> None:
    other = IMAGES.copy()
    other[5, 7, 7, 2] = 1
    sources: list[dict[str, Any]] = [
        {"train": TWO},
        {"train": (other, TWO[1])},
        {"train": TWO, "classes": ["a", "b"]},
        {"train": TWO},
    ]
    prints = [load_data(source, val_fraction=0).fingerprint for source in sources]
    assert len(set(prints)) == 3 and prints[0] == prints[3]
