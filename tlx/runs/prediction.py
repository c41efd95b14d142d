"""Classify images with a finished run, from the very same pixels as its evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from tlx.backend import Preprocess
from tlx.data.images import ArrayImages, Images, View, read_photo, seen
from tlx.data.loader import Loader
from tlx.data.sources.folder import EXTENSIONS
from tlx.errors import DataError, DataNotFound, TlxError
from tlx.recipe import DATA_OBJECT, read_toml
from tlx.runs.finished import Finished, restore

if TYPE_CHECKING:
    from PIL.Image import Image

TOP = 5  # classes listed for each image where nobody says how many, as ImageNet's top-5
SHOWN = 5  # names of left-out files in a note

Pixels = NDArray[np.uint8]


# "class" is a keyword of Python, so these have no class syntax.
Ranked = TypedDict("Ranked", {"class": str, "probability": float})
Prediction = TypedDict("Prediction", {"path": str, "class": str, "probability": float, "top": list[Ranked]})


def predict(
    run_dir: str | Path,
    images: Any,
    backend: str | None = None,
    top: int | None = None,
    *,
    quiet: bool = False,
    model: Any = None,
    head: Any = None,
) -> list[Prediction]:
    """Classify images with the model of a finished run.

    Args:
        run_dir: a folder that `tlx run` wrote.
        images: a file, a folder (all photos below it, by their sorted paths), a uint8 array [N, H, W, 3], [H, W, 3] or
            [N, H, W], or a list of files, folders and arrays [H, W, 3] or [H, W].
        backend: classify on this backend instead of the one that trained, on its best device, and in the precision of
            the training where that is native there.
        top: how many classes to list for each image, the most probable first. Default: up to 5.
        quiet: do not say on stderr what was left out.
        model: the module again, where the run's was a Python object.
        head: likewise.

    Returns:
        For each image, in order, its path ("array 0" and so on for arrays), class, probability (softmax of the logits
        in float64) and `top`, a list of class and probability.

    Raises:
        RunNotFound: there is no finished run in the folder.
        DataError: there is no image, or images cannot be read; then it lists them all.
        TlxError: `top` is out of range, or the model's outputs are not finite.
    """
    run = restore(run_dir, backend, data={}, model=model, head=head)  # no data, which may have been Python objects
    classes: list[str] = run.card["classes"]
    count = min(TOP, len(classes)) if top is None else top
    if not 1 <= count <= len(classes):
        raise TlxError(f"top is {top}; expected 1 to {len(classes)}, the number of classes of {run_dir}")
    inputs = _collect(images, quiet)
    logits = np.empty((len(inputs), len(classes)))
    for indices, part in _parts(inputs, photos=_of_photos(run)):
        loader = Loader(
            part,
            Preprocess(**run.card["preprocess"]),
            batch_size=run.recipe.batch_size,
            crop_fraction=run.card["crop_fraction"],
            workers=run.recipe.workers,
        )
        batches = list(_logits(run, loader))
        inputs.check()
        logits[indices] = np.concatenate(batches)
    if not np.isfinite(logits).all():
        raise TlxError(f"{run_dir}: the model's outputs are not finite")
    return [_entry(name, row, classes, count) for name, row in zip(inputs.names, logits, strict=True)]


def _of_photos(run: Finished) -> bool:
    """Whether the run evaluated photos, cropped and resized one by one, or images of one size as they are."""
    if "images" in run.card:
        return bool(run.card["images"] == "photos")
    data = read_toml(run.run_dir / "recipe.toml")["data"]  # cards of 0.1.0 do not say it; all but these were photos
    return data not in ("cifar10", "digits", DATA_OBJECT) and not data.endswith(".npz")


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Images to classify: files, which are decoded when needed, and arrays; as `Images`, of any sizes."""

    items: Sequence[Path | Pixels]  # arrays are [H, W, 3]
    names: Sequence[str]
    faults: dict[int, str] = field(default_factory=dict)  # what could not be read

    @property
    def size(self) -> None:
        """None: they may have many sizes."""
        return None

    @property
    def labels(self) -> NDArray[np.int64]:
        """Zeros: their classes are what is asked."""
        return np.zeros(len(self.items), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.items)

    def open(self, index: int, view: View | None = None) -> Image:
        """Image `index` in mode RGB, upright; black where it cannot be read, which `check` reports."""
        from PIL import Image

        item = self.items[index]
        if not isinstance(item, Path):
            return seen(Image.fromarray(item), view)
        try:
            return read_photo(item, view)
        except DataError as error:
            self.faults[index] = error.problem.rstrip(".")
            return seen(Image.new("RGB", (1, 1)), view)

    def pixels(self, index: int) -> Pixels:
        """Image `index` as uint8 [H, W, 3]."""
        return np.asarray(self.open(index))

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> Inputs:
        """The images at `indices`, in that order."""
        return Inputs([self.items[i] for i in indices], [self.names[i] for i in indices])

    def digest(self) -> bytes:
        """Raise NotImplementedError: they are no data set."""
        raise NotImplementedError("images to classify have no fingerprint")

    def check(self) -> None:
        """Raise DataError, naming every file that could not be read."""
        if self.faults:
            listed = "; ".join(self.faults[index] for index in sorted(self.faults))
            raise DataError(
                f"{len(self.faults)} of {len(self)} images cannot be read: {listed}", fix="replace or remove them"
            )


