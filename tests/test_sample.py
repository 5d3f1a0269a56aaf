"""`flashdmd sample`: which pictures it draws, beside which others, and what is written in their files."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from flashdmd_cli.cli.app import app
from flashdmd_cli.cli.sample import parse_seeds, parse_size
from flashdmd_cli.evaluation.generate import NoiseKey, in_batches, picture_noise
from flashdmd_cli.evaluation.pictures import png, read_texts
from flashdmd_cli.runs.errors import FlashDMDError
from flashdmd_cli.runs.files import sha256_file
from flashdmd_cli.runs.manifest import read_manifest
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.workflows.inputs.drawers import find_model, load_all
from flashdmd_cli.workflows.sample import sample

from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_cli_runs import SMALL
from .test_distill import sam_folder  # noqa: F401
from .test_docs import BLOCK

RING, SQUARE = "a plain red ring above a striped blue circle", "a plain green square left of a dotted red ring"


@pytest.mark.parametrize("teacher", ["shapes-sdxl", "shapes-sd3"])
def test_the_picture_of_a_seed_depends_on_nothing_beside_it(world, teacher):
    few = ["--from", teacher, "--steps", 2, "--quiet", "--out"]
    assert run("sample", "--prompt", SQUARE, "--prompt", RING, "--seed", "7,4-5", *few, "many").exit_code == 0
    assert run("sample", "--prompt", RING, "--seed", 5, *few, "one").exit_code == 0
    assert run("sample", "--prompt", RING, "--seed", 4, "--num", 2, *few, "two").exit_code == 0
    (name,) = (path.name for path in (world / "one").iterdir() if path.is_dir())
    alone = (world / "one" / name / "0000.png").read_bytes()
    # The pictures of the first prompt are 0, 1 and 2, those of the second one have the same three seeds.
    assert (world / "many" / name / "0005.png").read_bytes() == alone
    assert (world / "two" / name / "0001.png").read_bytes() == alone
    assert (world / "many" / name / "0004.png").read_bytes() != alone
    manifest = read_manifest(world / "many")
    assert manifest.recipe["seeds"] == [7, 4, 5] and manifest.seed == 7
    assert json.loads((world / "many" / "prompts.json").read_text()) == [SQUARE] * 3 + [RING] * 3

    drawer, keys = find_model(teacher, steps=2).load(), [NoiseKey(seed) for seed in (7, 4, 5)]
    assert drawer.batch == 1  # on a CPU
    single, together = (drawer.draw_from(0, [RING] * 3, 0, keys=keys, batch=batch) for batch in (1, 3))
    torch.testing.assert_close(single, together, atol=1e-5, rtol=0)


def test_models_side_by_side_start_from_the_same_noise(world):
    run("prepare-data", "shapes", "--num", 8)
    assert run("distill", *SMALL, "--iterations", 1, "--out", "full/student").exit_code == 0
    lora = [*SMALL, "--set", "model.form=lora", "--set", "optim.warmup_images=0", "--set", "optim.lr_student=0.3"]
    assert run("distill", *lora, "--iterations", 1, "--out", "lora/student").exit_code == 0
    shutil.copytree("full/student", "twin/student")
    assert run("export", "--from", "full/student", "--out", "stock").exit_code == 0

    several = ["--compare", "teacher", "--compare", "twin/student", "--compare", "lora/student", "--compare", "stock"]
    words = ["--prompt", RING, "--prompt", SQUARE, "--steps", 2, "--seed", "3,9"]
    result = run("sample", "--from", "full/student", *words, *several, "--out", "o")
    assert result.exit_code == 0, result.output
    names = ["student", "shapes-sdxl-ddim-30", "student-3", "student-4", "stock"]
    assert sorted(path.name for path in (world / "o").iterdir() if path.is_dir()) == sorted(names)
    # The twin and the pipeline have 4 steps, as trained; so has the first model without `--steps`.
    four = run(
        "sample", "--from", "full/student", "--prompt", RING, "--seed", 3, "--out", "four", "--compare", "teacher"
    )
    assert four.exit_code == 0
    files = {name: world / "o" / name / "0000.png" for name in names}
    texts = json.loads(run("inspect", files["student"], "--json").stdout)
    assert texts["manifest"] == sha256_file(world / "full" / "student" / "manifest.json")
    assert (texts["seed"], texts["steps"], texts["model"]) == ("3", "2", "student")
    pixels = {name: Image.open(path).tobytes() for name, path in files.items()}
    own = Image.open(world / "four" / "student" / "0000.png").tobytes()
    assert pixels["student-3"] == pixels["stock"] == own != pixels["student"]
    assert pixels["student-4"] != own
    teachers = world / "four" / "shapes-sdxl-ddim-30" / "0000.png"
    assert pixels["shapes-sdxl-ddim-30"] == Image.open(teachers).tobytes()
    # A row for each prompt; in it for the first seed all five models, then no room for the second seed's.
    with Image.open(world / "o" / "grid.png") as sheet:
        assert sheet.width == 260 + 5 * (128 + 6) + 6 and sheet.height >= 2 * (128 + 6) + 6

    # An exported student has its network in the teacher's place, so the teacher is loaded on its own.
    assert (
        run("sample", "--from", "stock", "--prompt", RING, "--seed", 3, "--compare", "teacher", "--out", "s").exit_code
        == 0
    )
    assert Image.open(world / "s" / "shapes-sdxl-ddim-30" / "0000.png").tobytes() == pixels["shapes-sdxl-ddim-30"]
    fails(
        run("sample", "--from", "stock", "--prompt", RING, "--compare", "friend", "--quiet"), 3, "--compare friend: no"
    )
    fails(run("sample", "--from", "shapes-sdxl", "--prompt", RING, "--compare", "teacher", "--quiet"), 2, "no student")


def test_models_of_the_same_files_share_their_networks(world):
    first = find_model("shapes-sdxl", steps=2)
    (one, two, other) = load_all(
        first, [find_model("shapes-sdxl", sampler="stochastic"), find_model("shapes-sd3")], "cpu", SilentReporter()
    )
    assert one.family is two.family and two.sampler == "stochastic" and other.family is not one.family


def test_the_folder_is_checked_before_torch_is_needed(world, monkeypatch):
    """Also the default one, which is named after the model."""
    monkeypatch.setattr("flashdmd_cli.workflows.sample.load_all", lambda *_: 1 / 0)
    for folder, words in (("runs/sample-shapes-sdxl-ddim-30", ()), ("o", ("--out", "o"))):
        (world / folder).mkdir(parents=True)
        (world / folder / "novel.txt").write_text("of somebody else")
        line = f"--out {folder}: is not empty, and holds no sample result"
        fails(run("sample", "--prompt", RING, "--from", "shapes-sdxl", *words), 2, line)


def test_a_picture_says_how_it_was_drawn(world):
    prompt = "ein rotes Quadrat, größer als 圆"
    words = ["--prompt", prompt, "--seed", 11, "--steps", 1, "--out", "o", "--quiet"]
    assert run("sample", "--from", "shapes-sdxl", *words).exit_code == 0
    picture = "o/shapes-sdxl-ddim-1/0000.png"
    shown = json.loads(run("inspect", picture, "--json").stdout)
    assert (shown["prompt"], shown["seed"], shown["steps"], shown["sampler"]) == (prompt, "11", "1", "ddim")
    assert shown["teacher"].startswith("shapes-sdxl ") and shown["Software"].startswith("flashdmd ")
    assert prompt in run("inspect", picture).stdout
    Image.new("RGB", (8, 8)).save("plain.png")
    fails(run("inspect", "plain.png"), 3, "plain.png: does not say how it was drawn")
    whole = png(torch.zeros(3, 8, 8), {"prompt": "a"})
    Path("whole.png").write_bytes(whole)
    assert read_texts(Path("whole.png"))["prompt"] == "a"
    Path("torn.png").write_bytes(whole[:40])
    fails(run("inspect", "torn.png"), 3, "torn.png: cannot be read")


def test_prompts_from_stdin(world):
    words = ["sample", "--from", "shapes-sdxl", "--steps", "1", "--prompts", "-", "--prompt", SQUARE, "--out", "o"]

    def sent(raw: bytes) -> Any:
        return CliRunner().invoke(app, words, input=raw, catch_exceptions=False)

    assert sent(f"\ufeff{RING}\r\n\n{SQUARE}".encode()).exit_code == 0
    assert json.loads(Path("o/prompts.json").read_text()) == [SQUARE, RING, SQUARE]
    fails(sent(b"one\ncaf\xe9\n"), 3, "--prompts -: line 2: a caption that is not UTF-8")
    fails(sent(b"\n"), 3, "--prompts -: holds no prompt")


def test_pictures_of_another_height_and_width(tiny_family, tiny_folder, tmp_path):
    """As drawn by the stock pipeline, which tells the network the size."""
    size = tiny_family.resolution
    high, wide = size * 2, size
    drawn = sample([RING], tiny_folder, tmp_path / "o", steps=2, seed=3, size=(high, wide))
    pipeline: Any = tiny_family.pipeline
    stock = type(pipeline)(**pipeline.components)
    config = {**pipeline.scheduler.config, "timestep_spacing": "trailing", "clip_sample": False}
    stock.scheduler = DDIMScheduler.from_config(config)
    stock.set_progress_bar_config(disable=True)
    latents = picture_noise(
        (tiny_family.latent_shape[0], *(side // stock.vae_scale_factor for side in (high, wide))), 3, 0
    )
    guidance = float(read_texts(drawn.pictures[0])["guidance"])
    expected = stock(RING, height=high, width=wide, num_inference_steps=2, guidance_scale=guidance,
                     latents=latents[None], output_type="pil").images[0]  # fmt: skip
    with Image.open(drawn.pictures[0]) as picture:
        assert picture.size == (wide, high) == expected.size
        difference = torch.tensor(list(picture.tobytes())) - torch.tensor(list(expected.tobytes()))
    assert difference.abs().max() <= 1
    assert drawn.manifest.recipe["size"] == [high, wide]


def test_sizes_and_seeds_are_checked(world):
    assert parse_seeds(" 7, 3-5,4") == [7, 3, 4, 5] and parse_size("48x32") == (32, 48) and parse_size("64") == (64, 64)
    words = ["sample", "--prompt", RING, "--quiet", "--steps", 1]
    fails(run(*words, "--from", "shapes-sdxl", "--size", "60"), 2, "--size 60x60: both must be multiples of 32 (the "
          "nearest is 64x64)")  # fmt: skip
    fails(run(*words, "--from", "shapes-sd3", "--size", "96x64"), 2, "--size 96x64: this model draws at most 64 pixels "
          "a side (the nearest is 64x64)")  # fmt: skip
    fails(run(*words, "--from", "shapes-sdxl", "--size", "5x100"), 2, "the nearest is 32x96")
    assert run(*words, "--from", "shapes-sd3", "--size", "64x32", "--out", "o").exit_code == 0
    with Image.open(next(Path("o").glob("*/0000.png"))) as picture:
        assert picture.size == (64, 32)
    fails(run("sample", "--prompt", RING, "--model", "sdxl", "--size", "64"), 2, "--size: does not go with --model")


def test_a_batch_that_the_memory_cannot_hold_is_halved():
    room, tried, shown = 3, [], []

    def draw(part: slice) -> Tensor:
        tried.append(part.stop - part.start)
        if tried[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. More.")
        return torch.arange(part.start, part.stop)

    pictures = in_batches(draw, 11, 8, lambda done, num: shown.append((done, num)))
    assert pictures.tolist() == list(range(11)) and tried == [8, 4, 2, 2, 2, 2, 2, 1]
    assert shown[-1] == (11, 11)
    room = 0
    with pytest.raises(FlashDMDError, match="^--device: too little memory for one picture: CUDA out of memory$"):
        in_batches(draw, 2, 2)


def test_compiled_networks_draw_the_same(world, monkeypatch):
    """With a compiler that does nothing: what is under test is which blocks are compiled."""
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: compiled.append(block))
    words = ["sample", "--from", "shapes-sdxl", "--prompt", RING, "--steps", 1, "--out"]
    assert run(*words, "plain").exit_code == 0 and not compiled
    assert run(*words, "compiled", "--compile").exit_code == 0
    assert {type(block).__name__ for block in compiled} == {"BasicTransformerBlock"}
    pictures = [next(Path(out).glob("*/0000.png")).read_bytes() for out in ("plain", "compiled")]
    assert pictures[0] == pictures[1]


def test_the_examples_of_the_page_run(world):
    run("prepare-data", "shapes", "--num", 8)
    assert run("distill", *SMALL, "--iterations", 1, "--out", "runs/student").exit_code == 0
    page = Path(__file__).parents[1] / "docs" / "sample.md"
    _, _, block = BLOCK.findall(page.read_text(encoding="utf-8"))[0]
    for line in block.splitlines():
        name, *words = shlex.split(line)
        result = run(*words)
        assert name == "flashdmd" and result.exit_code == 0, f"{line}\n{result.output}"
