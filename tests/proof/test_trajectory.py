"""P6: single steps from the reference's own states and the free run, judged by the reference's own scatter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.training import training_of
from tlx.backend import Handle, Lazy, Model
from tlx.conformance.loopback import Loopback
from tlx.proof import words
from tlx.proof.artifact import Capture
from tlx.proof.capture import capture, left_out
from tlx.proof.compare import compare
from tlx.proof.faults import FrozenMoves, LateRate, LateUnfreeze, MomentumLost, RateInsideMomentum
from tlx.proof.locked import nudged, select
from tlx.proof.recorder import Proxy
from tlx.proof.report import Report
from tlx.proof.result import Row, Stage, Verdict
from tlx.recipe import Recipe

pytestmark = pytest.mark.needs("loopback")

STAGES = ("P1", "P2", "P5", "P6", "P7")
WHOLE: dict[str, Any] = {"ema": 0.9, "clip_norm": 1.0, "micro_batch": 4, "optimizer": "adamw"}


def stage_of(report: Report, id: str = "P6") -> Stage:
    return next(stage for stage in report.stages if stage.id == id)


def rows_of(stage: Stage, kind: str) -> list[Row]:
    return [row for row in stage.rows if row.kind == kind]


def edited(folder: Path, out: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """Copy a capture and change, or leave out, records of its trace."""
    shutil.copytree(folder, out)
    records = [json.loads(line) for line in (out / "trace.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [new for record in records if (new := change(record)) is not None]
    (out / "trace.jsonl").write_text("\n".join(map(json.dumps, kept)) + "\n", encoding="utf-8")
    return out


def shifted(folder: Path, out: Path, by: Callable[[str], float], kind: str = "values") -> Path:
    """Copy a capture and multiply the sketches of a kind by one plus what `by` gives for their record's key."""
    shutil.copytree(folder, out)
    for record in Capture(out).stage("P6"):
        if kind in record.files and (share := by(record.key)):
            np.save(out / record.files[kind], record.needed(kind) * (1 + share))
    return out


def made(fields: dict[str, Any], home: Path, candidate: Any = None, **changed: Any) -> tuple[Path, Path]:
    recipe = Recipe(**{**fields, "backend": "loopback", **changed})
    first = capture(recipe, Loopback(), home / "A", stages=STAGES, quick=True)
    return first, capture(recipe, candidate or Loopback(), home / "B", first, stages=STAGES, quick=True)


