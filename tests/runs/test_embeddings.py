"""Vectors of images: what the file holds, of which data, in shards, killed and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tlx
from support.finished_runs import FIELDS
from support.hostile import call
from support.killed import in_a_process
from tlx.backend import ParamSpec
from tlx.data.images import ArrayImages
from tlx.errors import DataError, DataNotFound, RunNotFound, TlxError
from tlx.runs.embeddings.embedder import one_row_each
from tlx.runs.embeddings.file import KEY, as_path, as_text, read_header
from tlx.runs.embeddings.items import Shard, parse_shard
from tlx.runs.embeddings.part import part_vectors

QUIET: dict[str, Any] = {"quiet": True}
pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture(scope="session")
def written(photos: Path, of_photos: tlx.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embeddings of the photos, 300 of train and 100 of test."""
    out = tmp_path_factory.mktemp("embeddings") / "photos.parquet"
    tlx.embed(of_photos.run_dir, photos, out, **QUIET)
    return out


def rows_of(path: Path) -> dict[str, Any]:
    columns: dict[str, Any] = pq.read_table(path).to_pydict()
    return columns


def test_a_row_is_what_enters_the_head_of_the_model_for_the_image(
    of_photos: tlx.Result, photos: Path, written: Path
) -> None:
    module = tlx.load_model(of_photos.run_dir)
    rows = rows_of(written)
    assert list(rows) == ["index", "path", "label", "part", "vector"] and rows["index"] == list(range(400))
    for place in (0, 123, 399):
        pixels = np.asarray(Image.open(rows["path"][place]).convert("RGB")).transpose(2, 0, 1)[None]
        x = module.preprocess(pixels).reshape(1, 3, 8, 8).reshape(1, -1)
        arrays = module.arrays
        a = x @ arrays["fc1.weight"].T + arrays["fc1.bias"]
        z = (a - arrays["bn1.running_mean"]) / np.sqrt(arrays["bn1.running_var"] + np.float32(1e-5))
        h = np.maximum(z * arrays["bn1.weight"] + arrays["bn1.bias"], 0)[0]
        assert np.allclose(rows["vector"][place], h, rtol=1e-5, atol=1e-6)
        logits = h @ arrays["fc.weight"].T + arrays["fc.bias"]
        (predicted,) = tlx.predict(of_photos.run_dir, rows["path"][place], quiet=True)
        assert predicted["class"] == module.classes[int(logits.argmax())]
        assert rows["label"][place] == Path(rows["path"][place]).parent.name
        assert rows["part"][place] == Path(rows["path"][place]).parent.parent.name


def test_the_metadata_say_what_made_the_file(of_photos: tlx.Result, written: Path) -> None:
    facts = json.loads(pq.read_schema(written).metadata[KEY])
    assert facts["model"] == "tiny-mlp" and len(facts["sha256"]) == 64 and facts["versions"]["tlx"] == tlx.__version__
    assert facts["preprocessing"]["size"] == 8 and facts["preprocessing"]["aspect"] == "crop"
    assert (facts["rows"], facts["width"], facts["unreadable"]) == (400, 32, {"count": 0, "first": []})
    assert pq.read_schema(written).field("vector").type.list_size == 32
    assert not written.with_name("photos.parquet.parts").exists()


