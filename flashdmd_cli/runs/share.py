"""Which part of the work is this process's: as a job of an array, or as a rank that torchrun started."""

from __future__ import annotations

import os
from dataclasses import dataclass

from flashdmd_cli.runs.errors import UsageError


@dataclass(frozen=True)
class Share:
    """Which tasks are this process's: every `count`-th, from `index`."""

    index: int = 0
    count: int = 1
    waits: bool = False
    """Whether the other shares are being worked on now, so that it makes sense to wait for them (torchrun)."""
    local: int = 0
    """Number of this process on its machine: it takes that accelerator."""

    @classmethod
    def find(cls, index: int | None, count: int | None) -> Share:
        """From the options of a job array, else from what torchrun sets; UsageError when they make no sense."""
        if (index is None) != (count is None):
            missing, given = ("index", "count") if index is None else ("count", "index")
            raise UsageError(f"--shard-{missing}: missing beside --shard-{given}", hint="a job array gives both")
        if index is not None and count is not None:
            if count < 1 or not 0 <= index < count:
                raise UsageError(
                    f"--shard-index {index}: must be from 0 to --shard-count - 1 = {count - 1}",
                    hint="for SLURM: --shard-index $SLURM_ARRAY_TASK_ID --shard-count $SLURM_ARRAY_TASK_COUNT",
                )
            return cls(index, count)
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world > 1 and "RANK" in os.environ:
            return cls(int(os.environ["RANK"]), world, waits=True, local=int(os.environ.get("LOCAL_RANK", "0")))
        return cls()

    @property
    def tells(self) -> bool:
        """Whether this process tells of the result: of torchrun's ranks the first does."""
        return not self.waits or self.index == 0

    def of(self, total: int) -> range:
        """The numbers below `total` that are this share's."""
        return range(self.index, total, self.count)
