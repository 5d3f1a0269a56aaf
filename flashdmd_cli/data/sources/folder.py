"""A folder of pictures with a `.txt` (and, as img2dataset writes it, a `.json`) beside each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashdmd_cli.data.items import PICTURE_SUFFIXES, Item, Rejected, Row, rejected_row
from flashdmd_cli.data.reading import caption_of, inside, parse_object, printable, read_caption, read_file, scalars

MAX_JSON_BYTES = 2**20
_BESIDE = (".txt", ".json")


@dataclass
class Folder:
    """Pictures in sorted order of their paths, folder by folder; hidden files and folders do not count."""

    path: Path
    names_are_captions: bool = False
    caption_column: str | None = None
    kind: str = "folder"
    prompts_only: bool = False

    def __post_init__(self) -> None:
        self.path = self.path.resolve()

    def rows(self) -> Iterator[Row]:
        """Every file is named: as a picture, as a companion of one, or as something else. Links are not followed to
        folders. Only the names of one folder are held at a time."""
        yield from self._walk(self.path, "")

    def _walk(self, folder: Path, prefix: str) -> Iterator[Row]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(
                    (e.name, e.is_dir(follow_symlinks=False), e.is_dir()) for e in entries if e.name[0] != "."
                )
        except OSError as error:
            yield rejected_row(printable(prefix or folder.name), "unreadable", str(error.strerror))
            return
        stems = {name.rpartition(".")[0] for name, _, is_folder in found if not is_folder and is_picture(name)}
        for name, is_own_folder, is_folder in found:
            source = printable(prefix + name)
            if is_own_folder:
                yield from self._walk(folder / name, f"{prefix}{name}/")
            elif is_folder:
                yield rejected_row(source, "link")
            elif is_picture(name):
                yield self._row(folder / name, prefix + name, source)
            elif name.lower().endswith(_BESIDE):
                if name.rpartition(".")[0] not in stems:
                    yield rejected_row(source, "no_picture" if name.lower().endswith(".txt") else "other_file")
            else:
                yield rejected_row(source, "other_file")

    def _row(self, path: Path, name: str, source: str) -> Row:
        try:
            state = path.stat()
        except OSError as error:
            return rejected_row(source, "unreadable", str(error.strerror))
        # Size and time are there so that a changed file makes another listing.
        return {"source": source, "file": name, "size": state.st_size, "time": state.st_mtime_ns}

    def fetch(self, row: Row) -> Item:
        """The picture's bytes with its caption and the scalars of its JSON."""
        name = row["file"]
        picture = inside(self.path, name)
        columns = self._columns(name)
        return Item(self._caption(name, columns), scalars(columns), read_file(picture))

    def _columns(self, name: str) -> dict[str, Any]:
        beside = inside(self.path, _stem(name) + ".json")
        if not beside.is_file():
            return {}
        try:
            return parse_object(read_file(beside, MAX_JSON_BYTES, "bad_row"))
        except Rejected:
            return {}  # the picture and its caption do not depend on it; a filter that needs a column will say so

    def _caption(self, name: str, columns: dict[str, Any]) -> str:
        if self.caption_column is not None:
            return caption_of(columns, self.caption_column)
        try:
            return read_caption(inside(self.path, _stem(name) + ".txt"))
        except Rejected as rejected:
            if rejected.reason != "no_caption":
                raise
        try:
            return caption_of(columns, None)
        except Rejected as rejected:
            if rejected.reason != "no_caption" or not self.names_are_captions:
                raise
        words = _stem(name).rpartition("/")[2].replace("_", " ").replace("-", " ")
        return " ".join(printable(words).split()) or "picture"


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def is_picture(name: str) -> bool:
    """Whether a file is taken for a picture, by the end of its name."""
    return name.rpartition(".")[2].lower() in PICTURE_SUFFIXES
