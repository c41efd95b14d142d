"""Runs taken elsewhere: the printed code loads the file in a process without tlx, and computes the run's own logits.

The photo is a PNG, which is decoded in one way only; it is resized by Pillow, as tlx itself does.
"""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

import tlx
from support.backends import FRAMEWORKS, skip_module_without
from support.exported import TOLERANCE, classified, distance, own_logits, values
from support.tiny_zoo import NAMES as TINY
from support.tiny_zoo import tiny_models
from tlx.backend import Preprocess, registry
from tlx.backend.export import Exporter, Plain
from tlx.backend.preprocess import Interpolation
from tlx.data.framing import Framing
from tlx.data.view import View
from tlx.errors import BackendUnavailable, TlxError
from tlx.models.published import PARAMETERS
from tlx.models.zoo import architecture
from tlx.runs.export_code import model_code

skip_module_without(*FRAMEWORKS)

import oneflow as flow
import torch

FORMATS = ("model.pth", "model.safetensors", "folder")
SMALL: dict[str, Any] = {
    **{"weights": "none", "strategy": "full", "lr": 0.01, "epochs": 1, "batch_size": 10, "val_fraction": 0},
    **{"precision": "float32", "augment": "none", "quiet": True},
}


def photos(folder: Path, classes: tuple[str, ...] = ("ants", "bees")) -> Path:
    """A few photos of noise in two classes, and one to classify."""
    draw = np.random.Generator(np.random.Philox(3))
    for part, count in (("train", 10), ("test", 5)):
        for name in classes:
            (folder / "photos" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / part / name / f"{i}.png")
    coarse = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    coarse.resize((83, 61)).save(folder / "photo.png")
    (folder / "photo.png").rename(folder / "photo.jpg")  # its content says what it is
    return folder / "photos"


def exported(run: str | Path, folder: Path, names: tuple[str, ...] = FORMATS, **objects: Any) -> dict[str, str]:
    """Export a run to each of these names in a folder; return the code that each printed."""
    return {name: tlx.export(run, folder / name, **objects).code for name in names}


def check(run: str | Path, folder: Path, codes: dict[str, str], **objects: Any) -> None:
    """Each file classifies the photo as the run does."""
    expected = own_logits(run, folder / "photo.jpg", **objects)
    for (classes, logits), name in zip(classified(codes.values(), folder), codes, strict=True):
        assert distance(expected, logits) <= TOLERANCE, name
        assert len(classes) == expected.shape[1]


def run_on(backend: str, model: Any, folder: Path, **fields: Any) -> str:
    out = str(folder / f"run-{backend}")
    tlx.run(**{**SMALL, "backend": backend, "model": model, "data": str(photos(folder)), "out": out, **fields})
    return out


@pytest.mark.parametrize("backend", ["oneflow", pytest.param("torch", marks=pytest.mark.thorough)])
def test_a_run_of_either_backend_is_read_by_both_frameworks(backend: str, tmp_path: Path) -> None:
    run = run_on(backend, "shufflenet_v2_x0_5", tmp_path, image_size=32, hidden=(8,), dropout=0.25)
    script = "import sys; sys.modules.update(torch=None, oneflow=None); import tlx; tlx.export(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", script, run, str(tmp_path / "alone.safetensors")], check=True)
    codes = exported(run, tmp_path)
    assert (tmp_path / "alone.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert "import flowvision" in codes["folder"] and "import torchvision" in codes["model.pth"]
    check(run, tmp_path, codes)
    stored, written = values(Path(run) / "model.safetensors"), values(tmp_path / "model.safetensors")
    assert {*stored} == {*written}


def test_each_file_of_a_run_with_several_labels_answers_with_those_that_the_run_predicts(tmp_path: Path) -> None:
    files = sorted(photos(tmp_path).rglob("*.png"))
    rows = [f"{file.relative_to(tmp_path)},{('a', 'b', 'a|b', '')[i % 4]}" for i, file in enumerate(files)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    job = {**SMALL, "backend": "torch", "model": "shufflenet_v2_x0_5", "image_size": 32, "val_fraction": 0.25}
    run = tmp_path / "run"
    tlx.run(**job, data=str(tmp_path / "list.csv"), label_separator="|", out=str(run))
    predicted: Any = tlx.predict(run, tmp_path / "photo.jpg", quiet=True)[0]
    for name, code in exported(run, tmp_path, (*FORMATS, "model.onnx")).items():
        command = [sys.executable, "-c", f"import sys; sys.modules['tlx'] = None\n{code}"]
        said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        assert sorted(ast.literal_eval(said.splitlines()[-1])) == sorted(predicted["labels"]), name


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("model", "size"),
    [
        *(("resnet18", 32), ("mobilenet_v3_small", 64), ("vit_b_32", 64), ("convnext_tiny", 64), ("swin_t", 224)),
        *(("regnet_y_400mf", 64), ("inception_v3", 96), ("googlenet", 64), ("densenet121", 64), ("mnasnet0_5", 64)),
        *(("efficientnet_b0", 64), ("shufflenet_v2_x0_5", 64), ("vgg11_bn", 32), ("resnext101_64x4d", 32)),
    ],
)
def test_each_family_is_read_by_both_frameworks(model: str, size: int, tmp_path: Path) -> None:
    run = run_on("torch", model, tmp_path, image_size=size)
    check(run, tmp_path, exported(run, tmp_path))
    report = tlx.export(run, tmp_path / "model.onnx")
    assert "10 images of its test part" in report.check
    check(run, tmp_path, {"model.onnx": report.code})


@pytest.mark.parametrize("name", TINY)
def test_transformers_get_the_names_that_flowvisions_own_models_have(name: str) -> None:
    from flowvision import models

    own = {
        "tiny_vit": lambda: models.vision_transformer.VisionTransformer(32, 16, embed_dim=32, depth=3, num_heads=4),
        "tiny_swin": lambda: models.swin_transformer.SwinTransformer(
            embed_dim=16, depths=(2, 2, 2), num_heads=(2, 4, 8)
        ),
        "tiny_convnext": lambda: models.convnext.ConvNeXt(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1)),
    }[name]()
    family = {"tiny_vit": "vit_b_16", "tiny_swin": "swin_t", "tiny_convnext": "convnext_tiny"}[name]
    exporter: Any = registry.exporter("oneflow")
    with tiny_models():
        module = cast(Any, registry.load("oneflow")).construct(name, **dict(architecture(name).options_at(32)))
    arrays = {path: tensor.numpy() for path, tensor in module.state_dict().items()}
    exporter._constants = lambda plain: {path: tensor.numpy() for path, tensor in own.named_buffers()}
    plain = Plain(family, ("a",), architecture(family).head, 32)
    renamed = exporter.renamed(plain, arrays)
    shapes = {path: tuple(tensor.shape) for path, tensor in own.state_dict().items()}
    left = {path for path in renamed if path.endswith("relative_position_index")}
    assert {path: array.shape for path, array in renamed.items() if path not in left} == {
        path: shape for path, shape in shapes.items() if path not in left
    }


