"""The SD3 family against the stock classes it stands for: what is trained is what ships."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from flashdmd_cli.core.grid import flow_grid, teacher_shift
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.registry import family_at
from flashdmd_cli.families.sd3.family import SD3Family
from flashdmd_cli.families.sd3.layout import dimensions, refuse
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.teacher import difference
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.steps import Objective
from flashdmd_cli.workflows.encoders import encoders_hash
from flashdmd_cli.workflows.inputs.teachers import teacher_record

from .conftest import SD3_SHIFT as SHIFT

CAPTIONS = ["a plain red circle above a striped blue ring", "a dotted white square left of a plain green triangle"]
NO_T5: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.fixture(scope="module")
def family(tiny_sd3_folder: Path) -> SD3Family:
    return SD3Family.load(tiny_sd3_folder)


@pytest.fixture(scope="module")
def stock(tiny_sd3_folder: Path) -> StableDiffusion3Pipeline:
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3_folder, **NO_T5)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(family: SD3Family, num: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(num, *family.latent_shape, generator=torch.Generator().manual_seed(seed))


def full_context(stock: StableDiffusion3Pipeline, texts: list[str]) -> tuple[Tensor, Tensor]:
    """The stock pipeline's embeddings at its defaults: 24 tokens of CLIP and the 256 zeros of the absent T5."""
    context, _, pooled, _ = stock.encode_prompt(texts, texts, texts, do_classifier_free_guidance=False)
    assert context.shape[1] == 24 + 256
    return context, pooled


def test_one_token_has_the_effect_of_all_that_the_absent_encoder_leaves(
    family: SD3Family, stock: StableDiffusion3Pipeline
) -> None:
    x, t, cond = noise(family), torch.tensor([900.0, 20.0]), family.encode(CAPTIONS)
    assert cond["context"].shape == (2, 25, 40)
    with torch.no_grad():
        expected = stock.transformer(x, *full_context(stock, CAPTIONS), t).sample
        torch.testing.assert_close(family.teacher.output(x, t, cond), expected, rtol=1e-5, atol=1e-5)
        # The count matters: the stock network with one such token answers otherwise.
        once = stock.transformer(x, cond["context"], cond["pooled"], t).sample
    assert (once - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("steps", "sigmas"), [(1, [1]), (2, [1, 0.75]), (4, [1, 0.9, 0.75, 0.5]), (8, [1, 21 / 22, 0.9, 15 / 18])]
)
def test_the_grid_is_even_before_the_shift(family: SD3Family, steps: int, sigmas: list[float]) -> None:
    own = family.grid(steps)
    scheduler = FlowMatchLCMScheduler.from_config(own.config)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == pytest.approx(list(own.timesteps), abs=1e-3)
    assert teacher_shift(scheduler.config) == SHIFT
    assert len(own) == steps and [t / 1000 for t in flow_grid(steps, 3.0).timesteps[:4]] == pytest.approx(sigmas)


def test_training_times_are_drawn_before_the_shift(family: SD3Family) -> None:
    even = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    u = torch.linspace(0, 1, 5)
    found = family.schedule.sample(u, 20, 980)
    torch.testing.assert_close(found, 1000 * SHIFT * (w := 0.02 + 0.96 * u) / (1 + (SHIFT - 1) * w))
    assert float(even.timesteps[-20]) == pytest.approx(float(found[0]), rel=1e-4)


