"""Strict loading of stock networks: every network is loaded by `read_network` or `fit`, which check each tensor.

`from_pretrained` of the libraries initialises missing tensors at random, with at most a warning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.core.weights import fit
from flashdmd_cli.families.files import Source, vae_folder, weight_files
from flashdmd_cli.families.sdxl.facts import SDXL
from flashdmd_cli.families.sdxl.layout import EMBEDDERS, UNET, VAE

KINDS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
TEXT = "text_model."
"""Prefix of a text encoder's tensor names in SDXL's files; transformers 5.6 and later omit it in `CLIPTextModel`."""
POSITIONS = "embeddings.position_ids"
"""A tensor with the values 0, 1, 2, ... in old files of text encoders, which is ignored."""
OLD_ATTENTION = {"query.": "to_q.", "key.": "to_k.", "value.": "to_v.", "proj_attn.": "to_out.0."}
"""Layer names in the attention blocks of old autoencoder files -> current names."""


def new_network(kind: Any, folder: Path) -> Any:
    """A network of class `kind` configured by `folder/config.json`, with parameters on the meta device."""
    config = kind.load_config(folder) if hasattr(kind, "load_config") else kind.config_class.from_pretrained(folder)
    # Buffers are computed, not loaded: position ids are not in the files.
    with init_empty_weights(include_buffers=False):
        return kind.from_config(config) if hasattr(kind, "load_config") else kind(config)


def read_network(kind: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load the network of class `kind` in `folder`, on the CPU, in eval mode; Unfit if a tensor does not fit."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors |= load_file(path)
    return fill(new_network(kind, folder), tensors, f"{folder.name}/", dtype)


def fill(net: Any, tensors: dict[str, Tensor], where: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load tensors into `net` in `dtype`, with old names translated; `where` is the start of an error message."""
    tensors = renamed(tensors, net.state_dict().keys())
    for name in list(tensors):  # one by one: the whole network is never in memory in both precisions
        tensors[name] = tensors[name].to(dtype) if tensors[name].is_floating_point() else tensors[name]
    try:
        return fit(net, tensors).eval()
    except ValueError as error:
        raise Unfit(f"{where}: {error}", "these are other weights than config.json describes") from None


def renamed(tensors: dict[str, Tensor], wanted: Any) -> dict[str, Tensor]:
    """`tensors` under the names `wanted` by a network; libraries have changed some names between versions."""
    tensors = {name: value for name, value in tensors.items() if not name.endswith(POSITIONS)}
    for old, new in OLD_ATTENTION.items():
        tensors = {
            name.replace(f".{old}", f".{new}") if "attentions." in name else name: value
            for name, value in tensors.items()
        }
    result = {}
    for name, value in tensors.items():
        candidates = (name, name.removeprefix(TEXT), TEXT + name)
        result[next((each for each in candidates if each in wanted and each not in result), name)] = value
    # If two names are translated to the same one, `fit` reports the original names.
    return result if len(result) == len(tensors) else tensors


def read_pipeline(source: Source, denoiser: torch.dtype = torch.float32) -> StableDiffusionXLPipeline:
    """Load the pipeline of a teacher in float32, its denoiser in the given format.

    Networks are loaded strictly, scheduler and tokenizers with `from_pretrained`.

    Raises Unfit, OSError or SafetensorError for missing or unsuitable files.
    """
    settings: dict[str, Any] = {}
    if source.weights.is_file():
        networks, settings = read_checkpoint(source, denoiser)
    else:
        parts = [part for part in SDXL.networks if part != "vae" or source.vae is None]
        networks = {
            part: read_network(KINDS[part], source.weights / part, denoiser if part == "unet" else torch.float32)
            for part in parts
        }
    if source.vae is not None:
        networks["vae"] = read_vae(source.vae, source.folder / "vae")
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        source.folder, **networks, add_watermarker=False, local_files_only=True
    )
    if settings:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **settings)
    return pipeline


def read_checkpoint(source: Source, denoiser: torch.dtype = torch.float32) -> tuple[dict[str, Any], dict[str, Any]]:
    """The networks of one file in the layout of SDXL's original code, and the scheduler settings that it implies.

    Networks are configured by `source.config`; diffusers translates the tensor names.
    """
    if source.config is None:
        raise Unfit("needs a folder with the configurations and tokenizers of its pipeline")
    tensors = load_file(source.weights)
    networks = {}
    for part in SDXL.networks:
        if part == "vae" and source.vae is not None:
            continue
        net = new_network(KINDS[part], source.config / part)
        dtype = denoiser if part == "unet" else torch.float32
        networks[part] = fill(net, translated(part, tensors, net), f"{part} in {source.weights.name}", dtype)
    # Such a file has no configuration; trainers mark these settings by empty tensors with these names.
    settings: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in tensors else {}
    return networks, settings | ({"rescale_betas_zero_snr": True} if "ztsnr" in tensors else {})


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


def save_text_encoder(encoder: Any, folder: Path) -> None:
    """Save a text encoder with the tensor names of SDXL's files, which every version of transformers can read."""
    encoder.save_pretrained(folder)
    write_text_names(folder)


def save_pipeline(pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
    """Save a pipeline so that old library versions can read it, also those before transformers 5.

    New versions write other tensor names into `text_encoder/`, and vocabularies only into `tokenizer.json`.
    """
    pipeline.save_pretrained(folder)
    write_text_names(folder / "text_encoder")
    for name in ("tokenizer", "tokenizer_2"):
        if not (folder / name / "vocab.json").is_file():
            getattr(pipeline, name).backend_tokenizer.model.save(str(folder / name))


def write_text_names(folder: Path) -> None:
    """Rename the tensors of a saved text encoder as in SDXL's files."""
    for path in weight_files(folder):
        tensors = load_file(path)
        kept = (TEXT, "text_projection.")
        renamed_tensors = {name if name.startswith(kept) else TEXT + name: value for name, value in tensors.items()}
        if renamed_tensors.keys() != tensors.keys():
            save_file(renamed_tensors, path, metadata={"format": "pt"})
