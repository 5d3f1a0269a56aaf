"""Pictures as files: drawn batch by batch, each written at once, and read again in batches.

An interrupted drawing can be resumed. Noise belongs to a picture, but the last bits of a network's output may depend
on the batch in which it is computed: so a batch of which a picture is missing is drawn again whole, and the files are
those of a drawing without interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flashdmd_cli.evaluation.intake import NOT_FINITE
from flashdmd_cli.evaluation.metrics.metric import Row
from flashdmd_cli.evaluation.pictures import png
from flashdmd_cli.evaluation.suites.suite import Batch
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import replacing, writing
from flashdmd_cli.runs.reporter import Reporter

BATCH = 32
"""Pictures drawn, and pictures measured, at a time."""

Draw = Callable[[Sequence[str], int], Tensor]
"""Prompts and the index of the first -> pictures (B, 3, H, W) on [-1, 1]."""
Describe = Callable[[Row], Mapping[str, str]]
"""A picture -> the texts that are stored in its file."""


def picture_path(folder: Path, index: int) -> Path:
    """The file of a picture."""
    return folder / f"{index:05d}.png"


def write_picture(path: Path, picture: Tensor, texts: Mapping[str, str] | None = None) -> None:
    """Write a picture (3, H, W) on [-1, 1] as PNG with `texts` in it, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(png(picture, texts or {}))


def draw_missing(
    draw: Draw,
    rows: Sequence[Row],
    folder: Path,
    reporter: Reporter,
    batch: int = BATCH,
    describe: Describe | None = None,
) -> int:
    """Draw the pictures of `rows` that are not in `folder` yet; returns how many were there. One batch is in memory.

    `describe` gives the texts in the file of a picture. Raises `WriteError` when the disk cannot take them.
    """
    missing = missing_parts(rows, folder, batch)
    kept = len(rows) - sum(map(len, missing))
    if kept:
        reporter.say(f"{kept} of {len(rows)} pictures are in {folder} already")
    if missing:
        reporter.progress(kept, len(rows))
    done = kept
    for part in missing:
        write_part(part, draw([row.prompt for row in part], part[0].index), folder, describe)
        done += len(part)
        reporter.progress(done, len(rows))
    return kept


def missing_parts(rows: Sequence[Row], folder: Path, batch: int) -> list[Sequence[Row]]:
    """The parts of `rows`, `batch` long, of which a picture is not in `folder` yet; the folder is made."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in folder.iterdir()}
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    there |= {Path(name).with_suffix(".png").name for name in there if name.endswith(NOT_FINITE)}
    return [part for part in parts if any(picture_path(folder, row.index).name not in there for row in part)]


def write_part(part: Sequence[Row], pictures: Tensor, folder: Path, describe: Describe | None = None) -> None:
    """Write the pictures of a part, each whole or not at all; in place of one that is not finite, an empty file that
    says so, for which it is counted and named, and not drawn again."""
    with writing(folder):
        for row, picture in zip(part, pictures, strict=True):
            path = picture_path(folder, row.index)
            if picture.isfinite().all():
                write_picture(path, picture, describe(row) if describe else None)
            else:
                path.with_suffix(NOT_FINITE).touch()


def read_pictures(folder: Path, rows: Sequence[Row], batch: int = BATCH) -> Iterator[Batch]:
    """The pictures of `rows`, (B, 3, H, W) uint8 with their rows; InputError for a file that is missing or torn."""
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        yield torch.stack([read_picture(picture_path(folder, row.index)) for row in part]), part


def read_picture(path: Path) -> Tensor:
    """A picture (3, H, W) uint8; InputError for a file that is missing or torn."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read: {why}", hint="delete it; the same command draws it again") from None
