"""What a finished run says of its model and of its result, read as values that are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tlx.backend import Preprocess
from tlx.backend.preprocess import Aspect, Interpolation
from tlx.data.framing import Framing
from tlx.errors import TlxError
from tlx.manifest import CARD, RECIPE
from tlx.recipe import DATA_OBJECT, read_toml
from tlx.runs.facts import Facts, parse_object, shortened
from tlx.runs.folder import RESULT

_FIX = "train again"
_SIZES = (8, 4096)  # of a recipe's image_size
_FRACTIONS = (0.1, 1.0)  # of a recipe's crop_fraction
# What pixels of 0 to 1 may be shifted and divided by, in either direction: far more than any data needs, and far from
# what float32 cannot hold.
_MEAN, _STD = 1e3, 1e-3
# How an earlier tlx framed images, by what its cards called it: the aspect, and whether the host enlarged them.
_EARLIER: dict[str, tuple[Aspect, bool]] = {
    "centre": ("crop", True),
    "whole": ("squash", True),
    "shrink": ("squash", False),
}


@dataclass(frozen=True, slots=True)
class Card:
    """The card of a finished run; `pixels` is None where an earlier tlx wrote it."""

    classes: list[str]  # by the model's outputs
    preprocess: Preprocess
    crop_fraction: float | None
    pixels: Mapping[str, Any] | None
    photos: bool | None  # whether it evaluated photos; None: the card does not say
    fingerprint: str  # of the data
    sha256: str | None  # of the weights
    neighbors: tuple[int, float] | None = None  # of strategy knn: how many vote, and the temperature
    thresholds: tuple[float, ...] | None = None  # of each class, where several may apply; None: each image has one
    temperature: float | None = None  # that divides the logits where calibrated probabilities are asked for


def refuse_multilabel(card: Card, run_dir: Path, what: str, fix: str) -> None:
    """Raise TlxError where a run's images may have several labels; `what` is what needs a single one."""
    if card.thresholds is not None:
        raise TlxError(f"{what} needs one label for each image, but those of {run_dir} may have several", fix=fix)


def read_card(content: bytes, run_dir: Path) -> Card:
    """Read what a run's card.json holds; raises TlxError, which names the value, where it is damaged."""
    card = _facts(content, run_dir / CARD)
    classes = card.texts("classes")
    if not classes or len({*classes}) != len(classes):
        raise card.wrong("classes", "one name or more, each once")
    values = card.inner("preprocess")
    mean, std = values.reals("mean", -_MEAN, _MEAN, 3), values.reals("std", _STD, 1 / _STD, 3)
    preprocess = Preprocess(
        values.whole("size", *_SIZES),
        (mean[0], mean[1], mean[2]),
        (std[0], std[1], std[2]),
        _choice(values, "interpolation", Interpolation) if "interpolation" in values.values else "bilinear",
    )
    if "crop_fraction" not in card.values:
        raise card.wrong("crop_fraction", "")
    return Card(
        classes=classes,
        preprocess=preprocess,
        crop_fraction=card.real("crop_fraction", *_FRACTIONS) if card.has("crop_fraction") else None,
        pixels=card.inner("pixels").values if card.has("pixels") else None,
        photos=card.text("images") == "photos" if "images" in card.values else None,
        fingerprint=card.inner("data").text("fingerprint"),
        sha256=card.text("sha256") if card.has("sha256") else None,
        neighbors=_neighbors(card.inner("neighbors")) if card.has("neighbors") else None,
        thresholds=card.reals("thresholds", 0, 1, len(classes)) if card.has("thresholds") else None,
        temperature=card.real("temperature", 1e-6, 1e6) if card.has("temperature") else None,
    )


def _neighbors(values: Facts) -> tuple[int, float]:
    return values.whole("k", 1), values.real("temperature", 1e-6, 1e6)


