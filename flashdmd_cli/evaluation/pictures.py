"""Labelled grids of pictures as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill, wrap

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flashdmd_cli.core.pictures import as_bytes
from flashdmd_cli.runs.files import replacing

MIN_CELL = 128
"""Smaller pictures are enlarged by a whole factor until they are this wide, in pixels."""
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
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")
