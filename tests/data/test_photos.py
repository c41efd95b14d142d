"""What a photo may be: its format, its pixels, its size; and what becomes of a file that is none of that."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tlx
from tlx.data import load_data
from tlx.data.images import EXTENSIONS, MAX_PIXELS, decode, read_photo
from tlx.data.view import View
from tlx.errors import DataError

WRITERS = {
    **{".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP"},
    **{".bmp": "BMP", ".dib": "DIB", ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF", ".avif": "AVIF"},
    **{".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM", ".jp2": "JPEG2000", ".j2k": "JPEG2000"},
    **{".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF"},
}
MODES = {".pgm": "L", ".pbm": "1"}
GREY = (130, 130, 130)
WHOLE = View(lambda width, height: (0, 0, width, height), 4)
RUN: dict[str, Any] = {
    **{"backend": "loopback", "model": "tiny-mlp", "image_size": 8, "epochs": 1, "batch_size": 4, "workers": 1},
    **{"quiet": True, "weights": "none"},
}


def encoded(image: Image.Image, writer: str, **options: Any) -> bytes:
    Image.init()
    if writer == "AVIF" and writer not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    if writer == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    content = io.BytesIO()
    image.save(content, format=writer, **options)
    return content.getvalue()


def test_every_suffix_of_a_photo_is_tested_here() -> None:
    assert set(WRITERS) == EXTENSIONS


@pytest.mark.parametrize("suffix", sorted(WRITERS))
def test_a_photo_of_each_format_is_decoded_from_a_path_bytes_and_a_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo{suffix.upper()}"
    path.write_bytes(encoded(Image.new("RGB", (16, 8), GREY).convert(MODES.get(suffix, "RGB")), WRITERS[suffix]))
    whole = np.asarray(read_photo(path))
    assert whole.shape == (8, 16, 3)
    if suffix != ".pbm":
        assert np.abs(whole.astype(int) - 130).max() <= 3
    with path.open("rb") as file:
        for source in (path.read_bytes(), file):
            assert np.array_equal(np.asarray(decode(source, where="x")), whole)
            assert decode(source, WHOLE, where="x").size == (4, 4)


def test_an_eps_by_the_name_of_a_photo_starts_no_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n", encoding="utf-8")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "cat.jpg").write_bytes(encoded(Image.new("RGB", (16, 8), GREY), "EPS"))
    with pytest.raises(DataError, match=r"cat\.jpg cannot be decoded as an image: it is none of JPEG, PNG"):
        read_photo(tmp_path / "cat.jpg")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("writer", ["EPS", "PDF", "ICO", "TGA", "SGI", "PCX", "IM"])
def test_other_formats_are_refused_whatever_their_names(writer: str) -> None:
    with pytest.raises(DataError, match="cat cannot be decoded as an image: it is none of"):
        decode(encoded(Image.new("RGB", (16, 16), GREY), writer), where="cat")


def test_heic_is_recognised_whatever_its_name_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    content = encoded(Image.new("RGB", (64, 64), GREY), "HEIF")
    (tmp_path / "cat.jpg").write_bytes(content)
    assert np.abs(np.asarray(read_photo(tmp_path / "cat.jpg")).astype(int) - 130).max() <= 3
    with pytest.raises(DataError, match="cat"):
        decode(content[: len(content) // 2], where="cat")


@pytest.mark.parametrize("installed", [True, False])
def test_heic_needs_its_plug_in_which_the_error_names(installed: bool, tmp_path: Path) -> None:
    (tmp_path / "cat.heic").write_bytes(encoded(Image.new("RGB", (16, 16), GREY), "HEIF"))
    program = (
        f"import sys\nif not {installed}: sys.modules['pillow_heif'] = None\n"
        "from pathlib import Path\nfrom tlx.data.images import read_photo\n"
        "try: print(read_photo(Path(sys.argv[1])).size)\nexcept Exception as error: print(error)"
    )
    call = [sys.executable, "-c", program, str(tmp_path / "cat.heic")]
    answer = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    path = tmp_path / "cat.heic"
    missing = f'{path} is a HEIC photo, which needs the plug-in pillow-heif (pip install "tlx[heic]").\n'
    assert answer == ("(16, 16)\n" if installed else missing)


GREYS: dict[str, tuple[Any, float, list[int]]] = {
    "16 bits": (np.uint16, 65535, [0, 127, 255]),
    "12 bits in 16": (np.uint16, 4095, [0, 127, 255]),
    "8 bits in 16": (np.uint16, 255, [0, 127, 255]),
    "16 bits, big-endian": (">u2", 65535, [0, 127, 255]),
    "12 bits in 16, big-endian": (">u2", 4095, [0, 127, 255]),
    "16 bits in 32": (np.int32, 65535, [0, 127, 255]),
    "31 bits in 32": (np.int32, 2**31 - 1, [0, 63, 127]),
    "floating point up to 1": (np.float32, 1.0, [0, 128, 255]),
    "floating point up to 255": (np.float32, 255.0, [0, 127, 255]),
    "floating point up to 4095": (np.float32, 4095.0, [0, 127, 255]),
}


@pytest.mark.parametrize("name", GREYS)
def test_grey_of_many_bits_is_scaled_by_its_range(name: str, tmp_path: Path) -> None:
    dtype, top, expected = GREYS[name]
    pixels = np.tile(np.array([0, top / 2, top]).astype(dtype), (4, 1))
    mode = "I;16B" if dtype == ">u2" else Image.fromarray(pixels).mode
    Image.frombytes(mode, (3, 4), pixels.tobytes()).save(tmp_path / "p.tif")
    with Image.open(tmp_path / "p.tif") as image:
        assert image.mode == mode
    grey = np.asarray(read_photo(tmp_path / "p.tif"))
    assert np.array_equal(grey, np.tile(np.array(expected)[:, None], (4, 1, 3)))


def test_a_tiff_of_12_bits_is_scaled_by_4096(tmp_path: Path) -> None:
    """Two pixels, 0x800 and 0xFFF, packed in three bytes; Pillow reads such files and writes none."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<I", 12) + b"\x80\x0f\xff\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert np.asarray(decode(content, where="x"))[0, :, 0].tolist() == [128, 255]


