"""Metadata of Stable Diffusion 1 and 2."""

from __future__ import annotations

from flashdmd_cli.families.facts import DefaultRecipes, Facts

SD15 = Facts(
    name="sd15",
    pipeline="StableDiffusionPipeline",
    hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
    size="2.1 GB in float16",
    licenses={
        "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
        "stabilityai/stable-diffusion-2-1": "openrail++",
        "stabilityai/stable-diffusion-2-1-base": "openrail++",
    },
    networks=("unet", "vae", "text_encoder"),
    settings=("tokenizer", "scheduler"),
    encoders=("vae", "text_encoder", "tokenizer"),
    file_marks=("input_blocks.",),
    text_marks=("cond_stage_model.",),
    resolution=512,
    recipes=DefaultRecipes("sd15-4step", None, None, None),
    module_name="flashdmd_cli.families.sd15.module",
)
"""The safety checker is not part of a teacher: it judges pictures and does not draw them."""
