"""Prompts of a suite with their ids, from text, JSON, JSON lines, CSV, TSV or parquet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import Rejected, meaning
from flashdmd_cli.data.prompts import prompt_rows
from flashdmd_cli.data.reading import Captions, read_caption
from flashdmd_cli.runs.errors import InputError

ID_COLUMNS = ("id", "prompt_id")


@dataclass(frozen=True)
class Prompt:
    """A prompt and its name, which decides about the noise of its pictures."""

    id: str
    """The column or key `id`; without one the number of the line, from 1."""
    text: str
    columns: dict[str, Any] = field(default_factory=dict)
    number: int = 0
    """Of the line or entry in its file, from 1."""
    named: bool = False
    """Whether the file gives it an id."""


@dataclass(frozen=True)
class Refused:
    """An entry of a prompt file that is no prompt."""

    source: str
    """File and line."""
    reason: str
    number: int = 0


def read_prompt_file(path: Path, option: str) -> tuple[list[Prompt], list[Refused]]:
    """The prompts of a file, and the entries that are none: empty, not UTF-8, over 64 KiB.

    InputError, with a message that starts with `option`, for a file that cannot be read.
    """
    if path.is_dir():
        return read_prompt_folder(path, option)
    prompts, refused = [], []
    try:
        for row in prompt_rows(path, Captions(), option):
            number = int(row["source"].rpartition(":")[2])
            if "reason" in row:
                reason = "an empty prompt" if row["reason"] == "no_caption" else meaning(row["reason"])
                refused.append(Refused(row["source"], reason, number))
                continue
            columns = row["columns"]
            name = next((columns[key] for key in ID_COLUMNS if columns.get(key) not in (None, "")), None)
            named = name is not None
            prompts.append(Prompt(str(name if named else number), row["caption"], columns, number, named))
    except DataError as error:
        raise InputError(str(error), error.hint) from None
    except OSError as error:
        raise InputError(
            f"{option}: cannot read {path}: {error.strerror}", hint="a text file with a prompt on each line, or JSONL"
        ) from None
    return prompts, refused


def read_prompt_folder(folder: Path, option: str) -> tuple[list[Prompt], list[Refused]]:
    """The prompts of a folder of text files, one in each, whose id is the file's name, as DPG-Bench has them."""
    prompts, refused = [], []
    for number, path in enumerate(sorted(folder.glob("*.txt")), start=1):
        try:
            prompts.append(Prompt(path.stem, read_caption(path), {}, number, True))
        except Rejected as rejected:
            reason = "an empty prompt" if rejected.reason == "no_caption" else meaning(rejected.reason)
            refused.append(Refused(path.name, reason, number))
    if not prompts and not refused:
        raise InputError(f"{option} {folder}: holds no text file", hint="a file of prompts, or a folder of them")
    return prompts, refused


def refuse_twice(prompts: Sequence[Prompt], option: str) -> None:
    """InputError for two prompts of one id, whose pictures would get the same noise."""
    seen = set[str]()
    for prompt in prompts:
        if prompt.id in seen:
            raise InputError(f"{option}: the id {prompt.id} is there twice", hint="give each prompt an id of its own")
        seen.add(prompt.id)


def prompts_digest(prompts: Iterable[tuple[str, str]]) -> str:
    """Hash of prompts, (id, text) in order, each counted once however many pictures it has."""
    text = json.dumps(list(dict.fromkeys(prompts)))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
