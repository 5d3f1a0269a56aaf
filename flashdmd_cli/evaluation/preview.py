"""The pictures that a run shows of itself while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.generate import Sampler
    from flashdmd_cli.families.base import View
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.runs.recipe import Recipe

PREVIEW = "preview.png"


@dataclass
class Preview:
    """Draws `preview.png`: teacher in 30 and 4 steps, the student before training and now, same noise and captions."""

    recipe: Recipe
    family: Family
    captions: Sequence[str]
    out: Path
    before: dict[str, Tensor] = field(default_factory=dict)

    def _draw(self, net: View, sampler: Sampler, steps: int, guidance: float = 1.0) -> Tensor:
        from flashdmd_cli.evaluation.generate import generate

        seed = self.recipe.train.seed
        return generate(self.family, net, self.captions, seed, sampler, steps, guidance, batch=8)

    def __call__(self, student: View, start: View, iteration: int) -> None:
        """`start` is the student before its first update: the teacher in stage 1, stage 1's student in stage 2."""
        from flashdmd_cli.evaluation.pictures import save_grid
        from flashdmd_cli.runs.files import writing

        steps, guidance, teacher = self.recipe.grid.steps, self.recipe.dm.guidance, self.family.teacher
        if not self.before:
            self.before = {
                "teacher\n30 steps": self._draw(teacher, "ddim", 30, guidance),
                f"teacher\n{steps} steps": self._draw(teacher, "ddim", steps, guidance),
                f"student\n{steps} steps\niteration 0": self._draw(start, "few_step", steps),
            }
        now = self._draw(student, "few_step", steps) if iteration else self.before[list(self.before)[-1]]
        rows = self.before | {f"student\n{steps} steps\niteration {iteration}": now}
        with writing(self.out / PREVIEW):
            save_grid(list(rows.values()), list(rows), self.out / PREVIEW, self.captions)
