"""Data whose images may have several labels: where they are read from, and how they are divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.multilabel import CLASSES, digits, properties
from tlx import load_data
from tlx.data.mixing import Targets
from tlx.data.multilabel import divide
from tlx.errors import DataError

ROWS = [("a.png", "cat;dog"), ("b.png", "dog"), ("c.png", ""), ("d.png", "bird; cat")] * 5


def photos(home: Path, header: str, cells: list[str]) -> Path:
    """Write twenty photos and a list of them."""
    lines = [header]
    for number, cell in enumerate(cells):
        Image.new("RGB", (9, 9), (number * 9, 3, 200)).save(home / f"{number}.png")
        lines.append(f"{number}.png,{cell}")
    (home / "list.csv").write_text("\n".join(lines) + "\n")
    return home / "list.csv"


def test_rows_of_zero_and_one_are_several_labels() -> None:
    data = load_data(digits())
    assert data.multilabel and data.classes == CLASSES
    assert any("several classes may apply" in note for note in data.notes)
    parts = data.parts.values()
    assert sum(map(len, parts)) == 1797 and all(part.labels.shape == (len(part), 4) for part in parts)


def test_one_hot_rows_stay_class_numbers_unless_another_part_has_several() -> None:
    images = np.arange(12 * 64, dtype=np.uint16).astype(np.uint8).reshape(12, 8, 8)
    one_hot = np.eye(3, dtype=int)[np.arange(12) % 3]
    assert not load_data({"train": (images, one_hot)}, val_fraction=0).multilabel
    several = one_hot | np.eye(3, dtype=int)[0]
    data = load_data({"train": (images, one_hot), "test": (images[::-1], several)}, val_fraction=0)
    assert data.multilabel and (data.train.labels == one_hot).all()
    with pytest.raises(DataError, match=r"test: labels are class numbers, but others are rows of 3 labels of 0 and 1"):
        load_data({"train": (images, several), "test": (images, np.arange(12) % 3)})


def test_a_column_may_hold_several_labels(tmp_path: Path) -> None:
    file = photos(tmp_path, "path,labels", [cell for _, cell in ROWS])
    data = load_data(file, label_separator=";", test_fraction=0, val_fraction=0)
    assert data.classes == ("bird", "cat", "dog")
    assert data.train.labels[:4].tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]]
    assert not load_data(photos(tmp_path, "path,labels", ["x", "y"] * 10), test_fraction=0).multilabel
    with pytest.raises(DataError, match="which has no label_separator"):
        load_data("digits", label_separator=";")


def test_each_class_may_be_a_column_of_zero_and_one(tmp_path: Path) -> None:
    file = photos(tmp_path, "image,cat,dog,age", ["1,1,30", "0,1,4", "0,0,1", "1,0,7"] * 5)
    found = load_data(file, test_fraction=0, val_fraction=0)
    assert found.classes == ("cat", "dog") and found.train.labels[:4].tolist() == [[1, 1], [0, 1], [0, 0], [1, 0]]
    named = load_data(file, label_column="dog,cat", test_fraction=0, val_fraction=0)
    assert named.classes == ("dog", "cat") and (named.train.labels == found.train.labels[:, ::-1]).all()
    with pytest.raises(DataError, match=r"line 2: age is '30'; expected 0 or 1"):
        load_data(file, label_column="cat,age")
    with pytest.raises(DataError, match=r"label_column is 'dogs', but there is no such column. Did you mean 'dog'"):
        load_data(file, label_column="cat,dogs")


def test_every_class_is_divided_in_proportion_and_the_count_is_exact() -> None:
    labels = properties(np.random.Generator(np.random.Philox(0)).integers(0, 10, 1000))
    rare = np.zeros((1000, 1), np.int64)
    rare[[3, 500, 501, 900, 901, 902, 903, 904, 905, 906]] = 1
    labels = np.concatenate([labels, rare], axis=1)
    for seed in range(3):
        chosen, rest = divide(labels, 100, seed=seed, purpose="split")
        assert len(chosen) == 100 and sorted([*chosen, *rest]) == list(range(1000))
        assert np.abs(labels[chosen].sum(axis=0) - labels.sum(axis=0) / 10).max() <= 2
        assert labels[chosen, 4].sum() == 1  # of ten, which chance alone often gives none or three
    assert (divide(labels, 100, seed=0, purpose="split")[0] != divide(labels, 100, seed=1, purpose="split")[0]).any()


def test_a_subset_of_the_classes_keeps_the_images() -> None:
    data = load_data(digits(), classes=["prime", "even"])
    assert sum(map(len, data.parts.values())) == 1797
    assert data.train.labels.shape[1] == 2 and "prime" in data.class_counts(data.train)


def test_smoothing_and_mixing_take_each_class_by_itself() -> None:
    labels = np.array([[1, 1, 0], [0, 0, 0]])
    images = np.zeros((2, 3, 4, 4), np.uint8)
    smooth = Targets(3, label_smoothing=0.2).apply(images, labels, 0, 0, 0)
    assert smooth == pytest.approx(np.array([[0.9, 0.9, 0.1], [0.1, 0.1, 0.1]]))
    mixed = Targets(3, mixup=1.0).apply(images, labels, 0, 0, 0)
    assert mixed is not None and mixed[0, 0] == mixed[0, 1] == 1 - mixed[1, 0] and not mixed[:, 2].any()


@pytest.mark.parametrize("mistake", ["fixes", "bar", "never", "width"])
def test_a_mistake_is_named(tmp_path: Path, mistake: str) -> None:
    data = digits(60)
    images, labels = data["all"]
    if mistake == "fixes":
        with pytest.raises(DataError, match="fixes give an image one label"):
            load_data(data, fixes=tmp_path / "fixes.csv")
    elif mistake == "bar":
        with pytest.raises(DataError, match=r"'\|' stands between several labels, but is part of 'a\|b'"):
            load_data({**data, "classes": ["a|b", "c", "d", "e"]})
    elif mistake == "never":
        with pytest.raises(DataError, match="no training image of class 'prime'"):
            load_data({**data, "all": (images, labels * [1, 1, 0, 1])}, test_fraction=0)
    else:
        with pytest.raises(DataError, match="holds 3 names, but labels are rows of 4 classes"):
            load_data({**data, "classes": ["a", "b", "c"]})
