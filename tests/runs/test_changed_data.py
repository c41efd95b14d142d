"""Data that change between a save and a resume are refused, in one line; what changes no pixel and no label is not."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

import tlx
from support.finished_runs import FIELDS
from support.small_data import (
    CLASSES,
    EACH,
    NAMES,
    csv,
    folder,
    links,
    listed,
    npz,
    pack,
    packed,
    photo,
    pixels,
    shards,
    table,
)
from tlx.data import file_hashes
from tlx.errors import TlxError


@pytest.fixture(autouse=True)
def _hashes_are_kept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each change has to get past the hashes of the run before; files of tests are younger than 2 s."""
    monkeypatch.setattr(file_hashes, "YOUNG", 0.0)


def edit(file: Path, old: bytes, new: bytes) -> None:
    """Change bytes in place, the first that are so; size and time of the last change stay."""
    facts, content = file.stat(), file.read_bytes()
    assert old in content and len(old) == len(new)
    with file.open("r+b") as stream:
        stream.write(content.replace(old, new, 1))
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def swap(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def one_byte(file: Path, i: int) -> Path:
    edit(file, photo(i), photo(i)[:-1] + bytes([photo(i)[-1] ^ 1]))
    return file


def retarget(link: Path, target: Path) -> None:
    link.unlink()
    link.symlink_to(target)


def replaced(at: Path, i: int) -> None:
    (at / "new").write_bytes(photo(99))
    os.utime(at / "new", ns=(0, (at / NAMES[i]).stat().st_mtime_ns))
    os.replace(at / "new", at / NAMES[i])


def rewritten(file: Path, *changes: tuple[str, str]) -> None:
    for old, new in changes:
        file.write_text(file.read_text().replace(old, new, 1))


def reversed_rows(file: Path) -> None:
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([head, *reversed(rows)]))


def restored(file: Path, write: Callable[[], object]) -> None:
    facts = file.stat()
    write()
    assert file.stat().st_size == facts.st_size
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def one_byte_of_array(at: Path) -> None:
    images = np.stack([pixels(i) for i in range(len(NAMES))])
    images[17, 3, 3, 1] ^= 1
    npz(at, images=images)


def packed_with(at: Path, name: str) -> None:
    folder(at / "photos")
    one_byte(at / "photos" / NAMES[2], 2)
    pack(at, name)


CONTENTS = "the contents of images changed"
LABELS = "the labels of images changed"

# What the data are, what is done to them, and what the error says has changed.
CHANGES: dict[str, tuple[Callable[[Path], Any], Callable[[Path], object], str]] = {
    "two photos are swapped": (folder, lambda at: swap(at / NAMES[0], at / NAMES[20]), CONTENTS),
    "two photos of a class are swapped": (folder, lambda at: swap(at / NAMES[0], at / NAMES[1]), CONTENTS),
    "a photo is replaced by one as long": (folder, lambda at: replaced(at, 5), CONTENTS),
    "one byte of a photo": (folder, lambda at: one_byte(at / NAMES[7], 7), CONTENTS),
    "a photo grows": (folder, lambda at: (at / NAMES[7]).write_bytes(photo(7) + b"\0"), CONTENTS),
    "a photo is moved to another class": (folder, lambda at: (at / NAMES[0]).rename(at / "bee" / "x.ppm"), "names"),
    "a photo is renamed": (folder, lambda at: (at / NAMES[3]).rename(at / "ant" / "03b.ppm"), "the names of images"),
    "a photo is removed": (folder, lambda at: (at / NAMES[3]).unlink(), "there were 26 train, 3 val, 7 test images"),
    "a photo is added": (folder, lambda at: (at / "ant" / "new.ppm").write_bytes(photo(99)), "and there are"),
    "a class is renamed": (
        folder,
        lambda at: (at / "bee").rename(at / "bug"),
        "the classes and the names of",
    ),
    "two classes are swapped": (folder, lambda at: swap(at / "bee", at / "cat"), CONTENTS),
    "a link leads to another photo": (links, lambda at: retarget(at / NAMES[0], (at / NAMES[9]).resolve()), CONTENTS),
    "what a link leads to": (links, lambda at: one_byte((at / NAMES[8]).resolve(), 8), CONTENTS),
    "a label in a list": (csv, lambda at: rewritten(at / "list.csv", ("01.ppm,ant", "01.ppm,bee")), LABELS),
    "two labels in a list": (
        csv,
        lambda at: rewritten(at / "list.csv", ("t/01.ppm,ant", "t/01.ppm,bee"), ("e/01.ppm,bee", "e/01.ppm,ant")),
        LABELS,
    ),
    "the order of a list": (csv, lambda at: reversed_rows(at / "list.csv"), "the order of the images"),
    "a part in a list": (csv, lambda at: rewritten(at / "list.csv", ("ant,train", "ant,test")), "there were"),
    "a row of a list": (csv, lambda at: rewritten(at / "list.csv", (f"{NAMES[2]},ant,train\n", "")), "there were"),
    "a photo of a list": (csv, lambda at: one_byte(at / NAMES[30], 30), CONTENTS),
    "a photo of a list in a folder": (listed, lambda at: one_byte(at / "photos" / NAMES[30], 30), CONTENTS),
    "a label of a list in a folder": (
        listed,
        lambda at: rewritten(at / "labels.csv", ("01.ppm,ant", "01.ppm,bee")),
        LABELS,
    ),
    "a pixel of an array": (npz, one_byte_of_array, CONTENTS),
    "a label of an array": (npz, lambda at: npz(at, labels=np.repeat([0, 1, 2], [11, 13, 12])), LABELS),
    "a class of an array": (npz, lambda at: npz(at, classes=np.array(["ant", "bee", "cow"])), "the classes changed"),
    "a photo of a table": (
        table,
        lambda at: restored(at / "photos.parquet", lambda: edit(at / "photos.parquet", photo(4)[-9:], b"123456789")),
        CONTENTS,
    ),
    "a label of a table": (table, lambda at: table(at, labels={1: "bee"}), LABELS),
    "a member of a tar": (packed, lambda at: one_byte(at / "photos.tar", 11), CONTENTS),
    "a member of a zip": (
        lambda at: packed(at, "photos.zip"),
        lambda at: restored(at / "photos.zip", lambda: packed_with(at, "photos.zip")),
        CONTENTS,
    ),
    "a photo of a shard": (shards, lambda at: one_byte(at / "data-000.tar", 33), CONTENTS),
    "a label of a shard": (shards, lambda at: edit(at / "data-000.tar", b"ant", b"bee"), LABELS),
}


