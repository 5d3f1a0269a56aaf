"""Alignment of a distilled student (stage 2): check the inputs, load, train, write the student and its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.runs.checkpoint import latest_state, state_folder
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.folder import find_run
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import MANIFEST, Manifest, read_manifest
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.results import Checkpoint, data_of
from flashdmd_cli.runs.resume import begin, place_of_run
from flashdmd_cli.runs.world import World
from flashdmd_cli.workflows.inputs.families import load_family
from flashdmd_cli.workflows.inputs.kinds import check_family
from flashdmd_cli.workflows.inputs.reward_models import check_levels, find_reward, load_reward_model
from flashdmd_cli.workflows.inputs.sam import with_sam
from flashdmd_cli.workflows.inputs.shards import cache_in_use, check_pictures, open_data
from flashdmd_cli.workflows.inputs.teachers import find_source, find_source_again, teacher_record
from flashdmd_cli.workflows.judges import reward_judge, second_judge
from flashdmd_cli.workflows.training import raise_if_stopped, watch_run, write_checkpoint

if TYPE_CHECKING:
    from flashdmd_cli.runs.device import Place

SHOWN = ("preference", "accuracy", "reward/mean", "kept_pairs")
"""Metrics displayed with the progress."""


@releasing()
def align(
    recipe: Recipe,
    student: Checkpoint,
    out: Path | str,
    *,
    data: Path | str | None = None,
    reporter: Reporter | None = None,
    world: World | None = None,
) -> Manifest:
    """Start or resume training for the iterations in the recipe, then write `out/student` and the manifest.

    Reads the distilled student (`runs.results.stage1_checkpoint` opens its folder; `workflows.recipes.align_recipe`
    makes the recipe, which is based on the student's), its teacher, the reward model, and the shards in `data` (None:
    those that the student was distilled on). Writes the folder `out`; the same call again resumes from the newest
    state, or returns the manifest of the finished result. With a `world`, all its processes make the same call; the
    first writes.

    Raises `Interrupted` if a stop was requested before the end, `NumericalError` if the run ended because of a
    collapse (in both cases the state is saved), `UsageError` if `out` contains another run, and `InputError` if an
    input cannot be read.
    """
    if recipe.align is None:
        raise UsageError(
            f"--recipe {recipe.name}: has no section `align`", hint="`flashdmd recipes list` shows align/..."
        )
    if student.manifest.kind != "distill":
        raise InputError(
            f"--from {student.folder}: is not a student of `distill`", hint="an aligned student cannot be aligned again"
        )
    reporter, out, world = reporter or SilentReporter(), Path(out), world or World()
    world.rows(recipe.train.batch)
    shards_at = data_of(student) if data is None else find_run(str(data), "data", flag="--data")
    if data is None:
        reporter.say(f"data: {shards_at}")
    before, of = student.manifest.teacher, f"--from {student.folder}"
    with world.main_first():
        if before is not None:
            teacher = find_source_again(before, recipe.model, of, reporter=reporter)
        else:
            teacher = find_source(recipe.teacher, recipe.model, reporter)
        check_family(recipe, teacher)
        reward_folder = find_reward(recipe.align.reward, reporter, recipe.family)
        placed = with_sam(recipe, reporter)
    with world.main_first():  # which builds a missing index
        shards, manifest = open_data(shards_at, teacher, recipe.model.micro_conditioning == "data", reporter)
    parents = [student.folder, *([reward_folder] if (reward_folder / MANIFEST).is_file() else [])]
    # Adapters are trained on top of the networks in stage 1's state, so it is read again when the run is resumed.
    needs_state = recipe.model.form == "lora" and recipe.align.rl_ratio is not None
    stage1_state = state_folder(student.folder / "state", student.manifest.step)
    source = [student.folder, *([stage1_state] if needs_state else [])]
    inputs = {"--data": [shards_at], "--from": source, "--reward": [reward_folder]}

    def start() -> Place | None:
        record = before or teacher_record(recipe.teacher, teacher)
        begins = begin("align", recipe, record, inputs, out, reporter.phase)
        return place_of_run(recipe, out, reporter.say) if begins else None

    place = world.from_main(start)
    if place is None:
        return read_manifest(out)
    world.check(place)
    if message := cache_in_use(shards, manifest, shards_at):
        reporter.phase(message)
    captions = list(
        dict.fromkeys(shards.sample(i).caption for i in range(min(4 * recipe.probe.num_prompts, len(shards))))
    )
    judge = second_judge(recipe, str(teacher.weights), captions, out, place.device, reporter)
    reporter.phase(f"loading the student {student.folder}, its teacher and the reward model {recipe.align.reward}")
    from flashdmd_cli.training import align as stage2
    from flashdmd_cli.training.collapse import CollapseProbe
    from flashdmd_cli.training.pairs import PairSampler
    from flashdmd_cli.training.stage1 import load_stage1
    from flashdmd_cli.training.steps import Objective

    family = load_family(teacher, place, recipe.model.storage(place.precision))
    check_pictures(shards, recipe, family.resolution, shards_at)
    reward = load_reward_model(reward_folder, family)
    objective = Objective(recipe, family, family.grid(recipe.grid.steps))
    sampler = PairSampler(objective, reward)
    check_levels(sampler)
    try:
        stage1 = load_stage1(student.folder, student.manifest.step, student.recipe, recipe, family)
    except (OSError, ValueError) as error:
        raise InputError(f"--from {student.folder}: student/ cannot be read: {str(error).splitlines()[0]}") from None
    begins = latest_state(out / "state") is None
    if begins and stage1.fake is None and stage1.adapters is None and recipe.align.rl_ratio is not None:
        reporter.say(f"{student.folder} has no saved state: the fake score is initialised from the student")
    probe = CollapseProbe(objective, captions, reward_judge(sampler), judge.score, judge.name)
    watch = watch_run(recipe, family, captions[:8], out, reporter, SHOWN, world, [*parents, shards_at])
    reporter.phase(f"aligning, {recipe.train.iterations} iterations, {ratio(recipe)}")
    state = stage2.align(placed, family, reward, stage1, shards, out, watch, reporter.stop, probe, world)
    raise_if_stopped(recipe, state, reporter.stop, out)
    return write_checkpoint("align", recipe, family, state, shards_at, out, parents)


def ratio(recipe: Recipe) -> str:
    """The ratio of preference steps to student updates of stage 1, as text."""
    assert recipe.align is not None
    if recipe.align.rl_ratio is None:
        return "preference steps only"
    return f"{recipe.align.rl_ratio} preference steps for each student update of stage 1"
