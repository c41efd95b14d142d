"""Folders as people publish them: parts by other names, wrappings, litter, and what is said of all that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tlx
from tlx.data import Data, load_data
from tlx.errors import DataError

RUN: dict[str, Any] = {
    **{"backend": "loopback", "model": "tiny-mlp", "image_size": 8, "epochs": 1, "batch_size": 2, "workers": 1},
    **{"weights": "none", "val_fraction": 0},
}


def tree(root: Path, *places: str, photos: int = 3) -> Path:
    """Some different photos in each folder; a place that ends in a slash stays empty."""
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        for i in range(0 if place.endswith("/") else photos):
            shade = sum(map(ord, place)) % 200
            Image.new("RGB", (8, 8), (shade, len(place), i)).save(root / place / f"{i}.png")
    return root


def sizes(data: Data) -> dict[str, int]:
    return {part: len(images) for part, images in data.parts.items()}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Valid", "Test"),
        ("TRAINING", "validation", "Testing"),
        ("training", "dev", "eval"),
        ("train_set", "val_set", "test_set"),
        ("seg_train/seg_train", "seg_val", "seg_test/seg_test"),
    ],
)
def test_parts_are_recognised_by_their_usual_names(train: str, val: str, test: str, tmp_path: Path) -> None:
    data = load_data(tree(tmp_path, *(f"{part}/{name}" for part in (train, val, test) for name in ("cat", "dog"))))
    assert data.classes == ("cat", "dog") and sizes(data) == {"train": 6, "val": 6, "test": 6}
    assert data.notes == (f"{train}/ is the training part; {val}/ is the validation part; {test}/ is the test part",)


@pytest.mark.parametrize("name", ["unknown", "Images", "unlabelled"])
def test_a_test_part_in_one_folder_that_is_no_class_has_no_labels(name: str, tmp_path: Path) -> None:
    data = load_data(tree(tmp_path, "train/cat", "train/dog", f"test/{name}"), val_fraction=0)
    assert sizes(data) == {"train": 6}
    assert "not used: test/ with 3 photos, none in a class folder" in data.notes[0]


def test_a_class_that_is_called_unknown_is_one(tmp_path: Path) -> None:
    data = load_data(tree(tmp_path, "train/cat", "train/unknown", "test/unknown"), val_fraction=0)
    assert data.classes == ("cat", "unknown") and sizes(data) == {"train": 6, "test": 3}


def test_the_scenes_of_intel_as_they_are_unpacked(tmp_path: Path) -> None:
    parts = [f"seg_{part}/seg_{part}/{name}" for part in ("train", "test") for name in ("sea", "street")]
    data = load_data(tree(tmp_path, *parts, "seg_pred/seg_pred"), val_fraction=0)
    assert data.classes == ("sea", "street") and sizes(data) == {"train": 6, "test": 6}
    assert data.notes == (
        "seg_train/seg_train/ is the training part; seg_test/seg_test/ is the test part; "
        "not used: seg_pred/ with 3 photos",
    )


@pytest.mark.parametrize("wrapping", ["hymenoptera_data", "a/b"])
def test_folders_that_only_wrap_the_data_are_entered(wrapping: str, tmp_path: Path) -> None:
    inner = tree(tmp_path / "x" / wrapping, "train/cat", "train/dog", "val/cat", "val/dog")
    (tmp_path / "x" / "__MACOSX" / wrapping).mkdir(parents=True)
    (tmp_path / "x" / "README.txt").touch()
    data = load_data(tmp_path / "x", val_fraction=0)
    assert data.fingerprint == load_data(inner, val_fraction=0).fingerprint
    assert data.notes[0] == f"the data are in {wrapping}/"
    assert "skipped 1 file that is not an image by name: README.txt" in data.notes
    assert any("__MACOSX/" in note for note in data.notes)


def test_a_wrapped_whole_is_entered_and_one_class_is_not(tmp_path: Path) -> None:
    whole = load_data(tree(tmp_path / "whole", "animals/cat", "animals/dog"), test_fraction=0, val_fraction=0)
    assert whole.classes == ("cat", "dog")
    with pytest.raises(DataError, match=r"has 1 class to tell apart \(cat\)"):
        load_data(tree(tmp_path / "one", "cat"))
    (tmp_path / "circle" / "a").mkdir(parents=True)
    (tmp_path / "circle" / "a" / "b").symlink_to(tmp_path / "circle" / "a", target_is_directory=True)
    with pytest.raises(DataError):
        load_data(tmp_path / "circle")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["val/cat", "val/dog", "test/cat"], r"has val/ and test/, but no training part\. Fix: call the folder to tra"),
        (["Validation", "cat", "dog"], r"has Validation/, but no training part"),
        (["bus", "car", "train"], r"train holds no class folders: .*if 'train' is a class, call it otherwise"),
        (["train/a", "train/b", "val/a", "valid/a"], r"has both val/ and valid/\. Fix: remove all but one, or join"),
        (["train/a", "train/b", "test/a", "testing/a"], r"has both test/ and testing/"),
        (["train/a", "Train/b"], r"has both Train/ and train/"),
        (["train/a/", "train/b/"], r"train holds no photo in train/a/, train/b/"),
        (["train/a", "train/b", "val/A"], r"Only in train/: a, b\. Only in val/: A\. Fix: give a class the same name"),
        (["pred"], r"has no train/ folder"),
    ],
)
def test_what_looks_like_a_part_never_becomes_a_class(places: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as error:
        load_data(tree(tmp_path, *places))
    assert "\n" not in str(error.value)


def test_folders_beside_the_parts_are_not_used_which_is_said(tmp_path: Path) -> None:
    data = load_data(tree(tmp_path, "Training/cat", "Training/dog", "extra/cat", "extra/dog", "spare/"), val_fraction=0)
    assert data.classes == ("cat", "dog") and sizes(data) == {"train": 6}
    assert data.notes == (
        "Training/ is the training part; not used: extra/ with 6 photos, spare/ with 0 photos",
        "there is no test part",
    )


def test_photos_to_classify_are_no_class_of_a_whole(tmp_path: Path) -> None:
    data = load_data(tree(tmp_path, "cat", "dog", "pred"), test_fraction=0, val_fraction=0)
    assert data.classes == ("cat", "dog") and data.notes[0] == "not used: pred/ with 3 photos"


def test_classes_within_a_part_may_be_called_like_parts(tmp_path: Path) -> None:
    data = load_data(tree(tmp_path, "train/control", "train/test", "val/control", "val/test"), val_fraction=0)
    assert data.classes == ("control", "test") and sizes(data) == {"train": 6, "test": 6}


def test_a_part_may_lack_a_class(tmp_path: Path) -> None:
    data = load_data(
        tree(tmp_path, "train/a", "train/b", "train/c/", "train/d", "val/a", "val/b/", "val/c/"), val_fraction=0
    )
    assert data.classes == ("a", "b", "d") and np.bincount(data.test.labels, minlength=3).tolist() == [3, 0, 0]
    assert "no class, because there is no photo in it: train/c/" in data.notes
    assert "val/ has no photo of 2 of 3 classes: b, d" in data.notes
    run = tlx.run(data=str(tmp_path), **{**RUN, "batch_size": 3}, quiet=True, out=f"{tmp_path}-run")
    assert run.test_accuracy is not None
    chosen = load_data(tmp_path, classes=("b", "d"), val_fraction=0)
    assert chosen.test is None and "the test part has no image of these classes, and is not used" in chosen.notes


def test_without_a_test_the_validation_folder_chooses_and_a_note_says_that_this_is_no_test(tmp_path: Path) -> None:
    folder = tree(tmp_path / "photos", "train/cat", "train/dog", "val/cat", "val/dog")
    data = load_data(folder, test_fraction=0)
    assert sizes(data) == {"train": 6, "val": 6} and sizes(load_data(folder, val_fraction=0)) == {"train": 6, "test": 6}
    assert any("a choice and no test" in note for note in data.notes)
    fields = {**RUN, "val_fraction": 0.1, "test_fraction": 0.0, "epochs": 3, "quiet": True}
    result = tlx.run(data=str(folder), **fields, out=str(tmp_path / "run"))
    assert result.test_accuracy is None and result.unread == "no test part"
    assert result.val_accuracy == max(epoch["val_accuracy"] for epoch in result.history)


@pytest.mark.parametrize("val", [True, False])
def test_a_test_part_without_classes_is_counted_and_not_used(val: bool, tmp_path: Path) -> None:
    places = ["train/cat", "train/dog", "test", *(["val/cat", "val/dog"] if val else [])]
    data = load_data(tree(tmp_path, *places), val_fraction=0)
    assert sizes(data) == ({"train": 6, "test": 6} if val else {"train": 6})
    middle = "; val/ is the test part, because there is no other" if val else ""
    assert data.notes[0] == (
        f"train/ is the training part{middle}; not used: test/ with 3 photos, none in a class folder"
    )
    assert tlx.run(data=str(tmp_path), **RUN, quiet=True, out=f"{tmp_path}-run").test_accuracy is not None or not val


def test_litter_is_passed_over_with_a_note(tmp_path: Path) -> None:
    tree(tmp_path, "cat", "dog", "__MACOSX/cat", ".ipynb_checkpoints", "cat/.ipynb_checkpoints", "annotations")
    for name in (".DS_Store", "cat/._0.png", "cat/Thumbs.db", "dog/desktop.ini"):
        (tmp_path / name).touch()
    data = load_data(tmp_path, test_fraction=0, val_fraction=0)
    assert data.classes == ("cat", "dog") and sizes(data) == {"train": 6}
    assert data.notes[0] == (
        "passed over what is hidden, or left behind by other programs (8): "
        ".DS_Store, .ipynb_checkpoints/, __MACOSX/, annotations/, cat/._0.png, ..."
    )


def test_photos_outside_of_class_folders_are_counted(tmp_path: Path) -> None:
    data = load_data(tree(tmp_path, "", "train", "train/cat", "train/dog"), val_fraction=0)
    assert sizes(data) == {"train": 6}
    assert "not used: 6 photos outside of class folders: 0.png, 1.png, 2.png, train/0.png, train/1.png, ..." in (
        data.notes
    )


def test_a_run_shows_classes_and_counts_of_any_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "[red]x", "train/[bold]a", "train/b")
    tree(tmp_path / "[red]x", "val/b", photos=2)
    tlx.run(data=str(tmp_path / "[red]x"), **RUN, out=f"{tmp_path}-a")
    shown = capfd.readouterr().err
    assert "[red]x: 2 classes; images: 6 train, 2 test\n  training images of each class: [bold]a 3, b 3\n" in shown
    assert "note: train/ is the training part; val/ is the test part, because there is no other\n" in shown
    labels = np.repeat(np.arange(30), [2] * 28 + [1, 5])
    names = [f"class {i}" + "x" * 50 * (i == 1) for i in range(30)]
    arrays = {"train": (np.arange(62, dtype=np.uint8)[:, None, None] * np.ones((8, 8), np.uint8), labels)}
    tlx.run(data={**arrays, "classes": names}, **RUN, out=f"{tmp_path}-b")
    assert (
        f"each class: class 0 2, class 1{'x' * 32}… 2, class 2 2, class 3 2, class 4 2, class 5 2, class 6 2, "
        "class 7 2, class 8 2, class 9 2, and 20 more classes; smallest class 28 1, largest class 29 5\n"
    ) in capfd.readouterr().err


@pytest.mark.parametrize("name", ["caf\udce9", "a\nnote: all is well", "a\rb", "a\x1b[31mb", "a\u2028b"])
@pytest.mark.parametrize("where", ["class", "folder", "arrays"])
def test_a_name_that_no_card_can_hold_is_refused_before_training(name: str, where: str, tmp_path: Path) -> None:
    folder = tmp_path / (name if where == "folder" else "set")
    try:
        tree(folder, "train/b", f"train/{name if where == 'class' else 'a'}")
    except (OSError, UnicodeEncodeError) as problem:
        pytest.skip(f"this file system cannot hold the name: {problem}")
    pixels = np.arange(12, dtype=np.uint8)[:, None, None] * np.ones((8, 8), np.uint8)
    arrays = {"train": (pixels, np.arange(12) % 2), "classes": ["b", name]}
    with pytest.raises(tlx.TlxError, match="not UTF-8") as error:
        tlx.run(data=arrays if where == "arrays" else str(folder), **RUN, quiet=True, out=f"{tmp_path}-run")
    assert str(error.value).isprintable()
    assert not os.path.exists(f"{tmp_path}-run")


def test_a_folder_by_its_relative_path_may_be_called_by_no_name_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tree(tmp_path / "caf\udce9", "train/a", "train/b")
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match="not UTF-8"):
        load_data(".")


@pytest.mark.parametrize("field", ["data", "data_root", "weights", "out"])
def test_a_path_that_no_recipe_can_hold_is_refused(field: str) -> None:
    with pytest.raises(tlx.TlxError, match=rf"{field} is 'caf\\udce9': its bytes are not UTF-8") as error:
        tlx.Recipe.from_dict({field: "caf\udce9"})
    assert str(error.value).isprintable()


def test_the_name_of_a_file_forges_no_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path, "train/a", "train/b", "val/a", "val/b")
    (tmp_path / "train" / "a" / "x\n  note: all is well\x1b[2J.txt").touch()
    bad = tmp_path / "train" / "b" / "y\nepoch 9\udce9.png"
    bad.touch()
    tlx.run(data=str(tmp_path), **RUN, on_bad_image="skip", out=f"{tmp_path}-run")
    shown = capfd.readouterr().err
    assert r"train/a/x\n  note: all is well\x1b[2J.txt" in shown and r"train/b/y\nepoch 9\udce9.png" in shown
    with pytest.raises(DataError, match=r"y\\nepoch 9\\udce9\.png cannot be decoded"):
        load_data(tmp_path, val_fraction=0).train.pixels(6)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
@pytest.mark.parametrize("kind", ["copy", "hard link", "symbolic link"])
def test_a_photo_in_two_parts_is_counted_in_a_warning(kind: str, tmp_path: Path) -> None:
    tree(tmp_path, "train/a", "train/b", "val/a", "val/b", "test/a", "test/b")
    original = tmp_path / "train" / "a" / "0.png"
    for copy in (tmp_path / "test" / "a" / "again.png", tmp_path / "val" / "b" / "again.png"):
        if kind == "copy":
            copy.write_bytes(original.read_bytes())
        else:
            (os.link if kind == "hard link" else os.symlink)(original, copy)
    warnings = [note for note in load_data(tmp_path).notes if note.startswith("warning")]
    part = "warning: 1 of 7 images of the {} part are in the {} part too (copies or links), which flatters its accuracy"
    assert warnings == [
        f"{part.format('val', 'train')}: val/b/again.png = train/a/0.png",
        f"{part.format('test', 'train')}: test/a/again.png = train/a/0.png",
        f"{part.format('test', 'val')}: test/a/again.png = val/b/again.png",
    ]


def test_only_photos_that_share_their_size_with_another_part_are_opened(tmp_path: Path) -> None:
    for place, sizes_ in (("train/a", (9, 20, 31)), ("train/b", (20, 40)), ("val/a", (31,)), ("val/b", (50, 60))):
        for size in sizes_:
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            (tmp_path / place / f"{size}.png").write_bytes(place[:1].encode() * size)
    program = (
        "import sys, tlx.data\nopened = set()\n"
        "sys.addaudithook(lambda event, args: event == 'open' and opened.add(str(args[0])))\n"
        "tlx.data.load_data(sys.argv[1], val_fraction=0)\n"
        "print(sorted(path.removeprefix(sys.argv[1]) for path in opened if path.endswith('.png')))"
    )
    call = [sys.executable, "-c", program, str(tmp_path)]
    answer = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    assert answer == "['/train/a/31.png', '/val/a/31.png']\n"


def test_photos_of_one_size_are_told_apart_and_pipes_never_opened(tmp_path: Path) -> None:
    tree(tmp_path, "train/a", "train/b", "test/a", "test/b")
    for place in ("train/a", "test/b"):  # neither end nor size tells these apart
        (tmp_path / place / "tail.png").write_bytes(place[:4].encode() + bytes(9000))
        os.mkfifo(tmp_path / place / "pipe.png")  # to open one would wait for ever
    for place in ("train/b", "test/a"):
        (tmp_path / place / "same.png").write_bytes(b"same" + bytes(9000))
    data = load_data(tmp_path, val_fraction=0)
    warnings = [note for note in data.notes if note.startswith("warning")]
    assert len(warnings) == 1 and "1 of 9 images" in warnings[0] and "test/a/same.png = train/b/same.png" in warnings[0]


def test_an_image_in_two_parts_is_counted_in_arrays_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(10) % 2
    test = pixels[10:].copy()
    test[3], test[4, 4], test[5] = pixels[1], pixels[1, 4], pixels[1]  # one shares no more than its middle
    data = load_data({"train": (pixels[:10], labels), "test": (test, labels)}, val_fraction=0)
    (warning,) = data.notes
    assert "2 of 10 images of the test part are in the train part too" in warning
    assert warning.endswith("test/3 = train/1, test/5 = train/1")


def test_folders_in_folders_without_end_are_one_line(tmp_path: Path) -> None:
    """Whatever walks through thousands of them would call itself too often."""
    tree(tmp_path, "top/a/", "top/b", "top/a/" + "d/" * 150)
    tree(tmp_path, "parts/train/a", "parts/train/b", "parts/val/a", "parts/unused", "parts/unused/" + "d/" * 150)
    for folder in ("top", "top/a", "parts"):
        with pytest.raises(DataError, match=r"holds more than 100 folders in folders\. Fix: move the photos up"):
            load_data(tmp_path / folder)
