"""Writing of states during a run, if wanted by a thread while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from flashdmd_cli.core.shards import is_sharded
from flashdmd_cli.runs.checkpoint import Snapshot, save_state, write_state
from flashdmd_cli.runs.errors import FlashDMDError
from flashdmd_cli.runs.signals import StopSignal
from flashdmd_cli.runs.world import World


class StateWriter:
    """Context manager that saves the states of a run; at its end the last one is on the disk.

    With `background`, `save` copies tensors to main memory and returns; a thread writes them. At most one state is
    being written: the next `save`, or the end, waits for it, and raises the error if it could not be written.
    """

    def __init__(self, world: World, keep: int, background: bool) -> None:
        """`keep`: number of states that are kept. A collective call with `background`."""
        self.world, self.keep, self.background = world, keep, background
        self.group = world.apart() if background else world
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def save(self, folder: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        """Save a state as `save_state` does. Every process of the run makes this call."""
        self.wait()
        if not self.background:
            save_state(folder, tensors, meta, self.world, self.keep)
        elif self.world.is_main or any(map(is_sharded, tensors.values())):
            snapshot = Snapshot.of(tensors, meta, self.group, copied=True)
            # A daemon: a second signal ends the process without waiting for a write.
            self.thread = threading.Thread(target=self._write, args=(folder, snapshot), daemon=True)
            self.thread.start()

    def _write(self, folder: Path, snapshot: Snapshot) -> None:
        try:
            write_state(folder, snapshot, self.keep)
        except BaseException as error:
            self.error = error

    def wait(self) -> None:
        """Return when the state that is being written is on the disk; raises the error if it could not be written."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, StopSignal):
            self.wait()
        elif isinstance(error, Exception):
            with suppress(FlashDMDError):  # the first error is the one to report
                self.wait()
