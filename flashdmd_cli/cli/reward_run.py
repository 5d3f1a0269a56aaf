"""A whole training of a reward model on disk: pairs, states, the finished folder with its report and manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.cli.output import Progress
from flashdmd_cli.cli.run_folder import begin, place_of_run
from flashdmd_cli.cli.teachers import find_source, teacher_record
from flashdmd_cli.cli.training_run import LICENSES, load, saving
from flashdmd_cli.runs.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from flashdmd_cli.runs.recipe import RewardRecipe

REPORT = "report.json"
SHOWN: tuple[str, ...] = ("loss", "accuracy")


def run_reward(recipe: RewardRecipe, pairs: Path, out: Path, observer: Progress, half: bool = False) -> Path:
    """Train, or go on training, then write the reward model, its accuracy on held-out pairs and the manifest to `out`.

    `half` stores the weights in float16. Raises `Interrupted` when a signal came before the end; the state is saved.
    """
    from flashdmd_cli.data.pairs import num_decided, read_pairs, split_by_prompt
    from flashdmd_cli.runs.files import sha256_file, write_text_atomically
    from flashdmd_cli.runs.manifest import Manifest, hardware, write_manifest

    learned, held_out = split_by_prompt(read_pairs(pairs, recipe.pairs.keep, recipe.pairs.keep_ties),
                                        recipe.pairs.held_out)  # fmt: skip
    if not learned:
        raise UsageError(f"pairs.held_out: {recipe.pairs.held_out} leaves no pair to learn from", hint="lower it")
    teacher = find_source(recipe.teacher)
    record = teacher_record(recipe.teacher, teacher)
    if not begin("reward", recipe, record, {"--pairs": [pairs]}, out, observer.phase):
        return out
    place = place_of_run(recipe, out, observer.output.say)
    observer.phase(f"loading the teacher {recipe.teacher}")
    import torch

    from flashdmd_cli.models.reward import RewardConfig
    from flashdmd_cli.models.reward_files import RewardBase, new_reward, save_reward
    from flashdmd_cli.models.sdxl import SDXLFamily
    from flashdmd_cli.training.loop import Watch
    from flashdmd_cli.training.reward import PairLatents, accuracy, train_reward

    family = load(SDXLFamily, teacher, place)
    torch.manual_seed(recipe.train.seed)
    levels = recipe.pairs.timesteps
    config = RewardConfig(family.resolution, (levels[0], levels[-1]), recipe.model.guidance)
    model = new_reward(family, config).to(family.device)

    def progress(iteration: int, figures: dict[str, float]) -> None:
        shown = {name: figures[name] for name in SHOWN if name in figures}
        observer.progress(iteration, recipe.train.iterations, shown)

    watch = Watch(progress, observer.output.say, lambda *_: None)
    observer.phase(f"training on {len(learned)} pairs, {len(held_out)} held out")
    stop = observer.output.stop
    done, seconds = train_reward(recipe, family, model, learned, held_out, out, watch, stop)
    if stop.requested is not None:
        if not done:
            raise Interrupted("interrupted before iteration 1: nothing is trained yet", signal_number=stop.requested)
        told = f"interrupted at iteration {done}; the state is saved in {out}"
        raise Interrupted(told, hint="run the same command again to resume", signal_number=stop.requested)
    measured = accuracy(model, PairLatents(held_out, family), recipe.train.seed) if held_out else {}
    with saving(out):
        # Without a whole trunk of its own it needs its teacher beside it, which is what makes a small file of it.
        save_reward(model, out, RewardBase.of(family) if recipe.model.layers == "attention" else None, half)
    report = {
        "pairs": len(learned),
        "held_out": len(held_out),
        "decided": num_decided(held_out),
        "accuracy": {str(t): v for t, v in measured.items()},
    }
    write_text_atomically(out / REPORT, json.dumps(report, indent=2) + "\n")
    write_manifest(
        out,
        Manifest(
            kind="reward",
            family="sdxl",
            step=recipe.train.iterations,
            teacher=record,
            recipe=recipe.model_dump(mode="json"),
            hardware=hardware(family.device.type, family.precision),
            data=sha256_file(pairs),
            wall_seconds=seconds,
            seed=recipe.train.seed,
            license=LICENSES.get(record.hub or record.id),
        ),
    )
    return out
