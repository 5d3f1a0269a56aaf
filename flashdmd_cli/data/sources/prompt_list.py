"""Prompts alone: for runs without a GAN, and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flashdmd_cli.data.items import Item, Row
from flashdmd_cli.data.prompts import prompt_rows
from flashdmd_cli.data.reading import Captions


@dataclass
class PromptList:
    """The prompts of a file of any kind that `data.prompts` reads."""

    path: Path
    captions: Captions = Captions()
    kind: str = "prompts"
    prompts_only: bool = True

    def __post_init__(self) -> None:
        self.path = self.path.absolute()  # not resolved: what a link in a cache points to has no suffix

    def rows(self) -> Iterator[Row]:
        """One row per prompt; empty lines do not count."""
        yield from prompt_rows(self.path, self.captions)

    def fetch(self, row: Row) -> Item:
        """The prompt itself."""
        return Item(row["caption"], row["columns"])
