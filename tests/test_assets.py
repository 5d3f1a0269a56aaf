"""What is shipped of the embedded world does what the figures say of it."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torchvision.transforms.functional import pil_to_tensor

from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.sdxl.reward_files import RewardBase, load_reward
from flashdmd_cli.networks.sam import load_sam_encoder
from flashdmd_cli.runs.manifest import verify
from flashdmd_cli.shapes.assets import ASSETS, asset
from flashdmd_cli.shapes.captions import captions
from flashdmd_cli.shapes.inspector import Inspector, load_inspector
from flashdmd_cli.shapes.render import render
from flashdmd_cli.shapes.world import add_object, sample_attributes, sample_scenes
from flashdmd_cli.training.reward import noisy_scores


@pytest.fixture(scope="module")
def inspector() -> Inspector:
    return load_inspector(asset("inspector"))


@pytest.fixture(scope="module")
def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(31)
    scenes = sample_scenes(400, generator, held_out=True)
    return render(scenes, generator), scenes.attributes


def test_assets_are_whole_and_small():
    assert verify(ASSETS) == []
    # 60 MiB; deflated in a wheel less than 60 MB.
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) < 60 * 2**20


def test_inspector_may_judge(inspector, held_out):
    pictures, truth = held_out
    assert (inspector.read(pictures).attributes == truth).all(1).float().mean() >= 0.99


def test_autoencoder_keeps_every_attribute(inspector, held_out):
    """Stock encoder and decoder, both: everything that is drawn passes through them."""
    pictures, truth = held_out
    vae = AutoencoderKL.from_pretrained(asset("shapes-sdxl") / "vae").eval()
    with torch.no_grad():
        again = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    accuracy = (inspector.read(again.clamp(-1, 1)).attributes == truth).float().mean(0)
    assert accuracy.min() >= 0.97, accuracy


@pytest.mark.parametrize(
    ("name", "options"),
    [("shapes-sdxl", {"add_watermarker": False}), ("shapes-sd3", {"text_encoder_3": None, "tokenizer_3": None})],
)
def test_the_stock_pipeline_draws_what_the_caption_says(name, options, inspector):
    """A stock pipeline, without code of this package, draws far better than chance (0.32)."""
    pipeline = DiffusionPipeline.from_pretrained(asset(name), **options)
    pipeline.set_progress_bar_config(disable=True)
    truth = sample_attributes(24, torch.Generator().manual_seed(32), held_out=True)
    images = pipeline(
        captions(truth), num_inference_steps=15, guidance_scale=4.0, generator=torch.Generator().manual_seed(0)
    ).images
    pictures = torch.stack([pil_to_tensor(image) for image in images]).float() / 127.5 - 1
    assert (inspector.read(pictures).attributes == truth).float().mean() > 0.6


def test_embedded_sam_loads():
    assert not any(parameter.requires_grad for parameter in load_sam_encoder(asset("shapes-sam")).parameters())


def test_no_asset_names_a_folder_of_the_machine_that_made_it():
    for path in ASSETS.rglob("*.json*"):
        assert '": "/' not in path.read_text(), path


def test_the_reward_model_minds_a_third_object():
    family = SDXLFamily.load(asset("shapes-sdxl"))
    reward = load_reward(asset("shapes-reward"), RewardBase.of(family))
    generator = torch.Generator().manual_seed(34)
    scenes = sample_scenes(128, generator, held_out=True)
    latents = torch.stack(
        [family.encode_pictures(render(shown, generator)) for shown in (scenes, add_object(scenes, generator))]
    )
    texts, noise = captions(scenes.attributes, generator), torch.randn(latents.shape, generator=generator)
    two, three = noisy_scores(reward, family, latents, texts, torch.full((128,), 499), noise)
    assert (two > three).float().mean() >= 0.75


def test_the_reward_model_tells_right_pictures_from_wrong_ones():
    """Rendered pairs of captions never trained on, at the levels where a 4-step student's candidates lie."""
    family = SDXLFamily.load(asset("shapes-sdxl"))
    reward = load_reward(asset("shapes-reward"), RewardBase.of(family))
    generator = torch.Generator().manual_seed(33)
    wanted = sample_attributes(128, generator, held_out=True)
    sides = [
        render(sample_scenes(128, generator, attributes=shown), generator) for shown in (wanted, wanted.roll(1, 0))
    ]
    latents = torch.stack([family.encode_pictures(pictures) for pictures in sides])
    for level, least in ((499, 0.93), (749, 0.8)):
        t = torch.full((128,), level)
        noise = torch.randn(latents.shape, generator=generator)
        right, wrong = noisy_scores(reward, family, latents, captions(wanted), t, noise)
        assert (right > wrong).float().mean() >= least
