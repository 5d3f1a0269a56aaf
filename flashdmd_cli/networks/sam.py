"""The frozen image encoder of a segment-anything model (SAM), as a feature extractor for pictures of any size."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.core.weights import fit, read_pickle

SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)
"""Mean and standard deviation by which SAM normalises RGB values on [0, 255]."""

_SIZE_OF_WIDTH = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
_ENCODER = "image_encoder."


def new_sam(config: dict[str, Any]) -> Sam:
    """An untrained `Sam` with the sizes in `config` (the `config.json` of a folder with a small SAM)."""
    encoder, prompt, decoder = config["image_encoder"], config["prompt_encoder"], config["mask_decoder"]
    width, side = encoder["out_chans"], encoder["img_size"]
    tokens = side // encoder["patch_size"]
    transformer = TwoWayTransformer(
        depth=decoder["depth"], embedding_dim=width, num_heads=decoder["num_heads"], mlp_dim=decoder["mlp_dim"]
    )
    return Sam(
        image_encoder=ImageEncoderViT(**encoder, norm_layer=partial(nn.LayerNorm, eps=1e-6)),
        prompt_encoder=PromptEncoder(width, (tokens, tokens), (side, side), prompt["mask_in_chans"]),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=transformer,
            num_multimask_outputs=decoder["num_multimask_outputs"],
            iou_head_depth=decoder["iou_head_depth"],
            iou_head_hidden_dim=decoder["iou_head_hidden_dim"],
        ),
        pixel_mean=list(SAM_MEAN),
        pixel_std=list(SAM_STD),
    )


def load_sam_encoder(name_or_path: str | Path) -> ImageEncoderViT:
    """The image encoder of a trained SAM, float32 on the CPU, frozen and in eval mode.

    `name_or_path` is one of segment-anything's official `.pth` files, or a folder with `config.json` and
    `model.safetensors`. Raises FileNotFoundError for a missing file, Unfit for a file with other contents.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if path.is_dir():
        encoder = _folder_encoder(path)
    elif path.is_file():
        encoder = _official_encoder(_pickle(path), name)
    else:
        raise FileNotFoundError(f"gan.sam: {name} is neither a file nor a folder")
    return encoder.requires_grad_(False).eval()


def _pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of an official segment-anything file, read without executing code from the pickle."""
    try:
        tensors = read_pickle(path)
    except Unfit as error:
        raise Unfit(f"gan.sam: {path} {error}", error.hint) from None
    if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
        raise Unfit(f"gan.sam: {path} holds no table of tensors", "name the file that segment-anything published")
    return tensors


def _folder_encoder(folder: Path) -> ImageEncoderViT:
    config_file, weights = folder / "config.json", folder / "model.safetensors"
    for file in (config_file, weights):
        if not file.is_file():
            raise FileNotFoundError(f"gan.sam: {folder} has no {file.name}")
    try:
        encoder = new_sam(parse_json(config_file.read_text(encoding="utf-8"))).image_encoder
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        problem = f"does not describe a segment_anything model: {type(error).__name__} {error}"
        raise Unfit(f"gan.sam: {config_file} {problem}", "copy it again") from None
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise Unfit(f"gan.sam: {weights} cannot be read: {error}", "copy it again") from None
    return _load_encoder(encoder, tensors, str(weights))


def _official_encoder(state: dict[str, Tensor], origin: str) -> ImageEncoderViT:
    # The width of the position embedding distinguishes ViT-B, -L and -H, so a renamed file still loads.
    position = state.get(_ENCODER + "pos_embed")
    size = _SIZE_OF_WIDTH.get(position.shape[-1]) if position is not None and position.ndim else None
    if size is None:
        raise Unfit(f"gan.sam: {origin} does not hold the official weights of SAM ViT-B, ViT-L or ViT-H")
    return _load_encoder(sam_model_registry[size]().image_encoder, state, origin)


def _load_encoder(encoder: ImageEncoderViT, state: dict[str, Tensor], origin: str) -> ImageEncoderViT:
    own = {key.removeprefix(_ENCODER): value for key, value in state.items() if key.startswith(_ENCODER)}
    try:
        return fit(encoder, own)
    except Unfit as error:
        raise Unfit(f"gan.sam: {origin}: {error}", "copy or download it again") from None


class SamTrunk(nn.Module):
    """A frozen SAM image encoder for any picture size that returns the outputs of its global-attention blocks.

    The absolute position embedding is interpolated to the token grid of the input; the relative-position tables of the
    global-attention blocks are interpolated inside the blocks. The stored weights do not change. Gradients flow to the
    pixels, not to the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: ImageEncoderViT) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.hooks = tuple(i for i, block in enumerate(encoder.blocks) if block.window_size == 0)
        self.width: int = encoder.patch_embed.proj.out_channels
        self.patch: int = encoder.patch_embed.proj.kernel_size[0]
        self.register_buffer("mean", torch.tensor(SAM_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(SAM_STD).view(-1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> SamTrunk:
        """Does nothing: the encoder always stays in eval mode."""
        return super().train(False)

    def prepare(self, pixels: Tensor) -> Tensor:
        """SAM's input (B, 3, H', W') from pixels (B, 3, H, W) on [-1, 1]; H' and W' are multiples of the patch size."""
        height, width = (max(self.patch, round(side / self.patch) * self.patch) for side in pixels.shape[-2:])
        pixels = pixels.float()
        if (height, width) != pixels.shape[-2:]:
            pixels = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False, antialias=True)
        return ((pixels + 1) * 127.5 - self.mean) / self.std

    def positions(self, height: int, width: int) -> Tensor | None:
        """Absolute position embedding for a grid of `height` x `width` tokens, (1, height, width, C)."""
        stored = self.encoder.pos_embed
        if stored is None or stored.shape[1:3] == (height, width):
            return stored
        grid = stored.permute(0, 3, 1, 2).float()
        grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False, antialias=True)
        return grid.permute(0, 2, 3, 1).to(stored.dtype)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Features (B, C, H / patch, W / patch) of each global-attention block, for pixels (B, 3, H, W) on [-1, 1]."""
        tokens = self.encoder.patch_embed(self.prepare(pixels).to(self.encoder.patch_embed.proj.weight.dtype))
        positions = self.positions(*tokens.shape[1:3])
        if positions is not None:
            tokens = tokens + positions
        features = []
        for index, block in enumerate(self.encoder.blocks):
            tokens = block(tokens)
            if index in self.hooks:
                features.append(tokens.permute(0, 3, 1, 2))
            if index == self.hooks[-1]:
                break
        return features
