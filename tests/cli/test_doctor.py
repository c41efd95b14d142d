"""`tlx doctor` names each known way in which an installation is wrong, and the command that mends it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tlx_oneflow.doctor
import tlx_torch.doctor
from tlx_oneflow.gpus import Gpu

from support.backends import FRAMEWORKS, OWN, each_backend
from tlx.backend import doctor, registry
from tlx.backend.registry import Check, Entry
from tlx.console import Console
from tlx.errors import one_line

GOOD = {"oneflow": "0.9.0", "flowvision": "0.2.1", "numpy": "1.26.4", "protobuf": "3.20.3"}
OLD_ENOUGH = {"python": (3, 10), "machine": ("Linux", "x86_64")}


def only_problem(checks: list[Check]) -> Check:
    (problem,) = [check for check in checks if check.problem]
    return problem


@pytest.mark.parametrize(
    ("versions", "lacking", "problem", "fix"),
    [
        (GOOD | {"numpy": "2.1.0"}, (), "numpy 2.1.0 ends the process", "'numpy<2'"),
        (GOOD | {"protobuf": "5.28.0"}, (), "protobuf 5.28.0 breaks the import", "'protobuf<4'"),
        (GOOD | {"flowvision": "0.2.2"}, (), "flowvision 0.2.2 does not import", "flowvision==0.2.1"),
        (
            {k: GOOD[k] for k in ("oneflow", "numpy", "protobuf")},
            (),
            "flowvision is not installed",
            "flowvision==0.2.1",
        ),
        ({}, (), "oneflow is not installed", "--no-build-isolation oneflow==0.9.0 flowvision==0.2.1"),
        (GOOD, ("libcublas.so.11",), "libcublas.so.11 even without a GPU", "nvidia-cublas-cu11"),
    ],
)
def test_oneflow_diagnoses(versions: dict[str, str], lacking: tuple[str, ...], problem: str, fix: str) -> None:
    found = only_problem(tlx_oneflow.doctor.diagnose(versions, lacking, **OLD_ENOUGH))  # type: ignore[arg-type]
    assert problem in found.problem
    assert fix in found.fix


@pytest.mark.parametrize(
    ("python", "machine", "problem"),
    [
        ((3, 12), ("Linux", "x86_64"), "no wheel for Python 3.12"),
        ((3, 10), ("Darwin", "arm64"), "not for Darwin arm64"),
    ],
)
def test_oneflow_is_not_offered_where_it_cannot_be_installed(
    python: tuple[int, int], machine: tuple[str, str], problem: str
) -> None:
    found = only_problem(tlx_oneflow.doctor.diagnose({}, (), python, machine))
    assert problem in found.problem
    assert "pip install" not in found.fix


@pytest.mark.parametrize(
    ("capability", "usable"), [((5, 2), False), ((6, 0), True), ((8, 6), True), ((8, 9), True), ((9, 0), False)]
)
def test_oneflow_says_on_which_gpus_it_cannot_run_and_works_on_the_cpu(
    capability: tuple[int, int], usable: bool
) -> None:
    gpu = Gpu("NVIDIA X", capability)
    *_, check = tlx_oneflow.doctor.diagnose(GOOD, (), **OLD_ENOUGH, gpus=[gpu])  # type: ignore[arg-type]
    assert check.problem == ""
    assert check.found.startswith(f"NVIDIA X, sm_{capability[0]}{capability[1]}")
    assert ("code for sm_60 to sm_86 and no PTX" in check.found) is not usable


def test_nothing_is_wrong_with_the_tested_versions() -> None:
    checks = [
        *tlx_oneflow.doctor.diagnose(GOOD, (), **OLD_ENOUGH),  # type: ignore[arg-type]
        *tlx_torch.doctor.diagnose({"torch": "2.14.1", "torchvision": "0.29.2"}, ["numpy", "torch (>=2.14.0)"]),
    ]
    assert [check.problem for check in checks if check.problem] == []


@pytest.mark.parametrize(
    ("versions", "needs", "problem", "fix"),
    [
        ({}, [], "torch and torchvision not installed", "'torch>=2.4' 'torchvision>=0.19'"),
        ({"torch": "2.4.0"}, [], "torchvision not installed", "install 'torchvision>=0.19'"),
        (
            {"torch": "2.5.1", "torchvision": "0.19.0"},
            ["torch==2.4.0"],
            "needs torch ==2.4.0, found 2.5.1",
            "--upgrade",
        ),
        ({"torch": "2.9.0", "torchvision": "0.29.2"}, ["torch (>=2.14.0)"], "needs torch >=2.14.0", "--upgrade"),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, ["torch==2.13.0"], "CPU-only build", "numpy==1.26.4"),
    ],
)
def test_torch_diagnoses(versions: dict[str, str], needs: list[str], problem: str, fix: str) -> None:
    keep = {"numpy": "1.26.4"} if versions else {}
    found = only_problem(tlx_torch.doctor.diagnose(versions | keep, needs))
    assert problem in found.problem
    assert fix in found.fix


def shadow(folder: Path, **versions: str) -> dict[str, str]:
    """Put the metadata of other versions in front of what is installed, as a second install would."""
    for name, version in versions.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    search = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    others = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    return {**others, "PYTHONPATH": os.pathsep.join(search)}


def load_in_another_process(name: str, environment: dict[str, str]) -> str:
    code = "import sys; from tlx import registry; registry.load(sys.argv[1]); assert 0, 'it loaded'"
    command = [sys.executable, "-c", code, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1  # an uncaught exception, not a signal
    return one_line(done.stderr, width=1000)


needs_python_310 = pytest.mark.skipif(sys.version_info >= (3, 11), reason="OneFlow has no wheel for this Python")


@needs_python_310
@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"numpy": "2.1.0"}, "numpy 2.1.0 ends the process when oneflow is imported. Fix: "),
        ({"flowvision": "0.2.2"}, "flowvision 0.2.2 does not import with oneflow 0.9; 0.2.1 does. Fix: "),
        ({}, "oneflow loads libcudnn_cnn_infer.so.8 even without a GPU, and it is not there. Fix: "),
    ],
)
def test_a_wrong_environment_is_refused_before_oneflow_is_imported(
    tmp_path: Path, changed: dict[str, str], problem: str
) -> None:
    # With oneflow's metadata in this folder, that is where its libraries are looked for.
    assert problem in load_in_another_process("oneflow", shadow(tmp_path, **(GOOD | changed)))


@needs_python_310
def test_the_cuda_libraries_are_found_beside_oneflow_or_where_the_loader_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow(tmp_path, oneflow="0.9.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    wanted = [library for libraries in tlx_oneflow.doctor.LIBRARIES.values() for library in libraries]
    assert tlx_oneflow.doctor.missing_libraries() == wanted
    beside, elsewhere = tmp_path / "nvidia/cublas/lib", tmp_path / "elsewhere"
    for library in wanted:
        folder = beside if library.startswith("libcublas") else elsewhere
        folder.mkdir(parents=True, exist_ok=True)
        (folder / library).touch()
    assert tlx_oneflow.doctor.missing_libraries() == [name for name in wanted if not name.startswith("libcublas")]
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{elsewhere}")
    assert tlx_oneflow.doctor.missing_libraries() == []


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a backend with this body of `create` and return its entry."""

    def install(name: str, create: str) -> Entry:
        source = f"DISTRIBUTIONS = ('pytest',)\ncheck = list\ndef create():\n    {create}\n"
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        shadow(tmp_path, **{name: "1.0"})
        points = f"[{registry.GROUP}]\n{name} = {name}\n"
        (tmp_path / f"{name}-1.0.dist-info/entry_points.txt").write_text(points, encoding="utf-8")
        return next(entry for entry in registry.available() if entry.name == name)

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return install


