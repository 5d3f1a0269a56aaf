"""The families' boundary: a model of another kind trains, draws, is measured and exported with no line elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection

from flashdmd_cli.building.text import write_tokenizer
from flashdmd_cli.core.pictures import as_bytes
from flashdmd_cli.evaluation.measuring import Evaluator
from flashdmd_cli.evaluation.suites.spec import read_suite
from flashdmd_cli.families.registry import FAMILIES
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.manifest import read_manifest
from flashdmd_cli.runs.recipe import Recipe, load_recipe
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.runs.results import stage1_checkpoint
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.shapes.world import IMAGE_SIZE
from flashdmd_cli.workflows.align import align
from flashdmd_cli.workflows.distill import distill
from flashdmd_cli.workflows.export import export
from flashdmd_cli.workflows.inputs.drawers import load_drawer
from flashdmd_cli.workflows.prepare import prepare, prepare_shapes
from flashdmd_cli.workflows.sample import sample

from .conftest import tiny_text
from .flow_family import FLOW, NO_T5, SHIFT

CAPTION = "a plain red circle above a striped blue ring"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of Stable Diffusion 3's structure with random weights: 16 x 16 latents in 4 channels."""
    folder = tmp_path_factory.mktemp("flow") / "teacher"
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "tokenizer")

    def text() -> CLIPTextModelWithProjection:
        return CLIPTextModelWithProjection(tiny_text(tokenizer))

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4, sample_size=IMAGE_SIZE,
        scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    transformer = SD3Transformer2DModel(
        sample_size=IMAGE_SIZE // 4, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        out_channels=4, pos_embed_max_size=IMAGE_SIZE // 8,
    )  # fmt: skip
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT), vae=vae, text_encoder=text(),
        tokenizer=tokenizer, text_encoder_2=text(), tokenizer_2=tokenizer, text_encoder_3=None, tokenizer_3=None,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def register(patch: pytest.MonkeyPatch) -> None:
    """This family instead of SD3's own, which reads folders of the same pipeline."""
    patch.delitem(FAMILIES, "sd3")
    patch.setitem(FAMILIES, FLOW.name, FLOW)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Pictures of the embedded world through `prepare`, with latents and embeddings of this family cached."""
    folder = tmp_path_factory.mktemp("data")
    prepare_shapes(folder / "shards", num=16)
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        prepare(folder / "shards", folder / "data", teacher=str(teacher), cache=("latents", "text"), duplicates="keep")
    return folder / "data"


def recipe(teacher: Path, base: str = "shapes-4step", **flags: object) -> Recipe:
    sets = {"family": FLOW.name, "teacher": str(teacher), "train.batch": 2, "train.micro_batch": 2,
            "train.iterations": 10, "train.preview_every": 100, "dm.guidance": 3.0}  # fmt: skip
    return load_recipe(base, [], sets | {key.replace("__", "."): value for key, value in flags.items()})


@pytest.mark.parametrize("form", ["full", "lora"])
def test_a_new_family_goes_all_the_way(form: str, teacher: Path, data: Path, tmp_path: Path) -> None:
    stage1 = recipe(teacher, model__form=form, model__lora_rank=2, model__lora_alpha=2)
    made = distill(stage1, data, tmp_path / "student")
    assert (made.family, made.step, made.grid.scheduler) == (FLOW.name, 10, "FlowMatchLCMScheduler")
    rows = read_metrics(tmp_path / "student")
    assert all(row["dm"] > 0 and row["grad_norm/student"] > 0 and row["gan"] is not None for row in rows)

    student = stage1_checkpoint(tmp_path / "student")
    flags = {"align.reward": str(tmp_path), "train.iterations": 10, "align.threshold": [0.0, 0.0], "probe.every": 5,
             "probe.num_prompts": 2, "probe.num_seeds": 2, "train.preview_every": 100}  # fmt: skip
    align(load_recipe("align/shapes", [], flags, stage1), student, tmp_path / "aligned", data=data)
    rows = read_metrics(tmp_path / "aligned")
    assert len(rows) == 10 and any(row["grad_norm/preference"] > 0 for row in rows if row["pairs"])

    drawn = sample([CAPTION], tmp_path / "aligned", tmp_path / "drawn")
    assert len(list((tmp_path / "drawn").glob("*.png"))) > 0 and drawn is not None
    drawer = load_drawer(str(tmp_path / "aligned"))
    suite = read_suite("shapes-val", 8)
    pictures = as_bytes(drawer.draw([row.prompt for row in suite.rows], 0, SilentReporter()))
    assert Evaluator(suite).evaluate([(pictures, suite.rows)])["frechet"] > 0

    exported = export(tmp_path / "aligned", tmp_path / "pipeline", form=["diffusers", "lora"], dtype=["fp32"])
    made = read_manifest(exported.out)
    # The adapters of both stages are one LoRA on the teacher.
    assert made.kind == "export" and made.export.formats["lora"].exact == (form == "lora")
    pipeline = StableDiffusion3Pipeline.from_pretrained(exported.out, **NO_T5)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, FlowMatchLCMScheduler)
    card = (exported.out / "README.md").read_text()
    assert "num_inference_steps=4" in card and '/pipeline", text_encoder_3=None, tokenizer_3=None)' in card
    noise = torch.Generator().manual_seed(0)
    stock = pipeline(CAPTION, num_inference_steps=4, guidance_scale=1.0,
                     height=IMAGE_SIZE, width=IMAGE_SIZE, generator=noise)  # fmt: skip
    assert pipeline.scheduler.timesteps.tolist() == pytest.approx(list(drawer.family.grid(4).timesteps))
    assert stock.images[0].size == (IMAGE_SIZE, IMAGE_SIZE)


def test_a_recipe_of_another_family_is_refused(teacher: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="family: is sdxl, but the teacher .* is of the family flow"):
        distill(recipe(teacher, family="sdxl"), data, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_the_latent_discriminator_reads_a_transformer(teacher: Path, data: Path, tmp_path: Path) -> None:
    distill(recipe(teacher, "shapes-4step-dmd2", train__iterations=2), data, tmp_path / "student")
    assert {"gan", "discriminator"} <= read_metrics(tmp_path / "student")[0].keys()
