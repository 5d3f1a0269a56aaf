"""Exports: what is written is what stock loaders read, and draws what the student draws."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import csv
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    LCMScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.export import check, lora, onnx, single_file
from flashdmd_cli.export import diffusers as diffusers_format
from flashdmd_cli.export import job as job_module
from flashdmd_cli.families.base import Base
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.parts import stored_network
from flashdmd_cli.families.registry import FAMILIES
from flashdmd_cli.families.sdxl import original, true_size
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.stored import Stored, constant, joined, read_stored, write_stored
from flashdmd_cli.runs.errors import NumericalError, UsageError
from flashdmd_cli.runs.manifest import FormatRecord, GridRecord, Manifest, read_manifest, verify, write_manifest
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.workflows import export_check
from flashdmd_cli.workflows.card import described_data
from flashdmd_cli.workflows.export import Export, export, new_job
from flashdmd_cli.workflows.inputs.families import load_family
from flashdmd_cli.workflows.inputs.teachers import teacher_record
from flashdmd_cli.workflows.training import ADAPTER

from .fake_hub import FakeHub, serving
from .original import write_original
from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

PUBLISHED = "37f621e8ded4fdf5b590a7e78dbe0cd3788eb2eb6d1eeb95c99577ddf47d8c0c"
"""SHA-256 over the names and shapes of the 2515 tensors of SDXL's published single file, `NAME [SHAPE]` a line."""
CAPTION = "a plain red circle above a dotted blue ring"


def checkpoint(teacher: Path, out: Path, form: str = "full", dtype: torch.dtype = torch.float32) -> Path:
    """A finished student of a tiny teacher, as `distill` leaves it: all weights or adapters moved at random."""
    source = Source(teacher, teacher_config(teacher)) if teacher.is_file() else Source(teacher)
    family: Any = load_family(source)
    base = family.base.copy() if form == "full" else family.base.twin()
    view = base.view() if form == "full" else base.add_adapter("student", rank=3, alpha=6)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in view.weights().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)
    family.save_network(view.merged().to(dtype), out / "student")
    if form == "lora":
        (out / ADAPTER).parent.mkdir()
        lora.save_factors(out / ADAPTER, FAMILIES[family.name].networks[0], view.low_rank())
    sets = {"family": family.name, "teacher": str(teacher), "model.form": form}
    if teacher.is_file():
        sets["model.teacher_config"] = str(source.config)
    recipe = load_recipe("shapes-4step", flags=sets)
    grid = family.grid(recipe.grid.steps)
    write_manifest(
        out,
        Manifest(
            kind="distill", family=family.name, grid=GridRecord(scheduler=grid.scheduler, config=grid.config),
            teacher=teacher_record(str(teacher), source), recipe=recipe.model_dump(mode="json"), license="openrail++",
            wall_seconds=5400, hardware={"accelerator": "H200", "num_accelerators": 2},
        ),
    )  # fmt: skip
    return out


def teacher_config(file: Path) -> Path:
    return file.parent / "config"


@pytest.fixture(scope="module")
def adapters(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tiny_folder, tmp_path_factory.mktemp("adapters") / "student", "lora")


@pytest.fixture(scope="module")
def full(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tiny_folder, tmp_path_factory.mktemp("full") / "student")


def records(made: Export) -> dict[str, Any]:
    assert made.manifest is not None and made.manifest.export is not None
    return made.manifest.export.formats


# -- what stock loaders draw ------------------------------------------------------------------------------------------


