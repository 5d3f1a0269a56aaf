"""Comparison of every format of an export with the student, before the export counts as done."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.runs.errors import NumericalError
from flashdmd_cli.runs.manifest import FormatRecord
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.workflows.inputs.kinds import is_shapes

if TYPE_CHECKING:
    from flashdmd_cli.export.job import Format, Job

SHAPES_PROMPT = "a plain red circle above a dotted blue ring"
PROMPT = "a photograph of a red fox in the snow"
"""Prompts of the pictures that are compared: for students of the embedded world, and for all others."""


def check_formats(formats: dict[str, Format], job: Job, folder: Path, reporter: Reporter) -> dict[str, FormatRecord]:
    """Load every format with stock diffusers, and compare its picture with the student's from the same noise."""
    from flashdmd_cli.export.check import compare, stock_picture, student_picture
    from flashdmd_cli.export.job import ROUNDED, TOLERANCE
    from flashdmd_cli.families.memory import free_memory

    prompt = prompt_for(job)

    def step(done: int) -> None:
        reporter.progress(done, job.steps)

    reporter.phase("comparing: drawing a picture with the student", "step")
    wanted = student_picture(job, prompt, step)
    records = {}
    for number, (name, each) in enumerate(formats.items(), 1):
        free_memory()  # of the model before
        reporter.phase(f"comparing {number}/{len(formats)}: loading {name} with its stock loader")
        pipeline = each.load(job, folder)
        reporter.phase(f"comparing {number}/{len(formats)}: drawing the same picture with {name}", "step")
        difference = compare(stock_picture(pipeline, job, prompt, step), wanted)
        del pipeline
        records[name] = FormatRecord(
            dtype=each.dtype(job), exact=each.is_exact(job), largest=difference.largest, mean=difference.mean,
            energy=None if each.is_exact(job) else energy_kept(folder),
        )  # fmt: skip
        reporter.say(described_check(name, records[name], job.student_dtype))
        # Rounded weights draw slightly other pictures: only the mean difference is limited.
        limits = [ROUNDED[dtype] for dtype in (each.dtype(job), job.student_dtype, job.check_dtype) if dtype in ROUNDED]
        found, limit = (difference.mean, max(limits)) if limits else (difference.largest, TOLERANCE)
        # An approximation may differ by any amount, but a picture that is not finite is an error there too.
        if not found < (limit if each.is_exact(job) else math.inf):
            raise NumericalError(
                f"--format {name}: its picture differs from the student's by {found:.3g} of the range of a pixel"
                f"{' on average' if limits else ''}, where {limit:g} is allowed",
                hint=f"this is a fault of flashdmd: report it with {folder} and the versions of `flashdmd doctor`",
            )
    return records


def prompt_for(job: Job) -> str:
    """A prompt that the teacher understands."""
    return SHAPES_PROMPT if is_shapes(job.source.folder) else PROMPT


def energy_kept(folder: Path) -> float | None:
    """The share of the change of the weights that an approximation keeps, from its table of layers."""
    from flashdmd_cli.export.lora import TABLE, share_kept

    return share_kept(folder / TABLE) if (folder / TABLE).is_file() else None


def described_check(name: str, record: FormatRecord, stored: str) -> str:
    """A line for people on how a format compares with the student, whose weights are stored in the format `stored`."""
    kept = "" if record.energy is None else f"; keeps {record.energy:.1%} of the change of the weights"
    if record.exact and record.dtype not in (stored, "fp32"):  # float32 represents all of them
        kept = f"; its weights are rounded, which --dtype {stored} avoids"
    return (
        f"{name} ({record.dtype}): reloaded; differs from the student's picture by {record.largest:.2g} at most, "
        f"{record.mean:.2g} on average{kept}"
    )
