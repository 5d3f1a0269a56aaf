"""A whole alignment on disk: check what it starts from, load, train, write the student and its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.cli.kinds import is_shapes
from flashdmd_cli.cli.output import Progress
from flashdmd_cli.cli.reward_source import check_levels, find_reward, load_reward_model
from flashdmd_cli.cli.run_folder import begin, cache_in_use, open_data, place_of_run
from flashdmd_cli.cli.sam_source import with_sam
from flashdmd_cli.cli.teachers import find_source, find_source_again, teacher_record
from flashdmd_cli.cli.training_run import check_pictures, load, settle, watch_run, write_checkpoint
from flashdmd_cli.runs.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.cli.checkpoints import Checkpoint
    from flashdmd_cli.runs.recipe import Recipe
    from flashdmd_cli.training.collapse import Judge
    from flashdmd_cli.training.pairs import PairSampler

SHOWN = ("preference", "accuracy", "reward/mean", "kept_pairs")


def run_align(recipe: Recipe, checkpoint: Checkpoint, data: Path, out: Path, observer: Progress) -> Path:
    """Train, or go on training, until the recipe's iterations are done, then write `out/student` and the manifest.

    Raises `Interrupted` when a signal came before the end and `NumericalError` when a collapse was to end the run; the
    state is saved then.
    """
    from flashdmd_cli.runs.checkpoint import latest_state, state_folder
    from flashdmd_cli.runs.manifest import MANIFEST

    assert recipe.align is not None
    before, of = checkpoint.manifest.teacher, f"--from {checkpoint.folder}"
    teacher = find_source_again(before, recipe.model, of) if before else find_source(recipe.teacher, recipe.model)
    shards, manifest = open_data(data, teacher, recipe.model.micro_conditioning == "data")
    reward_folder = find_reward(recipe.align.reward)
    parents = [checkpoint.folder, *([reward_folder] if (reward_folder / MANIFEST).is_file() else [])]
    # Adapters are trained on top of what stage 1's state holds, which is read again whenever the run goes on.
    needs_state = recipe.model.form == "lora" and recipe.align.rl_ratio is not None
    stage1_state = state_folder(checkpoint.folder / "state", checkpoint.manifest.step)
    source = [checkpoint.folder, *([stage1_state] if needs_state else [])]
    placed = with_sam(recipe)
    inputs = {"--data": [data], "--from": source, "--reward": [reward_folder]}
    if not begin("align", recipe, before or teacher_record(recipe.teacher, teacher), inputs, out, observer.phase):
        return out
    place = place_of_run(recipe, out, observer.output.say)
    if told := cache_in_use(shards, manifest, data):
        observer.phase(told)
    observer.phase(f"loading the student {checkpoint.folder}, its teacher and the reward model {recipe.align.reward}")
    from flashdmd_cli.models.sdxl import SDXLFamily
    from flashdmd_cli.training.align import align
    from flashdmd_cli.training.collapse import CollapseProbe
    from flashdmd_cli.training.pairs import PairSampler
    from flashdmd_cli.training.stage1 import load_stage1
    from flashdmd_cli.training.steps import Objective

    family = load(SDXLFamily, teacher, place)
    check_pictures(shards, recipe, family.resolution, data)
    reward = load_reward_model(reward_folder, family)
    objective = Objective(recipe, family, family.grid(recipe.grid.steps))
    sampler = PairSampler(objective, reward)
    check_levels(sampler)
    try:
        stage1 = load_stage1(checkpoint.folder, checkpoint.manifest.step, checkpoint.recipe, recipe, family)
    except (OSError, ValueError) as error:
        raise InputError(f"--from {checkpoint.folder}: student/ cannot be read: {str(error).splitlines()[0]}") from None
    begins = latest_state(out / "state") is None
    if begins and stage1.fake is None and stage1.adapters is None and recipe.align.rl_ratio is not None:
        observer.output.say(f"{checkpoint.folder} has no state any more: the fake score begins as the student")
    captions = list(
        dict.fromkeys(shards.sample(i).caption for i in range(min(4 * recipe.probe.num_prompts, len(shards))))
    )
    probe = CollapseProbe(objective, captions, reward_judge(sampler), held_out_judge(family.source, captions))
    watch = watch_run(recipe, family, captions[:8], stage1.student.base.to(family.device).view(), out, observer, SHOWN)
    observer.phase(f"aligning, {recipe.train.iterations} iterations, {ratio(recipe)}")
    stop = observer.output.stop
    state = align(placed, family, reward, stage1, shards, out, watch, stop, probe)
    settle(recipe, state, stop, out)
    write_checkpoint("align", recipe, family, state, data, out, parents)
    return out


def ratio(recipe: Recipe) -> str:
    """How often stage 1 has its turn, in words."""
    assert recipe.align is not None
    if recipe.align.rl_ratio is None:
        return "without stage 1 beside them"
    return f"{recipe.align.rl_ratio} preference steps for each student update of stage 1"


def reward_judge(sampler: PairSampler) -> Judge:
    """Finished latents with noise added, scored as training scores its candidates; the mean of its levels."""
    from flashdmd_cli.core.rollout import at
    from flashdmd_cli.core.schedules import add_noise
    from flashdmd_cli.evaluation.generate import picture_noise

    def score(latents: Tensor, captions: Sequence[str]) -> Tensor:
        import torch

        rows = [picture_noise(latents.shape[1:], sampler.o.recipe.train.seed, i) for i in range(len(latents))]
        noise, text = torch.stack(rows).to(latents.device), sampler.reward.encode(captions)

        def score_at(level: float, told: float) -> Tensor:
            noisy = add_noise(sampler.o.family.schedule, latents, noise, at(level, latents))
            return sampler.score(noisy, told, text)

        return torch.stack([score_at(*each) for each in sampler.levels()]).mean(dim=0)

    return score


def held_out_judge(teacher: str, captions: Sequence[str]) -> Judge | None:
    """A judge other than the reward model: on the embedded world, whether a picture shows what its caption says.

    The inspector reads the attributes; that there is no third object is counted, for the inspector cannot see it.
    """
    if not is_shapes(teacher):
        return None
    from flashdmd_cli.shapes.assets import asset
    from flashdmd_cli.shapes.captions import parse
    from flashdmd_cli.shapes.counting import count_objects
    from flashdmd_cli.shapes.inspector import load_inspector
    from flashdmd_cli.shapes.world import NUM_OBJECTS

    try:
        inspector: Any = load_inspector(asset("inspector"))
        for caption in captions:
            parse(caption)
    except (FileNotFoundError, ValueError):
        return None

    def score(pictures: Tensor, captions: Sequence[str]) -> Tensor:
        import torch

        wanted = torch.tensor([parse(caption) for caption in captions])
        right = (inspector.read(pictures.cpu()).attributes == wanted).all(dim=1)
        return (right & (count_objects(pictures) <= NUM_OBJECTS)).double()

    return score
