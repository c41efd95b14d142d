"""What may be classified, by which card, and how many: every kind of input, as a stream that takes no memory."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tlx
from support.finished_runs import CLASSES, FIELDS, accuracy
from support.run_files import change, reseal
from tlx.backend import Preprocess
from tlx.data.augment import OPS
from tlx.data.images import ArrayImages
from tlx.data.loader import Loader
from tlx.data.sources import registry
from tlx.errors import TlxError
from tlx.recipe import Recipe
from tlx.runs.prediction import Prediction, predictions, write_csv
from tlx.training.build import make_loader


class Stored:
    """A data set of a framework's kind: a sequence of (image, label), which says what was read of it."""

    def __init__(self, images: ArrayImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images.open(index), int(self.images.labels[index])


def pixels_of(images: ArrayImages) -> Any:
    return images.array[:20].transpose(0, 2, 3, 1)


def save_npz(images: ArrayImages, folder: Path) -> Path:
    np.savez(folder / "some.npz", images=pixels_of(images), labels=images.labels[:20])
    return folder / "some.npz"


def save_csv(images: ArrayImages, folder: Path) -> Path:
    for i in range(20):
        images.open(i).save(folder / f"{i}.png")
    (folder / "some.csv").write_text("path,label\n" + "".join(f"{i}.png,{images.labels[i]}\n" for i in range(20)))
    return folder / "some.csv"


KINDS_OF_INPUT: dict[str, Callable[[ArrayImages, Path], Any]] = {
    "arrays in a list": lambda images, folder: list(pixels_of(images)),
    "Pillow images": lambda images, folder: [images.open(i) for i in range(20)],
    "an iterator": lambda images, folder: (images.open(i) for i in range(20)),
    "pairs": lambda images, folder: [(images.open(i), int(images.labels[i])) for i in range(20)],
    "a sequence": lambda images, folder: Stored(images),
    "images and labels": lambda images, folder: (pixels_of(images), images.labels[:20]),
    "a mapping": lambda images, folder: {"train": (pixels_of(images), images.labels[:20])},
    "a part": lambda images, folder: images.select(np.arange(20), images.labels[:20]),
    "a data set": lambda images, folder: tlx.Data(
        name="digits",
        classes=tuple(CLASSES),
        train=images.select(np.arange(12), images.labels[:12]),
        val=None,
        test=images.select(np.arange(12, 20), images.labels[12:20]),
        notes=(),
    ),
    "an npz file": save_npz,
    "a csv file": save_csv,
}


@pytest.mark.parametrize("kind", KINDS_OF_INPUT)
def test_whatever_holds_the_images_they_are_predicted_alike(
    kind: str, of_arrays: tlx.Result, of_photos: tlx.Result, digits: dict[str, ArrayImages], tmp_path: Path
) -> None:
    for run in (of_arrays, of_photos):
        expected = tlx.predict(run.run_dir, pixels_of(digits["test"]))
        found = tlx.predict(run.run_dir, KINDS_OF_INPUT[kind](digits["test"], tmp_path))
        assert [entry["top"] for entry in found] == [entry["top"] for entry in expected]
        assert len({entry["path"] for entry in found}) == 20


def test_a_data_set_is_predicted_by_its_name(of_arrays: tlx.Result, digits: dict[str, ArrayImages]) -> None:
    whole = {entry["path"]: entry["class"] for entry in tlx.predict(of_arrays.run_dir, "digits")}
    assert len(whole) == 1797
    (one,) = tlx.predict(of_arrays.run_dir, digits["test"].pixels(5))
    assert whole[digits["test"].names[5]] == one["class"]


def test_one_grey_image_and_one_pillow_image_are_images(of_arrays: tlx.Result, digits: dict[str, ArrayImages]) -> None:
    image = digits["test"].open(3)
    expected = tlx.predict(of_arrays.run_dir, [image])
    assert tlx.predict(of_arrays.run_dir, image) == expected
    (grey,) = tlx.predict(of_arrays.run_dir, np.asarray(image)[..., 0])
    (planar,) = tlx.predict(of_arrays.run_dir, np.asarray(image)[..., :1])
    assert grey["top"] == planar["top"] == expected[0]["top"]


def test_a_sequence_of_paths_is_read_by_its_paths(of_photos: tlx.Result, photos: Path) -> None:
    files = sorted((photos / "test" / "3").iterdir())
    expected = tlx.predict(of_photos.run_dir, photos / "test" / "3")
    assert tlx.predict(of_photos.run_dir, deque(files)) == expected
    assert tlx.predict(of_photos.run_dir, np.array(list(map(str, files)))) == expected


def test_what_only_training_needs_may_be_gone(of_arrays: tlx.Result, tmp_path: Path) -> None:
    """A strategy, an augmentation and a data set from a package that is not there any more."""
    shutil.copytree(of_arrays.run_dir, tmp_path / "run")
    text = (tmp_path / "run" / "recipe.toml").read_text()
    assert 'strategy = "full"' in text and 'augment = "flips"' in text and "gone" not in registry.KINDS | OPS
    for name, value in (("strategy", "full"), ("augment", "flips"), ("data", "digits")):
        text = text.replace(f'{name} = "{value}"', f'{name} = "gone"')
    change(tmp_path / "run", "recipe.toml", lambda _: text)
    image = np.zeros((8, 8), np.uint8)
    assert tlx.predict(tmp_path / "run", image) == tlx.predict(of_arrays.run_dir, image)
    assert tlx.load_model(tmp_path / "run").classes == tuple(CLASSES)


def changed_card(run: tlx.Result, folder: Path, **changes: Any) -> Path:
    shutil.copytree(run.run_dir, folder)
    card = json.loads((folder / "card.json").read_text())
    pixels = {**card["pixels"], **changes.pop("pixels", {})}
    change(folder, "card.json", lambda _: json.dumps({**card, "pixels": pixels, **changes}))
    return folder


def test_the_card_says_what_was_done_to_the_pixels(of_photos: tlx.Result, of_arrays: tlx.Result) -> None:
    photos, arrays = (json.loads((run.run_dir / "card.json").read_text()) for run in (of_photos, of_arrays))
    same = {"mode": "RGB", "interpolation": "bilinear", "antialias": True, "fill": None}
    assert photos["pixels"] == {**same, "aspect": "crop", "enlarged_on": "host", "image_size": None}
    assert arrays["pixels"] == {**same, "aspect": "squash", "enlarged_on": "device", "image_size": [8, 8]}
    assert (photos["crop_fraction"], arrays["crop_fraction"]) == (0.875, 1.0)
    assert photos["preprocess"]["size"] == 8 and len(photos["preprocess"]["mean"]) == 3


def test_prediction_follows_the_card_and_never_the_recipe(of_photos: tlx.Result, photos: Path, tmp_path: Path) -> None:
    folder = photos / "test" / "3"
    expected = tlx.predict(of_photos.run_dir, folder)
    renamed = changed_card(of_photos, tmp_path / "renamed")
    recipe = Recipe.from_toml(renamed / "recipe.toml")
    other = replace(recipe, data="digits", crop_fraction=0.3, aspect="squash", interpolation="bicubic", mean=(0, 0, 0))
    assert other.crop_fraction != recipe.crop_fraction == 0.875
    change(renamed, "recipe.toml", lambda _: other.to_toml())
    assert tlx.predict(renamed, folder) == expected
    cards: dict[str, dict[str, Any]] = {
        "crop": {"crop_fraction": 0.5},
        "mean": {"preprocess": {"size": 8, "mean": [0.1, 0.1, 0.1], "std": [0.5, 0.5, 0.5]}},
        "whole": {"crop_fraction": 1.0},
        "points": {"pixels": {"antialias": False}},
        "bicubic": {
            "pixels": {"interpolation": "bicubic"},
            "preprocess": {"size": 8, "mean": [0.485, 0.456, 0.406], "std": [0.2] * 3, "interpolation": "bicubic"},
        },
    }
    for name, changes in cards.items():
        assert tlx.predict(changed_card(of_photos, tmp_path / name, **changes), folder) != expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"pixels": {"interpolation": "bicubic"}},
            "interpolation of the pixels is 'bicubic'; this tlx knows 'bilinear'",
        ),
        ({"pixels": {"aspect": "pad"}}, "aspect of the pixels is 'pad'; this tlx knows 'crop' or 'squash' or"),
        ({"pixels": {"fill": [1, 2, 3]}}, "fill of the pixels is a list of 3 entries; this tlx knows None"),
        ({"pixels": {"mode": "L"}}, "mode of the pixels is 'L'"),
        ({"pixels": {"sharpened": True}}, "sharpened of the pixels is True; this tlx knows nothing of it"),
        (
            {"preprocess": {"size": 8, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "box"}},
            "knows 'bilinear' or",
        ),
    ],
)
def test_a_card_that_asks_for_what_this_tlx_does_not_do_is_refused(
    changes: dict[str, Any], said: str, of_photos: tlx.Result, tmp_path: Path
) -> None:
    run = changed_card(of_photos, tmp_path / "run", **changes)
    for use in (lambda: tlx.predict(run, "x.png"), lambda: tlx.load_model(run), lambda: tlx.evaluate(run)):
        with pytest.raises(TlxError, match=said):
            use()


