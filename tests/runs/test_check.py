"""What tlx check finds: photos that cannot be read, copies, near copies, leaks, odd ones, wrong labels."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

import tlx
from support.backends import FRAMEWORKS, each_backend
from support.finished_runs import FIELDS
from support.hostile_photos import BOMBS, SEEDS, exif
from tlx.audit import facts
from tlx.audit.labels import STRENGTH, suspects
from tlx.errors import TlxError
from tlx.training.out_of_fold import out_of_fold

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SIDE = 64


def photo(seed: int) -> Image.Image:
    """A picture like no other: a few colours, blurred."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of twelve photos to train on and four to test."""
    root = tmp_path / "photos"
    for i in range(32):
        path = root / ("train" if i < 24 else "test") / ("cat", "dog")[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(path, quality=95)
    return root


def paths(result: tlx.Check, kind: str) -> list[str]:
    problem = result.problem(kind)
    return [] if problem is None else [row.path for row in problem.rows]


def decisions(result: tlx.Check, kind: str) -> list[str]:
    problem = result.problem(kind)
    return [] if problem is None else [row.decision for row in problem.rows]


def test_clean_data_has_no_problem(photos: Path) -> None:
    result = tlx.check(photos, quiet=True)
    assert result.problems == () and not result.serious and result.images == 32
    assert result.counts == {"train": [12, 12], "test": [4, 4]}
    assert repr(result) == "<Check of photos: 32 images, no problem>"


def test_photos_that_cannot_be_read_are_listed_with_the_reason_and_may_go(photos: Path) -> None:
    whole = (photos / "train/cat/00.jpg").read_bytes()
    (photos / "train/cat/00.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "test/dog/text.jpg").write_text("no photo")
    (photos / "test/dog/gone.jpg").symlink_to(photos / "nowhere.jpg")
    os.mkfifo(photos / "test/dog/pipe.jpg")
    result = tlx.check(photos, quiet=True)
    assert paths(result, "truncated") == ["train/cat/00.jpg"]
    assert sorted(paths(result, "unreadable")) == [f"test/dog/{name}.jpg" for name in ("gone", "pipe", "text")]
    assert decisions(result, "unreadable") == ["drop"] * 3 and result.serious


@pytest.mark.parametrize("how", ["copy", "hardlink", "symlink", "png"])
def test_a_photo_in_two_parts_is_a_leak_and_leaves_the_training_part(how: str, photos: Path) -> None:
    source, target = photos / "train/cat/00.jpg", photos / "test/cat/again.jpg"
    if how == "copy":
        shutil.copy(source, target)
    elif how == "hardlink":
        target.hardlink_to(source)
    elif how == "symlink":
        target.symlink_to(source)
    else:
        target = target.with_suffix(".png")
        Image.open(source).save(target)
    result = tlx.check(photos, quiet=True)
    rows = result.problem("leak").rows
    assert [(row.path, row.decision) for row in rows] == [
        ("train/cat/00.jpg", "drop"),
        (f"test/cat/{target.name}", "keep"),
    ]
    assert rows[0].detail == {"copy": "the same bytes", "png": "the same pixels"}.get(how, "links to one file")
    assert [problem.kind for problem in result.problems] == ["leak"] and result.serious


def test_copies_within_a_part_may_go_but_those_of_two_labels_need_a_person(photos: Path) -> None:
    shutil.copy(photos / "train/cat/00.jpg", photos / "train/cat/zz.jpg")
    shutil.copy(photos / "train/cat/02.jpg", photos / "train/dog/zz.jpg")
    result = tlx.check(photos, quiet=True)
    assert list(zip(paths(result, "duplicate"), decisions(result, "duplicate"), strict=True)) == [
        ("train/cat/00.jpg", "keep"),
        ("train/cat/zz.jpg", "drop"),
    ]
    assert paths(result, "two_labels") == ["train/cat/02.jpg", "train/dog/zz.jpg"]
    assert decisions(result, "two_labels") == ["keep", "keep"]


def test_smaller_darker_and_recompressed_copies_are_found_by_their_looks(photos: Path) -> None:
    original = Image.open(photos / "train/cat/00.jpg")
    original.resize((40, 44)).save(photos / "test/cat/small.jpg")
    ImageEnhance.Brightness(original).enhance(0.8).save(photos / "train/cat/dark.jpg")
    Image.open(photos / "train/dog/01.jpg").save(photos / "train/cat/again.jpg", quality=30)
    result = tlx.check(photos, quiet=True)
    assert paths(result, "near_leak") == ["train/cat/00.jpg", "train/cat/dark.jpg", "test/cat/small.jpg"]
    assert sorted(paths(result, "near_two_labels")) == ["train/cat/again.jpg", "train/dog/01.jpg"]
    assert {row.decision for row in result.rows} == {"keep"} and not result.serious


def test_odd_kinds_of_photos_are_named(photos: Path) -> None:
    image, folder = photo(99), photos / "train/cat"
    image.convert("L").save(folder / "grey.png")
    photo(98).convert("CMYK").save(folder / "cmyk.jpg")
    photo(97).save(folder / "turned.jpg", exif=exif(6))
    photo(96).convert("RGBA").save(folder / "alpha.png")
    Image.new("RGB", (50, 50), (9, 9, 9)).save(folder / "plain.png")
    photo(95).resize((300, 40)).save(folder / "long.png")
    photo(94).resize((9, 9)).save(folder / "tiny.png")
    Image.fromarray(np.asarray(photo(93).convert("L"), np.uint16) * 200).save(folder / "deep.png")
    photo(92).save(folder / "moving.gif", save_all=True, append_images=[photo(91)])
    result = tlx.check(photos, quiet=True)
    for kind, name in (
        *(("cmyk", "cmyk.jpg"), ("rotated", "turned.jpg"), ("alpha", "alpha.png"), ("plain", "plain.png")),
        *(("extreme", "long.png"), ("tiny", "tiny.png"), ("deep", "deep.png"), ("animated", "moving.gif")),
    ):
        assert paths(result, kind) == [f"train/cat/{name}"], kind
    assert paths(result, "grey") == ["train/cat/deep.png", "train/cat/grey.png"]
    assert not result.serious


def test_classes_that_are_rare_or_absent_are_named(photos: Path) -> None:
    shutil.rmtree(photos / "test/dog")
    for path in sorted((photos / "train/dog").iterdir())[1:]:
        path.unlink()
    result = tlx.check(photos, quiet=True)
    assert result.problem("absent_class").text == "no image of dog in test"
    assert "dog (1)" in result.problem("few").text
    assert "cat has 12 images and dog 1" in result.problem("imbalance").text


def test_hostile_photos_do_not_end_a_check(photos: Path) -> None:
    for number, content in enumerate([*BOMBS.values(), *SEEDS.values()]):
        (photos / f"train/cat/hostile{number}.png").write_bytes(content)
    result = tlx.check(photos, quiet=True)
    unreadable = paths(result, "unreadable") + paths(result, "truncated")
    assert 20 < len(unreadable) <= len(BOMBS) and result.images == 32 + len(BOMBS) + len(SEEDS)


def test_arrays_are_checked_but_for_what_only_files_have() -> None:
    images = np.stack([np.asarray(photo(i)) for i in range(24)])
    images[5], images[20] = images[4], images[0]
    data = {"train": (images[:16], np.arange(16) % 2), "test": (images[16:], np.arange(8) % 2)}
    result = tlx.check(data, quiet=True)
    assert [row.index for row in result.problem("leak").rows] == [0, 4]
    assert [row.index for row in result.problem("two_labels").rows] == [4, 5]
    assert any("no files" in text for text in result.skipped)


def test_what_was_read_is_not_read_again_and_a_changed_photo_is(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "YOUNG", -1e9)  # these files are but a moment old
    reads: list[int] = []
    read = facts._read

    def reading(images: Any, spans: Any, index: int) -> Any:
        reads.append(index)
        return read(images, spans, index)

    monkeypatch.setattr(facts, "_read", reading)
    first = tlx.check(photos, quiet=True)
    assert len(reads) == 32
    reads.clear()
    assert tlx.check(photos, quiet=True).to_dict() == first.to_dict() and reads == []
    shutil.copy(photos / "train/cat/00.jpg", photos / "train/cat/02.jpg")
    assert paths(tlx.check(photos, quiet=True), "duplicate") == ["train/cat/00.jpg", "train/cat/02.jpg"]
    assert len(reads) == 1


def test_a_check_that_was_stopped_goes_on_where_it_was(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "YOUNG", -1e9)
    monkeypatch.setattr(facts, "SAVE_SECONDS", 0.0)
    read, reads = facts._read, list[str]()

    last = 20

    def stopping(images: Any, spans: Any, index: int) -> Any:
        reads.append(spans[index][0])
        if index == last:
            raise KeyboardInterrupt
        return read(images, spans, index)

    monkeypatch.setattr(facts, "in_threads", lambda work, items: map(work, items))
    monkeypatch.setattr(facts, "_read", stopping)
    with pytest.raises(KeyboardInterrupt):
        tlx.check(photos, quiet=True)
    done = set(reads[:-1])
    reads.clear()
    last = -1
    tlx.check(photos, quiet=True)
    assert len(done) == 20 and len(reads) == 12 and done.isdisjoint(reads)


SHARING = """
import json, os, signal, sys, threading, time
import tlx
from tlx.audit import facts

data, counts, killed_at = sys.argv[1:]
facts.SHARE_SIZE, facts.SAVE_SECONDS, facts.YOUNG, read = 4, 0.0, -60.0, facts._read
lock, seen = threading.Lock(), []

def counted(images, spans, index):
    with lock, open(f"{counts}/{os.getpid()}", "a") as file:
        if len(seen) == int(killed_at):
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(index)
        file.write(f"{spans[index][0]}\\n")
        file.flush()
        time.sleep(0.05)  # so that each process gets some
    return read(images, spans, index)

facts._read = counted
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(tlx.check(data, quiet=True).to_dict()))
"""


def test_processes_share_the_photos_and_read_each_once_though_one_is_killed(photos: Path, tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def checks(cache: str, *killed_at: int) -> list[subprocess.Popen[str]]:
        environment = {**os.environ, "TLX_CACHE": str(tmp_path / cache)}
        command = [sys.executable, "-c", SHARING, str(photos), str(counts)]
        processes = [subprocess.Popen([*command, str(at)], env=environment, **pipes) for at in killed_at]
        assert all(process.stdout.readline() == "ready\n" for process in processes)
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
            while not (counts / str(process.pid)).exists() and process.poll() is None:
                time.sleep(0.01)  # the first has begun before the second may
        return processes

    killed, *others = checks("shared", 4, 99, 99)
    said = [process.communicate(timeout=60)[0] for process in (killed, *others)]
    assert [process.returncode for process in (killed, *others)] == [-9, 0, 0]
    of_killed, *of_others = [(counts / str(process.pid)).read_text().split() for process in (killed, *others)]
    assert len(of_killed) == 4 and all(of_others)
    read = [path for paths in of_others for path in paths]
    assert len(set(read)) == len(read), "none of them is read by both"
    assert set(read) | set(of_killed) == {str(path) for path in photos.rglob("*.jpg")}
    (alone,) = checks("alone", 99)
    assert [alone.communicate(timeout=60)[0]] * 2 == said[1:]


def planted(labels: NDArray[np.int64], classes: int, seed: int = 0) -> tuple[NDArray[np.int64], set[int]]:
    """The labels with 5 % of them swapped, and which."""
    draw = np.random.default_rng(seed)
    places = draw.choice(len(labels), len(labels) // 20, replace=False)
    wrong = labels.copy()
    wrong[places] = (labels[places] + draw.integers(1, classes, len(places))) % classes
    return wrong, set(places.tolist())


def test_planted_label_swaps_are_found_on_digits() -> None:
    data = tlx.load_data("digits", val_fraction=0)
    pixels = data.train.array[:, 0].reshape(len(data.train), -1).astype(np.float32)  # type: ignore[attr-defined]
    wrong, places = planted(data.train.labels, 10)
    result = suspects(wrong, out_of_fold(pixels, wrong, strength=STRENGTH))
    hits = [suspect for suspect in result if suspect.place in places]
    assert len(hits) >= 0.8 * len(places) and len(hits) >= 0.5 * len(result)
    assert np.mean([suspect.suggested == data.train.labels[suspect.place] for suspect in hits]) > 0.9
    assert [suspect.sure for suspect in result] == sorted((suspect.sure for suspect in result), reverse=True)


def tint_and_swap(photos: Path) -> None:
    """Give each class a colour, and one photo of a cat the label of a dog."""
    for path in sorted(photos.glob("*/*/*.jpg")):
        number = int(path.stem)
        tint = Image.new("RGB", (SIDE, SIDE), ((220, 40, 40), (40, 40, 220))[number % 2])
        Image.blend(photo(number), tint, 0.8).save(path)
    (photos / "train/cat/04.jpg").rename(photos / "train/dog/04.jpg")


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_labels_of_photos_are_judged_by_the_features_of_a_model(backend: str, photos: Path, tmp_path: Path) -> None:
    tint_and_swap(photos)
    page = tmp_path / "page.html"
    options = {"backend": backend, "model": "resnet18", "weights": "none", "image_size": 32}
    result = tlx.check(photos, labels=True, html=page, quiet=True, **options)  # type: ignore[arg-type]
    (row,) = result.problem("label").rows
    assert (row.path, row.label, row.suggested, row.decision) == ("train/dog/04.jpg", "dog", "cat", "keep")
    assert row.sure > 0.5 and "rather cat" in page.read_text()


def test_the_features_may_be_those_of_a_finished_run(photos: Path, tmp_path: Path) -> None:
    tint_and_swap(photos)
    run = tlx.run(data=str(photos), out=str(tmp_path / "run"), **FIELDS).run_dir
    result = tlx.check(photos, labels=True, run=run, quiet=True)
    assert [(row.path, row.suggested) for row in result.problem("label").rows] == [("train/dog/04.jpg", "cat")]
    with pytest.raises(TlxError, match="a run has weights and an image size of its own"):
        tlx.check(photos, labels=True, run=run, image_size=8, quiet=True)


def test_a_mirrored_copy_is_found_by_its_looks(photos: Path) -> None:
    ImageOps.mirror(Image.open(photos / "train/dog/03.jpg")).resize((50, 50)).save(photos / "test/dog/mirrored.jpg")
    (problem,) = tlx.check(photos, quiet=True).problems
    assert problem.kind == "near_leak" and {row.detail for row in problem.rows} == {"look alike, mirrored"}
    assert [row.path for row in problem.rows] == ["train/dog/03.jpg", "test/dog/mirrored.jpg"]


@pytest.mark.needs("torch")
def test_cropped_and_turned_copies_of_photos_are_found_by_the_features_of_a_model(
    test_data: Path, tmp_path: Path
) -> None:
    files = sorted((test_data / "hymenoptera_data").glob("train/*/*.jpg"))[60:180:3]
    items = [(Image.open(path).convert("RGB"), path.parent.name) for path in files]
    wide, high = items[5][0].size
    copies = [items[5][0].crop((wide // 10, high // 10, wide, high)), items[30][0].rotate(5)]
    data = {"train": items, "test": [(copies[0], items[5][1]), (copies[1], items[30][1])]}
    weights = str(test_data / "weights" / "resnet18-imagenet-backbone.safetensors")
    result = tlx.check(data, labels=True, weights=weights, quiet=True)
    groups = [[(row.part, row.index) for row in group] for group in result.problem("near_leak").groups]
    assert groups == [[("train", 5), ("test", 0)], [("train", 30), ("test", 1)]]
    assert {row.detail for row in result.problem("near_leak").rows} == {"nearly the same to the model"}
    assert result.problem("near_duplicate") is None and result.problem("near_two_labels") is None


@pytest.mark.needs("torch")
@pytest.mark.thorough
def test_planted_label_swaps_are_found_on_ants_and_bees(test_data: Path, tmp_path: Path) -> None:
    found = []
    for seed in range(3):
        root, draw = tmp_path / str(seed), np.random.default_rng(seed)
        photos = sorted((test_data / "hymenoptera_data").glob("*/*/*.jpg"))
        swapped = set(draw.choice(len(photos), len(photos) // 20, replace=False).tolist())
        for i, path in enumerate(photos):
            name = path.parent.name if i not in swapped else {"ants": "bees", "bees": "ants"}[path.parent.name]
            target = root / path.parts[-3] / name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
        weights = str(test_data / "weights" / "resnet18-imagenet-backbone.safetensors")
        rows = tlx.check(root, labels=True, weights=weights, quiet=True).problem("label").rows
        hits = {Path(row.path).name for row in rows} & {photos[i].name for i in swapped}
        found.append((len(hits) / len(swapped), len(hits) / len(rows)))
    recall, precision = np.mean(found, axis=0)
    assert recall >= 0.8 and precision >= 0.5, found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run": "nowhere"}, "nowhere"),
        ({"model": "resnet1"}, "resnet18"),
        ({"run": "x", "weights": "none"}, "a run has weights and an image size of its own"),
    ],
)
def test_what_gives_the_features_must_be_there(options: dict[str, str], said: str, photos: Path) -> None:
    with pytest.raises(TlxError, match=said):
        tlx.check(photos, labels=True, quiet=True, **options)  # type: ignore[arg-type]


def test_the_command_says_the_same_in_a_table_json_a_page_and_a_file(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "train/cat/00.jpg", photos / "test/cat/<b>&\u202e.jpg")
    page, table = tmp_path / "page.html", tmp_path / "decisions.csv"
    command = [sys.executable, "-m", "tlx", "check"]
    done = subprocess.run(
        [*command, str(photos), "--json", "--html", str(page), "--decisions", str(table)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [problem["kind"] for problem in found["problems"]] == ["leak"]
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["decision"]) for row in rows] == [
        ("train/cat/00.jpg", "drop"),
        ("test/cat/<b>&\u202e.jpg", "keep"),
    ]
    with pytest.raises(TlxError, match="may hold decisions that a person has made"):
        tlx.check(photos, decisions=table, quiet=True)
    text = page.read_text()
    assert "<b>&" not in text and "\u202e" not in text and "&lt;b&gt;" in text and "http" not in text.split("<main>")[1]
    done = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_the_page_fits_a_phone_and_shows_every_picture(photos: Path, tmp_path: Path, browser: Browser) -> None:
    shutil.copy(photos / "train/cat/00.jpg", photos / f"test/cat/{'long' * 40}.jpg")
    (photos / "test/dog/text.jpg").write_text("no photo")
    page = tmp_path / "page.html"
    tlx.check(photos, html=page, quiet=True)
    context = browser.new_context(viewport={"width": 360, "height": 700}, color_scheme="dark")
    tab = context.new_page()
    errors: list[str] = []
    tab.on("console", lambda message: errors.append(message.text))
    tab.goto(page.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == 360 and errors == []
    assert "2 serious problems" in tab.inner_text("h1")
    pictures = tab.eval_on_selector_all(".pic:not(.gone)", "all => all.map(e => getComputedStyle(e).backgroundImage)")
    assert len(pictures) == 2 and all(picture.startswith('url("data:image/') for picture in pictures)
    assert tab.locator(".pic.gone").count() == 1
    context.close()
    assert page.stat().st_size < 100_000


def test_labels_that_cannot_be_judged_leave_the_rest_of_the_check(tmp_path: Path) -> None:
    images = np.stack([np.asarray(photo(i)) for i in range(4)])
    model = {"backend": "loopback", "model": "tiny-mlp", "weights": "none", "image_size": 8}
    data = {"train": (images, np.array([0, 0, 0, 0])), "classes": ["only"]}
    result = tlx.check(data, labels=True, quiet=True, **model)  # type: ignore[arg-type]
    assert result.problem("few") is not None and any("labels were not judged" in text for text in result.skipped)