def test_adapters_trained_on_a_rounded_teacher_are_no_exact_lora(
    adapters: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    student = shutil.copytree(adapters, tmp_path / "student")
    about = json.loads((student / "manifest.json").read_text())
    about["recipe"]["model"]["weights"] = "int8"
    (student / "manifest.json").write_text(json.dumps(about))
    made = export(student, "runs/e", form=["lora", "single-file"], dtype=["fp32"])
    assert not records(made)["lora"].exact and records(made)["single-file"].exact
    # A relative folder of two parts is not the name of a repository, and the card may be read from any other folder.
    card = (made.out / "README.md").read_text()
    assert "huggingface.co" not in card and 'from_single_file("./teacher-4step.safetensors"' in card


def test_adapters_become_a_lora_in_every_format(adapters: Path, tmp_path: Path) -> None:
    """The line that the project exists for: a fine-tune in, a 4-step LoRA out."""
    made = export(adapters, tmp_path / "e", form=["diffusers", "lora", "lora-kohya", "single-file"], dtype=["fp32"])
    found = records(made)
    assert list(found) == ["diffusers", "lora", "lora-kohya", "single-file"]
    assert all(each.exact and each.dtype == "fp32" and each.largest < 1e-3 for each in found.values()), found
    assert read_manifest(made.out) == made.manifest and not verify(made.out)
    tensors = load_file(made.out / "pytorch_lora_weights.safetensors")
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    assert tensors[key.format("A")].shape == (3, 32) and tensors[key.format("B")].shape == (32, 3)
    with safe_open(made.out / "teacher-4step-lora.safetensors", "pt") as file:
        facts, names = file.metadata(), set(file.keys())
    assert facts["ss_network_dim"] == "3" and facts["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in names
    # The difference that the comparison is for: the LoRA does change the picture.
    pipeline = StableDiffusionXLPipeline.from_pretrained(Path(read_manifest(adapters).teacher.id))
    pipeline.scheduler = LCMScheduler.from_pretrained(made.out, subfolder="scheduler")
    job_pictures = []
    for weights in (None, made.out):
        if weights is not None:
            pipeline.load_lora_weights(weights)
        job_pictures.append(pipeline(CAPTION, num_inference_steps=4, guidance_scale=1.0, output_type="pt",
                                     generator=torch.Generator().manual_seed(0)).images)  # fmt: skip
    assert (job_pictures[0] - job_pictures[1]).abs().max() > 0.01


@pytest.mark.parametrize("form", ["full", "lora"])
def test_sd3_in_every_format(form: str, tiny_sd3_folder: Path, tmp_path: Path) -> None:
    student = checkpoint(tiny_sd3_folder, tmp_path / "s", form)
    forms, rank = ["diffusers", "lora", "single-file"], 64 if form == "full" else None
    made = export(student, tmp_path / "e", form=forms, dtype=["fp32"], rank=rank)
    found = records(made)
    assert found["diffusers"].largest < 1e-3 and found["single-file"].largest < 1e-3
    assert found["lora"].largest < (1e-3 if form == "lora" else 0.5) and found["lora"].exact == (form == "lora")
    names = set(load_file(made.out / "teacher-4step.safetensors"))
    assert {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "first_stage_model.decoder.conv_in.bias",
            "text_encoders.clip_g.transformer.text_model.final_layer_norm.bias"} <= names  # fmt: skip
    if form == "lora":  # which ComfyUI reads by diffusers' names
        alone = export(student, tmp_path / "alone", form="lora", dtype=["fp32"])
        assert "In ComfyUI: sampler `lcm`" in (alone.out / "README.md").read_text()
    with pytest.raises(UsageError, match="lora-kohya is not for SD3"):
        export(student, tmp_path / "k", form="lora-kohya")


@pytest.mark.parametrize("case", ["missing", "in the cache", "beside a file"])
def test_sd3_is_exported_without_t5_if_the_student_was_trained_without_it(
    case: str, tiny_sd3_folder: Path, tmp_path: Path
) -> None:
    """Its index lists T5; a download has none, or another program's, and a single file is read without it."""
    teacher = tmp_path / "snapshots" / "config"
    shutil.copytree(tiny_sd3_folder, teacher)
    index = json.loads((teacher / "model_index.json").read_text())
    t5 = {"text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer_3": ["transformers", "T5TokenizerFast"]}
    (teacher / "model_index.json").write_text(json.dumps(index | t5))
    if case != "missing":
        for part in t5:
            (teacher / part).mkdir()
            (teacher / part / "config.json").write_text("{}")
    if case == "beside a file":
        pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3_folder, text_encoder_3=None, tokenizer_3=None)
        teacher = write_original(pipeline, teacher.parent / "tuned.safetensors")
    forms = ["diffusers", "lora"]
    made = export(checkpoint(teacher, tmp_path / "s", "lora"), tmp_path / "e", form=forms, dtype=["fp32"])
    assert all(each.largest < 1e-3 for each in records(made).values()), records(made)
    assert not (made.out / "text_encoder_3").exists() and not (made.out / "tokenizer_3").exists()
    card = (made.out / "README.md").read_text()
    assert card.count("text_encoder_3=None, tokenizer_3=None") == len(forms)


def test_only_the_denoiser_of_a_single_file_is_rounded(full: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """As of a folder: the student that it is compared with has its autoencoder in float32."""
    monkeypatch.setattr(job_module, "LARGE", 0)  # compared in fp16, as at true size
    load, loaded = single_file.load, []
    monkeypatch.setattr(single_file, "load", lambda *a: (loaded.append(load(*a)), loaded[0])[1])
    export(full, tmp_path / "e", form="single-file", dtype=["fp32"])
    teacher = load_file(Path(read_manifest(full).teacher.id) / "vae" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(loaded[0].vae.state_dict()["decoder.conv_in.weight"], teacher["decoder.conv_in.weight"])
    assert loaded[0].unet.conv_in.weight.dtype == torch.float16


def test_the_comparison_holds_one_denoiser_at_a_time_in_its_own_format(
    full: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Otherwise exports of true size need twice the memory: parts of a model refer to each other, so that it is freed
    by the garbage collector only."""
    monkeypatch.setattr(job_module, "LARGE", 0)
    loaded = UNet2DConditionModel.from_single_file.__func__
    formats: list[torch.dtype] = []

    def spied(kind: Any, *args: Any, **named: Any) -> Any:
        formats.append(named["dtype"])
        return loaded(kind, *args, **named)

    def alive() -> int:
        return sum(type(each) is UNet2DConditionModel for each in gc.get_objects())

    def counting(load: Any) -> Any:
        return lambda *args: (counts.append(alive()), load(*args))[1]

    counts: list[int] = []
    monkeypatch.setattr(UNet2DConditionModel, "from_single_file", classmethod(spied))
    for each in (diffusers_format, lora, single_file):
        monkeypatch.setattr(each, "load", counting(each.load))
    gc.collect()
    before = alive()  # of fixtures
    gc.disable()
    try:
        export(full, tmp_path / "e", form=["diffusers", "lora", "single-file"])
    finally:
        gc.enable()
    assert counts == [before] * 3 and formats == [torch.float16]


@pytest.mark.parametrize("version", [1, 2])
def test_loras_of_stable_diffusion_1_in_one_file_and_of_2(
    version: int, tiny_sd15_folder: Path, tiny_sd21_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Labelled as such, and drawn by stock diffusers at another size than the model's own."""
    monkeypatch.setattr(check, "MAX_SIDE", 4)
    monkeypatch.setattr(check, "SMALL_SIDE", 4)
    folder = {1: tiny_sd15_folder, 2: tiny_sd21_folder}[version]
    shutil.copytree(folder, tmp_path / "t" / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    file = write_original(pipeline, tmp_path / "t" / "tuned.safetensors") if version == 1 else folder
    student = checkpoint(file, tmp_path / "s", "lora")
    made = export(student, tmp_path / "e", form=["lora", "lora-kohya"])
    assert all(each.largest < 1e-3 for each in records(made).values()), records(made)
    (path,) = made.out.glob("*-lora.safetensors")
    with safe_open(path, "pt") as tensors:
        facts = tensors.metadata()
    wanted = {1: ("stable-diffusion-v1/lora", "sd_v1", None, "epsilon"),
              2: ("stable-diffusion-v2-768-v/lora", "sd_v2_v", "True", "v")}[version]  # fmt: skip
    names = ("modelspec.architecture", "ss_base_model_version", "ss_v2", "modelspec.prediction_type")
    assert tuple(facts.get(name) for name in names) == wanted
    monkeypatch.setattr("flashdmd_cli.workflows.export_options.find_spec", lambda name: name)
    with pytest.raises(UsageError, match="sd15 has no ONNX export"):
        export(student, tmp_path / "o", form="onnx")


def test_a_safety_checker_is_not_exported(tiny_sd15_folder: Path, tmp_path: Path) -> None:
    """It is a part of full folders of Stable Diffusion 1, but no part of a teacher."""
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_sd15_folder, teacher)
    index = json.loads((teacher / "model_index.json").read_text())
    more = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "feature_extractor": ["transformers", "CLIPImageProcessor"]}  # fmt: skip
    (teacher / "model_index.json").write_text(json.dumps(index | more))
    for part in more:
        (teacher / part).mkdir()
        (teacher / part / "config.json").write_text("{}")
    made = export(checkpoint(teacher, tmp_path / "s", "lora"), tmp_path / "e", form=["diffusers", "lora"])
    assert all(each.largest < 1e-3 for each in records(made).values()), records(made)
    assert not any((made.out / part).exists() for part in more)


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_onnx_draws_without_torch(family: str, tiny_folder: Path, tiny_sd3_folder: Path, tmp_path: Path) -> None:
    """All networks by onnxruntime, in the stock pipeline; a batch of another size than they were traced with."""
    onnxruntime = pytest.importorskip("onnxruntime")
    student = checkpoint({"sdxl": tiny_folder, "sd3": tiny_sd3_folder}[family], tmp_path / "s")
    made = export(student, tmp_path / "e", form="onnx")
    assert records(made)["onnx"].largest < 1e-3
    session = onnxruntime.InferenceSession(made.out / FAMILIES[family].networks[0] / "model.onnx")
    names = [each.name for each in session.get_inputs()]
    shapes = {each.name: [3 if isinstance(size, str) else size for size in each.shape] for each in session.get_inputs()}
    feed = {name: torch.randn(shapes[name]).numpy() for name in names}
    assert len(names) in (4, 5) and session.run(None, feed)[0].shape == (3, 4, 8, 8)
    with pytest.raises(UsageError, match="--format onnx: is written in fp32"):
        export(student, tmp_path / "f", form="onnx", dtype=["fp16"])


def test_onnx_weights_are_in_a_second_file_where_the_list_says_so(full: Path, monkeypatch: Any) -> None:
    """The decoder is written from an autoencoder that also has an encoder, whose weights do not count."""
    written: list[bool] = []
    monkeypatch.setattr(torch.onnx, "export", lambda *_, external_data, **__: written.append(external_data))
    job = new_job(full, read_manifest(full), (), 1, SilentReporter())

    def decoder() -> list[Any]:
        return [file for file in onnx.files(job) if file.path.startswith("vae_decoder/")]

    (whole,) = decoder()
    monkeypatch.setattr(onnx, "IN_ONE_FILE", whole.size)
    for num_files in (1, 2):
        files = decoder()
        files[0].write(Path("unused"))
        assert (len(files), written[-1]) == (num_files, num_files == 2)
        monkeypatch.setattr(onnx, "IN_ONE_FILE", whole.size - 1)


def test_students_of_16_bits_are_read_and_written_as_such(tiny_folder: Path, tmp_path: Path) -> None:
    student = checkpoint(tiny_folder, tmp_path / "s", dtype=torch.float16)
    made = export(student, tmp_path / "e", form=["diffusers", "single-file"])
    assert {each.dtype for each in records(made).values()} == {"fp16"}
    assert all(each.largest < 1e-3 for each in records(made).values()), records(made)  # computed in float32
    tensors = load_file(made.out / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float16}


def test_rounding_is_all_that_a_single_file_in_fp16_differs_by(full: Path, tmp_path: Path) -> None:
    """It draws what a folder in fp16 draws, and says why this is not quite what the student draws."""
    words = ["export", "--from", full, "--out", tmp_path / "e", "--format", "diffusers,single-file"]
    shown = run(*words, "--dtype", "fp16")
    found = read_manifest(tmp_path / "e").export.formats
    assert found["single-file"].largest == pytest.approx(found["diffusers"].largest, abs=1e-5)
    assert shown.stderr.count("its weights are rounded, which --dtype fp32 avoids") == 2
    assert "are rounded" not in run(*words, "--dtype", "fp32", "--yes").stderr


def test_fp8_rounds_the_matrices_of_the_denoiser(full: Path, tmp_path: Path) -> None:
    made = export(full, tmp_path / "e", form="single-file", dtype=["fp8"])
    tensors = load_file(made.out / "teacher-4step.safetensors")
    kinds = {name: value.dtype for name, value in tensors.items()}
    unet = {name for name in kinds if name.startswith("model.diffusion_model.") and tensors[name].ndim > 1}
    assert {kinds[name] for name in unet} == {torch.float8_e4m3fn}
    assert {kinds[name] for name in kinds.keys() - unet} == {torch.float16, torch.int64}
    assert 1e-4 < records(made)["single-file"].mean < 0.1


def test_a_teacher_in_one_file_is_exported_as_a_folder(tiny_folder: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folder)
    shutil.copytree(tiny_folder, tmp_path / "t" / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    file = write_original(pipeline, tmp_path / "t" / "tuned.safetensors")
    made = export(checkpoint(file, tmp_path / "s"), tmp_path / "e", form=["diffusers", "lora"], dtype=["fp32"])
    assert records(made)["diffusers"].largest < 1e-3 and (made.out / "text_encoder_2" / "model.safetensors").is_file()
    assert made.manifest is not None and "tuned-4step" in (made.out / "README.md").read_text()


def test_variants_and_shards(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers_format, "MAX_SHARD", 300_000)
    made = export(full, tmp_path / "e", dtype=["fp32", "fp16"])
    assert len(list((made.out / "unet").glob("diffusion_pytorch_model-*-of-*.safetensors"))) > 1
    whole = load_file(full / "student" / "diffusion_pytorch_model.safetensors")
    for variant, dtype in ((None, torch.float32), ("fp16", torch.float16)):
        net = StableDiffusionXLPipeline.from_pretrained(made.out, variant=variant, dtype=dtype).unet
        assert all(torch.equal(value, whole[name].to(dtype)) for name, value in net.state_dict().items())
    total = json.loads((made.out / "unet/diffusion_pytorch_model.safetensors.index.fp16.json").read_text())
    assert total["metadata"]["total_size"] == 2 * sum(value.numel() for value in whole.values())


def test_an_export_that_draws_something_else_is_an_error(full: Path, tmp_path: Path, monkeypatch: Any) -> None:
    load = diffusers_format.load

    factor = 1.5

    def damaged(job: Any, out: Path) -> Any:
        pipeline = load(job, out)
        pipeline.unet.conv_out.weight.data.mul_(factor)
        return pipeline

    monkeypatch.setattr(diffusers_format, "load", damaged)
    with pytest.raises(NumericalError, match="--format diffusers: its picture differs from the student's by"):
        export(full, tmp_path / "e")
    factor = 100  # rounded weights have a wider limit
    with pytest.raises(NumericalError, match="of the range of a pixel on average, where 0.02 is allowed"):
        export(full, tmp_path / "e", dtype=["fp16"])
    assert not (tmp_path / "e" / "manifest.json").exists()


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdxl() -> tuple[dict[str, dict[str, Stored]], dict[str, Any]]:
    """The tensors of SDXL at its true size, on the meta device, and its configurations."""
    with init_empty_weights():
        nets = {
            "unet": UNet2DConditionModel.from_config({**true_size.UNET, "sample_size": 128}),
            "vae": AutoencoderKL.from_config({**true_size.VAE, "sample_size": 1024}),
            "text_encoder": CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072,
                                                         num_hidden_layers=12, num_attention_heads=12)),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(hidden_size=1280, intermediate_size=5120, projection_dim=1280, num_hidden_layers=32,
                               num_attention_heads=20)),
        }  # fmt: skip
    parts = {}
    for part, net in nets.items():
        add = "text_model." if part.startswith("text") else ""
        parts[part] = {
            name if name.startswith((add, "text_projection")) else add + name: constant(value)
            for name, value in net.state_dict().items()
        }
    configs = {part: net.config if part in ("unet", "vae") else net.config.to_dict() for part, net in nets.items()}
    return parts, configs


def test_the_single_file_has_the_published_names_and_shapes(sdxl: Any) -> None:
    tensors = original.single_file(*sdxl, {"prediction_type": "epsilon"})
    rows = [f"{name} {str(list(value.shape)).replace(' ', '')}\n" for name, value in sorted(tensors.items())]
    assert len(rows) == 2515 and hashlib.sha256("".join(rows).encode()).hexdigest() == PUBLISHED
    marked = original.single_file(*sdxl, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    assert set(marked) - set(tensors) == {"v_pred", "ztsnr"}


def test_kohya_names_are_those_that_comfyui_knows(sdxl: Any) -> None:
    """ComfyUI knows every weight of the original layout as `lora_unet_` and its name with underscores."""
    parts, configs = sdxl
    known = {
        "lora_unet_" + name.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
        for name in original.single_file(parts, configs, {})
        if name.startswith("model.diffusion_model.") and name.endswith(".weight")
    }
    ours = {original.kohya_name(name.removesuffix(".weight"), configs["unet"])
            for name in parts["unet"] if name.endswith(".weight")}  # fmt: skip
    assert ours == known and len(ours) == 1680 - sum(name.endswith(".bias") for name in parts["unet"])
    assert "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj" in ours


def test_our_own_strict_reader_reads_the_single_file(
    full: Path, tiny_folder: Path, tiny_family: SDXLFamily, tmp_path: Path
) -> None:
    made = export(full, tmp_path / "e", form="single-file", dtype=["fp32"])
    family = SDXLFamily.load(Source(made.out / "teacher-4step.safetensors", config=tiny_folder))
    student = load_file(full / "student" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, student[name]) for name, value in family.teacher.weights().items())
    ours, theirs = family.embed([CAPTION]), tiny_family.embed([CAPTION])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(family.decode(latents), tiny_family.decode(latents))
    with safe_open(made.out / "teacher-4step.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert facts["modelspec.license"] == "openrail++" and facts["modelspec.prediction_type"] == "epsilon"


# -- low rank ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 40), (400, 600)])
def test_truncation_is_the_best_approximation(shape: tuple[int, int]) -> None:
    """Small matrices exactly, large ones by a randomised method; both against the singular values (Eckart, Young)."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator) @ torch.diag(0.9 ** torch.arange(shape[1]).float())
    before = torch.random.get_rng_state()
    down, up, energy = lora.truncated(matrix, 8)
    assert torch.equal(torch.random.get_rng_state(), before)
    values = torch.linalg.svdvals(matrix)
    assert energy == pytest.approx(values[:8].square().sum().item(), rel=1e-3)
    assert (matrix - up @ down).norm().item() == pytest.approx(values[8:].norm().item(), rel=1e-3)
    assert down.square().sum().item() == pytest.approx(up.square().sum().item(), rel=1e-3)  # divided evenly


def test_rank_decides_how_much_of_a_student_is_kept(full: Path, tmp_path: Path) -> None:
    found = {}
    for rank in (2, 1000):
        made = export(full, tmp_path / str(rank), form=["lora", "lora-kohya"], dtype=["fp32"], rank=rank)
        with (made.out / "lora_layers.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        found[rank] = records(made)["lora"]
        assert records(made)["lora-kohya"].largest == pytest.approx(found[rank].largest, rel=1e-2)
        assert len(rows) == len(load_file(made.out / lora.NAME)) // 2 + 1 and int(rows[0]["rank"]) <= rank
        if rank == 1000:  # all of every layer, so only biases and norms are lost
            assert all(row["energy_kept"] == "1.0000" for row in rows[:-1]) and rows[-1]["energy_kept"] == "0.0000"
    assert found[2].energy < 0.7 < found[1000].energy < 1 and not found[2].exact
    assert found[1000].largest < found[2].largest


def test_several_adapters_become_one(tiny_family: SDXLFamily) -> None:
    """An aligned student has the adapters of both stages, each with its own scale."""
    base: Base = tiny_family.base.twin()
    base.add_adapter("one", 2, 4.0)
    view = base.add_adapter("two", 3, 3.0, below=["one"])
    with torch.no_grad():
        for tensor in (*base.view("one").weights().values(), *view.weights().values()):
            tensor.normal_(generator=torch.Generator().manual_seed(tensor.numel()))
    merged, plain = view.merged().state_dict(), tiny_family.base.net.state_dict()
    factors = view.low_rank()
    assert len(factors) > 10
    for layer, (down, up) in factors.items():
        assert down.shape[0] == 5
        change = merged[f"{layer}.weight"] - plain[f"{layer}.weight"]
        torch.testing.assert_close(up @ down, change, rtol=1e-4, atol=1e-4)
    assert tiny_family.teacher.low_rank() == {}


# -- files ------------------------------------------------------------------------------------------------------------


def test_streamed_files_are_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5), "b": torch.randn(4).bfloat16(), "c": torch.tensor(2.5), "d": torch.arange(6).view(2, 3),
        "e": torch.randn(2, 2).to(torch.float8_e4m3fn), "f": torch.empty(0), "g": torch.randn(4, 6).T,
    }  # fmt: skip
    write_stored(tmp_path / "x.safetensors", {name: constant(value) for name, value in tensors.items()}, {"by": "us"})
    again = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(again[name].float(), value.float()) for name, value in tensors.items())
    assert {name: value.dtype for name, value in again.items()} == {name: v.dtype for name, v in tensors.items()}
    save_file({"a": tensors["a"]}, tmp_path / "y.safetensors")
    stored = read_stored([tmp_path / "y.safetensors"])["a"]
    both = joined([stored, stored.changed(lambda value: value[:1] * 2)]).to(torch.float16)
    assert both.shape == (4, 5) and both.nbytes == 40 and both.read().dtype == torch.float16
    assert torch.equal(both.read()[3], (tensors["a"][0] * 2).half())
    odd = {"h": torch.ones(2, dtype=torch.int8), "i": torch.ones(2).to(torch.float8_e5m2), "j": torch.arange(2).short()}
    save_file(odd, tmp_path / "odd.safetensors")
    assert {name: stored.dtype for name, stored in read_stored([tmp_path / "odd.safetensors"]).items()} == {
        name: value.dtype for name, value in odd.items()
    }
    table = json.dumps({"k": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "f4.safetensors").write_bytes(len(table).to_bytes(8, "little") + table + bytes(2))
    with pytest.raises(Unfit, match="f4.safetensors: k is stored as F4"):
        read_stored([tmp_path / "f4.safetensors"])
    with pytest.raises(ValueError, match="wrong is torch.float32"):
        write_stored(tmp_path / "z.safetensors", {"wrong": Stored((2,), torch.float32, lambda: torch.zeros(3))}, {})


def test_one_tensor_is_in_memory_at_a_time(full: Path, tiny_folder: Path, tmp_path: Path) -> None:
    import weakref

    tensors = stored_network(FAMILIES["sdxl"], Source(tiny_folder, denoiser=full / "student"), "unet")
    alive: list[weakref.ref[torch.Tensor]] = []

    def watched(stored: Stored) -> Stored:
        def read() -> torch.Tensor:
            assert not any(each() is not None for each in alive[:-1])
            tensor = stored.read()
            alive.append(weakref.ref(tensor))
            return tensor

        return Stored(stored.shape, stored.dtype, read).to(torch.float16)

    write_stored(tmp_path / "x.safetensors", {name: watched(value) for name, value in tensors.items()}, {})
    assert len(alive) == len(tensors) > 100


def test_the_family_is_that_of_the_manifest(full: Path) -> None:
    made = read_manifest(full).model_copy(update={"family": "sd15"})
    assert new_job(full, made, (), 1, SilentReporter()).facts.name == "sd15"


def test_a_dry_run_lists_what_is_written(full: Path, tmp_path: Path) -> None:
    forms = ["diffusers", "lora", "lora-kohya", "single-file"]
    planned = export(full, tmp_path / "e", form=forms, rank=4, dry_run=True)
    assert planned.manifest is None and not (tmp_path / "e").exists()
    made = export(full, tmp_path / "e", form=forms, rank=4)
    sizes = dict(made.files)
    assert set(sizes) == {path for path, _ in planned.files} and not planned.estimated
    unknown = {"lora_layers.csv", "README.md", "manifest.json"}
    for path, num in planned.files:
        assert sizes[path] < 50_000 and num is None if path in unknown else num == sizes[path], path
    shown = run("export", "--from", full, "--out", tmp_path / "x", "--format", ",".join(forms), "--dry-run")
    assert shown.exit_code == 0 and "?" not in shown.stdout and not (tmp_path / "x").exists()
    for path in unknown:
        assert re.search(rf"^ *a few kB  {path}$", shown.stdout, re.M), shown.stdout
    assert f"  in {len(planned.files)} files\n" in shown.stdout
    for path, readers in (
        ("pytorch_lora_weights.safetensors", "diffusers"),
        ("teacher-4step-lora.safetensors", "ComfyUI, A1111"),
        ("teacher-4step.safetensors", "ComfyUI, A1111, diffusers"),
    ):
        assert f"  {path}  (for {readers})\n" in shown.stdout, shown.stdout


def test_only_formats_that_hold_less_than_the_student_are_called_rounded() -> None:
    def line(dtype: str, stored: str) -> str:
        return export_check.described_check("x", FormatRecord(dtype=dtype, exact=True, largest=0, mean=0), stored)

    assert "--dtype fp32 avoids" in line("fp16", "fp32") and "--dtype bf16 avoids" in line("fp16", "bf16")
    for dtype, stored in (("fp32", "fp16"), ("fp16", "fp16"), ("fp32", "fp32")):
        assert "rounded" not in line(dtype, stored)


def test_inspect_tells_an_export_from_its_student(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    student = checkpoint(tiny_folder, tmp_path / "mine")
    about = json.loads((student / "manifest.json").read_text())
    about |= {"step": 7, "images_seen": 9, "seed": 5}
    about |= {"weights": {"form": "full", "dtype": "float32", "average": "ema"}}
    (student / "manifest.json").write_text(json.dumps(about))
    assert run("export", "--from", student, "--out", "e", "--format", "single-file").exit_code == 0
    rows = {line[:22].strip(): line[22:].strip() for line in run("inspect", "e").stdout.splitlines() if line}
    made = read_manifest(Path("e"))
    size = sum(file.size for file in made.files) / 1e6
    assert (rows["formats"], rows["student"]) == ("single-file (fp16)", "mine")
    assert rows["files"] == f"{len(made.files)}, {size:.1f} MB" and rows["exported in"] == f"{made.wall_seconds:.0f} s"
    assert rows["grid"] == "4 steps, LCMScheduler"
    assert rows["student's weights"] == "full float32 ema"
    assert (rows["student's step"], rows["student's seed"]) == ("7", "5")
    assert not {"step", "seed", "weights", "wall"} & set(rows)
    assert "step        " in run("inspect", "mine").stdout


def test_an_interrupted_export_is_no_result_and_the_same_command_finishes_it(
    full: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["export", "--from", full, "--out", "x", "--format", "diffusers,lora", "--rank", 2]
    for module, name in ((diffusers_format, "scheduler"), (lora, "truncated"), (export_check, "described_check")):
        kept = getattr(module, name)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *a, kept=kept: (os.kill(os.getpid(), signal.SIGTERM), kept(*a))[1])
            fails(run(*command, "--quiet"), 143, "interrupted")
        assert not Path("x/manifest.json").exists()
    (tmp_path / "x" / "left.safetensors").write_bytes(b"of an interrupted export")
    done = run(*command, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["formats"]["diffusers"]["largest"] < 1e-3 and not verify(Path("x"))
    assert not (tmp_path / "x" / "left.safetensors").exists()
    written = Path("x/unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    again = run(*command)
    assert again.exit_code == 0 and "contains this export already" in again.stderr
    assert Path("x/unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns == written
    fails(run("export", "--from", full, "--out", "x", "--quiet"), 2, "--out x: holds another export", "--yes")
    assert not verify(Path("x"))
    assert run("export", "--from", full, "--out", "x", "--yes").exit_code == 0
    assert not Path("x/pytorch_lora_weights.safetensors").exists()


def test_wrong_options(full: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for words, said in (
        (["--format", "gif,lora"], "--format gif: unknown"),
        (["--format", ","], "--format: names no format"),
        (["--dtype", "fp12"], "--dtype fp12: unknown"),
        (["--rank", 0], "--rank 0: must be at least 1"),
        (["--push", "me"], "--push me: is not the name of a repository"),
    ):
        fails(run("export", "--from", full, "--out", "x", *words), 2, said)
    assert not Path("x").exists()


# -- model card and hub -----------------------------------------------------------------------------------------------


def test_the_snippets_of_the_card_run_as_printed(adapters: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run("export", "--from", adapters, "--out", "e", "--format", "diffusers,lora,lora-kohya")
    assert shown.exit_code == 0, shown.output
    card = Path("e/README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.S)
    # A card names the teacher without its path; the terminal, on whose machine it is, with it.
    teacher = Path(read_manifest(adapters).teacher.id)
    assert len(blocks) == 2 and blocks[1].count('"teacher"') == 1
    for block in blocks:
        assert block.replace('"."', '"e"').replace('"teacher"', f'"{teacher}"') in shown.stdout
    assert "for ComfyUI" in shown.stdout and "The lines of Python run in the folder of this file." in card
    assert str(teacher.parent) not in card and "its path goes in place of the name" in card
    monkeypatch.chdir(tmp_path / "e")
    Path("teacher").symlink_to(teacher)
    for block in blocks:
        Path("picture.png").unlink(missing_ok=True)
        exec(compile(block, "card", "exec"), {})
        assert Path("picture.png").is_file()
    head = card.split("---")[1]
    assert "license: openrail++" in head and "- lora" in head and "library_name: diffusers" in head
    assert "999, 749, 499, 249" in card and "3.00 GPU-hours on H200" in card and "the licence of" in card
    assert "adapters" in card and "`teacher-4step-lora.safetensors`" in card and "None" not in card


def test_the_card_of_an_embedded_teachers_student_loads_it_by_name(
    world: Path, shipped: Path, monkeypatch: Any
) -> None:
    student = checkpoint(shipped / "shapes-sdxl", world / "s", "lora")
    (world / "elsewhere").mkdir()
    made = export(student, world / "elsewhere" / "e", form=["lora", "single-file"], dtype=["fp32"])
    card = (made.out / "README.md").read_text()
    assert str(shipped) not in card and str(world) not in card and "distilled from shapes-sdxl with" in card
    assert str(shipped).encode() not in (made.out / "shapes-sdxl-4step.safetensors").read_bytes()
    monkeypatch.chdir(made.out)
    for block in re.findall(r"```python\n(.*?)```", card, re.S):
        Path("picture.png").unlink(missing_ok=True)
        exec(compile(block, "card", "exec"), {})
        assert Path("picture.png").is_file() and 'asset("shapes-sdxl")' in block


def test_the_comparison_is_no_silent_wait(full: Path, tmp_path: Path) -> None:
    class Recorder(SilentReporter):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def phase(self, text: str, unit: str = "it") -> None:
            self.seen.append(text)

        def progress(self, done: int, total: int, metrics: Any = None) -> None:
            self.seen.append(f"{done}/{total}")

    recorder = Recorder()
    export(full, tmp_path / "e", form=["diffusers", "single-file"], reporter=recorder)
    steps = ["0/4", "1/4", "2/4", "3/4", "4/4"]
    wanted = ["comparing: drawing a picture with the student", *steps]
    for number, name in enumerate(("diffusers", "single-file"), 1):
        wanted += [f"comparing {number}/2: loading {name} with its stock loader"]
        wanted += [f"comparing {number}/2: drawing the same picture with {name}", *steps]
    wanted += ["writing the model card, and hashing all files"]
    assert recorder.seen[-len(wanted) :] == wanted


def test_the_card_shows_the_newest_evaluation_of_the_student(
    tiny_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from flashdmd_cli.runs.manifest import parent_record

    monkeypatch.chdir(tmp_path)
    student = checkpoint(tiny_folder, tmp_path / "runs" / "s")
    metrics = {
        "composition": {"value": 0.912, "low": 0.88, "high": 0.94, "n": 128, "direction": "higher"},
        "fid": {"value": None, "low": None, "high": None, "n": 128, "direction": "lower"},
    }
    for name, parent in (("eval-mine", student), ("eval-other", None)):
        folder = tmp_path / "runs" / name
        folder.mkdir()
        document = {
            "schema": 1,
            "suite": {"name": "shapes-val", "version": 1, "sha256": "x", "prompts": 128, "pictures": 128},
            "num_pictures": 128,
            "metrics": metrics if parent else {},
        }
        (folder / "results.json").write_text(json.dumps(document))
        write_manifest(folder, Manifest(kind="eval", parents=[parent_record(student, folder)] if parent else []))
    card = (export(student, "e").out / "README.md").read_text()
    assert "| composition | 0.912 | 0.88 to 0.94 |" in card and "`shapes-val`, 128 pictures" in card
    assert "fid" not in card and "- data: its folder is gone" in card
    rendered = Manifest(kind="data", recipe={"source": "shapes", "num": 12, "seed": 0})
    assert described_data([(student, rendered)]) == "12 rendered pictures of the embedded world with captions"


PUSH = """
import json, sys
from pathlib import Path
from flashdmd_cli.runs.errors import FlashDMDError
from flashdmd_cli.runs.upload import upload
folder = Path(sys.argv[1])
paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()]
try:
    print(upload(folder, "ada/student", paths, "exported"))
except FlashDMDError as error:
    print(f"{error.message} ({error.hint})")
"""
"""In a process of its own: huggingface_hub reads its environment when it is imported."""


def pushed(folder: Path, url: str, **environment: str) -> str:
    settings = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PUSH, folder], capture_output=True, text=True, check=False,
        env={**os.environ, **settings, "HF_HOME": str(folder.parent / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_folder_is_pushed_to_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    for name, size in (("README.md", 100), ("unet/config.json", 50), ("unet/weights.safetensors", 5000)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(i % 251 for i in range(size)))
    with serving(FakeHub()) as hub:
        refused = pushed(folder, hub.url)
        assert refused.startswith(f"--push ada/student: {hub.url} does not let you write there (hf auth login")
        assert "does not let you write" in pushed(folder, hub.url, HF_TOKEN="hf_x")
        hub.writable = str(tmp_path / "hub")
        assert pushed(folder, hub.url, HF_TOKEN="hf_x") == f"{hub.url}/ada/student"
        assert hub.files("ada/student") == {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()
        }
        assert sum(method == "PUT" for method, _, _ in hub.asked) == 1  # the large one
    assert "cannot be reached" in pushed(folder, hub.url, HF_TOKEN="hf_x")
    assert "HF_HUB_OFFLINE forbids it" in pushed(folder, hub.url, HF_HUB_OFFLINE="1")


def test_push_uploads_a_finished_export_with_the_repository_in_its_card(
    full: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    sent: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flashdmd_cli.workflows.export.upload", lambda *args: sent.append(args) or "https://hub/ada/s")
    export(full, "e")
    made = export(full, "e", push="ada/s")
    ((folder, repo, paths, _),) = sent
    assert (str(folder), repo, made.url) == ("e", "ada/s", "https://hub/ada/s")
    assert (
        {*paths, "manifest.json"} == {path for path, _ in made.files}
        and "unet/config.json" in paths
        and not verify(made.out)
    )
    card = (made.out / "README.md").read_text()
    assert 'from_pretrained("ada/s")' in card and str(tmp_path) not in card and str(full.parent) not in card
