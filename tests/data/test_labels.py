"""Every kind of label in every kind of container: the same classes come out, or one line says what is wrong."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tlx.data import load_data
from tlx.errors import DataError, TlxError

COUNT = 12
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8)
THREE, TWO = np.arange(COUNT) % 3, np.arange(COUNT) % 2
Item = namedtuple("Item", "label image")


class Listed:
    """A data set as Python programs have them."""

    def __init__(self, labels: Any) -> None:
        self.of = labels

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return Image.fromarray(PIXELS[i]), self.of[i]


def photos(labels: Any, folder: Path) -> list[tuple[str, Any]]:
    for i in range(COUNT):
        Image.fromarray(PIXELS[i]).save(folder / f"{i}.png")
    return [(str(folder / f"{i}.png"), label) for i, label in enumerate(labels)]


def npz(labels: Any, folder: Path) -> Path:
    np.savez(folder / "set.npz", images=PIXELS, labels=np.asarray(labels))
    return folder / "set.npz"


CONTAINERS: dict[str, Callable[[Any, Path], Any]] = {
    "arrays": lambda labels, folder: {"train": (PIXELS, labels)},
    "tuple": lambda labels, folder: (PIXELS, labels),
    "images": lambda labels, folder: ([Image.fromarray(pixels) for pixels in PIXELS], labels),
    "items": lambda labels, folder: list(zip(PIXELS, labels, strict=True)),
    "mappings": lambda labels, folder: [{"image": x, "label": y} for x, y in zip(PIXELS, labels, strict=True)],
    "named tuples": lambda labels, folder: [Item(y, x) for x, y in zip(PIXELS, labels, strict=True)],
    "data set": lambda labels, folder: Listed(labels),
    "paths": photos,
    "npz": npz,
}
NUMBERS = ("0", "1", "2")
FINE: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "list": (THREE.tolist(), NUMBERS, ""),
    "int64": (THREE, NUMBERS, ""),
    "uint8": (THREE.astype(np.uint8), NUMBERS, ""),
    "text": ([["cat", "dog", "eel"][i] for i in THREE], ("cat", "dog", "eel"), ""),
    "array of text": (np.array(["cat", "dog", "eel"])[THREE], ("cat", "dog", "eel"), ""),
    "objects": (np.array(["cat", "dog", "eel"], dtype=object)[THREE].tolist(), ("cat", "dog", "eel"), ""),
    "bytes": (np.array([b"cat", b"dog", b"eel"])[THREE], ("cat", "dog", "eel"), ""),
    "column": (THREE[:, None], NUMBERS, "labels [12, 1] were taken as [12]"),
    "one-hot": (np.eye(3, dtype=int)[THREE], NUMBERS, "labels are one-hot [12, 3]"),
    "one-hot floats": (np.eye(3)[THREE].tolist(), NUMBERS, "labels are one-hot [12, 3]"),
    "bool": (TWO.astype(bool), ("0", "1"), "False is class 0 and True is class 1"),
    "floats": (THREE.astype(np.float32), NUMBERS, "whole numbers of type float"),
    "from 1": (THREE + 1, ("1", "2", "3"), "labels 1 .. 3 became the classes 0 .. 2"),
    "signs": (TWO * 2 - 1, ("-1", "1"), "labels -1 and 1 became the classes 0 and 1"),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", FINE)
def test_a_label_of_any_kind_means_the_same_in_any_container(kind: str, container: str, tmp_path: Path) -> None:
    labels, classes, note = FINE[kind]
    data = load_data(CONTAINERS[container](labels, tmp_path), val_fraction=0, test_fraction=0)
    expected = TWO if len(classes) == 2 else THREE
    assert data.train.labels.tolist() == expected.tolist() and data.train.labels.dtype == np.int64
    assert data.classes == classes
    assert any(note in text for text in data.notes), data.notes
    assert all(np.array_equal(data.train.pixels(i), PIXELS[i]) for i in (0, 7, 11))


def spoilt(label: Any, at: int = 7) -> list[Any]:
    """Class numbers, one of which is something else."""
    return [*THREE[:at].tolist(), label, *THREE[at + 1 :].tolist()]


MASKED: Any = THREE.view(np.ma.MaskedArray)
MASKED[7] = np.ma.masked
WRONG: dict[str, tuple[Any, str]] = {
    "NaN": (spoilt(float("nan")), "label nan of sample 7 is not a whole number; expected a class number or a name"),
    "infinity": (spoilt(float("inf")), "label inf of sample 7 is not a whole number"),
    "masked": (MASKED, "label of sample 7 is"),
    "half": (spoilt(0.5), "label 0.5 of sample 7 is not a whole number"),
    "negative": (spoilt(-1), "label -1 of sample 7 is not in 0 .. 2"),
    "large": (spoilt(99), "label 99 among 12 training images. Fix: number the classes from 0"),
    "huge": (spoilt(2.0**70), "of sample 7 is too large for a class number"),
    "missing": (np.where(THREE == 1, 0, THREE), "no training image of class '1'"),
    "one class": (np.zeros(COUNT, int), "has 1 class to tell apart"),
    "None": (spoilt(None), "label of sample 7 is None; expected a class number or a name"),
    "text among numbers": (spoilt("cat"), "the label of sample 7 is the text 'cat'; most others are numbers"),
    "ragged": ([[i, i] if i else [i] for i in THREE.tolist()], "most others are arrays [2]"),
    "a 2 in a row": (
        np.eye(3, dtype=int)[THREE] * (1 + (np.arange(COUNT) == 1))[:, None],
        "the label of sample 1 is not",
    ),
    "soft": (np.full((COUNT, 3), 1 / 3), "rows are not one-hot. Fix: pass one class number for each image, such as"),
    "matrices": (np.zeros((COUNT, 2, 2)), "[12, 2, 2]; expected one class number or name for each image"),
    "complex": (THREE.astype(complex), "of sample 0 is"),
    "dates": (np.array(["2024-01-01"] * COUNT, dtype="M8[D]"), "of sample 0 is"),
    "empty text": ([["", "a", "b"][i] for i in THREE], "the label of sample 0 is empty"),
    "mappings": ([{"class": i} for i in THREE.tolist()], "of sample 0 is a dict"),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", WRONG)
def test_a_label_that_is_none_is_named_in_any_container(kind: str, container: str, tmp_path: Path) -> None:
    labels, message = WRONG[kind]
    if container == "npz" and kind in ("None", "masked", "text among numbers", "ragged", "mappings"):
        pytest.skip("an array in a file has one type")
    with pytest.raises(DataError) as error:
        load_data(CONTAINERS[container](labels, tmp_path), val_fraction=0, test_fraction=0)
    wanted = (
        message if kind not in ("complex", "dates") or container not in ("arrays", "tuple", "images", "npz") else ""
    )
    assert wanted in str(error.value) and "\n" not in str(error.value)


def test_a_sample_without_a_usable_label_can_be_left_out() -> None:
    for labels in (spoilt(None), spoilt("cat"), spoilt(float("nan")), spoilt(-1)):
        for source in ({"train": (PIXELS, labels)}, {"train": list(zip(PIXELS, labels, strict=True))}):
            data = load_data(source, val_fraction=0, on_bad_image="skip")
            assert data.train.labels.tolist() == [*THREE[:7].tolist(), *THREE[8:].tolist()]
            assert np.array_equal(data.train.pixels(7), PIXELS[8])
            assert "left out 1 of 12 samples of train that cannot be used: train/7" in data.notes
    with pytest.raises(DataError, match=r"no sample of train can be used: train: label 0\.5 of sample 0"):
        load_data({"train": (PIXELS, THREE + 0.5)}, on_bad_image="skip")


def test_one_part_decides_for_all_where_the_numbers_start() -> None:
    """A part without class 0 is not numbered from 1 if another has class 0; and one from 1 may lack the last."""
    later, first = {"train": (PIXELS, THREE), "test": (PIXELS, TWO + 1)}, (PIXELS, THREE + 1)
    data = load_data(later, val_fraction=0)
    assert data.classes == NUMBERS and data.test is not None and data.test.labels.tolist() == (TWO + 1).tolist()
    data = load_data({"train": first, "test": (PIXELS, TWO + 1)}, val_fraction=0)
    assert data.classes == ("1", "2", "3") and data.test is not None and data.test.labels.tolist() == TWO.tolist()
    named = load_data({"train": first, "classes": ["cat", "dog", "eel"]}, val_fraction=0)
    assert named.classes == ("cat", "dog", "eel") and named.train.labels.tolist() == THREE.tolist()
    with pytest.raises(DataError, match=r"train: label 3 of sample 2 is not in 0 \.\. 2 \(and"):
        load_data({"train": first, "test": (PIXELS, THREE), "classes": ["cat", "dog", "eel"]})


def test_text_labels_keep_to_the_order_of_the_classes_that_are_given() -> None:
    text = np.array(["cat", "dog", "eel"])[THREE]
    data = load_data({"train": (PIXELS, text), "classes": ["eel", "dog", "cat"]}, val_fraction=0)
    assert data.classes == ("eel", "dog", "cat") and data.train.labels.tolist() == (2 - THREE).tolist()
    with pytest.raises(DataError, match="train: label 'eel' of sample 2 is not a class of train: cat, dog"):
        load_data({"train": (PIXELS, text), "classes": ["cat", "dog"]})
    with pytest.raises(DataError, match="test: label 'eel' of sample 2 is not a class of train: cat, dog"):
        load_data({"train": (PIXELS, np.array(["cat", "dog"])[TWO]), "test": (PIXELS, text)})
    with pytest.raises(DataError, match="labels of the parts differ in kind: train has text, test has numbers"):
        load_data({"train": (PIXELS, text), "test": (PIXELS, THREE)})


def test_an_int64_array_from_a_file_of_labels_is_never_rounded(tmp_path: Path) -> None:
    for labels in (np.full(COUNT, 2**63 - 1), np.full(COUNT, 2**64 - 1, np.uint64), [10**30] * COUNT):
        with pytest.raises(DataError, match="of sample 0 is"):
            load_data({"train": (PIXELS, labels)})


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(width=16), st.text(max_size=2), st.binary(max_size=2)
)
IMAGES = st.sampled_from(
    [
        PIXELS[0],
        PIXELS[1].astype(np.float32),
        PIXELS[2] / 255,
        PIXELS[0].transpose(2, 0, 1),
        PIXELS[0, :0],
        PIXELS[..., 0],
        Image.fromarray(PIXELS[3]),
        np.array(3),
        np.array([{}]),
        np.zeros((3, 3, 3), complex),
    ]
)
ODD = st.recursive(
    st.one_of(SCALARS, IMAGES, st.builds(object), st.builds(Listed, st.lists(SCALARS, max_size=4)), st.just(iter(()))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(st.tuples(IMAGES, SCALARS), max_size=6),
        st.tuples(inner, inner),
        st.dictionaries(
            st.sampled_from(["train", "test", "val", "classes", "image", "label", "img"]), inner, max_size=3
        ),
        st.builds(np.array, st.lists(st.integers(0, 3), max_size=3)),
    ),
    max_leaves=8,
)


@settings(max_examples=250, derandomize=True, deadline=None)
@given(ODD, st.sampled_from(["error", "skip"]))
def test_whatever_is_passed_is_data_or_one_clear_error(source: Any, on_bad_image: str) -> None:
    try:
        load_data(source, on_bad_image=on_bad_image, val_fraction=0, test_fraction=0)
    except TlxError as error:
        assert str(error) and "\n" not in str(error)


class Hostile:
    """It fails at whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}\nat all")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __getitem__(self, i: int) -> Any:
        raise RuntimeError("no items")


def test_an_object_that_fails_at_everything_is_one_clear_error() -> None:
    hostile: Any = Hostile()
    for source in (hostile, {"train": hostile}, [hostile], [(hostile, 0)], [(PIXELS[0], hostile)], (PIXELS, hostile)):
        with pytest.raises(DataError) as error:
            load_data(source)
        assert "\n" not in str(error.value)
