"""Embeddings as points on a plane: by t-SNE, drawn and as coordinates."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tlx
from support.hostile import call
from tlx.errors import DataError, TlxError
from tlx.runs.embeddings import picture, projection
from tlx.runs.embeddings.drawing import PALETTE, fitting, font
from tlx.runs.embeddings.projection import EmbeddingMap, project


@pytest.fixture(scope="module")
def written(of_arrays: tlx.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embeddings") / "digits.parquet"
    data = tlx.load_data("digits", limit_train=150, limit_test=50, val_fraction=0)
    tlx.embed(of_arrays.run_dir, data, out, quiet=True)
    return out


def clusters(n: int = 60, width: int = 70) -> tuple[NDArray[Any], NDArray[Any]]:
    """Three bundles of directions."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    return rng.normal(size=(3, width))[labels] * rng.uniform(1, 9, (n, 1)) + rng.normal(0, 0.1, (n, width)), labels


@pytest.mark.parametrize("library", ["openTSNE", "sklearn"])
def test_what_points_alike_lies_together_and_a_seed_gives_the_same_points(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "find_spec", lambda name: object() if name == library else None)
    vectors, labels = clusters()
    points = project(vectors.astype(np.float32), seed=3)
    assert points.shape == (60, 2) and points.dtype == np.float64 and np.abs(points.mean(axis=0)).max() < 1e-6
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    distances[np.diag_indices(60)] = np.inf
    assert (labels[distances.argmin(axis=1)] == labels).mean() > 0.95
    assert np.array_equal(points, project(vectors.astype(np.float32), seed=3))


def test_few_vectors_and_equal_ones_are_laid_out_too() -> None:
    for n in range(7):
        points = project(clusters(max(n, 1))[0][:n], seed=0)
        assert points.shape == (n, 2) and np.isfinite(points).all()
    assert np.array_equal(project(np.ones((9, 4))), np.zeros((9, 2)))
    assert np.array_equal(project(np.zeros((9, 4), np.float16)), np.zeros((9, 2)))
    assert project(np.arange(8.0)[:, None] + 1).shape == (8, 2)
    two = project(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert two[:, 1] == pytest.approx([0, 0], abs=1e-9) and abs(two[0, 0] - two[1, 0]) == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.ones(3), r"float64 \[3\]; expected float \[n, d\]"),
        (np.ones((3, 0)), "expected float"),
        (np.full((2, 2), "a"), "expected float"),
        (np.array([[1.0, 2.0], [np.nan, 1.0]]), "vector 1 holds NaN"),
    ],
)
def test_no_vectors_are_refused(vectors: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        project(vectors)


def test_a_map_is_written_as_coordinates(written: Path, tmp_path: Path) -> None:
    plane = tlx.tsne(written, tmp_path / "map.csv", seed=1, quiet=True)
    with (tmp_path / "map.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == [*range(200)] == [*plane.indices]
    assert {row["part"] for row in rows} == {"train", "test"} and {row["label"] for row in rows} == {*"0123456789"}
    assert np.array_equal(np.array([[float(row["x"]), float(row["y"])] for row in rows]), plane.coordinates)
    assert "t-SNE" in plane.method and "200 points" in repr(plane)


def test_of_too_many_images_each_label_has_its_share(
    written: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = tlx.load_embeddings(written).labels
    monkeypatch.setattr(projection, "POINTS", 40)
    plane = tlx.tsne(written, seed=2)
    assert len(plane.coordinates) == 40 and plane.images == 200 and [*plane.indices] == sorted(plane.indices)
    assert [labels[i] for i in plane.indices] == plane.labels
    for name in "0123456789":
        assert abs(plane.labels.count(name) - (labels == name).sum() / 5) <= 1
    said = capfd.readouterr().err
    assert "40 of 200 images are on the map, of each label in proportion" in said
    assert f"embedding-atlas {written} --vector vector" in said
    assert [*plane.indices] == [*tlx.tsne(written, seed=2, quiet=True).indices]
    assert [*plane.indices] != [*tlx.tsne(written, seed=3, quiet=True).indices]


def drawn(labels: list[str | None], out: Path) -> Image.Image:
    points = np.random.default_rng(0).normal(size=(len(labels), 2))
    n = len(labels)
    plane = EmbeddingMap(points, np.arange(n), ["p"] * n, labels, ["all"] * n, n, "t-SNE")
    picture.write_map(plane, "resnet18", out)
    with Image.open(out) as opened:
        return opened.convert("RGB")


def has(image: Image.Image, colour: str) -> int:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.asarray(image) == wanted).all(axis=2).sum())


def test_the_picture_has_the_colours_of_its_labels_and_a_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "TIMES", 1)
    monkeypatch.setattr(picture, "SIDE", 700)
    two = drawn(["ants", "bees"] * 30, tmp_path / "two.png")
    assert has(two, PALETTE[0]) > 3000 and has(two, PALETTE[1]) > 3000 and not has(two, PALETTE[2])
    bare = drawn([None] * 60, tmp_path / "bare.png")
    assert bare.width < two.width and not any(has(bare, colour) for colour in PALETTE)
    many = drawn([f"class {i % 100}" for i in range(2000)], tmp_path / "many.png")
    assert all(has(many, colour) > 500 for colour in PALETTE) and many.width > two.width
    more = drawn([f"class {i % 300}" for i in range(600)], tmp_path / "more.png")
    assert more.size == many.size and has(more, "#6b7280") > 1000  # what is rarer is grey
    one = drawn(["\u202e<b>猫\n" * 50], tmp_path / "one.png")
    assert one.width < 3000 and has(one, PALETTE[0])


def test_every_label_of_a_hundred_has_a_mark_of_its_own() -> None:
    styles = picture.styles_of([str(i) for i in range(100)])
    assert len({*styles.values()}) == 100 and list(styles)[:11] == [str(i) for i in range(11)]
    assert None in picture.styles_of(["a", None]) and not picture.styles_of([None, None])


def test_a_long_text_keeps_its_beginning_or_its_end() -> None:
    text = "a/very/long/path/of/a/photo.jpg"
    assert fitting(text, 15, 1000) == text
    for end in (False, True):
        short = fitting(text, 15, 90, end=end)
        assert font(15).getlength(short) <= 90 and (short.endswith("oto.jpg") if end else short.startswith("a/very"))
    assert fitting("x\x1b[31m\u202e", 15, 1000) == "x\\x1b[31m\\u202e"


def test_the_command_draws_a_map_and_refuses_what_is_none(written: Path, tmp_path: Path) -> None:
    done = call("tsne", str(written), "-o", "map.png", "--json", folder=tmp_path)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["points"] == facts["images"] == 200
    with Image.open(tmp_path / "map.png") as image:
        assert image.width > 1200
    for out, seed, said in (("map.svg", 0, r"ends in \.png or \.csv"), ("map.png", -1, "seed is -1")):
        with pytest.raises(TlxError, match=said):
            tlx.tsne(written, tmp_path / out, seed=seed)


def test_a_file_without_rows_has_no_map(of_arrays: tlx.Result, tmp_path: Path) -> None:
    array = np.zeros((1, 8, 8, 3), np.uint8)
    out = tlx.embed(of_arrays.run_dir, array, tmp_path / "e.parquet", shard="2/2", quiet=True).out
    with pytest.raises(DataError, match="holds no vectors"):
        tlx.tsne(out)
