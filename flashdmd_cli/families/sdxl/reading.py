"""Stock networks from disk, every tensor accounted for: each load of a network goes through `read_network` or `fit`.

The libraries' own `from_pretrained` fills what it does not find with random numbers and says so in a warning at most.
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
"""How the names of a text encoder's tensors begin in the files of every SDXL; transformers 5.6 and later leave it out
of `CLIPTextModel`."""
POSITIONS = "embeddings.position_ids"
"""Old files of text encoders hold the numbers 0, 1, 2, ... too."""
OLD_ATTENTION = {"query.": "to_q.", "key.": "to_k.", "value.": "to_v.", "proj_attn.": "to_out.0."}
"""How old autoencoders call the parts of their attention blocks."""


def new_network(kind: Any, folder: Path) -> Any:
    """A network of class `kind` as `folder/config.json` describes it, its parameters without memory yet."""
    config = kind.load_config(folder) if hasattr(kind, "load_config") else kind.config_class.from_pretrained(folder)
    # Buffers are computed, not read: the numbers of the positions are in no file.
    with init_empty_weights(include_buffers=False):
        return kind.from_config(config) if hasattr(kind, "load_config") else kind(config)


def read_network(kind: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The network of class `kind` in `folder`, on the CPU, in eval mode; ValueError when not every tensor fits."""
    held: dict[str, Tensor] = {}
    for path in weight_files(folder):
        held |= load_file(path)
    return fill(new_network(kind, folder), held, f"{folder.name}/", dtype)


def fill(net: Any, held: dict[str, Tensor], where: str, dtype: torch.dtype = torch.float32) -> Any:
    """Put tensors into a network in `dtype`, under the names that it has today; `where` begins what goes wrong."""
    held = renamed(held, net.state_dict().keys())
    for name in list(held):  # one by one, so that both precisions of a whole network are never held
        held[name] = held[name].to(dtype) if held[name].is_floating_point() else held[name]
    try:
        return fit(net, held).eval()
    except ValueError as error:
        raise Unfit(f"{where}: {error}", "these are other weights than config.json describes") from None


def renamed(held: dict[str, Tensor], wanted: Any) -> dict[str, Tensor]:
    """Tensors under the names that a network wants, where a library has changed names since they were written."""
    held = {name: value for name, value in held.items() if not name.endswith(POSITIONS)}
    for old, new in OLD_ATTENTION.items():
        held = {name.replace(f".{old}", f".{new}") if "attentions." in name else name: v for name, v in held.items()}
    named = {}
    for name, value in held.items():
        ways = (name, name.removeprefix(TEXT), TEXT + name)
        named[next((way for way in ways if way in wanted and way not in named), name)] = value
    return named if len(named) == len(held) else held  # two of one name: told by the name that is too much


def read_pipeline(source: Source) -> StableDiffusionXLPipeline:
    """The pipeline of a teacher in float32: its networks read strictly, scheduler and tokenizers the stock way.

    Raises Unfit, OSError or SafetensorError for what is missing or does not fit.
    """
    settings: dict[str, Any] = {}
    if source.weights.is_file():
        networks, settings = read_checkpoint(source)
    else:
        parts = [part for part in SDXL.networks if part != "vae" or source.vae is None]
        networks = {part: read_network(KINDS[part], source.weights / part) for part in parts}
    if source.vae is not None:
        networks["vae"] = read_vae(source.vae, source.folder / "vae")
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        source.folder, **networks, add_watermarker=False, local_files_only=True
    )
    if settings:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **settings)
    return pipeline


def read_checkpoint(source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """The networks of one file in the layout of SDXL's original code, and what it says of the noise schedule.

    The sizes are those of the folder of configurations that goes with it; names are translated by diffusers.
    """
    if source.config is None:
        raise Unfit("needs a folder with the configurations and tokenizers of its pipeline")
    held = load_file(source.weights)
    networks = {}
    for part in SDXL.networks:
        if part == "vae" and source.vae is not None:
            continue
        net = new_network(KINDS[part], source.config / part)
        networks[part] = fill(net, translated(part, held, net), f"{part} in {source.weights.name}")
    # Empty tensors with these names are how trainers mark a file; there is no configuration to ask.
    settings: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in held else {}
    return networks, settings | ({"rescale_betas_zero_snr": True} if "ztsnr" in held else {})


def translated(part: str, held: dict[str, Tensor], net: Any) -> dict[str, Tensor]:
    """The tensors of one network of an original checkpoint under the names of diffusers and transformers."""
    utils = single_file_utils
    if part == "text_encoder":
        prefix = f"{EMBEDDERS[0]}transformer."
        return {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
    if part == "text_encoder_2":
        return utils.convert_open_clip_checkpoint(net, held, prefix=f"{EMBEDDERS[1]}model.")
    prefix = UNET if part == "unet" else VAE
    own = {name: value for name, value in held.items() if name.startswith(prefix)}
    convert = utils.convert_ldm_unet_checkpoint if part == "unet" else utils.convert_ldm_vae_checkpoint
    found = convert(dict(own), net.config)
    used = {value.data_ptr() for value in found.values()}
    if left := [name for name, value in own.items() if value.data_ptr() not in used]:
        raise Unfit(f"{left[0]} is not part of SDXL" + (f", and {len(left) - 1} more" if left[1:] else ""))
    return found


def read_vae(path: Path, config: Path) -> Any:
    """An autoencoder: a folder of its own or of a pipeline, or a file in the original layout sized by `config`."""
    if path.is_dir():
        return read_network(AutoencoderKL, vae_folder(path))
    held, net = load_file(path), new_network(AutoencoderKL, config)
    if not any(name.startswith(VAE) for name in held):
        held = {VAE + name: value for name, value in held.items()}
    return fill(net, translated("vae", held, net), path.name)


def save_text_encoder(encoder: Any, folder: Path) -> None:
    """Write a text encoder with the names that every version of transformers reads, those of SDXL's own files."""
    encoder.save_pretrained(folder)
    write_text_names(folder)


def save_pipeline(pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
    """Write a pipeline so that stock libraries of years back read it, those before transformers 5 too.

    The newest write other names into `text_encoder/`, and vocabularies into `tokenizer.json` alone.
    """
    pipeline.save_pretrained(folder)
    write_text_names(folder / "text_encoder")
    for name in ("tokenizer", "tokenizer_2"):
        if not (folder / name / "vocab.json").is_file():
            getattr(pipeline, name).backend_tokenizer.model.save(str(folder / name))


def write_text_names(folder: Path) -> None:
    """Give the tensors of a saved text encoder the names that they have in SDXL's own files."""
    for path in weight_files(folder):
        held = load_file(path)
        named = {name if name.startswith((TEXT, "text_projection.")) else TEXT + name: held[name] for name in held}
        if named.keys() != held.keys():
            save_file(named, path, metadata={"format": "pt"})
