"""Captures on disk: what is damaged or hostile is refused, and what an earlier tlx wrote is read."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tlx
from support.golden import FOLDER
from support.training import training_of
from tlx.errors import TlxError
from tlx.proof.artifact import Capture, hexed, readable
from tlx.proof.capture import capture
from tlx.proof.capture_writer import CaptureWriter, Reference
from tlx.proof.compare import compare
from tlx.proof.result import Verdict
from tlx.recipe import Recipe

pytestmark = pytest.mark.needs("loopback")

SAVED = FOLDER / "saved-by-0.1.0.tar.xz"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("manifest.json", b"{", "damaged JSON"),
        ("manifest.json", b'{"format": 99}', "a capture of format 99; this tlx reads 1"),
        ("manifest.json", b"[" * 100_000, "damaged JSON"),
        ("manifest.json", b'{"format": 1}', "the manifest lacks"),
        ("trace.jsonl", b'{"key": "P1", "facts": {}, "files": {"a": "../../etc/passwd"}}\n', "is no array file"),
        ("trace.jsonl", b'{"key": "P1"}\n', "a line lacks key, facts or files"),
        ("trace.jsonl", b"", "lacks the record 'P1'"),
        ("000000.npy", b"\x80\x04\x95", "cannot read the array"),
        (
            "000000.npy",
            b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
            "cannot read",
        ),
        ("000000.npy", None, "cannot read the array"),
    ],
)
def test_a_damaged_capture_is_refused(
    file: str, content: bytes | None, message: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(pair[1], tmp_path / "B")
    if content is None:
        (tmp_path / "B" / file).unlink()
    else:
        (tmp_path / "B" / file).write_bytes(content)
    with pytest.raises(TlxError) as error:
        compare(pair[0], tmp_path / "B")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_record_without_its_array_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(pair[1], tmp_path / "B")
    trace = tmp_path / "B" / "trace.jsonl"
    lines = trace.read_text(encoding="utf-8").splitlines()
    cut = [line.partition('"files": ')[0] + '"files": {}}' if '"key": "P7/0000"' in line else line for line in lines]
    assert cut != lines
    trace.write_text("\n".join(cut) + "\n", encoding="utf-8")
    with pytest.raises(TlxError, match=r"the record 'P7/0000' lacks the array 'logits'"):
        compare(pair[0], tmp_path / "B")


def test_an_array_that_is_a_link_is_not_followed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(pair[1], tmp_path / "B")
    secret = tmp_path / "secret.npy"
    np.save(secret, np.zeros(3))
    (tmp_path / "B" / "000000.npy").unlink()
    (tmp_path / "B" / "000000.npy").symlink_to(secret)
    with pytest.raises(TlxError, match="a link"):
        compare(pair[0], tmp_path / "B")


def test_a_capture_starts_from_the_head_of_a_run_with_the_same_classes_as_a_run_does(tmp_path: Path) -> None:
    small: dict[str, Any] = {"backend": "loopback", "model": "tiny-mlp", "data": "digits", "image_size": 8}
    small |= {"limit_train": 100, "val_fraction": 0}
    first = tlx.run(small, weights="none", epochs=1, out=str(tmp_path / "run"), quiet=True)
    recipe = Recipe(**small, weights=str(first.run_dir))
    captured = Capture(capture(recipe, "loopback", tmp_path / "A", stages=("P1",))).records["P1"].arrays()
    started = training_of(**small, weights=str(first.run_dir), precision="float64")
    values = started.backend.dump_arrays(started.model)
    assert {name: array.tobytes() for name, array in captured.items()} == {n: a.tobytes() for n, a in values.items()}
    assert np.array_equal(captured["fc.weight"], load_file(first.run_dir / "model.safetensors")["fc.weight"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The capture that tlx 0.1.0 wrote, unpacked: plain files in one folder and nothing else."""
    home = tmp_path_factory.mktemp("saved")
    with tarfile.open(SAVED) as archive:
        for member in archive:
            path = Path(member.name)
            if path.parent == Path("capture") and member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                (home / path.name).write_bytes(content.read())
    return home


def test_a_capture_of_0_1_0_equals_itself(saved: Path) -> None:
    report = compare(saved, saved)
    assert report.verdict == Verdict.EQUAL, str(report)
    assert [stage.id for stage in report.stages] == [f"P{number}" for number in range(11)]


def test_a_capture_of_0_1_0_equals_a_new_one_of_its_recipe(saved: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(Capture(saved).manifest["recipe"])
    new = capture(recipe, "loopback", tmp_path / "new", saved, quick=True)
    report = compare(saved, new)
    assert report.verdict == Verdict.EQUAL, str(report)
    assert all(stage.passed for stage in report.stages if stage.figure is not None)


def test_a_capture_of_0_1_0_can_be_the_reference_that_all_comes_from(saved: Path, tmp_path: Path) -> None:
    report = compare(saved, capture(None, "loopback", tmp_path / "served", saved, quick=True))
    assert report.verdict == Verdict.EQUAL, str(report)


def test_a_capture_of_0_1_0_serves_an_engine(saved: Path, tmp_path: Path) -> None:
    served = Reference(saved)
    assert len(list(served.steps())) >= 40 and len(served.batches) == 5 and served.inputs.dtype == np.float64
    for folder, factor in (("B", 1.0), ("C", 1.001)):
        with CaptureWriter(tmp_path / folder, "by hand 1", reference=served) as cap:
            cap.weights(served.weights)
            cap.logits(Capture(saved).records["P3/logits"].needed("logits") * factor)
    assert compare(saved, tmp_path / "B").verdict == Verdict.EQUAL
    assert compare(saved, tmp_path / "C").verdict == Verdict.DIFFERENT


@pytest.mark.parametrize("value", [0.1, -1e-300, 3, "0x12", "a 0x1.8p+0", None, [0.5, "x"], {"lr": 0.25}])
def test_a_fact_of_the_manifest_reads_as_it_was_written(value: object) -> None:
    expected = "{lr: 0.25}" if isinstance(value, dict) else repr(value)
    assert readable(hexed(value)) == expected
