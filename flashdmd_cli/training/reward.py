"""Training of a latent reward model on preference pairs (LRM), and its accuracy at each noise level."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashdmd_cli.core.losses import pairwise_cross_entropy
from flashdmd_cli.core.rollout import at
from flashdmd_cli.core.schedules import add_noise
from flashdmd_cli.data.pairs import PreferencePair, load_picture, prompt_weights
from flashdmd_cli.families.family import Family
from flashdmd_cli.families.reward import LatentReward, RewardModel
from flashdmd_cli.runs.checkpoint import latest_state, load_state, state_folder, unfit
from flashdmd_cli.runs.device import peak_memory
from flashdmd_cli.runs.randomness import generator
from flashdmd_cli.runs.reward_schema import RewardRecipe
from flashdmd_cli.runs.signals import StopFlag, StopSignal
from flashdmd_cli.runs.state_writer import StateWriter
from flashdmd_cli.runs.tracking import Tracker
from flashdmd_cli.runs.world import World
from flashdmd_cli.training.distill import micro_batches
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.loop import Undo, Watch, require_same, share_stop
from flashdmd_cli.training.metrics import StepMetrics
from flashdmd_cli.training.roles import Role
from flashdmd_cli.training.state import check_state

CACHE_BYTES = 512 * 2**20
"""Largest size of the latents in memory; pairs that fit into it are encoded only once."""
REPORT_STEPS = 4
"""Number of steps of the student at whose noise levels accuracy is reported."""


class PairLatents:
    """Latents of picture pairs, encoded on first access."""

    def __init__(self, pairs: Sequence[PreferencePair], family: Family) -> None:
        self.pairs, self.family, self.weights = list(pairs), family, prompt_weights(pairs)
        self.cache: OrderedDict[int, Tensor] = OrderedDict()
        self.bytes = 0

    def __getitem__(self, index: int) -> Tensor:
        """Both latents of a pair, (2, C, h, w), on the CPU."""
        if index not in self.cache:
            pair, side = self.pairs[index], self.family.resolution
            pictures = torch.stack([load_picture(image, side) for image in (pair.image_0, pair.image_1)])
            latents = self.family.encode_pictures(pictures.to(self.family.device)).cpu()
            self.cache[index] = latents
            self.bytes += latents.nbytes
            while self.bytes > CACHE_BYTES:
                self.bytes -= self.cache.popitem(last=False)[1].nbytes
        return self.cache[index]

    def gather(self, indices: Sequence[int]) -> tuple[Tensor, list[str], Tensor]:
        """Latents (2, B, C, h, w), prompts and labels (B,) of the pairs `indices`."""
        device = self.family.device
        latents = torch.stack([self[i] for i in indices], dim=1).to(device)
        labels = torch.tensor([self.pairs[i].label for i in indices], device=device)
        return latents, [self.pairs[i].prompt for i in indices], labels


def noisy_scores(
    model: RewardModel, family: Family, latents: Tensor, prompts: Sequence[str], t: Tensor, noise: Tensor
) -> Tensor:
    """Scores (2, B) of both latents (2, B, C, h, w) at timesteps `t` (B,), each with its own `noise` of that shape."""
    text = model.encode(prompts)
    sides = zip(latents, noise, strict=True)
    return torch.stack([model.score(add_noise(family.schedule, x, e, t), t, text) for x, e in sides])


def train_reward(
    recipe: RewardRecipe, family: Family, model: LatentReward, pairs: Sequence[PreferencePair],
    held_out: Sequence[PreferencePair], out: Path, watch: Watch, stop: StopFlag, world: World | None = None,
) -> tuple[int, float]:  # fmt: skip
    """Train `model` in place, except for its frozen parameters. States and metrics are written to `out`; a second call
    resumes from the latest state.

    Returns the number of finished iterations, below the recipe's if `stop` was requested, and their seconds.
    Raises `NumericalError` if gradients stay non-finite, `DataError` for a picture that cannot be read.
    """
    world = world or World()
    role = Role("reward", model, recipe.optim.lr, recipe.optim, "optim.lr")
    done, seconds, began = 0, 0.0, time.monotonic()

    def contents() -> tuple[dict[str, Tensor], dict[str, Any]]:
        return role.tensors(), {"updates": role.updates, "bad_updates": role.bad_updates}

    def take(tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        role.load(tensors)
        role.updates, role.bad_updates = meta["updates"], meta["bad_updates"]

    saved = latest_state(out / "state")
    require_same(world, saved, out)
    if saved is not None:
        tensors, meta = load_state(saved, world=world)
        try:
            updates, bad_updates, done, seconds = (
                meta[key] for key in ("updates", "bad_updates", "iteration", "seconds")
            )
        except KeyError as error:
            raise unfit(saved, f"lacks {error}") from None
        check_state(saved, tensors.kinds(), [role], {role.name: updates})
        take(tensors, {"updates": updates, "bad_updates": bad_updates})
    training, validation = PairLatents(pairs, family), PairLatents(held_out, family)
    train = recipe.train
    states = StateWriter(world, train.keep_states, train.async_save)

    def save() -> None:
        tensors, meta = contents()
        meta |= {"iteration": done, "seconds": seconds + time.monotonic() - began}
        states.save(state_folder(out / "state", done), tensors, meta)

    with stop.postponed(), states:
        with Tracker(out, done, world.is_main) as tracker, suppress(StopSignal):
            undo = Undo(stop, contents, take, world.size == 1)
            elapsed = time.monotonic() - began
            while not share_stop(world, stop) and done < train.iterations:
                due = (done + 1) % train.save_every == 0 or done + 1 == train.iterations
                with undo.round():
                    metrics = _step(recipe, family, model, role, training, done, world)
                    if due and validation.pairs and world.is_main:
                        metrics |= {
                            f"accuracy/{t}": value for t, value in accuracy(model, validation, train.seed).items()
                        }
                done += 1
                before, elapsed = elapsed, time.monotonic() - began
                costs = {
                    "seconds_per_kpair": (elapsed - before) / train.batch * 1000,
                    "memory_gb": peak_memory(family.device) / 1e9,
                }
                if due or (done - 1) % train.log_every == 0:
                    tracker.log(done - 1, metrics, costs)
                if world.is_main:
                    watch.progress(done, metrics)
                    watch.page(done, [], False)
                if due:
                    save()
        if stop.requested is not None and done:
            save()
    if world.is_main and done:
        with stop.postponed():
            watch.page(done, [], True)
    share_stop(world, stop)  # all end alike, after the main process has saved
    return done, seconds + time.monotonic() - began


def _step(
    recipe: RewardRecipe, family: Family, model: LatentReward, role: Role[Any], data: PairLatents, step: int,
    world: World | None = None,
) -> dict[str, float]:  # fmt: skip
    """One update on `train.batch` random pairs, with a random timestep per pair and new noise per picture."""
    world = world or World()
    train, metrics = recipe.train, StepMetrics(world)
    levels = torch.tensor(recipe.pairs.timesteps, device=family.device)
    draw = generator(train.seed, 0, step, "reward/pairs")
    indices = torch.randint(len(data.pairs), (train.batch,), generator=draw)
    weights = data.weights[indices] if recipe.pairs.per_prompt else torch.ones(train.batch)
    num_correct = num_decided = 0
    for rows in micro_batches(train, world):
        draws = Draws(train.seed, step, rows, family.device)
        latents, prompts, labels = data.gather(indices[rows].tolist())
        t = levels[draws.choice("reward/timestep", len(levels))]
        noise = draws.normal("reward/noise", (2, *latents.shape[2:])).transpose(0, 1)
        with family.autocast():
            scores = noisy_scores(model, family, latents, prompts, t, noise)
        weight = weights[rows].to(family.device)
        loss = pairwise_cross_entropy(scores[0], scores[1], labels, weight)
        # The loss normalises weights within a micro-batch; this factor normalises them over the whole batch. Gradients
        # and metrics are averaged over processes.
        share = (weights[rows].sum() / weights.sum()).item() * world.size
        (loss * share).backward()
        metrics.add("loss", loss, 1 / share)
        decided = labels != 0.5
        num_correct += int(((scores[1] > scores[0]) == (labels > 0.5))[decided].sum())
        num_decided += int(decided.sum())
    num_correct, num_decided = (sum(counts) for counts in zip(*world.gather((num_correct, num_decided)), strict=True))
    if num_decided:
        metrics.whole["accuracy"] = num_correct / num_decided
    metrics.whole["grad_norm"] = role.update(recipe.rate_factor(step), world)
    metrics.whole["logit_scale"] = model.logit_scale.exp().item()
    return metrics.values()


def report_levels(model: RewardModel, family: Family) -> list[int]:
    """Timesteps at which accuracy is reported: the ends of the model's range, and in it the noise levels of a 4-step
    student's candidates."""
    low, high = (round(end) for end in model.timesteps)
    inside = {round(t) for t in family.grid(REPORT_STEPS).timesteps[1:]}
    return sorted({low, high} | {level for level in inside if low <= level <= high})


@torch.no_grad()
def accuracy(model: RewardModel, data: PairLatents, seed: int, batch: int = 64) -> dict[int, float]:
    """Accuracy by timestep: the fraction of pairs without ties whose winner has the higher score.

    `seed` fixes the noise. Empty if every pair is a tie.
    """
    decided = [i for i, pair in enumerate(data.pairs) if pair.label != 0.5]
    accuracies: dict[int, float] = {}
    for level in report_levels(model, data.family) if decided else []:
        num_correct = 0
        for start in range(0, len(decided), batch):
            latents, prompts, labels = data.gather(decided[start : start + batch])
            noise = torch.randn(latents.shape, generator=generator(seed, 0, start, f"reward/report/{level}"))
            t = at(level, latents[0])
            with data.family.autocast():
                scores = noisy_scores(model, data.family, latents, prompts, t, noise.to(latents.device))
            num_correct += int(((scores[1] > scores[0]) == (labels > 0.5)).sum())
        accuracies[level] = num_correct / len(decided)
    return accuracies
