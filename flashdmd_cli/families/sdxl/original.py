"""SDXL in the layout of its original code: one file, which ComfyUI, A1111 and diffusers' `from_single_file` read.

Tensor names of diffusers and transformers are translated to those of Stability AI's `generative-models`: the inverse of
what diffusers does when it reads such a file (`families/original.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.files import DENOISER, VAE
from flashdmd_cli.families.sdxl.layout import EMBEDDERS
from flashdmd_cli.families.stored import Stored, constant, joined

LOGIT_SCALE = 4.6052
"""Logarithm of the temperature of CLIP's contrastive loss: in published files, used by none of their readers."""

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
"""Modules outside of the down and up blocks."""
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
    "down_blocks": "down",
    "up_blocks": "up",
}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def single_file(
    parts: Mapping[str, Mapping[str, Stored]],
    configs: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any],
) -> dict[str, Stored]:
    """All tensors of a pipeline under their original names, sorted.

    `parts` and `configs`: tensors and configuration of `unet`, `vae`, `text_encoder` and `text_encoder_2`.
    `scheduler` is the configuration of the student's scheduler; readers recognise v-prediction and zero terminal SNR by
    two empty tensors.
    """
    tensors = {DENOISER + unet_name(name, configs["unet"]): value for name, value in parts["unet"].items()}
    tensors |= {VAE + name: value for name, value in vae_tensors(parts["vae"], configs["vae"]).items()}
    prefix = f"{EMBEDDERS[0]}transformer."
    tensors |= {prefix + name: value for name, value in parts["text_encoder"].items()}
    positions = configs["text_encoder"]["max_position_embeddings"]
    tensors[f"{prefix}text_model.embeddings.position_ids"] = constant(torch.arange(positions)[None])
    open_clip = open_clip_tensors(parts["text_encoder_2"])
    tensors |= {f"{EMBEDDERS[1]}model.{name}": value for name, value in open_clip.items()}
    if scheduler.get("prediction_type") == "v_prediction":
        tensors["v_pred"] = constant(torch.empty(0))
    if scheduler.get("rescale_betas_zero_snr"):
        tensors["ztsnr"] = constant(torch.empty(0))
    return dict(sorted(tensors.items()))


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """The original name of a tensor or layer of the UNet."""
    for ours, theirs in _UNET_ENDS.items():
        if name.startswith(f"{ours}.") or name == ours:
            inner = name.removeprefix(ours)
            return theirs + (_swapped(inner, _RESNET) if ".resnets." in ours else inner)
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    layers = config["layers_per_block"]
    if match is None or not isinstance(layers, int):
        raise Unfit(f"unet: {name} has no name in SDXL's original layout", "export it with --format diffusers")
    side, kind, rest = match[1], match[3], match[5]
    block, index = int(match[2]), int(match[4])
    # The original code counts the layers of all blocks in one list. Each down block has its resnets and a downsampler,
    # after one convolution; each up block has one resnet more, and its upsampler belongs to the last of them.
    first = block * (layers + 1) + (side == "down")
    prefix = "input_blocks" if side == "down" else "output_blocks"
    if kind == "downsamplers":
        return f"{prefix}.{first + layers}.0.op{rest.removeprefix('conv')}"
    if kind == "upsamplers":
        has_attention = "CrossAttn" in config["up_block_types"][block]
        return f"{prefix}.{first + layers}.{1 + has_attention}.{rest}"
    return f"{prefix}.{first + index}.{int(kind == 'attentions')}." + (
        _swapped(rest, _RESNET) if kind == "resnets" else rest
    )


def vae_tensors(tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> dict[str, Stored]:
    """The tensors of the autoencoder under their original names.

    The original code counts its up blocks from the output, and its attention consists of 1 x 1 convolutions.
    """
    last = len(config["up_block_types"]) - 1
    found = {}
    for name, value in tensors.items():
        name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up_blocks.{last - int(match[1])}", name)
        is_matrix = "attentions" in name and len(value.shape) == 2
        found[_swapped(name, _VAE)] = value.changed(lambda matrix: matrix[:, :, None, None]) if is_matrix else value
    return found


def open_clip_tensors(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of the second text encoder under the names of OpenCLIP, which has query, key and value in one
    matrix, and its projection transposed."""
    found: dict[str, Stored] = {"logit_scale": constant(torch.tensor(LOGIT_SCALE))}
    for name, value in tensors.items():
        short = name.removeprefix("text_model.")
        if short == "text_projection.weight":
            found["text_projection"] = value.changed(lambda matrix: matrix.T)
        elif match := re.fullmatch(r"(.*self_attn\.)q_proj\.(weight|bias)", name):
            parts = [tensors[f"{match[1]}{which}_proj.{match[2]}"] for which in "qkv"]
            found[_swapped(short.replace(f"q_proj.{match[2]}", f"in_proj_{match[2]}"), _OPEN_CLIP)] = joined(parts)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            found[_swapped(short, _OPEN_CLIP)] = value
    return found


def kohya_name(layer: str, config: Mapping[str, Any]) -> str:
    """Name of a layer of the UNet in LoRA files of kohya's scripts, which ComfyUI and A1111 read."""
    return "lora_unet_" + unet_name(layer, config).replace(".", "_")


def _swapped(name: str, table: Mapping[str, str]) -> str:
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name
