"""Write a folder like SDXL's or SD3's, of true size with random weights, a SAM like segment-anything's, and pictures.

    python docs/experiments/true_size.py OUT [--family sd3] [--resolution 256] [--small]

About 8 GB: OUT/teacher (a pipeline in float16, SD3's without T5), OUT/sam_vit_b.pth, OUT/pictures (8, with captions).
What a training at true size takes can then be seen without any download.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything import sam_model_registry
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from flashdmd_cli.families.random_weights import randomize
from flashdmd_cli.families.registry import family_named
from flashdmd_cli.families.sdxl.true_size import TOKENS
from flashdmd_cli.shapes.assets import asset

ENCODERS: tuple[dict[str, Any], ...] = (
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
     "hidden_act": "quick_gelu", "projection_dim": 768},
    {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
     "hidden_act": "gelu", "projection_dim": 1280},
)  # fmt: skip
SMALL: tuple[dict[str, Any], ...] = (
    {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
     "projection_dim": 32},
    {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
     "projection_dim": 64},
)  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "sdxl": {"add_watermarker": False},
    "sd3": {"text_encoder_3": None, "tokenizer_3": None},
}
"""Arguments of the stock pipeline's class, by family."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--family", choices=sorted(OPTIONS), default="sdxl")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    facts = family_named(options.family)
    cpu = torch.device("cpu")
    family: Any = facts.module.random_family(options.resolution, "bf16", "fp32", cpu, options.small)
    denoiser = facts.networks[0]
    parts: dict[str, Any] = {denoiser: getattr(family.pipeline, denoiser), "vae": family.pipeline.vae}
    first = CLIPTextModel if options.family == "sdxl" else CLIPTextModelWithProjection
    kinds: tuple[tuple[str, Any], ...] = (("text_encoder", first), ("text_encoder_2", CLIPTextModelWithProjection))
    for (name, kind), sizes in zip(kinds, SMALL if options.small else ENCODERS, strict=True):
        tokenizer = name.replace("text_encoder", "tokenizer")
        parts[tokenizer] = CLIPTokenizer.from_pretrained(asset("shapes-sdxl") / tokenizer, model_max_length=TOKENS)
        config = CLIPTextConfig(vocab_size=49408, max_position_embeddings=TOKENS, **sizes)
        parts[name] = randomize(kind(config))
    kind = type(family.pipeline)
    pipeline = kind(**parts, scheduler=family.pipeline.scheduler, **OPTIONS[options.family])
    pipeline.to(torch.float16).save_pretrained(options.out / "teacher")
    if not options.small:
        torch.save(sam_model_registry["vit_b"]().state_dict(), options.out / "sam_vit_b.pth")
    pictures = options.out / "pictures"
    pictures.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for index in range(8):
        blocks = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        side = options.resolution
        Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(f"coloured blocks, number {index}")


if __name__ == "__main__":
    main()
