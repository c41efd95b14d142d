"""Backends are found by entry point, listed even when broken, and loaded only when they follow the protocol."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tlx
from tlx.backend import Batch, registry
from tlx.conformance.loopback import Loopback
from tlx.errors import BackendError, RecipeError, one_line
from tlx.models import ARCHITECTURES, Architecture, architectures, register


class Renamed(Loopback):
    def evaluate(self, model: Any, data: Any) -> Any:  # the protocol says `batch`
        return super().evaluate(model, data)


class WithoutDefault(Loopback):
    def backward(self, model: Any, batch: Any, scale: float) -> Any:  # type: ignore[override]
        return super().backward(model, batch, scale)


class FurtherArgument(Loopback):
    def put(self, model: Any, batch: Batch, stream: Any) -> Any:  # type: ignore[override]
        return super().put(model, batch)


class FurtherOptional(Loopback):
    def put(self, model: Any, batch: Batch, stream: Any = None) -> Any:
        return super().put(model, batch)


class WithoutFetch(Loopback):
    fetch = None  # what is tested


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a real package that offers a backend: a module, and metadata with its entry point."""

    def install(name: str, source: str, module: str = "") -> None:
        module = module or f"offered_{name}"
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {module}\n", encoding="utf-8")

    monkeypatch.syspath_prepend(str(tmp_path))
    return install


def entry(name: str) -> registry.Entry:
    return next(entry for entry in registry.available() if entry.name == name)


def test_listing_imports_no_framework() -> None:
    code = (
        "import sys; from tlx import registry; names = [e.name for e in registry.available()];"
        "print(*names); sys.exit(' '.join({'torch', 'torchvision', 'oneflow', 'flowvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["loopback", "oneflow", "torch"]
    assert done.stderr.strip() == ""


def test_loading_gives_one_instance_that_follows_the_protocol() -> None:
    assert registry.load("loopback") is registry.load("loopback")
    assert registry.differences(registry.load("loopback")) == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [("onefow", "Did you mean 'oneflow'"), ("Torch", "Did you mean 'torch'"), ("jax", "Known: oneflow, torch")],
)
def test_an_unknown_backend_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(BackendError, match=f"^Unknown backend '{name}'.*{hint}"):
        registry.load(name)


@pytest.mark.parametrize(
    ("backend", "named"),
    [
        (Renamed, r"evaluate\(model, data\) should be evaluate\(model, batch\)"),
        (WithoutDefault, r"backward\(.*\) should be backward\(model, batch, scale=1.0\)"),
        (FurtherArgument, r"put\(model, batch, stream\) should be put\(model, batch\)"),
        (WithoutFetch, "fetch is missing"),
    ],
)
def test_a_method_that_departs_from_the_protocol_is_named(offer: Any, backend: type, named: str) -> None:
    assert len(registry.differences(backend())) == 1
    name = backend.__name__.lower()
    offer(name, f"from {__name__} import {backend.__name__} as create\ncheck = list\n")
    with pytest.raises(BackendError, match=f"Backend '{name}' does not follow .*: {named}. Fix: upgrade"):
        registry.load(name)


def test_a_further_optional_argument_is_allowed() -> None:
    assert registry.differences(FurtherOptional()) == []


def test_everything_that_is_missing_is_listed() -> None:
    assert {"name: expected a string", "build is missing", "fetch is missing"} <= set(registry.differences(object()))


@pytest.mark.parametrize(
    ("name", "source", "cause"),
    [
        ("absent", "import a_package_that_is_absent", "No module named 'a_package_that_is_absent'"),
        ("mistyped", "def check(: pass", "SyntaxError"),
        ("uncheckable", "def create(): pass", "has no attribute 'check'"),
    ],
)
def test_a_broken_module_is_listed_with_its_reason_and_refused(offer: Any, name: str, source: str, cause: str) -> None:
    offer(name, source)
    assert entry(name).installed
    problem = entry(name).problem
    assert problem is not None and cause in problem.problem
    with pytest.raises(BackendError, match=f"Backend '{name}': .*{cause}.* Fix: ") as raised:
        registry.load(name)
    assert "\n" not in str(raised.value)


