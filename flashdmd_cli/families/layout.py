"""Identification of model folders and files from tensor names, configurations and headers; reads no weights, needs no
torch.

A teacher is the folder of a stock pipeline, or one checkpoint file in the layout of its model's original code.
Identification uses the contents only, never file names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashdmd_cli.core.grid import vp_grid
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.facts import Facts
from flashdmd_cli.families.files import DENOISER, is_lora, read_json, read_shapes, vae_folder, weight_files
from flashdmd_cli.families.registry import supported

MERGE = "merge it into its model first"


def missing_parts(folder: Path, facts: Facts, strict: bool = False) -> list[str]:
    """Messages about the missing parts of a pipeline folder; empty if it is complete. `strict` raises Unfit for the
    first."""
    lacking = [] if (folder / "model_index.json").is_file() else [Unfit("has no model_index.json")]
    for part in facts.networks:
        try:
            weight_files(folder / part)
            if not (folder / part / "config.json").is_file():
                raise Unfit(f"{part}/ has no config.json")
        except Unfit as error:
            lacking.append(error)
    lacking += [Unfit(f"has no {part}/") for part in facts.settings if not (folder / part).is_dir()]
    if strict and lacking:
        more = f", and {len(lacking) - 1} more is missing" if len(lacking) > 1 else ""
        raise Unfit(f"{lacking[0]}{more}", lacking[0].hint or f"a complete {facts.pipeline_class} folder")
    return [str(error) for error in lacking]


def refuse_folder(folder: Path, facts: Facts) -> None:
    """Raise Unfit, describing what was found, unless `folder` is a complete pipeline that draws pictures from noise."""
    if not (folder / "model_index.json").is_file():
        raise _no_pipeline(folder)
    denoiser = folder / facts.networks[0] / "config.json"
    if denoiser.is_file():
        refuse_denoiser(read_json(denoiser))
    vae = (read_json(folder / "model_index.json").get("vae") or [None, None])[1]
    if vae not in (None, "AutoencoderKL"):
        raise Unfit(f"decodes with {vae}; only AutoencoderKL has the encoder that training needs")
    missing_parts(folder, facts, strict=True)


def refuse_denoiser(config: Mapping[str, Any]) -> None:
    """Raise Unfit if a denoiser's configuration has inputs that are no noisy picture, prompt or size."""
    channels = config.get("in_channels", 4)
    _refuse_channels(channels, config.get("out_channels") or channels)
    if config.get("time_cond_proj_dim") is not None:
        raise Unfit("has been distilled already: its denoiser takes the guidance as an input (time_cond_proj_dim)")


def _refuse_channels(channels: int, outputs: int) -> None:
    if channels == 2 * outputs + 1:
        raise Unfit(f"is an inpainting model: its denoiser takes {channels} channels, mask and picture among them")
    if channels != outputs:
        raise Unfit(
            f"takes {channels} channels and gives {outputs}: it edits pictures, and draws none from noise alone"
        )


