"""Metadata of Stable Diffusion 3."""

from __future__ import annotations

from flashdmd_cli.families.facts import DefaultRecipes, Facts

SD3 = Facts(
    name="sd3",
    pipeline="StableDiffusion3",
    hub_id="stabilityai/stable-diffusion-3-medium-diffusers",
    size="6.0 GB in float16, without T5",
    licenses={
        "stabilityai/stable-diffusion-3-medium-diffusers": "stabilityai-ai-community",
        "stabilityai/stable-diffusion-3.5-medium": "stabilityai-ai-community",
    },
    networks=("transformer", "vae", "text_encoder", "text_encoder_2"),
    settings=("tokenizer", "tokenizer_2", "scheduler"),
    encoders=("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    file_marks=("joint_blocks.",),
    text_marks=("text_encoders.",),
    resolution=1024,
    recipes=DefaultRecipes(
        "sd3-4step",
        "align/sd3",
        "align/sd3",
        "reward/sd3",
        distill_steps={8: "sd3-8step"},
        distill_adapters={4: "sd3-4step"},
        align_steps={8: "align/sd3-8step"},
    ),  # fmt: skip
    module_name="flashdmd_cli.families.sd3.module",
    optional=("text_encoder_3", "tokenizer_3"),
)
"""The third text encoder, T5, is optional, as in the stock pipeline."""
