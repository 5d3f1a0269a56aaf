"""Predicts how long the demo takes on this machine, from the time of one forward pass and one decoding."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flashdmd_cli.runs.reporter import duration
from flashdmd_cli.workflows.demo.rows import NUM_SHOWN, ROWS, TEACHER_ROWS, Stages, load_teacher, suite_to_draw

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.families.family import Family
    from flashdmd_cli.runs.recipe import Recipe

PROBE_SECONDS = 2.0
PROBE_PICTURES = 8
ITERATION_PASSES = 17.0
"""Cost of an iteration per picture in forward passes of the denoiser, without the decoding with gradient; measured in
docs/log/2026-11-27-demo-cost.md."""
FIXED_SECONDS = 25.0
"""Loading, rendering, measuring and writing, on a current processor."""
LONG_SECONDS = 20 * 60.0
"""Above this predicted duration, fewer iterations are suggested."""


@dataclass(frozen=True)
class Pace:
    """Measured seconds per picture on this machine."""

    forward: float
    """One forward pass of the denoiser."""
    decode: float
    """One forward and backward pass of the decoder."""

    def iteration(self, batch: int) -> float:
        """Seconds of a training iteration on `batch` pictures."""
        return batch * (ITERATION_PASSES * self.forward + self.decode)

    def drawing(self, pictures: int, passes: int) -> float:
        """Seconds of sampling `pictures` with `passes` forward passes each, and decoding without gradient."""
        return pictures * (passes * self.forward + self.decode / 2)


def expect(recipe: Recipe, at: Stages) -> list[str]:
    """The predicted duration of the unfinished part of a demo, as lines of text."""
    from flashdmd_cli.runs.checkpoint import latest_state
    from flashdmd_cli.runs.manifest import MANIFEST

    left = recipe.train.iterations
    if (at.student / MANIFEST).is_file():
        left = 0
    elif (state := latest_state(at.student / "state")) is not None:
        left -= int(state.name.rpartition("-")[2])
    # Classifier-free guidance needs two passes per step.
    passes = {"student_4": recipe.grid.steps} | {row: 2 * steps for row, (_, steps) in TEACHER_ROWS.items()}
    num = len(suite_to_draw().rows)
    drawings = [(num, passes[row]) for row in ROWS if not at.pictures(row).is_file()]
    if left:
        # Previews during training: two of the teacher's rows, and the student three times.
        drawings.append((NUM_SHOWN, passes["teacher_30"] + passes["teacher_4_ddim"] + 3 * passes["student_4"]))
    return forecast(measure_pace(load_teacher(recipe, at)), recipe.train.batch, left, drawings)


def measure_pace(family: Family) -> Pace:
    """Time a forward pass of the teacher and a decoding with gradient, alternating for `PROBE_SECONDS`."""
    import torch

    from flashdmd_cli.core.rollout import at

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(PROBE_PICTURES, *family.latent_shape, generator=draw).to(family.device)
    cond = family.encode(["a plain red circle above a striped blue ring"] * PROBE_PICTURES)

    def forward() -> Tensor:
        with torch.no_grad():
            return family.teacher.x0(x, at(500, x), cond)

    def decode() -> Tensor:
        with family.autocast():
            pictures = family.decode(x.clone().requires_grad_()).float()
        pictures.mean().backward()
        return pictures

    calls: dict[str, Callable[[], Tensor]] = {"forward": forward, "decode": decode}
    measured: dict[str, list[float]] = {name: [] for name in calls}
    began = time.monotonic()
    # The first round includes one-time costs, so it is ignored if there is time for a second one.
    while len(measured["decode"]) < 1 or time.monotonic() - began < PROBE_SECONDS:
        for name, call in calls.items():
            start = time.monotonic()
            call().sum().item()  # waits until an accelerator has finished
            measured[name].append((time.monotonic() - start) / PROBE_PICTURES)
    return Pace(**{name: statistics.median(values[1:] or values) for name, values in measured.items()})


def forecast(pace: Pace, batch: int, iterations: int, drawings: list[tuple[int, int]]) -> list[str]:
    """Lines of text: the predicted duration and, if it is long, a number of iterations that takes `LONG_SECONDS`.

    `drawings`: (pictures, passes of the denoiser per picture) of each set that is still to be sampled.
    """
    rest = FIXED_SECONDS + sum(pace.drawing(*each) for each in drawings)
    each = pace.iteration(batch)
    whole = rest + iterations * each
    part = f", {minutes(iterations * each)} of it for part 2" if iterations else ""
    lines = [f"On this machine it will take about {minutes(whole)}{part}."]
    if whole > LONG_SECONDS:
        fits = int((LONG_SECONDS - rest) / each)
        shorter = max(10, fits // 10 * 10)
        if shorter < iterations:
            lines.append(
                f"For a shorter demo, stop it and add `--iterations {shorter}`: about "
                f"{minutes(rest + shorter * each)}, with a student that has learned less. This was measured in two "
                "seconds: if other programs are using this machine now, it will be faster without them."
            )
    return lines


def minutes(seconds: float) -> str:
    """`100` -> `2 minutes`; two hours and more as hours and minutes."""
    whole = max(1, round(seconds / 60))
    return f"{whole} minute{'s' if whole > 1 else ''}" if whole < 120 else f"{duration(whole * 60)[:-3]} hours"
