"""Latent reward models on disk: a whole training of one, what one says of pictures, and how often it is right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.runs.errors import Interrupted, UsageError
from flashdmd_cli.runs.files import saving_weights, sha256_file, write_text_atomically
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import Manifest, hardware, read_manifest, write_manifest
from flashdmd_cli.runs.recipe import RewardRecipe
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.runs.resume import begin, place_of_run
from flashdmd_cli.workflows.inputs.families import drawing_place, load_family
from flashdmd_cli.workflows.inputs.kinds import SHAPES
from flashdmd_cli.workflows.inputs.reward_models import find_reward, load_reward_model
from flashdmd_cli.workflows.inputs.teachers import find_source, license_of, teacher_record

if TYPE_CHECKING:
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.families.reward import RewardModel

REPORT = "report.json"
"""Numbers of pairs, and the accuracy on those held out by noise level."""
SHOWN: tuple[str, ...] = ("loss", "accuracy")


@releasing()
def train_reward(
    recipe: RewardRecipe, pairs: Path | str, out: Path | str, *, half: bool = False, reporter: Reporter | None = None
) -> Manifest:
    """Train, or go on training, then write the reward model, its accuracy on held-out pairs and the manifest to `out`.

    Reads the file `pairs` (JSONL or parquet) with its pictures and the teacher, downloaded where it is not on this
    machine. `half` stores the weights in float16. The same call again goes on, or returns the finished result's
    manifest.

    Raises `Interrupted` when a stop was asked for before the end (the state is saved then), `UsageError` when `out`
    holds another run, `InputError` or `DataError` for what cannot be read.
    """
    from flashdmd_cli.data.pairs import num_decided, read_pairs, split_by_prompt

    reporter, pairs, out = reporter or SilentReporter(), Path(pairs), Path(out)
    teacher = find_source(recipe.teacher, reporter=reporter)
    learned, held_out = split_by_prompt(read_pairs(pairs, recipe.pairs.keep, recipe.pairs.keep_ties),
                                        recipe.pairs.held_out)  # fmt: skip
    if not learned:
        raise UsageError(f"pairs.held_out: {recipe.pairs.held_out} leaves no pair to learn from", hint="lower it")
    record = teacher_record(recipe.teacher, teacher)
    if not begin("reward", recipe, record, {"--pairs": [pairs]}, out, reporter.phase):
        return read_manifest(out)
    place = place_of_run(recipe, out, reporter.say)
    reporter.phase(f"loading the teacher {recipe.teacher}")
    import torch

    from flashdmd_cli.families.sdxl.family import SDXLFamily
    from flashdmd_cli.families.sdxl.reward import RewardConfig
    from flashdmd_cli.families.sdxl.reward_files import RewardBase, new_reward, save_reward
    from flashdmd_cli.training.loop import Watch
    from flashdmd_cli.training.reward import PairLatents, accuracy
    from flashdmd_cli.training.reward import train_reward as train

    family = load_family(teacher, place)
    if not isinstance(family, SDXLFamily):
        raise UsageError(f"--teacher {recipe.teacher}: is of {family.name}", hint="reward models are trained of SDXL's")
    torch.manual_seed(recipe.train.seed)
    levels = recipe.pairs.timesteps
    config = RewardConfig(family.resolution, (levels[0], levels[-1]), recipe.model.guidance)
    model = new_reward(family, config).to(family.device)

    def progress(iteration: int, figures: dict[str, float]) -> None:
        shown = {name: figures[name] for name in SHOWN if name in figures}
        reporter.progress(iteration, recipe.train.iterations, shown)

    watch = Watch(progress, reporter.say, lambda *_: None)
    reporter.phase(f"training on {len(learned)} pairs, {len(held_out)} held out")
    stop = reporter.stop
    done, seconds = train(recipe, family, model, learned, held_out, out, watch, stop)
    if stop.requested is not None:
        if not done:
            raise Interrupted("interrupted before iteration 1: nothing is trained yet", signal_number=stop.requested)
        told = f"interrupted at iteration {done}; the state is saved in {out}"
        raise Interrupted(told, hint="run the same command again to resume", signal_number=stop.requested)
    measured = accuracy(model, PairLatents(held_out, family), recipe.train.seed) if held_out else {}
    with saving_weights(out):
        # Without a whole trunk of its own it needs its teacher beside it, which is what makes a small file of it.
        save_reward(model, out, RewardBase.of(family) if recipe.model.layers == "attention" else None, half)
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
    """What the reward model named `reward` gives each picture for `prompt`, noised to `at_timestep`; higher is better.

    Pictures become latents of `teacher`. UsageError for a timestep that the model was not trained on.
    """
    import torch

    from flashdmd_cli.core.rollout import at
    from flashdmd_cli.core.schedules import add_noise
    from flashdmd_cli.data.pairs import load_picture
    from flashdmd_cli.runs.randomness import generator

    model, family = _load(reward, teacher, device, reporter)
    loaded = torch.stack([load_picture(picture, family.resolution) for picture in pictures]).to(family.device)
    latents = family.encode_pictures(loaded)
    # One noise for all: pictures differ by themselves alone.
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
    """The share of the pairs with a winner in which the reward model finds it, by timestep; and their number."""
    from flashdmd_cli.data.pairs import num_decided, read_pairs
    from flashdmd_cli.training.reward import PairLatents, accuracy

    model, family = _load(reward, teacher, device, reporter)
    judged = read_pairs(pairs)
    return accuracy(model, PairLatents(judged, family), seed), num_decided(judged)


def _load(reward: str, teacher: str, device: str | None, reporter: Reporter | None) -> tuple[RewardModel, Family]:
    """A reward model beside the teacher whose latents it scores."""
    folder = find_reward(reward, reporter)
    family = load_family(find_source(teacher, reporter=reporter), drawing_place(device))
    return load_reward_model(folder, family), family
