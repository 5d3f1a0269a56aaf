"""Tiny repositories with random weights in the layout of the real ones that the presets name: files, keys, settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from flashdmd_cli.building.text import write_tokenizer

from .conftest import tiny_text, tiny_unet

SDXL, SD3 = "stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-3-medium-diffusers"
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "timestep_spacing": "leading", "interpolation_type": "linear", "prediction_type": "epsilon",
}  # fmt: skip
"""SDXL's; its file also has `clip_sample: false` and `set_alpha_to_one: false`, of other schedulers."""
RANK, ALPHA = 2, 4.0


def another_unet(seed: int) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return tiny_unet()


def lora_pairs(net: nn.Module, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(layer, A, B) for linear layers and convolutions of all blocks, which in SDXL are the 788 of those LoRAs."""
    torch.manual_seed(seed)
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name.split(".")[0] in (
            "down_blocks",
            "mid_block",
            "up_blocks",
        ):
            weight = module.weight
            ones = (1,) * (weight.dim() - 2)
            yield name, torch.randn(RANK, *weight.shape[1:]) * 0.2, torch.randn(len(weight), RANK, *ones) * 0.2


def kohya(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """As Hyper-SD, SDXL-Lightning and DMD2 name the tensors of their LoRAs."""
    tensors = {}
    for name, down, up in lora_pairs(net, seed):
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(ALPHA)}
    return tensors


def diffusers(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """As diffusers 0.27, with which PSO was trained, names them; alpha is the rank."""
    pairs = lora_pairs(net, seed)
    return {f"unet.{n}.lora.{side}.weight": w for n, a, b in pairs for side, w in (("down", a), ("up", b))}


def peft(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """As newer versions of diffusers name them."""
    return {f"unet.{n}.lora_{side}.weight": w for n, a, b in lora_pairs(net, seed) for side, w in (("A", a), ("B", b))}


def as_on_the_hub(folder: Path) -> None:
    """Name the tensors of CLIP's encoders as in the real files, which older versions of transformers wrote."""
    for path in [*folder.glob("text_encoder/*.safetensors"), *folder.glob("text_encoder_2/*.safetensors")]:
        tensors = load_file(path)
        old = {
            n if n.startswith(("text_model.", "text_projection.")) else f"text_model.{n}": t for n, t in tensors.items()
        }
        old["text_model.embeddings.position_ids"] = torch.arange(len(tensors)).unsqueeze(0)
        save_file(old, path, metadata={"format": "pt"})


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, path)


def save_sdxl(teacher: Path, folder: Path, unet: UNet2DConditionModel | None, scheduler: object) -> Path:
    """A pipeline in float32 and float16, as the real repositories have it."""
    given = {} if unet is None else {"unet": unet}
    pipeline = StableDiffusionXLPipeline.from_pretrained(teacher, **given, scheduler=scheduler, add_watermarker=False)
    pipeline.save_pretrained(folder)
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    as_on_the_hub(folder)
    return folder


def save_sd3(folder: Path) -> Path:
    """A tiny Stable Diffusion 3 with three text encoders."""
    torch.manual_seed(30)
    clip = write_tokenizer(folder / "tokenizer")
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((f"▁{word}", -1.0) for word in "a red blue ring".split()),
    ]
    t5 = T5Tokenizer(vocab=pieces, extra_ids=0)
    text = T5Config(
        vocab_size=len(t5), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32,
        pos_embed_max_size=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32,
        scaling_factor=0.7, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=CLIPTextModelWithProjection(tiny_text(clip)), tokenizer=clip,
        text_encoder_2=CLIPTextModelWithProjection(tiny_text(clip)), tokenizer_2=clip,
        text_encoder_3=T5EncoderModel(text), tokenizer_3=t5,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    (folder / "text_encoder_3" / "model.safetensors").unlink()
    pipeline.text_encoder_3.half().save_pretrained(folder / "text_encoder_3", variant="fp16", max_shard_size="6KB")
    as_on_the_hub(folder)
    return folder


def build_repositories(root: Path, teacher: Path) -> dict[str, Path]:
    """Hub id -> folder of every repository that a shipped preset names, from the tiny SDXL in `teacher`."""
    at = {name: root / name.replace("/", "--") for name in (
        SDXL, SD3, "stabilityai/sdxl-turbo", "latent-consistency/lcm-sdxl", "ByteDance/SDXL-Lightning",
        "ByteDance/Hyper-SD", "ChenDY/NitroFusion", "tianweiy/DMD2", "ZichenMiao/PSO", "casiatao/LPO",
        "jasperai/flash-sd3",
    )}  # fmt: skip
    save_sdxl(teacher, at[SDXL], None, EulerDiscreteScheduler(**SCHEDULER))
    turbo = EulerAncestralDiscreteScheduler(**{k: v for k, v in SCHEDULER.items() if k != "interpolation_type"})
    turbo.register_to_config(timestep_spacing="trailing")
    save_sdxl(teacher, at["stabilityai/sdxl-turbo"], another_unet(1), turbo)
    torch.manual_seed(2)
    config = {name: value for name, value in tiny_unet().config.items() if name[0] != "_"}
    lcm = UNet2DConditionModel(**config | {"time_cond_proj_dim": 256})
    lcm.save_pretrained(at["latent-consistency/lcm-sdxl"])
    lcm.half().save_pretrained(at["latent-consistency/lcm-sdxl"], variant="fp16")
    files = {
        "ByteDance/SDXL-Lightning": ("sdxl_lightning_4step_unet", "sdxl_lightning_8step_unet"),
        "ChenDY/NitroFusion": ("nitrosd-realism_unet", "nitrosd-vibrant_unet"),
        "tianweiy/DMD2": ("dmd2_sdxl_4step_unet_fp16",),
    }
    for number, (repo, names) in enumerate(files.items()):
        for name in names:
            write(at[repo] / f"{name}.safetensors", another_unet(10 + number).state_dict())
            (at[repo] / f"{name}.bin").write_bytes(b"a pickle")
    another_unet(20).save_pretrained(at["casiatao/LPO"] / "lpo_sdxl_merge" / "unet")
    for steps in (4, 8):
        write(at["ByteDance/Hyper-SD"] / f"Hyper-SDXL-{steps}steps-lora.safetensors", kohya(tiny_unet(), steps))
    write(at["ZichenMiao/PSO"] / "SDXL_DMD2" / "pytorch_lora_weights.safetensors", diffusers(tiny_unet(), 5))
    sd3 = SD3Transformer2DModel.from_pretrained(save_sd3(at[SD3]) / "transformer")
    tuned = get_peft_model(sd3, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["to_q", "to_k"]))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=10.0)
    tuned.save_pretrained(at["jasperai/flash-sd3"])
    return at
