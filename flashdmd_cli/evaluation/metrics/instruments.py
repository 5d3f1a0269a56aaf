"""The networks that metrics look through: loaded when a metric first asks, shared by all that ask for the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from flashdmd_cli.core.pictures import as_float
from flashdmd_cli.evaluation.scorers.weights import Weights, locate, locate_file
from flashdmd_cli.runs.download import RemoteFile
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.shapes.inspector import Reading, load_inspector

Network = TypeVar("Network")


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
    """The networks that metrics need, loaded on first use and shared; passed to every metric when it is created.

    Weights are found when a metric is made, so that missing ones are reported before any work; networks are loaded at
    the first picture, and `release` frees them.
    """

    def __init__(
        self,
        weights_dir: Path | None = None,
        device: torch.device | str = "cpu",
        reporter: Reporter | None = None,
        download: bool = True,
    ) -> None:
        """`weights_dir` is searched before the cache of the hub; without `download` nothing is fetched."""
        self.weights_dir = weights_dir
        self.device = torch.device(device)
        self.reporter = reporter or SilentReporter()
        self.download = download
        self._networks: dict[Any, Any] = {}
        self._files: dict[Weights | RemoteFile, Path] = {}
        self._last: Tensor | None = None
        self._seen: dict[Any, Any] = {}

    @cached_property
    def inspector(self) -> ReadsOnce:
        """The embedded world's inspector; FileNotFoundError where its weights are missing."""
        return ReadsOnce(load_inspector(asset("inspector")))

    def find(self, wanted: Weights | RemoteFile) -> Path:
        """The folder that holds files of the hub, or a file from elsewhere; WeightsMissing, in one line, if they cannot
        be had."""
        if wanted not in self._files:
            look = (self.weights_dir, self.reporter, self.download)
            found = locate_file(wanted, *look) if isinstance(wanted, RemoteFile) else locate(wanted, *look)
            self._files[wanted] = found
        return self._files[wanted]

    def network(self, key: Any, load: Callable[[], Network]) -> Network:
        """The network of this `key`, loaded by `load` on first use."""
        if key not in self._networks:
            self._networks[key] = load()
        return self._networks[key]

    def once(self, pictures: Tensor, key: Any, compute: Callable[[], Network]) -> Network:
        """What `compute` makes of these pictures, computed once though several metrics ask for it one after another:
        remembered until other pictures come."""
        if self._last is not pictures:
            self._last, self._seen = pictures, {}
        if key not in self._seen:
            self._seen[key] = compute()
        found: Network = self._seen[key]
        return found

    def release(self) -> None:
        """Drop the loaded networks; the next `network` loads again."""
        self._networks.clear()
        self._last, self._seen = None, {}
