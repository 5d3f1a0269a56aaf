"""Strict loading and saving of stock networks: `read_network` and `fill` check each tensor.

`from_pretrained` of the libraries initialises missing tensors at random, with at most a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.core.weights import fit
from flashdmd_cli.families.files import read_json, weight_files
from flashdmd_cli.families.stored import read_stored

Value = TypeVar("Value")
"""A tensor, or one on disk that is read later."""

TEXT = "text_model."
"""Prefix of a text encoder's tensor names in published files; transformers 5.6 and later omit it in `CLIPTextModel`."""
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
    # One by one: the whole network is never in memory in both precisions.
    tensors = {name: value.to(dtype).read() for name, value in read_stored(weight_files(folder)).items()}
    return fill(new_network(kind, folder), tensors, f"{folder.name}/", dtype)


def fill(net: Any, tensors: dict[str, Tensor], where: str, dtype: torch.dtype = torch.float32) -> Any:
    """Load tensors into `net` in `dtype`, with old names translated; `where` is the start of an error message."""
    tensors = renamed(tensors, net.state_dict().keys())
    for name in list(tensors):
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


def published(tensors: Mapping[str, Value], config: Mapping[str, Any]) -> dict[str, Value]:
    """`tensors` of the network with this configuration, under the names that every version of the libraries reads."""
    is_clip = config.get("model_type") == "clip_text_model"
    found = {}
    for name, value in tensors.items():
        if name.endswith(POSITIONS):
            continue
        if "attentions." in name:
            for old, new in OLD_ATTENTION.items():
                name = name.replace(f".{old}", f".{new}")
        if is_clip and not name.startswith((TEXT, "text_projection.")):
            name = TEXT + name
        found[name] = value
    return found


def save_text_encoder(encoder: Any, folder: Path) -> None:
    """Save a text encoder with the tensor names of published files, which every version of transformers can read."""
    encoder.save_pretrained(folder)
    write_text_names(folder)


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """Save a pipeline so that old library versions can read it, also those before transformers 5.

    New versions write other tensor names into `text_encoder/`, and vocabularies only into `tokenizer.json`.
    """
    pipeline.save_pretrained(folder)
    write_text_names(folder / "text_encoder")
    for name in ("tokenizer", "tokenizer_2"):
        if name in pipeline.components and not (folder / name / "vocab.json").is_file():
            getattr(pipeline, name).backend_tokenizer.model.save(str(folder / name))


def write_text_names(folder: Path) -> None:
    """Rename the tensors of a saved text encoder as in published files."""
    config = read_json(folder / "config.json")
    for path in weight_files(folder):
        tensors = load_file(path)
        renamed_tensors = published(tensors, config)
        if renamed_tensors.keys() != tensors.keys():
            save_file(renamed_tensors, path, metadata={"format": "pt"})