def _collect(images: Any, quiet: bool) -> Inputs:
    if isinstance(images, np.ndarray):
        images = [images] if images.ndim == 3 and images.shape[2] == 3 else list(images) if images.ndim else []
    elif isinstance(images, (str, os.PathLike)):
        images = [images]
    elif not isinstance(images, Iterable):
        raise DataError(f"images must be files, folders or uint8 arrays; got {type(images).__name__}")
    items: list[Path | Pixels] = []
    names: list[str] = []
    missing: list[str] = []
    skipped: list[Path] = []
    for image in images:
        if isinstance(image, (str, os.PathLike)):
            path = Path(image)
            photos = _photos(path, skipped) if path.is_dir() else [path]
            items += photos
            names += map(str, photos)
            if not path.exists():
                missing.append(str(path))
        else:
            names.append(f"array {len(items)}")
            items.append(_rgb(image, names[-1]))
    if missing:
        raise DataNotFound(f"{len(missing)} of the images do not exist: {', '.join(missing)}")
    if skipped and not quiet:
        from tlx.runs.display import Display

        plural = "1 file that is not an image" if len(skipped) == 1 else f"{len(skipped)} files that are not images"
        shown = ", ".join(map(str, skipped[:SHOWN])) + (", ..." if len(skipped) > SHOWN else "")
        Display().console.print(f"skipped {plural} by name: {shown}", markup=False)
    if not items:
        raise DataError(f"no images: expected files, folders of photos ({', '.join(sorted(EXTENSIONS))}) or arrays")
    return Inputs(items, names)


def _photos(folder: Path, skipped: list[Path]) -> list[Path]:
    """All photos below a folder by their sorted paths; other visible files are added to `skipped`."""
    files = []
    for place_, folders, inside in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place_, name) for name in inside if not name.startswith(".")]
    files.sort(key=lambda file: file.as_posix())
    skipped += [file for file in files if file.suffix.lower() not in EXTENSIONS]
    return [file for file in files if file.suffix.lower() in EXTENSIONS]


def _rgb(image: Any, name: str) -> Pixels:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)) or not array.size:
        raise DataError(f"{name} is {array.dtype} {list(array.shape)}; expected uint8 [H, W, 3] or [H, W]")
    planes = array[..., None] if array.ndim == 2 else array
    return np.ascontiguousarray(np.broadcast_to(planes, (*planes.shape[:2], 3)))


def _parts(inputs: Inputs, *, photos: bool) -> Iterator[tuple[NDArray[np.int64], Images]]:
    """The images as the run's evaluation would see them, with their places: as photos, or by size as arrays."""
    if photos:
        yield np.arange(len(inputs)), inputs
        return
    pixels = [inputs.pixels(i) for i in range(len(inputs))]
    inputs.check()
    sizes = [array.shape for array in pixels]
    for size in dict.fromkeys(sizes):
        indices = np.array([i for i, other in enumerate(sizes) if other == size], dtype=np.int64)
        array = np.stack([pixels[i].transpose(2, 0, 1) for i in indices])
        yield indices, ArrayImages(array, inputs.labels[indices], [inputs.names[i] for i in indices])


def _logits(run: Finished, loader: Loader) -> Iterator[NDArray[np.float64]]:
    backend, model = run.backend, run.model
    for batch in loader.epoch(0):
        (logits,) = backend.fetch([backend.logits(model, backend.put(model, batch))])
        yield logits.astype(np.float64)


def _entry(name: str, logits: NDArray[np.float64], classes: Sequence[str], count: int) -> Prediction:
    odds = np.exp(logits - logits.max())
    probabilities = odds / odds.sum()
    best = np.argsort(-logits, kind="stable")[:count]
    top: list[Ranked] = [{"class": classes[i], "probability": float(probabilities[i])} for i in best]
    return {"path": name, "class": top[0]["class"], "probability": top[0]["probability"], "top": top}
