"""Data sets of others: what their numbers mean, what their items may be, and what is found before training."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.listed import COUNT, LABELS, PIXELS, WHOLE, Listed, noted, refused
from tlx.data import load_data

PETS = ("cat", "dog", "eel")


def test_data_sets_that_number_their_classes_differently_are_matched_by_name() -> None:
    train, test = Listed(classes=PETS), Listed(classes=("eel", "cat", "dog"))
    data = load_data((train, test), val_fraction=0)
    assert data.classes == PETS and data.test is not None
    assert [("eel", "cat", "dog")[i] for i in LABELS] == [data.classes[i] for i in data.test.labels]
    assert noted(data, "test numbers its classes differently from the rest: they were matched by name")
    some = Listed(LABELS % 2, class_to_idx={"dog": 0, "cat": 1})
    data = load_data({"train": train, "test": some}, val_fraction=0)
    assert data.test is not None and [PETS[i] for i in data.test.labels] == [("dog", "cat")[i] for i in LABELS % 2]
    named = load_data({"train": train, "test": test, "classes": ["dog", "eel", "cat"]}, val_fraction=0)
    assert named.classes == ("dog", "eel", "cat")
    assert [named.classes[i] for i in named.train.labels] == [PETS[i] for i in LABELS]


def test_data_sets_of_other_classes_are_refused() -> None:
    refused(
        (Listed(classes=PETS), Listed(classes=("ant", "bee", "eel"))),
        "test has classes that train does not have: ant, bee.",
        "train has cat, dog, eel. Fix: use data sets of the same classes",
    )
    refused(
        {"train": Listed(classes=PETS), "classes": ["a", "b"]}, "names a, b, but the data set itself has cat, dog, eel"
    )
    data = load_data({"train": Listed(classes=PETS), "classes": ["Katze", "Hund", "Aal"]}, **WHOLE)
    assert data.classes == ("Katze", "Hund", "Aal") and noted(data, "renamed: cat, dog, eel became Katze, Hund, Aal")


def test_a_data_set_without_names_takes_those_of_the_other_and_that_is_noted() -> None:
    data = load_data((Listed(classes=PETS), (PIXELS, LABELS)), val_fraction=0)
    assert data.classes == PETS and noted(
        data, "test does not name its classes: its numbers were taken as those of the"
    )


def test_classes_that_no_image_has_are_left_out_where_a_data_set_names_more() -> None:
    data = load_data(Listed(LABELS * 2, classes=("ant", "bee", "cat", "dog", "eel")), **WHOLE)
    assert data.classes == ("ant", "cat", "eel") and data.train.labels.tolist() == LABELS.tolist()
    assert noted(data, "2 of 5 classes have no image and were left out: bee, dog")


@pytest.mark.parametrize(
    ("attributes", "classes"),
    [
        (
            {"classes": [("tench", "Tinca tinca"), ("crane",), ("crane",)]},
            ("tench, Tinca tinca", "crane (1)", "crane (2)"),
        ),
        ({"class_to_idx": {"cat": 0, "dog": 1, "eel": 2, "wolf": 1}}, ("cat", "dog/wolf", "eel")),
        ({"classes": ["cat", "dog", "eel"], "class_to_idx": {"cat": 2, "dog": 1, "eel": 0}}, ("eel", "dog", "cat")),
        ({"classes": np.array(PETS)}, PETS),
    ],
)
def test_class_names_are_found_in_whatever_form_a_data_set_has_them(attributes: Any, classes: Any) -> None:
    data = load_data(Listed(**attributes), **WHOLE)
    assert data.classes == classes and data.train.labels.tolist() == LABELS.tolist()


def test_what_a_data_set_returns_counts_and_not_its_targets() -> None:
    source = Listed(2 - LABELS, targets=LABELS.tolist(), classes=PETS)
    data = load_data(source, **WHOLE)
    assert [data.classes[i] for i in data.train.labels] == [PETS[i] for i in LABELS]  # the names go along
    assert noted(data, "all: 12 of 12 items were read once, to learn their labels")
    assert noted(data, "labels are returned otherwise than they are stored: 0 eel, 1 dog, 2 cat")
    merged = load_data(Listed(LABELS // 2, targets=LABELS.tolist(), classes=PETS), **WHOLE)
    assert merged.classes == ("cat/dog", "eel")
    unclear = load_data(Listed(np.arange(COUNT) % 2, targets=LABELS.tolist(), classes=PETS), **WHOLE)
    assert unclear.classes == ("0", "1") and noted(unclear, "do not belong to the numbers that are returned")


class Part:
    """A subset as programs write it themselves, which changes the images and may change the labels."""

    def __init__(self, dataset: Any, indices: Any, change: Callable[[int], int] = int) -> None:
        self.dataset, self.indices, self.change = dataset, indices, change

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image, label = self.dataset[self.indices[i]]
        return image.rotate(180), self.change(label)


def test_names_come_through_wrappers_unless_these_change_the_labels() -> None:
    inner: Any = Listed(classes=PETS)
    data = load_data(Part(Part(inner, range(COUNT)), [11, 10, 9, 5, 4, 3]), **WHOLE)
    assert data.classes == PETS and data.train.labels.tolist() == [2, 1, 0, 2, 1, 0]
    data = load_data(Part(inner, range(COUNT), lambda label: 2 - label), **WHOLE)
    assert data.classes == ("0", "1", "2") and noted(data, "the names of Listed do not belong to the numbers")


Item = namedtuple("Item", "label image")
FORMS: dict[str, tuple[Callable[[Any, int], Any], str]] = {
    "pair": (lambda x, y: (x, y), ""),
    "list": (lambda x, y: [x, y], ""),
    "mapping": (lambda x, y: {"image": x, "label": y}, ""),
    "other names": (
        lambda x, y: {"img": x, "target": y, "id": 7},
        "image is 'img' of each item and the label is 'target'; not",
    ),
    "one name": (lambda x, y: {"scan": x, "labels": y}, "the image is 'scan' of each item and the label is 'labels'"),
    "named tuple": (lambda x, y: Item(y, x), ""),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_item_may_be_a_pair_a_mapping_or_a_named_tuple(form: str) -> None:
    make, note = FORMS[form]
    data = load_data([make(x, int(y)) for x, y in zip(PIXELS, LABELS, strict=True)], **WHOLE)
    assert data.train.labels.tolist() == LABELS.tolist() and noted(data, note or "there is no test")
    assert np.array_equal(data.train.pixels(5), PIXELS[5])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"img": PIXELS[0], "fine_label": 0, "coarse_label": 0},
            "'coarse_label': 2 of them may be the label. Fix: pass pairs",
        ),
        ({"image": PIXELS[0], "photo": PIXELS[0], "label": 0}, "2 of them may be the image"),
        ({"a": PIXELS[0], "b": 0}, "has the keys 'a', 'b': none of them may be the image"),
        ((PIXELS[0], 0, "extra"), "it has 3 entries. Fix: pass pairs"),
        ((0, PIXELS[0]), "is (label, image); expected (image, label). Fix"),
        (PIXELS[0], "it is an image without a label"),
        ("cat.png", "item 0 is not a pair (image, label): it is the text 'cat.png'"),
        (None, "it is None"),
    ],
)
def test_an_item_that_is_not_one_image_and_one_label_is_refused(item: Any, message: str) -> None:
    refused([item] * 3, message)
    refused({"train": [item] * 3}, message, on_bad_image="skip")


def test_names_of_a_feature_are_those_of_its_numbers() -> None:
    """As the data sets of the Hugging Face hub have them."""

    class Feature:
        names = PETS

    class Table(list[Any]):
        features = {"image": None, "label": Feature()}  # noqa: RUF012 (as there)

    data = load_data(Table({"image": x, "label": int(y)} for x, y in zip(PIXELS, LABELS, strict=True)), **WHOLE)
    assert data.classes == PETS
    items = [{"image": x, "label": int(y)} for x, y in zip(PIXELS, LABELS, strict=True)]
    data = load_data({"train": items, "validation": items[:6]})
    assert data.val is not None and len(data.val) == 6 and noted(data, "'validation' was taken as 'val'")


def with_item(at: int, image: Any) -> list[Any]:
    return [image if i == at else pixels for i, pixels in enumerate(PIXELS)]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "image 7 of Listed is None; expected a Pillow image, an array"),
        ("cat.png", "item 7: no such file: cat.png"),
        (3.5, "image 7 of Listed is the number 3.5; expected a Pillow image"),
        (object(), "image 7 of Listed is an object; expected"),
        (np.zeros((5, 5, 7)), "image 7 of Listed: expected [height, width, 3]"),
        (np.zeros((0, 4, 3), np.float32), "image 7 of Listed: expected [height, width, 3]"),
        (OSError("the disk\nis gone"), "item 7 cannot be read: the disk is gone"),
        (KeyError("x"), "item 7 cannot be read: 'x'"),
    ],
)
def test_a_later_item_that_is_wrong_is_found_before_training_and_can_be_left_out(image: Any, message: str) -> None:
    source = {"train": Listed(images=with_item(7, image))}
    refused(source, "train: " + message, "leave them out with on_bad_image='skip'")
    data = load_data(source, val_fraction=0, on_bad_image="skip")
    assert list(data.train.names) == [str(i) for i in range(COUNT) if i != 7]
    assert data.train.labels.tolist() == [*LABELS[:7], *LABELS[8:]]
    assert noted(data, "left out 1 of 12 samples of train that cannot be used: 7") and noted(data, message)


def test_all_that_is_wrong_is_counted() -> None:
    images = with_item(7, None)
    images[9] = "gone.png"
    refused(Listed([*LABELS[:11], "cat"], images), "image 7 of Listed is None", "(and 2 more samples are of no use)")


def test_a_data_set_none_of_whose_items_can_be_read_is_given_up_early() -> None:
    source = Listed(np.arange(5000) % 3, [OSError("no such disk")] * 5000)
    refused(source, "item 0 cannot be read: no such disk")
    assert source.reads == 100


def test_paths_are_relative_to_the_root_and_a_photo_that_is_none_can_be_left_out(tmp_path: Path) -> None:
    items: list[Any] = []
    for i, label in enumerate(LABELS.tolist()):
        Image.fromarray(PIXELS[i]).save(tmp_path / f"{i}.png")
        items.append((f"{i}.png" if i % 2 else Path(f"{i}.png"), label))
    data = load_data(items, root=tmp_path, **WHOLE)
    assert all(np.array_equal(data.train.pixels(i), PIXELS[i]) for i in range(COUNT))
    refused(items, "item 0: no such file: 0.png")
    (tmp_path / "7.png").write_bytes(b"no photo")
    data = load_data({"train": items}, root=tmp_path, val_fraction=0, on_bad_image="skip")
    assert len(data.train) == 11 and noted(data, "left out 1 of 12 samples of train that cannot be used: 7")
    columns = load_data(([path for path, _ in items], LABELS), root=tmp_path, on_bad_image="skip", **WHOLE)
    assert len(columns.train) == 11


def test_a_data_set_that_changes_from_one_reading_to_the_next_is_refused() -> None:
    class Random(Listed):
        def __getitem__(self, i: int) -> tuple[Any, Any]:
            self.reads += 1
            return Image.new("RGB", (4, 4), (self.reads % 250, 0, 0)), self.of[i]

    refused(Random(), "item 0 of Random is another image each time that it is read", "random transforms")


class Batches:
    """What of a loader is looked at."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.batch_size = dataset, 4

    def __iter__(self) -> Iterator[Any]:
        yield from ()


