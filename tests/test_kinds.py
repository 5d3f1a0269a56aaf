"""What a folder or a file is comes from what is written in it; whatever is no teacher is told for what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.runs.manifest import Manifest, write_manifest
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.shapes import assets
from flashdmd_cli.workflows import known_picture
from flashdmd_cli.workflows.inputs.kinds import embedded_teacher, is_exported, is_shapes
from flashdmd_cli.workflows.recipes import default_align_recipe, default_distill_recipe
from tests.original import original, write_original
from tests.test_cli import fails, run, sam_folder, shipped, world  # noqa: F401
from tests.test_cli_runs import SMALL

UNET = "model.diffusion_model."


@pytest.fixture
def teacher(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(tiny_folder, tmp_path / "teacher")


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def unet(folder: Path, **values: Any) -> None:
    edit(folder / "unet" / "config.json", **values)


def index(folder: Path, **values: Any) -> None:
    edit(folder / "model_index.json", **values)


def only_pickles(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def only_strange(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.non_ema.safetensors"))


def emptied(folder: Path, name: str, write: Callable[[Path], object]) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    write(folder / name)


def lora(path: Path) -> None:
    save_file({"unet.down_blocks.0.to_q.lora_A.weight": torch.zeros(2, 2)}, path)


def flashdmd(kind: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model_index.json").unlink()
        write_manifest(folder, Manifest(kind=kind))

    return write


FOLDERS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "refiner": (lambda f: unet(f, projection_class_embeddings_input_dim=5 * 8 + 16), ("is the SDXL refiner",)),
    "inpainting": (lambda f: unet(f, in_channels=9), ("is an inpainting model", "9 channels")),
    "editing": (lambda f: unet(f, in_channels=8), ("edits pictures",)),
    "sd15": (lambda f: unet(f, addition_embed_type=None), ("is not SDXL", "Stable Diffusion 1 and 2")),
    "lcm": (lambda f: unet(f, time_cond_proj_dim=8), ("distilled already", "time_cond_proj_dim")),
    "sd3": (
        lambda f: (index(f, _class_name="StableDiffusion3Pipeline"), (f / "unet").rename(f / "transformer"),
                   edit(f / "transformer" / "config.json", in_channels=33, out_channels=16)),
        ("is an inpainting model: its denoiser takes 33 channels",),
    ),
    "flux": (
        lambda f: (index(f, _class_name="FluxPipeline"), shutil.rmtree(f / "unet")),
        ("is a FluxPipeline, which cannot be distilled", "flashdmd distils sdxl (StableDiffusionXLPipeline)"),
    ),
    "tiny vae": (lambda f: index(f, vae=["diffusers", "AutoencoderTiny"]), ("AutoencoderTiny",)),
    "student": (flashdmd("distill"), ("is a student that flashdmd distill made", "flashdmd align")),
    "data": (flashdmd("data"), ("is a result of flashdmd data",)),
    "pickles": (only_pickles, ("unet/ has its weights as a pickle (diffusion_pytorch_model.bin)", "save_pretrained")),
    "variant": (only_strange, ("unet/ has no diffusion_pytorch_model.safetensors, only", "non_ema")),
    "no unet": (lambda f: shutil.rmtree(f / "unet"), ("has no unet/",)),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer_2"), ("has no tokenizer_2/",)),
    "no json": (lambda f: (f / "unet" / "config.json").write_text("{"), ("config.json is no JSON",)),
    "lora": (lambda f: emptied(f, "weights.safetensors", lora), ("is a LoRA (weights.safetensors)",)),
    "one network": (
        lambda f: emptied(f, "config.json", lambda p: p.write_text('{"_class_name": "UNet2DConditionModel"}')),
        ("is a single network (UNet2DConditionModel)",),
    ),
    "around": (
        lambda f: (shutil.copytree(f, f / "in"), (f / "model_index.json").unlink()),
        ("holds one", "teacher/in"),
    ),
    "a file inside": (
        lambda f: emptied(f, "sd.safetensors", lambda p: save_file({"x": torch.zeros(1)}, p)),
        ("holds sd.safetensors", "name the file"),
    ),
    "something": (lambda f: emptied(f, "notes.txt", lambda p: p.write_text("")), ("has no model_index.json",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_no_teacher_is_told_for_what_it_is(kind, teacher):
    change, said = FOLDERS[kind]
    change(teacher)
    fails(run("distill", "--teacher", "teacher", "--data", ".", "--out", "o"), 3, "--teacher teacher: ", *said)
    if kind not in ("student", "data"):  # those are checkpoints, or not, to --from
        fails(run("sample", "--from", "teacher", "--prompt", "a", "--out", "o"), 3, "--from teacher: ", said[0])


def without(held: dict[str, Any], *starts: str) -> dict[str, Any]:
    return {name: value for name, value in held.items() if not name.startswith(starts)}


FILES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "refiner": (
        lambda h: without(h, "conditioner.") | {"conditioner.embedders.0.model.ln_final.bias": torch.zeros(2)},
        "is the SDXL refiner",
    ),
    "inpainting": (lambda h: h | {UNET + "input_blocks.0.0.weight": torch.zeros(16, 9, 3, 3)}, "inpainting"),
    "lcm": (lambda h: h | {UNET + "time_embed.cond_proj.weight": torch.zeros(2, 2)}, "distilled already"),
    "edm": (lambda h: h | {"edm_mean": torch.zeros(4)}, "EDM"),
    "sd3": (lambda h: {UNET + "joint_blocks.0.x": torch.zeros(2)}, "has no CLIP-L"),
    "flux": (lambda h: {"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(2)}, "Flux"),
    "lora": (lambda h: {"lora_unet_input_blocks_4_1.lora_down.weight": torch.zeros(2, 2)}, "is a LoRA"),
    "no text": (lambda h: without(h, "conditioner."), "has no first text encoder"),
    "denoiser": (lambda h: {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(2)}, "denoiser alone"),
    "something": (lambda h: {"x": torch.zeros(1)}, "no checkpoint in the layout"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_teacher_is_told_for_what_it_is(kind, tiny_family, teacher):
    change, said = FILES[kind]
    save_file(change(original(tiny_family.pipeline)), "m.safetensors")
    words = ["distill", "--teacher", "m.safetensors", "--teacher-config", "teacher", "--data", ".", "--out", "o"]
    fails(run(*words), 3, "--teacher m.safetensors: ", said)


def test_files_that_are_no_safetensors(teacher):
    for name, said in (("m.ckpt", "convert it"), ("m.txt", "a checkpoint file"), ("m.safetensors", "cannot be read")):
        Path(name).write_bytes(b"0" * 64)
        fails(run("distill", "--teacher", name, "--data", "."), 3, f"--teacher {name}: ", said)


def test_damaged_weights_end_with_one_line(teacher):
    """Every command that loads: the option, the network and the first tensor."""
    path = teacher / "text_encoder" / "model.safetensors"
    held = load_file(path)
    first = sorted(held)[0]
    save_file({name: value for name, value in held.items() if name != first}, path)
    words = ["sample", "--from", "teacher", "--prompt", "a", "--out", "o"]
    fails(run(*words), 3, f"{teacher.name}: text_encoder/: ", f"{first.removeprefix('text_model.')} is missing")


def test_sample_draws_from_a_file_and_with_another_vae(tiny_family, teacher):
    write_original(tiny_family.pipeline, Path("m.safetensors"))
    drawn = {}
    for out, words in {
        "folder": ["--from", "teacher"],
        "file": ["--from", "m.safetensors", "--teacher-config", "teacher"],
        "same": ["--from", "teacher", "--vae", "teacher/vae"],
        "other": ["--from", "teacher", "--vae", "vae"],
    }.items():
        if out == "other":
            shutil.copytree("teacher/vae", "vae")
            edit(Path("vae/config.json"), scaling_factor=0.35)
        result = run("sample", *words, "--prompt", "a plain red ring", "--steps", 2, "--out", out)
        assert result.exit_code == 0, result.output
        (picture,) = Path(out).glob("*/0000.png")
        drawn[out] = Image.open(picture).tobytes()
    assert drawn["folder"] == drawn["file"] == drawn["same"] != drawn["other"]
    common = ["--prompt", "a", "--out", "o"]
    fails(run("sample", "--from", "teacher", "--vae", "none", *common), 3, "--vae none: no such")
    fails(run("sample", "--from", "teacher", "--vae", "teacher/unet", *common), 3, "AutoencoderKL")
    Path("empty").mkdir()
    fails(run("sample", "--from", "m.safetensors", "--teacher-config", "empty", *common), 3, "has no model_index.json")


def test_a_hub_id_that_cannot_be_fetched_is_one_line(tiny_family, teacher, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_original(tiny_family.pipeline, Path("m.safetensors"))
    common = ["--prompt", "a", "--out", "o"]
    fails(
        run("sample", "--from", "teacher", "--vae", "nobody/vae", *common),
        3,
        "--vae nobody/vae: ",
        "HF_HUB_OFFLINE forbids",
    )
    said = "--teacher-config nobody/sdxl: "
    fails(run("sample", "--from", "m.safetensors", "--teacher-config", "nobody/sdxl", *common), 3, said)


def test_names_say_nothing(tiny_folder, world, shipped):  # noqa: F811
    """A folder named like the embedded world is not it, and a copy of it under another name is."""
    pastel = shutil.copytree(tiny_folder, world / "my-pastel-shapes-xl")
    unet(pastel, sample_size=128)
    copied = shutil.copytree(shipped / "shapes-sdxl", world / "mine")
    assert (is_shapes("shapes-sdxl"), is_shapes(str(pastel)), is_shapes("mine")) == (True, False, True)
    flow = shutil.copytree(shipped / "shapes-sd3", world / "flow")
    assert (embedded_teacher("flow"), embedded_teacher("shapes-sd3"), embedded_teacher("mine")) == (
        "shapes-sd3",
        "shapes-sd3",
        "shapes-sdxl",
    )
    assert default_distill_recipe("flow") == "shapes-sd3-4step"
    assert (
        default_distill_recipe("my-pastel-shapes-xl") == "sdxl-4step"
        and default_distill_recipe("mine", 4) == "shapes-4step"
    )
    stage1 = load_recipe("sdxl-4step")
    assert (
        default_align_recipe(stage1, copied / "unet") == "align/shapes"
        and default_align_recipe(stage1, pastel / "unet") == "align/sdxl"
    )
    assert default_align_recipe(load_recipe("shapes-sd3-4step"), flow / "transformer") == "align/shapes-sd3"
    edit(copied / "tokenizer" / "vocab.json", cat=594)
    assert not is_shapes("mine")


def test_a_schedulers_class_makes_no_student(tiny_family, teacher):
    """A teacher with merged adapters has the class too; a student that was exported is one with or without manifest."""
    edit(teacher / "scheduler" / "scheduler_config.json", _class_name="LCMScheduler")
    index(teacher, scheduler=["diffusers", "LCMScheduler"])
    assert not is_exported(teacher)
    tiny_family.save_pipeline(tiny_family.teacher.merged(), Path("student"), tiny_family.grid(4))
    assert is_exported(Path("student"))
    fails(run("distill", "--teacher", "student", "--data", "."), 3, "is a student that flashdmd export wrote")
    (Path("student") / "scheduler" / "scheduler_config.json").unlink()
    assert not is_exported(Path("student"))
    write_manifest(Path("student"), Manifest(kind="export"))
    assert is_exported(Path("student"))


def test_doctor_sees_weights_that_are_read_wrongly(tmp_path, monkeypatch):
    name, fine, said = known_picture.check_picture()
    assert (name, fine) == ("picture", True), said
    # What transformers 5.0 made of the names it did not know: numbers drawn at random, and not a word.
    load = SDXLFamily.load

    def half_read(*words: Any) -> SDXLFamily:
        family = load(*words)
        for parameter in family.pipeline.text_encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        return family

    monkeypatch.setattr(SDXLFamily, "load", half_read)
    assert known_picture.check_picture()[1] is False
    monkeypatch.setattr(assets, "ASSETS", tmp_path)
    assert "known-picture" in known_picture.check_picture()[2]


def test_a_run_keeps_its_file_and_its_autoencoder(world, shipped, monkeypatch):  # noqa: F811
    """Relative paths of a run hold wherever its student is used."""
    write_original(SDXLFamily.load(shipped / "shapes-sdxl").pipeline, world / "m.safetensors")
    edit(shutil.copytree(shipped / "shapes-sdxl" / "vae", world / "vae") / "config.json", scaling_factor=0.35)
    assert run("prepare-data", "shapes", "--num", 8).exit_code == 0
    given = ["--teacher", str(world / "m.safetensors"), "--teacher-config", "shapes-sdxl", "--vae", "vae"]
    result = run("distill", *SMALL, *given, "--iterations", 1, "--out", "student")
    assert result.exit_code == 0, result.output
    model = json.loads(Path("student/manifest.json").read_text())["recipe"]["model"]
    assert (model["vae"], model["teacher_config"]) == (str(world / "vae"), "shapes-sdxl")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run("export", "--from", "../student", "--out", "e").exit_code == 0
    assert json.loads(Path("e/vae/config.json").read_text())["scaling_factor"] == 0.35
    assert run("sample", "--from", "../student", "--prompt", "a", "--out", "s").exit_code == 0
