"""Engines outside tlx: one file of NumPy code writes a capture, and a comparison judges what both captures hold."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlx.backend import Preprocess
from tlx.proof import capture_writer
from tlx.proof.artifact import Capture, Writer
from tlx.proof.capture_writer import CaptureError, CaptureWriter, Reference, preprocessed
from tlx.proof.compare import compare
from tlx.proof.measure import sketch
from tlx.proof.report import Report
from tlx.proof.result import Stage, Verdict

pytestmark = pytest.mark.needs("loopback")

WRITER = Path(capture_writer.__file__)
PORT = Path(__file__).parents[1] / "support" / "numpy_port.py"
# Runs a script that may import from its own folder and from NumPy; that there is no tlx is asserted.
ALONE = """
import importlib.machinery, runpy, sys
class NoTlx:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in ("tlx", "torch", "oneflow"), name
sys.meta_path.insert(0, NoTlx())
sys.path.insert(0, ".")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], {}, "__main__")
"""

Port = Callable[..., Path]


@pytest.fixture(scope="module")
def reference(parity: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture by tlx: everything trains, the rate drops after each epoch, labels are smoothed."""
    folder = tmp_path_factory.mktemp("reference") / "A"
    fields = ("--model", "tiny-mlp", "--data", "digits", "--weights", "none", "--image-size", "16", "--quick")
    training = ("--strategy", "scratch", "--lr", "0.05", "--schedule", "step", "--step-size", "1", "--epochs", "4")
    smoothed = ("--label-smoothing", "0.1")
    done = parity("capture", "--backend", "loopback", "-o", folder, *fields, *training, *smoothed)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def port(reference: Path, tmp_path: Path) -> Port:
    """Run the port alone, in an empty folder that holds the writer, and return the folder of its capture."""

    def run(fault: str = "", precision: str = "float64") -> Path:
        home = tmp_path / f"{fault} {precision}"
        home.mkdir()
        shutil.copy(WRITER, home)
        shutil.copy(PORT, home)
        command = [sys.executable, "-I", "-c", ALONE, PORT.name, str(reference), "B", precision, fault]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return home / "B"

    return run


def stages(report: Report) -> dict[str, Stage]:
    return {stage.id: stage for stage in report.stages}


def test_the_writer_imports_numpy_and_the_standard_library_alone() -> None:
    nodes = ast.walk(ast.parse(WRITER.read_text(encoding="utf-8")))
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"numpy"}


def test_a_port_without_tlx_and_without_a_framework_is_equal(port: Port, reference: Path) -> None:
    report = compare(reference, port())
    assert report.verdict == Verdict.EQUAL, str(report)
    judged = {id: stage for id, stage in stages(report).items() if stage.passed}
    assert list(judged) == ["P0", "P1", "P3", "P4", "P6"]
    assert [judged[id].figure or 0.0 for id in ("P3", "P4", "P6")] < [1e-12, 1e-11, 1e-11]
    assert len(judged["P6"].rows) == 40
    assert len(judged["P4"].rows) == 3 + 1 + 2 + 6  # outputs, the loss, buffers, gradients


@pytest.mark.parametrize(
    ("fault", "stage", "message"),
    [
        ("BatchNorm's eps is 1e-3", "P3", "that of bn1"),
        ("label smoothing is forgotten", "P4", "the loss function differs"),
        ("BatchNorm's variance is a constant", "P4", "first gradient fc1.weight"),
        ("the rate drops a step late", "P6", "Equal until step 10, where the learning rate changes"),
        ("biases do not decay", "P6", "bias"),
    ],
)
def test_a_fault_of_a_port_is_found_and_named(
    fault: str, stage: str, message: str, port: Port, reference: Path
) -> None:
    report = compare(reference, port(fault))
    assert report.verdict == Verdict.DIFFERENT, str(report)
    assert report.difference and report.difference.stage.id == stage and message in report.first, report.first


def test_a_wrong_rate_that_nobody_states_is_read_from_the_updates(port: Port, reference: Path) -> None:
    report = compare(reference, port("the rate drops a step late"))
    assert "the update of all that differs is 10 times the reference's" in report.first


def test_a_float32_engine_is_judged_by_the_scatter_of_the_reference(port: Port, reference: Path) -> None:
    report = compare(reference, port(precision="float32"))
    assert report.verdict == Verdict.EQUAL, str(report)
    assert "float32: judged by the reference's own scatter" in report.candidate
    found = stages(report)
    assert found["P3"].limit == found["P4"].limit == 10 and found["P6"].figure is None
    assert 0 < (found["P3"].figure or 0) < 10 and "error / own scatter" in str(report)
    assert report.to_html() and report.to_dict()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("BatchNorm's eps is 1e-3", "that of bn1"),
        ("label smoothing is forgotten", "the loss function differs"),
        ("BatchNorm's variance is a constant", "first gradient fc1.weight"),
    ],
)
def test_a_fault_in_float32_is_found_and_named(fault: str, message: str, port: Port, reference: Path) -> None:
    report = compare(reference, port(fault, "float32"))
    assert report.verdict == Verdict.DIFFERENT and message in report.first, str(report)


