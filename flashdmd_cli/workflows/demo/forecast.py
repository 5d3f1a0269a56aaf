"""How long a demo will take on this machine: small pieces of its work, timed, times how many of them there are."""

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
"""What an iteration costs for each picture, in forward passes of the denoiser, beside one decoding with gradient;
measured in docs/log/2026-11-27-demo-cost.md."""
FIXED_SECONDS = 25.0
"""Loading, rendering, measuring and writing, on a processor of today."""
LONG_SECONDS = 20 * 60.0
"""Above this a person is offered a shorter demo."""


@dataclass(frozen=True)
class Pace:
    """Seconds that pieces of a demo's work take here, for one picture."""

    forward: float
    """One pass of the denoiser."""
    decode: float
    """Decoding, and back through the decoder."""

    def iteration(self, batch: int) -> float:
        """One iteration on `batch` pictures."""
        return batch * (ITERATION_PASSES * self.forward + self.decode)

    def drawing(self, pictures: int, passes: int) -> float:
        """Pictures that take `passes` of the denoiser each, and a decoding without the way back."""
        return pictures * (passes * self.forward + self.decode / 2)


def expect(recipe: Recipe, at: Stages) -> list[str]:
    """How long what is left will take here, as lines for a person."""
    from flashdmd_cli.runs.checkpoint import latest_state
    from flashdmd_cli.runs.manifest import MANIFEST

    left = recipe.train.iterations
    if (at.student / MANIFEST).is_file():
        left = 0
    elif (state := latest_state(at.student / "state")) is not None:
        left -= int(state.name.rpartition("-")[2])
    # Guidance takes two passes for each step.
    passes = {"student_4": recipe.grid.steps} | {row: 2 * steps for row, (_, steps) in TEACHER_ROWS.items()}
    num = len(suite_to_draw().rows)
    drawings = [(num, passes[row]) for row in ROWS if not at.pictures(row).is_file()]
    if left:
        # What is shown of it on the way: the teacher's rows but one, and the student three times.
        drawings.append((NUM_SHOWN, passes["teacher_30"] + passes["teacher_4_ddim"] + 3 * passes["student_4"]))
    return forecast(measure_pace(load_teacher(recipe, at)), recipe.train.batch, left, drawings)


def measure_pace(family: Family) -> Pace:
    """Time one pass of the teacher and one decoding with gradient in turns for `PROBE_SECONDS`."""
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

    ways: dict[str, Callable[[], Tensor]] = {"forward": forward, "decode": decode}
    seen: dict[str, list[float]] = {name: [] for name in ways}
    began = time.monotonic()
    # The first round pays for what is done once, so it counts only where the machine is too slow for another.
    while len(seen["decode"]) < 1 or time.monotonic() - began < PROBE_SECONDS:
        for name, call in ways.items():
            start = time.monotonic()
            call().sum().item()  # an accelerator answers when it is done
            seen[name].append((time.monotonic() - start) / PROBE_PICTURES)
    return Pace(**{name: statistics.median(values[1:] or values) for name, values in seen.items()})


def forecast(pace: Pace, batch: int, iterations: int, drawings: list[tuple[int, int]]) -> list[str]:
    """What to tell a person: how long it will take, and, where that is long, how many iterations would not.

    `drawings` are (pictures, passes of the denoiser for each) of what is left to draw.
    """
    rest = FIXED_SECONDS + sum(pace.drawing(*each) for each in drawings)
    turn = pace.iteration(batch)
    whole = rest + iterations * turn
    part = f", {minutes(iterations * turn)} of it for part 2" if iterations else ""
    lines = [f"Here it will take about {minutes(whole)}{part}."]
    if whole > LONG_SECONDS:
        fits = int((LONG_SECONDS - rest) / turn)
        shorter = max(10, fits // 10 * 10)
        if shorter < iterations:
            lines.append(
                f"To have it sooner, stop it and add `--iterations {shorter}`: about "
                f"{minutes(rest + shorter * turn)}, for a student that has learned less. Measured in two seconds: if "
                "something else keeps this machine busy now, it will be less."
            )
    return lines


def minutes(seconds: float) -> str:
    """`100` -> `2 minutes`; two hours and more as hours and minutes."""
    whole = max(1, round(seconds / 60))
    return f"{whole} minute{'s' if whole > 1 else ''}" if whole < 120 else f"{duration(whole * 60)[:-3]} hours"
