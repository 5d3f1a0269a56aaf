"""Rebuilds the embedded world's models, which the package ships, part by part."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.building import PARTS
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import writing
from flashdmd_cli.runs.lock import hold, releasing
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.workflows.inputs.kinds import SHAPES

if TYPE_CHECKING:
    from torch import Tensor

TEACHER_STEPS = 4
"""Sampling steps of the teacher's pictures for pairs: as few as a student's, so that similar errors occur."""


@releasing()
def build_part(
    part: str,
    out: Path,
    work: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, float]:
    """Train one of `building.PARTS` and write it to `out`; returns its metrics.

    Checkpoints and logs are written to `work`, which all parts share; the same call again resumes. `steps` is the
    number of training steps (None: the part's default). Raises `UsageError` for an unknown part, or if another process
    is using `work`.
    """
    reporter = reporter or SilentReporter()
    if part not in PARTS:
        raise UsageError(f"PART {part}: unknown", hint=f"known parts: {', '.join(PARTS)}")
    if steps is not None and steps < 1:
        raise UsageError(f"--steps {steps}: must be at least 1", hint="leave it out for the part's default")
    with writing(work, "--work"):
        work.mkdir(parents=True, exist_ok=True)
        hold(work, "--work")
    if part == "picture":
        from flashdmd_cli.workflows.known_picture import save_known

        save_known(asset(SHAPES), out)
        return {}
    if part == "reward":
        return build_reward(out, work, steps, seed, reporter)
    length = {} if steps is None else {"steps": steps}
    builder = getattr(importlib.import_module(f"flashdmd_cli.building.{part}"), f"build_{part}")
    # The autoencoder's builder expects its own folder inside the teacher's; the other builders choose subfolders.
    measured = builder(work, out / "vae" if part == "vae" else out, seed=seed, say=reporter.say, **length)
    return measured if isinstance(measured, dict) else {}


def build_reward(out: Path, work: Path, steps: int | None, seed: int, reporter: Reporter) -> dict[str, float]:
    """Sample pairs with the shipped teacher, label them with the shipped inspector, train a reward model on them."""
    from flashdmd_cli.building.pairs import build_pairs
    from flashdmd_cli.evaluation.generate import generate
    from flashdmd_cli.shapes.inspector import load_inspector
    from flashdmd_cli.workflows.inputs.drawers import as_teacher
    from flashdmd_cli.workflows.inputs.families import load_family
    from flashdmd_cli.workflows.recipes import reward_recipe
    from flashdmd_cli.workflows.reward import REPORT, train_reward

    recipe = reward_recipe(teacher=SHAPES, iterations=steps, seed=seed)
    folder = asset(SHAPES)
    teacher = as_teacher(load_family(folder), SHAPES, folder, "stochastic", TEACHER_STEPS)

    def draw(texts: Sequence[str], first: int) -> Tensor:
        return generate(teacher.family, teacher.net, texts, seed, "stochastic", TEACHER_STEPS, teacher.guidance,
                        first_index=first)  # fmt: skip

    pairs = build_pairs(draw, load_inspector(asset("inspector")), work / "pairs", seed=seed, say=reporter.say)
    train_reward(recipe, pairs, out, half=True, reporter=reporter)
    report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    return {f"accuracy_{timestep}": value for timestep, value in report["accuracy"].items()}
