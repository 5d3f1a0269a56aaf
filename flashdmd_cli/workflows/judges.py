"""Scores of pictures for the collapse probe: by the reward model, and by a judge that training does not use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flashdmd_cli.workflows.inputs.kinds import is_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.training.collapse import Judge
    from flashdmd_cli.training.pairs import PairSampler


def reward_judge(sampler: PairSampler) -> Judge:
    """Scores of finished latents by the reward model.

    Noise is added at each level at which training scores candidates; the score is the mean over the levels.
    """
    from flashdmd_cli.core.rollout import at
    from flashdmd_cli.core.schedules import add_noise
    from flashdmd_cli.evaluation.generate import picture_noise

    def score(latents: Tensor, captions: Sequence[str]) -> Tensor:
        import torch

        rows = [picture_noise(latents.shape[1:], sampler.o.recipe.train.seed, i) for i in range(len(latents))]
        noise, text = torch.stack(rows).to(latents.device), sampler.reward.encode(captions)

        def score_at(level: float, timestep: float) -> Tensor:
            noisy = add_noise(sampler.o.family.schedule, latents, noise, at(level, latents))
            return sampler.score(noisy, timestep, text)

        return torch.stack([score_at(*each) for each in sampler.levels()]).mean(dim=0)

    return score


def held_out_judge(teacher: str, captions: Sequence[str]) -> Judge | None:
    """A judge that training does not use: on the embedded world, 1 for a picture that shows its caption, else 0.

    The inspector has to predict every attribute, and the counter no third object, which the inspector cannot detect.
    None for other teachers, or if a caption is not of the embedded world.
    """
    if not is_shapes(teacher):
        return None
    from flashdmd_cli.shapes.assets import asset
    from flashdmd_cli.shapes.captions import parse
    from flashdmd_cli.shapes.counting import count_objects
    from flashdmd_cli.shapes.inspector import load_inspector
    from flashdmd_cli.shapes.world import NUM_OBJECTS

    try:
        inspector: Any = load_inspector(asset("inspector"))
        for caption in captions:
            parse(caption)
    except (FileNotFoundError, ValueError):
        return None

    def score(pictures: Tensor, captions: Sequence[str]) -> Tensor:
        import torch

        wanted = torch.tensor([parse(caption) for caption in captions])
        right = (inspector.read(pictures.cpu()).attributes == wanted).all(dim=1)
        return (right & (count_objects(pictures) <= NUM_OBJECTS)).double()

    return score
