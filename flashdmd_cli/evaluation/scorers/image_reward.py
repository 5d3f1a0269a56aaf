"""ImageReward (Xu et al., 2023): a BLIP-large whose text network attends to the picture, and a small network on top."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.initialization import no_init_weights
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from flashdmd_cli.evaluation.scorers.exact import exact
from flashdmd_cli.evaluation.scorers.files import AGAIN, fill, read_json, read_tensors
from flashdmd_cli.runs.errors import InputError

WEIGHTS, CONFIG, VOCABULARY = "ImageReward.pt", "med_config.json", "vocab.txt"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the raw reward over the authors' data."""
NUM_TOKENS = 35
HEAD_WIDTH = 64
"""Of the attention of every BLIP."""
_RENAMED = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)
"""Names of BLIP's own picture network, and of the same one in transformers."""


class Head(nn.Module):
    """Five linear layers without activations; dropout, which does nothing here, takes numbers between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        dims = [(width, 1024), None, (1024, 128), None, (128, 64), None, (64, 16), (16, 1)]
        self.layers = nn.Sequential(*(nn.Linear(*each) if each else nn.Identity() for each in dims))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) to (B, 1)."""
        found: Tensor = self.layers(features)
        return found


class ImageReward:
    """The reward of pictures for prompts, standardised over the authors' data."""

    def __init__(self, vision: Any, text: Any, head: Head, tokenizer: Any, device: torch.device) -> None:
        self.vision, self.text, self.head = vision.to(device), text.to(device), head.to(device)
        self.device = device
        self.size: int = vision.config.image_size
        self.tokenizer = tokenizer

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens and their mask, each (B, 35)."""
        found = self.tokenizer.encode_batch(list(prompts))
        return torch.tensor([each.ids for each in found]), torch.tensor([each.attention_mask for each in found])

    @exact
    def score(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,), on the CPU, for normalised pixels (B, 3, size, size)."""
        tokens, mask = (each.to(self.device) for each in self.tokens(prompts))
        image = self.vision(pixels.to(self.device)).last_hidden_state
        seen = self.text(tokens, attention_mask=mask, encoder_hidden_states=image, is_decoder=False)
        reward = self.head(seen.last_hidden_state[:, 0])[:, 0]
        return ((reward - MEAN) / STD).cpu()


def load_image_reward(folder: Path, vocabulary: Path, device: torch.device) -> ImageReward:
    """ImageReward from `ImageReward.pt` and `med_config.json` in `folder`, and the vocabulary of bert-base-uncased.

    The sizes of the picture network and of the head are those of the tensors.
    """
    path = folder / WEIGHTS
    tensors = read_tensors(path)
    pictures = _renamed(_below(tensors, "blip.visual_encoder."))
    text = {name: value for name, value in _below(tensors, "blip.text_encoder.").items() if "position_ids" not in name}
    try:
        width, _, patch, _ = pictures["embeddings.patch_embedding.weight"].shape
        num = pictures["embeddings.position_embedding"].shape[1] - 1
        inner = len(pictures["encoder.layers.0.mlp.fc1.bias"])
    except KeyError as error:
        raise InputError(f"{path}: holds no {error} of a BLIP", AGAIN) from None
    depth = len({name.split(".")[2] for name in pictures if name.startswith("encoder.layers.")})
    shape = BlipVisionConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=depth, patch_size=patch,
        num_attention_heads=max(1, width // HEAD_WIDTH), image_size=patch * round(num**0.5), layer_norm_eps=1e-6,
    )  # fmt: skip
    med = read_json(folder / CONFIG)
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
            "max_position_embeddings", "layer_norm_eps", "pad_token_id")  # fmt: skip
    described = {key: med[key] for key in keys if key in med} | {"encoder_hidden_size": width, "bos_token_id": None}
    with no_init_weights():
        vision = BlipVisionModel(shape)
        reader = BlipTextModel(BlipTextConfig(**described), add_pooling_layer=False)
    head = Head(reader.config.hidden_size)
    for net, part in ((vision, pictures), (reader, text), (head, _below(tensors, "mlp."))):
        fill(net, part, path)
    return ImageReward(vision, reader, head, bert_tokenizer(vocabulary), device)


def bert_tokenizer(vocabulary: Path) -> BertWordPieceTokenizer:
    """bert-base-uncased's tokenizer from its `vocab.txt`, cut and padded to 35 tokens."""
    try:
        tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    except Exception as error:  # the library raises Exception itself
        raise InputError(f"{vocabulary}: not a vocabulary of BERT: {error}", AGAIN) from None
    tokenizer.enable_truncation(NUM_TOKENS)
    tokenizer.enable_padding(length=NUM_TOKENS)
    return tokenizer


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in tensors.items():
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        found[name] = value
    return found
