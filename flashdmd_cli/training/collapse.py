"""The collapse probe: pictures of fixed prompts and seeds, compared with those of the student before training.

A reward can be raised by pictures that nobody prefers (over-saturated, over-smoothed, all alike). Training curves do
not show this; picture statistics, diversity within a prompt, and a second judge that is not trained on do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flashdmd_cli.core.pictures import STATISTICS, relative_change, spread
from flashdmd_cli.runs.align_schema import ONLY_A_FALL_COUNTS
from flashdmd_cli.runs.randomness import generator
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective

Judge = Callable[[Tensor, Sequence[str]], Tensor]
"""(pictures (N, 3, H, W) on [-1, 1], or latents (N, C, h, w) for the reward model, N captions) -> scores (N,)."""


def remedy(recipe: Recipe) -> str:
    """Advice for a run that collapses."""
    joint = recipe.align is not None and recipe.align.rl_ratio is not None
    return "lower align.lr or align.rl_ratio" if joint else "lower align.lr or set align.rl_ratio"


class CollapseProbe:
    """Samples the student at fixed prompts and seeds and compares metrics with those before training.

    `reward` scores clean latents with the reward model of the training, `judge` scores pictures and is another one;
    both are optional. The judge's scores are the metric `judge_name`, whose band is that of its name. What is
    remembered between probes is kept in `State.probe`, which is JSON-serialisable.
    """

    def __init__(
        self,
        objective: Objective,
        captions: Sequence[str],
        reward: Judge | None = None,
        judge: Judge | None = None,
        judge_name: str = "held_out",
    ) -> None:
        self.objective, self.config = objective, objective.recipe.probe
        self.captions = list(captions)[: self.config.num_prompts]
        self.reward, self.judge, self.judge_name = reward, judge, judge_name

    def is_due(self, iteration: int, last: int) -> bool:
        """Whether to run the probe after `iteration` of `last` iterations."""
        return self.config.every is not None and (iteration % self.config.every == 0 or iteration == last)

    def begin(self, state: State) -> None:
        """Measure the student before its first update."""
        if self.config.every is not None:
            state.probe["before"] = {name: values.tolist() for name, values in self._measure(state).items()}

    def check(self, state: State) -> tuple[dict[str, float], str | None]:
        """Metrics of the current student, and a warning if one of them has newly collapsed.

        A metric is outside if the whole 95% interval of its relative change lies beyond its band, or if it is NaN. It
        has collapsed if it is outside in `probe.streak` consecutive probes. With `probe.excuse_when_reward_falls`,
        picture statistics do not count while the reward is significantly below its initial value.
        """
        before = {name: torch.tensor(values, dtype=torch.float64) for name, values in state.probe["before"].items()}
        metrics: dict[str, float] = {}
        outside: dict[str, float] = {}
        has_fallen = False
        for name, now in self._measure(state).items():
            draw = generator(self.objective.recipe.train.seed, 0, state.iteration, f"probe/bootstrap/{name}")
            change, low, high = relative_change(now, before[name], draw)
            metrics |= {f"probe/{name}": now.mean().item(), f"probe_change/{name}": change}
            has_fallen |= name == "reward" and high < 0
            band = getattr(self.objective.recipe.bands, name, None)
            if band is None:
                continue
            # Written so that NaN counts as outside.
            inside = high >= -band and (low <= band or name in ONLY_A_FALL_COUNTS)
            metrics[f"probe_outside/{name}"] = float(not inside)
            if not inside:
                outside[name] = change
        memory: dict[str, Any] = state.probe
        # Picture statistics may change as a student learns; diversity and the judge's score must not fall.
        excused = has_fallen and self.config.excuse_when_reward_falls and outside.keys().isdisjoint(ONLY_A_FALL_COUNTS)
        streaks = memory["streaks"] = {
            name: memory.get("streaks", {}).get(name, 0) + 1 for name in outside if not excused
        }
        metrics |= {"probe/outside": float(len(outside)), "probe/streak": float(max(streaks.values(), default=0))}
        reported = memory["collapsed"]["changes"] if "collapsed" in memory else {}
        fresh = {
            name: outside[name]
            for name, streak in streaks.items()
            if streak >= self.config.streak and name not in reported
        }
        if not fresh:
            return metrics, None
        memory["collapsed"] = {"iteration": state.iteration, "changes": {}} | memory.get("collapsed", {})
        memory["collapsed"]["changes"] |= fresh
        moved = ", ".join(f"{name} {change:+.0%}" for name, change in fresh.items())
        rises = metrics.get("probe_change/reward", 0.0) > 0
        reward = " while the probe's reward rises" if rises else ""
        warning = f"collapse at iteration {state.iteration}: {moved}{reward}; {remedy(self.objective.recipe)}"
        memory.setdefault("warnings", []).append(warning)
        return metrics, warning

    @torch.no_grad()
    def _measure(self, state: State) -> dict[str, Tensor]:
        """Every metric of the student as it would be exported, per prompt, (P,) float64.

        Metrics of single pictures are averaged over the seeds of a prompt.
        """
        recipe, family, num_seeds = self.objective.recipe, self.objective.family, self.config.num_seeds
        student = state.shipped
        rows: dict[str, list[Tensor]] = {}
        for index, caption in enumerate(self.captions):
            # The iteration is fixed at 0, so that a prompt has the same noise in every probe.
            noise_rows = range(index * num_seeds, (index + 1) * num_seeds)
            draws = Draws(recipe.train.seed, 0, noise_rows, family.device)
            texts = [caption] * num_seeds
            cond = family.encode(texts)
            z = draws.normal("probe/z", family.latent_shape)
            latents = self.objective.simulate(student, z, cond, draws, 0, None, "probe")
            # Statistics are computed in float64, which not every accelerator supports.
            pictures = family.decode(latents).float().clamp(-1, 1).cpu()
            per_picture = {name: statistic(pictures) for name, statistic in STATISTICS.items()}
            if self.reward is not None:
                per_picture["reward"] = self.reward(latents, texts)
            if self.judge is not None:
                per_picture[self.judge_name] = self.judge(pictures, texts)
            for name, values in (per_picture | {"diversity": spread(pictures[None])}).items():
                rows.setdefault(name, []).append(values.cpu().double().mean())
        return {name: torch.stack(values) for name, values in rows.items()}
