"""What speaks for a class: the maps as arrays and as pictures, of photos and arrays, and one line for every mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tlx
from support.finished_runs import FIELDS, ON_DIGITS
from tlx.backend import registry
from tlx.data.images import ArrayImages
from tlx.errors import BackendError, DataError, TlxError
from tlx.runs.finished import restore
from tlx.runs.grad_cam import as_seen, class_index, grad_cam, heat_maps, heated
from tlx.runs.overlay import VIRIDIS, colours, overlay


def test_a_map_is_the_positive_part_of_the_weighted_sum_of_channels() -> None:
    values, gradients = np.zeros((1, 2, 2, 2)), np.zeros((1, 2, 2, 2))
    values[0, 0], values[0, 1] = [[1, 2], [3, 4]], [[4, 0], [0, 0]]
    gradients[0, 0], gradients[0, 1] = [[4, 0], [0, 0]], [[-1, -1], [-1, -1]]  # means of 1 and -1
    assert grad_cam(values, gradients).tolist() == [[[0, 2], [3, 4]]]


def test_heat_is_scaled_to_one_and_stays_zero_where_there_is_none() -> None:
    maps = np.array([[[0.0, 1e-30], [0.0, 0.0]], [[0, 0], [0, 0]], [[5, 5], [5, 5]]])
    heat = heated(maps, 8)
    assert heat.dtype == np.float32 and heat.shape == (3, 8, 8)
    assert heat.max(axis=(1, 2)).tolist() == [1, 0, 1] and heat.min() == 0
    assert heat[0].argmax() == 6 and not heat[0, :, :2].any() and (heat[2] == 1).all()


def test_colours_are_steps_of_even_lightness() -> None:
    steps = colours(np.linspace(0, 1, 101, dtype=np.float32)).astype(float) / 255
    assert [round(x * 255) for x in steps[100]] == [VIRIDIS[-1] >> 16, VIRIDIS[-1] >> 8 & 255, VIRIDIS[-1] & 255]
    linear = np.where(steps > 0.04045, ((steps + 0.055) / 1.055) ** 2.4, steps / 12.92)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    assert (np.diff(lightness) > 0).all() and np.ptp(np.diff(lightness[::10])) < 1.5


def test_an_overlay_tells_heat_by_lightness_too() -> None:
    grey = np.full((4, 4, 3), 128, np.uint8)
    heat = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    light = overlay(grey, heat).astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(light[2:].ravel()) > 0).all() and light[3, 3] > light[0, 0] + 60


def test_an_array_is_enlarged_to_what_the_network_sees() -> None:
    pixels = np.zeros((3, 2, 2), np.uint8)
    pixels[:, 0, 0] = 200
    seen = as_seen(pixels, 8)
    assert seen.shape == (8, 8, 3) and seen.dtype == np.uint8 and seen[0, 0, 0] == 200 and not seen[-1, -1].any()
    assert (as_seen(seen.transpose(2, 0, 1), 8) == seen).all()


@pytest.fixture(scope="module")
def chosen(photos: Path) -> list[Path]:
    return sorted((photos / "test").rglob("*.png"))[:5]


def test_each_photo_is_explained_by_the_class_that_is_predicted(of_photos: tlx.Result, chosen: list[Path]) -> None:
    predicted = tlx.predict(of_photos.run_dir, chosen)
    explained = tlx.explain(of_photos.run_dir, chosen)
    assert [(one.path, one.class_name, one.predicted) for one in explained] == [
        (row["path"], row["class"], row["class"]) for row in predicted
    ]
    for one, row in zip(explained, predicted, strict=True):
        assert one.probability == pytest.approx(row["probability"], rel=1e-6)
        assert one.heat is not None and one.image is not None and one.peak is not None
        assert one.heat.shape == (8, 8) and one.heat.dtype == np.float32 and one.image.shape == (8, 8, 3)
        column, row_ = one.peak
        assert one.heat[row_, column] == 1 and one.file is None and not one.flat


def test_a_report_gets_the_maps_of_any_classes_from_a_run_that_it_has_opened(
    of_photos: tlx.Result, chosen: list[Path]
) -> None:
    run, explained = restore(of_photos.run_dir), tlx.explain(of_photos.run_dir, chosen, class_name="7")
    before = run.backend.dump_arrays(run.model)
    pixels = [run.framing.pixels(partial(_view, path)) for path in chosen]
    maps = heat_maps(run, pixels, [7] * 5)
    assert maps.heat.shape == (5, 8, 8) and maps.logits.shape == (5, 10) and maps.classes.tolist() == [7] * 5
    for ours, theirs in zip(maps.heat, explained, strict=True):
        assert theirs.heat is not None and (ours == theirs.heat).all() and theirs.class_name == "7"
    assert all((before[name] == value).all() for name, value in run.backend.dump_arrays(run.model).items())


def _view(path: Path, view: Any) -> Any:
    image = Image.open(path).convert("RGB")
    return image if view is None else view.of(image)


def test_arrays_of_all_kinds_are_explained(of_arrays: tlx.Result, digits: dict[str, ArrayImages]) -> None:
    images = digits["test"].array[:3].transpose(0, 2, 3, 1)
    assert [one.path for one in tlx.explain(of_arrays.run_dir, images)] == ["array 0", "array 1", "array 2"]
    small = np.full((3, 4), 90, np.uint8)  # of another size than the others of its batch
    mixed = tlx.explain(of_arrays.run_dir, [images[0], small, images[1]])
    assert [one.image.shape for one in mixed if one.image is not None] == [(8, 8, 3)] * 3
    assert mixed[2].heat is not None and (mixed[2].heat == tlx.explain(of_arrays.run_dir, images)[1].heat).all()
    assert mixed[0]._repr_png_() and "array 1" in repr(mixed[1])


def test_pictures_lie_in_a_folder_and_take_the_place_of_earlier_ones_only(
    of_photos: tlx.Result, chosen: list[Path], tmp_path: Path
) -> None:
    for name in ("a/x.png", "b/x.png", "b/[red]\n\u202e;$(x) ..png", "b/" + "y" * 240 + ".png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(chosen[0], tmp_path / name)
    out = tmp_path / "new" / "folder"
    photos = [tmp_path / "a", tmp_path / "b"]
    first = tlx.explain(of_photos.run_dir, photos, class_name="3", out=out)
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(one.file.name for one in first if one.file) and len(names) == 4
    assert {"x-3.png", "x-3-2.png"} < {*names} and all(name.isprintable() and len(name) < 100 for name in names)
    for path in out.iterdir():
        with Image.open(path) as picture:
            assert picture.size[0] > 2 * 224 and picture.size[1] > 224 and picture.info["Software"] == "tlx explain"
    mine = (chosen[0].read_bytes(), (out / "x-3-2.png").read_bytes())
    (out / "x-3.png").write_bytes(mine[0])
    tlx.explain(of_photos.run_dir, tmp_path / "a", class_name="3", out=out)
    assert (out / "x-3.png").read_bytes() == mine[0] and len(list(out.iterdir())) == 4


def test_a_flat_map_is_said_in_words(of_photos: tlx.Result, chosen: list[Path]) -> None:
    """Where every weighted sum is negative, nothing is left: as with a class that all weights speak against."""
    every = tlx.explain(of_photos.run_dir, chosen)
    (one,) = tlx.explain(of_photos.run_dir, chosen[0], class_name="5")
    flat = type(one)(**{**{name: getattr(one, name) for name in one.__slots__}, "heat": np.zeros((8, 8), np.float32)})
    assert flat.flat and flat.peak is None and flat.words[1] == "nothing in this image speaks for 5: its map is empty"
    assert flat.picture().size[1] > every[0].picture().size[1] and not every[0].flat and len(every[0].words) == 1


def test_the_command_prints_json_and_says_what_cannot_be_read(
    of_photos: tlx.Result, chosen: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no photo")
    command = [
        sys.executable,
        "-m",
        "tlx",
        "explain",
        str(of_photos.run_dir),
        str(chosen[0]),
        "bad.png",
        "--class",
        "3",
    ]
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    one, bad = facts["explanations"]
    assert one["class"] == "3" and 0 < one["probability"] < 1 and one["size"] == 8 and one["error"] is None
    assert (tmp_path / one["file"]).is_file() and one["file"].startswith("explained/")
    assert all(0 <= place < 8 for place in one["peak"])
    assert bad["class"] is None and "cannot be decoded" in bad["error"] and "not read: bad.png" in done.stderr


@pytest.mark.parametrize(
    ("change", "images", "said"),
    [
        ({"class_name": "thre"}, "one", r"The run has no class 'thre'\. Known: 0, 1, "),
        ({}, "nowhere.png", "nowhere.png does not exist"),
        ({}, [], "no images: expected files"),
        ({"out": "/dev/null/x"}, "one", "Cannot write to /dev/null/x"),
        ({"backend": "nobody"}, "one", "nobody"),
    ],
)
def test_a_mistake_is_one_line(
    change: dict[str, Any], images: Any, said: str, of_photos: tlx.Result, chosen: list[Path]
) -> None:
    with pytest.raises(TlxError, match=said):
        tlx.explain(of_photos.run_dir, chosen[0] if images == "one" else images, **change)


def test_a_hint_does_not_list_ten_thousand_classes(of_photos: tlx.Result) -> None:
    run = restore(of_photos.run_dir)
    names = [f"class {i}" for i in range(10_000)]
    run = replace(run, card=replace(run.card, classes=names))
    assert class_index(run, "class 9999") == 9999
    with pytest.raises(TlxError, match=r"The run has no class 'clas 77'\. Did you mean 'class 77'"):
        class_index(run, "clas 77")
    with pytest.raises(TlxError, match=r"The run has no class '\?'\. It has 10000\.$"):
        class_index(run, "?")


def test_a_run_without_logits_or_a_backend_without_maps_is_refused(
    of_photos: tlx.Result, chosen: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbours = tlx.run(**{**ON_DIGITS, "strategy": "knn", "lr": None, "quiet": True}, out=str(tmp_path / "knn"))
    with pytest.raises(TlxError, match="strategy knn: its neighbours vote, and no class has a logit to explain"):
        tlx.explain(neighbours.run_dir, chosen[0])
    monkeypatch.delattr(type(registry.load("loopback")), "feature_map")
    with pytest.raises(TlxError, match="backend 'loopback' has no feature_map"):
        tlx.explain(of_photos.run_dir, chosen[0])


def test_outputs_that_are_not_finite_are_an_error(
    of_photos: tlx.Result, chosen: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = type(registry.load("loopback"))
    whole = backend.feature_map  # type: ignore[attr-defined]

    def broken(self: Any, *arguments: Any) -> Any:
        seen = whole(self, *arguments)
        seen.logits[...] = np.nan
        return seen

    monkeypatch.setattr(backend, "feature_map", broken)
    with pytest.raises(TlxError, match="the model's outputs are not finite"):
        tlx.explain(of_photos.run_dir, chosen[0])


@pytest.mark.needs("torch", "oneflow")
def test_a_run_of_one_framework_is_explained_on_the_other(tmp_path: Path, chosen: list[Path]) -> None:
    fields = {
        **FIELDS,
        "model": "shufflenet_v2_x0_5",
        "backend": "torch",
        "image_size": 64,
        "precision": "float64",
        "epochs": 1,
    }
    result = tlx.run(**{**fields, "data": "digits", "limit_train": 20, "limit_test": 10}, out=str(tmp_path / "run"))
    maps = [tlx.explain(result.run_dir, chosen[0], backend=name)[0] for name in ("torch", "oneflow")]
    first, second = (one.heat for one in maps)
    assert first is not None and second is not None and np.abs(first - second).max() <= 1e-6
    assert maps[0].class_name == maps[1].class_name and maps[0].layer == maps[1].layer == "conv5"
    assert maps[0].probability == pytest.approx(maps[1].probability, rel=1e-9)


@pytest.mark.needs("torch")
def test_a_module_of_ones_own_is_given_again(tmp_path: Path, chosen: list[Path]) -> None:
    from torch import nn

    def net(*layers: Any) -> Any:
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 if layers else 192, 10))

    fields = {**FIELDS, "backend": "torch", "epochs": 1, "data": "digits", "limit_train": 20, "limit_test": 10}
    pooled = (nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.AvgPool2d(2))
    results = {}
    for name, module in (("pooled", net(*pooled)), ("flat", net())):
        options = {**fields, "model": module, "head": str(len(module) - 1)}
        results[name] = (tlx.run(**options, out=str(tmp_path / name)).run_dir, module)
    run_dir, module = results["pooled"]
    (one,) = tlx.explain(run_dir, chosen[0], model=module)
    assert one.layer == "1" and one.heat is not None and one.heat.shape == (8, 8)
    with pytest.raises(
        BackendError, match="Sequential has no map of features to explain by: before its head no module"
    ):
        tlx.explain(results["flat"][0], chosen[0], model=results["flat"][1])
    with pytest.raises(DataError, match=r"array 0 is float64"):
        tlx.explain(run_dir, [np.zeros((8, 8))], model=module)
