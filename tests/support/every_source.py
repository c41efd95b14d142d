"""One small data set, with a photo that is cut off, a copy in another part and a wrong label, as every kind of source.

40 images of two classes, the first 28 to train on. Image 30 is a copy of image 0, image 4 has the label of the other
class, and image 7 is cut off wherever images are files; in arrays nothing can be.
"""

from __future__ import annotations

import csv
import io
import itertools
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from tlx.data.sources import cifar10

CLASSES, COUNT, TRAIN = ("cat", "dog"), 40, 28
COPY, ORIGINAL, WRONG, BROKEN = 30, 0, 4, 7
TINTS = ((220, 60, 60), (60, 60, 220))
Name = tuple[str, str]  # the part of an image, and its name there


def picture(i: int) -> Image.Image:
    """Image `i`: no other looks like it, but for its copy, and each class has a colour."""
    i = ORIGINAL if i == COPY else i
    colours = np.random.default_rng(i).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    image = Image.fromarray(colours).resize((32, 32), Image.Resampling.BICUBIC)
    return Image.blend(image, Image.new("RGB", (32, 32), TINTS[i % 2]), 0.6)


def photo(i: int) -> bytes:
    """Image `i` as a file."""
    file = io.BytesIO()
    picture(i).save(file, "PNG")
    content = file.getvalue()
    return content[: len(content) // 2] if i == BROKEN else content


def label(i: int) -> str:
    return CLASSES[(i + (i == WRONG)) % 2]


def part(i: int) -> str:
    return "train" if i < TRAIN else "test"


@dataclass(frozen=True, slots=True)
class Sample:
    """A source, the names of its 40 images, and what else has to be said to read it."""

    data: Any
    names: list[Name]
    check: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    files: bool = True  # whether an image can be cut off


def _named(form: Callable[[int], str], parts: bool = True) -> list[Name]:
    return [(part(i) if parts else "all", form(i)) for i in range(COUNT)]


def _photos(at: Path, form: Callable[[int], str]) -> Path:
    for i in range(COUNT):
        (at / form(i)).parent.mkdir(parents=True, exist_ok=True)
        (at / form(i)).write_bytes(photo(i))
    return at


def _of_parts(i: int) -> str:
    return f"{part(i)}/{label(i)}/{i:02}.png"


def folder(at: Path) -> Sample:
    return Sample(str(_photos(at / "photos", _of_parts)), _named(_of_parts))


def folder_without_parts(at: Path) -> Sample:
    def name(i: int) -> str:
        return f"{label(i)}/{i:02}.png"

    return Sample(str(_photos(at / "photos", name)), _named(name, parts=False))


def _list(at: Path, name: str, delimiter: str, split: bool) -> Sample:
    def path(i: int) -> str:
        return f"photos/{i:02}.png"

    _photos(at, path)
    with (at / name).open("w", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(("path", "label", "split")[: 2 + split])
        rows.writerows((path(i), label(i), part(i))[: 2 + split] for i in range(COUNT))
    return Sample(str(at / name), _named(path, parts=split))


def table_of_text(at: Path) -> Sample:
    return _list(at, "list.csv", ",", split=True)


def table_of_tabs_without_parts(at: Path) -> Sample:
    return _list(at, "list.tsv", "\t", split=False)


def listed_folder(at: Path) -> Sample:
    _list(at, "labels.csv", ",", split=True)
    return Sample(str(at), _named(lambda i: f"photos/{i:02}.png"))


def _save_parquet(path: Path, which: range, photos: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"image": photos, "label": [label(i) for i in which]}), path)


def parquet_of_photos(at: Path) -> Sample:
    for name, which in (("train", range(TRAIN)), ("test", range(TRAIN, COUNT))):
        photos = [{"bytes": photo(i), "path": f"{i}.png"} for i in which]
        _save_parquet(at / "data" / f"{name}-00000-of-00001.parquet", which, photos)
    return Sample(str(at), _named(lambda i: f"{part(i)}-00000-of-00001/{_place(i)}"))


def parquet_of_paths(at: Path) -> Sample:
    def name(i: int) -> str:
        return f"photos/{i:02}.png"

    _photos(at, name)
    _save_parquet(at / "list.parquet", range(COUNT), [name(i) for i in range(COUNT)])
    return Sample(str(at / "list.parquet"), _named(name, parts=False))