@pytest.mark.parametrize(
    ("name", "create", "problem"),
    [
        ("aborting", "import os; os.abort()", "aborting ends the process by SIGABRT"),
        ("exiting", "import os; os._exit(3)", "exiting ends the process with status 3 (no message)"),
        ("raising", "raise RuntimeError('no AVX2')", "Backend 'raising' does not load: RuntimeError: no AVX2"),
        ("chatty", "print('{'); raise RuntimeError('no AVX2')", "Backend 'chatty' does not load: RuntimeError"),
        ("hanging", "import time; time.sleep(600)", "hanging did not answer within 2 s"),
    ],
)
def test_a_framework_that_ends_its_process_is_reported_with_a_fix(
    entry: Any, monkeypatch: pytest.MonkeyPatch, name: str, create: str, problem: str
) -> None:
    monkeypatch.setattr(doctor, "TIMEOUT", 2.0)
    report = doctor.examine(entry(name, create))
    assert report.state == "broken"
    assert report.problem is not None
    assert report.problem.problem.startswith(problem)
    assert f"--no-deps pytest=={metadata.version('pytest')}" in report.problem.fix


def test_the_fix_comes_from_the_error_whatever_its_text_holds(entry: Any) -> None:
    """The process that tries the backend reports its outcome as data, not as a sentence to be taken apart."""
    create = "from tlx.errors import BackendError; raise BackendError('a. Fix: is part of this', fix='make it so')"
    report = doctor.examine(entry("fixable", create))
    assert report.problem is not None
    assert (report.problem.problem, report.problem.fix) == ("a. Fix: is part of this", "make it so")


