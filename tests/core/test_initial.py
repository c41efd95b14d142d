"""What a run starts from: drawn values, and weights from a file or a server."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from support.resnet import ARCH, SPECS
from tlx.backend import ParamSpec, Role
from tlx.errors import WeightsError
from tlx.models import initial_values as initial
from tlx.models.initial_values import initial_values
from tlx.models.weights import write_safetensors
from tlx.models.zoo import Architecture


def test_draws_depend_on_the_seed_and_not_on_the_dtype() -> None:
    first, again, other = (initial_values(SPECS, ARCH, "none", seed)[0] for seed in (0, 0, 1))
    double = initial_values([replace(spec, dtype="float64") for spec in SPECS], ARCH, "none", 0)[0]
    assert list(first) == [spec.name for spec in SPECS]
    for name, array in first.items():
        assert array.dtype == np.float32 and np.array_equal(array, again[name])
        assert double[name].dtype == np.float64 and np.array_equal(array, double[name])
    assert not np.array_equal(first["fc.weight"], other["fc.weight"])
    assert not np.array_equal(first["conv1.weight"], first["layer1.0.conv1.weight"])


def test_what_has_no_customary_start_keeps_the_value_that_an_own_module_brought() -> None:
    def named(name: str, *shape: int, role: Role = "weight") -> ParamSpec:
        return ParamSpec(name, shape, "float32", role, name.rpartition(".")[0])

    kept = [named("token", 1, 4), named("act.weight", 4), named("wn.bias", 4, role="bias"), named("wn.weight_v", 4, 2)]
    kept.append(named("scale", role="statistic"))
    drawn = [
        named("layer.weight", 4, 2),
        named("layer.bias", 4, role="bias"),
        named("bn.running_mean", 4, role="statistic"),
    ]
    specs = [*kept, *drawn]
    arch = Architecture("own", "fc", tuple((s.module or "root", (s.module,)) for s in specs), "")
    own = {spec.name: np.full(spec.shape, 7, np.float32) for spec in specs}
    arrays = initial_values(specs, arch, "none", 0, own=own)[0]
    assert {name for name, array in arrays.items() if np.all(array == 7)} == {spec.name for spec in kept}


def test_draws_have_the_customary_bounds() -> None:
    arrays = initial_values(SPECS, ARCH, "none", 0)[0]
    assert np.all(arrays["bn1.weight"] == 1) and np.all(arrays["bn1.running_var"] == 1)
    assert not arrays["bn1.bias"].any() and not arrays["bn1.running_mean"].any()
    he, linear = np.sqrt(6 / (4 * 9)), 1 / np.sqrt(4)
    assert 0.8 * he < np.abs(arrays["conv1.weight"]).max() <= he
    for name in ("fc.weight", "fc.bias"):
        assert 0.5 * linear < np.abs(arrays[name]).max() <= linear


def test_a_checkpoint_fills_the_backbone_and_never_the_head(tmp_path: Path) -> None:
    source = initial_values(SPECS, ARCH, "none", 5)[0]
    write_safetensors(tmp_path / "w.safetensors", source)
    arrays = initial_values(SPECS, ARCH, str(tmp_path / "w.safetensors"), 0)[0]
    fresh = initial_values(SPECS, ARCH, "none", 0)[0]
    for name, array in arrays.items():
        assert np.array_equal(array, (fresh if name.startswith("fc.") else source)[name])


@pytest.mark.parametrize("right", [True, False])
def test_imagenet_weights_come_from_a_server_with_their_hash_checked(
    right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_safetensors(tmp_path / "w.safetensors", initial_values(SPECS, ARCH, "none", 5)[0])
    content = (tmp_path / "w.safetensors").read_bytes()
    digits = hashlib.sha256(content).hexdigest()[:8] if right else "0" * 8
    (tmp_path / f"mini-{digits}.pth").write_bytes(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(initial, "IMAGENET_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("TLX_CACHE", str(tmp_path / "cache"))
    arch = replace(ARCH, imagenet=f"mini-{digits}.pth")
    try:
        if right:
            path = initial.imagenet_file(arch, progress=False)
            assert path.read_bytes() == content and path.is_relative_to(tmp_path / "cache")
        else:
            with pytest.raises(WeightsError, match=r"expected SHA-256 00000000.*--weights FILE"):
                initial.imagenet_file(arch, progress=False)
            assert not list((tmp_path / "cache").rglob("*.pth*"))
    finally:
        server.shutdown()
        server.server_close()


def test_weights_that_cannot_be_had_say_what_to_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial, "IMAGENET_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("TLX_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as error:
        initial_values(SPECS, ARCH, "imagenet", 0)
    said = str(error.value)
    assert "resnet18-f37072fd.pth cannot be reached" in said and "--weights FILE" in said and "\n" not in said
    with pytest.raises(WeightsError, match="tiny has no published ImageNet weights"):
        initial_values(SPECS, replace(ARCH, name="tiny", imagenet=""), "imagenet", 0)