class Net(torch.nn.Module):
    """Tied layers, a constant that is not saved, dropout, and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout(0.1))
        self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8)
        self.third.weight = self.second.weight
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.fc = nn.Linear(8, 7)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.third(self.second(self.first(x).mean((2, 3)) * self.scale).relu())
        return {"features": features, "logits": self.fc(features)}


@pytest.mark.thorough
@pytest.mark.parametrize("model", ["timm:test_vit", "timm:test_convnext", "timm:deit_tiny_distilled_patch16_224"])
def test_models_of_timm_are_read_by_timm_and_by_onnx_runtime(model: str, tmp_path: Path) -> None:
    run = run_on("torch", model, tmp_path, image_size=64, hidden=(6,))
    check(run, tmp_path, exported(run, tmp_path, ("model.pth", "model.safetensors", "model.onnx")))


def test_modules_of_ones_own_and_of_timm_are_state_dicts_that_these_take(tmp_path: Path) -> None:
    net, folders = Net(), {name: tmp_path / name for name in ("own", "timm")}
    run = run_on("torch", net, folders["own"], head="fc", image_size=16)
    of_timm = run_on("torch", "timm:test_vit", folders["timm"], image_size=64, strategy="lora", lr=0.1)
    codes = exported(run, folders["own"], ("model.pth", "model.safetensors", "model.onnx"), model=net)
    assert {*values(folders["own"] / "model.safetensors")} == {*net.state_dict()}
    source = f"from __future__ import annotations\nimport torch\n\n\n{inspect.getsource(Net)}"
    codes = {name: f"{source}\n{code}" for name, code in codes.items()}
    more = exported(of_timm, folders["timm"], ("model.pth",))
    results = classified([*codes.values(), *more.values()], folders["own"])
    photo = folders["own"] / "photo.jpg"  # the same in both
    expected = [own_logits(run, photo, model=net)] * len(codes) + [own_logits(of_timm, photo)] * len(more)
    for (classes, logits), own in zip(results, expected, strict=True):
        assert classes == ["ants", "bees"] and distance(own, logits) <= TOLERANCE
    with pytest.raises(TlxError, match=r"Net is a module of your own, which exists on torch only, .*Fix: export \.pth"):
        tlx.export(run, tmp_path / "folder", model=net)
    with pytest.raises(TlxError, match="timm:test_vit exists on torch only, and oneflow cannot load it"):
        tlx.export(of_timm, tmp_path / "folder")


@pytest.mark.parametrize("enlarges", [True, False])
@pytest.mark.parametrize("aspect", ["crop", "squash", "letterbox"])
def test_the_printed_code_sees_the_pixels_that_tlx_sees(aspect: Any, enlarges: bool, tmp_path: Path) -> None:
    size, draw = 24, np.random.Generator(np.random.Philox(5))
    values = Preprocess(size, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    plain = Plain("identity", tuple(map(str, range(3 * size * size))), "fc", size)
    photos = [draw.integers(0, 256, shape, dtype=np.uint8) for shape in ((37, 53, 3), (61, 40, 3), (15, 9, 3))]
    refused = 0
    kinds: tuple[Interpolation, ...] = ("bilinear", "bicubic")
    for fraction, smooth, kind in product((1.0, 0.8), (True, False), kinds):
        pre = replace(values, interpolation=kind)
        framing = Framing.from_preprocess(pre, fraction, aspect, smooth, enlarges)
        for number, pixels in enumerate(photos):
            Image.fromarray(pixels).save(tmp_path / "photo.png")
            try:
                code = model_code(cast(Exporter, Identity()), plain, framing, pre, "")
            except TlxError as error:
                assert "resizes it without antialias" in str(error)
                refused += 1
                continue
            names: dict[str, Any] = {}
            exec(code.replace('"photo.jpg"', repr(str(tmp_path / "photo.png"))), names)
            seen = framing.pixels(partial(see, Image.fromarray(pixels)))
            expected = pre.apply(seen[None], np.float32).reshape(1, -1)
            actual = names["logits"].numpy()
            # Without antialias a pixel that lies half-way is rounded up on one side and down on the other.
            off = np.abs(actual - expected).max() * 255 * 0.2
            assert off < (0.01 if smooth else 1.3), (fraction, smooth, kind, number)
            assert np.mean(np.abs(actual - expected) > 1e-3) < 0.05, (fraction, smooth, kind, number)
    assert refused == (6 if aspect == "letterbox" and enlarges else 0)


def see(image: Image.Image, view: View | None) -> Image.Image:
    return image if view is None else view.of(image)


class Identity:
    """Code whose logits are the pixels themselves."""

    alias = "torch"

    def imports(self, plain: Plain) -> list[str]:
        return ["import torch"]

    def construct(self, plain: Plain) -> list[str]:
        return ["model = torch.nn.Flatten()"]

    def load(self, plain: Plain, path: str) -> tuple[list[str], list[str], str]:
        return [], [], "{}"

    def call(self, plain: Plain, inputs: str) -> str:
        return f"model({inputs})"


class FlowNet(flow.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = flow.nn.Conv2d(3, 8, 3, 2), flow.nn.Linear(8, 2)

    def forward(self, x: Any) -> Any:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def test_oneflows_own_module_goes_to_oneflow_and_not_to_onnx(tmp_path: Path) -> None:
    net = FlowNet()
    run = run_on("oneflow", net, tmp_path, head="fc", image_size=16, strategy="lora", lora_targets=("conv",))
    codes = exported(run, tmp_path, ("folder", "model.safetensors"), model=net)
    source = f"from __future__ import annotations\nimport oneflow as flow\n\n\n{inspect.getsource(FlowNet)}"
    check(run, tmp_path, {name: f"{source}\n{code}" for name, code in codes.items()}, model=net)
    for name, why in (("model.onnx", "ONNX is made from PyTorch's modules"), ("model.pth", "torch cannot load it")):
        with pytest.raises(TlxError, match=f"FlowNet is a module of your own, which exists on oneflow only, and {why}"):
            tlx.export(run, tmp_path / name, model=net)
        assert not (tmp_path / name).exists()


def test_onnx_of_a_run_on_oneflow_is_compared_with_oneflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setitem(PARAMETERS, "tiny_vit", 1)
    with tiny_models():
        run = run_on("oneflow", "tiny_vit", tmp_path, image_size=32, strategy="probe", lr=None, val_fraction=0.2)
        report = tlx.export(run, tmp_path / "model.onnx")
        assert "the run on oneflow differ by" in report.check and "10 images of its test part" in report.check
        check(run, tmp_path, {"model.onnx": report.code})
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == ["ants", "bees"] and "resized to 32 x 32, bilinear" in facts["resizing"]
    images = np.random.Generator(np.random.Philox(0)).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    together = session.run(None, {"images": images})
    assert [x.name for x in session.get_outputs()] == ["logits", "probabilities"]
    assert all(output.dtype == np.float32 and output.shape == (5, 2) for output in together)
    alone = session.run(None, {"images": images[:1]})
    assert np.allclose(alone[0], together[0][:1], rtol=1e-4) and np.allclose(together[1].sum(1), 1, atol=1e-6)


def test_onnx_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlx_torch.onnx_file import Served

    run = run_on("torch", Net(), tmp_path, head="fc", image_size=16)
    (tmp_path / "model.onnx").write_bytes(b"old")
    native = Served.forward
    shutil.rmtree(tmp_path / "photos")
    monkeypatch.setattr(Served, "forward", lambda self, images: native(self, images + 1))
    with pytest.raises(TlxError, match=r"differ by .* of the largest logit, on 17 images of noise \(.*\); at most"):
        tlx.export(run, tmp_path / "model.onnx", model=Net())
    assert (tmp_path / "model.onnx").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "photo.jpg", "run-torch"]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(BackendUnavailable, match=r'onnxscript is not installed\. Fix: pip install "tlx\[onnx\]"'):
        tlx.export(run, tmp_path / "model.onnx", model=Net())
