"""Preference pairs: two pictures of one prompt and which is better, from a JSONL or parquet file."""

from __future__ import annotations

import contextlib
import hashlib
import json
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

COLUMNS = {"prompt": ("prompt", "caption"), "image_0": ("image_0", "jpg_0"), "image_1": ("image_1", "jpg_1")}
"""What a row must hold, under one of these names; the second ones are Pick-a-Pic's."""
HINT = "a row has prompt, image_0, image_1 (paths or bytes) and label: 0, 1, or 0.5 for a tie"


@dataclass(frozen=True)
class PreferencePair:
    """One verdict of one person, or of a judge."""

    prompt: str
    image_0: Path | bytes
    image_1: Path | bytes
    label: float
    """0 where image 0 is better, 1 where image 1 is, 0.5 for a tie."""
    columns: Mapping[str, Any]
    """The whole row, to filter by."""


def read_pairs(path: Path, keep: Sequence[str] = (), keep_ties: Sequence[str] = ()) -> list[PreferencePair]:
    """The pairs of a file, paths relative to it, that meet the conditions (`aesthetic_gap>0`) on its columns.

    Pairs with a winner are held to `keep`, ties to `keep_ties`. Raises `DataError` for what cannot be read or is left
    empty.
    """
    rows = _parquet(path) if path.suffix == ".parquet" else _jsonl(path)
    pairs = [_pair(row, f"{path}, row {number}", path.parent) for number, row in enumerate(rows)]
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
    """Pairs to learn from and pairs to measure on; a share `held_out` of the prompts, by their hash, is the second."""
    parts: tuple[list[PreferencePair], list[PreferencePair]] = ([], [])
    for pair in pairs:
        digest = hashlib.sha256(pair.prompt.encode()).digest()
        parts[int.from_bytes(digest[:4], "little") < held_out * 2**32].append(pair)
    return parts


def num_decided(pairs: Iterable[PreferencePair]) -> int:
    """How many pairs have a winner."""
    return sum(pair.label != 0.5 for pair in pairs)


def prompt_weights(pairs: Sequence[PreferencePair]) -> Tensor:
    """One over the number of pairs of the same prompt, (N,)."""
    counts = Counter(pair.prompt for pair in pairs)
    return torch.tensor([1 / counts[pair.prompt] for pair in pairs])


def load_picture(image: Path | bytes, side: int) -> Tensor:
    """A picture as `prepare-data` would cut it, upright and square, (3, side, side) on [-1, 1].

    `DataError` if it cannot be read.
    """
    try:
        opened = open_picture(image if isinstance(image, bytes) else image.read_bytes())
        fitted = fit(decode(opened, side)[0], side, (opened.height, opened.width))
    except (OSError, Rejected) as error:
        name = image if isinstance(image, Path) else "a picture"
        raise DataError(f"{name} cannot be read: {_reason(error)}") from None
    return torch.from_numpy(np.array(fitted.picture)).permute(2, 0, 1).float() / 127.5 - 1


def _reason(error: Exception) -> str:
    """Without the system's number."""
    return str(getattr(error, "strerror", None) or error)


def _jsonl(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a prompt may hold other line ends
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"--pairs {path} cannot be read: {_reason(error)}", "give a JSONL or parquet file") from None
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"--pairs {path}: not every line is an object", HINT)
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"--pairs {path}: reading parquet needs pyarrow", "pip install pyarrow") from None
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise DataError(f"--pairs {path} cannot be read: {_reason(error)}", "give a JSONL or parquet file") from None


def _pair(row: Mapping[str, Any], where: str, folder: Path) -> PreferencePair:
    values = {}
    for name, names in COLUMNS.items():
        found = next((row[each] for each in names if row.get(each) is not None), None)
        if found is None:
            raise DataError(f"--pairs {where}: has no {name}", HINT)
        values[name] = found
    label = row.get("label")
    if label is None and (first_share := as_number(row.get("label_0"))) is not None:
        label = 1 - first_share  # Pick-a-Pic notes the share of the first picture
    label = 0.5 if label == "tie" else label
    if label not in (0, 0.5, 1):
        raise DataError(f"--pairs {where}: label is {label!r}", HINT)
    first, second = (_image(values[name], folder, where) for name in ("image_0", "image_1"))
    return PreferencePair(str(values["prompt"]), first, second, float(label), row)


def _image(value: Any, folder: Path, where: str) -> Path | bytes:
    if isinstance(value, dict):  # Hugging Face's form of a picture in a table
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    with contextlib.suppress(OSError):  # a name that no file can have
        if isinstance(value, str) and (folder / value).is_file():
            return folder / value
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
