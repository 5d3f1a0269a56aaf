"""The SDXL family against the stock classes it stands for: what is trained is what ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionXLPipeline
from torch import Tensor

from flashdmd_cli.core.schedules import add_noise
from flashdmd_cli.families.base import View
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.sdxl.family import SDXLFamily

CAPTIONS = ["a plain red circle above a striped blue ring", "a dotted white square left of a plain green triangle"]


def draw(family: SDXLFamily, num: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(num, *family.latent_shape, generator=torch.Generator().manual_seed(seed))


def unlike_teacher(family: SDXLFamily, scale: float = 0.05) -> View:
    """A network of its own that answers otherwise than the teacher."""
    view = family.base.copy().view()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in view.parameters:
            parameter += torch.randn(parameter.shape, generator=generator) * scale
    return view


def stock_answer(net: Any, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """What the network says, by its own forward pass."""
    added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
    return net(x_t, t, encoder_hidden_states=cond["context"], added_cond_kwargs=added).sample


def test_null_is_zeros_with_the_size_of_the_picture(tiny_family: SDXLFamily) -> None:
    cond = tiny_family.encode(CAPTIONS)
    null = tiny_family.null(cond)
    assert not null["context"].any() and not null["pooled"].any()
    assert null["context"].shape == cond["context"].shape and null["pooled"].shape == cond["pooled"].shape
    assert torch.equal(null["time_ids"], cond["time_ids"])
    assert tiny_family.encode([""])["context"].any()  # an empty prompt is something else


def test_encode_is_the_stock_pipelines(tiny_family: SDXLFamily, tiny_folder: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folder)
    with torch.no_grad():
        context, _, pooled, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    cond = tiny_family.encode(CAPTIONS)
    assert cond.batch == 2 and torch.equal(cond["context"], context) and torch.equal(cond["pooled"], pooled)
    assert not cond["context"].requires_grad and (context[0] - context[1]).abs().max() > 0.01
    # And written out: penultimate states of both encoders side by side, pooled from the second.
    ids = pipeline.tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        one = pipeline.text_encoder(ids, output_hidden_states=True)
        two = pipeline.text_encoder_2(ids, output_hidden_states=True)
    torch.testing.assert_close(cond["context"], torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1))
    torch.testing.assert_close(cond["pooled"], two.text_embeds)


def test_time_ids_are_original_size_crop_target_size(tiny_family: SDXLFamily) -> None:
    assert tiny_family.resolution == 32
    expected = tiny_family.pipeline._get_add_time_ids((32, 32), (0, 0), (32, 32), torch.float32, 16)
    assert expected.tolist() == [[32, 32, 0, 0, 32, 32]]
    encoded = tiny_family.encode(CAPTIONS)
    for cond in (encoded, tiny_family.null(encoded)):
        assert cond["time_ids"].dtype == torch.float32
        assert torch.equal(cond["time_ids"], expected.repeat(2, 1))


def test_decode_gives_latents_a_gradient_and_the_vae_none(tiny_family: SDXLFamily) -> None:
    latents = draw(tiny_family).requires_grad_(True)
    pictures = tiny_family.decode(latents)
    assert pictures.shape == (2, 3, 32, 32)
    pictures.square().sum().backward()
    assert latents.grad is not None and latents.grad.isfinite().all() and (latents.grad != 0).float().mean() > 0.9
    assert all(p.grad is None and not p.requires_grad for p in tiny_family.vae.parameters())


def test_a_copy_is_trainable_and_the_teacher_stays_frozen(tiny_family: SDXLFamily) -> None:
    view = tiny_family.base.copy().view()
    net = view.base.net
    teacher = dict(tiny_family.base.net.named_parameters())
    before = tiny_family.content_hash()
    assert dict(net.named_parameters()).keys() == teacher.keys()
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad and parameter.dtype == torch.float32
        assert torch.equal(parameter, teacher[name]) and parameter.data_ptr() != teacher[name].data_ptr()
        assert not teacher[name].requires_grad
    assert not net.training and not tiny_family.base.net.training
    assert not any(m.training for m in (tiny_family.vae, tiny_family.pipeline.text_encoder))
    x_t, cond = draw(tiny_family), tiny_family.encode(CAPTIONS)
    guess = view.x0(x_t, torch.tensor([999.0, 249.0]), cond)
    guess.square().sum().backward()
    torch.optim.SGD(net.parameters(), lr=1e-3).step()
    assert tiny_family.content_hash() == before
    assert any(not torch.equal(p, teacher[name]) for name, p in net.named_parameters())
    assert all(p.grad is None for p in teacher.values())


def test_a_copy_of_a_half_precision_teacher_is_float32(tiny_folder: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folder, dtype=torch.bfloat16, add_watermarker=False)
    view = SDXLFamily(pipeline, str(tiny_folder)).base.copy().view()
    assert {p.dtype for p in view.parameters} == {torch.float32}
    assert next(pipeline.unet.parameters()).dtype == torch.bfloat16


def test_content_hash_sees_one_changed_weight(tiny_folder: Path) -> None:
    one, two = SDXLFamily.load(tiny_folder), SDXLFamily.load(tiny_folder)
    assert one.content_hash() == two.content_hash()
    with torch.no_grad():
        two.teacher.parameters[0].view(-1)[0] += 1e-3
    assert one.content_hash() != two.content_hash()


def test_bf16_runs_the_network_under_autocast_and_keeps_x0_in_float32(
    tiny_family: SDXLFamily, tiny_folder: Path
) -> None:
    half = SDXLFamily.load(tiny_folder, precision="bf16")
    x_t, cond, t = draw(half), half.encode(CAPTIONS), torch.tensor([249.0, 249.0])
    with torch.no_grad():
        exact = tiny_family.teacher.x0(x_t, t, cond)
        found = half.teacher.x0(x_t, t, cond)
    assert found.dtype == torch.float32 and half.teacher.parameters[0].dtype == torch.float32
    assert not torch.equal(found, exact)
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()


def test_grid_is_on_the_teachers_own_schedule(tiny_folder: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folder, add_watermarker=False)
    pipeline.scheduler = DDIMScheduler(beta_start=0.001, beta_end=0.02, beta_schedule="linear")
    family = SDXLFamily(pipeline, str(tiny_folder))
    assert torch.equal(LCMScheduler.from_config(family.grid(4).config).alphas_cumprod, family.schedule.alphas_cumprod)
    assert family.grid(4).timesteps == (999, 749, 499, 249)


@pytest.fixture(scope="module")
def shipped(tiny_family: SDXLFamily, tmp_path_factory: pytest.TempPathFactory) -> tuple[View, Path]:
    """A network and the pipeline folder it was saved as."""
    net, folder = unlike_teacher(tiny_family), tmp_path_factory.mktemp("shipped")
    tiny_family.save_pipeline(net.merged(), folder, tiny_family.grid(4))
    return net, folder


def test_what_is_saved_names_no_folder_of_this_machine(
    tiny_family: SDXLFamily, tiny_folder: Path, shipped: tuple[View, Path], tmp_path: Path
) -> None:
    tiny_family.save_network(tiny_family.load_student(shipped[1] / "unet").merged(), tmp_path)
    for path in (*shipped[1].rglob("*.json"), *tmp_path.rglob("*.json")):
        text = path.read_text()
        assert str(tiny_folder) not in text and str(shipped[1]) not in text, path


def test_saving_leaves_the_family_as_it_was(tiny_family: SDXLFamily, shipped: tuple[View, Path]) -> None:
    assert tiny_family.pipeline.unet is tiny_family.teacher.base.net
    assert isinstance(tiny_family.pipeline.scheduler, DDIMScheduler)
    assert all(p.requires_grad for p in shipped[0].parameters)
    x_t, t = draw(tiny_family), torch.tensor([500.0, 500.0])
    assert add_noise(tiny_family.schedule, x_t, x_t, t).isfinite().all()
