"""A stock pipeline as one file in the layout of its model's original code, for tests of reading it."""

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
MMDIT = {
    "pos_embed.pos_embed": "pos_embed", "pos_embed.proj.": "x_embedder.proj.", "proj_out.": "final_layer.linear.",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2", "transformer_blocks.": "joint_blocks.",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0", "attn.norm_q": "x_block.attn.ln_q",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2", "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k", "attn.to_qkv": "x_block.attn.qkv",
    "attn.add_qkv": "context_block.attn.qkv", "attn2.to_qkv": "x_block.attn2.qkv", "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj", "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2", "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
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


def without_prefix(name: str) -> str:
    """The name of a text encoder's tensor before transformers 5.6."""
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def open_clip(encoder: Any) -> dict[str, Tensor]:
    """A text encoder with the names of OpenCLIP."""
    held = {without_prefix(name): value for name, value in encoder.state_dict().items()}
    tensors: dict[str, Tensor] = {"logit_scale": torch.tensor(4.6)}
    for name, value in held.items():
        if found := re.fullmatch(r"(.*self_attn\.)q_proj\.(weight|bias)", name):
            joined = torch.cat([held[f"{found[1]}{part}_proj.{found[2]}"] for part in "qkv"])
            tensors[swapped(found[1], CLIP) + f"in_proj_{found[2]}"] = joined
        elif not re.search(r"self_attn\.[kv]_proj", name) and not name.startswith("text_projection"):
            tensors[swapped(name, CLIP)] = value
    # Stable Diffusion 2 does not use the projection, but its files have it.
    width = encoder.config.hidden_size
    tensors["text_projection"] = (
        held["text_projection.weight"].T if "text_projection.weight" in held else torch.eye(width)
    )
    return tensors


def mmdit(net: Any) -> dict[str, Tensor]:
    """The transformer of SD3 under its original names."""
    held, tensors = net.state_dict(), {}
    last = f"joint_blocks.{net.config.num_layers - 1}.context_block.adaLN"
    for name, value in held.items():
        if found := re.fullmatch(r"(.*\.attn2?\.)(to|add)_q(_proj)?\.(weight|bias)", name):
            parts = [held[f"{found[1]}{found[2]}_{part}{found[3] or ''}.{found[4]}"] for part in "qkv"]
            name, value = f"{found[1]}{found[2]}_qkv.{found[4]}", torch.cat(parts)
        elif re.search(r"\.(to|add)_[kv](_proj)?\.", name):
            continue
        name = swapped(name, MMDIT)
        if name.startswith((last, "final_layer.adaLN")):  # shift and scale are the other way round
            value = torch.cat(value.chunk(2)[::-1])
        tensors[name] = value
    return tensors


def original(pipeline: Any) -> dict[str, Tensor]:
    """Every tensor of a pipeline under its original name."""
    tensors: dict[str, Tensor] = {}

    def add(prefix: str, part: dict[str, Tensor]) -> None:
        tensors.update({prefix + name: value for name, value in part.items()})

    if (unet := getattr(pipeline, "unet", None)) is not None:
        attended = {i for i, block in enumerate(unet.up_blocks) if getattr(block, "attentions", None)}
        layers = unet.config.layers_per_block
        add("model.diffusion_model.", {unet_name(n, layers, attended): value for n, value in unet.state_dict().items()})
    else:
        add("model.diffusion_model.", mmdit(pipeline.transformer))
    num = len(pipeline.vae.config.up_block_types)
    for name, value in pipeline.vae.state_dict().items():
        name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{num - 1 - int(m[1])}", name)
        # Its attention is made of 1 x 1 convolutions there.
        value = value[:, :, None, None] if "attentions" in name and value.ndim == 2 else value
        tensors["first_stage_model." + swapped(name, VAE)] = value
    first = {without_prefix(name): value for name, value in pipeline.text_encoder.state_dict().items()}
    first["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    match type(pipeline).__name__:
        case "StableDiffusionXLPipeline":
            add("conditioner.embedders.0.transformer.", first)
            add("conditioner.embedders.1.model.", open_clip(pipeline.text_encoder_2))
        case "StableDiffusion3Pipeline":
            add("text_encoders.clip_l.transformer.", first)
            add("text_encoders.clip_g.transformer.", pipeline.text_encoder_2.state_dict())
        case _ if unet.config.use_linear_projection:  # Stable Diffusion 2
            add("cond_stage_model.model.", open_clip(pipeline.text_encoder))
        case _:
            add("cond_stage_model.transformer.", first)
    return {name: value.contiguous().clone() for name, value in tensors.items()}


def write_original(pipeline: Any, path: Path, **more: Tensor) -> Path:
    """Write it, with `more` tensors beside."""
    save_file(original(pipeline) | more, path)
    return path