def test_three_lines_of_python_make_a_classifier_of_embeddings(written: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    _, labels, vectors = tlx.load_embeddings(written, part="train")
    classifier = LogisticRegression(max_iter=1000).fit(vectors, labels)
    test = tlx.load_embeddings(written, part="test")
    assert classifier.score(test.vectors, test.labels) > 0.8
    assert vectors.dtype == np.float32 and len(labels) == 300 and len(test.paths) == 100
    with pytest.raises(DataError, match=r"has no part 'val'; it has test, train"):
        tlx.load_embeddings(written, part="val")


def test_shards_are_disjoint_and_read_as_one(
    of_photos: tlx.Result, photos: Path, written: Path, tmp_path: Path
) -> None:
    files = [tmp_path / f"{n}.parquet" for n in (1, 2, 3)]
    for n, file in enumerate(files, 1):
        assert tlx.embed(of_photos.run_dir, photos, file, shard=f"{n}/3", **QUIET).images in (133, 134)
    assert rows_of(files[1])["index"] == list(range(1, 400, 3))
    whole, joined = tlx.load_embeddings(written), tlx.load_embeddings([files[2], files[0], files[1]])
    assert (whole.paths == joined.paths).all() and (whole.labels == joined.labels).all()
    assert np.allclose(whole.vectors, joined.vectors, rtol=1e-5, atol=1e-6)  # batches are other ones
    with pytest.raises(DataError, match=r"image 0 is in the files twice\. Fix: pass each shard once"):
        tlx.load_embeddings([written, files[0]])


def test_a_shard_without_an_image_is_a_file_without_rows(of_photos: tlx.Result, photos: Path, tmp_path: Path) -> None:
    photo = next(photos.rglob("*.png"))
    done = tlx.embed(of_photos.run_dir, photo, tmp_path / "2.parquet", shard="2/2", **QUIET)
    assert (done.images, read_header(done.out).rows, done.width) == (0, 0, 32)
    assert tlx.load_embeddings(done.out).vectors.shape == (0, 32)
    assert tlx.embed(of_photos.run_dir, photo, tmp_path / "1.parquet", shard="1/2", **QUIET).images == 1


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "3", "a/b", "1/2/3", "-1/3", "٣/٤", "", "1/0", 3, "1 / 2", "9" * 40 + "/9"]
)
def test_any_other_shard_is_refused(text: Any) -> None:
    with pytest.raises(TlxError, match=r"expected such as '3/16', from '1/16' to '16/16'"):
        parse_shard(text)
    assert parse_shard("3/16") == Shard(3, 16) and str(parse_shard(None)) == "1/1"


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(of_photos: tlx.Result, photos: Path, tmp_path: Path) -> None:
    source, runs = photos / "test", of_photos.run_dir
    tlx.embed(runs, source, tmp_path / "whole.parquet", **QUIET)
    expected = (tmp_path / "whole.parquet").read_bytes()
    folder = tmp_path / "killed"
    folder.mkdir()
    out, ends = folder / "whole.parquet", []
    for moment in (*range(7), *range(7, 90, 4)):
        ends.append(in_a_process(lambda: tlx.embed(runs, source, out, **QUIET), folder, killed_at=moment))
        whole = out.exists()
        if whole:
            assert out.read_bytes() == expected  # a file under this name is never half of one
        again = tlx.embed(runs, source, out, **QUIET)
        assert out.read_bytes() == expected and [*folder.iterdir()] == [out]
        assert (again.computed == 0) if whole else (again.images == 100)
        out.unlink()
        if ends[-1] == 0:
            break
    assert ends[-1] == 0 and ends.count(-9) >= 4


def test_what_was_computed_is_not_computed_again_unless_the_image_changed(
    of_photos: tlx.Result, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(photos / "test", tmp_path / "data"))
    names = sorted(data.rglob("*.png"))
    content = names[40].read_bytes()
    names[40].write_bytes(b"no photo")
    out = tmp_path / "e.parquet"
    with pytest.raises(
        DataError, match=r"1 of 100 images cannot be read: .*repeat the call, which computes only these"
    ):
        tlx.embed(of_photos.run_dir, data, out, **QUIET)
    assert not out.exists() and (tmp_path / "e.parquet.parts").is_dir()
    names[40].write_bytes(content)
    names[3].write_bytes(content)
    done = tlx.embed(of_photos.run_dir, data, out, **QUIET)
    assert (done.images, done.computed, done.unreadable) == (100, 64, 0)  # of four parts these two
    vectors = tlx.load_embeddings(out).vectors
    assert np.allclose(vectors[3], vectors[40], rtol=1e-5, atol=1e-6)


def test_images_that_cannot_be_read_are_left_out_counted_and_named(
    of_photos: tlx.Result, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(photos / "test", tmp_path / "data"))
    names = sorted(data.rglob("*.png"))
    names[7].write_bytes(b"no photo")
    done = tlx.embed(of_photos.run_dir, data, tmp_path / "e.parquet", on_bad_image="skip")
    assert (done.images, done.unreadable) == (99, 1)
    said = capfd.readouterr().err
    assert said.count(f"not read: {names[7]}") == 1 and "1 of 100 images cannot be read" in said
    assert 7 not in rows_of(done.out)["index"] and 8 in rows_of(done.out)["index"]
    ((index, path, problem),) = read_header(done.out).facts["unreadable"]["first"]
    assert (index, path) == (7, str(names[7])) and "cannot be decoded" in problem


