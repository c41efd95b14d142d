"""Show which parts of photos speak for a class, by Grad-CAM, with a finished run on either backend."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlx.atomic import write_atomic
from tlx.data.images import EXTENSIONS
from tlx.data.loader import ahead
from tlx.errors import DataError, TlxError, printable
from tlx.runs.card import refuse_multilabel
from tlx.runs.classify import BadImages, Pixels
from tlx.runs.display import Display
from tlx.runs.finished import Finished, restore
from tlx.runs.grad_cam import as_seen, check_explained, class_index, heat_maps, probabilities
from tlx.runs.inputs import Input, Notes, find_inputs
from tlx.runs.overlay import picture

if TYPE_CHECKING:
    from PIL.Image import Image

SOFTWARE = "tlx explain"  # what its pictures say that they were made by
LONGEST = 80  # letters of a picture's name that come from the image's, and from the class's


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Which parts of an image speak for a class.

    Attributes:
        path: of the image, as `tlx.predict` names it.
        class_name: the class that is explained; None where the image cannot be read.
        probability: what the model gives it: softmax of the logits, in float64.
        predicted: the class that the model predicts.
        heat: float32 [size, size] of 0 to 1; 0 everywhere where nothing speaks for the class.
        image: uint8 [size, size, 3], as the network sees it: cropped and resized.
        layer: the path of the module at whose output the map was taken.
        error: why the image cannot be read; otherwise None.
        file: the picture that was written; None where none was asked for.
    """

    path: str
    class_name: str | None
    probability: float | None
    predicted: str | None
    heat: NDArray[np.float32] | None
    image: NDArray[np.uint8] | None
    layer: str | None
    error: str | None = None
    file: Path | None = None

    @property
    def flat(self) -> bool:
        """Whether the map is 0 everywhere, as nothing in the image speaks for the class."""
        return self.heat is not None and not self.heat.any()

    @property
    def peak(self) -> tuple[int, int] | None:
        """Column and row of the map's highest value, in pixels of the network's input; None where the map is flat."""
        if self.heat is None or self.flat:
            return None
        row, column = divmod(int(self.heat.argmax()), self.heat.shape[1])
        return column, row

    @property
    def words(self) -> tuple[str, ...]:
        """The class and its probability, and what else there is to say, a line each."""
        lines = [f"{self.class_name} {self.probability:.4f}"]
        if self.class_name != self.predicted:
            lines[0] += f" (predicted: {self.predicted})"
        if self.flat:
            lines.append(f"nothing in this image speaks for {self.class_name}: its map is empty")
        return tuple(map(printable, lines))

    def picture(self) -> Image:
        """Draw the image beside its overlay, with the class and its probability."""
        if self.heat is None or self.image is None:
            raise DataError(f"{self.path} has no picture, as it cannot be read: {self.error}")
        return picture(self.image, self.heat, self.words)

    def png(self) -> bytes:
        """Return the picture as a PNG."""
        from PIL.PngImagePlugin import PngInfo

        facts, file = PngInfo(), io.BytesIO()
        facts.add_text("Software", SOFTWARE)
        self.picture().save(file, "PNG", pnginfo=facts)
        return file.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold of it: all but the arrays."""
        facts = {"path": self.path, "class": self.class_name, "probability": self.probability}
        more = {"predicted": self.predicted, "layer": self.layer, "flat": self.flat, "peak": self.peak}
        size = None if self.heat is None else len(self.heat)
        return {
            **facts,
            **more,
            "size": size,
            "file": None if self.file is None else str(self.file),
            "error": self.error,
        }

    def __repr__(self) -> str:
        said = f"cannot be read: {self.error}" if self.error else ", ".join(self.words)
        return f"<Explanation of {printable(self.path)}: {said}>"

    def _repr_png_(self) -> bytes | None:
        return None if self.error else self.png()


def explain(
    run_dir: str | Path,
    images: Any,
    backend: str | None = None,
    *,
    class_name: str | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    model: Any = None,
    head: Any = None,
) -> list[Explanation]:
    """Show which parts of images speak for a class, by Grad-CAM (Selvaraju et al. 2017, equations 1 and 2).

    The map is taken at the last map of features before the model pools it, which is found by itself; `docs/explain.md`
    says where that is.

    Args:
        run_dir: a folder that `tlx run` wrote.
        images: whatever `tlx.predict` takes.
        backend: compute on this backend instead of the one that trained, as `tlx.predict` does.
        class_name: the class to explain in each image; by default the one that is predicted for it.
        out: a folder for a picture of each image: beside the image, as the network sees it, the same under its map. It
            is made where it is missing. Only pictures that this function wrote are replaced.
        quiet: do not say on stderr what was left out and what cannot be read.
        model: the module again, where the run's was a Python object.
        head: likewise.

    Returns:
        For each image, in order, the class, its probability, and the map as an array. In a notebook each shows itself.
        `tlx.runs.explanation.explanations` returns the same one by one, for more images than a list can hold.

    Raises:
        RunNotFound: there is no finished run in the folder.
        DataError: there is no image, or none that can be read.
        BackendError: the model has no map of features to explain by; the line says what was looked for.
        TlxError: the run has no such class, is of strategy knn, or has outputs that are not finite; or `out` cannot be
            written.
    """
    options: dict[str, Any] = {"class_name": class_name, "out": out, "quiet": quiet, "model": model, "head": head}
    return list(explanations(run_dir, images, backend, **options))


def explanations(
    run_dir: str | Path,
    images: Any,
    backend: str | None = None,
    *,
    class_name: str | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    model: Any = None,
    head: Any = None,
) -> Generator[Explanation, None, None]:
    """Do what `tlx.explain` does, and yield each explanation as it is made: memory does not grow with the images."""
    run = restore(run_dir, backend, model=model, head=head)
    check_explained(run)
    refuse_multilabel(run.card, run.run_dir, "explain", "use a run whose images have one label each")
    target = None if class_name is None else class_index(run, class_name)
    notes = Notes()
    inputs = find_inputs(images, notes, run.recipe.max_pixels)
    return _explanations(run, inputs, target, None if out is None else Gallery(Path(out)), notes, Display(quiet))


def _explanations(
    run: Finished, inputs: Iterator[Input], target: int | None, gallery: Gallery | None, notes: Notes, display: Display
) -> Generator[Explanation, None, None]:
    count, bad = 0, BadImages(display)
    chunks = iter(lambda: list(islice(inputs, run.recipe.batch_size)), [])

    def read(item: Input) -> tuple[Input, Pixels | DataError]:
        try:
            return item, run.framing.pixels(item.open)
        except DataError as error:
            return item, error

    with closing(ahead(read, chunks, run.recipe.workers)) as decoded:
        for chunk in decoded:
            readable = [pixels for _, pixels in chunk if not isinstance(pixels, DataError)]
            explained = iter(_explained(run, readable, target))
            for item, pixels in chunk:
                count += 1
                if isinstance(pixels, DataError):
                    bad.add(item, pixels)
                    reason = pixels.problem.rstrip(".")
                    yield Explanation(item.name, None, None, None, None, None, None, reason)
                    continue
                bad.say()
                explanation = Explanation(item.name, *next(explained))
                yield explanation if gallery is None else replace(explanation, file=gallery.add(explanation))
    for note in notes.all():
        display.say(note)
    if not count:
        raise DataError(f"no images: expected files, folders of photos ({', '.join(sorted(EXTENSIONS))}) or arrays")
    bad.conclude(count)


def _explained(run: Finished, images: list[Pixels], target: int | None) -> Iterator[tuple[Any, ...]]:
    """The fields of each explanation from the class to the layer."""
    if not images:
        return
    maps = heat_maps(run, images, None if target is None else [target] * len(images))
    classes, odds = run.card.classes, probabilities(maps.logits)
    for i, pixels in enumerate(images):
        chosen, predicted = maps.classes[i], maps.logits[i].argmax()
        seen = as_seen(pixels, run.preprocess.size)
        yield classes[chosen], float(odds[i, chosen]), classes[predicted], maps.heat[i], seen, maps.layer


class Gallery:
    """A folder of pictures, each named after its image and its class."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: Counter[str] = Counter()

    def add(self, explanation: Explanation) -> Path:
        """Write a picture; the folder is made for the first."""
        content = explanation.png()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self._free(f"{_plain(Path(explanation.path).stem)}-{_plain(explanation.class_name or '')}")
        except OSError as error:
            raise TlxError(f"Cannot write to {self.folder}: {error.strerror}") from error
        write_atomic(path, content)
        return path

    def _free(self, name: str) -> Path:
        """Return a path where nothing is, or a picture of an earlier call."""
        while True:
            self._names[name] += 1
            number = self._names[name]
            path = self.folder / (f"{name}.png" if number == 1 else f"{name}-{number}.png")
            if not path.is_symlink() and (not path.exists() or _is_ours(path)):
                return path


def _plain(text: str) -> str:
    """Return a text as part of a file's name: letters, digits, dashes, underscores and dots within it."""
    return re.sub(r"[^\w.-]", "_", text).strip(".-")[:LONGEST] or "_"


def _is_ours(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == SOFTWARE
    except Exception:  # Pillow raises anything on what is no picture
        return False
