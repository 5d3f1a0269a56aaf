"""Pictures as PNG: single ones with texts in the file, and labelled sheets of many."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from flashdmd_cli import __version__
from flashdmd_cli.core.pictures import as_bytes
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import replacing

MIN_CELL, MAX_CELL = 128, 512
"""Smaller pictures are enlarged by a whole factor until they are this wide, larger ones are shrunk; in pixels."""
MAX_LOSSLESS, STRIP_SIDE, STRIP_QUALITY = 96, 192, 82
"""Pictures of a strip: up to the first width they are kept without loss; larger ones become JPEGs of this width."""
GAP, LABEL_WIDTH, FONT_SIZE = 6, 150, 14
LETTER, LINE, MAX_LINES = 8, 18, 6
"""A letter's width and a line's height at that size, in pixels; of a longer caption the beginning is shown."""
WRITER = "Software"
"""The key that PNG reserves for the program that wrote a picture."""


def to_image(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) on [-1, 1] as a Pillow image of 8 bits."""
    return Image.fromarray(as_bytes(picture.detach().cpu()).permute(1, 2, 0).contiguous().numpy())


def png(picture: Tensor, texts: Mapping[str, str]) -> bytes:
    """A PNG file of a picture (3, H, W) on [-1, 1], with texts such as its prompt as its text metadata."""
    info = PngImagePlugin.PngInfo()
    for key, text in ({WRITER: f"flashdmd {__version__}"} | dict(texts) if texts else {}).items():
        info.add_text(key, text)
    stream = io.BytesIO()
    to_image(picture).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def read_texts(path: Path) -> dict[str, str]:
    """The texts that `png` stored in a file; InputError if there are none."""
    try:
        with Image.open(path) as image:
            image.load()  # texts may also follow the pixels
            texts = {key: str(text) for key, text in getattr(image, "text", {}).items()}
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}", hint="name a PNG file") from None
    if not texts.get(WRITER, "").startswith("flashdmd "):
        raise InputError(
            f"{path}: does not say how it was drawn", hint="pictures of `flashdmd sample` do, unless edited elsewhere"
        )
    return texts


def save_grid(
    rows: Sequence[Tensor | Sequence[Tensor]],
    labels: Sequence[str],
    path: Path,
    captions: Sequence[str] = (),
    heads: Sequence[str] = (),
    label_width: int = LABEL_WIDTH,
) -> None:
    """Write rows of pictures, each (3, H, W) on [-1, 1], with a label left of each row, `label_width` pixels wide.

    `captions` stand below the columns, `heads` above them. The size of the first picture is that of all cells.
    """
    if len(rows) != len(labels) or not rows:
        raise ValueError(f"{len(rows)} rows of pictures and {len(labels)} labels")
    height, width = rows[0][0].shape[-2:]
    scale = max(1, -(-MIN_CELL // width)) if width < MIN_CELL else min(1.0, MAX_CELL / width)
    height, width = round(height * scale), round(width * scale)
    columns = max(len(row) for row in rows)
    above, below = ([_wrapped(text, width, MAX_LINES) for text in texts] for texts in (heads, captions))
    top = LINE * max(map(len, above), default=0)
    foot = top + len(rows) * (height + GAP) + GAP
    size = (label_width + columns * (width + GAP) + GAP, foot + LINE * max(map(len, below), default=0))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=FONT_SIZE)

    def write(x: int, y: int, lines: Sequence[str]) -> None:
        draw.multiline_text((x, y), "\n".join(lines), fill="black", font=font)

    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + GAP + i * (height + GAP)
        write(GAP, y + GAP, _wrapped(label, label_width, max(1, height // LINE)))
        for j, picture in enumerate(row):
            image = to_image(picture)
            method = Image.Resampling.NEAREST if image.width <= width else Image.Resampling.LANCZOS
            sheet.paste(image.resize((width, height), method), (label_width + GAP + j * (width + GAP), y))
    for lines_of, y in ((above, GAP), (below, foot)):
        for j, lines in enumerate(lines_of):
            write(label_width + GAP + j * (width + GAP), y, lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")


def _wrapped(text: str, width: int, most: int) -> list[str]:
    """The lines of a text in a column of `width` pixels, at most `most` of each of its own lines."""
    return [
        line for part in text.splitlines() for line in wrap(part, width // LETTER, max_lines=most, placeholder=" ...")
    ]


def save_strip(pictures: Tensor, folder: Path, name: str) -> Path:
    """Write pictures (N, 3, H, W) on [-1, 1] next to each other as one small PNG or JPEG; returns its path."""
    images = [to_image(picture) for picture in pictures]
    width, height = images[0].size
    small = width <= MAX_LOSSLESS
    if not small:
        width, height = STRIP_SIDE, max(1, round(height * STRIP_SIDE / width))
        images = [image.resize((width, height), Image.Resampling.LANCZOS) for image in images]
    strip = Image.new("RGB", (width * len(images), height))
    for i, image in enumerate(images):
        strip.paste(image, (i * width, 0))
    path = folder / f"{name}.{'png' if small else 'jpg'}"
    with replacing(path) as temporary:
        if small:
            strip.save(temporary, "PNG", optimize=True)
        else:
            strip.save(temporary, "JPEG", quality=STRIP_QUALITY)
    return path
