"""Survey of the files in a folder, for the detection of its format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import CAPTION_SUFFIXES, PICTURE_SUFFIXES
from flashdmd_cli.data.tables import open_parquet, picture_columns

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Metadata files of Hugging Face's ImageFolder format."""
NUM_TABLES_OPENED = 8
"""Number of tables to check for pictures; all tables of a folder usually have the same columns."""


@dataclass
class Survey:
    """Files by kind. Pictures may be millions, so only their folders are stored."""

    tars: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)  # *.parquet, but for metadata.parquet
    metadata: list[Path] = field(default_factory=list)
    picture_folders: set[Path] = field(default_factory=set)
    captioned: bool = False
    """Whether any picture has a caption file; other pictures may just illustrate the description of a data set."""

    @classmethod
    def of(cls, root: Path) -> Survey:
        """Survey a folder and all its subfolders."""
        survey = cls()
        for folder, names in _walk(root):
            pictures = {stem(name) for name in names if is_picture(name)}
            if pictures:
                survey.picture_folders.add(folder)
                survey.captioned = survey.captioned or any(
                    stem(name) in pictures for name in names if suffix(name) in (*CAPTION_SUFFIXES, "json")
                )
            survey.tars += [folder / name for name in names if suffix(name) == "tar"]
            survey.metadata += [folder / name for name in names if name in METADATA]
            survey.tables += [folder / name for name in names if suffix(name) == "parquet" and name not in METADATA]
        return survey

    def tables_hold_pictures(self) -> bool:
        """Whether the parquet tables contain pictures, rather than metadata of pictures in other files."""
        return any(holds_pictures(table) for table in self.tables[:NUM_TABLES_OPENED])

    def mixed(self, holders: list[Path]) -> bool:
        """Whether picture files outside the tars or tables in `holders` seem to belong to the collection, too."""
        beside = any(holder.parent in self.picture_folders for holder in holders)
        return bool(self.picture_folders) and (beside or self.captioned or bool(self.metadata))


def files_below(root: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """The files in a folder and its subfolders whose names are `wanted`, sorted."""
    return sorted(folder / name for folder, names in _walk(root) for name in names if wanted(name))


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders in sorted order with their file names, without hidden ones; links to folders are not followed."""
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
    """A file name or path without its suffix."""
    return name.rpartition(".")[0]


def suffix(name: str) -> str:
    """The suffix of a file name, in lower case and without dot."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def is_picture(name: str) -> bool:
    """Whether a file is a picture, judged by its suffix."""
    return suffix(name) in PICTURE_SUFFIXES
