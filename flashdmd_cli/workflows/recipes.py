"""The recipe of a run: a named one, or the default for its teacher, with the user's changes applied.

Precedence: defaults < recipe < `sets` ("a.b=c") < keyword arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flashdmd_cli.families.facts import DefaultRecipes
from flashdmd_cli.families.registry import FAMILIES, family_named
from flashdmd_cli.families.sdxl.facts import SDXL
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.recipe import Recipe, RewardRecipe, load_recipe, load_reward_recipe
from flashdmd_cli.runs.results import Checkpoint
from flashdmd_cli.runs.resume import flat
from flashdmd_cli.workflows.inputs.kinds import embedded_teacher, teacher_of_student
from flashdmd_cli.workflows.inputs.teachers import absolute, family_of_teacher

EMBEDDED_RECIPES = {
    "shapes-sdxl": DefaultRecipes("shapes-4step", "align/shapes", "align/shapes", "reward/shapes"),
    "shapes-sd3": DefaultRecipes("shapes-sd3-4step", "align/shapes-sd3", "align/shapes-sd3", "reward/shapes-sd3"),
}
"""Name of an embedded teacher -> its recipes."""
FIXED = ("family", "teacher", "grid.steps")
"""Keys that an alignment takes from the student's recipe and that cannot be changed."""


def default_recipes(teacher: str | Path | None) -> DefaultRecipes:
    """The default recipes for a teacher (None: SDXL): those of the embedded world, or of the teacher's family."""
    if teacher is None:
        return SDXL.recipes
    if (embedded := embedded_teacher(teacher)) is not None:
        return EMBEDDED_RECIPES[embedded]
    named = str(teacher).partition("@")[0]
    known = next((facts for facts in FAMILIES.values() if named in (facts.name, *facts.licenses)), None)
    return (known or family_of_teacher(str(teacher))).recipes


def default_distill_recipe(teacher: str | Path | None, steps: int | None = None) -> str:
    """The name of the recipe that fits a teacher and a number of steps."""
    defaults = default_recipes(teacher)
    return defaults.distill if steps is None else defaults.distill_steps.get(steps, defaults.distill)


def default_align_recipe(stage1: Recipe, student: Path) -> str:
    """The name of the recipe that fits a student: its stage-1 recipe, and the folder of its network."""
    # Determined from the student's network, since the teacher may not exist any more.
    embedded = teacher_of_student(student)
    defaults = EMBEDDED_RECIPES[embedded] if embedded is not None else family_named(stage1.family).recipes
    adapters = stage1.model.form == "lora"
    recipe = defaults.align_adapters if adapters else defaults.align_steps.get(stage1.grid.steps, defaults.align)
    if recipe is None:
        raise UsageError(
            f"--from {student.parent}: is of the family {stage1.family}, which `align` does not support yet",
            hint="no recipe of an alignment is known for it; --recipe names one",
        )
    return recipe


def distill_recipe(
    name: str | None = None,
    sets: Sequence[str] = (),
    *,
    teacher: str | None = None,
    steps: int | None = None,
    ttur: int | None = None,
    iterations: int | None = None,
    seed: int | None = None,
    vae: str | None = None,
    teacher_config: str | None = None,
    device: str | None = None,
) -> Recipe:
    """The recipe of a distillation; `name` is a shipped recipe or a YAML file (default: what fits teacher and steps).

    Raises `UsageError` for a wrong key or value, `InputError` for a file that cannot be read.
    """
    changes = {
        "teacher": teacher,
        "grid.steps": steps,
        "fake.ttur": ttur,
        "train.iterations": iterations,
        "train.seed": seed,
        "model.vae": absolute(vae),
        "model.teacher_config": absolute(teacher_config),
        "model.device": device,
    }
    return load_recipe(name or default_distill_recipe(teacher, steps), sets, changes)


def align_recipe(
    student: Checkpoint,
    name: str | None = None,
    sets: Sequence[str] = (),
    *,
    rl_ratio: int | None = None,
    reward: str | None = None,
    iterations: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    stop_on_collapse: bool = False,
) -> Recipe:
    """The recipe of an alignment: the student's recipe, overridden by `name` (default: what fits the student).

    Raises `UsageError` for a wrong key or value, or for a change of one of the keys `FIXED`.
    """
    name = name or default_align_recipe(student.recipe, student.folder / "student")
    changes = {
        "align.rl_ratio": rl_ratio,
        "align.reward": reward,
        "train.iterations": iterations,
        "train.seed": seed,
        "model.device": device,
        "probe.stop_on_collapse": stop_on_collapse or None,
    }
    resolved = load_recipe(name, sets, changes, student.recipe)
    if resolved.align is None:
        raise UsageError(f"--recipe {name}: has no section `align`", hint="`flashdmd recipes list` shows align/...")
    before, now = (flat(each.model_dump(mode="json")) for each in (student.recipe, resolved))
    for key in FIXED:
        if before[key] != now[key]:
            raise UsageError(
                f"{key}: is {now[key]}, but the student was distilled with {before[key]}", hint="leave it out"
            )
    return resolved


def reward_recipe(
    name: str | None = None,
    sets: Sequence[str] = (),
    *,
    teacher: str | None = None,
    iterations: int | None = None,
    seed: int | None = None,
    device: str | None = None,
) -> RewardRecipe:
    """The recipe of a reward model (default: what fits the teacher). Raises as `distill_recipe` does."""
    changes = {"teacher": teacher, "train.iterations": iterations, "train.seed": seed, "model.device": device}
    name = name or default_recipes(teacher).reward
    if name is None:
        raise UsageError(
            f"--teacher {teacher}: no recipe of `reward train` is known for its family", hint="--recipe names one"
        )
    return load_reward_recipe(name, sets, changes)
