"""Sampling of preference pairs: the reward model ranks candidate states of the student (Algorithm 1, lines 28-29).

Pairs are sampled with the current student and used in the same iteration only, so they are on-policy, and no pool has
to be saved for resuming.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from flashdmd_cli.core.rollout import at
from flashdmd_cli.core.schedules import add_noise
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.denoiser import Denoiser
from flashdmd_cli.families.reward import RewardModel, RewardText
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.steps import Objective


@dataclass(frozen=True)
class Pairs:
    """`P` pairs of one grid step: two possible next states, and the noisy state that they were sampled from."""

    index: int
    """Index of the grid step whose next states are compared."""
    x_t: Tensor  # (P, C, h, w) the state that the winner was sampled from
    winner: Tensor  # (P, C, h, w) at the next grid step
    loser: Tensor  # (P, C, h, w) at the next grid step
    cond: Conditioning
    x_t_loser: Tensor | None = None  # (P, C, h, w) that of the loser, if it is another one

    def __len__(self) -> int:
        return len(self.x_t)

    def split(self, size: int) -> Iterator[Pairs]:
        """In parts of at most `size`."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            x_t_loser = self.x_t_loser[part] if self.x_t_loser is not None else None
            winner, loser = self.winner[part], self.loser[part]
            yield Pairs(self.index, self.x_t[part], winner, loser, self.cond.rows(part), x_t_loser)

    def blank(self, cond: Conditioning, shape: Sequence[int]) -> Pairs:
        """One pair of zeros of the same grid step, whose latents have this shape (C, h, w); `cond` has any rows."""
        zeros = torch.zeros((1, *shape), device=self.x_t.device)
        x_t_loser = None if self.x_t_loser is None else zeros
        return Pairs(self.index, zeros, zeros, zeros, cond.rows(slice(0, 1)), x_t_loser)


@dataclass(frozen=True)
class Ranking:
    """Ranking of `k` candidates for each of `B` prompts by the reward model."""

    best: Tensor  # (B,) long
    worst: Tensor  # (B,) long
    gap: Tensor  # (B,) difference of the softmax over the scores of best and worst
    scores: Tensor  # (B, k)


def rank_candidates(scores: Tensor) -> Ranking:
    """Best and worst candidates by their scores (B, k); the gap is tanh of half the difference of their scores."""
    high, low = scores.max(dim=1), scores.min(dim=1)
    return Ranking(high.indices, low.indices, torch.tanh((high.values - low.values) / 2), scores)


