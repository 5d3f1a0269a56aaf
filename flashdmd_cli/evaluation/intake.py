"""Picture files of any origin: what is read of one, what was converted on the way, and why one is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flashdmd_cli.data.items import PICTURE_SUFFIXES, Rejected, meaning
from flashdmd_cli.data.pictures import decode, open_picture
from flashdmd_cli.data.reading import read_file

MIN_SIDE = 8
"""Pictures with a shorter side show nothing that a metric could see."""
NOT_FINITE = ".not-finite"
"""Suffix of an empty file in place of a picture of which a model drew values that are not finite."""
GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N", "I", "F")


@dataclass(frozen=True)
class Look:
    """What is known of one picture file."""

    sha256: str | None
    """None if there is no file."""
    reason: str = ""
    """Why it is left out; empty for a picture that is measured."""
    notes: tuple[str, ...] = ()
    """Conversions (`16 bit`, `alpha`, `greyscale`, ...), and `black` or `one colour`: measured, but conspicuous."""


def look(path: Path | None, side: int | None = None) -> tuple[Look, Tensor | None]:
    """Read a picture file: what is known of it, and its pixels (3, H, W) uint8 unless it is left out.

    `side` is the only side in pixels that is taken; None: any from `MIN_SIDE`.
    """
    if path is None:
        return Look(None, meaning_of("missing_file")), None
    if not path.exists() and path.with_suffix(NOT_FINITE).exists():
        return Look(None, "the model drew values that are not finite"), None
    try:
        data = read_file(path)
    except Rejected as rejected:
        return Look(None, meaning_of(rejected.reason, rejected.detail)), None
    digest = hashlib.sha256(data).hexdigest()
    try:
        opened = open_picture(data)
        if min(opened.width, opened.height) < MIN_SIDE:
            return Look(digest, f"{opened.width} x {opened.height} pixels: under {MIN_SIDE}"), None
        if side is not None and (opened.width, opened.height) != (side, side):
            return Look(digest, f"{opened.width} x {opened.height} pixels, not {side} x {side}"), None
        grey = opened.image.mode in GREY_MODES
        image, notes = decode(opened)
    except Rejected as rejected:
        return Look(digest, meaning_of(rejected.reason, rejected.detail)), None
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    if grey:
        notes = [*notes, "greyscale"]
    return Look(digest, "", (*notes, *conspicuous(pixels))), pixels


def conspicuous(pixels: Tensor) -> tuple[str, ...]:
    """`black` or `one colour` for a picture (3, H, W) that shows nothing else: a model that failed, or its filter."""
    flat = pixels.flatten(1)
    if int(flat.max()) <= 2:
        return ("black",)
    return ("one colour",) if bool((flat == flat[:, :1]).all()) else ()


def meaning_of(reason: str, detail: str = "") -> str:
    """The reason of a rejection in words."""
    message = {"missing_file": "missing"}.get(reason) or meaning(reason)
    return f"{message}: {detail}" if reason == "undecodable" and detail.startswith("floating") else message


def picture_files(folder: Path) -> list[Path]:
    """All picture files below `folder`, hidden ones left out, in the order in which people number them."""
    found = (path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in PICTURE_SUFFIXES)
    shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return sorted(shown, key=lambda path: natural(path.relative_to(folder).parts))


def natural(parts: Sequence[str]) -> list[list[tuple[int, int, str]]]:
    """A key that sorts `a2` before `a10`."""
    keys = []
    for part in parts:
        pieces, number = [], ""
        for letter in [*part, ""]:
            if letter.isdecimal() and letter:
                number += letter
                continue
            if number:
                pieces.append((0, int(number), number))
                number = ""
            if letter:
                pieces.append((1, 0, letter))
        keys.append(pieces)
    return keys
