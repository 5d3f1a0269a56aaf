"""Numbered tasks, run in this process or in a pool of worker processes."""

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
"""Time for a worker to finish its row after a stop; it may be killed then, since files are written atomically."""


class Job(Protocol):
    """Work on numbered tasks. It is sent to worker processes, so it has to be picklable."""

    def start(self, number: int) -> None:
        """Initialise in process `number` of the pool."""
        ...

    def run(self, task: int, tick: Tick, stop: Stop) -> None:
        """Run one task and call `tick` with numbers of finished items; returns early, in a clean state, if `stop()`."""
        ...


def run_tasks(job: Job, tasks: Iterable[int], num_processes: int, done: Tick, first: int = 0) -> None:
    """Run all tasks, in this process (`num_processes` 1) or in a pool. `done` is called with the number of items
    finished since its last call; `first` is the number of the first process.

    Raises the exception of a task; `FlashDMDError` if a worker dies.
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
        # Submit only a few tasks ahead, so that memory does not grow with the number of tasks.
        with _signals_blocked():
            running: set[Future[None]] = {pool.submit(_run, task) for task in islice(stream, 2 * num_processes)}
        reported = 0
        try:
            while running:
                finished, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                running |= {pool.submit(_run, task) for task in islice(stream, len(finished))}
                now = counter.value
                done(now - reported)
                reported = now
        except BrokenProcessPool:
            raise FlashDMDError(
                "--nproc: a worker process died, perhaps for want of memory",
                hint="the same command continues with what is missing; try a smaller --nproc",
            ) from None


@dataclass
class _Worker:
    """State of a worker process between tasks."""

    job: Job
    counter: Any
    halt: Any

    def tick(self, num: int) -> None:
        with self.counter.get_lock():
            self.counter.value += num


_worker: _Worker | None = None


@contextmanager
def _pool(job: Job, num: int, first: int) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """A pool of spawned processes (forked ones would inherit threads), halted on an error, and its shared counter."""
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
    """Blocks signals in processes started inside: Ctrl-C is sent to the whole process group, but only the parent should
    handle it and stop the workers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(job: Job, numbers: Any, counter: Any, halt: Any) -> None:
    """Initialise a worker process."""
    global _worker
    for leave in (_leave_with_parent, partial(_leave_when_halted, halt)):
        threading.Thread(target=leave, daemon=True).start()
    with numbers.get_lock():
        number = numbers.value
        numbers.value += 1
    job.start(number)
    _worker = _Worker(job, counter, halt)


def _leave_with_parent() -> None:
    """Exit when the parent process has ended, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _leave_when_halted(halt: Any) -> None:
    """Exit some seconds after a halt, even in the middle of a task, such as loading a model."""
    halt.wait()
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _run(task: int) -> None:
    assert _worker is not None
    _worker.job.run(task, _worker.tick, _worker.halt.is_set)
