"""What a source hands over, and the reasons for which a part of it is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

MAX_FILE_BYTES = 512 * 2**20
"""A larger file is not read: no photograph is that big, and memory must stay flat."""
MAX_CAPTION_BYTES = 64 * 2**10
"""A longer caption is a mistake: no text encoder reads a hundredth of it."""

PICTURE_SUFFIXES = frozenset(
    "jpg jpeg jpe jfif png apng webp bmp dib tif tiff gif avif ppm pgm pnm tga heic heif hif jxl".split()
)
CAPTION_SUFFIXES = ("txt", "caption", "text")
"""Ends of the names of caption files, in the order in which they are looked for."""
PLUGINS = {"HEIC": "pillow-heif", "JPEG XL": "pillow-jxl-plugin", "AVIF": "Pillow 11.3 or later"}
"""What reads a picture format that Pillow does not read, or not everywhere."""

REASONS: dict[str, str] = {
    "empty_file": "zero bytes long",
    "file_too_big": f"over {MAX_FILE_BYTES // 2**20} MiB",
    "missing_file": "named by a table, but not there",
    "unreadable": "the system refuses to read it",
    "undecodable": "not a picture, or a damaged one",
    "truncated": "the end of the picture is missing",
    **{
        f"{name} not supported": f"a format not supported here: {package} reads it" for name, package in PLUGINS.items()
    },
    "lfs_pointer": "Git LFS's note in place of the file: `git lfs pull` fetches it",
    "failed": "an unforeseen error, told in rejected.jsonl: perhaps a fault of flashdmd, or of a plug-in of Pillow",
    "too_many_pixels": "more pixels than any camera's: a decompression bomb",
    "unsafe_path": "an absolute path, or one that leaves the source through ..",
    "link": "a link that leads out of the source, or a link inside a tar",
    "not_a_file": "a device, a folder or another special member of a tar",
    "tar_truncated": "the tar ends, or is damaged, before this point",
    "duplicate_key": "a name that came before",
    "bad_row": "a row of a table that cannot be read",
    "other_file": "neither a picture nor a caption",
    "no_picture": "a caption without its picture",
    "no_caption": "a picture without a caption, or with an empty one",
    "caption_not_utf8": "a caption that is not UTF-8",
    "caption_nul": "a caption with a NUL character",
    "caption_too_big": f"a caption over {MAX_CAPTION_BYTES // 2**10} KiB",
    "duplicate": "the same picture file as one before",
    "near_duplicate": "nearly the same picture as one before",
}
"""Everything that can be wrong with one row of a source. A threshold that is missed counts under its own text
(`aesthetic>=6.25`), a value that a threshold needs and that is not there under `no aesthetic`."""


def meaning(reason: str) -> str:
    """What a reason says, in words."""
    return REASONS.get(reason, "no number in that column" if reason.startswith("no ") else "a threshold missed")


class Rejected(Exception):
    """One row is left out: `reason` is what it counts under, `detail` what more is known."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


Row = dict[str, Any]
"""One entry of a source's listing, ready for JSON. Every row has `source`, its name for people; one with a `reason` is
rejected already; the rest is the business of the source that wrote it."""


@dataclass(frozen=True)
class Item:
    """One row with its contents."""

    caption: str
    columns: dict[str, Any] = field(default_factory=dict)  # scalars that came along: scores, sizes, ids
    picture: bytes | None = None  # a file's bytes; None for a prompt alone


class Source(Protocol):
    """A collection as people have it. Picklable, so that every process can read its own part."""

    path: Path
    kind: str
    prompts_only: bool

    def rows(self) -> Iterator[Row]:
        """The listing, always in the same order, made without reading a picture."""
        ...

    def fetch(self, row: Row) -> Item:
        """The contents of a row; raises `Rejected`."""
        ...


def rejected_row(source: str, reason: str, detail: str = "") -> Row:
    """A row of which the listing knows already that it is no use."""
    return {"source": source, "reason": reason, "detail": detail}
