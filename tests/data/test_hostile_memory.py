"""A file of a few kilobytes never makes tlx take gigabytes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from support.hostile_photos import BOMBS, of_size, tiff

GIB = 2**20  # in KiB
MEASURED = """
import resource, sys
from pathlib import Path
import tlx
from tlx.data.images import read_photo
from tlx.errors import TlxError
read = read_photo if sys.argv[1] == "photos" else tlx.load_data
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[2]).iterdir()):
    try:
        read(path)
        outcome = "read"
    except TlxError as error:
        outcome = "refused"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak - before, outcome, path.name, sep="\\t")
    before = peak
"""


def grown(kind: str, folder: Path) -> dict[str, tuple[int, str]]:
    """KiB by which each file in a folder lets a process grow, and what became of it."""
    command = [sys.executable, "-c", MEASURED, kind, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ))
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return {name: (int(size), outcome) for size, outcome, name in rows}


def float_tiff(side: int) -> bytes:
    """A TIFF of floats whose strips are all the same few bytes."""
    rows = 500
    strip = b"\x81\0" * (side * rows * 4 // 128)  # PackBits: 128 zeros in two bytes
    count = side // rows
    head = tiff(*of_size(side, side, (258, 3, 1, 32), (259, 3, 1, 32773), (339, 3, 1, 3), (278, 4, 1, rows)))
    at = len(head)
    tags = ((273, 4, count, at), (279, 4, count, at + 4 * count))
    head = tiff(*of_size(side, side, (258, 3, 1, 32), (259, 3, 1, 32773), (339, 3, 1, 3), (278, 4, 1, rows), *tags))
    assert len(head) == at
    start = at + 8 * count
    places = np.array([start] * count + [len(strip)] * count, dtype="<u4").tobytes()
    return head + places + strip


def test_photos(tmp_path: Path) -> None:
    for name, content in {**BOMBS, "TIFF of floats": float_tiff(11_000)}.items():
        (tmp_path / f"{name.replace('/', ' ')}.png").write_bytes(content)
    sizes = grown("photos", tmp_path)
    assert len(sizes) == len(BOMBS) + 1 and sum(outcome == "refused" for _, outcome in sizes.values()) > 20
    assert sizes["TIFF of floats.png"][1] == "read"
    assert {name: size for name, (size, _) in sizes.items() if size > 1.5 * GIB} == {}


def test_files_of_data(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros((60_000, 32, 32), dtype=np.uint8))
    with zipfile.ZipFile(tmp_path / "packed.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", array.getvalue() * 2)
        archive.writestr("labels.npy", b"x")
    header = b"{'descr': '|S0', 'fortran_order': False, 'shape': (%d,), }" % 2**40
    nothing = b"\x93NUMPY\2\0" + len(header).to_bytes(4, "little") + header
    with zipfile.ZipFile(tmp_path / "nothing.npz", "w") as archive:
        archive.writestr("images.npy", nothing)
        archive.writestr("labels.npy", nothing)
    with (tmp_path / "holes.csv").open("wb") as file:
        file.write(b"path,label\n")
        file.truncate(2**40)
    rows, numbers = 4_000, pa.array([0, 1] * 2_000, pa.int32())
    texts = pa.DictionaryArray.from_arrays(numbers, pa.array(["a" * 2**20, "b" * 2**20]))
    one = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([b"x" * 2**20]))
    parquet.write_table(pa.table({"image": [b"x"] * rows, "label": texts}), tmp_path / "l.parquet", compression="zstd")
    parquet.write_table(pa.table({"image": one, "label": numbers}), tmp_path / "p.parquet", compression="zstd")
    with tarfile.open(tmp_path / "records.tar.xz", "w:xz", format=tarfile.PAX_FORMAT) as archive:
        for i in range(300):
            member = tarfile.TarInfo(f"{i}.png")
            member.pax_headers = {"x": "y" * 60_000}
            archive.addfile(member)
    sizes = grown("data", tmp_path)
    assert len(sizes) == 6 and all(outcome == "refused" for _, outcome in sizes.values())
    assert {name: size for name, (size, _) in sizes.items() if size > GIB / 2} == {}
