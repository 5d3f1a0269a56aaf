"""Labelled grids of pictures as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill, wrap

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flashdmd_cli.core.pictures import as_bytes

MIN_CELL = 128
"""Smaller pictures are enlarged by a whole factor until they are this wide, in pixels."""
MAX_LOSSLESS, STRIP_SIDE, STRIP_QUALITY = 96, 192, 82
"""Pictures of a strip: up to the first width they are kept without loss; larger ones become JPEGs of this width."""
GAP, LABEL_WIDTH, FONT_SIZE = 6, 150, 14
LETTER, LINE, MAX_LINES = 8, 18, 6
"""A letter's width and a line's height at that size, in pixels; of a longer caption the beginning is shown."""


def to_image(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) on [-1, 1] as a Pillow image of 8 bits."""
    return Image.fromarray(as_bytes(picture.detach().cpu()).permute(1, 2, 0).contiguous().numpy())


def save_grid(rows: Sequence[Tensor], labels: Sequence[str], path: Path, captions: Sequence[str] = ()) -> None:
    """Write rows of pictures, each (N, 3, H, W) on [-1, 1] and of one size, with a label left of each row.

    `captions` stand below the columns.
    """
    if len(rows) != len(labels) or not rows:
        raise ValueError(f"{len(rows)} rows of pictures and {len(labels)} labels")
    height, width = rows[0].shape[-2:]
    factor = max(1, -(-MIN_CELL // width))
    height, width = height * factor, width * factor
    columns = max(len(row) for row in rows)
    below = [wrap(text, width // LETTER, max_lines=MAX_LINES, placeholder=" ...") for text in captions]
    foot = len(rows) * (height + GAP) + GAP
    size = (LABEL_WIDTH + columns * (width + GAP) + GAP, foot + LINE * max(map(len, below), default=0))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=FONT_SIZE)
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = GAP + i * (height + GAP)
        text = "\n".join(fill(line, 18) for line in label.splitlines())
        draw.multiline_text((GAP, top + GAP), text, fill="black", font=font)
        for j, picture in enumerate(row):
            image = to_image(picture).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(image, (LABEL_WIDTH + GAP + j * (width + GAP), top))
    for j, lines in enumerate(below):
        draw.multiline_text((LABEL_WIDTH + GAP + j * (width + GAP), foot), "\n".join(lines), fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    sheet.save(temporary, "PNG")
    temporary.replace(path)


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
    temporary = path.with_name(f".{path.name}.partial")
    if small:
        strip.save(temporary, "PNG", optimize=True)
    else:
        strip.save(temporary, "JPEG", quality=STRIP_QUALITY)
    temporary.replace(path)
    return path
