"""Data parallelism: the processes of a run, each of which computes its own rows of every batch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from flashdmd_cli.runs.errors import FlashDMDError, Interrupted, LostContact, UsageError
from flashdmd_cli.runs.launcher import LAUNCHER, end_with

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.runs.device import Place

T = TypeVar("T")
BUCKET_BYTES = 64 * 2**20
"""Tensors are averaged in groups of about this size: large enough for the full bandwidth, small beside the networks."""
TIMEOUT = timedelta(hours=2)
"""Longest wait for another process, which may be downloading or drawing previews. The end of one is noticed at once."""
REPORT_SECONDS = 10.0
"""Longest wait for process 0 to report the end of a run that all processes have agreed on."""


@dataclass(frozen=True)
class World:
    """`size` processes, of which this is number `rank`. With one process there is no communication.

    The methods that communicate are collective: every process has to call them, in the same order. They raise
    `LostContact` if another process has ended.
    """

    rank: int = 0
    size: int = 1
    store: Any = field(default=None, compare=False, repr=False)
    """Key-value store of all processes (`torch.distributed.Store`), for errors; None in a process group of others."""
    group: Any = field(default=None, compare=False, repr=False)
    """Process group of `torch.distributed` for `gather`; None: the default one."""

    @classmethod
    def current(cls) -> World:
        """The process group of `torch.distributed`, or one process if it is not initialised."""
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @classmethod
    def join(cls) -> World:
        """The processes that `torchrun` or `--nproc` started, as described by its environment variables.

        CPU tensors are exchanged by gloo, CUDA tensors by NCCL; the GPU is the one of LOCAL_RANK.
        """
        import torch
        import torch.distributed as dist

        end_with(os.environ.get(LAUNCHER))
        backend = "gloo"
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        try:
            store, rank, size = next(iter(dist.rendezvous("env://", timeout=timedelta(minutes=10))))
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            at = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
            raise UsageError(
                f"WORLD_SIZE: cannot meet the other processes at {at}: {str(error).splitlines()[0]}",
                hint="start training processes with --nproc or torchrun",
            ) from error
        return cls(rank, size, store)

    def leave(self) -> None:
        """End of the work: returns when all processes have called it."""
        if self.size > 1:
            import torch.distributed as dist

            self.wait()
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def rows(self, batch: int) -> range:
        """This process's rows of a batch; UsageError where `size` does not divide it."""
        share, rest = divmod(batch, self.size)
        if rest:
            raise UsageError(
                f"train.batch: {batch} pictures cannot be shared equally by {self.size} processes",
                hint=f"choose a multiple of {self.size}, or another number of processes",
            )
        return range(self.rank * share, (self.rank + 1) * share)

    def check(self, place: Place) -> None:
        """Raise UsageError if the processes on this machine cannot compute at `place`."""
        if self.size == 1:
            return
        import torch

        if place.device == "mps":
            raise UsageError("--device mps: supports one process only", hint="use one process, or --device cpu")
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if place.device == "cuda" and here > torch.cuda.device_count():
            raise UsageError(
                f"--nproc: {here} processes, but this machine has {torch.cuda.device_count()} GPUs",
                hint="use one process per GPU",
            )

    # -- exchange ------------------------------------------------------------------------------------------------------

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Average tensors over processes, in place; shapes have to be the same on every process.

        Extra memory: one bucket of `BUCKET_BYTES`; larger tensors are exchanged in place, without a copy.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        with _contact():
            for bucket in buckets(tensors):
                if len(bucket) == 1 and bucket[0].is_contiguous():
                    dist.all_reduce(bucket[0])
                    bucket[0].div_(self.size)
                    continue
                flat = torch.cat([tensor.flatten() for tensor in bucket])
                dist.all_reduce(flat)
                flat.div_(self.size)
                for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    def mean_gradients_(self, parameters: Sequence[Tensor]) -> None:
        """Average gradients over processes, in place; a missing gradient counts as zero, unless all processes lack it.

        Processes may lack gradients of different parameters, such as one that has no preference pairs. Those of sharded
        parameters were averaged in the backward pass.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        from flashdmd_cli.core.shards import is_sharded

        parameters = [p for p in parameters if not is_sharded(p)]
        present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        with _contact():
            dist.all_reduce(present, dist.ReduceOp.MAX)
        reached = [p for p, anywhere in zip(parameters, present.tolist(), strict=True) if anywhere]
        for p in reached:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self.mean_([p.grad for p in reached if p.grad is not None])

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, on every process; they have to be picklable."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with _contact():
            dist.all_gather_object(values, value, self.group)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any process."""
        return any(self.gather(bool(flag)))

    def wait(self) -> None:
        """Barrier: return when every process has called this."""
        self.gather(None)

    def from_main(self, work: Callable[[], T]) -> T:
        """The result of `work`, which only the main process does; it has to be picklable."""
        return self.gather(work() if self.is_main else None)[0]  # type: ignore[return-value]

    def each(self, work: Callable[[], Any] | None) -> list[Any]:
        """The results of all processes' `work` (None: None), by rank; the first error of one is raised in all."""
        outcome: Any
        try:
            outcome = None if work is None else work()
        except FlashDMDError as error:
            if self.size == 1:
                raise
            outcome = error
        outcomes = self.gather(outcome)
        for each in outcomes:
            if isinstance(each, FlashDMDError):
                raise each
        return outcomes

    def apart(self) -> World:
        """The same processes in a group of their own, for another thread; only `gather` and what uses it use this
        group. A collective call."""
        if self.size == 1:
            return self
        import torch.distributed as dist

        return replace(self, group=dist.new_group(backend="gloo"))

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does the work inside alone, then the others: it has downloaded by then what they need."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    # -- errors --------------------------------------------------------------------------------------------------------

    @contextmanager
    def contact(self) -> Iterator[None]:
        """Context of passes through sharded networks: raises `LostContact` if another process has ended."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_of_connection(error):
                raise
            raise _lost() from error

    def report_failure(self, error: BaseException, code: int) -> tuple[bool, int]:
        """Whether this process prints `error`, and the exit code for it, instead of `code`.

        Of all processes only one prints, the first that fails. One that has lost contact takes the exit code of the
        first. The end of a run that all have agreed on is left to the main process.
        """
        if self.store is None:
            return self.is_main, code
        if isinstance(error, Interrupted) and not self.is_main:
            self._wait_for_report()
        mine = f"{self.rank} {code}"
        try:
            first = self.store.compare_set("failed", "", mine).decode()
        except RuntimeError:  # the process that had the store has ended
            return False, code
        return first == mine, int(first.split()[1]) if isinstance(error, LostContact) else code

    def _wait_for_report(self) -> None:
        end = time.monotonic() + REPORT_SECONDS
        with suppress(RuntimeError, KeyboardInterrupt):
            while time.monotonic() < end and not self.store.check(["failed"]):
                time.sleep(0.02)


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Successive tensors of the same format and device in groups of at most `BUCKET_BYTES`, or of a single tensor."""
    group: list[Tensor] = []
    size = 0
    for tensor in tensors:
        differs = bool(group) and (group[0].dtype, group[0].device) != (tensor.dtype, tensor.device)
        if group and (differs or size + tensor.nbytes > BUCKET_BYTES):
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.nbytes
    if group:
        yield group


@contextmanager
def _contact() -> Iterator[None]:
    """Turns the errors of torch.distributed into `LostContact`."""
    try:
        yield
    except RuntimeError as error:
        raise _lost() from error


def _is_of_connection(error: RuntimeError) -> bool:
    """Whether NCCL or gloo raised this; gloo's errors have no class of their own."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _lost() -> LostContact:
    return LostContact(
        "--nproc: another process of this run has ended, perhaps for want of memory",
        hint="the same command resumes from the newest saved state",
    )
