"""What `tlx serve` answers: photos in, plain values out, one after the other, by whichever thread asks."""

from __future__ import annotations

import base64
import io
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.images import decode
from tlx.errors import DataError
from tlx.runs.card import refuse_multilabel
from tlx.runs.classify import classify
from tlx.runs.confidence import answering
from tlx.runs.finished import restore
from tlx.runs.grad_cam import as_seen, class_index, heat_maps, probabilities
from tlx.runs.inputs import Input
from tlx.runs.overlay import overlay
from tlx.runs.prediction import TOP, multilabel_prediction_of, prediction_of

PHOTO = "the photo"  # what errors call it: its name is the sender's to choose


class Service:
    """A finished run that answers about one photo at a time, as `tlx.predict` and `tlx.explain` do."""

    def __init__(
        self, run_dir: str | Path, backend: str | None, reject: float | None, calibrated: bool, **objects: Any
    ) -> None:
        """Open a run: see `tlx.serve`."""
        self.run = restore(run_dir, backend, **objects)
        if reject is not None or calibrated:
            name = "calibrated" if reject is None else "reject"
            refuse_multilabel(self.run.card, self.run.run_dir, name, f"leave {name} out")
        self.answers = answering(self.run.run_dir, self.run.card.temperature, reject, calibrated)
        self._lock = Lock()  # there is one model

    def facts(self) -> dict[str, Any]:
        """Return what is said of the run: its name, its model, how many classes, and how it answers."""
        recipe, classes = self.run.recipe, self.run.card.classes
        facts = {"run": self.run.run_dir.resolve().name, "model": recipe.model_name, "backend": self.run.backend.name}
        return {**facts, "classes": len(classes), "note": self.answers.note}

    def predict(self, content: bytes) -> dict[str, Any]:
        """Return class, probability and `top` of a photo, as `tlx.predict`; class None is "unknown".

        Raises:
            DataError: it is no photo that can be read, or one of too many pixels.
        """
        with self._lock:
            ((_, logits),) = next(classify(self.run, [Input(PHOTO, partial(self._open, content))]))
        if isinstance(logits, DataError):
            raise logits
        if (thresholds := self.run.card.thresholds) is not None:
            found = multilabel_prediction_of(PHOTO, logits, self.run.card.classes, thresholds)
            answer = {name: found[name] for name in ("class", "probability", "labels", "top")}
            return {**answer, "class": found["class"] or "no label", "unknown": False}
        row = prediction_of(PHOTO, logits, self.run.card.classes, TOP, self.answers)
        facts = {"class": row["class"], "probability": row["probability"], "top": row["top"]}
        return {**facts, "unknown": row["class"] is None}

    def explain(self, content: bytes, class_name: str | None = None) -> dict[str, Any]:
        """Return which parts of a photo speak for a class, by default the predicted one.

        `image` and `overlay` are PNGs of what the network sees, as data URLs.

        Raises:
            DataError: as in `predict`.
            TlxError: there is no such class, or the model cannot be explained.
        """
        refuse_multilabel(self.run.card, self.run.run_dir, "explain", "ask for predictions alone")
        chosen = None if class_name is None else [class_index(self.run, class_name)]
        with self._lock:
            pixels = self.run.framing.pixels(partial(self._open, content))
            maps = heat_maps(self.run, [pixels], chosen)
        image, heat, index = as_seen(pixels, self.run.preprocess.size), maps.heat[0], int(maps.classes[0])
        odds = probabilities(maps.logits[0], self.answers.temperature)
        row, column = divmod(int(heat.argmax()), len(heat))
        flat = not heat.any()
        facts = {
            "class": self.run.card.classes[index],
            "probability": float(odds[index]),
            "layer": maps.layer,
            "flat": flat,
        }
        pictures = {"image": _data_url(image), "overlay": _data_url(overlay(image, heat))}
        return {**facts, "peak": None if flat else [column, row], "size": len(heat), **pictures}

    def _open(self, content: bytes, view: Any) -> Any:
        return decode(content, view, where=PHOTO, max_pixels=self.run.recipe.max_pixels)


def _data_url(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
