"""Prompt files for all commands: `prepare-data` rejects and counts entries that are not prompts, `sample` raises."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import Rejected, Row, meaning, rejected_row
from flashdmd_cli.data.reading import CAPTION_COLUMNS, Captions, check_caption, decode_caption, find_column, scalars
from flashdmd_cli.data.tables import entries, header

PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth"}
SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet")
"""Text (one prompt per line), a JSON list or JSON lines of texts or objects, tables with a header."""


def prompt_rows(path: Path, captions: Captions, option: str = "SOURCE") -> Iterator[Row]:
    """One row per entry of a file, with `caption` and `columns`, or with the `reason` of its rejection.

    Raises `DataError`, with a message that starts with `option`, for a file that is not a list of prompts.
    """
    names = header(path, option)
    if names is not None and find_column(names, captions.column) is None:
        wanted = f"column {captions.column}" if captions.column else f"column {' or '.join(CAPTION_COLUMNS[:3])}"
        raise DataError(f"{option} {path}: has no {wanted}", f"columns there: {', '.join(names)[:300] or 'none'}")
    for number, entry in entries(path, option):
        source = f"{path.name}:{number}"
        try:
            if isinstance(entry, Rejected):
                raise entry
            columns = entry if isinstance(entry, dict) else {}
            caption = captions.of(columns, source) if columns else check_caption(entry)
        except Rejected as rejected:
            yield rejected_row(source, rejected.reason, rejected.detail[:200])
            continue
        yield {"source": source, "caption": caption, "columns": scalars(columns)}


def read_prompts(path: Path, limit: int | None = None) -> list[str]:
    """The prompts of a file, at most `limit`. Raises `DataError` for a file without prompts, and for the first entry
    that is not a prompt, because pictures are numbered like the entries."""
    if path.suffix in PICKLE_SUFFIXES:
        raise DataError(
            f"--prompts {path} is a pickle, which can run code when it is read",
            "convert it where you trust it: json.dump(list_of_prompts, open('prompts.json', 'w'))",
        )
    prompts = []
    try:
        for row in islice(prompt_rows(path, Captions(), "--prompts"), limit):
            if "reason" in row:
                raise DataError(
                    f"--prompts {row['source']}: {_fault(row['reason'])}",
                    "a line of text, or a column or key `prompt`, `text` or `caption` holds a prompt",
                )
            prompts.append(row["caption"])
    except OSError as error:
        raise DataError(
            f"--prompts {path} cannot be read: {error.strerror}", "give a UTF-8 text file, one prompt a line"
        ) from None
    if not prompts:
        raise DataError(f"--prompts {path} holds no prompt", "give a text file, one prompt a line")
    return prompts


def read_prompt_lines(stream: BinaryIO) -> list[str]:
    """The prompts in a stream of UTF-8 text, one a line. Raises `DataError` for a line that is none, or without any."""
    prompts = []
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                prompts.append(decode_caption(line))
            except Rejected as rejected:
                raise DataError(f"--prompts -: line {number}: {_fault(rejected.reason)}", "a prompt a line") from None
    if not prompts:
        raise DataError("--prompts -: holds no prompt", "send a prompt a line to the command")
    return prompts


def _fault(reason: str) -> str:
    return "no prompt there" if reason == "no_caption" else meaning(reason)
