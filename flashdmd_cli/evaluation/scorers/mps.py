"""MPS, the Multi-dimensional Preference Score (Zhang et al., 2024), its overall dimension.

A CLIP ViT-H/14 gives features of all tokens of picture, prompt and condition. The picture's tokens attend to those
tokens of the prompt that resemble the condition, in four layers; the score is 100 times the cosine of the first of them
with the prompt's own feature. The layers are those of PaLM: no biases, one key and value head for all query heads,
SwiGLU, rotary positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashdmd_cli.evaluation.scorers.clip_h import CONFIG, VIT_H, WEIGHTS, load_clip_h
from flashdmd_cli.evaluation.scorers.exact import exact
from flashdmd_cli.evaluation.scorers.files import fill, read_json, read_tensors
from flashdmd_cli.evaluation.scorers.texts import TextFeatures, clip_tokens
from flashdmd_cli.runs.errors import InputError

CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
"""The words of the overall dimension."""
HEAD_WIDTH = 64
LAYERS = 4


class Norm(nn.Module):
    """Layer norm with a scale alone; the zeros that stand for its bias are part of the file."""

    bias: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], self.weight, self.bias)


class SwiGLU(nn.Module):
    """The first half of the channels times SiLU of the second."""

    def forward(self, tokens: Tensor) -> Tensor:
        values, gates = tokens.chunk(2, dim=-1)
        return F.silu(gates) * values


def split_heads(queries: Tensor) -> Tensor:
    """(B, N, heads * 64) as (B, heads, N, 64)."""
    return queries.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of queries (B, heads, N, 64) to one head of keys and values (B, M, 64), as (B, N, heads * 64)."""
    heads = queries.shape[1]
    keys, values = (each[:, None].expand(-1, heads, -1, -1) for each in (keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Tokens attend to a context, with a feed-forward network in parallel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = Norm(width)
        self.to_q = nn.Linear(width, heads * HEAD_WIDTH, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(heads * HEAD_WIDTH, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 8 * width, bias=False), SwiGLU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        keys, values = self.to_kv(context).chunk(2, dim=-1)
        return self.to_out(attend(split_heads(self.to_q(tokens)), keys, values, mask)) + self.ff(tokens)


class Rotary(nn.Module):
    """Frequencies of rotary positions, part of the file."""

    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10_000.0 ** -(torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., N, 64), each pair of channels (i, i + 32) turned by its position."""
        angles = torch.arange(tokens.shape[-2], device=tokens.device)[:, None] * self.inv_freq
        cos, sin = (torch.cat([each, each], dim=-1) for each in (angles.cos(), angles.sin()))
        first, second = tokens.chunk(2, dim=-1)
        return tokens * cos + torch.cat([-second, first], dim=-1) * sin


class SelfAttention(nn.Module):
    """Tokens attend to each other, with a feed-forward network in parallel; one projection computes all inputs."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.parts = (heads * HEAD_WIDTH, HEAD_WIDTH, HEAD_WIDTH, 8 * width)
        self.norm = Norm(width)
        self.rotary_emb = Rotary()
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * HEAD_WIDTH, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(4 * width, width, bias=False))

    def forward(self, tokens: Tensor) -> Tensor:
        queries, keys, values, wide = self.fused_attn_ff_proj(self.norm(tokens)).split(self.parts, dim=-1)
        queries, keys = self.rotary_emb(split_heads(queries)), self.rotary_emb(keys)
        return self.attn_out(attend(queries, keys, values)) + self.ff_out(wide)


class Residual(nn.Module):
    """A layer plus its input, under the name that the file has for it."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, tokens: Tensor, *others: Tensor) -> Tensor:
        return self.fn(tokens, *others) + tokens


class CrossModel(nn.Module):
    """Layers of attention to the prompt and to each other."""

    def __init__(self, width: int, heads: int, layers: int = LAYERS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Residual(CrossAttention(width, heads)), Residual(SelfAttention(width, heads))])
            for _ in range(layers)
        )

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Picture tokens (B, N, C), prompt tokens (B, M, C), `mask` (B, 1, 1, M) true where a prompt token counts."""
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            tokens = layer[1](layer[0](tokens, context, mask))
        return tokens


class Mps:
    """The score of pictures for prompts."""

    def __init__(self, clip: Any, cross: CrossModel, device: torch.device) -> None:
        self.clip, self.cross = clip.to(device), cross.to(device)
        self.device = device
        self.size: int = clip.config.vision_config.image_size
        self.texts = TextFeatures(self._encode, limit=256)  # 77 tokens each: 315 kB
        self.condition = self._encode([CONDITION])[0, :-1]

    @exact
    def _encode(self, prompts: Sequence[str]) -> Tensor:
        """Features of all tokens and, last, of the whole prompt, (B, 77 + 1, C)."""
        found = self.clip.text_model(clip_tokens(prompts).to(self.device))
        both = torch.cat([found.last_hidden_state, found.pooler_output[:, None]], dim=1)
        projected: Tensor = self.clip.text_projection(both)
        return projected

    @exact
    def score(self, pixels: Tensor, prompts: Sequence[str], threshold: float) -> Tensor:
        """100 times the cosine, (B,), on the CPU. A prompt token counts if its likeness to the condition is more than
        `threshold` times that of the most alike token of the same prompt: a score does not depend on the batch."""
        found = self.texts(prompts)
        tokens, whole = found[:, :-1], found[:, -1]
        likeness = (tokens @ self.condition.T).amax(dim=-1)
        mask = likeness / likeness.amax(dim=-1, keepdim=True) > threshold
        image: Tensor = self.clip.visual_projection(self.clip.vision_model(pixels.to(self.device)).last_hidden_state)
        seen = self.cross(image, tokens, mask[:, None, None])[:, 0]
        return (self.clip.logit_scale.exp() * F.cosine_similarity(whole, seen, dim=-1)).cpu()


def load_mps(folder: Path, device: torch.device) -> Mps:
    """MPS from `model.safetensors`; a `config.json` beside it may describe another size than ViT-H/14."""
    path, config = folder / WEIGHTS, folder / CONFIG
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "cross_model": {}}
    for name, value in read_tensors(path).items():
        part, _, rest = name.removeprefix("mps.").partition(".")
        if part not in parts:
            raise InputError(f"{path}: {name} is not part of MPS", "this needs the safetensors of RE-N-Y/mpsv1")
        parts[part][rest] = value
    described = read_json(config) if config.is_file() else {}
    clip = load_clip_h(parts["model"], described if "vision_config" in described else VIT_H, path)
    width = clip.config.projection_dim
    queries = parts["cross_model"].get("layers.0.0.fn.to_q.weight")
    heads = len(queries) // HEAD_WIDTH if queries is not None else 16
    return Mps(clip, fill(CrossModel(width, heads), parts["cross_model"], path), device)
