"""Prompts alone: for runs without a GAN, and for evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import Item, Rejected, Row, rejected_row
from flashdmd_cli.data.reading import MAX_LINE_BYTES, caption_of, check_caption, decode_caption, lines, scalars

SUFFIXES = (".txt", ".jsonl", ".json")


@dataclass
class PromptList:
    """A text file (one prompt a line), a JSONL file of objects or strings, or a JSON list of either."""

    path: Path
    caption_column: str | None = None
    kind: str = "prompts"
    prompts_only: bool = True

    def __post_init__(self) -> None:
        self.path = self.path.resolve()

    def rows(self) -> Iterator[Row]:
        """One row per prompt; empty lines do not count."""
        for number, prompt in self._entries():
            source = f"{self.path.name}:{number}"
            try:
                if isinstance(prompt, Rejected):
                    raise prompt
                values: dict[str, Any] = prompt if isinstance(prompt, dict) else {}
                caption = caption_of(values, self.caption_column) if values else check_caption(prompt)
            except Rejected as rejected:
                yield rejected_row(source, rejected.reason, rejected.detail[:200])
                continue
            yield {"source": source, "caption": caption, "columns": scalars(values)}

    def _entries(self) -> Iterator[tuple[int, Any]]:
        if self.path.suffix == ".json":
            try:
                entries = json.loads(self.path.read_bytes())
            except (ValueError, RecursionError) as error:
                raise DataError(f"SOURCE: {self.path} is not JSON: {error}", "give a list of prompts") from None
            if not isinstance(entries, list):
                raise DataError(f"SOURCE: {self.path} is not a JSON list", 'write it as ["first prompt", "second"]')
            yield from enumerate(entries, start=1)
            return
        for number, line in lines(self.path):
            if line is None:
                yield number, Rejected("bad_row", f"a line over {MAX_LINE_BYTES // 2**20} MiB")
            elif line.strip():
                yield number, self._entry(line)

    def _entry(self, line: bytes) -> Any:
        try:
            return decode_caption(line) if self.path.suffix != ".jsonl" else json.loads(line)
        except Rejected as rejected:
            return rejected
        except (ValueError, RecursionError) as error:
            return Rejected("bad_row", str(error))

    def fetch(self, row: Row) -> Item:
        """The prompt itself."""
        return Item(row["caption"], row["columns"])
