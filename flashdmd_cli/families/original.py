"""Strict loading of pipelines: from folders, and from one file in the layout of a model's original code.

diffusers translates the tensor names of such a file; every network is then filled tensor by tensor, since its own
`from_single_file` leaves out what it does not know without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file
from torch import Tensor

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.files import DENOISER, VAE, Source, vae_folder
from flashdmd_cli.families.reading import fill, new_network, read_network
from flashdmd_cli.families.stored import Stored, constant

Convert = Callable[[dict[str, Tensor], Any], dict[str, Tensor]]
"""(All tensors of a file in the original layout, a network) -> the tensors of this network under its own names."""


def read_pipeline(
    pipeline: Any,
    kinds: Mapping[str, Any],
    original: Mapping[str, Convert],
    source: Source,
    denoiser: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """Load the pipeline of a teacher in float32, its denoiser in the given format.

    `pipeline` is the pipeline's class, `kinds` has the class of each network, the denoiser first, and `original` the
    translation of its tensor names for single files; `options` are further arguments of `from_pretrained`. Networks
    are loaded strictly, scheduler and tokenizers with `from_pretrained`. Raises Unfit, OSError or SafetensorError for
    missing or unsuitable files.
    """
    dtypes = {part: torch.float32 if number else denoiser for number, part in enumerate(kinds)}
    parts = own_networks(kinds, source)
    settings: dict[str, Any] = {}
    if source.weights.is_file():
        if source.config is None:
            raise Unfit("needs a folder with the configurations and tokenizers of its pipeline")
        tensors = load_file(source.weights)
        networks = {}
        for part in parts:
            net = new_network(kinds[part], source.config / part)
            where = f"{part} in {source.weights.name}"
            networks[part] = fill(net, original[part](tensors, net), where, dtypes[part])
        # Such a file has no configuration; trainers mark these settings by empty tensors with these names.
        settings |= {"prediction_type": "v_prediction"} if "v_pred" in tensors else {}
        settings |= {"rescale_betas_zero_snr": True} if "ztsnr" in tensors else {}
    else:
        networks = {part: read_network(kinds[part], source.weights / part, dtypes[part]) for part in parts}
    if source.vae is not None:
        networks["vae"] = read_vae(source.vae, source.folder / "vae")
    if source.denoiser is not None:
        part = next(iter(kinds))
        networks[part] = read_network(kinds[part], source.denoiser, denoiser)
    loaded = pipeline.from_pretrained(source.folder, **networks, **options, local_files_only=True)
    if settings:
        loaded.scheduler = type(loaded.scheduler).from_config(loaded.scheduler.config, **settings)
    return loaded


def own_networks(kinds: Iterable[str], source: Source) -> list[str]:
    """The networks of `kinds`, the denoiser first, read from the teacher's own files: nothing replaces them."""
    replaced = {"vae": source.vae, next(iter(kinds)): source.denoiser}
    return [part for part in kinds if replaced.get(part) is None]


def stored_in_file(
    kinds: Mapping[str, Any], original: Mapping[str, Convert], source: Source, part: str
) -> dict[str, Stored]:
    """The tensors of one network of a checkpoint file or of an autoencoder's file, by diffusers' names."""
    if part == "vae" and source.vae is not None:
        tensors = read_vae(source.vae, source.folder / "vae").state_dict()
    else:
        assert source.config is not None
        # The file is mapped into memory, so only the tensors of this network are read from the disk.
        tensors = original[part](load_file(source.weights), new_network(kinds[part], source.config / part))
    return {name: constant(value) for name, value in tensors.items()}


def read_vae(path: Path, config: Path) -> Any:
    """Load an autoencoder: from its folder, a pipeline folder, or a file in the original layout (sized by `config`)."""
    if path.is_dir():
        return read_network(AutoencoderKL, vae_folder(path))
    tensors, net = load_file(path), new_network(AutoencoderKL, config)
    if not any(name.startswith(VAE) for name in tensors):
        tensors = {VAE + name: value for name, value in tensors.items()}
    return fill(net, vae_tensors(tensors, net), path.name)


def unet_tensors(tensors: dict[str, Tensor], net: Any) -> dict[str, Tensor]:
    """The tensors of a `UNet2DConditionModel`."""
    return _all_of(DENOISER, tensors, lambda own: single_file_utils.convert_ldm_unet_checkpoint(own, net.config))


def vae_tensors(tensors: dict[str, Tensor], net: Any) -> dict[str, Tensor]:
    """The tensors of an `AutoencoderKL`."""
    return _all_of(VAE, tensors, lambda own: single_file_utils.convert_ldm_vae_checkpoint(own, net.config))


def mmdit_tensors(tensors: dict[str, Tensor], net: Any) -> dict[str, Tensor]:
    """The tensors of an `SD3Transformer2DModel`."""
    own = {name: value for name, value in tensors.items() if name.startswith(DENOISER)}
    try:
        converted: dict[str, Tensor] = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(own)
    except KeyError as error:
        raise Unfit(f"{DENOISER}{error.args[0]} is missing") from None
    if own:  # the conversion removes what it uses
        raise Unfit(f"{DENOISER}{next(iter(own))} is not part of the model")
    return converted


def clip_tensors(prefix: str) -> Convert:
    """A translation for a text encoder with the names of transformers after `prefix`."""
    return lambda tensors, net: {
        name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
    }


def open_clip_tensors(prefix: str) -> Convert:
    """A translation for a text encoder with the names of OpenCLIP after `prefix`."""
    return lambda tensors, net: single_file_utils.convert_open_clip_checkpoint(net, tensors, prefix=prefix)


def _all_of(
    prefix: str, tensors: dict[str, Tensor], convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors with `prefix`, translated; Unfit if the translation leaves one out."""
    own = {name: value for name, value in tensors.items() if name.startswith(prefix)}
    converted = convert(dict(own))
    used = {value.data_ptr() for value in converted.values()}
    if left := [name for name, value in own.items() if value.data_ptr() not in used]:
        raise Unfit(f"{left[0]} is not part of the model" + (f", and {len(left) - 1} more" if left[1:] else ""))
    return converted
