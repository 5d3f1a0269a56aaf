"""Data parallelism: the processes of a run, each of which computes its own rows of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flashdmd_cli.runs.errors import UsageError


@dataclass(frozen=True)
class World:
    """`size` processes, of which this is number `rank`. With one process there is no communication."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """The process group of `torch.distributed`, or one process if it is not initialised."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

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
                hint=f"--set train.batch={max(share, 1) * self.size}",
            )
        return range(self.rank * share, (self.rank + 1) * share)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Average tensors over processes, in place; shapes have to be the same on every process."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes by rank, on every process; they have to be picklable."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any process."""
        return any(self.gather(bool(flag)))

    def wait(self) -> None:
        """Barrier: return when every process has called this."""
        self.gather(None)
