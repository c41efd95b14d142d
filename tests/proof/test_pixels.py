"""A capture says how its batches entered the network, and one that entered otherwise is not compared with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlx.backend import Preprocess
from tlx.errors import TlxError
from tlx.proof.artifact import Capture
from tlx.proof.capture import capture
from tlx.proof.capture_writer import Reference, preprocessed
from tlx.proof.compare import compare
from tlx.proof.result import Verdict
from tlx.recipe import Recipe

OTHERWISE: dict[str, Any] = {"mean": (0.5, 0.4, 1 / 3), "std": (0.25, 0.5, 1.0), "interpolation": "bicubic"}
ENTERING = Preprocess(16, **OTHERWISE)
FACTS = ("mean", "std", "interpolation")
STAGES = ("P1", "P2", "P3", "P6")


def captured(folder: Path, fields: dict[str, Any], reference: Path | None = None, **others: Any) -> Path:
    recipe = Recipe(backend="loopback", **{**fields, **others})
    return capture(recipe, "loopback", folder, reference, quick=True, stages=STAGES)


@pytest.fixture(scope="module")
def otherwise(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captured(tmp_path_factory.mktemp("captures") / "A", fields, **OTHERWISE)


def test_a_served_capture_has_the_pixels_of_its_reference(otherwise: Path, tmp_path: Path) -> None:
    served = capture(None, "loopback", tmp_path / "B", otherwise, stages=STAGES)
    report = compare(otherwise, served)
    assert report.verdict == Verdict.EQUAL, str(report)
    for folder in (otherwise, served):
        facts = Capture(folder).records["P2/train/0000/0000"].facts
        assert [facts[name] for name in FACTS] == [[0.5, 0.4, 1 / 3], [0.25, 0.5, 1.0], "bicubic"]


def test_an_engine_is_served_what_entered_the_network(otherwise: Path) -> None:
    served, record = Reference(otherwise), Capture(otherwise).records["P2/test/0000/0000"]
    images = record.needed("images")
    expected = ENTERING.apply(images, np.float64)
    assert np.array_equal(served.inputs, expected) and np.array_equal(preprocessed(images, 16, **OTHERWISE), expected)
    first = Capture(otherwise).records["P2/train/0000/0000"]
    entering = ENTERING.apply(first.needed("images"), np.float64)
    assert np.array_equal(next(iter(served.steps())).inputs, entering)
    assert np.abs(entering - Preprocess(16).apply(first.needed("images"), np.float64)).max() > 0.5


@pytest.mark.parametrize("name", ["mean", "std", "interpolation", "aspect", "crop_fraction", "antialias"])
def test_recipes_that_differ_in_their_pixels_are_not_compared(
    name: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    value = {"aspect": "squash", "crop_fraction": 0.9, "antialias": False}.get(name)
    changed = {key: kept for key, kept in {**OTHERWISE, name: value}.items() if kept is not None}
    one, other = (
        capture(Recipe(backend="loopback", **fields, **own), "loopback", tmp_path / side, quick=True, stages=("P1",))
        for side, own in (("A", OTHERWISE), ("B", changed))
    )
    report = compare(one, other)
    assert report.verdict == Verdict.NOT_COMPARABLE and name in report.first, str(report)


def test_the_models_values_may_be_written_out(fields: dict[str, Any], tmp_path: Path) -> None:
    """A recipe that says what the model expects anyway is the same recipe."""
    one = captured(tmp_path / "A", fields)
    pre = Preprocess(16)
    other = captured(tmp_path / "B", fields, one, mean=pre.mean, std=pre.std, interpolation="bilinear")
    assert compare(one, other).verdict == Verdict.EQUAL


def changed(folder: Path, capture_folder: Path, **facts: Any) -> Path:
    """A copy of a capture whose batches have other facts; None: they lack it."""
    shutil.copytree(capture_folder, folder)
    lines = []
    for line in (folder / "trace.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["key"].startswith("P2"):
            known = {**record["facts"], **facts}
            record["facts"] = {name: value for name, value in known.items() if value is not None or name == "targets"}
        lines.append(json.dumps(record))
    (folder / "trace.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_batches_that_do_not_say_it_entered_as_imagenets_bilinearly(
    pair: tuple[Path, Path], otherwise: Path, tmp_path: Path
) -> None:
    """As those of an earlier tlx did, and only those."""
    none = dict.fromkeys(FACTS)
    silent = changed(tmp_path / "silent", pair[0], **none)
    assert compare(silent, pair[1]).verdict == compare(pair[1], silent).verdict == Verdict.EQUAL
    assert np.array_equal(Reference(silent).inputs, Reference(pair[0]).inputs)
    report = compare(silent, capture(None, "loopback", tmp_path / "served", silent, stages=STAGES))
    assert [stage.passed for stage in report.stages if stage.id in ("P0", *STAGES)] == [True] * 5, str(report)
    wrong = compare(otherwise, changed(tmp_path / "wrong", otherwise, **none))
    assert wrong.verdict == Verdict.DIFFERENT and "mean, std, interpolation" in wrong.first, str(wrong)


@pytest.mark.parametrize(
    "facts", [{"mean": [0.5, 0.5]}, {"mean": "0.5"}, {"std": [0.5, 0, 0.5]}, {"interpolation": "nearest"}], ids=str
)
def test_pixels_that_could_not_be_are_refused(facts: dict[str, Any], otherwise: Path, tmp_path: Path) -> None:
    with pytest.raises(TlxError, match=next(iter(facts))):
        Capture(changed(tmp_path / "B", otherwise, **facts))
