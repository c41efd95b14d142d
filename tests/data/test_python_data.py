"""Data sets of others: what their numbers mean, what their items may be, and what is found before training."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlx.data import Data, load_data
from tlx.errors import DataError

COUNT = 12
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 3
WHOLE: dict[str, Any] = {"val_fraction": 0, "test_fraction": 0}


class Listed:
    """A data set as Python programs have them: length, items, and whatever attributes are given."""

    def __init__(self, labels: Any = LABELS, images: Any = PIXELS, **attributes: Any) -> None:
        self.of, self.images, self.reads, self.decode = labels, images, 0, True
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        self.reads += 1
        image = self.images[i]
        if isinstance(image, Exception):
            raise image
        pillow = self.decode and isinstance(image, np.ndarray) and image.dtype == np.uint8
        return (Image.fromarray(image) if pillow else image), self.of[i]


def refused(source: Any, *parts: str, **options: Any) -> None:
    """It is refused in one line that says all this."""
    with pytest.raises(DataError) as error:
        load_data(source, **{**WHOLE, **options})
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value), str(error.value)


def noted(data: Data, part: str) -> bool:
    return any(part in note for note in data.notes)


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


class Tensor:
    """What of a tensor is used: it is brought to the host before it becomes an array."""

    def __init__(self, array: Any, on: str = "device") -> None:
        self.array, self.on = array, on

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return Tensor(self.array, "host")

    def numpy(self) -> Any:
        assert self.on == "host"
        return self.array


KINDS_OF_IMAGE: dict[str, Callable[[Any], Any]] = {
    "uint8": lambda x: x,
    "channels first": lambda x: x.transpose(2, 0, 1),
    "int64": lambda x: x.astype(np.int64),
    "uint16": lambda x: x.astype(np.uint16),
    "float32": lambda x: x.astype(np.float32) / np.float32(255),
    "float64": lambda x: x / 255,
    "float16": lambda x: (x.astype(np.float32) / np.float32(255)).astype(np.float16),
    "tensor": lambda x: Tensor(x.transpose(2, 0, 1)),
    "float tensor": lambda x: Tensor(x.transpose(2, 0, 1).astype(np.float32) / np.float32(255)),
    "RGBA": lambda x: np.concatenate([x, x[..., :1]], axis=-1),
    "RGBA, channels first": lambda x: np.concatenate([x, x[..., :1]], axis=-1).transpose(2, 0, 1),
    "Pillow": Image.fromarray,
}


@pytest.mark.parametrize("kind", KINDS_OF_IMAGE)
def test_an_image_may_be_of_any_common_kind(kind: str) -> None:
    images = [KINDS_OF_IMAGE[kind](pixels) for pixels in PIXELS]
    for source in (list(zip(images, LABELS, strict=True)), Listed(images=images, decode=False), (images, LABELS)):
        data = load_data(source, **WHOLE)
        assert all(np.array_equal(data.train.pixels(i), PIXELS[i]) for i in range(COUNT))


SHAPES: dict[str, tuple[Any, Any]] = {
    "NHW": (PIXELS[..., 0], PIXELS[..., :1]),
    "NHW1": (PIXELS[..., :1], PIXELS[..., :1]),
    "N1HW": (PIXELS[..., 0][:, None], PIXELS[..., :1]),
    "N3HW": (PIXELS.transpose(0, 3, 1, 2), PIXELS),
    "NHW4": (np.concatenate([PIXELS, PIXELS[..., :1]], axis=-1), PIXELS),
    "bool": (PIXELS > 127, (PIXELS > 127) * 255),
    "floats": (PIXELS / 255, PIXELS),
    "tensor": (Tensor(PIXELS.transpose(0, 3, 1, 2)), PIXELS),
    "tensor of width 3": (Tensor(PIXELS[:, :, :3].transpose(0, 3, 1, 2)), PIXELS[:, :, :3]),
    "height 3": (PIXELS[:, :3], PIXELS[:, :3]),
    "int64": (PIXELS.astype(np.int64), PIXELS),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_of_images_may_be_of_any_common_shape_and_type(shape: str) -> None:
    given, expected = SHAPES[shape]
    data = load_data({"train": (given, LABELS)}, val_fraction=0)
    assert data.train.size == expected.shape[1:3]
    for i in range(COUNT):
        assert np.array_equal(data.train.pixels(i), np.broadcast_to(expected[i], (*expected.shape[1:3], 3)))


def test_what_was_done_to_the_pixels_is_noted() -> None:
    for given, note in (
        (PIXELS / 255, "train: floats 0 .. 1 were rounded to 0 .. 255"),
        (PIXELS > 9, "train: pixels of type bool were taken as black and white"),
        (PIXELS // 200, "no pixel is above 1 of 255, which is nearly black"),
        (np.concatenate([PIXELS, PIXELS[..., :1]], axis=-1), "train: alpha, the fourth channel, was dropped"),
        (PIXELS[:, :3], "train: images [3, 5, 3] were taken as [height, width, channels]"),
    ):
        assert noted(load_data({"train": (given, LABELS)}, val_fraction=0), note)
    images = [pixels / 255 if i < 3 else pixels for i, pixels in enumerate(PIXELS)]
    data = load_data(list(zip(images, LABELS, strict=True)), **WHOLE)
    assert noted(data, "all: floats 0 .. 1 were rounded to 0 .. 255 (3 of 12 images)")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            PIXELS.astype(np.float32),
            "float32 from 0 to 255; expected floats 0 .. 1 or uint8 0 .. 255. Fix: images.astype(np.u",
        ),
        (
            PIXELS / 127.5 - 1,
            "from -1 to 1; expected floats 0 .. 1 or uint8 0 .. 255. They seem to be normalised. Fix: give",
        ),
        (PIXELS / 60 - 2, "They seem to be normalised"),
        (PIXELS.astype(np.int64) - 5, "pixels are int64 from -5 to 250; expected 0 .. 255"),
        (PIXELS.astype(np.uint16) * 200, "Fix: (images // 256).astype(np.uint8)"),
        (PIXELS.astype(complex), "pixels are complex128"),
        (PIXELS.transpose(0, 3, 1, 2)[..., :4], "may be [N, channels, height, 4] or [N, height, width, RGBA]"),
        (
            PIXELS[..., :2],
            "expected [N, height, width, 3], [N, 3, height, width] or [N, height, width]; got uint8 [12, 6, 5, 2]",
        ),
        (PIXELS.reshape(COUNT, -1), "got uint8 [12, 90]"),
        (PIXELS[None].repeat(COUNT, axis=0), "got uint8 [12, 12, 6, 5, 3]"),
    ],
)
def test_pixels_of_another_scale_or_shape_are_refused_and_never_clipped(images: Any, message: str) -> None:
    refused({"train": (images, LABELS)}, message)
    if images.ndim == 4:
        single = message.partition("from ")[0].replace("[N, ", "[").replace("[12, ", "[")
        for on_bad_image in ("error", "skip"):  # it is wrong with all, so that leaving some out would hide it
            refused(list(zip(images, LABELS, strict=True)), single, on_bad_image=on_bad_image)


def test_an_image_that_holds_nan_is_named_and_can_be_left_out() -> None:
    images = PIXELS / 255
    images[7, 2, 2] = np.nan
    refused({"train": (images, LABELS)}, "train: image 7 holds NaN or infinity. Fix: mend")
    refused(list(zip(images, LABELS, strict=True)), "image 7 of list: pixels are not all finite")
    for source in ({"train": (images, LABELS)}, {"train": list(zip(images, LABELS, strict=True))}):
        data = load_data(source, val_fraction=0, on_bad_image="skip")
        assert len(data.train) == 11 and np.array_equal(data.train.pixels(7), PIXELS[8])


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
