"""Small pictures for a page, within a number of bytes that the page as a whole may have."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from flashdmd_cli.data.items import Rejected
from flashdmd_cli.data.reading import inside
from flashdmd_cli.evaluation.intake import look

BUDGET = 1_400_000
"""Characters of all pictures of a page together, as it embeds them."""
SIDE = 192
"""Longest side of a small picture, in pixels."""
TINY = 96
"""Pictures up to this side are embedded as they are, as PNG: JPEG would blur their few pixels."""
TRIES = ((1.0, 85), (1.0, 70), (0.75, 70), (0.5, 65), (0.35, 55), (0.2, 50))
"""Fraction of `SIDE` and quality of the JPEG, tried in this order until the picture is small enough."""


class Thumbnails:
    """Pictures as data URIs; `num` of them together stay within `BUDGET`. No picture is read twice."""

    def __init__(self, num: int) -> None:
        self.limit = BUDGET // max(1, num)
        """Characters of one picture."""
        self._kept: dict[tuple[Path | None, str], str] = {}

    def of(self, folder: Path | None, sample: Mapping[str, Any]) -> str:
        """The picture of a line of `samples.jsonl`, whose files are in `folder`; else why it cannot be shown."""
        key = (folder, str(sample.get("file")))
        if key not in self._kept:
            self._kept[key] = self._read(folder, sample)
        return self._kept[key]

    def _read(self, folder: Path | None, sample: Mapping[str, Any]) -> str:
        if folder is None or not sample.get("file"):
            return "no picture"
        try:
            found, pixels = look(inside(folder.resolve(), str(sample["file"])))
        except Rejected:
            return "not in the folder of the pictures"
        if pixels is None:
            return found.reason
        if sample.get("sha256") != found.sha256:
            return "changed since it was measured"
        return encoded(Image.fromarray(pixels.permute(1, 2, 0).numpy()), self.limit)


def encoded(image: Image.Image, limit: int) -> str:
    """A data URI of at most `limit` characters; a text if that is too few for any picture."""
    if max(image.size) <= TINY and len(uri := _uri(image, "PNG")) <= limit:
        return uri
    for fraction, quality in TRIES:
        small = image.copy()
        small.thumbnail((int(SIDE * fraction),) * 2)
        if len(uri := _uri(small, "JPEG", quality=quality)) <= limit:
            return uri
    return "too many pictures for this page"


def _uri(image: Image.Image, format: str, **options: int) -> str:
    stream = io.BytesIO()
    image.save(stream, format, optimize=True, **options)
    return f"data:image/{format.lower()};base64," + base64.b64encode(stream.getvalue()).decode("ascii")