@pytest.fixture(scope="module")
def whole(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two captures of a recipe with a moving average, clipping, micro-batches and AdamW."""
    return made(fields, tmp_path_factory.mktemp("whole"), **WHOLE)


def test_steps_start_from_the_reference_and_stand_beside_its_scatter(pair: tuple[Path, Path]) -> None:
    stage = stage_of(compare(*pair))
    assert stage.passed and stage.limit == 100
    locked = rows_of(stage, "locked")
    assert [row.number for row in locked] == list(range(40)), "a small model: each step"
    assert all(row.scatter is not None and row.apart is not None for row in locked)
    assert any(row.scatter for row in locked), "a nudge of one unit shows somewhere"
    assert stage.facts["locked"] == 40 and stage.facts["weak"] == 0 and stage.facts["shown"] < 1e-3
    assert "40 steps from the reference's own state would show" in words.summary(stage)


def test_the_average_the_parts_and_the_clipping_are_recorded_and_compared(whole: tuple[Path, Path]) -> None:
    a, b = map(Capture, whole)
    facts = a.records["P6/0000"].facts
    assert [float.fromhex(scale) for scale in facts["scales"]] == [0.5, 0.5]
    assert float.fromhex(facts["max_norm"]) == 1.0
    assert {"values", "slots", "average"} <= a.records["P6/0000"].files.keys()
    assert {"gradients", "average"} <= b.records["P6/locked/0000"].files.keys()
    assert compare(*whole).verdict == Verdict.EQUAL


@pytest.mark.parametrize("kind", ["gradients", "values", "slots", "average"])
@pytest.mark.parametrize("record", ["P6/locked/0010", "P6/0010"])
def test_each_kind_of_array_is_compared_in_both(
    kind: str, record: str, whole: tuple[Path, Path], tmp_path: Path
) -> None:
    if kind == "gradients" and record == "P6/0010":
        assert kind not in Capture(whole[0]).records[record].files
        return
    other = shifted(whole[1], tmp_path / "C", lambda key: 1e-8 if key == record else 0.0, kind)
    stage = stage_of(compare(whole[0], other))
    (wrong,) = [row for row in stage.rows if not row.passed]
    assert (wrong.kind, wrong.number, wrong.quantity) == ("locked" if "locked" in record else "step", 10, kind)


@pytest.mark.parametrize(("fact", "value"), [("scales", ["0x1.8p-1", "0x1.0p-2"]), ("max_norm", "0x1.0p+1")])
def test_the_weights_of_the_parts_and_the_norm_are_compared_exactly(
    fact: str, value: Any, whole: tuple[Path, Path], tmp_path: Path
) -> None:
    def change(record: dict[str, Any]) -> dict[str, Any]:
        if record["key"] == "P6/0003":
            record["facts"][fact] = value
        return record

    stage = stage_of(compare(whole[0], edited(whole[1], tmp_path / "C", change)))
    (wrong,) = [row for row in stage.rows if not row.passed]
    assert (wrong.number, wrong.quantity) == (3, fact)


def apart(number: int, share: float) -> Callable[[str], float]:
    """Set the free run apart, and the reference's own envelope with it, from a step on."""
    return lambda key: share if key[3:].isdecimal() and int(key[3:]) >= number else 0.0


def leaving(number: int, share: float) -> Callable[[str], float]:
    return lambda key: share if key.startswith("P6/envelope") and int(key[-4:]) >= number else 0.0


def test_a_free_run_may_leave_as_far_as_the_reference_leaves_itself(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The reference's other run was moved once, while a candidate rounds otherwise in every step: ten times as far."""
    reference = shifted(pair[0], tmp_path / "A", leaving(20, 1e-12))
    near = compare(reference, shifted(pair[1], tmp_path / "near", apart(20, 5e-10)))
    assert near.verdict == Verdict.EQUAL and stage_of(near).facts["silent"] is None
    far = compare(reference, shifted(pair[1], tmp_path / "far", apart(20, 5e-9)))
    assert far.verdict == Verdict.DIFFERENT and "the free run departs at step 20" in far.first
    early = compare(reference, shifted(pair[1], tmp_path / "early", apart(19, 5e-10)))
    assert early.verdict == Verdict.DIFFERENT and "departs at step 19" in early.first


def test_where_the_reference_leaves_itself_the_free_run_shows_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    reference = shifted(pair[0], tmp_path / "A", leaving(20, 1e-9))
    report = compare(reference, shifted(pair[1], tmp_path / "B", apart(25, 0.5)))
    stage = stage_of(report)
    assert report.verdict == Verdict.EQUAL and stage.facts["silent"] == 20 and stage.figure is not None
    assert stage.figure < 100 and [row.number for row in rows_of(stage, "step") if row.silent] == list(range(20, 40))
    assert "the free run shows nothing from step 20 on" in str(report).replace("\n", " ")
    before = compare(reference, shifted(pair[1], tmp_path / "before", apart(19, 0.5)))
    assert before.verdict == Verdict.DIFFERENT
    single = compare(reference, shifted(pair[1], tmp_path / "single", lambda key: 1e-8 * (key == "P6/locked/0030")))
    assert single.verdict == Verdict.DIFFERENT and single.first.startswith("From the reference's own state, step 30")


def test_a_run_that_shows_nothing_without_steps_from_the_reference_is_underpowered(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def other_start(record: dict[str, Any]) -> dict[str, Any]:
        if record["key"].startswith("P6/locked/"):
            record["facts"]["start"] = "of its own"
        return record

    alone = edited(pair[1], tmp_path / "B", other_start)
    assert compare(pair[0], alone).verdict == Verdict.EQUAL, "the free run is judged"
    report = compare(shifted(pair[0], tmp_path / "A", leaving(20, 1e-9)), alone)
    assert report.verdict == Verdict.UNDERPOWERED
    assert "capture the candidate with --reference" in words.summary(stage_of(report))


def test_a_step_whose_gradients_scatter_shows_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A ReLU may fall on either side there, and two more runs of the reference need not show it."""
    scattered = shifted(pair[0], tmp_path / "A", lambda key: 1e-9 * (key == "P6/scatter/1/0030"), "gradients")
    report = compare(
        scattered, shifted(pair[1], tmp_path / "B", lambda key: 0.1 * (key == "P6/locked/0030"), "gradients")
    )
    stage = stage_of(report)
    assert report.verdict == Verdict.EQUAL and stage.facts["locked"] == 39
    assert [row.number for row in rows_of(stage, "locked") if row.silent] == [30]


def test_a_scatter_that_is_small_by_chance_in_one_step_is_no_measure_of_it(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The reference scatters by 1e-12 in all steps but one, in which the candidate is as far away as in the others."""

    def scattered(key: str) -> float:
        return 1e-12 * (key.startswith("P6/scatter/") and not key.endswith("/0030"))

    def apart(key: str) -> float:
        return 5e-12 * key.startswith("P6/locked/")

    first = shifted(pair[0], tmp_path / "A", scattered, "gradients")
    assert compare(first, shifted(pair[1], tmp_path / "B", apart, "gradients")).verdict == Verdict.EQUAL
    wrong = shifted(pair[1], tmp_path / "C", lambda key: 100 * apart(key), "gradients")
    assert compare(first, wrong).verdict == Verdict.DIFFERENT


def test_a_slot_scatters_at_least_as_the_gradient_that_enters_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Squares weigh elements otherwise, so a moment may scatter less than its gradient by chance."""

    def apart(key: str, by: float) -> float:
        return by * key.startswith("P6/locked/")

    slots = shifted(pair[1], tmp_path / "B", lambda key: apart(key, 5e-11), "slots")
    assert compare(pair[0], slots).verdict == Verdict.DIFFERENT
    scattered = shifted(pair[0], tmp_path / "A", lambda key: 1e-12 * key.startswith("P6/scatter/"), "gradients")
    assert compare(scattered, slots).verdict == Verdict.EQUAL
    wrong = shifted(pair[1], tmp_path / "C", lambda key: apart(key, 5e-10), "slots")
    assert compare(scattered, wrong).verdict == Verdict.DIFFERENT


def test_two_captures_that_know_nothing_of_each_other_are_compared(fields: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe(**fields, backend="loopback")
    a, b = (capture(recipe, Loopback(), tmp_path / name, stages=STAGES, quick=True) for name in "AB")
    assert stage_of(compare(a, b)).facts["locked"] == 8, "their states are equal in every bit"
    assert compare(a, b).verdict == Verdict.EQUAL


def test_a_capture_without_scatter_is_judged_by_a_fixed_limit(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def first_format(record: dict[str, Any]) -> dict[str, Any] | None:
        return None if record["key"].startswith(("P6/st", "P6/l", "P6/sc", "P6/e", "P6/v")) else record

    old = edited(pair[0], tmp_path / "A", first_format)
    for other, verdict in ((0.5e-9, Verdict.EQUAL), (2e-9, Verdict.DIFFERENT)):
        report = compare(old, shifted(pair[1], tmp_path / str(other), apart(20, other)))
        stage = stage_of(report)
        assert report.verdict == verdict and stage.limit == 1e-9 and words.measure(stage) == "relative L2"
        assert len(stage.rows) == 40 and stage.facts["locked"] == 0


def test_a_step_that_one_side_lacks_is_a_difference(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def cut(record: dict[str, Any]) -> dict[str, Any]:
        if record["key"] == "P6/locked/0007":
            record.update(key="P6/locked/error", facts={"step": 7, "text": "it broke"}, files={})
        return record

    report = compare(pair[0], edited(pair[1], tmp_path / "B", cut))
    assert report.verdict == Verdict.DIFFERENT and "it broke" in report.first


def test_states_are_what_float32_holds_and_equal_arrays_share_a_file(pair: tuple[Path, Path]) -> None:
    capture = Capture(pair[0])
    first, second = (capture.records[f"P6/start/{number:04d}"] for number in (0, 1))
    frozen, moving = "values/fc1.weight", "values/fc.weight"
    assert first.files[frozen] == second.files[frozen] and first.files[moving] != second.files[moving]
    assert first.needed(frozen).dtype == np.float32
    assert not any(name.startswith("slots") for name in first.files)
    assert "slots/fc.weight/momentum" in second.files


def test_the_metrics_are_of_the_moving_average_that_the_reference_ended_with(whole: tuple[Path, Path]) -> None:
    a, b = map(Capture, whole)
    last = a.records["P6/0039"]
    sketched = dict(zip([name for name, *_ in last.facts["average"]], range(99), strict=False))
    assert sketched.keys() == a.records["P7/model"].files.keys()
    head = a.records["P7/model"].needed("fc.bias")
    start = sum(length for name, _, length in last.facts["average"][: sketched["fc.bias"]])
    assert np.allclose(head, last.needed("average")[start : start + head.size], rtol=1e-6)
    assert a.records["P7/0000"].facts["model"] == b.records["P7/0000"].facts["model"]
    assert len(rows_of(stage_of(compare(*whole), "P7"), "predictions")) == 4


def test_predictions_of_two_models_are_not_compared(whole: tuple[Path, Path], tmp_path: Path) -> None:
    def other(record: dict[str, Any]) -> dict[str, Any]:
        if record["key"].startswith("P7/0"):
            record["facts"]["model"] = "another"
        return record

    stage = stage_of(compare(whole[0], edited(whole[1], tmp_path / "C", other)), "P7")
    assert stage.passed and not rows_of(stage, "predictions") and rows_of(stage, "count")


class Rounded(Proxy):
    """Another right backend: its gradients are a few units in the last place off."""

    def backward(self, model: Model, batch: Handle, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        metrics: tuple[Lazy, Lazy] = self.inner.backward(model, batch, scale)
        model.grads = {name: g * (1 + 4e-16) for name, g in model.grads.items()}
        return metrics


class Slower(Proxy):
    """Weighs gradients by a hundred-millionth less, from the second epoch on."""

    updates = 0

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        self.updates += 1
        if self.updates % 40 > 10:
            model.grads = {name: g * (1 - 1e-8) for name, g in model.grads.items()}
        self.inner.update(model, optimizer, max_norm)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rounding_is_no_difference_and_a_hundred_millionth_is_one(
    optimizer: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    equal = compare(*made(fields, tmp_path / "equal", Rounded(Loopback()), optimizer=optimizer))
    assert equal.verdict == Verdict.EQUAL, str(equal)
    different = compare(*made(fields, tmp_path / "different", Slower(Loopback()), optimizer=optimizer))
    assert different.verdict == Verdict.DIFFERENT and stage_of(different).passed is False


def test_the_schedule_plateau_drops_in_single_steps_where_it_does_in_the_run(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    plateau = {"schedule": "plateau", "step_size": 1, "lr": 5.0, "epochs": 8, "val_fraction": 0.2}
    pair = made(fields, tmp_path, **plateau)
    report = compare(*pair)
    assert report.verdict == Verdict.EQUAL, str(report)
    drops = [row.number for row in rows_of(stage_of(report), "step") if "the learning rate changes" in row.events]
    assert drops
    a = Capture(pair[0])
    for record in a.stage("P6/locked"):
        assert record.facts["hyper"] == a.records[f"P6/{record.key[-4:]}"].facts["hyper"]
    served = compare(pair[0], capture(None, Loopback(), tmp_path / "served", pair[0], stages=STAGES, quick=True))
    assert served.verdict == Verdict.EQUAL, "what has only the reference has its validation part, too"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (FrozenMoves, "frozen arrays changed during training"),
        (LateUnfreeze, "step 10, where 4 arrays unfreeze, 1 norm layer begins to adapt, differs"),
        (MomentumLost, "step 10, where 4 arrays unfreeze, 1 norm layer begins to adapt, differs"),
        (LateRate, "step 10, where the learning rate changes, differs"),
        (RateInsideMomentum, "step 10, where the learning rate changes, differs"),
    ],
)
def test_what_happens_between_steps_is_part_of_a_step(
    fault: type[Proxy], words: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """A state is taken up before the phase and the rates of its step are set."""
    recipe = Recipe(**fields, backend="loopback")
    a = capture(recipe, Loopback(), tmp_path / "A", stages=("P1", "P2", "P6"), quick=True)
    b = capture(recipe, fault(Loopback()), tmp_path / "B", a, stages=("P1", "P2", "P6"), quick=True)
    report = compare(a, b)
    assert report.verdict == Verdict.DIFFERENT and words in report.first, report.first


class Diverging(Proxy):
    """Trains until the loss is no number."""

    def backward(self, model: Model, batch: Handle, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        metrics: tuple[Lazy, Lazy] = self.inner.backward(model, batch, scale)
        with np.errstate(over="ignore"):
            model.grads = {name: g * 1e200 for name, g in model.grads.items()}
        return metrics


def test_two_runs_that_go_astray_alike_show_too_little(fields: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe(**fields, backend="loopback")
    a = capture(recipe, Diverging(Loopback()), tmp_path / "A", stages=("P1", "P2", "P6"), quick=True)
    b = capture(recipe, Diverging(Loopback()), tmp_path / "B", a, stages=("P1", "P2", "P6"), quick=True)
    report = compare(a, b)
    assert report.verdict == Verdict.UNDERPOWERED, str(report)
    assert "both stopped before step" in words.summary(stage_of(report))


def test_a_nudge_is_one_unit_in_the_last_place() -> None:
    values = np.array([1.0, -2.5, 0.0, 1e-300, 3e38] * 20)
    moved, again = nudged(values, "w", 1), nudged(values, "w", 2)
    units = np.abs(moved - values)[values != 0] / np.spacing(np.abs(values[values != 0]))
    assert set(units) <= {0.5, 1.0} and not moved[values == 0].any() and not np.array_equal(moved, again)
    assert set(np.sign(moved - values)[values != 0]) == {-1.0, 1.0}
    assert np.array_equal(nudged(np.arange(3), "n", 1), np.arange(3))


def test_the_selected_steps_are_those_around_boundaries_first(fields: dict[str, Any]) -> None:
    """Ten steps an epoch: one phase begins at step 10, and the rate falls at 10, 20 and 30."""
    training = training_of(**fields, backend="loopback", limit_train=79, batch_size=8)
    assert select(training, 8) == {0, 10, 1, 39, 11, 20, 30, 21}
    assert select(training) == set(range(40))
    assert select(training, budget=0) == {0, 10}, "the first step of each phase, whatever it takes"
    always = training_of(**{**fields, "schedule": "cosine"}, backend="loopback", limit_train=79, batch_size=8)
    assert select(always, 8) == {0, 10, 1, 39, 11, 32, 16, 8}, "a rate that changes all the time is no boundary"


def test_what_a_shortened_recipe_does_not_try_is_listed(pair: tuple[Path, Path]) -> None:
    assert left_out(Recipe(patience=3, precision="bfloat16")) == [
        "val_fraction",
        "patience",
        "feature_cache",
        "precision",
    ]
    assert left_out(Recipe(schedule="plateau", feature_cache="off")) == []
    report = compare(*pair)
    assert "of the recipe, not run: val_fraction, feature_cache" in str(report).replace("\n", " ")
