"""Preference pairs: two pictures of a prompt and a label which is better, from JSON lines, CSV, TSV or parquet."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.filters import Filter, as_number
from flashdmd_cli.data.items import Rejected
from flashdmd_cli.data.pictures import decode, fit, open_picture
from flashdmd_cli.data.tables import entries

COLUMNS = {"prompt": ("prompt", "caption"), "image_0": ("image_0", "jpg_0"), "image_1": ("image_1", "jpg_1")}
"""Required columns and their possible names; the second ones are Pick-a-Pic's."""
HINT = "a row has prompt, image_0, image_1 (paths or bytes) and label: 0, 1, or 0.5 for a tie"


@dataclass(frozen=True)
class PreferencePair:
    """One comparison by a person or a judge."""

    prompt: str
    image_0: Path | bytes
    image_1: Path | bytes
    label: float
    """0 if image 0 is better, 1 if image 1 is better, 0.5 for a tie."""
    columns: Mapping[str, Any]
    """The whole row, for filters."""


def read_pairs(path: Path, keep: Sequence[str] = (), keep_ties: Sequence[str] = ()) -> list[PreferencePair]:
    """Read the pairs of a file that meet the conditions on its columns (such as `aesthetic_gap>0`).

    `keep` are the conditions for pairs with a winner, `keep_ties` those for ties. Paths of pictures are relative to the
    file. Raises `DataError` if it cannot be read or no pair is left.
    """
    pairs = [_pair(row, f"{path}, row {number}", path.parent) for number, row in enumerate(_rows(path))]
    rules = {
        False: [_condition("pairs.keep", text) for text in keep],
        True: [_condition("pairs.keep_ties", text) for text in keep_ties],
    }
    kept = [pair for pair in pairs if all(_holds(rule, pair, path) for rule in rules[pair.label == 0.5])]
    if not kept:
        raise DataError(f"--pairs {path}: none of its {len(pairs)} pairs is left", HINT)
    return kept


def split_by_prompt(
    pairs: Iterable[PreferencePair], held_out: float
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Split into training and validation pairs; a fraction `held_out` of the prompts, by their hash, is validation."""
    parts: tuple[list[PreferencePair], list[PreferencePair]] = ([], [])
    for pair in pairs:
        digest = hashlib.sha256(pair.prompt.encode()).digest()
        parts[int.from_bytes(digest[:4], "little") < held_out * 2**32].append(pair)
    return parts


def num_decided(pairs: Iterable[PreferencePair]) -> int:
    """Number of pairs with a winner."""
    return sum(pair.label != 0.5 for pair in pairs)


def prompt_weights(pairs: Sequence[PreferencePair]) -> Tensor:
    """One over the number of pairs of the same prompt, (N,)."""
    counts = Counter(pair.prompt for pair in pairs)
    return torch.tensor([1 / counts[pair.prompt] for pair in pairs])


def load_picture(image: Path | bytes, side: int) -> Tensor:
    """Load a picture, resized and cropped as by `prepare-data`: (3, side, side) on [-1, 1].

    Raises `DataError` if it cannot be read.
    """
    try:
        opened = open_picture(image if isinstance(image, bytes) else image.read_bytes())
        fitted = fit(decode(opened, side)[0], side, (opened.height, opened.width))
    except (OSError, Rejected) as error:
        name = image if isinstance(image, Path) else "a picture"
        raise DataError(f"{name} cannot be read: {_reason(error)}") from None
    return torch.from_numpy(np.array(fitted.picture)).permute(2, 0, 1).float() / 127.5 - 1


def _reason(error: Exception) -> str:
    """The error message without errno."""
    return str(getattr(error, "strerror", None) or error)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        for number, row in entries(path, "--pairs", pictures=True):
            if isinstance(row, Rejected):
                raise DataError(f"--pairs {path}:{number}: cannot be read: {row.detail}", HINT)
            if not isinstance(row, dict):
                raise DataError(f"--pairs {path}:{number}: is no object or row of a table", HINT)
            rows.append(row)
    except OSError as error:
        raise DataError(f"--pairs {path} cannot be read: {_reason(error)}", "give a JSONL or parquet file") from None
    return rows


def _pair(row: Mapping[str, Any], where: str, folder: Path) -> PreferencePair:
    values = {}
    for name, names in COLUMNS.items():
        value = next((row[each] for each in names if row.get(each) is not None), None)
        if value is None:
            raise DataError(f"--pairs {where}: has no {name}", HINT)
        values[name] = value
    label = row.get("label")
    if label is None and (first_share := as_number(row.get("label_0"))) is not None:
        label = 1 - first_share  # Pick-a-Pic: 1 if the first picture is better
    number = 0.5 if label == "tie" else as_number(label) if isinstance(label, str) else label  # in CSV, all is text
    if number not in (0, 0.5, 1):
        raise DataError(f"--pairs {where}: label is {label!r}", HINT)
    first, second = (_image(values[name], folder, where) for name in ("image_0", "image_1"))
    return PreferencePair(str(values["prompt"]), first, second, float(number), row)


def _image(value: Any, folder: Path, where: str) -> Path | bytes:
    if isinstance(value, dict):  # Hugging Face's format of pictures in tables
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    with contextlib.suppress(OSError):  # invalid file name
        # Tables from Windows separate folders by "\\".
        for name in (value, value.replace("\\", "/")) if isinstance(value, str) else ():
            if (folder / name).is_file():
                return folder / name
    raise DataError(f"--pairs {where}: no picture {str(value)[:80]!r}", "paths are relative to the file of pairs")


def _condition(key: str, text: str) -> Filter:
    try:
        return Filter.parse(text.replace(" ", ""))
    except ValueError as error:
        raise DataError(f"{key}: {text!r} {error}", "for example aesthetic_gap>-0.5") from None


def _holds(rule: Filter, pair: PreferencePair, path: Path) -> bool:
    if rule.column not in pair.columns:
        key = "pairs.keep_ties" if pair.label == 0.5 else "pairs.keep"
        raise DataError(f"{key}: {path} has no column {rule.column}", f"it has {', '.join(pair.columns)}")
    try:
        rule.check(pair.columns)
    except Rejected:
        return False
    return True
