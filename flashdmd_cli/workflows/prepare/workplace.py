"""The output folder of a preparation, which several processes may share."""

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
    """The folder `out` from the view of one process, with its share of the work and its reporter."""

    out: Path
    share: Share
    num_processes: int
    reporter: Reporter
    complete: bool = False
    """Whether all requested work is finished, including that of other shares."""

    @property
    def work(self) -> Path:
        """Folder for unfinished work."""
        return self.out / WORK

    @contextmanager
    def open(self) -> Iterator[None]:
        """Create `work`; the last process that uses it deletes it when all work is finished."""
        self.work.mkdir(exist_ok=True)
        yield
        if self.complete and is_alone(self.out):
            shutil.rmtree(self.work, ignore_errors=True)
            for left in self.out.glob(".*.tmp"):  # from processes that were killed
                left.unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Mutual exclusion: only one of the processes that share `out` is inside at a time."""
        with (self.work / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def others_too(self, ready: Callable[[], bool]) -> bool:
        """Whether all shares are finished. Ranks of torchrun wait until they are; jobs of a job array do not."""
        while not ready():
            if not self.share.waits:
                return False
            time.sleep(0.2)
        return True

    def counter(self, total: int) -> Callable[[int], None]:
        """A function that adds to the number of finished items and reports the progress."""
        done = 0
        self.reporter.progress(0, total)

        def tick(num: int) -> None:
            nonlocal done
            done += num
            self.reporter.progress(done, total)

        return tick
