"""Prompts without pictures, for training without GAN and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flashdmd_cli.data.items import Item, Row
from flashdmd_cli.data.prompts import prompt_rows
from flashdmd_cli.data.reading import Captions


@dataclass
class PromptList:
    """The prompts of a file in any format of `data.prompts`."""

    path: Path
    captions: Captions = Captions()
    kind: str = "prompts"
    prompts_only: bool = True

    def __post_init__(self) -> None:
        self.path = self.path.absolute()  # links are not resolved: in the hub's cache, their targets have no suffix

    def rows(self) -> Iterator[Row]:
        """One row per prompt, without empty lines."""
        yield from prompt_rows(self.path, self.captions)

    def fetch(self, row: Row) -> Item:
        """The prompt itself."""
        return Item(row["caption"], row["columns"])
