"""Where a preparation works: its folder, which other processes may share, and whom it tells."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flashdmd_cli.runs.lock import LOCK, is_alone
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.runs.share import Share

WORK = ".work"


@dataclass
class Workplace:
    """One process's place at the folder `out`."""

    out: Path
    share: Share
    num_processes: int
    reporter: Reporter
    complete: bool = False
    """Everything that was asked for is there, also what other shares do."""

    @property
    def work(self) -> Path:
        """The folder of what is unfinished."""
        return self.out / WORK

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make `work`; the last of all processes that use it clears it when all is done."""
        self.work.mkdir(exist_ok=True)
        yield
        if self.complete and is_alone(self.out):
            shutil.rmtree(self.work, ignore_errors=True)
            for left in self.out.glob(".*.tmp"):  # of a writer that was killed
                left.unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process of all that share `out` at a time."""
        with (self.work / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def others_too(self, ready: Callable[[], bool]) -> bool:
        """Whether what other shares do is done: torchrun's ranks wait for it, jobs of an array do not."""
        while not ready():
            if not self.share.waits:
                return False
            time.sleep(0.2)
        return True

    def teller(self, total: int) -> Callable[[int], None]:
        """A counter that tells the reporter."""
        done = 0
        self.reporter.progress(0, total)

        def tick(num: int) -> None:
            nonlocal done
            done += num
            self.reporter.progress(done, total)

        return tick
