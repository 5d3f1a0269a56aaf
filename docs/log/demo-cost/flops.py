"""Floating-point operations of the demo's parts: products of matrices and convolutions, forward and backward.

flops.py RECIPE PICTURES [key=value ...]     PICTURES are those that every row of the demo draws.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from flashdmd_cli.cli.training_run import find_sam
from flashdmd_cli.models.sdxl import SDXLFamily
from torch.utils.flop_counter import FlopCounterMode

from flashdmd_cli.core.rollout import at
from flashdmd_cli.data.shards import Batch
from flashdmd_cli.evaluation.generate import Sampler, generate
from flashdmd_cli.runs.randomness import generator
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.training.distill import iteration
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective

CAPTION = "a plain red circle above a striped blue ring"


class Rows:
    """Random pictures, all with one caption: cost does not depend on what they show."""

    def batch(self, step: int, rank: int = 0, world: int = 1, batch: int = 1, seed: int = 0) -> Batch:
        return Batch(torch.rand(batch, 3, 64, 64) * 2 - 1, [CAPTION] * batch)


def cost(call: Callable[[], object]) -> float:
    """TFLOP of one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e12


def main() -> None:
    drawn_by_each = int(sys.argv[2])
    recipe = load_recipe(sys.argv[1], sys.argv[3:])
    family, n = SDXLFamily.load(asset("shapes-sdxl")), recipe.train.batch
    state = State.new(recipe, family, find_sam(recipe))
    o = Objective(recipe, family, family.grid(recipe.grid.steps))
    x, cond = torch.randn(n, *family.latent_shape), family.encode([CAPTION] * n)
    net, heads = state.student.net, state.discriminator.net
    pictures = torch.rand(n, 3, 64, 64) * 2 - 1
    t = at(500, x)

    with torch.no_grad():
        one = {
            "denoiser, forward": lambda: family.predict_x0(net, x, t, cond),
            "autoencoder, decode": lambda: family.decode(x),
            "SAM": lambda: heads.look(pictures),
            "text encoders": lambda: family.encode([CAPTION] * n),
        }
        print(f"one pass of {n} pictures, GFLOP a picture")
        for name, call in one.items():
            print(f"  {name:26s} {1000 * cost(call) / n:6.2f}")
    with torch.no_grad():
        features = heads.look(pictures)
    both = cost(lambda: torch.stack([logits.mean() for logits in heads(features)]).sum().backward())
    print(f"  {'heads, forward + backward':26s} {1000 * both / n:6.2f}")

    print("an iteration, TFLOP, by the grid step that it draws")
    seen: dict[int, float] = {}
    for number in range(40):
        draw = generator(recipe.train.seed, 0, number, "grid step")
        index = recipe.dm_step_indices[int(torch.randint(len(recipe.dm_step_indices), (1,), generator=draw))]
        if index not in seen:
            seen[index] = cost(lambda number=number: iteration(recipe, o, state, Rows(), number))
    print("  " + "   ".join(f"step {index}: {seen[index]:.3f}" for index in sorted(seen)))
    mean = sum(seen.values()) / len(seen)
    training = mean * recipe.train.iterations
    print(f"  mean {mean:.3f}, {recipe.train.iterations} of them {training:.1f}")

    print(f"drawing, TFLOP, {drawn_by_each} pictures of every row")
    guidance, drawing = recipe.dm.guidance, 0.0
    rows: dict[str, tuple[Sampler, int, float]] = {
        "student_4": ("few_step", 4, 1.0), "teacher_30": ("ddim", 30, guidance),
        "teacher_4_ddim": ("ddim", 4, guidance), "teacher_4_stochastic": ("stochastic", 4, guidance),
    }  # fmt: skip
    for name, (sampler, steps, weight) in rows.items():
        drawn = (
            cost(lambda s=sampler, k=steps, w=weight: generate(family, net, [CAPTION] * 2, 0, s, k, w))
            / 2
            * drawn_by_each
        )
        print(f"  {name:26s} {drawn:6.1f}")
        drawing += drawn
    print(f"  all {drawing:.1f}; with the training {training + drawing:.1f}")


if __name__ == "__main__":
    main()
