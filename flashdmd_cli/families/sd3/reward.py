"""The latent reward model of SD3: adapters on the first half of the teacher's transformer, and their files.

No reward model of SD3 is published in LRM's form, so this is LRM's score (`LatentReward`) on a transformer: picture
tokens after a third, two thirds and all of the first half of the blocks, averaged over the picture. Only adapters, the
projection and the scale are trained; blocks and text encoders are those of the teacher, with which memory is shared.

A folder has reward.json (`FlowRewardConfig`), adapter.safetensors and projections.safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flashdmd_cli.families.base import Base
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.reward import LatentReward, RewardDesign, RewardText
from flashdmd_cli.families.sd3.family import SD3Family, first_half

CONFIG, ADAPTER, PROJECTIONS = "reward.json", "adapter.safetensors", "projections.safetensors"
NUM_DEPTHS = 3
HEAD = ("visual_projection.weight", "logit_scale")
"""Names of the tensors of `LatentReward.add_head`."""


@dataclass(frozen=True)
class FlowRewardConfig:
    """Metadata stored beside the weights."""

    base: str
    """Content hash of the teacher's denoiser."""
    timesteps: tuple[int, int]
    """Lowest and highest timestep, 1000 sigma, that the model was trained on."""
    guidance: float | None
    """Guidance w of the deepest feature, `u + w (c - u)`; None: no guidance."""
    lora_rank: int
    lora_alpha: float


class FlowReward(LatentReward):
    """Scores noisy latents at their own timestep. Higher is better; only scores for the same prompt are comparable."""

    def __init__(self, family: SD3Family, config: FlowRewardConfig) -> None:
        """An untrained model on the teacher of `family`, on its device; its adapters do not affect the teacher."""
        super().__init__()
        self.family, self.config = family, config
        half = Base(family, first_half(family.base.net)).twin()
        self.trunk = half.add_adapter("reward", config.lora_rank, config.lora_alpha)
        # Registered so that they are trained and saved; the rest of the trunk is the teacher's.
        self.adapter = nn.ParameterList(self.trunk.parameters)
        self.depths = depths(len(half.net.transformer_blocks))  # type: ignore[arg-type]
        net: Any = half.net
        self.add_head(len(self.depths) * net.inner_dim, net.config.pooled_projection_dim)
        self.to(family.device)

    @property
    def timesteps(self) -> tuple[int, int]:
        """Lowest and highest timestep that the model was trained on."""
        return self.config.timesteps

    @property
    def guidance(self) -> float | None:
        """Guidance of the deepest feature; None: no guidance."""
        return self.config.guidance

    def encode(self, prompts: Sequence[str]) -> RewardText:
        """Embeddings of prompts by the teacher's encoders, and of the empty prompt if the model has guidance."""
        num, guided = len(prompts), self.guidance is not None
        cond = self.family.encode([*prompts, ""] if guided else prompts)
        context, pooled = cond["context"], cond["pooled"]
        null = RewardText(context[num:], pooled[num:]) if guided else None
        return RewardText(context[:num], pooled[:num], null)

    def features(self, latents: Tensor, t: Tensor, text: RewardText) -> tuple[Tensor, Tensor]:
        """Picture tokens averaged over the picture, after all depths but the deepest (B, F), and after it (B, D)."""
        taps: list[Tensor] = []

        def keep(block: nn.Module, args: tuple[object, ...], output: tuple[Tensor, Tensor]) -> None:
            taps.append(output[1].float().mean(dim=1))

        blocks: Any = self.trunk.base.net.transformer_blocks
        hooks = [blocks[depth - 1].register_forward_hook(keep) for depth in self.depths]
        try:
            self.trunk.output(latents, t, Conditioning({"context": text.context, "pooled": text.pooled}))
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(taps[:-1], dim=1), taps[-1]


def depths(num_blocks: int) -> tuple[int, ...]:
    """Numbers of blocks after which features are read: up to `NUM_DEPTHS`, evenly spaced, the last after all."""
    steps = range(1, NUM_DEPTHS + 1)
    return tuple(dict.fromkeys(math.ceil(num_blocks * step / NUM_DEPTHS) for step in steps))


def new_reward(family: SD3Family, design: RewardDesign) -> FlowReward:
    """An untrained reward model on the teacher of `family`."""
    config = FlowRewardConfig(
        family.content_hash(), design.timesteps, design.guidance, design.lora_rank, design.lora_alpha
    )
    return FlowReward(family, config)


def save_reward(model: FlowReward, folder: Path, half: bool = False) -> None:
    """Write a reward model; `half` stores the adapters in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = torch.float16 if half else torch.float32
    weights = {name: value.detach().cpu().to(stored).contiguous() for name, value in model.trunk.weights().items()}
    save_file(weights, folder / ADAPTER)
    own = model.state_dict()
    save_file({name: own[name].detach().cpu().clone() for name in HEAD}, folder / PROJECTIONS)
    (folder / CONFIG).write_text(json.dumps(asdict(model.config), indent=2) + "\n", encoding="utf-8")


def load_reward(folder: Path, family: SD3Family) -> FlowReward:
    """Load a reward model, frozen, on the device of `family`.

    Raises FileNotFoundError for missing files, ValueError for unsuitable ones, OSError for unreadable ones.
    """
    for name in (CONFIG, ADAPTER, PROJECTIONS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"has no {name}, which a reward model of SD3 has")
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config = FlowRewardConfig(**values | {"timesteps": tuple(values["timesteps"])})
    if config.base != family.content_hash():
        raise ValueError("was trained on another teacher, without whose weights it cannot be used")
    with torch.random.fork_rng(devices=[]):
        model = FlowReward(family, config)
    _fill(model.trunk.weights(), load_file(folder / ADAPTER), ADAPTER)
    _fill({name: model.state_dict()[name] for name in HEAD}, load_file(folder / PROJECTIONS), PROJECTIONS)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _fill(live: Mapping[str, Tensor], values: Mapping[str, Tensor], name: str) -> None:
    """Copy the tensors of a file into those of the same names; ValueError unless names and shapes agree."""
    for key in sorted({*live, *values}):
        if key not in live:
            raise ValueError(f"{name}: {key} is not part of the model that {CONFIG} describes")
        if key not in values:
            raise ValueError(f"{name}: {key} is missing")
        if live[key].shape != values[key].shape:
            raise ValueError(f"{name}: {key} is {tuple(values[key].shape)}, not {tuple(live[key].shape)}")
        live[key].copy_(values[key])
