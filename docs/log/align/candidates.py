"""How well reward models order the candidates of a preference step, beside one look at what becomes of them.

candidates.py STUDENT REWARD [REWARD ...]     STUDENT: the folder student/ of a distilled checkpoint

For 64 prompts and the steps to 749 and 499: eight candidates from one state, as `align` draws them, each drawn on to
its end twice with other noise. A picture is right when the inspector reads all that its caption says and there is no
third object. Told are, within prompts, the correlation of score and rightness, and how often the best and the worst by
score become right. `the other continuation` orders by one noisy look at the truth, the other of the two, and is held
against one; a score that knew each candidate's chance of coming right would reach more, sqrt(2r / (1 + r)) against the
mean of both, where r is that row's correlation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from flashdmd_cli.cli.drawing import load_family
from flashdmd_cli.cli.reward_source import load_reward_model
from flashdmd_cli.models.family import Conditioning
from torch import Tensor

from flashdmd_cli.core.rollout import at, rollout
from flashdmd_cli.core.schedules import add_noise
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.shapes.captions import captions
from flashdmd_cli.shapes.counting import count_objects
from flashdmd_cli.shapes.inspector import load_inspector
from flashdmd_cli.shapes.world import sample_attributes

NUM, CANDIDATES, SEED = 64, 8, 3

generator = torch.Generator().manual_seed(SEED)
family = load_family(asset("shapes-sdxl"))
inspector = load_inspector(asset("inspector"))
student = family.load_network(Path(sys.argv[1]))
rewards = {folder: load_reward_model(Path(folder), family) for folder in sys.argv[2:]}
schedule, timesteps = family.schedule, list(family.grid(4).timesteps)
wanted = sample_attributes(NUM, generator)
texts = captions(wanted, generator)
each = torch.arange(NUM).repeat_interleave(CANDIDATES)


def noise(num: int) -> Tensor:
    return torch.randn(num, *family.latent_shape, generator=generator)


def denoise(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    return family.predict_x0(student, x, t, cond)


def rightness(state: Tensor, index: int, cond: Conditioning) -> Tensor:
    """Draw on from grid step `index` and look, (NUM, CANDIDATES) of 0 and 1."""
    latents = rollout(
        lambda x, t: denoise(x, t, cond), schedule, timesteps, state, lambda _: noise(len(state)), start=index
    )
    pictures = family.decode(latents).float().clamp(-1, 1)
    right = (inspector.read(pictures).attributes == wanted[each]).all(dim=1) & (count_objects(pictures) <= 2)
    return right.float().view(NUM, CANDIDATES)


def correlation(a: Tensor, b: Tensor) -> float:
    """Within prompts."""
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    return ((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()).item()


print("| step to | ordered by | correlation | best | worst |\n|---|---|---|---|---|")
with torch.no_grad():
    of_prompt = family.encode(texts)
    of_candidate = of_prompt[each]
    state = noise(NUM)
    for index in (0, 1):
        x0 = denoise(state, at(timesteps[index], state), of_prompt)
        level = timesteps[index + 1]
        candidates = add_noise(schedule, x0.repeat_interleave(CANDIDATES, 0), noise(len(each)), at(level, each))
        one, two = (rightness(candidates, index + 1, of_candidate) for _ in range(2))
        orders = {"the other continuation": two} | {
            name: model.score(candidates, at(level, candidates), model.encode([texts[i] for i in each])).view_as(one)
            for name, model in rewards.items()
        }
        for name, scores in orders.items():
            truth = one if scores is two else (one + two) / 2
            best, worst = (
                truth.gather(1, index_of(scores, dim=1)[:, None]).mean() for index_of in (torch.argmax, torch.argmin)
            )
            print(f"| {level} | {name} | {correlation(scores, truth):.2f} | {best:.2f} | {worst:.2f} |")
        state = candidates.view(NUM, CANDIDATES, *candidates.shape[1:])[:, 0]