def test_a_backend_that_only_tests_use_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda entry: doctor.Report(entry, None))
    assert [report.entry.name for report in doctor.doctor()] == ["oneflow", "torch"]


@pytest.mark.parametrize("name", each_backend(*OWN))
def test_every_backend_really_works(name: str) -> None:
    report = doctor.examine(next(entry for entry in registry.available() if entry.name == name))
    assert report.problem is None
    assert report.state == "works"
    assert report.trial is not None and report.trial.found.startswith("passed")


def test_the_report_shows_state_problem_and_fix_unbroken() -> None:
    fix = "pip install " + " ".join(f"package{i}[extra]" for i in range(20))
    lines = {
        "good": Entry("good", "a", True, {"framework": "1.0"}, (Check("framework", "1.0"),)),
        "bad": Entry("bad", "b", True, {}, (Check("framework", "2.0", "framework 2.0 is too new", fix),)),
        "away": Entry("away", "c", False, {}, (Check("framework", "missing", "framework is not installed", fix),)),
    }
    reports = [doctor.Report(entry, None) for entry in lines.values()]
    assert [report.state for report in reports] == ["works", "broken", "not installed"]
    text = io.StringIO()
    doctor.print_report(Console(file=text, width=60), reports)
    shown = text.getvalue().splitlines()
    assert f"        fix: {fix}" in shown  # one line, so that it can be copied
    assert "  wrong framework 2.0 is too new" in shown
    assert [line for line in shown if line.startswith(("good", "bad", "away"))] == [
        "good works  framework 1.0",
        "bad broken  ",
        "away not installed  ",
    ]


@needs_python_310
@pytest.mark.needs(*FRAMEWORKS)
@pytest.mark.parametrize(("changed", "code"), [({}, 0), ({"numpy": "2.1.0"}, 1)])
def test_the_exit_code_says_whether_all_that_is_installed_works(
    tmp_path: Path, changed: dict[str, str], code: int
) -> None:
    command = [sys.executable, "-c", "import sys; from tlx.backend.doctor import main; sys.exit(main())"]
    environment = shadow(tmp_path, **changed)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout
    assert "\ntorch works  torch " in done.stdout
    assert f"\noneflow {'broken' if code else 'works'}  oneflow 0.9.0" in done.stdout
