"""What a model takes from a checkpoint that others wrote, and what it says about the rest."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import tlx
from tlx.backend import Array, ParamSpec
from tlx.errors import RunDamaged, TlxError, WeightsError
from tlx.models.initial_values import initial_values
from tlx.models.matching import match_backbone
from tlx.models.weights import first_not_finite, read_checkpoint, read_weights, write_safetensors
from tlx.models.zoo import ARCHITECTURES, Architecture
from tlx.training.metrics import not_finite

ARCH = ARCHITECTURES["resnet18"]


def spec(name: str, *shape: int, dtype: str = "float32") -> ParamSpec:
    return ParamSpec(name, shape, dtype, "weight", name.rpartition(".")[0])


SPECS = [
    spec("conv1.weight", 4, 3),
    spec("bn1.running_mean", 4),
    spec("bn1.num_batches_tracked", dtype="int64"),
    spec("layer1.0.conv1.weight", 4, 4),
    spec("layer2.0.conv1.weight", 4, 4),
    spec("fc.weight", 2, 4),
    spec("fc.bias", 2),
]
BACKBONE = [s.name for s in SPECS if not s.name.startswith("fc.")]


def backbone(seed: int = 0) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {s.name: np.asarray(draw.standard_normal(s.shape) * 3).astype(s.dtype) for s in SPECS if s.name in BACKBONE}


def below(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


PREFIXES = (
    *("", "module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "0.", "module._orig_mod."),
    *("_orig_mod.module.", "model.backbone.", "module.encoder.0.", "student.backbone.", "image_model.trunk."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_the_backbone_is_taken_off_and_said(prefix: str) -> None:
    arrays, notes = match_backbone(below(prefix, backbone()), SPECS, ARCH)
    assert list(arrays) == BACKBONE
    for name, array in backbone().items():
        np.testing.assert_array_equal(arrays[name], array)
    assert notes == ([f"prefix {prefix!r} is taken off {len(BACKBONE)} names"] if prefix else [])


def test_what_does_not_share_the_prefix_is_counted_and_named() -> None:
    beside = {"criterion.weight": np.ones(2, "f4"), "ema.decay": np.ones(()), "model.fc.weight": np.ones((9, 4), "f4")}
    arrays, notes = match_backbone({**below("model.", backbone()), **beside}, SPECS, ARCH)
    assert list(arrays) == BACKBONE
    assert notes == [
        f"prefix 'model.' is taken off {len(BACKBONE) + 1} names",
        "2 entries are not of the backbone and are left aside: criterion.weight, ema.decay",
        "the head 'fc' of 9 outputs is left aside",
    ]


PAIRS = (("model.", "ema_model."), ("teacher.", "student."), ("", "ema."))


@pytest.mark.parametrize(
    ("first", "second", "turned"),
    [
        *((*pair, turned) for pair in PAIRS for turned in (False, True)),
        ("module.encoder_q.", "module.encoder_k.", False),  # unknown ones are taken in the order of the file
    ],
)
def test_of_two_backbones_one_is_taken_by_a_fixed_order_and_the_other_named(
    first: str, second: str, turned: bool
) -> None:
    both = [below(first, backbone(1)), below(second, backbone(2))]
    arrays, notes = match_backbone({**both[turned], **both[not turned]}, SPECS, ARCH)
    np.testing.assert_array_equal(arrays["conv1.weight"], backbone(1)["conv1.weight"])
    assert f"the backbone lies there more than once; beside the one taken, under {second!r}" in notes


@pytest.mark.parametrize("head", ["fc.0", "classifier.1", "head", "last_linear", "fc"])
def test_a_head_of_another_name_is_left_aside_and_said(head: str) -> None:
    given = {**backbone(), f"{head}.weight": np.ones((1000, 4), "f4"), f"{head}.bias": np.ones(1000, "f4")}
    arrays, notes = match_backbone(given, SPECS, ARCH)
    assert list(arrays) == BACKBONE
    own = head.startswith("fc")
    assert notes == [
        "the head 'fc' of 1000 outputs is left aside"
        if own
        else f"2 entries are not of the backbone and are left aside: {head}.weight, {head}.bias"
    ]


def test_a_deeper_network_of_the_family_does_not_pass_for_the_model() -> None:
    deeper = {**backbone(), "layer1.1.conv1.weight": np.ones((4, 4), "f4")}
    with pytest.raises(WeightsError, match=r"1 not in the model: layer1\.1\.conv1\.weight"):
        match_backbone(deeper, SPECS, ARCH)
    numbered = Architecture("tiny", "classifier.6", (("block1", ("features.0", "features.2")),), "")
    specs = [spec("features.0.weight", 2), spec("features.2.weight", 2), spec("classifier.6.weight", 2)]
    one = np.ones(2, "f4")
    arrays = {"features.0.weight": one, "features.2.weight": one}
    assert list(match_backbone({**arrays, "classifier.0.weight": one}, specs, numbered)[0]) == list(arrays)
    with pytest.raises(WeightsError, match=r"1 not in the model: features\.5\.weight"):
        match_backbone({**arrays, "features.5.weight": one}, specs, numbered)


def test_missing_names_come_with_the_nearest_of_the_file() -> None:
    renamed = {re.sub(r"^layer(\d)\.0\.conv1", r"layer\1.0.conv_1", name): a for name, a in backbone().items()}
    with pytest.raises(WeightsError) as error:
        match_backbone(renamed, SPECS, ARCH)
    said = str(error.value)
    assert "2 missing: layer1.0.conv1.weight (nearest in the file: layer1.0.conv_1.weight), layer2.0.conv1" in said
    assert "2 not in the model: layer1.0.conv_1.weight, layer2.0.conv_1.weight" in said and "\n" not in said


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(value: float) -> None:
    arrays = backbone()
    arrays["layer2.0.conv1.weight"][1, 2] = value
    with pytest.raises(WeightsError, match=r"not finite .* in 1 entries: layer2\.0\.conv1\.weight\. Fix: "):
        match_backbone(arrays, SPECS, ARCH)
    aside = {**backbone(), "fc.weight": np.full((9, 4), value, "f4")}
    assert list(match_backbone(aside, SPECS, ARCH)[0]) == BACKBONE  # what is not taken does no harm


def test_a_double_that_single_precision_cannot_hold_is_refused_too() -> None:
    arrays = backbone()
    arrays["conv1.weight"] = np.full((4, 3), 1e300)
    with pytest.raises(WeightsError, match=r"not finite .*conv1\.weight"):
        match_backbone(arrays, SPECS, ARCH)


def test_half_precision_is_cast_exactly_and_whole_numbers_are_no_weights() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    taken, _ = match_backbone({"conv1.weight": finite}, [spec("conv1.weight", finite.size)], ARCH)
    assert taken["conv1.weight"].dtype == np.float32
    np.testing.assert_array_equal(taken["conv1.weight"].astype(np.float64), finite.astype(np.float64))
    with pytest.raises(WeightsError, match=r"conv1\.weight \[4, 3\] int8 \(model: \[4, 3\] float32\)"):
        match_backbone({**backbone(), "conv1.weight": np.ones((4, 3), "i1")}, SPECS, ARCH)


# Files -----------------------------------------------------------------------------------------------------------


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pth"), io.BytesIO(b""))
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.ones(3))
    return buffer.getvalue()


FOREIGN: dict[str, tuple[str, bytes, str]] = {
    "gzip": ("w.pth.gz", gzip.compress(b"x"), "compressed by gzip. Fix: unpack it"),
    "bzip2": ("w.pth", bz2.compress(b"x"), "compressed by bzip2"),
    "xz": ("w", lzma.compress(b"x"), "compressed by xz"),
    "tar": ("w.pth.tar", tarred(), "a tar archive. Fix: unpack it"),
    "onnx": ("w.onnx", b"\x08\x08\x12\x07pytorch", "an ONNX model. Fix: load it where it was made"),
    "onnx without a suffix": ("w", b"\x08\x0a\x12\x07pytorch", "an ONNX model"),
    "keras h5": ("w.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it. Fix: "),
    "keras": ("w.keras", zipped("config.json", "model.weights.h5"), "a model of Keras or TensorFlow"),
    "tensorflow": ("model.ckpt.data-00000-of-00001", b"\x01\x02", "a file of TensorFlow"),
    "tensorflow lite": ("w.tflite", b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
    "npz": ("w.npz", npz(), "an .npz file of NumPy. Fix: "),
    "npy": ("w.npy", b"\x93NUMPY\x01\0", "one array of NumPy"),
    "lfs": ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS.* `git lfs pull`"),
    "web page": ("w.pth", b"\n<!DOCTYPE html><html>", "a web page, not weights. Fix: download"),
    "a zip of weights": ("w.zip", zipped("best.pth"), r"a zip archive of best\.pth, .* Fix: unpack it"),
    "torchscript": ("w.pt", zipped("m/data.pkl", "m/constants.pkl", "m/code/x.py"), "a TorchScript archive"),
    "plain pickle": ("w.pkl", b"\x80\x04}\x94.", "a pickle that torch.save did not write. Fix: save"),
    "json": ("w.json", b'{"a": 1}', "JSON, but no index of weights"),
    "text": ("w", b"hello", "unknown kind of weights"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint_is_named_in_one_line_with_what_to_do(kind: str, tmp_path: Path) -> None:
    name, content, said = FOREIGN[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{re.escape(str(tmp_path / name))}: .*{said}") as error:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["w", "w.bin", "w.ckpt", "w.pth", "w.safetensors", "w.of.many.names"])
def test_safetensors_are_known_by_their_content(name: str, tmp_path: Path) -> None:
    for size in range(1, 40):  # the first byte, which tells other formats apart, is here the header's length
        write_safetensors(tmp_path / name, {"w" * size: np.arange(3.0)})
        assert read_weights(tmp_path / name)["w" * size].tolist() == [0, 1, 2]


def index(folder: Path, files: dict[str, str], name: str = "model.safetensors.index.json") -> Path:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return folder / name


def test_a_checkpoint_in_pieces_is_read_by_its_index_or_its_folder(tmp_path: Path) -> None:
    arrays = backbone()
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = list(arrays)
    write_safetensors(tmp_path / parts[0], {name: arrays[name] for name in names[:2]})
    write_safetensors(tmp_path / parts[1], {name: arrays[name] for name in names[2:]})
    path = index(tmp_path, {name: parts[i >= 2] for i, name in enumerate(names)})
    for place in (path, tmp_path):
        read = read_weights(place)
        assert set(read) == set(arrays) and all(np.array_equal(read[name], arrays[name]) for name in arrays)
    (tmp_path / parts[1]).unlink()
    with pytest.raises(WeightsError, match=r"1 of its 2 files are missing: model-00002-of-00002\.safetensors. Fix: "):
        read_weights(path)


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "sub/w.bin", 7, None, ["a"]])
def test_an_index_reads_nothing_but_what_lies_beside_it(target: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"index\.json: "):
        read_weights(index(tmp_path, {"w": target}))


def test_an_index_does_not_list_itself(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="an index of weights where weights are expected"):
        read_weights(index(tmp_path, {"w": "model.safetensors.index.json"}))


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=600), name=st.sampled_from(["w", "w.pth", "w.safetensors", "w.json", "w.ckpt"]))
def test_any_bytes_are_arrays_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        assert read_weights(path)
    except TlxError as error:
        assert "\n" not in str(error)


# Finished runs ---------------------------------------------------------------------------------------------------

FIELDS: dict[str, Any] = {
    "backend": "loopback",
    "model": "tiny-mlp",
    "strategy": "full",
    "data": "digits",
    "image_size": 8,
    "limit_train": 96,
    "limit_test": 40,
    "epochs": 1,
    "batch_size": 16,
    "val_fraction": 0,
    "quiet": True,
}
Train = Callable[..., tlx.Result]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    def call(out: str, **fields: Any) -> tlx.Result:
        return tlx.run(**{**FIELDS, **fields}, out=str(tmp_path / out))

    return call


def test_a_run_with_the_same_classes_goes_on_with_its_head(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train("first", weights="none", epochs=4, lr=0.05, classes=("3", "5", "8"))
    for classes, moved in ((("3", "5", "8"), False), (("8", "3", "5"), True)):
        out = "".join(classes)
        frozen: dict[str, Any] = {"strategy": "feature_extract", "lr": 0.0, "quiet": False}
        second = train(out, weights=str(first.run_dir), classes=classes, **frozen)
        assert second.test_accuracy == first.test_accuracy > 0.8
        before, after = (load_file(result.run_dir / "model.safetensors") for result in (first, second))
        order = [("3", "5", "8").index(name) for name in classes]
        np.testing.assert_array_equal(after["fc.weight"], before["fc.weight"][order])
        np.testing.assert_array_equal(after["fc.bias"], before["fc.bias"][order])
        shown = capsys.readouterr().err
        assert "note: first: its head is kept, as its classes are the same" in shown
        assert ("its outputs are put into the order of the classes now" in shown) is moved


def test_a_run_with_other_classes_gets_a_fresh_head_and_says_so(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train("first", weights="none", classes=("3", "5", "8"))
    second = train(
        "second", weights=str(first.run_dir), strategy="feature_extract", lr=0.0, classes=("3", "5", "9"), quiet=False
    )
    assert "its classes are others (3, 5, 8), so the head is drawn anew" in capsys.readouterr().err
    fresh = train("fresh", weights="none", lr=0.0, classes=("3", "5", "9"))
    before, after, drawn = (load_file(r.run_dir / "model.safetensors") for r in (first, second, fresh))
    np.testing.assert_array_equal(after["bn1.running_mean"], before["bn1.running_mean"])
    np.testing.assert_array_equal(after["fc.weight"], drawn["fc.weight"])


def test_a_file_names_no_classes_so_its_head_is_left_aside(train: Train, tmp_path: Path) -> None:
    first = train("first", weights="none", classes=("3", "5"))
    file = first.run_dir / "model.safetensors"
    specs = [spec(n, *a.shape, dtype=str(a.dtype)) for n, a in load_file(file).items()]
    arrays, notes = initial_values(specs, ARCHITECTURES["tiny-mlp"], str(file), 0, classes=("3", "5"))
    assert notes == ["model.safetensors: the head 'fc' of 2 outputs is left aside"]
    assert not np.array_equal(arrays["fc.weight"], load_file(file)["fc.weight"])


def test_a_card_that_is_damaged_is_one_line(train: Train) -> None:
    first = train("first", weights="none", classes=("3", "5"))
    (first.run_dir / "card.json").write_text("{")
    with pytest.raises(RunDamaged, match=r"card\.json is damaged"):
        train("second", weights=str(first.run_dir), classes=("3", "5"))


def test_an_infinity_is_a_bound_in_a_mask_and_an_error_elsewhere() -> None:
    mask, weight = ParamSpec("mask", (2,), "float32", "statistic", ""), ParamSpec("w", (2,), "float32", "weight", "")
    running = ParamSpec("bn.running_var", (2,), "float32", "statistic", "bn")
    bound, number = np.array([0, -np.inf], np.float32), np.array([1, -2], np.float32)
    assert first_not_finite({"mask": bound, "w": number}, (mask, weight)) is None
    for spec in (weight, running):
        assert first_not_finite({"mask": bound, spec.name: bound}, (mask, spec)) == spec.name
    assert first_not_finite({"mask": bound + np.nan}, (mask,)) == "mask"
    said = str(not_finite("gone", {"mask": bound, "w": number}, (mask, weight)))
    assert "all weights are finite, the largest is 2 in 'w'" in said
