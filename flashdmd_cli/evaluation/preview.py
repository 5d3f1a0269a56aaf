"""Preview pictures of a training run: `preview.png`, and `previews/` with a strip of small pictures per iteration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.names import Sampler
    from flashdmd_cli.families.base import View
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.runs.recipe import Recipe

PREVIEW = "preview.png"
PREVIEWS, INDEX = "previews", "index.json"
"""Folder with the history of the previews, and its file with captions and labels."""
ITERATION = "iteration-"
"""Beginning of the names of strips of the student in training."""
SMALL_PX = 256
"""Pictures up to this side are drawn eight at a time; decoding one of 1024 pixels takes more than 3 GB."""


@dataclass(frozen=True)
class Row:
    """One row of the preview: what draws it, and how."""

    label: str
    net: View
    sampler: Sampler
    steps: int
    guidance: float = 1.0

    @property
    def cost(self) -> int:
        """Network evaluations for each of its pictures; guidance takes two a step."""
        return self.steps * self.cost_of_step

    @property
    def cost_of_step(self) -> int:
        """Network evaluations of one step."""
        return 1 if self.guidance == 1.0 else 2


@dataclass
class Preview:
    """Draws `preview.png`: teacher in 30 and 4 steps, the student before training and now, same noise and captions."""

    recipe: Recipe
    family: Family
    captions: Sequence[str]
    out: Path
    writes: bool = True
    """Whether this process writes the file. Others draw along if the networks are sharded."""
    before: dict[str, Tensor] = field(default_factory=dict)

    def __call__(
        self, student: View, start: View, iteration: int, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """`start` is the student before its first update: the teacher in stage 1, stage 1's student in stage 2.

        `progress(done, total)` counts evaluations of the network on one picture.
        """
        from flashdmd_cli.evaluation.pictures import save_grid
        from flashdmd_cli.runs.files import writing

        steps, guidance, teacher = self.recipe.grid.steps, self.recipe.dm.shown_guidance, self.family.teacher
        first = [
            Row("teacher\n30 steps", teacher, "ddim", 30, guidance),
            Row(f"teacher\n{steps} steps", teacher, "ddim", steps, guidance),
            Row(f"student\n{steps} steps\niteration 0", start, "few_step", steps),
        ]
        now = [Row(f"student\n{steps} steps\niteration {iteration}", student, "few_step", steps)] if iteration else []
        drawn = self._draw([*([] if self.before else first), *now], progress)
        self.before = self.before or {row.label: drawn[row.label] for row in first}
        rows = self.before | drawn
        if not self.writes:
            return
        with writing(self.out / PREVIEW):
            save_grid(list(rows.values()), list(rows), self.out / PREVIEW, self.captions)
            self._keep(drawn, iteration)

    def _keep(self, drawn: Mapping[str, Tensor], iteration: int) -> None:
        """Save each newly drawn row as a strip in `previews/`; the first call of a process also saves the index."""
        from flashdmd_cli.evaluation.pictures import save_strip
        from flashdmd_cli.runs.files import write_text_atomically

        folder = self.out / PREVIEWS
        fixed: dict[str, str] = {}
        folder.mkdir(exist_ok=True)
        for label, pictures in drawn.items():
            if label in self.before:
                fixed[" ".join(label.split())] = save_strip(pictures, folder, f"fixed-{len(fixed)}").name
            else:
                save_strip(pictures, folder, f"{ITERATION}{iteration:07d}")
        if fixed:
            index = {"captions": list(self.captions), "fixed": fixed}
            write_text_atomically(folder / INDEX, json.dumps(index, indent=2) + "\n")

    def _draw(self, rows: Sequence[Row], progress: Callable[[int, int], None] | None) -> dict[str, Tensor]:
        """The pictures of each row, by its label."""
        from flashdmd_cli.evaluation.generate import generate

        seed, done, total = self.recipe.train.seed, 0, len(self.captions) * sum(row.cost for row in rows)
        if progress is not None:
            progress(0, total)
        drawn, batch = {}, 8 if self.family.resolution <= SMALL_PX else 1
        for row in rows:

            def step(num: int, row: Row = row) -> None:
                nonlocal done
                done += num * row.cost_of_step
                if progress is not None:
                    progress(done, total)

            drawn[row.label] = generate(
                self.family, row.net, self.captions, seed, row.sampler, row.steps, row.guidance, batch=batch, step=step
            )
        return drawn


@dataclass(frozen=True)
class Previews:
    """The history of a run's previews: strips of one picture per caption."""

    captions: Sequence[str] = ()
    fixed: Mapping[str, Path] = field(default_factory=dict)
    """Label -> strip of the teacher, and of the student before training."""
    frames: Mapping[int, Path] = field(default_factory=dict)
    """Finished iterations -> strip of the student."""


def read_previews(out: Path) -> Previews:
    """The previews in the folder of a run; empty if there are none."""
    folder = out / PREVIEWS
    if not (folder / INDEX).is_file():
        return Previews()
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    frames = {int(path.stem.removeprefix(ITERATION)): path for path in sorted(folder.glob(f"{ITERATION}*"))}
    return Previews(index["captions"], {label: folder / name for label, name in index["fixed"].items()}, frames)
