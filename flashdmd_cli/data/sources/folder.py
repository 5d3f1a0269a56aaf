"""A folder of pictures, each with a `.txt` or `.caption` file and optionally a `.json` file, as by img2dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashdmd_cli.data.items import CAPTION_SUFFIXES, Item, Rejected, Row, rejected_row
from flashdmd_cli.data.reading import Captions, inside, parse_object, printable, read_caption, read_file, scalars
from flashdmd_cli.data.sources.survey import is_picture, stem, suffix

MAX_JSON_BYTES = 2**20
_BESIDE = (*CAPTION_SUFFIXES, "json")


@dataclass
class Folder:
    """Pictures in sorted order of their paths, without hidden files and folders."""

    path: Path
    names_are_captions: bool = False
    captions: Captions = Captions()
    kind: str = "folder"
    prompts_only: bool = False

    def __post_init__(self) -> None:
        self.path = self.path.resolve()

    def rows(self) -> Iterator[Row]:
        """Rows of all pictures, and rejections of all files that do not belong to one. Links to folders are not
        followed. Only the names of one folder are in memory at a time."""
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
        pictures = [name for name, _, is_folder in found if not is_folder and is_picture(name)]
        # Companions have the name of the picture, with or without its suffix: a.txt, a.jpg.txt, a.TXT.
        owners = {*pictures, *map(stem, pictures)}
        beside: dict[str, list[str]] = {}
        for name, _, is_folder in found:
            if not is_folder and suffix(name) in _BESIDE and stem(name) in owners:
                beside.setdefault(stem(name), []).append(name)
        for name, is_own_folder, is_folder in found:
            source = printable(prefix + name)
            if is_own_folder:
                yield from self._walk(folder / name, f"{prefix}{name}/")
            elif is_folder:
                yield rejected_row(source, "link")
            elif is_picture(name):
                companions = beside.get(stem(name), []) + beside.get(name, [])
                yield self._row(folder / name, prefix, name, companions)
            elif suffix(name) in _BESIDE:
                if stem(name) not in owners:
                    yield rejected_row(source, "no_picture" if suffix(name) in CAPTION_SUFFIXES else "other_file")
            else:
                yield rejected_row(source, "other_file")

    def _row(self, path: Path, prefix: str, name: str, companions: list[str]) -> Row:
        source = printable(prefix + name)
        try:
            state = path.stat()
        except OSError as error:
            return rejected_row(source, "unreadable", str(error.strerror))
        # Size and time make the listing change with the file.
        row = {"source": source, "file": prefix + name, "size": state.st_size, "time": state.st_mtime_ns}
        unusual = sorted({*companions} - {stem(name) + ".txt", stem(name) + ".json"}, key=_order)
        return row | ({"beside": [prefix + each for each in unusual]} if unusual else {})

    def fetch(self, row: Row) -> Item:
        """The picture's bytes with its caption and the scalars of its JSON."""
        name = row["file"]
        beside = [stem(name) + ".txt", stem(name) + ".json", *row.get("beside", ())]
        picture = inside(self.path, name)
        columns = self._columns([each for each in beside if suffix(each) == "json"])
        texts = [each for each in beside if suffix(each) != "json"]
        return Item(self._caption(row, texts, columns), scalars(columns), read_file(picture))

    def _columns(self, files: list[str]) -> dict[str, Any]:
        for beside in (inside(self.path, name) for name in files):
            if beside.is_file():
                try:
                    return parse_object(read_file(beside, MAX_JSON_BYTES, "bad_row"))
                except Rejected:
                    return {}  # not needed for the picture and its caption; filters reject rows without their column
        return {}

    def _caption(self, row: Row, texts: list[str], columns: dict[str, Any]) -> str:
        if self.captions.column is not None:
            return self.captions.of(columns, row["source"])
        for find in (
            *(lambda text=text: read_caption(inside(self.path, text)) for text in texts),
            lambda: self.captions.of(columns, row["source"]),
        ):
            try:
                return find()
            except Rejected as rejected:
                if rejected.reason != "no_caption":
                    raise
        if not self.names_are_captions:
            raise Rejected("no_caption")
        words = stem(row["file"]).rpartition("/")[2].replace("_", " ").replace("-", " ")
        return " ".join(printable(words).split()) or "picture"


def _order(name: str) -> tuple[int, str]:
    """Caption files in the order of `CAPTION_SUFFIXES`."""
    return _BESIDE.index(suffix(name)), name
