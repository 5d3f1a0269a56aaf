"""Draws with nothing but stock libraries from pipeline folders, and tells what was drawn: `stock.py FOLDER ...`."""

import sys

import diffusers
import torch
import transformers
from diffusers import StableDiffusionXLPipeline

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        "a striped red ring left of a plain blue square", num_inference_steps=4, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0), output_type="np",
    ).images  # fmt: skip
    versions = f"torch {torch.__version__} transformers {transformers.__version__} diffusers {diffusers.__version__}"
    print(f"{versions}: {folder} mean {picture.mean():.6f} std {picture.std():.6f}")