def test_the_rule_for_bad_images_is_that_of_the_runs_recipe(photos: Path, tmp_path: Path) -> None:
    run = tlx.run(**{**FIELDS, "epochs": 1}, data=str(photos), on_bad_image="skip", out=str(tmp_path / "run"))
    (tmp_path / "data").mkdir()
    shutil.copy(next(photos.rglob("*.png")), tmp_path / "data" / "a.png")
    (tmp_path / "data" / "b.png").write_bytes(b"no photo")
    assert tlx.embed(run.run_dir, tmp_path / "data", tmp_path / "e.parquet", **QUIET).unreadable == 1


def test_every_kind_of_data_gives_its_labels(
    of_photos: tlx.Result, digits: dict[str, ArrayImages], photos: Path, tmp_path: Path
) -> None:
    part = digits["test"].select(np.arange(20), digits["test"].labels[:20])
    labels = [str(label) for label in part.labels]
    pixels = part.array.transpose(0, 2, 3, 1)
    np.savez(tmp_path / "some.npz", images=pixels, labels=part.labels)
    loose = tmp_path / "loose"
    loose.mkdir()
    for i in range(20):
        part.open(i).save(loose / f"{i}.png")
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"loose/{i}.png,{labels[i]}\n" for i in range(20)))

    def pairs() -> Iterator[Any]:
        yield from zip(pixels, labels, strict=True)

    cases: dict[str, tuple[Any, list[str | None]]] = {
        "part": (part, [*labels]),
        "npz": (tmp_path / "some.npz", [*labels]),
        "csv": (tmp_path / "list.csv", [*labels]),
        "arrays": ((pixels, part.labels), [*labels]),
        "iterator": (pairs(), [*labels]),
        "list": (list(pairs()), [*labels]),
        "photos": (loose, [None] * 20),
        "one photo": (loose / "1.png", [None]),
        "array": (pixels, [None] * 20),
    }
    for name, (data, expected) in cases.items():
        done = tlx.embed(of_photos.run_dir, data, tmp_path / f"{name}.parquet", **QUIET)
        found = tlx.load_embeddings(done.out)
        if name == "csv":  # whose rows a list of the data may have sorted
            order = np.argsort([int(Path(path).stem) for path in found.paths])
            assert [*found.labels[order]] == expected
        else:
            assert [*found.labels] == expected, name


