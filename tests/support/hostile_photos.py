"""Photos of every format and mode that tlx reads, and files that ask for far more than they hold."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

from support.hostile_data import png


def saved(format: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    image = Image.linear_gradient("L").resize((24, 20)).convert(mode)
    if options.pop("frames", 1) > 1:
        options.update(save_all=True, append_images=[image.rotate(90 * i) for i in range(1, 4)])
    image.save(file, format, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    facts = Image.Exif()
    facts[0x0112] = orientation
    return facts


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(*chunks: bytes, head: bytes = b"") -> bytes:
    """A PNG with further chunks after its header, or with another header."""
    plain = png()
    return plain[:8] + (chunk(b"IHDR", head) if head else plain[8:33]) + b"".join(chunks) + plain[33:]


def tiff(*tags: tuple[int, int, int, int], following: int = 0, offset: int = 8) -> bytes:
    """A TIFF of one directory of tags: number, type, count and value."""
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<I", offset) + directory + struct.pack("<I", following) + bytes(64)


def of_size(width: int, height: int, *more: tuple[int, int, int, int]) -> tuple[tuple[int, int, int, int], ...]:
    plain = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8)}
    plain |= {277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, min(width * height, 2**32 - 1))}
    return tuple((number, *facts) for number, facts in {**plain, **{tag[0]: tag[1:] for tag in more}}.items())


def bmp(width: int, height: int) -> bytes:
    """A BMP of hardly any pixels, whatever its header says."""
    return b"BM" + struct.pack("<IHHIIiiHHII", 99, 0, 0, 54, 40, width, height, 1, 24, 0, 0) + bytes(60)


LONG_SIDES = b"\x7f\xff\xff\xff" * 2 + bytes(8)
BOMB = zlib.compress(bytes(80 * 2**20), 9)
SEEDS: dict[str, bytes] = {
    **{f"PNG {mode}": saved("PNG", mode) for mode in ("1", "L", "P", "RGB", "RGBA", "I;16")},
    **{f"TIFF {mode}": saved("TIFF", mode) for mode in ("1", "L", "P", "RGB", "RGBA", "I;16")},
    **{f"JPEG {mode}": saved("JPEG", mode) for mode in ("L", "RGB", "CMYK", "YCbCr")},
    **{f"{form} {mode}": saved(form, mode) for form in ("WEBP", "AVIF") for mode in ("RGB", "RGBA")},
    **{f"JPEG2000 {mode}": saved("JPEG2000", mode) for mode in ("L", "RGB", "RGBA", "I;16")},
    **{f"{form}": saved(form, "RGB") for form in ("BMP", "DIB", "PPM", "GIF")},
    **{f"BMP {mode}": saved("BMP", mode) for mode in ("1", "P", "RGBA")},
    **{f"PPM {mode}": saved("PPM", mode) for mode in ("1", "L", "I;16")},
    **{f"TIFF {mode}": saved("TIFF", mode) for mode in ("F", "I", "CMYK", "LAB", "YCbCr", "LA", "PA")},
    **{f"TIFF {how}": saved("TIFF", compression=how) for how in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")},
    "TIFF group4": saved("TIFF", "1", compression="group4"),
    **{f"{form} animated": saved(form, frames=4) for form in ("PNG", "GIF", "WEBP", "TIFF", "AVIF")},
    **{f"{form} turned": saved(form, exif=exif(6)) for form in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")},
    "JPEG turned by rubbish": saved("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12" + b"\xff" * 99),
    "JPEG progressive": saved("JPEG", progressive=True),
    "JPEG in two pictures": saved("MPO", frames=4),
    "PNG of a palette with alpha": saved("PNG", "P", transparency=b"\0\x7f"),
}  # fmt: skip
BOMBS: dict[str, bytes] = {
    "no bytes": b"",
    "text": b"no photo",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file closefile\n",
    "PDF": b"%PDF-1.4\n1 0 obj<</Type/XObject>>\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "XBM": b"#define x_width 9\n#define x_height 9\nstatic char x_bits[] = {0};",
    "PNG of 2^31 pixels a side": with_chunks(head=struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)),
    "PNG of 100,000,000 pixels": with_chunks(head=struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)),
    "PNG of no pixels": with_chunks(head=struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)),
    "PNG one pixel high": with_chunks(head=struct.pack(">IIBBBBB", 128_000_000, 1, 1, 0, 0, 0, 0)),
    "PNG with a text bomb": with_chunks(chunk(b"zTXt", b"a\0\0" + BOMB), *[chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)] * 9),
    "PNG with a profile bomb": with_chunks(chunk(b"iCCP", b"a\0\0" + BOMB)),
    "PNG with an EXIF of rubbish": with_chunks(chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 90)),
    "PNG with a chunk of 4 GB": png()[:33] + struct.pack(">I", 2**32 - 1) + b"iCCP" + png()[33:],
    "PNG with 20,000 chunks": with_chunks(*[chunk(b"tEXt", b"a\0b")] * 20_000),
    "JPEG of 65,535 x 65,535": saved("JPEG").replace(struct.pack(">HH", 20, 24), b"\xff" * 4),
    "GIF of 65,535 x 65,535": b"GIF89a"
    + b"\xff\xff" * 2
    + b"\xf0\0\0"
    + bytes(6)
    + b","
    + bytes(4)
    + b"\xff" * 4
    + b"\0\2\2\x4c\1\0;",
    "WebP of 16,383 x 16,383": saved("WEBP", lossless=True)[:21] + b"\xff\xff\xff\x0f" + bytes(40),
    "BMP of 2^31 x 1": bmp(2**31 - 1, 1),
    "BMP of a negative height": bmp(30_000, -4_000),
    "PPM of 10,000 x 10,000": b"P6 10000 10000 255\n",
    "PPM of digits": b"P5 " + b"9" * 5000 + b" 1 255\n",
    "TIFF of 60,000 x 60,000": tiff(*of_size(60_000, 60_000)),
    "TIFF of 10,000 x 10,000": tiff(*of_size(10_000, 10_000)),
    "TIFF whose directory follows itself": tiff(*of_size(4, 4), following=8),
    "TIFF whose directory is far away": tiff(offset=2**32 - 8),
    "TIFF of 65,535 tags": b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 270, 2, 2**31, 8) * 9_000,
    "TIFF of directories in themselves": tiff(*of_size(4, 4, (34665, 4, 1, 8), (330, 4, 1, 8), (34853, 4, 1, 8))),
    "TIFF of 2^31 strips": tiff(*of_size(4, 4, (273, 4, 2**31 - 1, 8), (279, 4, 2**31 - 1, 8))),
    "TIFF of 65,535 channels": tiff(*of_size(4, 4, (277, 3, 1, 65535), (258, 3, 65535, 8))),
    "TIFF of tiles of 2^31": tiff(*of_size(4, 4, (322, 4, 1, 2**31), (323, 4, 1, 2**31), (324, 4, 1, 8))),
    "JPEG 2000 of 2^31 a side": b"\xff\x4f\xff\x51\0\x2f\0\0" + LONG_SIDES + LONG_SIDES + b"\0\3" + b"\x07\1\1" * 3,
    "JPEG 2000 of boxes in boxes": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\1jp2h\0\0\0\0\0\0\xff\xff" * 3_000,
    "HEIC of nothing": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "AVIF of nothing": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif",
    "HEIC of boxes in boxes": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\xff\xff\xff\xffmeta\0\0\0\0" * 900,
}  # fmt: skip
