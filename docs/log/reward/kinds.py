"""How often the embedded reward model finds the right picture, by what is wrong with the other one.

kinds.py REWARD [REWARD ...]      200 rendered pairs of each kind, noise of its own for each picture; Markdown
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from flashdmd_cli.cli.drawing import load_family
from flashdmd_cli.cli.reward_source import load_reward_model
from flashdmd_cli.models.reward import LatentRewardModel
from torch import Tensor

from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.shapes.captions import captions
from flashdmd_cli.shapes.render import render
from flashdmd_cli.shapes.world import ATTRIBUTES, Scenes, add_object, sample_attributes, sample_scenes
from flashdmd_cli.training.reward import noisy_scores

NUM, SEED = 200, 77
LEVELS = (1, 249, 499, 749)

generator = torch.Generator().manual_seed(SEED)
family = load_family(asset("shapes-sdxl"))
wanted = sample_attributes(NUM, generator)
texts = captions(wanted, generator)


def scenes(attributes: Tensor = wanted) -> Scenes:
    return sample_scenes(NUM, generator, attributes=attributes)


def one_wrong() -> Tensor:
    """One attribute of each row changed."""
    sizes = torch.tensor([len(values) for values in ATTRIBUTES.values()])
    column = torch.randint(len(sizes), (NUM,), generator=generator)
    step = 1 + (torch.rand(NUM, generator=generator) * (sizes[column] - 1)).long()
    changed, rows = wanted.clone(), torch.arange(NUM)
    changed[rows, column] = (wanted[rows, column] + step) % sizes[column]
    return changed


def latents(drawn: Scenes) -> Tensor:
    return family.encode_pictures(render(drawn, generator))


right, again = latents(scenes()), latents(scenes())
wrong = {
    "one attribute wrong": latents(scenes(one_wrong())),
    "a third object": latents(add_object(scenes(), generator)),
    "another caption's picture": latents(scenes(sample_attributes(NUM, generator))),
    "nothing wrong (chance)": again,
}


@torch.no_grad()
def found(model: LatentRewardModel, losers: Tensor, level: int) -> float:
    noise = torch.randn((2, *right.shape), generator=generator)
    at = torch.full((NUM,), level)
    winner, loser = noisy_scores(model, family, torch.stack([right, losers]), texts, at, noise)
    return (winner > loser).float().mean().item()


print(f"| reward model | the other picture | {' | '.join(map(str, LEVELS))} |")
print("|---|---|" + "---|" * len(LEVELS))
for folder in sys.argv[1:]:
    reward = load_reward_model(Path(folder), family)
    for kind, losers in wrong.items():
        cells = " | ".join(f"{found(reward, losers, level):.3f}" for level in LEVELS)
        print(f"| {Path(folder).name} | {kind} | {cells} |")