@pytest.mark.parametrize(
    "pixels", [np.full((4, 4), -5, np.int32), np.full((4, 4), np.nan, np.float32), np.full((4, 4), -1, np.float32)]
)
def test_grey_without_a_range_is_refused(pixels: Any, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "p.tif")
    with pytest.raises(DataError, match=r"p\.tif has grey pixels that are negative, not finite or above 32 bits"):
        read_photo(tmp_path / "p.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "LAB", "I", "F", "I;16", "I;16B"])
def test_a_tiff_of_each_mode_becomes_rgb_or_is_refused_in_one_line(mode: str, tmp_path: Path) -> None:
    white = Image.new("RGB", (16, 8), (255, 255, 255))
    if mode == "LAB":
        white = Image.new("LAB", (16, 8), (255, 128, 128))
    elif mode in ("I", "F") or mode.startswith("I;"):
        white = Image.fromarray(np.full((8, 16), 255, np.uint16 if ";" in mode else np.int32)).convert(mode)
    else:
        white = white.convert("RGBA" if mode == "PA" else mode).convert(mode)
    white.save(tmp_path / "p.tif")
    try:
        pixels = np.asarray(read_photo(tmp_path / "p.tif"))
    except DataError as error:
        assert "p.tif" in str(error) and "\n" not in str(error)
    else:
        assert pixels.shape == (8, 16, 3) and pixels.min() >= 250


@pytest.mark.parametrize("writer", ["JPEG", "TIFF", "PNG"])
def test_a_view_is_of_the_upright_photo(writer: str) -> None:
    corner = np.zeros((16, 32, 3), np.uint8)
    corner[:, 16:] = 255  # the right half, as a viewer shows it
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(corner).transpose(Image.Transpose.ROTATE_90)
    right = View(lambda width, height: (0.6 * width, 0, width, height), 4)
    assert np.asarray(decode(encoded(stored, writer, exif=exif), right, where="x")).min() > 250


def test_what_is_no_file_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_photo(tmp_path / "x.png")
    assert str(error.value) == f"{tmp_path}/x.png is not a file, or a link to nothing. Fix: remove it"


def test_damaged_exif_loses_no_photo() -> None:
    content = encoded(Image.new("RGB", (16, 8), GREY), "JPEG", exif=b"Exif\0\0nonsense of an old camera")
    assert decode(content, WHOLE, where="x").size == (4, 4)


@pytest.mark.parametrize("writer", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_counts(writer: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime")]
    content = encoded(frames[0], writer, save_all=True, append_images=frames[1:])
    red, green, blue = np.asarray(decode(content, where="x"))[8, 8].tolist()
    assert red > 245 and green < 10 and blue < 10


def huge(side: int) -> bytes:
    """The beginning of a PNG that says it has side x side pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize("side", [12_000, 100_000])
def test_a_huge_photo_is_refused_in_a_line_that_names_the_field(side: int) -> None:
    assert side**2 > MAX_PIXELS
    with pytest.raises(DataError, match=rf"bomb has .* pixels, more than max_pixels={MAX_PIXELS} allows") as error:
        decode(huge(side) + b"\0\0\0\0IEND", where="bomb")
    assert "raise max_pixels" in str(error.value) and "\n" not in str(error.value)


def test_max_pixels_also_raises_the_limit_of_pillow_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    content = encoded(Image.new("RGB", (16, 8), GREY), "PNG")
    assert decode(content, where="x", max_pixels=128).size == (16, 8)
    with pytest.raises(DataError, match="x has 16 x 8 pixels, more than max_pixels=127 allows"):
        decode(content, where="x", max_pixels=127)


def test_max_pixels_holds_in_training_and_in_predictions(tmp_path: Path) -> None:
    for name, shade in (("cat", 40), ("dog", 200)):
        for i in range(6):
            path = tmp_path / "pets" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade + i, 0, 0)).save(path)
    large = tmp_path / "pets" / "cat" / "large.png"
    Image.new("RGB", (9, 8)).save(large)
    fields = {"data": str(tmp_path / "pets"), "val_fraction": 0, "test_fraction": 0, **RUN, "batch_size": 5}
    with pytest.raises(DataError, match=r"large\.png has 9 x 8 pixels, more than max_pixels=64 allows"):
        tlx.run(**fields, max_pixels=64, out=str(tmp_path / "stopped"))
    assert len(load_data(tmp_path / "pets", max_pixels=64, on_bad_image="skip", val_fraction=0).parts["train"]) == 10
    run = tlx.run(**fields, max_pixels=64, on_bad_image="skip", out=str(tmp_path / "run")).run_dir
    assert len(tlx.predict(run, tmp_path / "pets" / "dog")) == 6
    with pytest.raises(DataError, match=r"large\.png has 9 x 8 pixels, more than max_pixels=64 allows"):
        tlx.predict(run, large)
