"""CLIP networks of transformers: PickScore, and the trunk of MPS, both a CLIP ViT-H/14."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.initialization import no_init_weights

from flashdmd_cli.evaluation.scorers.exact import exact
from flashdmd_cli.evaluation.scorers.files import fill, read_json, read_tensors
from flashdmd_cli.evaluation.scorers.texts import TextFeatures, clip_tokens

CONFIG, WEIGHTS = "config.json", "model.safetensors"
VIT_H: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "hidden_act": "gelu", "projection_dim": 1024, "eos_token_id": 2,
    },
    "vision_config": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
        "patch_size": 14, "hidden_act": "gelu", "projection_dim": 1024,
    },
}  # fmt: skip
"""The settings of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`."""


def new_clip(config: Mapping[str, Any]) -> CLIPModel:
    """A CLIP whose weights are not set yet."""
    with no_init_weights():
        return CLIPModel(CLIPConfig(**{key: config[key] for key in VIT_H if key in config}))


def load_clip_h(tensors: Mapping[str, Tensor], config: Mapping[str, Any], origin: Path) -> CLIPModel:
    """A CLIP with the tensors of a file, whose lists of positions (written by old versions) are left out."""
    own = {name: value for name, value in tensors.items() if not name.endswith(".position_ids")}
    return fill(new_clip(config), own, origin)


class PickScore:
    """PickScore: the cosine of picture and prompt, before the factor 100 of the CLIP."""

    def __init__(self, net: Any, device: torch.device) -> None:
        self.net = net.to(device)
        self.device = device
        self.size: int = net.config.vision_config.image_size
        self.texts = TextFeatures(self._encode)

    @exact
    def _encode(self, prompts: Sequence[str]) -> Tensor:
        pooled = self.net.text_model(clip_tokens(prompts).to(self.device)).pooler_output
        return F.normalize(self.net.text_projection(pooled), dim=-1)

    @exact
    def cosine(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine of each picture and its prompt, (B,), on the CPU, for pixels (B, 3, size, size)."""
        pooled = self.net.vision_model(pixels.to(self.device)).pooler_output
        images = F.normalize(self.net.visual_projection(pooled), dim=-1)
        return (images * self.texts(prompts)).sum(dim=-1).cpu()


def load_pick_score(folder: Path, device: torch.device) -> PickScore:
    """PickScore from the folder of its repository."""
    net = load_clip_h(read_tensors(folder / WEIGHTS), read_json(folder / CONFIG), folder / WEIGHTS)
    return PickScore(net, device)