@dataclass
class Seen:
    """A denoiser that predicts the velocity 0 and remembers its times."""

    t: Tensor = field(default_factory=lambda: torch.empty(0))

    def output(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        self.t = t
        return torch.zeros_like(x_t)


def test_the_fake_score_is_trained_at_sd3s_times(family: SD3Family) -> None:
    flags = {"gan.kind": "none", "dm.steps": "all"}
    seen, x, cond = Seen(), noise(family, 256), Conditioning({})
    draws = Draws(0, 0, range(256), torch.device("cpu"))
    objective = Objective(load_recipe("sd3-4step", flags=flags), family, family.grid(4))
    loss = objective.fake_loss(seen, x, cond, draws)  # type: ignore[arg-type]
    tau = torch.distributions.Normal(0, 1).icdf(draws.uniform("fake/t")).sigmoid() * 0.999
    torch.testing.assert_close(seen.t, 1000 * SHIFT * tau / (1 + (SHIFT - 1) * tau), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(loss, (draws.normal("fake/noise", x.shape[1:]) - x).square().mean())
    medium = ((seen.t > 400) & (seen.t < 900)).float().mean()
    Objective(load_recipe("sd3-4step", ["fake.times=uniform"], flags), family, family.grid(4)).fake_loss(
        seen,
        x,
        cond,
        draws,  # type: ignore[arg-type]
    )
    assert medium > ((seen.t > 400) & (seen.t < 900)).float().mean() + 0.1


def test_losses_are_those_of_the_velocity_form(family: SD3Family, stock: StableDiffusion3Pipeline) -> None:
    """Distribution matching and the fake score's loss, written with velocities of the stock network alone."""
    flags = {"gan.kind": "none", "dm.steps": "all"}
    objective = Objective(load_recipe("sd3-4step", flags=flags), family, family.grid(4))
    draws, shape = Draws(3, 5, range(2), torch.device("cpu")), family.latent_shape
    x, cond = noise(family, seed=2).requires_grad_(), family.encode(CAPTIONS)
    fake = family.base.copy(trainable=False)
    with torch.no_grad():
        for parameter in fake.net.parameters():
            parameter.mul_(1.05)
    other = copy.deepcopy(stock.transformer)
    other.load_state_dict(fake.net.state_dict())
    objective.dm_loss(x, family.teacher, fake.view(), cond, draws).backward()

    def noised(role: str, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma = (SHIFT * tau / (1 + (SHIFT - 1) * tau)).view(-1, 1, 1, 1)
        eps = draws.normal(f"{role}/noise", shape)
        return (1 - sigma) * x.detach() + sigma * eps, sigma, eps

    texts, nothing = full_context(stock, CAPTIONS), full_context(stock, ["", ""])
    with torch.no_grad():
        x_t, sigma, _ = noised("dm", 0.02 + 0.96 * draws.uniform("dm/t"))
        times = 1000 * sigma.flatten()
        v, u = (stock.transformer(x_t, *text, times).sample for text in (texts, nothing))
        v_real, v_fake = u + 7 * (v - u), other(x_t, *texts, times).sample
        scale = (x.detach() - x_t + sigma * v_real).abs().mean((1, 2, 3), keepdim=True)
        expected = sigma * (v_real - v_fake) / scale / x.numel()
        torch.testing.assert_close(x.grad, expected, rtol=1e-3, atol=1e-7)
        tau = torch.special.ndtri(draws.uniform("fake/t")).sigmoid() * 0.999
        x_t, sigma, eps = noised("fake", tau)
        loss = (other(x_t, *texts, 1000 * sigma.flatten()).sample - (eps - x)).square().mean()
        torch.testing.assert_close(objective.fake_loss(fake.view(), x, cond, draws), loss, rtol=1e-5, atol=1e-5)


def test_the_unconditional_input_is_the_empty_prompt(family: SD3Family, stock: StableDiffusion3Pipeline) -> None:
    null = family.null(family.encode(CAPTIONS))
    context, pooled = full_context(stock, ["", ""])
    torch.testing.assert_close(null["context"], context[:, :25])
    torch.testing.assert_close(null["pooled"], pooled)


@pytest.fixture(scope="module")
def with_t5(tiny_sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SD3 with a tiny T5 whose embeddings are as wide as the transformer's context."""
    torch.manual_seed(4)
    words = "a red blue ring".split()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in words)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    config = T5Config(vocab_size=len(tokenizer), d_model=40, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0,
                      eos_token_id=1, tie_word_embeddings=False)  # fmt: skip
    parts = {"text_encoder_3": T5EncoderModel(config), "tokenizer_3": tokenizer}
    folder = tmp_path_factory.mktemp("t5") / "teacher"
    StableDiffusion3Pipeline.from_pretrained(tiny_sd3_folder, **parts).save_pretrained(folder)
    return folder


def test_t5_is_used_if_it_is_there(with_t5: Path, tmp_path: Path) -> None:
    family = SD3Family.load(with_t5)
    stock = StableDiffusion3Pipeline.from_pretrained(with_t5)
    context, _, pooled, _ = stock.encode_prompt(CAPTIONS, CAPTIONS, CAPTIONS, do_classifier_free_guidance=False)
    cond = family.encode(CAPTIONS)
    torch.testing.assert_close(cond["context"], context)
    assert context.shape == (2, 24 + 256, 40) == (2, *dimensions(with_t5).text["context"])
    assert context[:, 24:].abs().max() > 0.01 and len(family.tokenizers) == 3
    x, t = noise(family), torch.tensor([900.0, 20.0])
    with torch.no_grad():
        expected = stock.transformer(x, context, pooled, t).sample
        torch.testing.assert_close(family.teacher.output(x, t, cond), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(family.null(cond)["context"], family.encode(["", ""])["context"])
    family.save_pipeline(family.base.net, tmp_path / "exported", family.grid(4))
    assert (tmp_path / "exported" / "text_encoder_3").is_dir()
    # A folder with the half-precision files alone, and a denoiser in 16 bits, which takes T5 along.
    place = tmp_path / "exported" / "text_encoder_3"
    stock.text_encoder_3.half().save_pretrained(place, variant="fp16")
    (place / "model.safetensors").unlink()
    half = SD3Family.load(tmp_path / "exported", weights="bf16")
    assert half.pipeline.text_encoder_3.dtype == torch.bfloat16
    torch.testing.assert_close(half.encode(CAPTIONS)["context"], context, rtol=0.05, atol=0.05)
    assert half.teacher.output(x, t, half.encode(CAPTIONS)).isfinite().all()


def test_t5_is_part_of_what_identifies_a_teacher(with_t5: Path, tiny_sd3_folder: Path, tmp_path: Path) -> None:
    """A text cache made with T5 does not fit the teacher without it, and a run is not resumed with the other one."""
    assert encoders_hash(with_t5) != encoders_hash(tiny_sd3_folder)
    one, two = (teacher_record(str(folder), folder) for folder in (with_t5, tiny_sd3_folder))
    assert "text_encoder_3" in difference(one, two) and "tokenizer_3" in difference(two, one)
    # In the hub's cache, T5 is there only if another command fetched it: it is not used.
    snapshot = shutil.copytree(with_t5, tmp_path / "snapshots" / "1234")
    before = encoders_hash(snapshot), teacher_record("sd3", snapshot).parts
    assert SD3Family.load(snapshot).pipeline.text_encoder_3 is None
    assert dimensions(snapshot) == dimensions(tiny_sd3_folder)
    shutil.rmtree(snapshot / "text_encoder_3")
    shutil.rmtree(snapshot / "tokenizer_3")
    assert (encoders_hash(snapshot), teacher_record("sd3", snapshot).parts) == before


def test_adapters_cover_the_second_attention_of_sd35(family: SD3Family) -> None:
    """Every linear layer of attention and feed-forward parts, `attn2` of dual-attention blocks included."""
    base = family.base.twin()
    base.add_adapter("student", 2, 2.0)
    blocks = base.net.transformer_blocks
    parts = {"attn", "attn2", "ff", "ff_context"}
    linear = {name for name, module in blocks.named_modules() if isinstance(module, torch.nn.Linear)
              and ".lora_" not in name and name.split(".")[1] in parts}  # fmt: skip
    adapted = {name for name, module in blocks.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {name.removesuffix(".base_layer") for name in linear}
    assert {"0.attn2.to_q", "0.attn2.to_out.0", "2.attn.add_q_proj", "0.ff_context.net.2"} <= adapted


def test_features_are_the_tokens_after_half_of_the_blocks(family: SD3Family) -> None:
    net, x, t, cond = family.base.net, noise(family), torch.tensor([900.0, 20.0]), family.encode(CAPTIONS)
    seen: list[Tensor] = []
    hook = net.transformer_blocks[1].register_forward_hook(lambda module, args, out: seen.append(out[1]))
    last: list[int] = []
    other = net.transformer_blocks[2].register_forward_hook(lambda *args: last.append(1))
    with torch.no_grad():
        (features,) = family.teacher.features(x, t, cond)
    hook.remove()
    other.remove()
    assert features.shape == (2, *family.tap_widths, 4, 4) and not last
    tokens = seen[0].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(features.sort(1).values, tokens.sort(1).values)


def test_what_is_no_teacher_is_refused(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    refuse(tiny_sd3_folder)
    assert family_at(tiny_sd3_folder).name == "sd3"
    with pytest.raises(Unfit, match="no model_index.json"):
        refuse(tmp_path)
    copy = shutil.copytree(tiny_sd3_folder, tmp_path / "copy")
    config = json.loads((copy / "vae" / "config.json").read_text())
    (copy / "vae" / "config.json").write_text(json.dumps(config | {"shift_factor": None}))
    with pytest.raises(ValueError, match="shift_factor is null"):
        SD3Family.load(copy)
    shutil.rmtree(copy / "text_encoder_2")
    with pytest.raises(Unfit, match="has no text_encoder_2/"):
        refuse(copy)