def test_a_backend_that_fails_while_it_loads_gives_one_line_and_the_command_that_fixes_it(offer: Any) -> None:
    create = "def create(): raise OSError('libgomp.so.1: \\n  cannot open')"
    offer("halfway", f"DISTRIBUTIONS = ('pytest',)\ncheck = list\n{create}\n")
    with pytest.raises(BackendError, match=r"OSError: libgomp.so.1:.* Fix: .*install.*--no-deps.*pytest==") as raised:
        registry.load("halfway")
    assert "\n" not in str(raised.value)


def test_a_framework_that_is_not_installed_does_not_break_the_listing(offer: Any) -> None:
    offer("later", "DISTRIBUTIONS = ('a-package-that-is-absent',)\ncheck = list\n")
    assert not entry("later").installed
    assert entry("later").versions == {}


def test_what_only_tests_use_is_hidden_and_can_be_loaded(offer: Any) -> None:
    offer("secret", "HIDDEN = True\ncheck = list\n")
    offer("open", "check = list\n")
    assert {e.name for e in registry.available() if e.hidden} == {"loopback", "secret"}
    assert registry.load("loopback").name == "loopback"


WITH_A_MODEL = """
from dataclasses import replace

import numpy as np
from tlx.backend.registry import Check
from tlx.conformance import loopback
from tlx.models import Architecture, register

register(Architecture("their-mlp", "fc", (("fc1", ("fc1", "bn1")),), ""))

def check():
    return [Check("numpy", np.__version__)]

class Theirs(loopback.Loopback):
    name = "theirs"

    def capabilities(self):
        return replace(super().capabilities(), models=("tiny-mlp", "their-mlp"))

    def build(self, spec, device, precision):
        return super().build(replace(spec, name="tiny-mlp"), device, precision)

create = Theirs
"""


def test_a_backend_from_outside_brings_a_model_from_outside(offer: Any, tmp_path: Path) -> None:
    """The core is not touched: one light module with an entry point, which a recipe and a listing find by name."""
    offer("theirs", WITH_A_MODEL)
    data = {"data": "digits", "limit_train": 40, "limit_test": 20, "val_fraction": 0, "image_size": 8}
    model = {"backend": "theirs", "model": "their-mlp", "strategy": "scratch", "batch_size": 20, "epochs": 1}
    try:
        assert tlx.run({**data, **model}, out=str(tmp_path / "run"), quiet=True).epochs_run == 1
        assert "their-mlp" in [arch.name for arch in architectures()]
        with pytest.raises(RecipeError, match="another model 'their-mlp'"):
            register(Architecture("their-mlp", "head", (), ""))
    finally:
        del ARCHITECTURES["their-mlp"]


def test_two_packages_for_one_name_are_refused(offer: Any) -> None:
    offer("twice", "check = list", module="first_twice")
    offer("twice", "check = list", module="second_twice")
    problem = entry("twice").problem
    assert problem is not None and "first_twice and second_twice" in problem.problem
    with pytest.raises(BackendError, match="several packages"):
        registry.load("twice")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Traceback (most recent call last):\n  File x\nImportError: libcudnn.so.8\n", "ImportError: libcudnn.so.8"),
        ("\x1b[1;31mRuntimeError\x1b[0m: shapes differ\n  File oneflow/a.cpp\n", "RuntimeError: shapes differ"),
        ("Check failed: x > 0\n", "Check failed: x > 0"),
        ("(9 vs 7) \n  File a.cpp, line 3\n    f(x)\nError Type: oneflow.ErrorProto.check_failed_error", "(9 vs 7)"),
        ("just words", "just words"),
        ("", "no message"),
        ("ValueError: " + "x" * 1000, "ValueError: " + "x" * 287 + "…"),
    ],
)
def test_the_text_of_an_error_becomes_one_telling_line(text: str, line: str) -> None:
    assert one_line(text) == line


def test_requirements_come_from_tlxs_own_extras() -> None:
    assert registry.requirement("numpy", extra="oneflow") == "numpy<2"
    assert registry.requirement("oneflow", extra="oneflow") == "oneflow==0.9.0"
    with pytest.raises(KeyError, match="jax"):
        registry.requirement("jax", extra="torch")


def test_third_parties_still_import_the_registry_from_its_first_place() -> None:
    from tlx import registry as first_place

    assert all(getattr(first_place, name) is getattr(registry, name) for name in first_place.__all__)