@pytest.mark.parametrize("resize", ["centre", "shrink", "whole", "pad"])
def test_a_card_of_an_earlier_tlx_is_read_as_that_meant_it(
    resize: str, of_photos: tlx.Result, photos: Path, tmp_path: Path
) -> None:
    """It called what is now aspect and place by one word, and knew neither other interpolations nor margins."""
    folder = photos / "test" / "3"
    run, place = tmp_path / "run", "device" if resize == "shrink" else "host"
    shutil.copytree(of_photos.run_dir, run)
    card = json.loads((run / "card.json").read_text())
    del card["preprocess"]["interpolation"]
    pixels = {"mode": "RGB", "resize": resize, "interpolation": "bilinear", "antialias": True, "enlarged_on": place}
    change(run, "card.json", lambda _: json.dumps({**card, "pixels": {**pixels, "image_size": None}}))
    if resize == "pad":
        with pytest.raises(TlxError, match="resize of the pixels is 'pad'; this tlx knows 'centre'"):
            tlx.predict(run, folder)
        return
    aspect = "squash" if resize == "whole" else "crop"
    now = changed_card(of_photos, tmp_path / "now", pixels={"aspect": aspect, "enlarged_on": place})
    assert tlx.predict(run, folder) == tlx.predict(now, folder)