def trained(data: Any, out: Path) -> Path:
    return tlx.run(**{**FIELDS, "data": data, "val_fraction": 0.1, "epochs": 1}, out=str(out)).run_dir


def go_on(run_dir: Path, **fields: Any) -> tlx.Result:
    return tlx.run(resume=str(run_dir), epochs=2, quiet=True, **fields)


def everything_in(run_dir: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in run_dir.rglob("*") if file.is_file()}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_after(change: str, tmp_path: Path) -> None:
    make, alter, said = CHANGES[change]
    run_dir = trained(str(make(tmp_path / "pets")), tmp_path / "run")
    before = everything_in(run_dir)
    time.sleep(0.02)  # file systems count time in steps of up to 10 ms
    alter(tmp_path / "pets")
    with pytest.raises(TlxError, match="was trained on other data than there is now") as caught:
        go_on(run_dir)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert everything_in(run_dir) == before


class Numbered:
    """A data set of one's own, whose images are read one by one."""

    def __init__(self, images: list[Any]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.images[i], i // EACH


def with_paths(at: Path) -> list[tuple[str, str]]:
    folder(at)
    return [(str(at / name), name[:3]) for name in NAMES]


def with_paths_again(at: Path) -> list[tuple[str, str]]:
    return [(str(at / name), name[:3]) for name in NAMES]


def in_pillow(at: Path, first: int = 0) -> list[tuple[Image.Image, int]]:
    return [(Image.fromarray(pixels(i or first)), i // EACH) for i in range(len(NAMES))]


def of_torchvision(at: Path) -> Any:
    datasets = pytest.importorskip("torchvision.datasets")
    return datasets.ImageFolder(folder(at) if not at.exists() else at)


def part_of_torchvision(at: Path) -> Any:
    data = pytest.importorskip("torch.utils.data")
    whole = of_torchvision(at)
    return data.Subset(whole, list(range(1, len(whole))))


def in_memory_of_torchvision(at: Path, changed: int = 0) -> Any:
    datasets = pytest.importorskip("torchvision.datasets")
    cifar = datasets.CIFAR10.__new__(datasets.CIFAR10)
    cifar.data = np.stack([pixels(i) for i in range(len(NAMES))])
    cifar.data[19, 0, 0, 0] ^= changed
    cifar.targets, cifar.classes = [i // EACH for i in range(len(NAMES))], list(CLASSES)
    cifar.transform = cifar.target_transform = cifar.transforms = None
    return cifar


# The data, and the data after a change.
OBJECTS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "an array": (
        lambda at: (np.stack([pixels(i) for i in range(36)]), np.repeat(np.arange(3), EACH)),
        lambda at: (np.stack([pixels(i or 99) for i in range(36)]), np.repeat(np.arange(3), EACH)),
    ),
    "labels of an array": (
        lambda at: (np.stack([pixels(i) for i in range(36)]), np.repeat(np.arange(3), EACH)),
        lambda at: (np.stack([pixels(i) for i in range(36)]), np.repeat(np.arange(3), [11, 13, 12])),
    ),
    "a list of Pillow images": (in_pillow, lambda at: in_pillow(at, 99)),
    "a data set of one's own": (
        lambda at: Numbered([image for image, _ in in_pillow(at)]),
        lambda at: Numbered([image for image, _ in in_pillow(at, 99)]),
    ),
    "photos by their paths": (with_paths, lambda at: with_paths_again(one_byte(at / NAMES[35], 35).parents[1])),
    "ImageFolder": (of_torchvision, lambda at: of_torchvision(one_byte(at / NAMES[5], 5).parents[1])),
    "a Subset of ImageFolder": (
        part_of_torchvision,
        lambda at: part_of_torchvision(one_byte(at / NAMES[6], 6).parents[1]),
    ),
    "CIFAR10 of torchvision": (in_memory_of_torchvision, lambda at: in_memory_of_torchvision(at, 1)),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_one_image_that_changes_in_python_data_is_seen(kind: str, tmp_path: Path) -> None:
    make, change = OBJECTS[kind]
    data = make(tmp_path / "pets")
    run_dir = trained(data, tmp_path / "run")
    assert go_on(run_dir, data=data).epochs_run == 2
    time.sleep(0.02)
    with pytest.raises(TlxError, match=r"other data than there is now: the (contents|labels) of images"):
        tlx.run(resume=str(run_dir), epochs=3, quiet=True, data=change(tmp_path / "pets"))


def touched(at: Path) -> Path:
    for file in at.rglob("*"):
        os.utime(file, (1, 1))
    return at


def copied_shard(at: Path) -> Path:
    return Path(shutil.copy(at / "data-000.tar", at / "copy.tar")).replace(at / "data-000.tar")


def with_litter(at: Path) -> Path:
    (at / "Thumbs.db").write_bytes(b"x")
    return at


def with_a_column(at: Path) -> Path:
    (at / "list.csv").write_text((at / "list.csv").read_text().replace("\n", ",x\n") + ",x")
    return at / "list.csv"


def compressed(at: Path) -> Path:
    parquet.write_table(parquet.read_table(at / "photos.parquet"), at / "photos.parquet")
    return at / "photos.parquet"


HARMLESS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path]]] = {
    "all files are touched": (folder, touched),
    "a copy elsewhere": (folder, lambda at: Path(shutil.copytree(at, at.with_name("copy")))),
    "the folder is moved": (folder, lambda at: at.rename(at.with_name("moved"))),
    "files of the system appear": (folder, with_litter),
    "links become files": (links, lambda at: Path(shutil.copytree(at, at.with_name("copy")))),
    "a list is written anew": (csv, lambda at: csv(at)),
    "a list gets a column": (csv, with_a_column),
    "arrays are compressed": (npz, lambda at: npz(at, np.savez_compressed)),
    "a table is compressed": (table, compressed),
    "an archive is unpacked": (packed, lambda at: folder(at / "again")),
    "an archive is moved": (packed, lambda at: (at / "photos.tar").rename(at / "other.tar")),
    "a shard is copied": (shards, copied_shard),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_a_run_goes_on_after(change: str, tmp_path: Path) -> None:
    make, alter = HARMLESS[change]
    run_dir = trained(str(make(tmp_path / "pets")), tmp_path / "run")
    time.sleep(0.02)
    assert go_on(run_dir, data=str(alter(tmp_path / "pets"))).epochs_run == 2


def test_a_run_of_the_first_tlx_is_known_by_names_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(tmp_path / "pets")
    with monkeypatch.context() as patch:  # so that what is saved is what tlx 0.1.0 saved
        patch.setattr(tlx.Data, "take_fingerprint", lambda data, advance=None: data.first_fingerprint())
        run_dir = trained(str(data), tmp_path / "run")
    swap(data / NAMES[0], data / NAMES[20])  # which it could not see
    assert go_on(run_dir).epochs_run == 2
    (data / NAMES[0]).write_bytes(photo(0) + b"\0")
    with pytest.raises(TlxError, match="other data than there is now: the contents of images"):
        tlx.run(resume=str(run_dir), epochs=3, quiet=True)


def test_a_changed_size_is_seen_as_the_first_tlx_saw_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(tmp_path / "pets")
    with monkeypatch.context() as patch:
        patch.setattr(tlx.Data, "take_fingerprint", lambda data, advance=None: data.first_fingerprint())
        run_dir = trained(str(data), tmp_path / "run")
    (data / NAMES[0]).write_bytes(photo(0) + b"\0")
    with pytest.raises(TlxError, match="other data than there is now: names, labels or sizes differ"):
        go_on(run_dir)
