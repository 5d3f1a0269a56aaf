"""The networks that metrics look through: loaded when a metric first asks, shared by all that ask for the same."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

from torch import Tensor

from flashdmd_cli.core.pictures import as_float
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.shapes.inspector import Reading, load_inspector


class Reader(Protocol):
    """What metrics need of an inspector."""

    def read(self, pictures: Tensor) -> Reading: ...


class ReadsOnce:
    """Reads each batch once, though several metrics ask: the last one is remembered. Takes pictures of 8 bits."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._last: tuple[Tensor, Reading] | None = None

    def read(self, pictures: Tensor) -> Reading:
        """What the inspector sees in pictures (B, 3, 64, 64) uint8."""
        if self._last is None or self._last[0] is not pictures:
            self._last = pictures, self.reader.read(as_float(pictures))
        return self._last[1]


class Instruments:
    """Given to every metric when it is made; the metric takes from it what it looks through."""

    @cached_property
    def inspector(self) -> ReadsOnce:
        """The embedded world's inspector; FileNotFoundError where its weights are missing."""
        return ReadsOnce(load_inspector(asset("inspector")))
