"""The contents of the demo's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flashdmd_cli.families.registry import family_named
from flashdmd_cli.runs.reporter import duration

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.page import Page
    from flashdmd_cli.runs.recipe import Recipe

NAMES = {
    "student_4": "Student, 4 steps",
    "teacher_30": "Teacher, 30 steps",
    "teacher_4_ddim": "Teacher, 4 steps",
    "teacher_4_stochastic": "Teacher, 4 steps, stochastic sampler",
}
COLUMNS = {
    "composition": "composition ↑",
    "frechet": "Fréchet distance ↓",
    "high_frequency": "fine texture → 1",
    "coverage": "coverage ↑",
    "diversity": "diversity → 1",
}


def demo_page(
    recipe: Recipe,
    rows: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, Tensor],
    captions: Sequence[str],
    log: Sequence[Mapping[str, Any]],
    seconds: float,
) -> Page:
    """The page, from the metrics of every row, its first pictures, and the log of the training."""
    from flashdmd_cli.evaluation.exhibits import Pictures, metric_table
    from flashdmd_cli.evaluation.page import Page, Section
    from flashdmd_cli.evaluation.plots import Plots
    from flashdmd_cli.evaluation.run_panels import DISTILLATION, curves

    measured = NAMES | {"real": "Real pictures, another set"}
    titled = {name: rows[row] for row, name in measured.items()}
    intervals = {name: rows[row]["intervals"] for row, name in measured.items()}
    student, teacher = rows["student_4"]["composition"], rows["teacher_30"]["composition"]
    frechet = {row: format(rows[row]["frechet"], ".1f") for row in NAMES}
    return Page(
        title="A teacher of 30 steps, distilled into 4",
        lead=f"After {recipe.train.iterations} iterations, every object and relation of the caption is right in "
        f"{student:.0%} of the student's pictures, drawn in 4 steps, and in {teacher:.0%} of the teacher's, drawn in "
        f"30. The Fréchet distance to real pictures is {frechet['student_4']} for the student, "
        f"{frechet['teacher_30']} for the teacher, and {frechet['teacher_4_ddim']} for the teacher in 4 steps. The "
        f"whole demo took {duration(seconds)} on this machine.",
        sections=[
            Section("Side by side", SIDE_BY_SIDE, [Pictures.of({NAMES[k]: pictures[k] for k in NAMES}, captions)]),
            Section(
                f"Measured on {rows['student_4']['num_pictures']} pictures",
                MEASURED,
                [metric_table(titled, COLUMNS, intervals, chosen=NAMES["student_4"])],
            ),
            Section("What was done, and why", done(recipe)),
            Section("The training", TRAINING, [Plots(curves(DISTILLATION, log))]),
            Section("Next", following(recipe)),
        ],
    )


SIDE_BY_SIDE = (
    "Each column has one caption and one initial noise; only the sampler differs. These combinations of shapes, "
    "colours and surfaces do not occur in the training data.",
)
MEASURED = (
    "Composition: the fraction of pictures in which all seven attributes of the caption are right. Fréchet distance: "
    "the distance between the distributions of these pictures and of real ones. Fine texture: high-frequency energy "
    "relative to that of real pictures. Coverage: whether what the caption does not determine (positions, sizes, "
    "backgrounds) varies as in real pictures. Diversity: how much pictures of one caption differ, relative to real "
    "ones. The 95% confidence interval is below each value.",
)
TRAINING = (
    "The losses do not measure quality: student, fake score and discriminator are trained against each other, so what "
    "matters is that none of the losses diverges.",
)


def following(recipe: Recipe) -> list[str]:
    """What to do with the student."""
    facts = family_named(recipe.family)
    return [
        "The student is in `student/`; `flashdmd inspect` shows where it comes from, `flashdmd export --format "
        f"diffusers` writes it as a stock `{facts.pipeline_class}`.",
        f"The same commands distil {facts.hub_id}: `flashdmd distill --teacher {facts.name} --steps 4 --dry-run` shows "
        "the recipe.",
    ]


def done(recipe: Recipe) -> list[str]:
    """The method in three or four paragraphs, with the settings of this run."""
    timesteps = family_named(recipe.family).module.grid(recipe.grid.steps).timesteps
    grid = ", ".join(f"{t:g}" for t in timesteps)
    ttur = "every iteration" if recipe.ttur == 1 else f"one iteration in {recipe.ttur}"
    where = "at all of these levels" if recipe.dm.steps == "all" else "at all of these levels except the last"
    low, high = recipe.dm.guidance if isinstance(recipe.dm.guidance, tuple) else [recipe.dm.guidance] * 2
    guidance = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    texts = [
        f"The student starts as a copy of the teacher and is trained at {recipe.grid.steps} noise levels only "
        f"({grid}), on its own noisy pictures, so that it learns to correct its own errors.",
        "Distribution matching determines the contents of the picture. Noise is added to the student's picture, and "
        "two networks denoise it: the teacher (guidance scale "
        f"{guidance}), and a fake score that is trained on the student's pictures. The difference of "
        f"their results gives the gradient that moves the student towards the teacher. This is done {where}.",
        f"The fake score is trained in every iteration, the student in {ttur}. After each student update, the fake "
        "score's weights are averaged slightly with the student's, so that it needs fewer updates to follow.",
    ]
    if recipe.gan.kind == "pixel":
        texts.insert(
            2,
            "Distribution matching alone favours the most likely pictures and loses fine texture and variety. "
            f"Therefore, at the last level ({timesteps[-1]:g}), a discriminator compares the student's finished "
            "pictures with real ones, using features of a frozen segmentation network (loss weight "
            f"{recipe.gan.weight:g}).",
        )
    return texts
