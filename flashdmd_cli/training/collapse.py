"""The collapse probe: pictures of fixed prompts and seeds, each held against itself before training.

A reward can be raised by pictures that nobody prefers (over-saturated, painted smooth, all alike). The training's own
curves do not show it; statistics of pictures, variety within a prompt, and a judge beside the reward do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flashdmd_cli.core.pictures import STATISTICS, relative_change, spread
from flashdmd_cli.runs.randomness import generator
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective

ONLY_A_FALL_COUNTS = ("diversity", "held_out")

Judge = Callable[[Tensor, Sequence[str]], Tensor]
"""(pictures (N, 3, H, W) on [-1, 1], or latents (N, C, h, w) for the reward model, N captions) -> scores (N,)."""


def remedy(recipe: Recipe) -> str:
    """What may help a run that collapses."""
    joint = recipe.align is not None and recipe.align.rl_ratio is not None
    return "lower align.lr or align.rl_ratio" if joint else "lower align.lr or set align.rl_ratio"


class CollapseProbe:
    """Draws the student at fixed prompts and compares. What it remembers lives in the state, JSON-able.

    `reward` scores clean latents with their captions as the training does; `held_out` scores pictures by something
    else. Both may be missing.
    """

    def __init__(
        self,
        objective: Objective,
        captions: Sequence[str],
        reward: Judge | None = None,
        held_out: Judge | None = None,
    ) -> None:
        self.objective, self.table = objective, objective.recipe.probe
        self.captions = list(captions)[: self.table.num_prompts]
        self.reward, self.held_out = reward, held_out

    def is_due(self, iteration: int, last: int) -> bool:
        """Whether to look after `iteration` finished iterations of `last`."""
        return self.table.every is not None and (iteration % self.table.every == 0 or iteration == last)

    def begin(self, state: State) -> None:
        """Measure the student before its first update."""
        if self.table.every is not None:
            state.probe["before"] = {name: values.tolist() for name, values in self._measure(state).items()}

    def check(self, state: State) -> tuple[dict[str, float], str | None]:
        """Figures of the student now, and a warning if one of them has collapsed that had not before.

        A figure is outside when the whole 95% interval of its change lies beyond its band, or when it is not a number;
        a collapse is a figure outside in `probe.streak` looks in a row. On request, statistics of pictures do not count
        while the reward is surely below its beginning.
        """
        before = {name: torch.tensor(values, dtype=torch.float64) for name, values in state.probe["before"].items()}
        figures: dict[str, float] = {}
        outside: dict[str, float] = {}
        has_fallen = False
        for name, now in self._measure(state).items():
            draw = generator(self.objective.recipe.train.seed, 0, state.iteration, f"probe/bootstrap/{name}")
            change, low, high = relative_change(now, before[name], draw)
            figures |= {f"probe/{name}": now.mean().item(), f"probe_change/{name}": change}
            has_fallen |= name == "reward" and high < 0
            band = getattr(self.objective.recipe.bands, name, None)
            if band is None:
                continue
            # So asked that what is not a number is outside.
            inside = high >= -band and (low <= band or name in ONLY_A_FALL_COUNTS)
            figures[f"probe_outside/{name}"] = float(not inside)
            if not inside:
                outside[name] = change
        memory: dict[str, Any] = state.probe
        # Statistics of pictures may move as a student learns; variety and a judge beside the reward may not be lost.
        excused = has_fallen and self.table.excuse_when_reward_falls and outside.keys().isdisjoint(ONLY_A_FALL_COUNTS)
        streaks = memory["streaks"] = {
            name: memory.get("streaks", {}).get(name, 0) + 1 for name in outside if not excused
        }
        figures |= {"probe/outside": float(len(outside)), "probe/streak": float(max(streaks.values(), default=0))}
        told = memory["collapsed"]["changes"] if "collapsed" in memory else {}
        fresh = {
            name: outside[name] for name, streak in streaks.items() if streak >= self.table.streak and name not in told
        }
        if not fresh:
            return figures, None
        memory["collapsed"] = {"iteration": state.iteration, "changes": {}} | memory.get("collapsed", {})
        memory["collapsed"]["changes"] |= fresh
        moved = ", ".join(f"{name} {change:+.0%}" for name, change in fresh.items())
        rises = figures.get("probe_change/reward", 0.0) > 0
        reward = " while the probe's reward rises" if rises else ""
        warning = f"collapse at iteration {state.iteration}: {moved}{reward}; {remedy(self.objective.recipe)}"
        memory.setdefault("warnings", []).append(warning)
        return figures, warning

    @torch.no_grad()
    def _measure(self, state: State) -> dict[str, Tensor]:
        """Every figure of the student that would be shipped now, for each prompt, (P,) float64.

        Those of single pictures are means over a prompt's seeds.
        """
        recipe, family, num_seeds = self.objective.recipe, self.objective.family, self.table.num_seeds
        student = state.shipped
        rows: dict[str, list[Tensor]] = {}
        for index, caption in enumerate(self.captions):
            # Neither iteration nor seed of the data enters: always the same noise for the same prompt.
            places = range(index * num_seeds, (index + 1) * num_seeds)
            draws = Draws(recipe.train.seed, 0, places, family.device)
            texts = [caption] * num_seeds
            cond = family.encode(texts)
            z = draws.normal("probe/z", family.latent_shape)
            latents = self.objective.simulate(student, z, cond, draws, 0, None, "probe")
            # Statistics are in float64, which not every accelerator has.
            pictures = family.decode(latents).float().clamp(-1, 1).cpu()
            of_one = {name: statistic(pictures) for name, statistic in STATISTICS.items()}
            if self.reward is not None:
                of_one["reward"] = self.reward(latents, texts)
            if self.held_out is not None:
                of_one["held_out"] = self.held_out(pictures, texts)
            for name, values in (of_one | {"diversity": spread(pictures[None])}).items():
                rows.setdefault(name, []).append(values.cpu().double().mean())
        return {name: torch.stack(values) for name, values in rows.items()}
