"""Metadata of Stable Diffusion XL."""

from __future__ import annotations

from flashdmd_cli.families.facts import DefaultRecipes, Facts

SDXL = Facts(
    name="sdxl",
    pipeline="StableDiffusionXL",
    hub_id="stabilityai/stable-diffusion-xl-base-1.0",
    size="6.9 GB in float16",
    licenses={"stabilityai/stable-diffusion-xl-base-1.0": "openrail++"},
    networks=("unet", "vae", "text_encoder", "text_encoder_2"),
    settings=("tokenizer", "tokenizer_2", "scheduler"),
    encoders=("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    file_marks=("input_blocks.",),
    text_marks=("conditioner.embedders.",),
    resolution=1024,
    recipes=DefaultRecipes(
        "sdxl-4step",
        "align/sdxl",
        "align/sdxl-lora",
        "reward/sdxl",
        distill_steps={8: "sdxl-8step"},
        distill_adapters={4: "sdxl-4step-lora"},
        align_steps={8: "align/sdxl-8step"},
    ),
    module_name="flashdmd_cli.families.sdxl.module",
)
