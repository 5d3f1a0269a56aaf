"""Latent reward models: training on preference pairs, scoring of pictures, and accuracy on pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.registry import family_at, family_named
from flashdmd_cli.runs.errors import Interrupted, UsageError
from flashdmd_cli.runs.files import saving_weights, sha256_file, write_text_atomically
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import Manifest, hardware, read_manifest, write_manifest
from flashdmd_cli.runs.recipe import RewardRecipe
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.resume import begin, place_of_run
from flashdmd_cli.runs.world import World
from flashdmd_cli.workflows.inputs.families import drawing_place, load_family
from flashdmd_cli.workflows.inputs.kinds import SHAPES
from flashdmd_cli.workflows.inputs.reward_models import find_reward, load_reward_model
from flashdmd_cli.workflows.inputs.teachers import find_source, license_of, teacher_record

if TYPE_CHECKING:
    from flashdmd_cli.data.pairs import PreferencePair
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.families.reward import LatentReward, RewardModel
    from flashdmd_cli.runs.device import Place
    from flashdmd_cli.runs.teacher import TeacherRecord

REPORT = "report.json"
"""File with the numbers of pairs, and the accuracy on the held-out pairs by noise level."""
SHOWN: tuple[str, ...] = ("loss", "accuracy")
"""Metrics displayed with the progress."""


@releasing()
def train_reward(
    recipe: RewardRecipe,
    pairs: Path | str,
    out: Path | str,
    *,
    half: bool = False,
    reporter: Reporter | None = None,
    world: World | None = None,
) -> Manifest:
    """Start or resume training, then write the reward model, its accuracy on held-out pairs and the manifest to `out`.

    Reads the file `pairs` (JSONL or parquet) with its pictures, and the teacher, which is downloaded if it is not on
    this machine. `half` stores the weights in float16. The same call again resumes, or returns the manifest of the
    finished result. With a `world`, all its processes make the same call; the first writes.

    Raises `Interrupted` if a stop was requested before the end (the state is saved), `UsageError` if `out` contains
    another run, and `InputError` or `DataError` if an input cannot be read.
    """
    from flashdmd_cli.data.pairs import read_pairs, split_by_prompt

    reporter, pairs, out, world = reporter or SilentReporter(), Path(pairs), Path(out), world or World()
    world.rows(recipe.train.batch)
    with world.main_first():
        teacher = find_source(recipe.teacher, reporter=reporter)
    module = family_at(teacher.folder).module
    if not hasattr(module, "refuse_reward"):
        raise UsageError(f"--teacher {recipe.teacher}: `reward train` does not support its family")
    try:
        module.refuse_reward(recipe.model.layers, recipe.model.text_encoders)
    except Unfit as error:
        raise UsageError(str(error), hint=error.hint) from None
    learned, held_out = split_by_prompt(read_pairs(pairs, recipe.pairs.keep, recipe.pairs.keep_ties),
                                        recipe.pairs.held_out)  # fmt: skip
    if not learned:
        raise UsageError(f"pairs.held_out: {recipe.pairs.held_out} leaves no pair to learn from", hint="lower it")

    def start() -> tuple[TeacherRecord, Place] | None:
        record = teacher_record(recipe.teacher, teacher)
        begins = begin("reward", recipe, record, {"--pairs": [pairs]}, out, reporter.phase)
        return (record, place_of_run(recipe, out, reporter.say)) if begins else None

    started = world.from_main(start)
    if started is None:
        return read_manifest(out)
    record, place = started
    world.check(place)
    reporter.phase(f"loading the teacher {recipe.teacher}")
    import torch

    from flashdmd_cli.evaluation.run_page import RunPage
    from flashdmd_cli.families.reward import RewardDesign
    from flashdmd_cli.training.loop import Watch
    from flashdmd_cli.training.reward import train_reward as train

    family = load_family(teacher, place)
    torch.manual_seed(recipe.train.seed)
    levels, chosen = recipe.pairs.timesteps, recipe.model
    design = RewardDesign((levels[0], levels[-1]), chosen.layers, chosen.text_encoders, chosen.guidance,
                          chosen.lora_rank, chosen.lora_alpha)  # fmt: skip
    model = module.new_reward(family, design).to(family.device)

    def progress(iteration: int, metrics: dict[str, float]) -> None:
        shown = {name: metrics[name] for name in SHOWN if name in metrics}
        reporter.progress(iteration, recipe.train.iterations, shown)

    watch = Watch(progress, reporter.say, lambda *_: None, RunPage(recipe, out).update)
    reporter.phase(f"training on {len(learned)} pairs, {len(held_out)} held out")
    stop = reporter.stop
    done, seconds = train(recipe, family, model, learned, held_out, out, watch, stop, world)
    if stop.requested is not None:
        if not done:
            raise Interrupted("interrupted before iteration 1: nothing is trained yet", signal_number=stop.requested)
        message = f"interrupted at iteration {done}; the state is saved in {out}"
        raise Interrupted(message, hint="run the same command again to resume", signal_number=stop.requested)
    return world.from_main(lambda: _write(recipe, family, model, learned, held_out, pairs, record, seconds, half, out))


def _write(
    recipe: RewardRecipe, family: Family, model: LatentReward, learned: Sequence[PreferencePair],
    held_out: Sequence[PreferencePair], pairs: Path, record: TeacherRecord, seconds: float, half: bool, out: Path,
) -> Manifest:  # fmt: skip
    """Write the reward model, the report with its accuracy on the held-out pairs, and the manifest."""
    from flashdmd_cli.data.pairs import num_decided
    from flashdmd_cli.training.reward import PairLatents, accuracy

    measured = accuracy(model, PairLatents(held_out, family), recipe.train.seed) if held_out else {}
    with saving_weights(out):
        family_named(family.name).module.save_reward(model, family, out, half)
    report = {
        "pairs": len(learned),
        "held_out": len(held_out),
        "decided": num_decided(held_out),
        "accuracy": {str(t): v for t, v in measured.items()},
    }
    write_text_atomically(out / REPORT, json.dumps(report, indent=2) + "\n")
    return write_manifest(
        out,
        Manifest(
            kind="reward",
            family=family.name,
            step=recipe.train.iterations,
            teacher=record,
            recipe=recipe.model_dump(mode="json"),
            hardware=hardware(family.device.type, family.precision),
            data=sha256_file(pairs),
            wall_seconds=seconds,
            seed=recipe.train.seed,
            license=license_of(record),
        ),
    )


def score_pictures(
    reward: str,
    pictures: Sequence[Path],
    prompt: str,
    *,
    at_timestep: int = 1,
    teacher: str = SHAPES,
    seed: int = 0,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> list[float]:
    """Score of each picture for `prompt` by the reward model named `reward`; higher is better.

    The pictures are encoded to latents of `teacher`, and noise of `at_timestep` is added. Raises `UsageError` for a
    timestep that the model was not trained on.
    """
    import torch

    from flashdmd_cli.core.rollout import at
    from flashdmd_cli.core.schedules import add_noise
    from flashdmd_cli.data.pairs import load_picture
    from flashdmd_cli.runs.randomness import generator

    model, family = _load(reward, teacher, device, reporter)
    loaded = torch.stack([load_picture(picture, family.resolution) for picture in pictures]).to(family.device)
    latents = family.encode_pictures(loaded)
    # The same noise for all pictures, so that scores differ only because of the pictures.
    noise = torch.randn(latents.shape[1:], generator=generator(seed, 0, 0, "reward/score")).to(latents.device)
    t, text = at(at_timestep, latents), model.encode([prompt] * len(latents))
    try:
        return model.score(add_noise(family.schedule, latents, noise.expand_as(latents), t), t, text).tolist()
    except ValueError as error:
        raise UsageError(f"--at {at_timestep}: {error}") from None


def measure_reward(
    reward: str,
    pairs: Path,
    *,
    teacher: str = SHAPES,
    seed: int = 0,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> tuple[dict[int, float], int]:
    """Accuracy on preference pairs: (timestep -> fraction of winners predicted, number of pairs with a winner)."""
    from flashdmd_cli.data.pairs import num_decided, read_pairs
    from flashdmd_cli.training.reward import PairLatents, accuracy

    model, family = _load(reward, teacher, device, reporter)
    judged = read_pairs(pairs)
    return accuracy(model, PairLatents(judged, family), seed), num_decided(judged)


def _load(reward: str, teacher: str, device: str | None, reporter: Reporter | None) -> tuple[RewardModel, Family]:
    """A reward model, and the family (teacher) whose latents it scores."""
    source = find_source(teacher, reporter=reporter)
    folder = find_reward(reward, reporter, family_at(source.folder).name)
    family = load_family(source, drawing_place(device))
    return load_reward_model(folder, family), family
