"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only ids or paths, one a line.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Yes = Annotated[bool, typer.Option("--yes", help="Replace the contents of --out.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to.", show_default=False)]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="Name or YAML file; see `flashdmd recipes list`.", show_default=False)
]
Iterations = Annotated[
    int | None, typer.Option("--iterations", help="Number of training iterations.", show_default=False)
]
NumProcesses = Annotated[
    int, typer.Option("--nproc", min=1, help="Training processes on this machine, one per GPU; they share each batch.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and the grid; no work.")]
RecipeSeed = Annotated[
    int | None, typer.Option("--seed", help="Seed of all random numbers (default: the recipe's).", show_default=False)
]
"""For commands with a recipe, which has a seed."""
Seed = Annotated[int, typer.Option("--seed", help="Seed of all random numbers.")]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="auto, cpu, cuda or mps (auto: the accelerator if there is one).", show_default=False
    ),
]
Vae = Annotated[
    str | None,
    typer.Option(
        "--vae", help="Autoencoder instead of the teacher's: folder, file or hub id.", show_default=False
    ),
]  # fmt: skip
TeacherConfig = Annotated[
    str | None,
    typer.Option(
        "--teacher-config",
        help="For a teacher in one file: folder or hub id with its configurations (default: its family's).",
        show_default=False,
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="A distilled checkpoint, a pipeline folder or file, `shapes-sdxl` or `shapes-sd3` (default: the newest "
        "under ./runs).",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A published model with its authors' settings; `flashdmd sample --list-models`. Or a YAML file.",
        show_default=False,
    ),
]
