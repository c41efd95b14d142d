"""A small data set, 36 photos of three classes in 8 x 8, as each kind of source that there is."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

CLASSES, EACH = ("ant", "bee", "cat"), 12
NAMES = [f"{name}/{i:02}.ppm" for name in CLASSES for i in range(EACH)]


def photo(i: int) -> bytes:
    """A photo of 8 x 8, as long as all others."""
    return b"P6 8 8 255\n" + np.random.default_rng(i).integers(0, 256, 192, np.uint8).tobytes()


def pixels(i: int) -> np.ndarray[Any, Any]:
    return np.frombuffer(photo(i)[-192:], np.uint8).reshape(8, 8, 3)


def folder(at: Path) -> Path:
    for i, name in enumerate(NAMES):
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(photo(i))
    return at


def links(at: Path) -> Path:
    folder(at.with_name("originals"))
    for name in NAMES:
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).symlink_to(at.with_name("originals") / name)
    return at


def csv(at: Path) -> Path:
    folder(at)
    rows = [f"{name},{name[:3]},{'test' if i % 4 == 0 else 'train'}" for i, name in enumerate(NAMES)]
    (at / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    return at / "list.csv"


def listed(at: Path) -> Path:
    folder(at / "photos")
    rows = [f"photos/{name},{name[:3]}" for name in NAMES]
    (at / "labels.csv").write_text("\n".join(["path,label", *rows]))
    return at


def npz(at: Path, save: Callable[..., None] = np.savez, **changed: Any) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    images = np.stack([pixels(i) for i in range(len(NAMES))])
    arrays = {"images": images, "labels": np.repeat(np.arange(3), EACH), "classes": np.array(CLASSES)}
    save(at / "arrays.npz", **{**arrays, **changed})
    return at / "arrays.npz"


def table(at: Path, contents: dict[int, bytes] | None = None, labels: dict[int, str] | None = None) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    photos = [(contents or {}).get(i, photo(i)) for i in range(len(NAMES))]
    columns = {"image": photos, "label": [(labels or {}).get(i, name[:3]) for i, name in enumerate(NAMES)]}
    parquet.write_table(pa.table(columns), at / "photos.parquet", compression="none")
    return at / "photos.parquet"


def packed(at: Path, name: str = "photos.tar") -> Path:
    folder(at / "photos")
    pack(at, name)
    shutil.rmtree(at / "photos")
    return at / name


def pack(at: Path, name: str) -> None:
    if name.endswith(".zip"):
        with zipfile.ZipFile(at / name, "w") as archive:
            for one in NAMES:
                archive.write(at / "photos" / one, one)
        return
    with tarfile.open(at / name, "w") as tar:
        tar.add(at / "photos", "photos")


def shards(at: Path) -> Path:
    (at / "members").mkdir(parents=True)
    with tarfile.open(at / "data-000.tar", "w") as tar:
        for i, name in enumerate(NAMES):
            for ending, content in (("ppm", photo(i)), ("cls", name[:3].encode())):
                (at / "members" / f"{i:03}.{ending}").write_bytes(content)
                tar.add(at / "members" / f"{i:03}.{ending}", f"{i:03}.{ending}")
    shutil.rmtree(at / "members")
    return at / "data-000.tar"
