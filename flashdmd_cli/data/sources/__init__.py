"""Data sources in various formats, all with the protocol `data.items.Source`, and detection of the format."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import Source
from flashdmd_cli.data.prompts import PICKLE_SUFFIXES, SUFFIXES
from flashdmd_cli.data.reading import Captions, is_lfs_pointer
from flashdmd_cli.data.sources.coco import Coco
from flashdmd_cli.data.sources.folder import Folder
from flashdmd_cli.data.sources.metadata import ImageFolder
from flashdmd_cli.data.sources.prompt_list import PromptList
from flashdmd_cli.data.sources.survey import Survey, holds_pictures
from flashdmd_cli.data.sources.table import Parquet
from flashdmd_cli.data.sources.tars import Tars
from flashdmd_cli.data.tables import header

FORMATS = ("folder", "imagefolder", "webdataset", "parquet", "coco", "prompts")


@dataclass(frozen=True)
class Reading:
    """Options for reading a source; None: detect automatically."""

    format: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    names_are_captions: bool = False
    suite: str | None = None
    caption: str | None = None
    """`random`: select one of several captions of a picture at random with `seed`; None: the first."""
    seed: int | None = None

    @property
    def captions(self) -> Captions:
        """Selection of the caption of a row."""
        return Captions(self.caption_column, (self.seed or 0) if self.caption == "random" else None)


def detect(path: Path) -> str:
    """Detect the format of a source from its files; `DataError` for an unknown format."""
    if path.suffix in PICKLE_SUFFIXES:
        raise DataError(
            f"SOURCE {path}: a pickle can run code when it is read, so it is not",
            "convert it where you trust it: `import json, pickle` and then "
            "`json.dump(list(pickle.load(open('prompts.pkl', 'rb'))), open('prompts.json', 'w'))`",
        )
    if path.is_file():
        return _detect_file(path)
    if not path.is_dir():
        raise DataError(f"SOURCE {path}: no such file or folder")
    # The most specific first. Tables without pictures are ignored: img2dataset writes them in every format.
    survey = Survey.of(path)
    tables = survey.tables if survey.tables_hold_pictures() else []
    for format_, holders in (("webdataset", survey.tars), ("parquet", tables)):
        if holders:
            if survey.mixed(holders):
                raise DataError(f"SOURCE {path}: holds pictures and {holders[0].name}", f"--format folder or {format_}")
            return format_
    if any(next(path.glob(pattern), None) for pattern in ("captions_*.json", "annotations/captions_*.json")):
        return "coco"
    if survey.metadata:
        return "imagefolder"
    return "parquet" if survey.tables and not survey.picture_folders else "folder"


def _detect_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return "webdataset"
    if path.name.startswith("captions_") and suffix == ".json":
        return "coco"
    if suffix == ".parquet":
        if holds_pictures(path) or is_lfs_pointer(path):
            return "parquet"
        names = header(path) or []
        if any(name.lower() == "url" for name in names):
            raise DataError(
                f"SOURCE {path}: holds addresses of pictures, not pictures",
                "img2dataset fetches them; --format prompts takes the captions alone",
            )
        return "prompts"
    if suffix in SUFFIXES:
        return "prompts"
    raise DataError(
        f"SOURCE {path}: not a kind of file known here",
        f"of pictures, name the folder; --format names one of {', '.join(FORMATS)}",
    )


def open_source(path: Path, reading: Reading) -> Source:
    """Open the source at `path`; `DataError` if it does not exist or does not have the format `reading.format`."""
    path = Path(os.path.expanduser(path))
    format_ = reading.format or ("coco" if reading.suite else detect(path))
    if not path.exists():
        raise DataError(f"SOURCE {path}: no such file or folder")
    if format_ in ("folder", "imagefolder") and not path.is_dir():
        raise DataError(f"SOURCE {path}: --format {format_} takes a folder")
    match format_:
        case "folder":
            return Folder(path, reading.names_are_captions, reading.captions)
        case "imagefolder":
            return ImageFolder(path, reading.captions)
        case "webdataset":
            return Tars(path, reading.captions)
        case "parquet":
            return Parquet(path, reading.image_column, reading.captions)
        case "coco":
            return Coco(path, reading.suite, reading.captions)
        case "prompts":
            return PromptList(path, reading.captions)
    raise DataError(f"--format {format_}: unknown", f"known: {', '.join(FORMATS)}")
