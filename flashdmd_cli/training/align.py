"""Stage 2 of Flash-DMD: preference learning at high noise levels, with stage 1 as regulariser (Algorithm 1)."""

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
    """Align a distilled student. States and metrics are written to `out`; a second call resumes from the latest state.

    Returns the final state, before `recipe.train.iterations` if `stop` was requested or a collapse ended the run.
    """
    state = State.new(recipe, family, stage1, world)
    objective = Objective(recipe, family, family.grid(recipe.grid.steps))
    sampler = PairSampler(objective, reward)

    def iteration() -> dict[str, float]:
        # This order agrees with the paper's GPU hours: every iteration has a preference step, every `rl_ratio`-th also
        # a student update of stage 1.
        metrics: dict[str, float] = {}
        for number in distillation_iterations(recipe, state.iteration, stage1.iteration):
            metrics = distill.iteration(recipe, objective, state, data, number) | metrics
        return metrics | preference_step(recipe, objective, sampler, state, data, stage1)

    return run(recipe, state, iteration, out, watch, stop, collapse)


def distillation_iterations(recipe: Recipe, iteration: int, before: int) -> range:
    """Numbers of the distillation iterations (lines 5-26) to run in iteration `iteration` of stage 2.

    Among every `rl_ratio` iterations of stage 2 (one preference step each), `ttur` distillation iterations are spread
    evenly; the first of these updates the student. So `rl_ratio` is the ratio of student updates by preference and by
    distillation. If `rl_ratio` equals `ttur`, the fake score is updated in every iteration, as in Algorithm 1. Numbers
    continue after the `before` iterations of stage 1, so that no random numbers are used twice.
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
    """Sample a pool of preference pairs and update the student on the preference loss (lines 28-31)."""
    assert recipe.align is not None and state.reference is not None
    train, metrics, student, world = recipe.train, StepMetrics(state.world), state.student.net, state.world
    pool: list[Pairs] = []
    step = stage1.iteration + state.iteration
    parts = list(distill.micro_batches(train, world))
    for rows in parts:
        draws = Draws(train.seed, step, rows, o.family.device)
        batch = data.batch(distill.positions(step, rows, train), train.seed)
        cond = o.conditioning(batch)
        new_pairs, pool_metrics = sampler.draw(student, batch.captions, cond, draws)
        pool += new_pairs
        for name, value in pool_metrics.items():
            metrics.add(name, value, len(parts))
    parts_of_pool = [part for whole in pool for part in whole.split(train.micro_batch)]
    counts = world.gather((sum(map(len, pool)), len(parts_of_pool)))
    num_pairs, most = sum(pairs for pairs, _ in counts), max(num for _, num in counts)
    # Each pass through sharded networks takes all processes, so those with fewer pairs make theirs without weight.
    num_idle = most - len(parts_of_pool) if state.is_sharded else 0
    idle = pool[0].blank(cond, o.family.latent_shape)
    for pairs, num in [*((part, len(part)) for part in parts_of_pool), *[(idle, 0)] * num_idle]:
        # Gradients and metrics are averaged over processes, which may have different numbers of pairs.
        share = num / num_pairs * world.size
        margin, kl = margins(o, student, state.reference, pairs)
        num_dimensions = pairs.winner[0].numel()
        loss = preference_loss(margin, recipe.align.beta, num_dimensions)
        (loss * share).backward()
        if not num:
            continue
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
    """Preference margins H (B,) (Eq. 13), differentiable with respect to the student, and the KL (B,) to the reference.

    One forward pass each of student and reference if winner and loser come from the same noisy state, else two.
    """
    schedule, shared = o.family.schedule, pairs.x_t_loser is None
    t_next = at(o.grid.timesteps[pairs.index + 1], pairs.winner)
    starts = [pairs.x_t] if pairs.x_t_loser is None else [pairs.x_t, pairs.x_t_loser]
    with torch.no_grad():
        x0_ref = [o.student_x0(reference, x_t, pairs.index, pairs.cond) for x_t in starts]
    x0 = [o.student_x0(student, x_t, pairs.index, pairs.cond) for x_t in starts]
    kl = step_kl(schedule, x0[0].detach(), x0_ref[0], t_next)
    if shared:
        return preference_margin(schedule, pairs.winner, pairs.loser, x0[0], x0_ref[0], t_next), kl
    winner_ratio = log_ratio(schedule, pairs.winner, x0[0], x0_ref[0], t_next)
    return winner_ratio - log_ratio(schedule, pairs.loser, x0[1], x0_ref[1], t_next), kl