def test_a_card_without_what_prediction_needs_is_refused(of_photos: tlx.Result, tmp_path: Path) -> None:
    shutil.copytree(of_photos.run_dir, tmp_path / "run")
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    damages: list[dict[str, Any]] = [{"pixels": {}}, {"pixels": 1}, {"preprocess": {"mean": 1}}, {"preprocess": 1}]
    for damaged in ({"classes": []}, *({**card, **damage} for damage in damages)):
        text = json.dumps(damaged)
        change(tmp_path / "run", "card.json", lambda _, text=text: text)  # type: ignore[misc]
        with pytest.raises(TlxError, match=r"card.json is damaged: "):
            tlx.predict(tmp_path / "run", "x.png")


def test_the_preprocessing_of_a_loaded_model_is_that_of_the_evaluation(
    of_photos: tlx.Result, of_arrays: tlx.Result, photos: Path, digits: dict[str, ArrayImages]
) -> None:
    test = tlx.load_data(photos, val_fraction=0).test
    assert test is not None
    for run, images in ((of_photos, test), (of_arrays, digits["test"])):
        batch = next(make_loader(Recipe.from_toml(run.run_dir / "recipe.toml"), images).epoch(0))
        expected = batch.preprocess.apply(batch.images)
        preprocess = copy.deepcopy(tlx.load_model(run.run_dir).preprocess)  # as a framework copies a module
        for i in range(5):
            np.testing.assert_array_equal(preprocess(images.pixels(i).transpose(2, 0, 1)[None]), expected[i : i + 1])


