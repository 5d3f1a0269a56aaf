"""Numbered tasks, done in this process or by a pool of others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Protocol

from flashdmd_cli.runs.errors import FlashDMDError

Tick = Callable[[int], None]
Stop = Callable[[], bool]
POLL_SECONDS = 0.5
GRACE_SECONDS = 3.0
"""What a worker has to finish a row when all are to halt; its files are whole or absent whenever it ends."""


class Job(Protocol):
    """Work on numbered tasks. It travels to worker processes, so it is picklable."""

    def start(self, number: int) -> None:
        """Get ready in process `number` of the pool."""
        ...

    def run(self, task: int, tick: Tick, stop: Stop) -> None:
        """Do one task, telling `tick` what is done; returns early, leaving nothing half-done, when `stop` says so."""
        ...


def run_tasks(job: Job, tasks: Iterable[int], num_processes: int, done: Tick, first: int = 0) -> None:
    """Do all tasks, in this process or in `num_processes` others. `done` is told how much was done since it was last
    told; `first` is the number of the first process.

    Raises what a task raises; `FlashDMDError` when a worker dies.
    """
    stream = iter(tasks)
    if num_processes == 1:
        head = next(stream, None)
        if head is None:
            return
        job.start(first)
        for task in chain([head], stream):
            job.run(task, done, lambda: False)
        return
    with _pool(job, num_processes, first) as (pool, counter):
        # A few tasks ahead and no more: the list of all of them would grow with the source.
        with _signals_blocked():
            running: set[Future[None]] = {pool.submit(_run, task) for task in islice(stream, 2 * num_processes)}
        told = 0
        try:
            while running:
                finished, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                running |= {pool.submit(_run, task) for task in islice(stream, len(finished))}
                now = counter.value
                done(now - told)
                told = now
        except BrokenProcessPool:
            raise FlashDMDError(
                "--nproc: a worker process died, perhaps for want of memory",
                hint="the same command goes on with what is missing; try a smaller --nproc",
            ) from None


@dataclass
class _Worker:
    """What a worker process keeps between tasks."""

    job: Job
    counter: Any
    halt: Any

    def tick(self, num: int) -> None:
        with self.counter.get_lock():
            self.counter.value += num


_worker: _Worker | None = None


@contextmanager
def _pool(job: Job, num: int, first: int) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """A pool of fresh processes (spawned: a forked one would inherit threads), halted on an error; a shared counter."""
    context = multiprocessing.get_context("spawn")
    counter, halt, numbers = context.Value("q", 0), context.Event(), context.Value("i", first)
    pool = ProcessPoolExecutor(num, context, _start, (job, numbers, counter, halt))
    try:
        yield pool, counter
    except BaseException:
        halt.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """For processes that begin inside, who inherit it: Ctrl-C reaches the whole group, but the parent alone hears it,
    and tells the workers when to stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(job: Job, numbers: Any, counter: Any, halt: Any) -> None:
    """Begin a worker's life."""
    global _worker
    for leave in (_leave_with_parent, partial(_leave_when_halted, halt)):
        threading.Thread(target=leave, daemon=True).start()
    with numbers.get_lock():
        number = numbers.value
        numbers.value += 1
    job.start(number)
    _worker = _Worker(job, counter, halt)


def _leave_with_parent() -> None:
    """A parent that was killed leaves no workers behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _leave_when_halted(halt: Any) -> None:
    """A worker that does not come to the end of what it is at, loading a model perhaps, is not waited for."""
    halt.wait()
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _run(task: int) -> None:
    assert _worker is not None
    _worker.job.run(task, _worker.tick, _worker.halt.is_set)
