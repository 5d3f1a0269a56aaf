"""The pixel discriminator against segment_anything itself; where its gradients go; the latent discriminator."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import Tensor, nn

from flashdmd_cli.building.sam import draw, points_inside, predict
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.networks.heads import LatentDiscriminator, PixelDiscriminator, estimate_spectral_norms_
from flashdmd_cli.networks.sam import SamTrunk, load_sam_encoder, new_sam

CONFIG: dict[str, Any] = {
    "image_encoder": {
        "img_size": 64, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "out_chans": 16,
        "use_rel_pos": True, "window_size": 8, "global_attn_indexes": [1, 3],
    },
    "prompt_encoder": {"mask_in_chans": 8},
    "mask_decoder": {
        "depth": 2, "num_heads": 2, "mlp_dim": 32, "num_multimask_outputs": 0, "iou_head_depth": 2,
        "iou_head_hidden_dim": 16,
    },
}  # fmt: skip


def random_sam() -> nn.Module:
    """A SAM with nothing at zero, so that every position table matters."""
    torch.manual_seed(0)
    sam = new_sam(CONFIG)
    with torch.no_grad():
        for parameter in sam.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return sam


@pytest.fixture
def encoder() -> Any:
    return random_sam().image_encoder


def pixels(size: tuple[int, int] = (64, 64), batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def judge(discriminator: PixelDiscriminator, picture: Tensor) -> list[Tensor]:
    return discriminator(discriminator.extract_features(picture))


def test_gradient_reaches_pixels_and_heads_but_not_the_trunk(encoder: Any) -> None:
    discriminator = PixelDiscriminator(encoder, channels=16).train()
    picture = pixels().requires_grad_()
    sum(logits.sum() for logits in judge(discriminator, picture)).backward()
    assert picture.grad is not None and picture.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert all(parameter.grad is None for parameter in discriminator.trunk.parameters())
    assert all(parameter.grad is not None for parameter in discriminator.heads.parameters())
    trainable = {name for name, parameter in discriminator.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in discriminator.named_parameters() if name.startswith("heads.")}


def test_pixel_gradient_is_the_derivative(encoder: Any) -> None:
    discriminator = PixelDiscriminator(encoder, channels=16).eval()
    picture = pixels(batch=1)
    direction = torch.randn(picture.shape, generator=torch.Generator().manual_seed(2))

    def score(step: float) -> float:
        return sum(logits.double().mean().item() for logits in judge(discriminator, picture + step * direction))

    leaf = picture.clone().requires_grad_()
    sum(logits.mean() for logits in judge(discriminator, leaf)).backward()
    assert leaf.grad is not None
    # A small step: the kinks of the leaky units bend the difference quotient of a large one.
    step = 3e-4
    with torch.no_grad():
        slope = (score(step) - score(-step)) / (2 * step)
    assert (leaf.grad * direction).sum().item() == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize("size", [(48, 48), (64, 64), (96, 96), (64, 40), (50, 70)])
def test_any_input_size(encoder: Any, size: tuple[int, int]) -> None:
    discriminator = PixelDiscriminator(encoder, channels=16)
    logits = judge(discriminator, pixels(size))
    tokens = [round(side / 4) for side in size]
    assert [x.shape for x in logits] == [(2, 1, (tokens[0] + 1) // 2, (tokens[1] + 1) // 2)] * 2
    assert all(x.isfinite().all() for x in logits)


def test_features_are_the_global_attention_blocks_of_segment_anything(encoder: Any) -> None:
    trunk = SamTrunk(encoder)
    assert trunk.hooks == (1, 3)
    seen: list[Tensor] = []
    for index in trunk.hooks:
        encoder.blocks[index].register_forward_hook(lambda module, args, output: seen.append(output))
    features = trunk(pixels())
    stepped = list(seen)
    seen.clear()
    sam = new_sam(CONFIG)
    encoder(sam.preprocess((pixels() + 1) * 127.5))
    for feature, own, reference in zip(features, stepped, seen, strict=True):
        assert torch.allclose(feature, reference.permute(0, 3, 1, 2), atol=1e-6)
        assert torch.equal(feature, own.permute(0, 3, 1, 2))


def test_tables_at_native_size_are_the_stored_ones(encoder: Any) -> None:
    trunk = SamTrunk(encoder)
    assert trunk.positions(16, 16) is encoder.pos_embed
    table = encoder.blocks[1].attn.rel_pos_h
    offsets = torch.arange(16)[:, None] - torch.arange(16)[None] + 15
    assert torch.equal(get_rel_pos(16, 16, table), table[offsets])


def test_other_sizes_interpolate_and_leave_the_weights_alone(encoder: Any) -> None:
    before = copy.deepcopy(encoder.state_dict())
    trunk = SamTrunk(encoder)
    larger = trunk.positions(24, 32)
    assert larger is not None and larger.shape == (1, 24, 32, 32)
    with torch.no_grad():
        encoder.pos_embed.fill_(0.7)
        assert torch.allclose(trunk.positions(24, 32), torch.tensor(0.7))
        encoder.pos_embed.copy_(before["pos_embed"])
        trunk(pixels((96, 128)))
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key]), key
    # Zero offset stays in the middle of the longer table: a token's relation to itself does not shift with the size.
    table = encoder.blocks[1].attn.rel_pos_h
    assert torch.allclose(get_rel_pos(24, 24, table)[5, 5], table[15], atol=1e-5)


def test_position_tables_matter(encoder: Any) -> None:
    trunk = SamTrunk(encoder)
    before = trunk(pixels((96, 96)))[-1]
    with torch.no_grad():
        encoder.blocks[1].attn.rel_pos_w.zero_()
    assert not torch.allclose(before, trunk(pixels((96, 96)))[-1], atol=1e-3)


def test_trunk_stays_in_eval_and_heads_have_spectral_norm(encoder: Any) -> None:
    assert not any(module.training for module in PixelDiscriminator(encoder).train().trunk.modules())
    discriminator = PixelDiscriminator(encoder, channels=16)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    judge(discriminator, pixels())
    assert all(torch.equal(before[name], value) for name, value in discriminator.state_dict().items())
    for _ in range(30):
        estimate_spectral_norms_(discriminator)
    weight = discriminator.heads[0].residual.weight.flatten(1)
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1.0, abs=0.01)
    after = discriminator.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert {name.rsplit(".", 1)[1] for name in before if not torch.equal(before[name], after[name])} <= {"_u", "_v"}


def test_folder_loads(tmp_path: Path) -> None:
    sam = random_sam()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({key: value.contiguous() for key, value in sam.state_dict().items()}, tmp_path / "model.safetensors")
    encoder = load_sam_encoder(tmp_path)
    assert not encoder.training and not any(parameter.requires_grad for parameter in encoder.parameters())
    for key, value in sam.image_encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key])


def test_official_file_loads_under_any_name(tmp_path: Path) -> None:
    official = sam_model_registry["vit_b"]()
    torch.save(official.state_dict(), tmp_path / "renamed.pth")
    encoder = load_sam_encoder(tmp_path / "renamed.pth")
    assert SamTrunk(encoder).hooks == (2, 5, 8, 11)
    for key, value in official.image_encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key])


def test_small_sam_in_batches_answers_as_segment_anything_picture_by_picture() -> None:
    sam = random_sam()
    generator = torch.Generator().manual_seed(4)
    pictures, truth = draw(3, generator)
    points = points_inside(truth, generator)
    for row in range(3):
        for which in range(2):
            x, y = points[row, which].tolist()
            assert truth[row, which, y, x]
    record = [
        {"image": (picture + 1) * 127.5, "original_size": (64, 64), "point_coords": point[:, None].float(),
         "point_labels": torch.ones(2, 1)}
        for picture, point in zip(pictures, points, strict=True)
    ]  # fmt: skip
    reference = torch.stack([answer["low_res_logits"][:, 0] for answer in sam(record, multimask_output=False)])
    logits, quality = predict(sam, pictures, points)
    assert torch.allclose(logits, reference, atol=1e-4)
    assert quality.shape == (3, 2)


def test_half_precision_trunk_keeps_float_heads(encoder: Any) -> None:
    full = PixelDiscriminator(encoder, channels=16).eval()
    half = PixelDiscriminator(encoder, channels=16, precision="bf16").eval()
    half.load_state_dict(full.state_dict())
    picture = pixels().requires_grad_()
    logits, expected = judge(half, picture), judge(full, picture.detach())
    assert any(not torch.equal(x, y) for x, y in zip(logits, expected, strict=True))
    assert all(x.dtype == torch.float32 for x in logits)
    assert torch.allclose(
        torch.cat([x.flatten() for x in logits]), torch.cat([x.flatten() for x in expected]), atol=0.2
    )
    sum(x.sum() for x in logits).backward()
    assert picture.grad is not None and picture.grad.dtype == torch.float32


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gan.sam: .*nowhere"):
        load_sam_encoder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json"):
        load_sam_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="image_encoder"):
        load_sam_encoder(tmp_path)
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 4, 4, 5)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="official weights"):
        load_sam_encoder(tmp_path / "other.pth")


def test_latent_discriminator_reads_the_middle_block(tiny_family: SDXLFamily) -> None:
    view = tiny_family.base.copy().view()
    unet: Any = view.base.net
    noisy = torch.randn(2, 4, 8, 8, requires_grad=True)
    told = noisy, torch.tensor([10.0, 900.0]), tiny_family.encode(["a", "b"])
    full: list[Tensor] = []
    runs: list[str] = []
    hook = unet.mid_block.register_forward_hook(lambda module, args, output: full.append(output))
    view.output(*told)
    hook.remove()
    unet.up_blocks[0].register_forward_hook(lambda *_: runs.append("up"))
    features = view.features(*told)
    assert not runs  # what lies behind the middle block is not run
    assert len(features) == 1 and torch.equal(features[0], full[0])
    assert tiny_family.tap_widths == (features[0].shape[1],)
    logits = LatentDiscriminator(tiny_family.tap_widths)(features)
    assert [x.shape for x in logits] == [(2, 1, 2, 2)]
    logits[0].sum().backward()
    assert noisy.grad is not None and noisy.grad.abs().sum() > 0
    assert unet.conv_in.weight.grad is not None and unet.conv_out.weight.grad is None
    # The network answers in full again.
    assert view.output(*told).shape == noisy.shape and runs == ["up"]


def test_latent_discriminator_has_a_head_for_each_feature_map() -> None:
    heads = LatentDiscriminator((8, 24), channels=8)
    features = [torch.randn(2, 8, 4, 6), torch.randn(2, 24, 2, 2)]
    whole = heads(features)
    assert [x.shape for x in whole] == [(2, 1, 2, 3), (2, 1, 1, 1)]
    assert torch.equal(whole[1], heads.heads[1](features[1]))
    with pytest.raises(ValueError):
        heads(features[:1])
