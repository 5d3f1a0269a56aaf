"""Training of the teacher's denoiser with frozen encoders, and writing of the stock pipeline folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer

from flashdmd_cli.building.loop import train
from flashdmd_cli.building.pool import load_pool
from flashdmd_cli.building.vae import load_code
from flashdmd_cli.families.reading import read_network, save_pipeline
from flashdmd_cli.families.sdxl.reading import KINDS
from flashdmd_cli.shapes.captions import captions
from flashdmd_cli.shapes.world import IMAGE_SIZE

BATCH = 32
CAPTION_DROPOUT = 0.1
MIN_SNR_GAMMA = 5.0


def new_unet() -> UNet2DConditionModel:
    """SDXL's architecture with 1/280 of its parameters: first level without attention, `text_time` conditioning."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(96, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(3, 6),
        transformer_layers_per_block=(1, 1),
        cross_attention_dim=192,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + 128,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """SDXL's noise schedule, with the timestep spacing that starts at the last timestep."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def build_unet(
    work: Path, out: Path, steps: int = 20_000, seed: int = 0, say: Callable[[str], None] = print
) -> StableDiffusionXLPipeline:
    """Train the denoiser and write the complete teacher to `out`, which already contains encoders and autoencoder."""
    pool = load_pool(work)
    code = load_code(work, pool)
    tokenizers = [CLIPTokenizer.from_pretrained(out / name) for name in ("tokenizer", "tokenizer_2")]
    one, two = (read_network(KINDS[part], out / part) for part in ("text_encoder", "text_encoder_2"))
    scheduler = new_scheduler()
    abar = scheduler.alphas_cumprod
    torch.manual_seed(seed)
    unet = new_unet()
    time_ids = torch.tensor([IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE]).float().repeat(BATCH, 1)

    def loss_fn(generator: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(pool), (BATCH,), generator=generator)
        x = code.encode(pool.pictures(index))
        with torch.no_grad():
            texts = captions(pool.attributes[index], generator)
            ids = tokenizers[0](texts, padding="max_length", max_length=24, return_tensors="pt").input_ids
            first, second = one(ids, output_hidden_states=True), two(ids, output_hidden_states=True)
            context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
            keep = (torch.rand(BATCH, generator=generator) >= CAPTION_DROPOUT).float()
            context, pooled = context * keep[:, None, None], second.text_embeds * keep[:, None]
        t = torch.randint(1000, (BATCH,), generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        noisy = scheduler.add_noise(x, noise, t)
        with torch.autocast("cpu", torch.bfloat16):
            added = {"text_embeds": pooled, "time_ids": time_ids}
            eps = unet(noisy, t, context, added_cond_kwargs=added).sample.float()
        error = (eps - noise).square().mean(dim=(1, 2, 3))
        snr = abar[t] / (1 - abar[t])
        # Min-SNR weighting (Hang et al. 2023) favours high noise levels, which determine the composition.
        return {"loss": (error * (MIN_SNR_GAMMA / snr).clamp(max=1.0)).mean(), "eps_mse": error.mean()}

    unet = train("unet", unet, loss_fn, work, steps, lr=1e-3, seed=seed, say=say, ema_decay=0.997)
    return write_teacher(out, unet)


def write_teacher(out: Path, unet: UNet2DConditionModel) -> StableDiffusionXLPipeline:
    """Write the denoiser in half precision and the pipeline's index to `out`, which contains the other components."""
    pipeline = StableDiffusionXLPipeline(
        **{part: read_network(KINDS[part], out / part) for part in ("vae", "text_encoder", "text_encoder_2")},
        tokenizer=CLIPTokenizer.from_pretrained(out / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(out / "tokenizer_2"),
        unet=unet.half(),
        scheduler=new_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    save_pipeline(pipeline, out)
    return pipeline
