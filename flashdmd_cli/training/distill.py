"""Stage 1 of Flash-DMD: Algorithm 1 of arXiv 2511.20549, and, by recipe, the methods it is compared with."""

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
from flashdmd_cli.runs.randomness import generator
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.recipe_schema import Train
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
    features: list[Tensor] | None = None  # what SAM sees in the student's picture


def distill(
    recipe: Recipe, family: Family, data: Data, out: Path, watch: Watch, stop: StopFlag, world: World | None = None
) -> State:  # fmt: skip
    """Train a student; `out` takes states and metrics. The same call continues from the newest state.

    Returns the state, short of `recipe.train.iterations` if `stop` was requested; it is saved either way.
    """
    state = State.new(recipe, family, world=world)
    objective = Objective(recipe, family, family.grid(recipe.grid.steps))
    return run(recipe, state, lambda: iteration(recipe, objective, state, data), out, watch, stop)


def micro_batches(train: Train, world: World) -> Iterator[range]:
    """This process's rows of an iteration's batch, in equal parts of at most `micro_batch`."""
    rows = world.rows(train.batch)
    size = math.gcd(len(rows), train.micro_batch)
    for start in range(rows.start, rows.stop, size):
        yield range(start, start + size)


def positions(number: int, rows: range, train: Train) -> range:
    """Where in the endless shuffled stream of pictures the rows of iteration `number` are."""
    return range(number * train.batch + rows.start, number * train.batch + rows.stop)


def iteration(
    recipe: Recipe, o: Objective, state: State, data: Data, number: int | None = None
) -> dict[str, float]:  # fmt: skip
    """One iteration of Algorithm 1: the student in every `ttur`-th, then the fake score, then the discriminator.

    Its `number`, the state's own if not given, decides whose turn it is and what is drawn.
    """
    number = state.iteration if number is None else number
    train, metrics = recipe.train, StepMetrics(state.world)
    parts = list(micro_batches(train, state.world))
    n = len(parts)
    student, fake = state.student, state.fake
    # One grid step for the whole iteration, on every rank: rollouts of unequal length would wait for each other.
    step_draw = generator(train.seed, 0, number, "grid step")
    index = recipe.dm_step_indices[int(torch.randint(len(recipe.dm_step_indices), (1,), generator=step_draw))]
    last, gan = len(o.grid) - 1, recipe.gan
    gan_index = index if gan.steps == "all" else last
    # Where the adversarial loss meets the state that distribution matching met, one graph serves both.
    meets_here = gan.steps == "all" or (index == last and gan.input == "last_step")
    students_turn = number % recipe.ttur == 0
    kept: list[StudentOutput] = []

    for rows in parts:
        draws = Draws(train.seed, number, rows, o.family.device)
        batch = data.batch(positions(number, rows, train), train.seed)
        cond = o.conditioning(batch)
        z = draws.normal("z", o.family.latent_shape)
        x_t = o.simulate(student.net, z, cond, draws, 0, index, "rollout")  # backward simulation (lines 5-8)
        with torch.set_grad_enabled(students_turn):
            x = o.student_x0(student.net, x_t, index, cond)  # line 10
        latents = None if batch.latents is None else batch.latents.to(z.device)
        k = StudentOutput(draws, cond, batch.pixels.to(z.device), latents, x.detach())
        kept.append(k)
        leaf = k.x.clone().requires_grad_(students_turn)
        grad = torch.zeros_like(leaf)
        if students_turn:
            dm = o.dm_loss(leaf, state.teacher, fake.net, cond, draws)  # lines 13-14
            grad = metrics.gradient("dm", dm, recipe.dm.weight, leaf, n)
        if state.discriminator is not None and meets_here:
            grad = grad + adversarial(recipe, o, state, k, leaf, gan_index, students_turn, metrics, n)
        if students_turn:
            x.backward(grad)
        if state.discriminator is not None and not meets_here:
            # A graph of its own, after the first was freed: only one denoiser graph is alive at a time.
            x_hat = o.adversarial_state(student.net, k.x, index, cond, draws)
            with torch.set_grad_enabled(students_turn):
                x = o.student_x0(student.net, x_hat, gan_index, cond)
            leaf = x.detach().clone().requires_grad_(students_turn)
            grad = adversarial(recipe, o, state, k, leaf, gan_index, students_turn, metrics, n)  # line 15
            if students_turn:
                x.backward(grad)

    factor = recipe.optim.warmup_factor(state.images_seen + train.batch)
    if students_turn:
        metrics.whole["grad_norm/student"] = student.update(factor, state.world)  # line 17
        state.follow(recipe)  # line 18, Eq. 11

    for k in kept:  # lines 20-24: the fake score on the same, detached x
        loss = o.fake_loss(fake.net, k.x, k.cond, k.draws)
        metrics.add("fake", loss, n)
        (loss / n).backward()
        if state.discriminator is not None:  # lines 25-26
            d_loss = discriminator_loss(recipe, o, state.discriminator.net, fake.net, k, gan_index, metrics, n)
            weight = recipe.gan.fake_weight if recipe.gan.kind == "latent" else 1.0
            (weight * d_loss / n).backward()
    metrics.whole["grad_norm/fake"] = fake.update(factor, state.world)
    if state.discriminator is not None:
        metrics.whole["grad_norm/discriminator"] = state.discriminator.update(factor, state.world)
    return metrics.values() | {f"updates/{name}": float(count) for name, count in state.updates.items()}


