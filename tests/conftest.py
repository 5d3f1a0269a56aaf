"""A tiny SDXL with random weights: the same stock classes as the real one, so the tests take no special path."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test asks a real hub

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from flashdmd_cli.building.text import MAX_LENGTH, write_tokenizer
from flashdmd_cli.data.shards import Batch
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.runs import device
from flashdmd_cli.runs.tracking import COSTS, read_metrics

torch.set_num_threads(1)
_SECONDS: dict[str, float] = defaultdict(float)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up how long each file's tests took, set-up included."""
    _SECONDS[report.location[0]] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it, the slowest file first: a suite that grows slow should be seen to."""
    terminalreporter.section("seconds per file")
    for name, seconds in sorted(_SECONDS.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{seconds:7.1f}  {name}")


def tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), transformer_layers_per_block=1, cross_attention_dim=32, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
        norm_num_groups=8,
    )  # fmt: skip


def tiny_text(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """A text encoder for the words of `tokenizer`, 16 wide."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=MAX_LENGTH, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def tiny_vae(**options: Any) -> AutoencoderKL:
    """An autoencoder of 32-pixel pictures with 8 x 8 latents in 4 channels."""
    return AutoencoderKL(**{
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 8), "latent_channels": 4, "norm_num_groups": 4, "sample_size": 32,
        **options,
    })  # fmt: skip


@pytest.fixture(scope="session")
def tiny_sd15_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1.5 folder with random weights and the scheduler of the real one."""
    return _write_sd15(tmp_path_factory.mktemp("sd15"), "epsilon")


@pytest.fixture(scope="session")
def tiny_sd21_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 2.1 folder with random weights, which predicts velocities."""
    return _write_sd15(tmp_path_factory.mktemp("sd21"), "v_prediction")


def _write_sd15(place: Path, prediction: str) -> Path:
    folder, is_v2 = place / "teacher", prediction == "v_prediction"
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "tokenizer")
    text: dict[str, Any] = tiny_text(tokenizer).to_dict()
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4) if is_v2 else 2, cross_attention_dim=16, use_linear_projection=is_v2,
        norm_num_groups=8,
    )  # fmt: skip
    StableDiffusionPipeline(
        unet=unet, vae=tiny_vae(scaling_factor=0.18), tokenizer=tokenizer,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text | {"hidden_act": "gelu" if is_v2 else "quick_gelu"})),
        scheduler=PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                                skip_prk_steps=True, prediction_type=prediction),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


SD3_SHIFT = 2.5


@pytest.fixture(scope="session")
def tiny_sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD3 folder with random weights: 32-pixel pictures, 8 x 8 latents in 4 channels, a shift of its own."""
    folder = tmp_path_factory.mktemp("sd3") / "teacher"
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "tokenizer")
    vae = tiny_vae(scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=40, caption_projection_dim=16, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=8, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=SD3_SHIFT), vae=vae,
        text_encoder=CLIPTextModelWithProjection(tiny_text(tokenizer)), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(tiny_text(tokenizer)), tokenizer_2=tokenizer,
        text_encoder_3=None, tokenizer_3=None,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with random weights: 32-pixel pictures, 8 x 8 latents in 4 channels."""
    folder = tmp_path_factory.mktemp("tiny") / "teacher"
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "tokenizer")

    StableDiffusionXLPipeline(
        vae=tiny_vae(block_out_channels=(8, 8, 16), scaling_factor=0.7),
        text_encoder=CLIPTextModel(tiny_text(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(tiny_text(tokenizer)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=tiny_unet(),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_family(tiny_folder: Path) -> SDXLFamily:
    return SDXLFamily.load(tiny_folder)


@pytest.fixture(autouse=True)
def fp32_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """`model.precision: auto` is fp32 in every test, whatever this machine has; a test of bf16 says so itself."""
    monkeypatch.setattr(device, "has_native_bf16", lambda name: False)


@pytest.fixture(autouse=True)
def plans_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans count the small network of `bench` in every test: SDXL takes many seconds."""
    from flashdmd_cli.workflows.plan import counting

    count_any, sizes_any = counting.count, counting.sizes

    def small(recipe: Any) -> Any:
        return recipe.model_copy(update={"gan": recipe.gan.model_copy(update={"crop_px": 64})})

    def count(recipe: Any, precision: str, resolution: int = 64, is_small: bool = True) -> Any:
        return count_any(small(recipe), precision, 64, True)

    def sizes(recipe: Any, precision: str, resolution: int = 64, is_small: bool = True) -> Any:
        return sizes_any(small(recipe), precision, 64, True)

    monkeypatch.setattr(counting, "count", count)
    monkeypatch.setattr(counting, "sizes", sizes)


def repeatable(out: Path) -> list[dict[str, Any]]:
    """The logged rows of a run in `out`; each must have its costs, which depend on the machine, in their own file."""
    rows, costs = read_metrics(out), [json.loads(line) for line in (out / COSTS).read_text().splitlines()]
    assert [row["step"] for row in rows] == [row.pop("step") for row in costs]
    assert all(set(row) == {"seconds_per_kimg", "memory_gb"} and min(row.values()) > 0 for row in costs)
    return rows


class RandomData:
    """Noise with captions: enough for a loop that is tested for its arithmetic."""

    def batch(self, positions: range, seed: int = 0) -> Batch:
        rows = [torch.rand((3, 32, 32), generator=torch.Generator().manual_seed(place)) for place in positions]
        return Batch(torch.stack(rows) * 2 - 1, ["a plain red circle above a striped blue ring"] * len(positions))


@pytest.fixture
def random_data() -> RandomData:
    return RandomData()
