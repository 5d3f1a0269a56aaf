"""Training commands in several processes: those of `torchrun`, or of `--nproc`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import typer

from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.launcher import is_rank, launch

if TYPE_CHECKING:
    from flashdmd_cli.runs.world import World


def joined() -> World | None:
    """The processes of this training, met; None if this is the only one."""
    if not is_rank():
        return None
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is reported in one line
    from flashdmd_cli.runs.world import World

    return World.join()


def run_processes(nproc: int, world: World | None) -> None:
    """With `--nproc`, run this command in several processes instead, and exit as they do; not in one of `world`."""
    if world is None and nproc > 1:
        raise typer.Exit(launch(nproc, [sys.executable, "-m", "flashdmd_cli", *sys.argv[1:]]))
    if world is not None and nproc not in (1, world.size):
        raise UsageError(f"--nproc {nproc}: {world.size} processes were started already", hint="leave it out")