def adversarial(
    recipe: Recipe, o: Objective, state: State, k: StudentOutput, leaf: Tensor, index: int, students_turn: bool,
    metrics: StepMetrics, n: int,
) -> Tensor:  # fmt: skip
    """Gradient of the student's weighted adversarial loss at its output `leaf` (line 15), zero out of its turn.

    Keeps in `k` what the discriminator will learn from: SAM is frozen, so its features serve both turns.
    """
    assert state.discriminator is not None
    heads: Any = state.discriminator.net
    if recipe.gan.kind == "pixel":
        with torch.set_grad_enabled(students_turn):
            view = o.view(leaf, k.draws)
            features = heads.extract_features(view)
        k.brightness, k.features = view.detach().mean(), [f.detach() for f in features]
    if not students_turn:
        return torch.zeros_like(leaf)
    if recipe.gan.kind == "pixel":
        logits = heads(features)
    else:
        logits = o.latent_logits(heads, state.fake.net, leaf, k.cond, k.draws, "gan")
    loss = o.generator_loss(logits, index)
    return metrics.gradient("gan", loss, recipe.gan.weight, leaf, n)


def discriminator_loss(
    recipe: Recipe, o: Objective, heads: Any, fake: Denoiser, k: StudentOutput, index: int, metrics: StepMetrics, n: int
) -> Tensor:
    """Real pictures against the student's detached ones, which it made at grid step `index`."""
    if recipe.gan.kind == "pixel":
        assert k.features is not None and k.brightness is not None
        real_view = o.real_view(k.pictures, k.latents, k.draws)
        with torch.no_grad():
            real_features = heads.extract_features(real_view)
        real, made = heads(real_features), heads(k.features)
        metrics.add("brightness/real", real_view.mean(), n)
        metrics.add("brightness/student", k.brightness, n)
    else:
        x_real = o.real_latents(k.pictures, k.latents)
        real = o.latent_logits(heads, fake, x_real, k.cond, k.draws, "real")
        made = o.latent_logits(heads, fake, k.x, k.cond, k.draws, "made")
    loss = o.discriminator_loss(real, made)
    # Noted without its soft weight: the tripwire asks whether the discriminator tells everything apart.
    metrics.add("discriminator", loss, n)
    return o.soft_weight(index) * loss