def test_the_reference_serves_what_entered_the_network(reference: Path) -> None:
    capture, served = Capture(reference), Reference(reference)
    record = capture.records["P2/test/0000/0000"]
    assert np.array_equal(served.inputs, preprocessed(record.needed("images"), 16))
    assert np.array_equal(served.inputs, Preprocess(16).apply(record.needed("images"), np.float64))
    assert served.labels.tolist() == record.facts["labels"]
    batches, steps = served.batches, list(served.steps())
    assert len(batches) == 5 and len(steps) == 40
    for recorded, computed in zip(batches, steps, strict=False):
        assert np.array_equal(recorded.inputs, computed.inputs) and np.array_equal(recorded.labels, computed.labels)
        assert recorded.targets is not None and computed.targets is not None
        assert np.array_equal(recorded.targets, computed.targets)


@pytest.mark.parametrize("shape", [(3,), (1024,), (1025,), (7, 13, 40), (300, 100)])
def test_a_sketch_is_the_one_that_tlx_makes(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    assert np.allclose(capture_writer.sketch(array), sketch(array), rtol=1e-13, atol=1e-13)


def test_logits_alone_are_a_capture(reference: Path, tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "B", "by hand", reference=reference) as cap:
        cap.logits(Capture(reference).records["P3/logits"].needed("logits"))
    report = compare(reference, tmp_path / "B")
    assert report.verdict == Verdict.EQUAL
    assert [stage.id for stage in report.stages if stage.passed] == ["P0", "P3"]
    assert "P1, P2, P4, P5, P6, P7, P8 not run: only the reference has it" in str(report)


def test_weights_alone_show_nothing(reference: Path, tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "B", "by hand", reference=reference) as cap:
        cap.weights(Reference(reference).weights)
    assert compare(reference, tmp_path / "B").verdict == Verdict.UNDERPOWERED


def test_weights_that_differ_are_named(reference: Path, tmp_path: Path) -> None:
    weights = Reference(reference).weights
    weights["fc.weight"] = weights["fc.weight"].T
    with CaptureWriter(tmp_path / "B", "by hand", reference=reference) as cap:
        cap.weights(weights)
        cap.logits(np.zeros((8, 10)))
    first = compare(reference, tmp_path / "B").first
    assert first == "The weights differ after loading: fc.weight ([10, 32] against [32, 10])."


def test_a_capture_of_another_reference_is_not_comparable(
    pair: tuple[Path, Path], reference: Path, tmp_path: Path
) -> None:
    with CaptureWriter(tmp_path / "B", "by hand", reference=pair[0]) as cap:
        cap.logits(np.zeros((8, 10)))
    assert compare(reference, tmp_path / "B").verdict == Verdict.NOT_COMPARABLE


def test_an_engine_says_nothing_of_a_recipe_where_it_has_no_reference(reference: Path, tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "B", "by hand 1.2") as cap:
        cap.logits(Capture(reference).records["P3/logits"].needed("logits"))
    report = compare(reference, tmp_path / "B")
    assert report.verdict == Verdict.EQUAL and report.candidate == "by hand 1.2 (cpu)"


def test_names_that_the_reference_does_not_have_are_refused_with_the_nearest(reference: Path, tmp_path: Path) -> None:
    cap = CaptureWriter(tmp_path / "B", "by hand", reference=reference)
    wrong: tuple[Callable[[], None], ...] = (
        lambda: cap.weights({"fc1.wieght": np.zeros(3)}),
        lambda: cap.gradient("fc1.weights", np.zeros(3)),
        lambda: cap.step(1.0, optimizer={"fc1.weight/momentum_buffer": np.zeros(3)}),
        lambda: cap.step(1.0, {"fc1.Weight": np.zeros(3)}),
    )
    for what in wrong:
        with pytest.raises(CaptureError, match=r"the reference has no .* Closest: .*'fc1\.weight"):
            what()
    with pytest.raises(CaptureError, match=r"output: the reference has no 'bn'. Closest: 'bn1'"):
        cap.output("bn", np.zeros(3))


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="precision is 'bfloat16'"):
        CaptureWriter(tmp_path / "B", "by hand", "bfloat16")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(CaptureError, match="is not empty"):
        CaptureWriter(tmp_path / "full", "by hand")
    with pytest.raises(CaptureError, match="nothing was recorded"), CaptureWriter(tmp_path / "C", "by hand"):
        pass
    cap = CaptureWriter(tmp_path / "D", "by hand")
    with pytest.raises(CaptureError, match="expected an array of numbers"):
        cap.logits(np.array(["a"]))
    with pytest.raises(CaptureError, match="lr has 2 numbers and weight_decay 3"):
        cap.step(1.0, lr=[0.1, 0.2], weight_decay=[0.0, 0.0, 0.0])
    with pytest.raises(CaptureError, match="holds no finished capture"):
        Reference(tmp_path / "full")