def refuse_file(path: Path, facts: Facts, parts: Mapping[str, tuple[str, ...]]) -> None:
    """Raise Unfit, describing what was found, unless `path` is a checkpoint of the family in the original layout.

    `parts` has the prefixes of each text encoder's tensor names, of which one has to be there.
    """
    if path.suffix != ".safetensors":
        hint = "convert it to .safetensors" if path.suffix in (".ckpt", ".pt", ".pth", ".bin") else ""
        raise Unfit("is a file, but no .safetensors", hint or "a checkpoint file, or the folder of a pipeline")
    shapes = read_shapes(path)
    names = list(shapes)
    if is_lora(names):
        raise Unfit("is a LoRA, not a model", MERGE)

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    if has("down_blocks.", "up_blocks.", "transformer_blocks."):
        raise Unfit("is a denoiser alone, in the layout of diffusers", "name the folder of its pipeline")
    if has("double_blocks.", f"{DENOISER}double_blocks."):
        raise Unfit("is a Flux model, which cannot be distilled", supported())
    if not has(*(DENOISER + mark for mark in facts.file_marks)):
        first = f", its first tensor is {names[0]}" if names else ""
        raise Unfit(f"is no checkpoint in the layout of a model's original code{first}", supported())
    if has("edm_mean", "edm_vpred"):
        raise Unfit("is an EDM model, whose noise schedule is not supported")
    if has(f"{DENOISER}time_embed.cond_proj."):
        raise Unfit("has been distilled already: its denoiser takes the guidance as an input")
    if (conv_in := shapes.get(f"{DENOISER}input_blocks.0.0.weight")) is not None:
        _refuse_channels(conv_in[1], shapes.get(f"{DENOISER}out.2.weight", [conv_in[1]])[0])
    for part, prefixes in parts.items():
        if not has(*prefixes):
            raise Unfit(f"has no {part} (no tensor {prefixes[0]}...)", "name a whole checkpoint")


def refuse_vae(place: Path) -> None:
    """Raise Unfit, describing what was found, unless `place` is a file or folder with an autoencoder."""
    if place.is_file():
        if not any("decoder." in name for name in read_shapes(place)):
            raise Unfit("holds no autoencoder: none of its tensors is a decoder's")
        return
    folder = vae_folder(place)
    weight_files(folder)
    config = folder / "config.json"
    kind = read_json(config).get("_class_name") if config.is_file() else None
    if kind != "AutoencoderKL":
        raise Unfit(f"is {f'a {kind}' if kind else 'a folder without config.json'}, not an AutoencoderKL")


def _no_pipeline(folder: Path) -> Unfit:
    """The error for a folder without model_index.json, describing what it contains."""
    if (folder / "config.json").is_file() and "_class_name" in (config := read_json(folder / "config.json")):
        return Unfit(f"is a single network ({config['_class_name']})", "name the folder of the whole pipeline")
    files = sorted(folder.glob("*.safetensors"))
    if files and is_lora(read_shapes(files[0])):
        return Unfit(f"is a LoRA ({files[0].name}), not a model", MERGE)
    if files:
        return Unfit(f"is no pipeline folder, but holds {files[0].name}", f"name the file: {files[0]}")
    inner = [path.parent.name for path in sorted(folder.glob("*/model_index.json"))]
    if inner:
        return Unfit("is no pipeline folder, but holds one", f"name {folder / inner[0]}")
    return Unfit("has no model_index.json, so it is no pipeline folder", "a complete pipeline folder of diffusers")


def dimensions(folder: Path, denoiser: str, text: Mapping[str, tuple[int, ...]]) -> Dimensions:
    """Dimensions of a pipeline folder with these embeddings; raises `OSError`, `ValueError` or `KeyError`."""
    net, vae = (read_json(folder / part / "config.json") for part in (denoiser, "vae"))
    side, channels = int(net["sample_size"]), int(net["in_channels"])
    return Dimensions(side * 2 ** (len(vae["block_out_channels"]) - 1), (channels, side, side), text)


def tokens(folder: Path) -> int:
    """Length of a prompt in the tokens of a pipeline's first tokenizer."""
    return int(read_json(folder / "tokenizer" / "tokenizer_config.json")["model_max_length"])


def is_vp_student(folder: Path) -> bool:
    """Whether a pipeline folder is a few-step student of a teacher with betas, judged by its scheduler configuration.

    The scheduler's class is not enough, because teachers with merged LCM adapters have it too; students also have the
    settings that turn off the boundary scaling of consistency models.
    """
    grid = vp_grid(1)
    try:
        config = read_json(folder / "scheduler" / "scheduler_config.json")
    except (OSError, Unfit):
        return False
    ours = {key: grid.config[key] for key in ("original_inference_steps", "timestep_scaling")}
    return config.get("_class_name") == grid.scheduler and ours.items() <= config.items()
