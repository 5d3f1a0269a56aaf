"""Stage 1 of Flash-DMD (Algorithm 1 of arXiv 2511.20549), and its baselines, which differ only in the recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.denoiser import Denoiser
from flashdmd_cli.families.family import Family
from flashdmd_cli.networks.heads import estimate_spectral_norms_
from flashdmd_cli.runs.randomness import generator
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.recipe_schema import Train
from flashdmd_cli.runs.reward_schema import RewardTrain
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.world import World
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.loop import Data, Watch, run
from flashdmd_cli.training.metrics import StepMetrics
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective


@dataclass
class StudentOutput:
    """Detached student outputs of one micro-batch, reused by the fake-score and discriminator updates."""

    draws: Draws
    cond: Conditioning
    pictures: Tensor
    latents: Tensor | None
    x: Tensor
    brightness: Tensor | None = None
    features: list[Tensor] | None = None  # SAM features of the student's pictures


def distill(
    recipe: Recipe, family: Family, data: Data, out: Path, watch: Watch, stop: StopFlag, world: World | None = None
) -> State:  # fmt: skip
    """Distil a student. States and metrics are written to `out`; a second call resumes from the latest state.

    Returns the final state, before `recipe.train.iterations` if `stop` was requested; it is saved in both cases.
    """
    state = State.new(recipe, family, world=world)
    objective = Objective(recipe, family, family.grid(recipe.grid.steps))
    return run(recipe, state, lambda: iteration(recipe, objective, state, data), out, watch, stop)


def micro_batches(train: Train | RewardTrain, world: World) -> Iterator[range]:
    """This process's rows of an iteration's batch, in equal parts of at most `micro_batch`."""
    rows = world.rows(train.batch)
    size = math.gcd(len(rows), train.micro_batch)
    for start in range(rows.start, rows.stop, size):
        yield range(start, start + size)


def positions(number: int, rows: range, train: Train) -> range:
    """Positions in the endless shuffled stream of pictures of the given batch rows of iteration `number`."""
    return range(number * train.batch + rows.start, number * train.batch + rows.stop)


def iteration(
    recipe: Recipe, o: Objective, state: State, data: Data, number: int | None = None
) -> dict[str, float]:  # fmt: skip
    """One iteration of Algorithm 1: updates the student (every `ttur`-th iteration), fake score and discriminator.

    `number` (default: the state's iteration) determines whether the student is updated, and all random numbers.
    Returns the metrics.
    """
    number = state.iteration if number is None else number
    train, metrics = recipe.train, StepMetrics(state.world)
    parts = list(micro_batches(train, state.world))
    n = len(parts)
    student, fake = state.student, state.fake
    # The same grid step on every rank: with different ones, ranks would wait for the longest rollout.
    step_draw = generator(train.seed, 0, number, "grid step")
    index = recipe.dm_step_indices[int(torch.randint(len(recipe.dm_step_indices), (1,), generator=step_draw))]
    last, gan = len(o.grid) - 1, recipe.gan
    gan_index = index if gan.steps == "all" else last
    # If the adversarial loss has the same input as distribution matching, both share one forward pass.
    shares_forward = gan.steps == "all" or (index == last and gan.input == "last_step")
    updates_student = number % recipe.ttur == 0
    outputs: list[StudentOutput] = []
    if state.discriminator is not None:
        estimate_spectral_norms_(state.discriminator.net)

    for rows in parts:
        draws = Draws(train.seed, number, rows, o.family.device)
        batch = data.batch(positions(number, rows, train), train.seed)
        cond = o.conditioning(batch)
        z = draws.normal("z", o.family.latent_shape)
        x_t = o.simulate(student.net, z, cond, draws, 0, index, "rollout")  # backward simulation (lines 5-8)
        with torch.set_grad_enabled(updates_student):
            x = o.student_x0(student.net, x_t, index, cond)  # line 10
        latents = None if batch.latents is None else batch.latents.to(z.device)
        output = StudentOutput(draws, cond, batch.pixels.to(z.device), latents, x.detach())
        outputs.append(output)
        leaf = output.x.clone().requires_grad_(updates_student)
        grad = torch.zeros_like(leaf)
        if updates_student:
            dm = o.dm_loss(leaf, state.teacher, fake.net, cond, draws)  # lines 13-14
            grad = metrics.gradient("dm", dm, recipe.dm.weight, leaf, n)
        if state.discriminator is not None and shares_forward:
            grad = grad + adversarial(recipe, o, state, output, leaf, gan_index, updates_student, metrics, n)
        if updates_student:
            x.backward(grad)
        if state.discriminator is not None and not shares_forward:
            # A second forward pass, after the first graph was freed: only one denoiser graph is in memory at a time.
            x_hat = o.adversarial_state(student.net, output.x, index, cond, draws)
            with torch.set_grad_enabled(updates_student):
                x = o.student_x0(student.net, x_hat, gan_index, cond)
            leaf = x.detach().clone().requires_grad_(updates_student)
            grad = adversarial(recipe, o, state, output, leaf, gan_index, updates_student, metrics, n)  # line 15
            if updates_student:
                x.backward(grad)

    factor = recipe.optim.warmup_factor(state.images_seen + train.batch)
    if updates_student:
        before = student.updates
        metrics.whole["grad_norm/student"] = student.update(factor, state.world)  # line 17
        if student.updates > before:  # the fake score does not follow a student that was left as it was
            state.follow(recipe)  # line 18, Eq. 11

    for output in outputs:  # lines 20-24: the fake score, trained on the same x, detached
        loss = o.fake_loss(fake.net, output.x, output.cond, output.draws)
        metrics.add("fake", loss, n)
        (loss / n).backward()
        if state.discriminator is not None:  # lines 25-26
            heads = state.discriminator.net
            d_loss = discriminator_loss(recipe, o, heads, fake.net, output, gan_index, metrics, n)
            weight = recipe.gan.fake_weight if recipe.gan.kind == "latent" else 1.0
            (weight * d_loss / n).backward()
    metrics.whole["grad_norm/fake"] = fake.update(factor, state.world)
    if state.discriminator is not None:
        metrics.whole["grad_norm/discriminator"] = state.discriminator.update(factor, state.world)
    return metrics.values() | {f"updates/{name}": float(count) for name, count in state.updates.items()}


def adversarial(
    recipe: Recipe, o: Objective, state: State, output: StudentOutput, leaf: Tensor, index: int, updates_student: bool,
    metrics: StepMetrics, n: int,
) -> Tensor:  # fmt: skip
    """Gradient of the weighted adversarial loss with respect to the student output `leaf` (line 15).

    Zero if the student is not updated. Stores SAM features and brightness in `output` for the discriminator update:
    SAM is frozen, so its features serve both updates.
    """
    assert state.discriminator is not None
    heads: Any = state.discriminator.net
    if recipe.gan.kind == "pixel":
        with torch.set_grad_enabled(updates_student):
            view = o.view(leaf, output.draws)
            features = heads.extract_features(view)
        output.brightness, output.features = view.detach().mean(), [f.detach() for f in features]
    if not updates_student:
        return torch.zeros_like(leaf)
    if recipe.gan.kind == "pixel":
        logits = heads(features)
    else:
        logits = o.latent_logits(heads, state.fake.net, leaf, output.cond, output.draws, "gan")
    loss = o.generator_loss(logits, index)
    return metrics.gradient("gan", loss, recipe.gan.weight, leaf, n)


def discriminator_loss(
    recipe: Recipe, o: Objective, heads: Any, fake: Denoiser, output: StudentOutput, index: int,
    metrics: StepMetrics, n: int,
) -> Tensor:  # fmt: skip
    """Loss of the discriminator on real pictures and the student's detached ones of grid step `index`; scalar."""
    if recipe.gan.kind == "pixel":
        assert output.features is not None and output.brightness is not None
        real_view = o.real_view(output.pictures, output.latents, output.draws)
        with torch.no_grad():
            real_features = heads.extract_features(real_view)
        real_logits, fake_logits = heads(real_features), heads(output.features)
        metrics.add("brightness/real", real_view.mean(), n)
        metrics.add("brightness/student", output.brightness, n)
    else:
        x_real = o.real_latents(output.pictures, output.latents)
        real_logits = o.latent_logits(heads, fake, x_real, output.cond, output.draws, "real")
        fake_logits = o.latent_logits(heads, fake, output.x, output.cond, output.draws, "made")
    loss = o.discriminator_loss(real_logits, fake_logits)
    # Logged without the soft weight: a tripwire checks whether the discriminator separates real and fake perfectly.
    metrics.add("discriminator", loss, n)
    return o.soft_weight(index) * loss
