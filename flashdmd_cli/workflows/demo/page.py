"""What the demo's page says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flashdmd_cli.runs.reporter import duration

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.page import Page
    from flashdmd_cli.runs.recipe import Recipe

NAMES = {
    "student_4": "Student, 4 steps",
    "teacher_30": "Teacher, 30 steps",
    "teacher_4_ddim": "Teacher, 4 steps",
    "teacher_4_stochastic": "Teacher, 4 steps, drawn as a student",
}
COLUMNS = {
    "composition": "composition ↑",
    "frechet": "Fréchet distance ↓",
    "high_frequency": "fine texture → 1",
    "coverage": "coverage ↑",
    "diversity": "diversity → 1",
}
PANELS = {
    "Distribution matching": {"dm": "student"},
    "Fake score": {"fake": "denoising loss"},
    "Adversarial": {"gan": "student", "discriminator": "discriminator"},
}
"""Panel -> figure of the run -> name of its line."""


def demo_page(
    recipe: Recipe,
    rows: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, Tensor],
    captions: Sequence[str],
    log: Sequence[Mapping[str, Any]],
    seconds: float,
) -> Page:
    """The page from what was measured, the first pictures of every row, and the figures of the training."""
    from flashdmd_cli.evaluation import page

    measured = NAMES | {"real": "Real pictures, another set"}
    titled = {name: rows[row] for row, name in measured.items()}
    intervals = {name: rows[row]["intervals"] for row, name in measured.items()}
    student, teacher = rows["student_4"]["composition"], rows["teacher_30"]["composition"]
    far = {row: format(rows[row]["frechet"], ".1f") for row in NAMES}
    panels = {
        title: {
            line: [(row["step"], row[key]) for row in log if row.get(key) is not None] for key, line in lines.items()
        }
        for title, lines in PANELS.items()
    }
    return page.Page(
        title="A teacher of 30 steps, distilled into 4",
        lead=f"After {recipe.train.iterations} iterations, every object and relation of the caption is right in "
        f"{student:.0%} of the student's pictures, drawn in 4 steps, and in {teacher:.0%} of the teacher's, drawn in "
        f"30. The distance to real pictures (Fréchet) is {far['student_4']} for the student, {far['teacher_30']} for "
        f"the teacher, {far['teacher_4_ddim']} for the teacher in 4 steps. All of it took {duration(seconds)} here.",
        sections=[
            page.Section("Side by side", SIDE_BY_SIDE, page.pictures({NAMES[k]: pictures[k] for k in NAMES}, captions)),
            page.Section(
                f"Measured on {rows['student_4']['num_pictures']} pictures",
                MEASURED,
                page.metric_table(titled, COLUMNS, intervals, chosen=NAMES["student_4"]),
            ),
            page.Section("What was done, and why", done(recipe)),
            page.Section("The training", TRAINING, page.curves(panels, "Each point is one iteration.")),
            page.Section("Next", NEXT),
        ],
    )


SIDE_BY_SIDE = (
    "Each column is one caption, and one noise to start from; only the sampler differs. Training never showed these "
    "combinations of shapes, colours and surfaces.",
)
MEASURED = (
    "Composition: the share of pictures in which all seven attributes of the caption are right. Fréchet distance: how "
    "far the set as a whole is from real pictures. Fine texture: its energy over that of real pictures. Coverage: "
    "whether what the caption leaves open (places, sizes, backgrounds) varies as it does in real pictures. Diversity: "
    "how much pictures of one caption differ, against real ones. Below each figure its 95% interval.",
)
TRAINING = (
    "The losses are not a measure of quality: student, fake score and discriminator chase each other, so a healthy run "
    "is one in which none of them runs away.",
)
NEXT = (
    "The student is in `student/`; `flashdmd inspect` shows where it comes from, `flashdmd export --format diffusers` "
    "writes it as a stock `StableDiffusionXLPipeline`.",
    "The same commands distil SDXL itself: `flashdmd distill --teacher sdxl --steps 4 --ttur 1 --dry-run` shows its "
    "recipe.",
)


def done(recipe: Recipe) -> list[str]:
    """The method in four paragraphs, with this run's numbers."""
    from flashdmd_cli.core.grid import vp_grid

    grid = ", ".join(map(str, vp_grid(recipe.grid.steps).timesteps))
    ttur = "every iteration" if recipe.ttur == 1 else f"one iteration in {recipe.ttur}"
    last = vp_grid(recipe.grid.steps).timesteps[-1]
    where = "at all of these levels" if recipe.dm.steps == "all" else "at all of these levels but the last"
    texts = [
        f"The student starts as a copy of the teacher and is trained at {recipe.grid.steps} noise levels only "
        f"({grid}), on the noisy pictures that it makes itself, so that it learns to mend its own mistakes.",
        "Distribution matching decides what is in the picture. Two networks look at the student's picture with noise "
        "added: the teacher, and a fake score that follows the student. Where they disagree, the student moves towards "
        f"the teacher, who has guidance {recipe.dm.guidance:g}. It acts {where}.",
        f"The fake score learns in every iteration, the student in {ttur}. After each student update the fake score "
        "moves a little towards the student, which keeps it in step and saves updates.",
    ]
    if recipe.gan.kind == "pixel":
        texts.insert(
            2,
            "Distribution matching alone favours the most likely pictures and loses fine texture and variety. So at "
            f"the last level ({last}) a discriminator compares the student's finished pixels with real pictures, seen "
            f"through a frozen segmentation network (weight {recipe.gan.weight:g}).",
        )
    return texts
