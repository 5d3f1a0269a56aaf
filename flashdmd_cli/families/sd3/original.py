"""SD3 in the layout of its original code: one file, which ComfyUI and diffusers' `from_single_file` read.

The transformer has the names of Stability AI's `sd3-ref`, the text encoders those of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.files import DENOISER, VAE
from flashdmd_cli.families.sdxl.original import vae_tensors
from flashdmd_cli.families.stored import Stored, joined

ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
_ENDS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
"""Modules outside of the blocks."""
_STREAMS = {
    "x_block": {
        "norm1.linear": "adaLN_modulation.1",
        "ff.net.0.proj": "mlp.fc1",
        "ff.net.2": "mlp.fc2",
        "attn.norm_q": "attn.ln_q",
        "attn.norm_k": "attn.ln_k",
        "attn.to_out.0": "attn.proj",
        "attn2.norm_q": "attn2.ln_q",
        "attn2.norm_k": "attn2.ln_k",
        "attn2.to_out.0": "attn2.proj",
    },
    "context_block": {
        "norm1_context.linear": "adaLN_modulation.1",
        "ff_context.net.0.proj": "mlp.fc1",
        "ff_context.net.2": "mlp.fc2",
        "attn.norm_added_q": "attn.ln_q",
        "attn.norm_added_k": "attn.ln_k",
        "attn.to_add_out": "attn.proj",
    },
}
"""Stream of a block -> its layers, which diffusers distinguishes by their own names."""
_JOINED = {
    "attn.to_q": ("x_block.attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    "attn2.to_q": ("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
    "attn.add_q_proj": ("context_block.attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
}
"""First of three layers -> the layer that they are in the original code, one below the other."""
_FOLLOWING = {layer for _, layers in _JOINED.values() for layer in layers[1:]}


def single_file(
    parts: Mapping[str, Mapping[str, Stored]],
    configs: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any],
) -> dict[str, Stored]:
    """All tensors of a pipeline under their original names, sorted; the third text encoder is optional."""
    tensors = {DENOISER + name: value for name, value in transformer_tensors(parts["transformer"]).items()}
    tensors |= {VAE + name: value for name, value in vae_tensors(parts["vae"], configs["vae"]).items()}
    for part, name in ENCODERS.items():
        tensors |= {f"text_encoders.{name}.transformer.{key}": value for key, value in parts.get(part, {}).items()}
    return dict(sorted(tensors.items()))


def transformer_tensors(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of the transformer under their original names."""
    blocks = [int(match[1]) for name in tensors if (match := re.match(r"transformer_blocks\.(\d+)\.", name))]
    found = {}
    for name, value in tensors.items():
        if match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)", name):
            block, layer, kind = match.groups()
            if layer in _FOLLOWING:
                continue
            if layer in _JOINED:
                new, layers = _JOINED[layer]
                value = joined(tensors[f"transformer_blocks.{block}.{each}.{kind}"] for each in layers)
            else:
                new = next((f"{stream}.{at[layer]}" for stream, at in _STREAMS.items() if layer in at), "")
            # The last block's context stream, of which nothing but keys and values is used, modulates by scale and
            # shift; diffusers has the two in the other order.
            swaps = layer == "norm1_context.linear" and int(block) == max(blocks)
            original = f"joint_blocks.{block}.{new}.{kind}" if new else ""
        else:
            module = next((each for each in _ENDS if name == each or name.startswith(f"{each}.")), "")
            original = _ENDS[module] + name.removeprefix(module) if module else ""
            swaps = module == "norm_out.linear"
        if not original:
            raise Unfit(
                f"transformer: {name} has no name in SD3's original layout", "export it with --format diffusers"
            )
        found[original] = value.changed(_halves_swapped) if swaps else value
    return found


def _halves_swapped(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2)
    return torch.cat([second, first])
