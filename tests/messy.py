"""Collections as people have them: pictures in every format with captions, and a known number of every fault."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("jpg", "png", "webp", "gif", "bmp", "tif")
KINDS = ("RGB", "RGB", "RGB", "L", "RGBA", "CMYK", "I;16", "P", "exif", "animated")


def picture(seed: int, width: int = 96, height: int = 80, cells: int = 7) -> Image.Image:
    """A smooth random picture: no two seeds give the same, or nearly the same."""
    coarse = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    """A picture as a file's bytes."""
    stream = io.BytesIO()
    image.save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()), **options)
    return stream.getvalue()


def of_kind(seed: int, kind: str, width: int = 96, height: int = 80) -> tuple[bytes, str]:
    """A picture file of a pixel format that wants converting, and its suffix."""
    image = picture(seed, width, height)
    if kind == "RGBA":
        image.putalpha(128)
        return encoded(image), "png"
    if kind == "CMYK":
        return encoded(image.convert("CMYK"), "jpg", quality=92), "jpg"
    if kind == "I;16":
        return encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)), "png"
    if kind == "P":
        return encoded(image.quantize(64)), "png"
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        return encoded(image, "jpg", exif=exif, quality=92), "jpg"
    if kind == "animated":
        return encoded(image, "gif", save_all=True, append_images=[picture(seed + 10**6, width, height)]), "gif"
    suffix = FORMATS[seed % len(FORMATS)]
    return encoded(image.convert(kind), suffix), suffix


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few bytes that claims 3.6 billion pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def profile(grey: bool = False) -> bytes:
    """The least of an ICC profile that LittleCMS takes: Rec. 2020's primaries with a gamma of 2.2, or linear grey."""

    def curve(gamma: float) -> bytes:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    if grey:
        tags[b"kTRC"] = curve(1.0)
    else:
        tags |= {b"rXYZ": xyz(0.6734, 0.2790, -0.0019), b"gXYZ": xyz(0.1656, 0.6753, 0.0299)}
        tags |= {b"bXYZ": xyz(0.1251, 0.0456, 0.7967), b"rTRC": curve(2.2), b"gTRC": curve(2.2), b"bTRC": curve(2.2)}
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    kind = b"GRAY" if grey else b"RGB "
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02100000, b"mntr", kind, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def messy_folder(folder: Path, num: int, width: int = 96, height: int = 80, seed: int = 0) -> Counter[str]:
    """`num` captioned pictures, every twentieth of them broken in some way; returns how many for each reason."""
    rng, expected = random.Random(seed), Counter[str]()
    folder.mkdir(parents=True, exist_ok=True)
    faults = ("truncated", "empty_file", "undecodable", "no_caption", "caption_not_utf8", "caption_nul",
              "caption_too_big", "too_many_pixels", "duplicate", "link")  # fmt: skip
    outside = folder.parent / "outside.png"
    outside.write_bytes(encoded(picture(10**7)))
    first: bytes | None = None
    for index in range(num):
        kind = KINDS[index % len(KINDS)]
        data, suffix = of_kind(index, kind, width, height)
        sub = folder / f"part{index % 3}"
        sub.mkdir(exist_ok=True)
        path, caption = sub / f"picture-{index:05d}.{suffix}", f"picture number {index}".encode()
        first = first or data
        fault = faults[index // 20 % len(faults)] if index % 20 == 19 else ""
        match fault:
            case "truncated":
                data = encoded(picture(index, width, height), "jpg")
                data, path = data[: len(data) * 9 // 10], path.with_suffix(".jpg")
            case "empty_file":
                data = b""
            case "undecodable":
                data = rng.randbytes(500)
            case "no_caption":
                caption = b" \n"
            case "caption_not_utf8":
                caption = b"caf\xe9 \xff"
            case "caption_nul":
                caption = b"a\0b"
            case "caption_too_big":
                caption = b"word " * 2_000_000
            case "too_many_pixels":
                data = bomb()
            case "duplicate":
                data = first
        if fault == "link":
            os.symlink(outside, path)
        else:
            path.write_bytes(data)
        path.with_suffix(".txt").write_bytes(caption)
        expected[fault or "kept"] += 1
    return expected
