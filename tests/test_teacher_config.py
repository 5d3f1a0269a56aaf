"""What a teacher's configuration says besides its noise schedule is done as the stock pipeline does it, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline

from flashdmd_cli.families.sdxl.family import SDXLFamily

from .test_sdxl import CAPTIONS, draw
from .test_teachers import close, family_with


def test_without_forced_zeros_the_empty_prompt_guides(tiny_folder: Path, tmp_path: Path) -> None:
    family = family_with(tiny_folder, force_zeros_for_empty_prompt=False)
    _, context, _, pooled = family.pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=True)
    for _ in range(2):  # encoded once, then remembered
        null = family.null(family.encode(CAPTIONS))
        close(null["context"], context)
        close(null["pooled"], pooled)
    assert null["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2
    family.save_pipeline(family.base.net, tmp_path, family.grid(4))
    assert StableDiffusionXLPipeline.from_pretrained(tmp_path).config.force_zeros_for_empty_prompt is False


def test_latents_are_normalised_as_the_stock_pipeline_does(tiny_folder: Path) -> None:
    plain = family_with(tiny_folder)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.register_to_config(latents_mean=[-1.6, 1.4, 2.2, -0.7], latents_std=[8.4, 5.9, 5.9, 5.3])
    family = SDXLFamily(pipeline, "statistics")
    told = {"num_inference_steps": 1, "guidance_scale": 1.0}
    latents = pipeline(CAPTIONS, **told, latents=draw(family), output_type="latent").images
    stock = pipeline(CAPTIONS, **told, latents=draw(family), output_type="pt").images
    with torch.no_grad():
        close((family.decode(latents) / 2 + 0.5).clamp(0, 1), stock)
        assert (plain.decode(latents) - family.decode(latents)).abs().max() > 0.01
        pictures = stock * 2 - 1
        mean, again = family.vae.encode(pictures).latent_dist.mean, family.encode_pictures(pictures)
        close(family.latents.to_vae(again), mean)
        close(family.decode(again), family.vae.decode(mean).sample)
    # One without the other is left alone by the stock pipeline.
    pipeline.vae.register_to_config(latents_std=None)
    half = SDXLFamily(pipeline, "half")
    assert torch.equal(half.latents.to_vae(latents), latents / 0.7)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("vae", {"shift_factor": 0.1}),
        ("unet", {"addition_embed_type": None}),
        ("unet", {"time_cond_proj_dim": 256}),
        ("unet", {"class_embed_type": "timestep"}),
        ("unet", {"encoder_hid_dim_type": "ip_image_proj"}),
        ("unet", {"sample_size": (8, 16)}),
        ("unet", {"projection_class_embeddings_input_dim": 56}),
        ("unet", {"in_channels": 9}),
        ("unet", {"out_channels": 8}),
        ("unet", {"cross_attention_dim": 16}),
    ],
)
def test_what_would_be_read_by_half_is_refused_by_name(part: str, change: dict[str, Any], tiny_folder: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folder, add_watermarker=False)
    getattr(pipeline, part).register_to_config(**change)
    with pytest.raises(ValueError, match=f"^{part} {next(iter(change))} .*"):
        SDXLFamily(pipeline, "changed")


def test_parts_of_another_kind_are_refused_by_name(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="^vae is AutoencoderTiny"):
        family_with(tiny_folder, vae=AutoencoderTiny())
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folder, add_watermarker=False)
    pipeline.tokenizer_2.model_max_length = 10**30  # what transformers says where the tokenizer does not
    with pytest.raises(ValueError, match="^tokenizer_2 model_max_length"):
        SDXLFamily(pipeline, "endless")
