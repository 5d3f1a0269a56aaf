"""Collections as people have them, behind one protocol (`data.items.Source`); which one it is, is seen by its files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import Source
from flashdmd_cli.data.prompts import PICKLE_SUFFIXES
from flashdmd_cli.data.sources.coco import Coco
from flashdmd_cli.data.sources.folder import Folder, is_picture
from flashdmd_cli.data.sources.metadata import NAMES, ImageFolder
from flashdmd_cli.data.sources.prompt_list import SUFFIXES, PromptList
from flashdmd_cli.data.sources.table import Parquet
from flashdmd_cli.data.sources.tars import Tars

FORMATS = ("folder", "imagefolder", "webdataset", "parquet", "coco", "prompts")


@dataclass(frozen=True)
class Reading:
    """How a source is to be read; None leaves it to what is found there."""

    format: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    names_are_captions: bool = False
    suite: str | None = None


def detect(path: Path) -> str:
    """The format of a source by its files; `DataError` when none fits."""
    if path.suffix in PICKLE_SUFFIXES:
        raise DataError(
            f"SOURCE {path}: a pickle can run code when it is read, so it is not",
            "convert it where you trust it: `import json, pickle` and then "
            "`json.dump(list(pickle.load(open('prompts.pkl', 'rb'))), open('prompts.json', 'w'))`",
        )
    if path.is_file():
        if path.suffix == ".tar":
            return "webdataset"
        if path.suffix == ".parquet":
            return "parquet"
        if path.name.startswith("captions_") and path.suffix == ".json":
            return "coco"
        if path.suffix in SUFFIXES:
            return "prompts"
        raise DataError(
            f"SOURCE {path}: not a kind of file known here",
            f"of pictures, name the folder; --format names one of {', '.join(FORMATS)}",
        )
    if not path.is_dir():
        raise DataError(f"SOURCE {path}: no such file or folder")
    # The most telling first: img2dataset writes tars with a parquet beside each that holds no pictures.
    for format_, patterns in (
        ("webdataset", ("*.tar",)),
        ("parquet", ("*.parquet",)),
        ("coco", ("captions_*.json", "annotations/captions_*.json")),
        ("imagefolder", tuple(chain.from_iterable((name, f"*/{name}") for name in NAMES))),
    ):
        if any(next(path.glob(pattern), None) for pattern in patterns):
            if format_ in ("webdataset", "parquet") and any(is_picture(each.name) for each in path.iterdir()):
                raise DataError(f"SOURCE {path}: holds pictures and {patterns[0]}", f"--format folder or {format_}")
            return format_
    return "folder"


def open_source(path: Path, reading: Reading) -> Source:
    """The source at `path`; `DataError` when it is not there or not what `reading.format` says."""
    path = Path(os.path.expanduser(path))
    format_ = reading.format or ("coco" if reading.suite else detect(path))
    if not path.exists():
        raise DataError(f"SOURCE {path}: no such file or folder")
    if format_ in ("folder", "imagefolder") and not path.is_dir():
        raise DataError(f"SOURCE {path}: --format {format_} takes a folder")
    match format_:
        case "folder":
            return Folder(path, reading.names_are_captions, reading.caption_column)
        case "imagefolder":
            return ImageFolder(path, reading.caption_column)
        case "webdataset":
            return Tars(path, reading.caption_column)
        case "parquet":
            return Parquet(path, reading.image_column, reading.caption_column)
        case "coco":
            return Coco(path, reading.suite)
        case "prompts":
            return PromptList(path, reading.caption_column)
    raise DataError(f"--format {format_}: unknown", f"known: {', '.join(FORMATS)}")
