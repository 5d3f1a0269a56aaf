"""The latent reward model: published folder layouts, what its score is made of, what it refuses, how it learns."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.sdxl.reward import LatentRewardModel, RewardConfig
from flashdmd_cli.families.sdxl.reward_files import RewardBase, load_reward, new_reward, save_reward

SMALL = {"visual_projection": {"weight": torch.zeros(3, 3)}, "logit_scale": 1}
PROMPTS = ["a plain red circle above a striped blue ring", "a dotted green square left of a plain white ring"]


def latents(num: int = 2, channels: int = 4) -> torch.Tensor:
    return torch.randn(num, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def at(t: int, num: int = 2) -> torch.Tensor:
    return torch.full((num,), t)


@pytest.fixture(scope="module")
def reward(tiny_family) -> LatentRewardModel:
    torch.manual_seed(3)
    return new_reward(tiny_family, RewardConfig(resolution=32)).requires_grad_(False)


@pytest.fixture(scope="module")
def published(reward, tiny_family, tmp_path_factory) -> Path:
    """The folder that LRM's own code writes for SDXL: a whole UNet, both text encoders, a pickle of plain tensors."""
    folder = tmp_path_factory.mktemp("lrm") / "lrm_sdxl"
    tiny_family.pipeline.unet.save_pretrained(folder / "unet")
    tiny_family.pipeline.text_encoder.save_pretrained(folder / "text_encoder")
    tiny_family.pipeline.text_encoder_2.save_pretrained(folder / "text_encoder_2")
    projection = {"weight": reward.visual_projection.weight.clone()}
    torch.save({"visual_projection": projection, "logit_scale": 2.5}, folder / "state_dict.pt")
    return folder


def features(unet, latent, t, context, added):
    """The taps by the stock forward pass: what it keeps for its skip connections, and the middle block."""
    taps: dict[str, torch.Tensor] = {}
    mid = unet.mid_block.register_forward_hook(lambda m, a, out: taps.update(mid=out))
    res = unet.up_blocks[0].register_forward_pre_hook(
        lambda m, a, k: taps.update(skips=k["res_hidden_states_tuple"]), with_kwargs=True
    )
    first = unet.up_blocks[1].register_forward_pre_hook(
        lambda m, a, k: taps.update(first=k["res_hidden_states_tuple"]), with_kwargs=True
    )
    unet(latent, t, context, added_cond_kwargs=added)
    for hook in (mid, res, first):
        hook.remove()
    # One layer a block: skips are conv_in, block 0's layer, its downsampler, block 1's layer.
    return taps["first"][1], taps["skips"][1], taps["mid"]


def test_score_is_the_cosine_of_pooled_taps_with_the_middle_guided(published, reward, tiny_family):
    model = load_reward(published, RewardBase.of(tiny_family))
    z, t = latents(), at(749)
    unet = tiny_family.pipeline.unet
    cond, null = tiny_family.encode(PROMPTS), tiny_family.encode(["", ""])
    time_ids = torch.tensor([[1024, 1024, 0, 0, 1024, 1024]] * 2, dtype=torch.float32)
    with torch.no_grad():
        rows = [
            [
                f.mean((2, 3))
                for f in features(unet, z, t, c["context"], {"text_embeds": c["pooled"], "time_ids": time_ids})
            ]
            for c in (cond, null)
        ]
    (low, high, middle), (_, _, empty) = rows
    for guided, mid in ((True, empty + 7.5 * (middle - empty)), (False, middle)):
        picture = torch.cat([low, high, mid], 1) @ reward.visual_projection.weight.T
        expected = math.exp(2.5) * F.cosine_similarity(picture, cond["pooled"])
        with torch.no_grad():
            got = model.score(z, t, model.encode(PROMPTS), guided=guided)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_score_does_not_depend_on_the_batch(reward):
    z, text = latents(), reward.encode(PROMPTS)
    both = reward.score(z, at(499), text)
    alone = reward.score(z[1:], at(499, 1), reward.encode(PROMPTS[1:]))
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    four = reward.score(z.repeat_interleave(2, 0), at(499, 4), text.repeat(2))
    torch.testing.assert_close(four[::2], both, rtol=1e-4, atol=1e-5)


def test_timesteps_outside_the_training_range(reward):
    z, text = latents(), reward.encode(PROMPTS)
    with pytest.raises(ValueError, match="timestep 999 lies outside 1 to 951"):
        reward.score(z, at(999), text)
    torch.testing.assert_close(reward.score(z, at(999), text, "clamp"), reward.score(z, at(951), text))
    assert not torch.equal(reward.score(z, at(999), text, "clamp"), reward.score(z, at(950), text))


