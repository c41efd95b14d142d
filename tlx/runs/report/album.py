"""The thumbnails of a page: each embedded once, few enough that the page stays small."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlx.runs.overlay import overlay

if TYPE_CHECKING:
    from PIL.Image import Image

ROOM = 1_250_000  # bytes of all thumbnails as they stand in the page, whose other parts take less than 0.6 MB
SMALL = 48  # pixels; what is smaller is a PNG, which is as small and exact
GONE, FULL = -1, -2  # in place of a thumbnail's number: it cannot be had; there is no room left
_URI = re.compile(r"^\.p(\d+)\{background-image:url\((data:image/(?:jpeg|png);base64,[A-Za-z0-9+/=]+)\)\}$", re.M)


class Album:
    """Collects thumbnails. Each has a number, by which a page refers to it."""

    def __init__(self, room: int = ROOM) -> None:
        self.room, self.gone = room, 0
        self.small = False  # whether they are enlarged without being smoothed
        self.uris: list[str] = []
        self._numbers: dict[Hashable, int] = {}

    def add(self, key: Hashable, take: Callable[[], Image] | None) -> int:
        """Return a thumbnail's number; `GONE` where the image cannot be had, `FULL` where there is no room.

        Args:
            key: of the image; one that is there already is not taken again.
            take: opens the thumbnail.
        """
        if key not in self._numbers:
            if self.room <= 0:
                return FULL
            self._numbers[key] = self._add(take)
        return self._numbers[key]

    def _add(self, take: Callable[[], Image] | None) -> int:
        if take is None:
            return GONE
        try:
            image = take()
            uri = data_uri(image)
        except Exception:  # deleted, damaged, or whatever a data set of the user's own raises
            self.gone += 1
            return GONE
        self.small = self.small or max(image.size) < 64
        self.room -= len(uri)
        self.uris.append(uri)
        return len(self.uris) - 1

    def css(self) -> str:
        """Return a rule for each thumbnail."""
        return "\n".join(f".p{number}{{background-image:url({uri})}}" for number, uri in enumerate(self.uris))


def data_uri(image: Image) -> str:
    """Return an RGB image as a data URI: JPEG, or PNG where it is small."""
    out = io.BytesIO()
    kind = "png" if max(image.size) < SMALL else "jpeg"
    image.save(out, kind, **({"quality": 80} if kind == "jpeg" else {"compress_level": 6}))
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def uris_in(page: str, numbers: list[int]) -> list[str]:
    """Return the data URIs of some thumbnails of a page that was written; those that it does not have are left out."""
    uris = {int(number): uri for number, uri in _URI.findall(page)}
    return [uris[number] for number in numbers if number in uris]


def heated(image: Image, heat: NDArray[np.float64]) -> Image:
    """Lay a heat map [h, w] of 0 to 1 over an image, as `tlx explain` does."""
    from PIL import Image as module

    level = np.nan_to_num(np.clip(heat, 0, 1)).astype(np.float32)
    scale = max(1, 96 // max(image.size))  # of a small image, so that the map is not coarser than it is
    size = (image.width * scale, image.height * scale)
    value = np.asarray(module.fromarray(level).resize(size, module.Resampling.BILINEAR)).clip(0, 1)
    return module.fromarray(overlay(np.asarray(image.resize(size, module.Resampling.NEAREST)), value))