@pytest.mark.parametrize("line", ["{", "[]", "null", '{"key": "P1"}', '{"key": "P1", "facts": 1, "files": {}}'])
def test_a_damaged_capture_serves_nobody(line: str, reference: Path, tmp_path: Path) -> None:
    shutil.copy(reference / "manifest.json", tmp_path)
    (tmp_path / "trace.jsonl").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(CaptureError, match="holds no finished capture"):
        Reference(tmp_path)


def test_an_array_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "A", "by hand") as cap:
        cap.weights({"w": np.ones(3)})
    trace = tmp_path / "A" / "trace.jsonl"
    trace.write_text(trace.read_text(encoding="utf-8").replace("000000.npy", "../../x.npy"), encoding="utf-8")
    with pytest.raises(CaptureError, match="names what is no array file"):
        _ = Reference(tmp_path / "A").weights


def test_a_capture_that_ends_in_an_exception_is_none(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), CaptureWriter(tmp_path / "B", "by hand") as cap:
        cap.logits(np.zeros((2, 3)))
        cap.step(1 / 0)
    assert not list((tmp_path / "B").iterdir())


def test_a_module_that_is_called_twice_is_compared_call_by_call(tmp_path: Path) -> None:
    for folder, second in (("A", 2.0), ("B", 2.0), ("C", 3.0)):
        with CaptureWriter(tmp_path / folder, "by hand") as cap:
            cap.output("shared", np.full(4, 1.0))
            cap.output("shared", np.full(4, second))
    assert compare(tmp_path / "A", tmp_path / "B").verdict == Verdict.EQUAL
    report = compare(tmp_path / "A", tmp_path / "C")
    assert report.verdict == Verdict.DIFFERENT and "that of shared#2" in report.first


def test_each_output_of_a_module_is_compared(tmp_path: Path) -> None:
    for folder, second in (("A", 2.0), ("B", 2.0), ("C", 3.0)):
        with CaptureWriter(tmp_path / folder, "by hand") as cap:
            cap.output("two", (np.ones(4), np.full(3, second)))
    assert compare(tmp_path / "A", tmp_path / "B").verdict == Verdict.EQUAL
    assert "that of two.output.1" in compare(tmp_path / "A", tmp_path / "C").first


def test_outputs_that_one_side_has_are_named_and_judge_nothing(reference: Path, tmp_path: Path) -> None:
    outputs = {record.facts["path"]: record.needed("output") for record in Capture(reference).stage("P3/visit")}
    for folder, moved in (("B", 0.0), ("C", 1e-3)):
        with CaptureWriter(tmp_path / folder, "by hand", reference=reference) as cap:
            cap.output("fc1", outputs["fc1"])
            cap.output("fc", outputs["fc"] + moved)
    assert compare(reference, tmp_path / "B").verdict == Verdict.EQUAL
    assert (
        "after fc1, the last output before it that is equal; not recorded: bn1."
        in compare(reference, tmp_path / "C").first
    )


def test_nothing_under_one_name_is_no_proof(tmp_path: Path) -> None:
    for folder, name in (("A", "x"), ("B", "y")):
        with CaptureWriter(tmp_path / folder, "by hand") as cap:
            cap.output(name, np.zeros(4))
    report = compare(tmp_path / "A", tmp_path / "B")
    assert report.verdict == Verdict.UNDERPOWERED and "nothing in it under one name" in str(report)


def test_a_whole_array_may_take_the_place_of_its_sketch(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 50))
    with CaptureWriter(tmp_path / "A", "by hand") as cap:
        for _ in range(40):
            cap.step(1.0, {"w": values})
    for folder, moved in (("B", 0.0), ("C", 1e-6)):
        writer = Writer(tmp_path / folder)
        for step in range(40):
            facts = {"loss": "0x1p+0", "values": [["w", [40, 50], 2000]]}
            writer.add(f"P6/{step:04d}", facts, {"values": values.ravel() + moved})
        writer.close({**json.loads((tmp_path / "A" / "manifest.json").read_text(encoding="utf-8"))})
    assert compare(tmp_path / "A", tmp_path / "B").verdict == Verdict.EQUAL
    assert compare(tmp_path / "A", tmp_path / "C").verdict == Verdict.DIFFERENT


def test_a_reference_without_its_float32_scatter_judges_no_float32(reference: Path, port: Port, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path / "A")
    trace = tmp_path / "A" / "trace.jsonl"
    lines = trace.read_text(encoding="utf-8").splitlines(keepends=True)
    trace.write_text("".join(line for line in lines if "/float32" not in line), encoding="utf-8")
    report = compare(tmp_path / "A", port(precision="float32"))
    assert report.verdict == Verdict.UNDERPOWERED
    assert "P3, P4 not run: float32 needs the reference's own scatter" in str(report)


def test_captures_of_tlx_with_other_stages_are_compared_in_those_that_both_have(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(pair[1], tmp_path / "B")
    file = tmp_path / "B" / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest["must"]["stages"].remove("P5")
    file.write_text(json.dumps(manifest), encoding="utf-8")
    report = compare(pair[0], tmp_path / "B")
    assert report.verdict == Verdict.EQUAL and stages(report)["P5"].figure is None
    assert "P5 not run: only the reference has it" in str(report)