def test_sd15_layout(tiny_family, tmp_path):
    """One text encoder, a projection of its pooled state, five taps of 4 blocks, no micro-conditioning."""
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 16, 16), layers_per_block=2, cross_attention_dim=16,
        attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    tokenizer = tiny_family.pipeline.tokenizer
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=24, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "unet")
    text.save_pretrained(tmp_path / "text_encoder")
    part = {"visual_projection": {"weight": torch.randn(16, 8 + 16 + 16 + 16 + 16)},
            "text_projection": {"weight": torch.randn(16, 16)}, "logit_scale": torch.tensor(1.0)}  # fmt: skip
    torch.save(part, tmp_path / "state_dict.pt")
    model = load_reward(tmp_path, RewardBase([tokenizer]))
    with torch.no_grad():
        scores = model.score(latents(), at(499), model.encode(PROMPTS))
    assert scores.shape == (2,) and scores.abs().max() <= math.e
    assert torch.equal(model.text_projection.weight, part["text_projection"]["weight"])
    half = load_reward(tmp_path, RewardBase([tokenizer]), torch.float16)
    with torch.no_grad():
        torch.testing.assert_close(half.score(latents(), at(499), half.encode(PROMPTS)), scores, rtol=0.02, atol=0.02)


def test_save_and_load_give_the_same_scores(reward, tiny_family, tmp_path):
    save_reward(reward, tmp_path / "whole")
    again = load_reward(tmp_path / "whole", RewardBase.of(tiny_family))
    z, text = latents(), PROMPTS
    torch.testing.assert_close(
        again.score(z, at(499), again.encode(text)), reward.score(z, at(499), reward.encode(text))
    )


def test_what_is_still_the_teachers_is_not_stored(reward, tiny_family, tiny_folder, tmp_path):
    base = RewardBase.of(tiny_family)
    torch.manual_seed(3)
    model = new_reward(tiny_family, RewardConfig(resolution=32)).requires_grad_(False)
    model.trunk.mid_block.resnets[0].conv1.weight.mul_(2)
    save_reward(model, tmp_path, base)
    stored = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert list(stored) == ["mid_block.resnets.0.conv1.weight"] and not (tmp_path / "text_encoder").exists()
    again = load_reward(tmp_path, base)
    z = latents()
    torch.testing.assert_close(
        again.score(z, at(499), again.encode(PROMPTS)), model.score(z, at(499), model.encode(PROMPTS))
    )
    # A teacher stored in 16 bits, as where adapters are trained, is the same teacher.
    half = load_reward(tmp_path, RewardBase.of(SDXLFamily.load(tiny_folder, weights="bf16")))
    torch.testing.assert_close(
        half.score(z, at(499), half.encode(PROMPTS)),
        model.score(z, at(499), model.encode(PROMPTS)),
        rtol=0.05,
        atol=0.05,
    )
    other = RewardBase(base.tokenizers, base.text_encoders, base.denoiser, "of another teacher")
    with pytest.raises(ValueError, match="another teacher"):
        load_reward(tmp_path, other)


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda f: (f / "state_dict.pt").unlink(), FileNotFoundError, "state_dict.pt"),
        (lambda f: shutil.rmtree(f / "text_encoder_2"), FileNotFoundError, "text_encoder_2"),
        (lambda f: shutil.rmtree(f / "unet"), FileNotFoundError, "unet"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), ValueError, "unet/ has no"),
        (
            lambda f: torch.save(SMALL, f / "state_dict.pt"),
            ValueError,
            "visual_projection.weight is (3, 3)",
        ),
    ],
    ids=["no projections", "one encoder", "no trunk", "no weights", "other sizes"],
)  # fmt: skip
def test_damaged_folders_are_told(damage, error, said, published, tiny_family, tmp_path):
    folder = shutil.copytree(published, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(error) as caught:
        load_reward(folder, RewardBase.of(tiny_family))
    assert said in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused(published, tiny_family, tmp_path):
    folder = shutil.copytree(published, tmp_path / "evil")
    torch.save({"visual_projection": Path("x"), "logit_scale": 1.0}, folder / "state_dict.pt")
    with pytest.raises(Exception, match="could run code"):
        load_reward(folder, RewardBase.of(tiny_family))


def test_config_is_json(reward, tmp_path):
    save_reward(reward, tmp_path)
    assert json.loads((tmp_path / "reward.json").read_text())["timesteps"] == [1, 951]
