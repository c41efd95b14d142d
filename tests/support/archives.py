"""Photos in archives of every kind, and archives made member by member."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from typing import Any

from PIL import Image


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (grey, 255 - grey, 7)).save(file, "PNG")
    return file.getvalue()


PHOTOS = {
    f"insects/{part}/{name}/{i}.png": png(i + 60 * (name == "bees") + 30 * (part == "val"))
    for part, count in (("train", 8), ("val", 3))
    for name in ("ants", "bees")
    for i in range(count)
}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    return tar_of(*((member(name, size=len(content)), content) for name, content in files.items()))


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, **facts: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in facts.items():
        setattr(info, key, value)
    return info


ARCHIVES = {
    "photos.zip": zipped(PHOTOS),
    "photos.tar": tarred(PHOTOS),
    "photos.tar.gz": gzip.compress(tarred(PHOTOS)),
    "photos.tgz": gzip.compress(tarred(PHOTOS)),
    "photos.tar.xz": lzma.compress(tarred(PHOTOS)),
    "photos.tar.bz2": bz2.compress(tarred(PHOTOS)),
}
PLAIN = ARCHIVES["photos.tar"]
