"""The pool of preference pairs: who wins among states that the student could have drawn (Algorithm 1, lines 28-29).

Pairs are drawn with the student as it is now and used up in the same iteration, so every one is on-policy and no pool
has to be stored to resume.
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
    """`P` pairs of one grid step: two states that the step could lead to, and what it started from."""

    index: int
    """Grid step that drew them."""
    x_t: Tensor  # (P, C, h, w) what the winner was drawn from
    winner: Tensor  # (P, C, h, w) at the next grid step
    loser: Tensor  # (P, C, h, w) at the next grid step
    cond: Conditioning
    x_t_loser: Tensor | None = None  # (P, C, h, w) where the loser was drawn from another state

    def __len__(self) -> int:
        return len(self.x_t)

    def split(self, size: int) -> Iterator[Pairs]:
        """In parts of at most `size`."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            other = self.x_t_loser[part] if self.x_t_loser is not None else None
            yield Pairs(self.index, self.x_t[part], self.winner[part], self.loser[part], self.cond.rows(part), other)


@dataclass(frozen=True)
class Verdict:
    """What the reward model says of `k` candidates for each of `B` prompts."""

    best: Tensor  # (B,) long
    worst: Tensor  # (B,) long
    gap: Tensor  # (B,) softmax share of the best minus that of the worst, of these two
    scores: Tensor  # (B, k)


def rank_candidates(scores: Tensor) -> Verdict:
    """Best and worst of candidates by their scores (B, k); the gap is tanh of half the scores' difference."""
    high, low = scores.max(dim=1), scores.min(dim=1)
    return Verdict(high.indices, low.indices, torch.tanh((high.values - low.values) / 2), scores)


class PairSampler:
    """Draws pairs for a batch of captions with the student, and says how the reward model saw them."""

    def __init__(self, objective: Objective, reward: RewardModel) -> None:
        assert objective.recipe.align is not None
        self.o, self.reward, self.table = objective, reward, objective.recipe.align

    def least_gap(self, timestep: float) -> float:
        """The gap that a pair at `timestep` must exceed: it grows with the noise, which makes a gap less telling."""
        low, high = self.table.threshold
        sigma = self.o.family.schedule.sigma(torch.tensor([timestep])).item()
        return low + (high - low) * sigma

    def reward_timestep(self, index: int) -> float:
        """The timestep at which the candidates of grid step `index` are scored."""
        return self.o.grid.timesteps[index + 1 if self.table.reward_timestep == "next" else index]

    def levels(self) -> list[tuple[float, float]]:
        """(noise of the candidates, timestep that the reward model is told) of everything that is compared."""
        if self.table.pairs == "clean":
            return [(self.reward.timesteps[0],) * 2]
        indices = self.o.recipe.preference_step_indices
        return [(self.o.grid.timesteps[index + 1], self.reward_timestep(index)) for index in indices]

    def score(self, latents: Tensor, timestep: float, text: RewardText) -> Tensor:
        """Scores (B,) of latents at one timestep."""
        t = at(timestep, latents)
        # Weights that are kept in half precision run as they are, others as the student's do.
        with nullcontext() if self.reward.is_half else self.o.family.autocast():
            return self.reward.score(latents, t, text, self.table.reward_outside, self.table.reward_guidance)

    def draw(
        self, student: Denoiser, captions: Sequence[str], cond: Conditioning, draws: Draws
    ) -> tuple[list[Pairs], dict[str, Tensor]]:
        """The pairs that pass the threshold, by grid step, and metrics of everything that was drawn."""
        with torch.no_grad():
            text = self.reward.encode(captions).repeat(self.table.candidates)
            drawn = self._noisy if self.table.pairs == "noisy" else self._clean
            return drawn(student, text, cond, draws)

    def _noisy(
        self, student: Denoiser, text: RewardText, cond: Conditioning, draws: Draws
    ) -> tuple[list[Pairs], dict[str, Tensor]]:
        """At each high-noise step, k states drawn from one prediction; a random one of them goes on."""
        k, schedule, timesteps = self.table.candidates, self.o.family.schedule, self.o.grid.timesteps
        x_t = draws.normal("preference/z", self.o.family.latent_shape)
        rows = torch.arange(cond.batch, device=x_t.device)
        pool, verdicts = [], []
        for index in self.o.recipe.preference_step_indices:
            x0 = self.o.student_x0(student, x_t, index, cond)
            noise = draws.normal(f"preference/eps/{index}", (k, *x_t.shape[1:])).flatten(0, 1)
            t_next = at(timesteps[index + 1], noise)
            drawn = add_noise(schedule, x0.repeat_interleave(k, 0), noise, t_next)
            verdict = rank_candidates(self.score(drawn, self.reward_timestep(index), text).view(-1, k))
            verdicts.append(verdict)
            candidates = drawn.view(cond.batch, k, *x_t.shape[1:])
            winner, loser = candidates[rows, verdict.best], candidates[rows, verdict.worst]
            keep = verdict.gap > self.least_gap(timesteps[index + 1])
            pool.append(Pairs(index, x_t[keep], winner[keep], loser[keep], cond.rows(keep)))
            x_t = candidates[rows, draws.choice(f"preference/next/{index}", k)]
        return pool, _metrics(pool, verdicts)

    def _clean(
        self, student: Denoiser, text: RewardText, cond: Conditioning, draws: Draws
    ) -> tuple[list[Pairs], dict[str, Tensor]]:
        """k whole trajectories from one noise, judged by where they end; each step of best and worst makes a pair.

        After PSO (arXiv 2410.03190). The end is scored at the reward model's lowest timestep, where it saw clean
        pictures.
        """
        k, schedule, timesteps = self.table.candidates, self.o.family.schedule, self.o.grid.timesteps
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
        verdict = rank_candidates(self.score(last, lowest, text).view(-1, k))
        keep = verdict.gap > self.least_gap(lowest)
        base = torch.arange(cond.batch, device=z.device) * k
        best, worst = (base + verdict.best)[keep], (base + verdict.worst)[keep]
        pool = [
            Pairs(i, path[i][best], path[i + 1][best], path[i + 1][worst], cond.rows(keep), path[i][worst])
            for i in range(len(path) - 1)
        ]
        return pool, _metrics(pool[:1], [verdict])


def _metrics(pool: list[Pairs], verdicts: list[Verdict]) -> dict[str, Tensor]:
    num = sum(len(verdict.gap) for verdict in verdicts)
    scores = torch.cat([verdict.scores for verdict in verdicts])
    return {
        "reward/mean": scores.mean(),
        "reward/spread": scores.std(dim=1).mean(),
        "reward/gap": torch.cat([verdict.gap for verdict in verdicts]).mean(),
        "kept_pairs": torch.tensor(sum(map(len, pool)) / num),
    }
