"""The recipe of `flashdmd distill` without `--recipe`: full fine-tuning where it fits the GPU, otherwise adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flashdmd_cli.runs.folder import RUNS
from flashdmd_cli.runs.recipe import Recipe, list_recipes, load_recipe
from flashdmd_cli.runs.resume import RECIPE, has_begun
from flashdmd_cli.workflows.plan.gpus import Gpu, gpu_named, needed
from flashdmd_cli.workflows.plan.planning import Plan, can_plan, plan, static_memory
from flashdmd_cli.workflows.recipes import default_recipes, distill_recipe

MICRO_BATCHES = (8, 4, 2, 1)
CHOSEN = ("model.checkpointing", "train.micro_batch")
"""Keys that are chosen for the device, unless `--set` has them."""


def distill_recipe_here(
    name: str | None, sets: Sequence[str], out: Path | None, say: Callable[[str], None], **options: Any
) -> Recipe:
    """`distill_recipe(name, sets, **options)`, with form, checkpointing and micro-batch that fit this machine's GPU.

    Nothing is chosen where the user names a recipe or sets `model.form`, without a CUDA device, and for teachers that
    cannot be planned. A run that was begun in `out` keeps what was chosen then. `say` gets one line about the choice.
    """
    recipe = distill_recipe(name, sets, **options)
    adapters = default_recipes(options.get("teacher")).distill_adapters.get(recipe.grid.steps)
    given = {text.partition("=")[0].strip() for text in sets}
    if name is not None or "model.form" in given or adapters is None or not can_plan(recipe):
        return recipe
    forms = {"full": recipe, "lora": distill_recipe(adapters, sets, **options)}
    begun = [
        folder for folder in ([out] if out else [RUNS / each.name for each in forms.values()]) if has_begun(folder)
    ]
    if len(begun) == 1 and (begun[0] / RECIPE).is_file():
        old = load_recipe(begun[0] / RECIPE)
        kept = [f"model.checkpointing={old.model.checkpointing}", f"train.micro_batch={old.train.micro_batch}"]
        return distill_recipe(adapters if old.model.form == "lora" else None, [*kept, *sets], **options)
    gpu = gpu_named(None) if recipe.model.device in ("auto", "cuda") else None
    if gpu is None:
        return recipe
    best = choose(list(forms.values()), gpu, given)
    say(line(best, gpu))
    chosen = [f"model.checkpointing={best.checkpointing}", f"train.micro_batch={best.micro_batch}"]
    return distill_recipe(adapters if best.form == "lora" else None, [*chosen, *sets], **options)


def choose(forms: Sequence[Recipe], gpu: Gpu, given: set[str]) -> Plan:
    """The fastest plan of the first of `forms` that fits `gpu`; the smallest one of the last if none fits.

    Checkpointing and micro-batch are tried, except those `given` by the user.
    """
    smallest: Plan | None = None
    for recipe in forms:
        plans: list[Plan] = []
        if recipe is forms[-1] or weights_fit(recipe, gpu):
            plans = [plan(each, gpu) for each in _variants(recipe, given)]
        fitting = [each for each in plans if each.fits]
        if fitting:
            return min(fitting, key=lambda each: (each.seconds_per_iteration, each.peak_gb))
        smallest = min(plans, key=lambda each: each.peak_gb, default=smallest)
    assert smallest is not None
    return smallest


def what_fits(recipe: Recipe, gpu: Gpu, resolution: int = 1024, processes: int = 1) -> Plan | None:
    """The plan of the first shipped recipe that fits `gpu` and distils the same family in as many steps with the same
    kind of GAN; None if there is none.

    All weights are tried before adapters, and activations that are kept before those that are recomputed.
    """
    others = [load_recipe(name) for name in list_recipes() if not name.startswith(("align/", "reward/"))]
    alike = [
        other
        for other in others
        if (other.family, other.grid.steps, other.gan.kind) == (recipe.family, recipe.grid.steps, recipe.gan.kind)
        and can_plan(other)
        and (processes > 1 or other.model.sharding == "none")
    ]
    alike.sort(key=lambda each: (each.model.form == "lora", each.model.checkpointing, -each.train.micro_batch))
    for other in alike:
        if weights_fit(other, gpu, processes) and (found := plan(other, gpu, resolution, processes=processes)).fits:
            return found
    return None


def weights_fit(recipe: Recipe, gpu: Gpu, processes: int = 1) -> bool:
    """Whether the weights and moments alone fit `gpu`, which is known without counting a pass through the networks."""
    from flashdmd_cli.workflows.plan import counting  # imports torch, after the recipes were checked

    fixed = sum(static_memory(recipe, counting.sizes(recipe, "bf16"), processes).values())
    return needed(fixed) <= gpu.memory


def _variants(recipe: Recipe, given: set[str]) -> list[Recipe]:
    model, train = recipe.model, recipe.train
    checkpointing = [model.checkpointing] if CHOSEN[0] in given else [False, True]
    sizes = [train.micro_batch] if CHOSEN[1] in given else [n for n in MICRO_BATCHES if train.batch % n == 0]
    return [
        recipe.model_copy(
            update={
                "model": model.model_copy(update={"checkpointing": on}),
                "train": train.model_copy(update={"micro_batch": size}),
            }
        )
        for on in checkpointing
        for size in sizes
    ]


def line(best: Plan, gpu: Gpu) -> str:
    """What was chosen, and how to choose otherwise."""
    way = "with" if best.checkpointing else "without"
    need = f"{best.needed_gb:.0f} of {gpu.memory / 1e9:.0f} GB"
    doubt = "" if best.fits else ", which may not be enough"
    return (
        f"{gpu.name}: training {best.trained} {way} activation checkpointing, micro-batch {best.micro_batch}, "
        f"needs {need}{doubt} (--recipe or --set model.form=... chooses otherwise)"
    )
