"""A stock SDXL pipeline as one file in the layout of SDXL's original code, for tests of reading it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1.": "in_layers.0.", "conv1.": "in_layers.2.", "time_emb_proj.": "emb_layers.1.", "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.", "conv_shortcut.": "skip_connection.",
}  # fmt: skip
UNET = {
    "conv_in.": "input_blocks.0.0.", "time_embedding.linear_1.": "time_embed.0.", "conv_out.": "out.2.",
    "time_embedding.linear_2.": "time_embed.2.", "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.", "conv_norm_out.": "out.0.", "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.", "mid_block.resnets.1.": "middle_block.2.",
}  # fmt: skip
VAE = {
    "conv_norm_out": "norm_out", "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
    "to_out.0": "proj_out", "conv_shortcut": "nin_shortcut", "resnets": "block", "downsamplers.0": "downsample",
    "upsamplers.0": "upsample", "down_blocks": "down",
}  # fmt: skip
CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.", "text_model.encoder.layers.": "transformer.resblocks.",
    "self_attn.": "attn.", "layer_norm1.": "ln_1.", "layer_norm2.": "ln_2.", "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}  # fmt: skip


def swapped(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def unet_name(name: str, layers: int, attended: set[int]) -> str:
    """The original name of a tensor of a UNet with `layers` resnets a block; up blocks `attended` have attention."""
    for old, new in UNET.items():
        if name.startswith(old):
            return swapped(new + name.removeprefix(old), RESNET if "resnets" in old else {})
    side, block, kind, index, rest = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name).groups()  # type: ignore[union-attr]
    per = layers + (side == "up")
    at = int(block) * (layers + 1) + int(index) + (side == "down")
    if kind == "downsamplers":
        return f"input_blocks.{int(block) * (layers + 1) + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{int(block) * (layers + 1) + per - 1}.{1 + (int(block) in attended)}.{rest}"
    inner = f"0.{swapped(rest, RESNET)}" if kind == "resnets" else f"1.{rest}"
    return f"{'input' if side == 'down' else 'output'}_blocks.{at}.{inner}"


def original(pipeline: Any) -> dict[str, Tensor]:
    """Every tensor of a pipeline under its original name."""
    tensors: dict[str, Tensor] = {}
    unet, vae = pipeline.unet, pipeline.vae
    attended = {i for i, block in enumerate(unet.up_blocks) if getattr(block, "attentions", None)}
    for name, value in unet.state_dict().items():
        tensors["model.diffusion_model." + unet_name(name, unet.config.layers_per_block, attended)] = value
    num = len(vae.config.up_block_types)
    for name, value in vae.state_dict().items():
        name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{num - 1 - int(m[1])}", name)
        # Its attention is made of 1 x 1 convolutions there.
        value = value[:, :, None, None] if "attentions" in name and value.ndim == 2 else value
        tensors["first_stage_model." + swapped(name, VAE)] = value
    prefix = "conditioner.embedders.0.transformer.text_model."
    for name, value in pipeline.text_encoder.state_dict().items():
        tensors[prefix + name.removeprefix("text_model.")] = value
    tensors[prefix + "embeddings.position_ids"] = torch.arange(24)[None]
    held = pipeline.text_encoder_2.state_dict()
    prefix = "conditioner.embedders.1.model."
    for name, value in held.items():
        if found := re.fullmatch(r"(.*self_attn\.)q_proj\.(weight|bias)", name):
            joined = torch.cat([held[f"{found[1]}{part}_proj.{found[2]}"] for part in "qkv"])
            tensors[prefix + swapped(found[1], CLIP) + f"in_proj_{found[2]}"] = joined
        elif not re.search(r"self_attn\.[kv]_proj", name) and not name.startswith("text_projection"):
            tensors[prefix + swapped(name, CLIP)] = value
    tensors[prefix + "text_projection"] = held["text_projection.weight"].T
    tensors[prefix + "logit_scale"] = torch.tensor(4.6)
    return {name: value.contiguous().clone() for name, value in tensors.items()}


def write_original(pipeline: Any, path: Path, **more: Tensor) -> Path:
    """Write it, with `more` tensors beside."""
    save_file(original(pipeline) | more, path)
    return path
