"""Stage 2 of Flash-DMD: preference learning at high noise, regularised by going on with stage 1 (Algorithm 1)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flashdmd_cli.core.losses import preference_loss
from flashdmd_cli.core.rollout import at
from flashdmd_cli.core.transitions import log_ratio, preference_margin, step_kl
from flashdmd_cli.families.denoiser import Denoiser
from flashdmd_cli.families.family import Family
from flashdmd_cli.families.reward import RewardModel
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.world import World
from flashdmd_cli.training import distill
from flashdmd_cli.training.collapse import CollapseProbe
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.loop import Data, Watch, run
from flashdmd_cli.training.metrics import StepMetrics
from flashdmd_cli.training.networks import Stage1
from flashdmd_cli.training.pairs import Pairs, PairSampler
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective


def align(
    recipe: Recipe,
    family: Family,
    reward: RewardModel,
    stage1: Stage1,
    data: Data,
    out: Path,
    watch: Watch,
    stop: StopFlag,
    collapse: CollapseProbe | None = None,
    world: World | None = None,
) -> State:
    """Align a distilled student; `out` takes states and metrics. The same call continues from the newest state.

    Returns the state, short of `recipe.train.iterations` if `stop` was requested or a collapse ended the run.
    """
    state = State.new(recipe, family, stage1, world)
    objective = Objective(recipe, family, family.grid(recipe.grid.steps))
    sampler = PairSampler(objective, reward)

    def iteration() -> dict[str, float]:
        # The reading that the paper's GPU hours fit: every iteration prefers, and in every `rl_ratio`-th the student
        # learns from stage 1 as well.
        metrics: dict[str, float] = {}
        for number in distillation_turns(recipe, state.iteration, stage1.iteration):
            metrics = distill.iteration(recipe, objective, state, data, number) | metrics
        return metrics | preference_step(recipe, objective, sampler, state, data, stage1)

    return run(recipe, state, iteration, out, watch, stop, collapse)


def distillation_turns(recipe: Recipe, iteration: int, before: int) -> range:
    """Numbers of the iterations of stage 1 (lines 5-26) that belong to one iteration of stage 2.

    Every `rl_ratio` preference steps run `ttur` distillation iterations, evenly spaced; the first of these updates the
    student, so the ratio counts student updates on both sides. Where the two are equal, the fake score learns in
    every iteration, as Algorithm 1 has it. They are numbered on from the `before` that stage 1 had, and draw noise that
    it has not used.
    """
    assert recipe.align is not None
    if recipe.align.rl_ratio is None:
        return range(0)
    ttur, ratio = recipe.ttur, recipe.align.rl_ratio
    first = ceil_div(before, ttur) * ttur
    return range(first + ceil_div(iteration * ttur, ratio), first + ceil_div((iteration + 1) * ttur, ratio))


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def preference_step(
    recipe: Recipe, o: Objective, sampler: PairSampler, state: State, data: Data, stage1: Stage1
) -> dict[str, float]:
    """Sample a pool, and move the student towards the winners in it (lines 28-31)."""
    assert recipe.align is not None and state.reference is not None
    train, metrics, student, world = recipe.train, StepMetrics(state.world), state.student.net, state.world
    pool: list[Pairs] = []
    step = stage1.iteration + state.iteration
    parts = list(distill.micro_batches(train, world))
    for rows in parts:
        draws = Draws(train.seed, step, rows, o.family.device)
        batch = data.batch(distill.positions(step, rows, train), train.seed)
        cond = o.conditioning(batch)
        drawn, told = sampler.draw(student, batch.captions, cond, draws)
        pool += drawn
        for name, value in told.items():
            metrics.add(name, value, len(parts))
    num_pairs = sum(world.gather(sum(map(len, pool))))
    for pairs in (part for whole in pool for part in whole.split(train.micro_batch)):
        # Gradients and metrics are means over processes, which may have kept different numbers of pairs.
        share = len(pairs) / num_pairs * world.size
        margin, kl = margins(o, student, state.reference, pairs)
        num_dimensions = pairs.winner[0].numel()
        loss = preference_loss(margin, recipe.align.beta, num_dimensions)
        (loss * share).backward()
        metrics.add("preference", loss, 1 / share)
        metrics.add("margin", margin.mean() / num_dimensions, 1 / share)
        metrics.add("accuracy", margin.sign().mean() / 2 + 0.5, 1 / share)
        metrics.add("kl", kl.mean() / num_dimensions, 1 / share)
    metrics.whole["pairs"] = float(num_pairs)
    if num_pairs:
        role = state.preference or state.student
        factor = recipe.optim.warmup_factor(state.images_seen + train.batch)
        metrics.whole["grad_norm/preference"] = role.update(factor, world)
    return metrics.values() | {f"updates/{name}": float(count) for name, count in state.updates.items()}


def margins(o: Objective, student: Denoiser, reference: Denoiser, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """H (B,) of Eq. 13 with gradient to the student, and the KL (B,) to the reference, which comes for free.

    One forward pass of the student with gradient and one of the reference, where both states were drawn from one.
    """
    schedule, shared = o.family.schedule, pairs.x_t_loser is None
    t_next = at(o.grid.timesteps[pairs.index + 1], pairs.winner)
    starts = [pairs.x_t] if pairs.x_t_loser is None else [pairs.x_t, pairs.x_t_loser]
    with torch.no_grad():
        before = [o.student_x0(reference, x_t, pairs.index, pairs.cond) for x_t in starts]
    now = [o.student_x0(student, x_t, pairs.index, pairs.cond) for x_t in starts]
    kl = step_kl(schedule, now[0].detach(), before[0], t_next)
    if shared:
        return preference_margin(schedule, pairs.winner, pairs.loser, now[0], before[0], t_next), kl
    won = log_ratio(schedule, pairs.winner, now[0], before[0], t_next)
    return won - log_ratio(schedule, pairs.loser, now[1], before[1], t_next), kl