class Frame:
    """What of a table is looked at."""

    columns = ("path", "label")
    iloc = None

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, key: str) -> Any:
        return key


def test_what_cannot_be_data_says_what_to_pass_instead() -> None:
    refused({"train": (PIXELS, iter(LABELS))}, "train: labels are an iterator", "Fix: pass a list or an array")
    refused(Batches(Listed()), "all is a Batches, which makes batches", "Fix: pass loader.dataset")
    refused((Batches(Listed()), Batches(Listed())), "train is a Batches", "Fix: pass loader.dataset")
    refused(Frame(), "all is a Frame with the columns path, label", "list(zip(table['path'], table['label']))")
    refused((item for item in PIXELS), "a generator has no length", "Fix: pass list(data)")
    refused(PIXELS, "must be a pair (images, labels)", "an array uint8 [12, 6, 5, 3] without labels")
    refused(
        (PIXELS, PIXELS, LABELS, LABELS), "as a tuple must be (train, test)", "Fix: write {'train': (images, labels)"
    )
    refused(
        {"train": {"image": PIXELS, "label": LABELS}}, "train is a mapping with the keys image, label", "Fix: pass ("
    )
    refused({"image": PIXELS, "label": LABELS}, "unknown key 'image'", "Data is written as {'train': (images, labels)")
    refused(
        {"train": (PIXELS, LABELS), "val": (PIXELS, LABELS), "valid": (PIXELS, LABELS)}, "'valid' is another name of"
    )
    refused(
        {"train": (PIXELS, LABELS), "classes": "cat"}, "data['classes'] is the text 'cat'; expected a list of names"
    )


def test_a_tuple_of_images_and_labels_is_a_whole_and_that_is_noted() -> None:
    data = load_data((PIXELS, LABELS), val_fraction=0, test_fraction=0.25)
    assert data.test is not None and len(data.test) == 3 and noted(data, "the tuple was taken as (images, labels)")
    pair = load_data(((PIXELS, LABELS), (PIXELS[:6], LABELS[:6])), val_fraction=0)
    assert pair.test is not None and (len(pair.train), len(pair.test)) == (12, 6)
    for labels in (LABELS, LABELS[:, None], np.eye(3)[LABELS]):
        grey: Any = ((PIXELS[..., 0], labels), [PIXELS[:6, ..., 0], labels[:6]])
        assert len(load_data(grey, val_fraction=0).train) == 12
    two = [(PIXELS[0], 0), (PIXELS[1], 1)]
    assert len(load_data({"train": two, "test": two}, val_fraction=0).train) == 2