class PairSampler:
    """Samples candidates with the student for a batch of captions, and pairs the best with the worst."""

    def __init__(self, objective: Objective, reward: RewardModel) -> None:
        assert objective.recipe.align is not None
        self.o, self.reward, self.config = objective, reward, objective.recipe.align

    def least_gap(self, timestep: float) -> float:
        """Minimum gap of a pair at `timestep`; it grows with the noise level, where scores are less reliable."""
        low, high = self.config.threshold
        sigma = self.o.family.schedule.sigma(torch.tensor([timestep])).item()
        return low + (high - low) * sigma

    def reward_timestep(self, index: int) -> float:
        """The timestep at which the candidates of grid step `index` are scored."""
        return self.o.grid.timesteps[index + 1 if self.config.reward_timestep == "next" else index]

    def levels(self) -> list[tuple[float, float]]:
        """(timestep of the candidates, timestep passed to the reward model) of each comparison."""
        if self.config.pairs == "clean":
            return [(self.reward.timesteps[0],) * 2]
        indices = self.o.recipe.preference_step_indices
        return [(self.o.grid.timesteps[index + 1], self.reward_timestep(index)) for index in indices]

    def score(self, latents: Tensor, timestep: float, text: RewardText) -> Tensor:
        """Scores (B,) of latents at one timestep."""
        t = at(timestep, latents)
        # Half-precision weights run in their own precision, others under the student's autocast.
        with nullcontext() if self.reward.is_half else self.o.family.autocast():
            return self.reward.score(latents, t, text, self.config.reward_outside, self.config.reward_guidance)

    def draw(
        self, student: Denoiser, captions: Sequence[str], cond: Conditioning, draws: Draws
    ) -> tuple[list[Pairs], dict[str, Tensor]]:
        """The pairs above the minimum gap, one entry per grid step, and metrics of all candidates."""
        with torch.no_grad():
            text = self.reward.encode(captions).repeat(self.config.candidates)
            sample = self._noisy if self.config.pairs == "noisy" else self._clean
            return sample(student, text, cond, draws)

    def _noisy(
        self, student: Denoiser, text: RewardText, cond: Conditioning, draws: Draws
    ) -> tuple[list[Pairs], dict[str, Tensor]]:
        """At each compared step, samples k next states from one prediction; a random one of them is the next `x_t`."""
        k, schedule, timesteps = self.config.candidates, self.o.family.schedule, self.o.grid.timesteps
        x_t = draws.normal("preference/z", self.o.family.latent_shape)
        rows = torch.arange(cond.batch, device=x_t.device)
        pool, rankings = [], []
        for index in self.o.recipe.preference_step_indices:
            x0 = self.o.student_x0(student, x_t, index, cond)
            noise = draws.normal(f"preference/eps/{index}", (k, *x_t.shape[1:])).flatten(0, 1)
            t_next = at(timesteps[index + 1], noise)
            x_next = add_noise(schedule, x0.repeat_interleave(k, 0), noise, t_next)
            ranking = rank_candidates(self.score(x_next, self.reward_timestep(index), text).view(-1, k))
            rankings.append(ranking)
            candidates = x_next.view(cond.batch, k, *x_t.shape[1:])
            winner, loser = candidates[rows, ranking.best], candidates[rows, ranking.worst]
            keep = ranking.gap > self.least_gap(timesteps[index + 1])
            pool.append(Pairs(index, x_t[keep], winner[keep], loser[keep], cond.rows(keep)))
            x_t = candidates[rows, draws.choice(f"preference/next/{index}", k)]
        return pool, _metrics(pool, rankings)

    def _clean(
        self, student: Denoiser, text: RewardText, cond: Conditioning, draws: Draws
    ) -> tuple[list[Pairs], dict[str, Tensor]]:
        """Samples k trajectories from one noise and ranks their results; each step of best and worst gives a pair.

        As in PSO (arXiv 2410.03190). Results are scored at the reward model's lowest timestep, that of clean pictures.
        """
        k, schedule, timesteps = self.config.candidates, self.o.family.schedule, self.o.grid.timesteps
        many = Conditioning.cat([cond.rows(slice(i, i + 1)) for i in range(cond.batch) for _ in range(k)])
        z = draws.normal("preference/z", self.o.family.latent_shape).repeat_interleave(k, 0)
        path = [z]
        for index in range(len(timesteps)):
            x0 = self.o.student_x0(student, path[-1], index, many)
            if index + 1 == len(timesteps):
                break
            noise = draws.normal(f"preference/eps/{index}", (k, *x0.shape[1:])).flatten(0, 1)
            path.append(add_noise(schedule, x0, noise, at(timesteps[index + 1], x0)))
        ((lowest, _),) = self.levels()
        noise = draws.normal("preference/last", (k, *x0.shape[1:])).flatten(0, 1)
        last = add_noise(schedule, x0, noise, at(lowest, x0))
        ranking = rank_candidates(self.score(last, lowest, text).view(-1, k))
        keep = ranking.gap > self.least_gap(lowest)
        base = torch.arange(cond.batch, device=z.device) * k
        best, worst = (base + ranking.best)[keep], (base + ranking.worst)[keep]
        pool = [
            Pairs(i, path[i][best], path[i + 1][best], path[i + 1][worst], cond.rows(keep), path[i][worst])
            for i in range(len(path) - 1)
        ]
        return pool, _metrics(pool[:1], [ranking])


def _metrics(pool: list[Pairs], rankings: list[Ranking]) -> dict[str, Tensor]:
    num = sum(len(ranking.gap) for ranking in rankings)
    scores = torch.cat([ranking.scores for ranking in rankings])
    return {
        "reward/mean": scores.mean(),
        "reward/spread": scores.std(dim=1).mean(),
        "reward/gap": torch.cat([ranking.gap for ranking in rankings]).mean(),
        "kept_pairs": torch.tensor(sum(map(len, pool)) / num),
    }
