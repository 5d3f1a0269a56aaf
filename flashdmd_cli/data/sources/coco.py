"""COCO caption annotations (`captions_*.json`): one caption per picture, and the draw `coco10k-hash`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import Item, Rejected, Row, rejected_row
from flashdmd_cli.data.reading import Captions, check_caption, named, read_file

SUITES = {"coco10k-hash": 10_000}
"""Number of pictures of each draw. They are those with the smallest `sha256("coco10k/<image id>")`, a rule without
random generator, so that it can be reproduced in any programming language."""


@dataclass
class Coco:
    """The images of an annotation file, by id, each with its caption of smallest id (or a random one).

    Without image files (beside the annotations, or in `train2014/`, `images/`, ... of the same folder), the source has
    only prompts.
    """

    path: Path
    suite: str | None = None
    captions: Captions = Captions()
    kind: str = "coco"
    prompts_only: bool = False

    def __post_init__(self) -> None:
        self.path = self.path.absolute() if self.path.is_file() else self.path.resolve()
        self.annotations = find_annotations(self.path)
        self.root = self.annotations.parent
        if self.root.name == "annotations":
            self.root = self.root.parent
        split = self.annotations.stem.removeprefix("captions_")
        folders = (self.root / split, self.root / "images" / split, self.root / "images", self.root)
        self.folders = [folder.relative_to(self.root).as_posix() for folder in folders if folder.is_dir()]

    def rows(self) -> Iterator[Row]:
        """Prompts with their ids, and picture files if there are any. Reads the whole annotation file at once."""
        images, captions = self._read()
        ids = sorted(set(images) & set(captions))
        if self.suite is not None:
            ids = choose(ids, self.suite)
        base = next((folder for folder in self.folders if self._holds(folder, images, ids)), None)
        self.prompts_only = base is None
        for image in ids:
            source = f"{self.annotations.name}:{image}"
            several = sorted(captions[image])
            annotation, text = several[self.captions.place(len(several), source)]
            try:
                caption = check_caption(text)
            except Rejected as rejected:
                yield rejected_row(source, rejected.reason, rejected.detail)
                continue
            columns = {"image_id": image, "annotation_id": annotation}
            row = {"source": source, "caption": caption, "columns": columns}
            yield row if base is None else row | {"file": f"{base}/{images[image]}"}

    def _holds(self, folder: str, images: dict[int, str], ids: list[int]) -> bool:
        return any(self._is_file(f"{folder}/{images[image]}") for image in ids[:100])

    def _is_file(self, name: str) -> bool:
        try:
            return named(self.root, name)[0].is_file()
        except (OSError, Rejected):  # a name that is too long, or leads out of the folder
            return False

    def _read(self) -> tuple[dict[int, str], dict[int, list[tuple[int, str]]]]:
        try:
            document = parse_json(self.annotations.read_bytes())
            images = {int(entry["id"]): str(entry["file_name"]) for entry in document["images"]}
            captions: dict[int, list[tuple[int, str]]] = {}
            for entry in document["annotations"]:
                captions.setdefault(int(entry["image_id"]), []).append((int(entry["id"]), str(entry["caption"])))
        except OSError as error:
            raise DataError(f"SOURCE: {self.annotations} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, OverflowError) as error:  # int(inf) overflows
            raise DataError(
                f"SOURCE: {self.annotations} is no caption annotation file of COCO: {type(error).__name__} {error}",
                "it has `images` (id, file_name) and `annotations` (id, image_id, caption)",
            ) from None
        return images, captions

    def fetch(self, row: Row) -> Item:
        """A prompt with its picture, if there is one."""
        picture = read_file(named(self.root, row["file"])[0]) if "file" in row else None
        return Item(row["caption"], row["columns"], picture)


def find_annotations(path: Path) -> Path:
    """The annotation file `path`, or that in a COCO folder; `DataError` if there are several or none."""
    if path.is_file():
        return path
    files = sorted({*path.glob("captions_*.json"), *path.glob("annotations/captions_*.json")})
    if len(files) == 1:
        return files[0]
    names = ", ".join(file.relative_to(path).as_posix() for file in files)
    raise DataError(
        f"SOURCE {path}: " + (f"several annotation files: {names}" if files else "no captions_*.json there"),
        "name the file itself, for example annotations/captions_val2014.json",
    )


def choose(ids: list[int], suite: str) -> list[int]:
    """The ids of a suite, ascending; `DataError` if there are not enough."""
    size = SUITES[suite]
    if len(ids) < size:
        raise DataError(
            f"--suite {suite}: needs {size} captioned images, there are {len(ids)}",
            "it is drawn from captions_val2014.json (40,504 images)",
        )
    digests: list[tuple[Any, int]] = sorted(
        (hashlib.sha256(f"coco10k/{image}".encode()).digest(), image) for image in ids
    )
    return sorted(image for _, image in digests[:size])