@pytest.mark.parametrize("kind", ["photos", "arrays"])
def test_an_image_gets_the_same_prediction_in_every_batch_and_from_any_number_of_threads(
    kind: str, of_photos: tlx.Result, of_arrays: tlx.Result, photos: Path, tmp_path: Path
) -> None:
    run = of_photos if kind == "photos" else of_arrays
    expected = tlx.predict(run.run_dir, photos / "test")
    for batch_size, workers in ((16, 0), (16, 5), (1, 2), (7, 2), (500, 1)):
        other = tmp_path / f"{batch_size}-{workers}"
        shutil.copytree(run.run_dir, other)
        text = (other / "recipe.toml").read_text().replace("workers = 2", f"workers = {workers}")
        (other / "recipe.toml").write_text(text.replace("batch_size = 16", f"batch_size = {batch_size}"))
        reseal(other)
        found = tlx.predict(other, photos / "test")
        assert [entry["path"] for entry in found] == [entry["path"] for entry in expected]
        assert [entry["class"] for entry in found] == [entry["class"] for entry in expected]
        odds = [[entry["probability"] for entry in listed] for listed in (found, expected)]
        np.testing.assert_allclose(np.array(odds[0], float), np.array(odds[1], float), rtol=1e-5)
        assert batch_size != 16 or found == expected


@pytest.mark.parametrize("tta", ["none", "hflip"])
def test_images_are_taken_only_as_they_are_needed(
    tta: Any, of_photos: tlx.Result, digits: dict[str, ArrayImages]
) -> None:
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        for i in itertools.count():
            taken += 1
            yield digits["test"].pixels(i % 100)

    stream = predictions(of_photos.run_dir, endless(), tta=tta)
    assert taken == 0
    assert [entry["path"] for entry in itertools.islice(stream, 20)] == [f"array {i}" for i in range(20)]
    assert 20 <= taken <= 6 * 16
    stream.close()
    before = taken
    assert list(stream) == [] and taken == before