def test_hostile_names_of_files_and_classes_stay_what_they_are(
    of_photos: tlx.Result, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = next(photos.rglob("*.png"))
    for folder in (b"bad\xe9", "\u202eclass".encode(), b"<b>[red]"):
        path = Path(os.fsdecode(os.fsencode(tmp_path / "data") + b"/" + folder)) / "a\nb\x1b[31m.png"
        path.parent.mkdir(parents=True)
        shutil.copy(photo, path)
    done = tlx.embed(of_photos.run_dir, tmp_path / "data", tmp_path / "e.parquet", **QUIET)
    paths, labels, _ = tlx.load_embeddings(done.out)
    assert {*labels} == {"bad\\udce9", "\u202eclass", "<b>[red]"}
    assert all(Path(as_path(path)).is_file() for path in paths)
    assert as_text("\udcff") == "\\udcff" and as_path("\\udcff") == "\udcff" and as_path("plain") == "plain"


def test_a_file_of_somebody_else_is_never_replaced(
    of_photos: tlx.Result, of_arrays: tlx.Result, photos: Path, written: Path, tmp_path: Path
) -> None:
    run, data = of_photos.run_dir, photos / "test"
    out = tmp_path / "e.parquet"
    foreign = {
        "text": (b"a text", "cannot be read as Parquet"),
        "another table": (None, "holds no embeddings of tlx"),
        "another model": (written.read_bytes(), "exists, and is of another data"),
    }
    for content, said in foreign.values():
        if content is None:
            pq.write_table(pa.table({"a": [1]}), out)
        else:
            out.write_bytes(content)
        before = out.read_bytes()
        with pytest.raises(TlxError, match=said):
            tlx.embed(run, data, out, **QUIET)
        assert out.read_bytes() == before
    out.unlink()
    done = tlx.embed(run, data, out, **QUIET)
    assert tlx.embed(run, data, out, **QUIET).computed == 0 and done.computed == 100
    changes: list[tuple[dict[str, Any], str]] = [({"dtype": "float16"}, "dtype"), ({"shard": "1/2"}, "shard")]
    for change, said in changes:
        with pytest.raises(TlxError, match=f"exists, and is of another {said}. Fix: remove it, or choose another name"):
            tlx.embed(run, data, out, **QUIET, **change)
    with pytest.raises(TlxError, match="exists, and is of another sha256"):
        tlx.embed(of_arrays.run_dir, data, out, **QUIET)
    copied = Path(shutil.copytree(data, tmp_path / "data"))
    moved = tlx.embed(run, copied, tmp_path / "moved.parquet", **QUIET)
    next(copied.rglob("*.png")).unlink()
    with pytest.raises(TlxError, match="exists, and its images have changed since"):
        tlx.embed(run, copied, moved.out, **QUIET)


def test_parts_of_another_job_and_folders_of_somebody_else_are_left_alone(
    of_photos: tlx.Result, photos: Path, tmp_path: Path
) -> None:
    out, parts = tmp_path / "e.parquet", tmp_path / "e.parquet.parts"
    parts.mkdir()
    (parts / "mine.txt").write_text("x")
    with pytest.raises(TlxError, match=r"holds something else than the parts of e\.parquet"):
        tlx.embed(of_photos.run_dir, photos, out, **QUIET)
    shutil.rmtree(parts)
    data = Path(shutil.copytree(photos / "test", tmp_path / "data"))
    next(data.rglob("*.png")).write_bytes(b"no photo")
    with pytest.raises(DataError):
        tlx.embed(of_photos.run_dir, data, out, **QUIET)
    with pytest.raises(TlxError, match=r"was begun with another dtype: \"float32\", now \"float16\""):
        tlx.embed(of_photos.run_dir, data, out, dtype="float16", on_bad_image="skip", **QUIET)
    assert tlx.embed(of_photos.run_dir, data, out, on_bad_image="skip", **QUIET).computed == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("e.")] == ["e.parquet"]


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"out": "e.csv"}, TlxError, r"the output is 'e\.csv'; expected a name that ends in \.parquet"),
        ({"out": "."}, TlxError, "expected a name that ends in"),
        ({"out": "nowhere/e.parquet"}, TlxError, "nowhere is no folder"),
        ({"dtype": "float64"}, TlxError, r"Unknown dtype 'float64'\. Did you mean 'float16'"),
        ({"data": "nowhere"}, DataNotFound, "neither a known data set nor an existing folder"),
        ({"data": "empty"}, DataError, "no images: expected photos"),
        ({"source": "resnet1"}, RunNotFound, r"there is no run in 'resnet1', and no model of that name: .*resnet18"),
        ({"source": "runs/none"}, RunNotFound, "holds no finished run"),
        ({"source": 3}, TlxError, "the model is 3; expected the folder of a run, or the name of a model"),
        ({"weights": "none"}, TlxError, "is a run, which has weights of its own"),
        ({"on_bad_image": "ignore"}, TlxError, "on_bad_image is 'ignore'; expected error or skip"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    changes: dict[str, Any],
    kind: type[TlxError],
    said: str,
    of_photos: tlx.Result,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    call: dict[str, Any] = {"source": of_photos.run_dir, "data": photos, "out": "e.parquet", **QUIET, **changes}
    with pytest.raises(kind, match=said) as caught:
        tlx.embed(**call)
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_without_pyarrow_one_line_says_what_to_install(
    of_photos: tlx.Result, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for use in (
        lambda: tlx.embed(of_photos.run_dir, photos, tmp_path / "e.parquet"),
        lambda: tlx.load_embeddings(tmp_path / "e.parquet"),
    ):
        with pytest.raises(TlxError, match=r'pyarrow, .* is not installed\. Fix: pip install "tlx\[parquet\]"'):
            use()


def test_a_vector_that_is_not_finite_or_too_large_is_named(
    photos: Path, of_photos: tlx.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tlx.conformance.loopback import Loopback

    compute = Loopback.features

    def broken(self: Loopback, model: Any, batch: Any, boundary: str = "") -> Any:
        features = np.array(compute(self, model, batch, boundary))
        features[min(3, len(features) - 1)] = value
        return features

    monkeypatch.setattr(Loopback, "features", broken)
    name = sorted((photos / "test").rglob("*.png"))[3].name
    for number, dtype, said in ((np.nan, "float32", "not finite for"), (7e4, "float16", "the vector of")):
        value = number
        with pytest.raises(TlxError, match=f"{said} .*{name}"):
            tlx.embed(of_photos.run_dir, photos / "test", tmp_path / "e.parquet", dtype=dtype, **QUIET)
        assert not list(tmp_path.iterdir())


def altered(table: pa.Table, kind: str) -> pa.Table:
    schema, facts = table.schema, json.loads(table.schema.metadata[KEY])
    if kind == "NaN":
        vectors = np.stack(table["vector"].to_pylist()).astype(np.float32)
        vectors[5, 2] = np.nan
        flat = pa.array(vectors.reshape(-1), pa.float32())
        return table.set_column(4, schema.field(4), pa.FixedSizeListArray.from_arrays(flat, type=schema.field(4).type))
    if kind == "no column":
        return table.drop_columns(["label"])
    if kind == "lists of any length":
        return table.set_column(4, "vector", pa.array([[1.0]] * len(table)))
    if kind == "newer":
        facts["format"] = 99
    elif kind == "no model":
        del facts["model"]
    elif kind == "no JSON":
        return table.replace_schema_metadata({KEY: b"{"})
    return table.replace_schema_metadata({KEY: json.dumps(facts).encode()})


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("NaN", r"the vector of .*\.png holds NaN or an infinity"),
        ("no column", "holds no embeddings of tlx"),
        ("lists of any length", "expected lists of one length of float32 or float16"),
        ("newer", "was written by a newer tlx; upgrade tlx"),
        ("no model", "is damaged: it has no 'model'"),
        ("no JSON", "damaged|JSON"),
    ],
)
def test_a_damaged_file_is_one_line(kind: str, said: str, written: Path, of_photos: tlx.Result, tmp_path: Path) -> None:
    pq.write_table(altered(pq.read_table(written), kind), tmp_path / "e.parquet")
    for use in (
        lambda: tlx.load_embeddings(tmp_path / "e.parquet"),
        lambda: tlx.tsne(tmp_path / "e.parquet"),
        lambda: tlx.similar(of_photos.run_dir, np.zeros((8, 8), np.uint8), tmp_path / "e.parquet", quiet=True),
    ):
        with pytest.raises(TlxError, match=said):
            use()


def test_the_vectors_of_a_part_are_those_of_its_rows(of_photos: tlx.Result, written: Path) -> None:
    test = tlx.load_embeddings(written, part="test")
    predictions = tlx.load_predictions(of_photos.run_dir, "test")
    places = [97, 3, 3, 50]
    rows, vectors = part_vectors(of_photos.run_dir, "test", places)
    assert [*rows] == places
    by_path = dict(zip(test.paths, test.vectors, strict=True))
    expected = np.stack([by_path[predictions["path"][place]] for place in places])
    assert np.allclose(vectors, expected, rtol=1e-5, atol=1e-6)
    assert part_vectors(of_photos.run_dir, "test", []).vectors.shape == (0, 32)
    for part, row, said in (("val", 0, "has no part 'val'"), ("test", 100, "there is no row 100 of 100")):
        with pytest.raises(TlxError, match=said):
            part_vectors(of_photos.run_dir, part, [row])


@pytest.mark.parametrize(
    ("shape", "head", "expected"),
    [
        ((2, 6), (5, 6), lambda x: x),
        ((2, 6, 3, 3), (5, 6, 1, 1), lambda x: x.mean((2, 3))),  # a convolution over a map, as SqueezeNet's
        ((2, 7, 6), (5, 6), lambda x: x.mean(1)),  # tokens
        ((2, 6, 3, 3), (5, 54), lambda x: x.reshape(2, 54)),  # a head that flattens
        ((2, 3, 3, 6), (5, 6), lambda x: x.mean((1, 2))),  # channels last
    ],
)
def test_what_enters_any_head_is_one_row_for_each_image(shape: Any, head: Any, expected: Any) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    specs = (ParamSpec("head.weight", head, "float32", "weight", "head"),)
    assert np.allclose(one_row_each(x, specs), expected(x))


def test_the_command_writes_and_says_what_it_wrote(of_photos: tlx.Result, photos: Path, tmp_path: Path) -> None:
    command = ["embed", str(of_photos.run_dir), str(photos / "test"), "-o", "e.parquet"]
    done = call(*command, "--json", "--dtype", "float16", folder=tmp_path)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["images"], facts["width"], facts["dtype"], facts["computed"]) == (100, 32, "float16", 100)
    assert pq.read_schema(tmp_path / "e.parquet").field("vector").type.value_type == pa.float16()
    again = call(*command, folder=tmp_path)
    assert again.code == 2 and again.err.splitlines()[-1].startswith("tlx: e.parquet exists") and not again.out
