"""The interface of a data source, and the reasons to reject its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

MAX_FILE_BYTES = 512 * 2**20
"""Larger files are rejected, to limit memory; no photograph is that large."""
MAX_CAPTION_BYTES = 64 * 2**10
"""Longer captions are rejected as mistakes: text encoders read less than a hundredth of that."""

PICTURE_SUFFIXES = frozenset(
    "jpg jpeg jpe jfif png apng webp bmp dib tif tiff gif avif ppm pgm pnm tga heic heif hif jxl".split()
)
CAPTION_SUFFIXES = ("txt", "caption", "text")
"""Suffixes of caption files, in order of priority."""
PLUGINS = {"HEIC": "pillow-heif", "JPEG XL": "pillow-jxl-plugin", "AVIF": "Pillow 11.3 or later"}
"""Picture format that not every Pillow supports -> package that does."""

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
    "failed": "an unexpected error, see rejected.jsonl: perhaps a bug of flashdmd, or of a plug-in of Pillow",
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
"""Reason to reject a row -> description. Further reasons are missed thresholds, under their own text
(`aesthetic>=6.25`), and missing values for them (`no aesthetic`)."""


def meaning(reason: str) -> str:
    """Description of a reason."""
    return REASONS.get(reason, "no number in that column" if reason.startswith("no ") else "a threshold missed")


class Rejected(Exception):
    """A row is rejected. `reason` is a key of `REASONS` or a threshold, `detail` gives more information."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


Row = dict[str, Any]
"""One entry of a source's listing, JSON-serialisable. Every row has `source`, a readable name; a row with a `reason` is
rejected already; other keys are private to the source that wrote them."""


@dataclass(frozen=True)
class Item:
    """One row with its contents."""

    caption: str
    columns: dict[str, Any] = field(default_factory=dict)  # scalars of the row: scores, sizes, ids
    picture: bytes | None = None  # contents of a picture file; None for a prompt without picture


class Source(Protocol):
    """A collection of pictures or prompts in some format. Picklable, so that every process can read its own part."""

    path: Path
    kind: str
    prompts_only: bool

    def rows(self) -> Iterator[Row]:
        """The listing, in a reproducible order, without reading any picture."""
        ...

    def fetch(self, row: Row) -> Item:
        """The contents of a row; raises `Rejected`."""
        ...


def rejected_row(source: str, reason: str, detail: str = "") -> Row:
    """A row that is rejected in the listing already."""
    return {"source": source, "reason": reason, "detail": detail}
