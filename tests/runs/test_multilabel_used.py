"""A run on photos that may have several labels, used: by the command, as a real server, in a browser, as embeddings."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

import tlx
from runs.test_serve import Served, form, started
from support.multilabel import CLASSES, digits
from tlx.data.multilabel import joined
from tlx.leases import Lease
from tlx.runs.embeddings.parts import folder_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of photos, with "|" between the labels of each."""
    folder = tmp_path_factory.mktemp("several")
    images, labels = digits(240)["all"]
    with (folder / "photos.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        for number, (image, row) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", joined(row, CLASSES)])
    return folder / "photos.csv"


@pytest.fixture(scope="module")
def run_dir(listed: Path) -> Path:
    fields: dict[str, Any] = {
        **{"backend": "loopback", "model": "tiny-mlp", "weights": "none", "image_size": 8, "augment": "none"},
        **{"strategy": "full", "lr": 0.05, "batch_size": 32, "epochs": 12, "quiet": True, "label_separator": "|"},
    }
    return tlx.run(data=str(listed), **fields, out=str(listed.parent / "run")).run_dir


@pytest.fixture(scope="module")
def rows(listed: Path, run_dir: Path) -> dict[str, Any]:
    """What is predicted for twenty photos, by name; some have several labels and some none."""
    photos = [listed.parent / f"{number}.png" for number in range(20)]
    found: list[Any] = tlx.predict(run_dir, photos, quiet=True)
    assert {len(row["labels"]) for row in found} >= {0, 2}
    return {Path(row["path"]).name: row for row in found}


@pytest.fixture(scope="module")
def served(run_dir: Path) -> Iterator[Served]:
    served = started(run_dir)
    yield served
    served.process.send_signal(signal.SIGINT)
    served.process.communicate(timeout=60)


def test_the_command_predicts_every_label_in_json_and_in_csv(
    listed: Path, run_dir: Path, rows: dict[str, Any], tmp_path: Path
) -> None:
    photos = [str(listed.parent / name) for name in rows]

    def said(*options: str) -> str:
        command = [sys.executable, "-m", "tlx", "predict", str(run_dir), *photos, *options]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    printed = json.loads(said("--json"))["predictions"]
    assert [row["labels"] for row in printed] == [row["labels"] for row in rows.values()]
    assert [row["top"] for row in printed] == [row["top"] for row in rows.values()]
    said("--csv", str(tmp_path / "out.csv"))
    thresholds = json.loads((run_dir / "result.json").read_text())["multilabel"]["thresholds"]
    with (tmp_path / "out.csv").open(newline="") as file:
        table = [*csv.DictReader(file)]
    for row, expected in zip(table, rows.values(), strict=True):
        odds = {name: float(row[f"probability of {name}"]) for name in CLASSES}
        above = [name for name in CLASSES if odds[name] >= thresholds[name]]
        assert sorted(filter(None, row["prediction"].split("|"))) == sorted(above) == sorted(expected["labels"])


def test_a_server_answers_with_every_label_as_predict_does(listed: Path, served: Served, rows: dict[str, Any]) -> None:
    for number, (name, row) in enumerate(rows.items()):
        content = (listed.parent / name).read_bytes()
        body, kind = form(content) if number % 2 else (content, "application/octet-stream")
        status, answer = served.ask("/predict", body, content_type=kind)
        assert status == 200 and answer["labels"] == row["labels"] and answer["unknown"] is False
        assert answer["class"] == ("|".join(row["labels"]) or "no label")
        assert [entry["class"] for entry in answer["top"]] == [entry["class"] for entry in row["top"]]
        expected = [entry["probability"] for entry in row["top"]]
        assert [entry["probability"] for entry in answer["top"]] == pytest.approx(expected, rel=1e-5)
    status, answer = served.ask("/explain", content)
    assert status == 400 and "explain needs one label for each image" in answer["error"]
    assert served.ask("/run", method="GET")[1]["classes"] == len(CLASSES)


def test_the_page_of_a_server_names_all_labels_and_complains_of_nothing(
    listed: Path, served: Served, rows: dict[str, Any], browser: Browser
) -> None:
    page, complaints = browser.new_page(), list[str]()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(served.address)
    for wanted in (0, 2):
        name = next(name for name, row in rows.items() if len(row["labels"]) == wanted)
        page.set_input_files("#file", listed.parent / name)
        page.locator("#status", has_text=name).and_(page.locator("#status:not(:has-text('looking'))")).wait_for()
        said = rows[name]["labels"]
        assert page.locator("#answer").inner_text() == (", ".join(said) or "no label")
        marked = [text for text in page.locator("#classes .name").all_inner_texts() if text.startswith("\u2713 ")]
        assert marked == [f"\u2713 {name}" for name in said]
        assert not page.locator("#explanation").is_visible() and page.locator("#wrong").inner_text() == ""
    assert not complaints
    page.close()


def test_embeddings_have_the_labels_of_each_image(listed: Path, run_dir: Path, tmp_path: Path) -> None:
    images, labels = digits(60)["all"]
    data = {"all": (images, labels), "classes": list(CLASSES)}
    done = tlx.embed(run_dir, data, tmp_path / "some.parquet", quiet=True)
    found = pq.read_table(done.out).to_pydict()["label"]
    assert found == [joined(row, CLASSES) or None for row in labels] and None in found
    tlx.embed(run_dir, str(listed), tmp_path / "listed.parquet", quiet=True)  # whose labels the run's separator divides
    names = {*pq.read_table(tmp_path / "listed.parquet").to_pydict()["label"]}
    assert names == {"|".join(sorted(filter(None, (name or "").split("|")))) or None for name in found} > {None}


def test_a_list_is_read_alike_when_another_process_had_a_part_of_it(
    listed: Path, run_dir: Path, tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone.parquet", tmp_path / "shared.parquet"
    tlx.embed(run_dir, str(listed), alone, quiet=True)
    folder_of(shared).mkdir()
    lease = Lease.take(folder_of(shared) / ".00000000.lock")
    assert lease is not None
    waiting = Timer(3, lease.release)
    waiting.start()
    tlx.embed(run_dir, str(listed), shared, quiet=True)
    assert not waiting.is_alive(), "it waited"
    assert shared.read_bytes() == alone.read_bytes()


def test_another_list_is_evaluated_by_the_separator_of_the_run(listed: Path, run_dir: Path) -> None:
    first, *lines = listed.read_text().splitlines()
    other = listed.parent / "other.csv"
    other.write_text("\n".join([first, *lines[:90]]))
    evaluation = tlx.evaluate(run_dir, data=str(other), quiet=True)
    assert evaluation["images"] == 90 and evaluation["multilabel"] is not None
    assert (evaluation["multilabel"]["average_precision"] or 0) > 0.9
