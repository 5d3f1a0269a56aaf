"""What a section of a page may show besides plots: tables, pictures, lists of values, plain text."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from flashdmd_cli.evaluation.page import Exhibit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a text, and a smaller one below it."""

    text: str
    below: str = ""
    kind: str = ""
    """`good` or `bad`: the colour of the text."""


@dataclass(frozen=True)
class Table:
    """A table of texts. Each row has as many cells as there are heads; without heads, any number."""

    template: ClassVar[str] = "table.html"
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    style: str = "stuck"
    """`stuck` (the first column stays while others scroll) or `text` (cells wrap)."""
    marked: Mapping[int, str] | None = None
    """Row -> `published` (the value of somebody else) or `chosen`."""

    @property
    def cells(self) -> list[list[Cell]]:
        """All rows, with plain texts as cells."""
        return [[Cell(each) if isinstance(each, str) else each for each in row] for row in self.rows]


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    template: ClassVar[str] = "heading.html"
    text: str


@dataclass(frozen=True)
class Folded:
    """Exhibits that a click on the title shows."""

    template: ClassVar[str] = "folded.html"
    title: str
    exhibits: Sequence[Exhibit]


@dataclass(frozen=True)
class Preformatted:
    """Text whose line ends and spaces are kept."""

    template: ClassVar[str] = "preformatted.html"
    text: str


@dataclass(frozen=True)
class Facts:
    """Short values with their names, and optionally a bar that shows how much of something is done."""

    template: ClassVar[str] = "facts.html"
    values: Mapping[str, str]
    done: float | None = None
    """From 0 to 1."""


@dataclass(frozen=True)
class Card:
    """A prompt with one or more pictures of it."""

    prompt: str
    pictures: Sequence[tuple[str, str]]
    """(caption, data URI); a text in place of the URI says why there is no picture."""
    tooltip: str = ""


@dataclass(frozen=True)
class Cards:
    """Prompts with their pictures, as many next to each other as the screen is wide."""

    template: ClassVar[str] = "cards.html"
    cards: Sequence[Card]

    @property
    def in_pairs(self) -> bool:
        """Whether a prompt has several pictures."""
        return any(len(card.pictures) > 1 for card in self.cards)


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side: a row per sampler, a column per caption."""

    template: ClassVar[str] = "pictures.html"
    rows: Mapping[str, Sequence[str]]
    """Name -> the data URI of each picture."""
    captions: Sequence[str]

    @classmethod
    def of(cls, rows: Mapping[str, Tensor], captions: Sequence[str]) -> Pictures:
        """From tensors (N, 3, H, W) on [-1, 1], one for each row."""
        for name, batch in rows.items():
            if len(batch) != len(captions):
                raise ValueError(f"{name}: {len(batch)} pictures for {len(captions)} captions")
        return cls({name: [picture_uri(each) for each in batch] for name, batch in rows.items()}, captions)


@dataclass(frozen=True)
class Frames:
    """Rows of pictures, each a strip of one picture per caption, with one row that a slider moves through."""

    template: ClassVar[str] = "frames.html"
    fixed: Mapping[str, str]
    """Name -> the strip as a data URI."""
    frames: Mapping[str, str]
    """The same for the row that changes, first to last; the last is shown first."""
    captions: Sequence[str]


def metric_table(
    rows: Mapping[str, Mapping[str, float]],
    columns: Mapping[str, str],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
    chosen: str,
) -> Table:
    """A row per sampler and a column per metric; `columns` maps a metric's key to its heading.

    `intervals` adds a 95% interval below a value; the row named `chosen` is marked.
    """

    def cell(name: str, key: str) -> Cell:
        if key not in rows[name]:
            return Cell("")
        low_high = intervals.get(name, {}).get(key)
        return Cell(f"{rows[name][key]:.3f}", f"{low_high[0]:.3g} to {low_high[1]:.3g}" if low_high else "")

    lines = [[Cell(name), *(cell(name, key) for key in columns)] for name in rows]
    return Table(["", *columns.values()], lines, marked={list(rows).index(chosen): "chosen"})


def picture_uri(picture: Tensor) -> str:
    """A picture (3, H, W) on [-1, 1] as a PNG data URI."""
    from flashdmd_cli.evaluation.pictures import to_image

    stream = io.BytesIO()
    to_image(picture).save(stream, format="PNG")
    return data_uri(stream.getvalue(), "png")


def file_uri(path: Path) -> str:
    """A PNG or JPEG file as a data URI."""
    return data_uri(path.read_bytes(), "png" if path.suffix == ".png" else "jpeg")


def data_uri(data: bytes, kind: str) -> str:
    """The contents of a picture file as a data URI; `kind` is `png` or `jpeg`."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
