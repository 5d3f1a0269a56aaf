"""The part of the work for this process: as a job of a job array, or as a rank started by torchrun."""

from __future__ import annotations

import os
from dataclasses import dataclass

from flashdmd_cli.runs.errors import UsageError


@dataclass(frozen=True)
class Share:
    """The tasks of this process: every `count`-th, starting at `index`."""

    index: int = 0
    count: int = 1
    waits: bool = False
    """Whether all shares are processed at the same time (torchrun), so that this process can wait for the others."""
    local: int = 0
    """Local rank: the index of this process on its machine, and of its accelerator."""

    @classmethod
    def find(cls, index: int | None, count: int | None) -> Share:
        """From the options of a job array, else from torchrun's environment; UsageError for invalid values."""
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
    def reports(self) -> bool:
        """Whether this process reports the result: always, except for torchrun's ranks other than 0."""
        return not self.waits or self.index == 0

    def of(self, total: int) -> range:
        """The indices below `total` of this share."""
        return range(self.index, total, self.count)