def read_pixels(card: Card, run_dir: Path, recipe_file: bytes) -> Framing:
    """Return how a run framed the images that it was evaluated on, as its card says.

    Raises TlxError where the card says something that this tlx does not do.
    """
    fraction, preprocess = card.crop_fraction, card.preprocess
    if card.pixels is None:  # of an earlier tlx
        photos = _of_photos(run_dir, recipe_file) if card.photos is None else card.photos
        whole = 0.875 if photos else 1.0
        return _earlier(preprocess, whole if fraction is None else fraction, "centre" if photos else "shrink")
    pixels = Facts(str(run_dir / CARD), card.pixels, _FIX, "pixels.")
    if fraction is None:
        raise TlxError(f"{run_dir / CARD} is damaged: crop_fraction is null beside pixels", fix=_FIX)
    if "resize" in pixels.values:
        named = pixels.text("resize")
        resize = named if named in _EARLIER else "centre"
        framing = _earlier(preprocess, fraction, resize)
        same = ("mode", "interpolation", "antialias", "enlarged_on")
        expected = {"resize": resize, **{name: framing.facts()[name] for name in same}}
    else:
        aspect, on_host = _choice(pixels, "aspect", Aspect), pixels.text("enlarged_on") != "device"
        framing = Framing.from_preprocess(preprocess, fraction, aspect, pixels.flag("antialias"), on_host)
        expected = framing.facts()
    for name, known in {**dict.fromkeys(pixels.values), **expected}.items():
        if name not in pixels.values:
            raise pixels.wrong(name, "")
        if name not in expected and name != "image_size":
            raise _unknown(pixels, name, "nothing of it")
        if name in expected and pixels.values[name] != known:
            raise _unknown(pixels, name, repr(known))
    return framing


def _earlier(preprocess: Preprocess, crop_fraction: float, resize: str) -> Framing:
    """The framing that an earlier tlx called `resize`."""
    aspect, on_host = _EARLIER[resize]
    if resize == "shrink" and crop_fraction < 1:
        aspect = "crop"
    return Framing.from_preprocess(preprocess, crop_fraction, aspect, antialias=True, enlarges=on_host)


def _choice(values: Facts, name: str, literal: Any) -> Any:
    """Return a text that is one of the choices of a Literal."""
    choices = get_args(literal)
    if (text := values.text(name)) not in choices:
        raise _unknown(values, name, " or ".join(map(repr, choices)))
    return text


def _unknown(values: Facts, name: str, known: str) -> TlxError:
    problem = f"{values.where}: {name} of the pixels is {shortened(values.values[name])}; this tlx knows {known}"
    return TlxError(problem, fix="use the tlx that wrote the run, or a later one")


def _of_photos(run_dir: Path, recipe_file: bytes) -> bool:
    """Whether a run of an earlier tlx evaluated photos, or images of one size as they are."""
    # Cards of 0.1.0 do not say it; all but these were photos.
    recipe = run_dir / RECIPE
    data = Facts(str(recipe), read_toml(recipe, recipe_file), _FIX).text("data")
    return data not in ("cifar10", "digits", DATA_OBJECT) and not data.endswith(".npz")


def recorded_accuracy(result_file: bytes, run_dir: Path) -> float | None:
    """Return the test accuracy that a finished run recorded; None where it had no test part."""
    result = _facts(result_file, run_dir / RESULT)
    if "test_accuracy" not in result.values:
        raise result.wrong("test_accuracy", "")
    return result.real("test_accuracy", 0, 1) if result.has("test_accuracy") else None


def epochs_of(result_file: bytes, run_dir: Path) -> tuple[int, int]:
    """Return the epochs that a finished run's result was to have, and has."""
    result = _facts(result_file, run_dir / RESULT)
    return result.inner("recipe").whole("epochs", 1), result.whole("epochs_run", 1)


def _facts(content: bytes, path: Path) -> Facts:
    return Facts(str(path), parse_object(content, str(path), _FIX), _FIX)