def test_memory_does_not_grow_with_the_number_of_images(of_photos: tlx.Result, photos: Path, tmp_path: Path) -> None:
    """Hard links to one photo; what grows is the list of a folder's names."""
    source = next((photos / "test").rglob("*.png"))
    for name, count in (("few", 500), ("many", 5000)):
        (tmp_path / name).mkdir()
        for i in range(count):
            os.link(source, tmp_path / name / f"{i:05}.png")
    code = """
import resource, sys
from tlx.runs.prediction import predictions, write_csv
run, folder = sys.argv[1:]
peaks = []
for name, count in (("few", 500), ("many", 5000)):
    assert write_csv(f"{folder}/{name}.csv", predictions(run, f"{folder}/{name}")) == (count, 0)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""
    command = [sys.executable, "-c", code, str(of_photos.run_dir), str(tmp_path)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 3000  # KiB for 4,500 images


def test_folders_are_read_in_the_order_of_their_paths_and_a_link_to_itself_ends(
    of_photos: tlx.Result, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = next((photos / "test").rglob("*.png"))
    names = ["a.png", "a/x.png", "a-b/x.png", "a/b/y.png", "Z.PNG", "ä/x.png", "a0.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / name)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "z.png").symlink_to(tmp_path / "nothing")
    found = tlx.predict(of_photos.run_dir, tmp_path)
    assert [entry["path"] for entry in found] == sorted(str(tmp_path / name) for name in [*names, "a/z.png"])
    assert [Path(entry["path"]).name for entry in found if entry["error"]] == ["z.png"]
    assert "skipped 1 file" in capsys.readouterr().err


def test_a_table_quotes_what_must_be_quoted_and_lists_what_cannot_be_read(
    of_photos: tlx.Result, photos: Path, tmp_path: Path
) -> None:
    source = next((photos / "test").rglob("*.png"))
    names = [os.fsdecode(name) for name in (b'a,"b"\r.png', b"c\nd.png", b"\xe9.png", "ü猫.png".encode())]
    for name in names:
        shutil.copy(source, tmp_path / name)
    bad = [tmp_path / f"bad{i}.png" for i in range(12)]
    for path in bad:
        path.write_bytes(b"no photo, \xff")
    images = [*bad, *(tmp_path / name for name in names)]
    counts = write_csv(tmp_path / "out.csv", predictions(of_photos.run_dir, images, top=2, quiet=True))
    assert counts == (4, 12)
    with (tmp_path / "out.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "prediction", "probability", "prediction_2", "probability_2", "error"]
    expected = tlx.predict(of_photos.run_dir, images, top=2, quiet=True)
    for row, entry in zip(rows, expected, strict=True):
        cells = [str(value) for ranked in entry["top"] for value in ranked.values()] or [""] * 4
        assert row == [entry["path"], *cells, entry["error"] or ""]


def test_a_table_appears_whole_or_not_at_all(of_photos: tlx.Result, photos: Path, tmp_path: Path) -> None:
    def broken() -> Iterator[Prediction]:
        yield from itertools.islice(predictions(of_photos.run_dir, photos / "test"), 5)
        raise TlxError("it broke")

    for content in (None, b"before"):
        if content is not None:
            (tmp_path / "out.csv").write_bytes(content)
        with pytest.raises(TlxError, match=r"^it broke$"):
            write_csv(tmp_path / "out.csv", broken())
        assert [path.name for path in tmp_path.iterdir()] == ["out.csv"] * (content is not None)
        assert content is None or (tmp_path / "out.csv").read_bytes() == content
    with pytest.raises(TlxError, match=r"nowhere\.png does not exist"):
        write_csv(tmp_path / "out.csv", predictions(of_photos.run_dir, "nowhere.png"))
    with pytest.raises(TlxError, match=r"Cannot write .*out\.csv: No such file or directory"):
        write_csv(tmp_path / "no" / "out.csv", predictions(of_photos.run_dir, photos / "test"))


def test_a_run_on_a_sequence_predicts_what_it_evaluated(digits: dict[str, ArrayImages], tmp_path: Path) -> None:
    parts = [[(part.open(i), int(part.labels[i])) for i in range(len(part))] for part in digits.values()]
    result = tlx.run(**FIELDS, data=tuple(parts), crop_fraction=0.6, out=str(tmp_path / "run"))
    assert accuracy(tlx.predict(result.run_dir, parts[1]), digits["test"].labels) == result.test_accuracy


def test_a_part_of_one_size_that_is_no_array_is_framed_as_the_loader_does(
    of_arrays: tlx.Result, digits: dict[str, ArrayImages]
) -> None:
    """From a package of one's own: the loader resizes the whole on the host, and the card says so."""

    class Foreign:
        def __init__(self, images: ArrayImages) -> None:
            self.images = images

        def __getattr__(self, name: str) -> Any:
            return getattr(self.images, name)

        def __len__(self) -> int:
            return len(self.images)

    foreign: Any = Foreign(digits["test"])
    loader = Loader(foreign, Preprocess(12), batch_size=16)
    assert loader.framing.facts()["aspect"] == "squash" and loader.framing.facts()["enlarged_on"] == "host"
    batch = next(loader.epoch(0))
    np.testing.assert_array_equal(loader.framing.pixels(lambda view: digits["test"].open(2, view)), batch.images[2])
