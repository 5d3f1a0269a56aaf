"""Strict loading of SDXL pipelines, from folders and from single files in the layout of SDXL's original code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.files import Source, vae_folder
from flashdmd_cli.families.reading import fill, new_network, read_network
from flashdmd_cli.families.sdxl.facts import SDXL
from flashdmd_cli.families.sdxl.layout import EMBEDDERS, UNET, VAE
from flashdmd_cli.families.stored import Stored, constant

KINDS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


def read_pipeline(source: Source, denoiser: torch.dtype = torch.float32) -> StableDiffusionXLPipeline:
    """Load the pipeline of a teacher in float32, its denoiser in the given format.

    Networks are loaded strictly, scheduler and tokenizers with `from_pretrained`.

    Raises Unfit, OSError or SafetensorError for missing or unsuitable files.
    """
    settings: dict[str, Any] = {}
    if source.weights.is_file():
        networks, settings = read_checkpoint(source, denoiser)
    else:
        networks = {
            part: read_network(KINDS[part], source.weights / part, denoiser if part == "unet" else torch.float32)
            for part in own_networks(source)
        }
    if source.vae is not None:
        networks["vae"] = read_vae(source.vae, source.folder / "vae")
    if source.denoiser is not None:
        networks["unet"] = read_network(UNet2DConditionModel, source.denoiser, denoiser)
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        source.folder, **networks, add_watermarker=False, local_files_only=True
    )
    if settings:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **settings)
    return pipeline


def own_networks(source: Source) -> list[str]:
    """The networks that are read from the teacher's own files, because nothing replaces them."""
    replaced = {"vae": source.vae, "unet": source.denoiser}
    return [part for part in SDXL.networks if replaced.get(part) is None]


def read_checkpoint(source: Source, denoiser: torch.dtype = torch.float32) -> tuple[dict[str, Any], dict[str, Any]]:
    """The networks of one file in the layout of SDXL's original code, and the scheduler settings that it implies.

    Networks are configured by `source.config`; diffusers translates the tensor names.
    """
    if source.config is None:
        raise Unfit("needs a folder with the configurations and tokenizers of its pipeline")
    tensors = load_file(source.weights)
    networks = {}
    for part in own_networks(source):
        net = new_network(KINDS[part], source.config / part)
        dtype = denoiser if part == "unet" else torch.float32
        networks[part] = fill(net, translated(part, tensors, net), f"{part} in {source.weights.name}", dtype)
    # Such a file has no configuration; trainers mark these settings by empty tensors with these names.
    settings: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in tensors else {}
    return networks, settings | ({"rescale_betas_zero_snr": True} if "ztsnr" in tensors else {})


def stored_in_file(source: Source, part: str) -> dict[str, Stored]:
    """The tensors of one network of a checkpoint file or of an autoencoder's file, by diffusers' names."""
    if part == "vae" and source.vae is not None:
        net = read_vae(source.vae, source.folder / "vae")
        return {name: constant(value) for name, value in net.state_dict().items()}
    assert source.config is not None
    # The file is mapped into memory, so only the tensors of this network are read from the disk.
    tensors = translated(part, load_file(source.weights), new_network(KINDS[part], source.config / part))
    return {name: constant(value) for name, value in tensors.items()}


def translated(part: str, tensors: dict[str, Tensor], net: Any) -> dict[str, Tensor]:
    """The tensors of one network of an original checkpoint, renamed as in diffusers and transformers."""
    utils = single_file_utils
    if part == "text_encoder":
        prefix = f"{EMBEDDERS[0]}transformer."
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if part == "text_encoder_2":
        return utils.convert_open_clip_checkpoint(net, tensors, prefix=f"{EMBEDDERS[1]}model.")
    prefix = UNET if part == "unet" else VAE
    own = {name: value for name, value in tensors.items() if name.startswith(prefix)}
    convert = utils.convert_ldm_unet_checkpoint if part == "unet" else utils.convert_ldm_vae_checkpoint
    converted = convert(dict(own), net.config)
    used = {value.data_ptr() for value in converted.values()}
    if left := [name for name, value in own.items() if value.data_ptr() not in used]:
        raise Unfit(f"{left[0]} is not part of SDXL" + (f", and {len(left) - 1} more" if left[1:] else ""))
    return converted


def read_vae(path: Path, config: Path) -> Any:
    """Load an autoencoder: from its folder, a pipeline folder, or a file in the original layout (sized by `config`)."""
    if path.is_dir():
        return read_network(AutoencoderKL, vae_folder(path))
    tensors, net = load_file(path), new_network(AutoencoderKL, config)
    if not any(name.startswith(VAE) for name in tensors):
        tensors = {VAE + name: value for name, value in tensors.items()}
    return fill(net, translated("vae", tensors, net), path.name)