def shards(at: Path) -> Sample:
    for name, which in (("train", range(TRAIN)), ("test", range(TRAIN, COUNT))):
        with tarfile.open(at / f"{name}-0000.tar", "w") as tar:
            for i in which:
                for ending, content in (("png", photo(i)), ("cls", label(i).encode())):
                    member = tarfile.TarInfo(f"{i:03}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return Sample(str(at), _named(lambda i: f"{part(i)}-0000/{i:03}"))


def archive_of_photos(at: Path) -> Sample:
    inner = _photos(at / "photos", _of_parts)
    with zipfile.ZipFile(at / "photos.zip", "w") as archive:
        for i in range(COUNT):
            archive.write(inner / _of_parts(i), _of_parts(i))
    return Sample(str(at / "photos.zip"), _named(_of_parts))


def archive_of_a_list(at: Path) -> Sample:
    inner = at / "inner"
    inner.mkdir()
    names = _list(inner, "list.csv", ",", split=True).names
    with tarfile.open(at / "photos.tar.gz", "w:gz") as archive:
        archive.add(inner, ".")
    return Sample(str(at / "photos.tar.gz"), names)


def _arrays() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images = np.stack([np.asarray(picture(i)) for i in range(COUNT)])
    return images, np.array([CLASSES.index(label(i)) for i in range(COUNT)])


def _place(i: int) -> int:
    return i if i < TRAIN else i - TRAIN


def _numbered(i: int) -> str:
    return str(_place(i))


def _in_array(i: int) -> str:
    return f"{part(i)}/{_place(i)}"


def npz(at: Path) -> Sample:
    x, y = _arrays()
    parts: dict[str, Any] = {"x_train": x[:TRAIN], "y_train": y[:TRAIN], "x_test": x[TRAIN:], "y_test": y[TRAIN:]}
    np.savez(at / "arrays.npz", **parts, classes=np.array(CLASSES))
    return Sample(str(at / "arrays.npz"), _named(_in_array), files=False)


def arrays(at: Path) -> Sample:
    x, y = _arrays()
    data = {"train": (x[:TRAIN], y[:TRAIN]), "test": (x[TRAIN:], y[TRAIN:]), "classes": CLASSES}
    return Sample(data, _named(_in_array), files=False)


def arrays_without_parts(at: Path) -> Sample:
    return Sample({"all": _arrays(), "classes": CLASSES}, _named(lambda i: f"all/{i}", parts=False), files=False)


def list_of_images(at: Path) -> Sample:
    def item(i: int) -> tuple[Any, str]:
        return ("nowhere.png" if i == BROKEN else picture(i)), label(i)

    parts = {"train": [item(i) for i in range(TRAIN)], "test": [item(i) for i in range(TRAIN, COUNT)]}
    return Sample(parts, _named(_numbered))


def list_of_paths(at: Path) -> Sample:
    root = _photos(at / "photos", _of_parts)
    items = [{"image": _of_parts(i), "label": label(i)} for i in range(COUNT)]
    data = {"train": items[:TRAIN], "test": items[TRAIN:]}
    return Sample(data, _named(_numbered), check={"data_root": root}, run={"data_root": str(root)})


class Photos:
    """A data set of somebody's own, which decodes a photo when it is asked for."""

    def __init__(self, root: Path, which: range) -> None:
        self.root, self.which = root, which
        self.classes = CLASSES

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, place: int) -> tuple[Image.Image, int]:
        i = self.which[place]
        with Image.open(self.root / _of_parts(i)) as image:
            return image.convert("RGB"), CLASSES.index(label(i))


def data_set_of_your_own(at: Path) -> Sample:
    root = _photos(at / "photos", _of_parts)
    return Sample((Photos(root, range(TRAIN)), Photos(root, range(TRAIN, COUNT))), _named(_numbered))


def torchvision_folder(at: Path) -> Sample:
    from torchvision.datasets import ImageFolder

    root = _photos(at / "photos", _of_parts)
    order = {name: sorted(range(COUNT), key=_of_parts) for name in ("train", "test")}
    places = {i: str([j for j in order[part(i)] if part(j) == part(i)].index(i)) for i in range(COUNT)}
    return Sample((ImageFolder(root / "train"), ImageFolder(root / "test")), _named(places.__getitem__))


def cifar(at: Path) -> Sample:
    x, y = _arrays()
    y = np.array([3, 5])[y]  # cats and dogs
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (at / cifar10.FOLDER).mkdir()
    edges = [*np.linspace(0, TRAIN, len(cifar10.TRAIN) + 1).astype(int).tolist(), COUNT]
    names = list[Name]()
    for name, (first, last) in zip((*cifar10.TRAIN, *cifar10.TEST), itertools.pairwise(edges), strict=True):
        names += [(part(i), f"{name}/{i - first}") for i in range(first, last)]
        rows = x[first:last].transpose(0, 3, 1, 2).reshape(-1, 3072)
        content = {b"data": rows, b"labels": y[first:last].tolist()}
        (at / cifar10.FOLDER / name).write_bytes(pickle.dumps(content, protocol=3))
    (at / cifar10.FOLDER / cifar10.META).write_bytes(pickle.dumps({b"label_names": classes}, protocol=3))
    root = {"data_root": str(at)}
    return Sample("cifar10", names, root, {**root, "classes": CLASSES}, files=False)


SOURCES: dict[str, Callable[[Path], Sample]] = {
    make.__name__: make
    for make in (
        *(folder, folder_without_parts, table_of_text, table_of_tabs_without_parts, listed_folder),
        *(parquet_of_photos, parquet_of_paths, shards, archive_of_photos, archive_of_a_list),
        *(npz, arrays, arrays_without_parts, list_of_images, list_of_paths, data_set_of_your_own),
        *(torchvision_folder, cifar),
    )
}
