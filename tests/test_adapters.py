"""Adapters: identity at the start, only they train, merged copy is plain and answers the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from flashdmd_cli.models.adapters import LORA_TARGETS, add_lora, merge_lora, trainable_parameters
from torch import Tensor


def tiny_unet(linear: bool = True) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=8, norm_num_groups=8, use_linear_projection=linear,
    ).eval()  # fmt: skip


def answer(unet: UNet2DConditionModel) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    return unet(noisy, 10, torch.randn(2, 3, 8, generator=generator)).sample


def trained(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Moves every adapter weight, as an optimizer would."""
    with torch.no_grad():
        for parameter in trainable_parameters(unet):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return unet


@pytest.mark.parametrize("linear", [True, False])
def test_adapter_starts_as_the_identity_and_covers_every_target(linear: bool) -> None:
    unet = tiny_unet(linear)
    before = answer(unet)
    targets = [name for name, _ in unet.named_modules() if name.endswith(tuple(f".{t}" for t in LORA_TARGETS))]
    add_lora(unet, rank=4, alpha=4)
    assert torch.allclose(answer(unet), before, atol=1e-6)
    adapted = [name for name, _ in unet.named_modules() if name.endswith(".lora_A.default")]
    assert sorted(name.removesuffix(".lora_A.default") for name in adapted) == sorted(targets)
    assert len(trainable_parameters(unet)) == 2 * len(targets)


def test_only_the_adapter_trains() -> None:
    unet = add_lora(tiny_unet(), rank=4, alpha=8)
    answer(trained(unet)).square().mean().backward()
    for name, parameter in unet.named_parameters():
        assert ("lora_" in name) == parameter.requires_grad == (parameter.grad is not None), name


def test_everything_trains_without_an_adapter() -> None:
    unet = tiny_unet()
    assert len(trainable_parameters(unet)) == len(list(unet.parameters()))


@pytest.mark.parametrize("linear", [True, False])
def test_merged_network_is_plain_and_answers_the_same(linear: bool, tmp_path: Path) -> None:
    plain = tiny_unet(linear)
    keys, before = set(plain.state_dict()), answer(plain)
    unet = trained(add_lora(plain, rank=4, alpha=8))
    adapted = answer(unet)
    assert not torch.allclose(adapted, before, atol=1e-3)
    merged = merge_lora(copy.deepcopy(unet))
    assert set(merged.state_dict()) == keys
    assert torch.allclose(answer(merged), adapted, atol=1e-5)
    assert torch.equal(answer(unet), adapted) and len(trainable_parameters(unet)) > 0
    merged.save_pretrained(tmp_path)
    assert torch.equal(answer(UNet2DConditionModel.from_pretrained(tmp_path)), answer(merged))


def test_a_plain_network_is_left_as_it_is() -> None:
    unet = tiny_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    assert merge_lora(unet) is unet
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_a_second_adapter_is_refused() -> None:
    unet = add_lora(tiny_unet(), rank=2, alpha=2)
    with pytest.raises(ValueError, match="already"):
        add_lora(unet, rank=2, alpha=2)
