"""CLIP networks of open_clip: OpenAI's ViT-B/32 for CLIP score, and HPSv2, which is a ViT-H/14 with other weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from flashdmd_cli.evaluation.scorers.exact import exact
from flashdmd_cli.evaluation.scorers.files import fill, read_json, read_tensors
from flashdmd_cli.evaluation.scorers.texts import TextFeatures

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
_LEFT_OVER = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Entries of some files that are settings, not weights."""


class OpenClip:
    """Features of pictures and of prompts, of length one."""

    def __init__(self, net: Any, device: torch.device) -> None:
        self.net = net.to(device)
        self.device = device
        self.size: int = net.visual.image_size[0]
        self._tokenize = open_clip.SimpleTokenizer(context_length=net.context_length)
        self.texts = TextFeatures(self._encode)

    @exact
    def images(self, pixels: Tensor) -> Tensor:
        """(B, D) of normalised pixels (B, 3, size, size)."""
        found: Tensor = self.net.encode_image(pixels.to(self.device))
        return F.normalize(found, dim=-1)

    @exact
    def _encode(self, prompts: Sequence[str]) -> Tensor:
        found: Tensor = self.net.encode_text(self._tokenize(list(prompts)).to(self.device))
        return F.normalize(found, dim=-1)

    def cosine(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine of each picture and its prompt, (B,), on the CPU."""
        return (self.images(pixels) * self.texts(prompts)).sum(dim=-1).cpu()


def load_clip(folder: Path, device: torch.device) -> OpenClip:
    """A CLIP from a folder of open_clip's layout. The activation is the quick GELU, with which OpenAI trained: the
    architecture that open_clip calls `ViT-B-32` has another one."""
    model = dict(read_json(folder / CONFIG).get("model_cfg", {}))
    return OpenClip(_build(model | {"quick_gelu": True}, folder / WEIGHTS), device)


def load_hps(path: Path, device: torch.device) -> OpenClip:
    """HPSv2 from its file. An `open_clip_config.json` beside it may describe another size than ViT-H/14."""
    config = path.parent / CONFIG
    model = read_json(config)["model_cfg"] if config.is_file() else open_clip.get_model_config("ViT-H-14")
    return OpenClip(_build(model, path), device)


def _build(model: dict[str, Any], weights: Path) -> open_clip.CLIP:
    with torch.device("meta"):
        net = open_clip.CLIP(**{key: value for key, value in model.items() if key != "custom_text"})
    tensors = {name: value for name, value in read_tensors(weights).items() if name not in _LEFT_OVER}
    fill(net, tensors, weights)
    # Not part of the file: the causal mask of the text network.
    num = net.context_length
    net.attn_mask = torch.full((num, num), float("-inf")).triu(1)
    return net
