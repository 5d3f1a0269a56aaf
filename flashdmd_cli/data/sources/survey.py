"""What kinds of files lie in a folder and where: enough to tell how a collection is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import CAPTION_SUFFIXES, PICTURE_SUFFIXES
from flashdmd_cli.data.tables import open_parquet, picture_columns

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Tables that name the pictures of their folder (ImageFolder of Hugging Face)."""
NUM_TABLES_OPENED = 8
"""Tables of one folder are written by one tool, so a few tell about all."""


@dataclass
class Survey:
    """Files by kind. A folder of pictures can hold millions, so of those only the folders are noted."""

    tars: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)  # *.parquet, but for metadata.parquet
    metadata: list[Path] = field(default_factory=list)
    picture_folders: set[Path] = field(default_factory=set)
    captioned: bool = False
    """Whether a picture has a caption beside it. Pictures without belong to a data set's description, not to it."""

    @classmethod
    def of(cls, root: Path) -> Survey:
        """Look through a folder and all folders below it."""
        found = cls()
        for folder, names in _walk(root):
            pictures = {stem(name) for name in names if is_picture(name)}
            if pictures:
                found.picture_folders.add(folder)
                found.captioned = found.captioned or any(
                    stem(name) in pictures for name in names if suffix(name) in (*CAPTION_SUFFIXES, "json")
                )
            found.tars += [folder / name for name in names if suffix(name) == "tar"]
            found.metadata += [folder / name for name in names if name in METADATA]
            found.tables += [folder / name for name in names if suffix(name) == "parquet" and name not in METADATA]
        return found

    def tables_hold_pictures(self) -> bool:
        """Whether the parquet tables hold pictures, and not facts about pictures that lie elsewhere."""
        return any(holds_pictures(table) for table in self.tables[:NUM_TABLES_OPENED])

    def mixed(self, holders: list[Path]) -> bool:
        """Whether loose pictures belong to the collection as much as those in `holders` do."""
        beside = any(holder.parent in self.picture_folders for holder in holders)
        return bool(self.picture_folders) and (beside or self.captioned or bool(self.metadata))


def files_below(root: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """The files of a folder, and of the folders below it, whose names are wanted; sorted."""
    return sorted(folder / name for folder, names in _walk(root) for name in names if wanted(name))


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders in sorted order with the names in them; hidden ones do not count, links to folders are not followed."""
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), sorted(name for name in names if not name.startswith("."))


def holds_pictures(table: Path) -> bool:
    """Whether a parquet file has a column of pictures."""
    try:
        with open_parquet(table) as opened:
            return bool(picture_columns(opened.schema_arrow))
    except DataError:
        return False


def stem(name: str) -> str:
    """A file's path without the end of its name."""
    return name.rpartition(".")[0]


def suffix(name: str) -> str:
    """The end of a file's name after the last dot, in small letters."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def is_picture(name: str) -> bool:
    """Whether a file is taken for a picture, by the end of its name."""
    return suffix(name) in PICTURE_SUFFIXES
