"""The images that are most like others: by cosine, in blocks, on a sheet of pictures."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

import tlx
from support.finished_runs import FIELDS, load_digits
from support.hostile import call
from tlx.errors import DataError, DataNotFound, TlxError
from tlx.runs.embeddings import file as file_module
from tlx.runs.embeddings import sheet as sheet_module
from tlx.runs.embeddings import similar as similar_module
from tlx.runs.embeddings.file import Header


@pytest.fixture(scope="module")
def written(photos: Path, of_photos: tlx.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embeddings") / "photos.parquet"
    tlx.embed(of_photos.run_dir, photos, out, quiet=True)
    return out


def nearest(queries: NDArray[Any], vectors: NDArray[Any], top: int) -> NDArray[np.int64]:
    """By a matrix of all cosines and a stable sort."""
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300) for v in (queries, vectors)]
    cosines = np.round(unit[0].astype(np.float64) @ unit[1].astype(np.float64).T, 9)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :top]


def test_neighbours_are_those_of_all_cosines_whatever_the_size_of_a_block(
    of_photos: tlx.Result, photos: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, labels, vectors = tlx.load_embeddings(written)
    queries = sorted((photos / "test").rglob("*.png"))[::9]
    own = vectors[[[*paths].index(str(query)) for query in queries]]
    expected = nearest(own, vectors, 7)
    for rows in (4096, 11):
        monkeypatch.setattr(file_module, "ROWS", rows)
        found = tlx.similar(of_photos.run_dir, queries, written, top=7, quiet=True)
        assert [row["path"] for row in found] == [str(query) for query in queries]
        indices = np.array([[n["index"] for n in row["neighbors"]] for row in found])
        assert (indices == expected).mean() > 0.99  # a batch of other images rounds otherwise
        for row in found:
            first = row["neighbors"][0]
            assert first["path"] == row["path"] and first["cosine"] == pytest.approx(1, abs=1e-5)
            assert first["label"] == labels[first["index"]]
    assert np.mean([row["neighbors"][1]["label"] == row["neighbors"][0]["label"] for row in found]) > 0.7


def test_of_equal_cosines_the_first_image_in_the_data_is_nearer_in_any_order_of_the_shards(
    of_photos: tlx.Result, photos: Path, tmp_path: Path
) -> None:
    photo = next(photos.rglob("*.png"))
    (tmp_path / "data").mkdir()
    for i in range(9):
        shutil.copy(photo, tmp_path / "data" / f"{i}.png")
    files = [tmp_path / f"{n}.parquet" for n in (1, 2)]
    for n, file in enumerate(files, 1):
        tlx.embed(of_photos.run_dir, tmp_path / "data", file, shard=f"{n}/2", quiet=True)
    for order in (files, files[::-1]):
        (found,) = tlx.similar(of_photos.run_dir, photo, order, top=5, quiet=True)
        assert [n["index"] for n in found["neighbors"]] == [0, 1, 2, 3, 4]
    assert len(tlx.similar(of_photos.run_dir, photo, files, top=50, quiet=True)[0]["neighbors"]) == 9


def test_of_equal_cosines_in_a_block_the_first_are_chosen() -> None:
    cosines = np.array([0.5, 0.9, 0.5, 0.1, 0.5, 0.9])
    for top, expected in ((1, {1}), (2, {1, 5}), (3, {0, 1, 5}), (4, {0, 1, 2, 5}), (9, {0, 1, 2, 3, 4, 5})):
        assert {*similar_module._first(cosines, top).tolist()} == expected


def test_vectors_of_zeros_are_like_nothing() -> None:
    vectors = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]], np.float32)

    def blocks(header: Header) -> Any:
        texts = ["a"] * 4
        yield file_module.Block(np.arange(4), texts, [*texts], texts, vectors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similar_module, "blocks", blocks)
        header = Header(Path("x"), {}, 4, 2)
        of_zeros, of_one = similar_module._nearest(np.array([[0.0, 0.0], [3.0, 0.0]]), [header], 4)
    assert [n["cosine"] for n in of_zeros] == [0, 0, 0, 0] and [n["index"] for n in of_zeros] == [0, 1, 2, 3]
    assert [(n["index"], n["cosine"]) for n in of_one] == [(1, 1), (0, 0), (3, 0), (2, -1)]


def test_vectors_of_another_model_are_refused_in_one_line(
    of_arrays: tlx.Result, photos: Path, written: Path, of_photos: tlx.Result, tmp_path: Path
) -> None:
    photo = next(photos.rglob("*.png"))
    with pytest.raises(
        DataError, match=r"photos\.parquet holds vectors of other weights \(\w{12}, not \w{12}\)\. Fix: "
    ):
        tlx.similar(of_arrays.run_dir, photo, written, quiet=True)
    other = tlx.run(**{**FIELDS, "epochs": 1, "model": "tiny-mlp-dropout"}, data="digits", out=str(tmp_path / "run"))
    with pytest.raises(DataError, match=r"holds vectors of the model tiny-mlp, not of tiny-mlp-dropout"):
        tlx.similar(other.run_dir, photo, written, quiet=True)
    table = pq.read_table(written)
    facts = json.loads(table.schema.metadata[b"tlx"])
    facts["preprocessing"]["size"] = 9
    pq.write_table(table.replace_schema_metadata({b"tlx": json.dumps(facts).encode()}), tmp_path / "e.parquet")
    with pytest.raises(DataError, match=r"holds vectors of other preprocessing \(size\)"):
        tlx.similar(of_photos.run_dir, photo, tmp_path / "e.parquet", quiet=True)
    with pytest.raises(DataError, match="do not belong together: the former is of other preprocessing"):
        tlx.load_embeddings([written, tmp_path / "e.parquet"])


def test_what_cannot_be_asked_is_one_line(of_photos: tlx.Result, photos: Path, written: Path, tmp_path: Path) -> None:
    photo, run = next(photos.rglob("*.png")), of_photos.run_dir
    (tmp_path / "bad.png").write_bytes(b"no photo")
    calls: list[tuple[Any, Any, dict[str, Any], str]] = [
        (photo, written, {"top": 0}, "top is 0; expected at least 1"),
        (photo, [], {}, "embeddings are "),
        (tmp_path / "bad.png", written, {}, "cannot be decoded"),
        (tmp_path / "none.png", written, {}, "does not exist"),
        ([], written, {}, "no images"),
        (photo, tmp_path / "none.parquet", {}, "none.parquet does not exist"),
        (photo, written, {"sheet": "sheet.jpg"}, r"'sheet.jpg'; expected a name that ends in .png"),
    ]
    for images, files, options, said in calls:
        with pytest.raises(TlxError, match=said):
            tlx.similar(run, images, files, **options)
    one, two = tlx.similar(run, [tmp_path / "bad.png", photo], written, top=1, quiet=True)
    assert one["error"] is not None and not one["neighbors"] and two["error"] is None and len(two["neighbors"]) == 1


def colours(picture: Image.Image, box: tuple[int, int, int, int]) -> int:
    return len(picture.crop(box).getcolors(1 << 20))


def test_the_sheet_shows_the_pictures_and_says_which_are_gone(
    of_photos: tlx.Result, photos: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(photos / "test", tmp_path / "data"))
    tlx.embed(of_photos.run_dir, data, tmp_path / "e.parquet", quiet=True)
    query = sorted(data.rglob("*.png"))[0]
    asked = [str(shutil.copy(query, tmp_path / "query.png"))]
    (found,) = tlx.similar(of_photos.run_dir, asked, tmp_path / "e.parquet", top=3, quiet=True)
    Path(found["neighbors"][1]["path"]).unlink()
    tlx.similar(of_photos.run_dir, asked, tmp_path / "e.parquet", top=3, sheet=tmp_path / "s.png", quiet=True)
    picture = Image.open(tmp_path / "s.png").convert("RGB")
    left, step, tile = sheet_module.EDGE + sheet_module.LARGE + 40, sheet_module.TILE + sheet_module.GAP, 200
    top = sheet_module.EDGE + 4
    tiles = [picture.crop((left + 4 + i * step, top, left + i * step + tile, top + tile)) for i in range(4)]
    spread = [float(np.asarray(one.convert("L"), float).std()) for one in tiles]
    assert spread[0] > 30 and spread[2] > 30
    assert 1 < spread[1] < 20 and spread[3] == 0  # a grey square with words on it; then paper
    assert colours(picture, (sheet_module.EDGE + 5, top, sheet_module.EDGE + 290, top + 290)) > 50


def test_images_within_a_data_set_are_on_the_sheet_too(of_arrays: tlx.Result, tmp_path: Path) -> None:
    digits = load_digits()["test"].select(np.arange(26), np.zeros(26, np.int64))
    tlx.embed(of_arrays.run_dir, "digits", tmp_path / "e.parquet", quiet=True)
    found = tlx.similar(of_arrays.run_dir, digits, tmp_path / "e.parquet", top=4, sheet=tmp_path / "s.png", quiet=True)
    assert len(found) == 26 and found[0]["neighbors"][0]["path"].startswith("digits/")
    picture = Image.open(tmp_path / "s.png").convert("RGB")
    left, top = sheet_module.EDGE + sheet_module.LARGE + 40, sheet_module.EDGE
    assert np.asarray(picture.crop((left + 8, top + 8, left + 200, top + 200)).convert("L"), float).std() > 30
    assert picture.height < 24 * 420 and colours(picture, (0, picture.height - 60, 500, picture.height)) > 8  # of 26


def test_the_command_prints_a_line_for_each_neighbour_that_no_name_can_forge(
    of_photos: tlx.Result, photos: Path, tmp_path: Path
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path / "data") + b"/\xe9\n1.0000 x\x1b[2J")) / "\u202ea.png"
    path.parent.mkdir(parents=True)
    shutil.copy(next(photos.rglob("*.png")), path)
    tlx.embed(of_photos.run_dir, tmp_path / "data", tmp_path / "e.parquet", quiet=True)
    command = ["similar", str(of_photos.run_dir), str(path), "--in", "e.parquet", "--sheet", "s.png"]
    done = call(*command, folder=tmp_path)
    out = done.out
    assert done.code == 0 and "\x1b" not in out and "\u202e" not in out
    query, line, sheet = out.splitlines()
    assert query.endswith("\\u202ea.png:") and line.split()[0] == "1.0000" and sheet == "sheet: s.png"
    picture = Image.open(tmp_path / "s.png").convert("RGB")
    left = sheet_module.EDGE + sheet_module.LARGE + 40
    assert colours(picture, (left + 4, 40, left + 204, 240)) > 50  # found again by the bytes of its name


def test_a_file_that_is_not_there_is_what_python_users_catch(of_photos: tlx.Result, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        tlx.load_embeddings(tmp_path / "none.parquet")
    assert isinstance(caught.value, DataNotFound)
