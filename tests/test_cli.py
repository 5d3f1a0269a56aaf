"""The command line as people and scripts use it: outputs, exit codes, one line for each mistake, the whole demo."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from flashdmd_cli.cli import output as output_module
from flashdmd_cli.cli import prepare
from flashdmd_cli.cli.app import app
from flashdmd_cli.cli.output import Output, Progress, error_line, exit_code
from flashdmd_cli.runs import errors
from flashdmd_cli.runs.recipe import list_recipes
from flashdmd_cli.shapes import assets
from flashdmd_cli.shapes.inspector import Inspector

from .test_distill import sam_folder  # noqa: F401

COMMANDS = [
    [], ["demo"], ["prepare-data"], ["distill"], ["sample"], ["eval"], ["export"], ["inspect"], ["doctor"],
    ["recipes"], ["recipes", "list"], ["recipes", "show"], ["recipes", "copy"], ["shapes"], ["shapes", "build"],
]  # fmt: skip
PROBE = """
import sys
from flashdmd_cli.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    heavy = {"torch", "diffusers", "transformers", "matplotlib", "PIL", "numpy"} & set(sys.modules)
    sys.exit(end.code or (9 if heavy else 0))
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def fails(result: Result, code: int, *said: str) -> None:
    """Exit code, nothing on stdout, and one line on stderr that says all of `said`."""
    lines = result.stderr.strip().splitlines()
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert len(lines) == 1, lines
    for text in said:
        assert text in lines[0]


@pytest.fixture(scope="session")
def shipped(tiny_folder: Path, sam_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A folder of assets with random weights, of the size of the embedded world."""
    root = tmp_path_factory.mktemp("assets")
    teacher = shutil.copytree(tiny_folder, root / "shapes-sdxl")
    config = json.loads((teacher / "unet" / "config.json").read_text())
    (teacher / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": 16}))
    shutil.copytree(sam_folder, root / "shapes-sam")
    torch.manual_seed(0)
    (root / "inspector").mkdir()
    save_file(Inspector().state_dict(), root / "inspector" / "inspector.safetensors")
    return root


@pytest.fixture
def world(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the assets in place."""
    monkeypatch.setattr(assets, "ASSETS", shipped)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: "-".join(words) or "root")
def test_help_imports_nothing_heavy(words):
    done = subprocess.run([sys.executable, "-c", PROBE, *words, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ") and "\x1b" not in done.stdout


def test_dry_run_prints_recipe_and_grid_offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("distill", "--teacher", "sdxl", "--steps", 4, "--ttur", 1, "--dry-run")
    assert result.exit_code == 0
    assert "999 749 499 249" in result.stdout
    recipe = yaml.safe_load(result.stdout)
    assert (recipe["teacher"], recipe["grid"]["steps"], recipe["fake"]["ttur"]) == ("sdxl", 4, 1)
    assert list(tmp_path.iterdir()) == []
    document = json.loads(run("distill", "--teacher", "sdxl", "--dry-run", "--json").stdout)
    assert document["grid"] == [999, 749, 499, 249]


def test_what_a_dry_run_prints_is_a_recipe_again(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(run("distill", "--recipe", "shapes-4step", "--set", "gan.weight=0.7", "--dry-run").stdout)
    assert json.loads(run("recipes", "show", path, "--json").stdout)["gan"]["weight"] == 0.7


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_dry_runs(name):
    assert run("distill", "--recipe", name, "--dry-run").exit_code == 0


def test_missing_weights_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = run("distill", "--teacher", "sdxl", "--steps", 4, "--ttur", 1)
    fails(result, 3, "--teacher", "stabilityai/stable-diffusion-xl-base-1.0", "6.9 GB", "--teacher PATH")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["distill", "--steps", 0, "--dry-run"], 2, "grid.steps"),
        (["distill", "--ttur", 0, "--dry-run"], 2, "fake.ttur"),
        (["distill", "--set", "gan.wieght=1", "--dry-run"], 2, "gan.weight"),
        (["distill", "--recipe", "sdxl-5step", "--dry-run"], 2, "--recipe"),
        (["distill", "--teacher", "nowhere/at/all"], 3, "--teacher nowhere/at/all"),
        (["prepare-data", "coco"], 2, "shapes"),
        (["prepare-data", "shapes", "--num", 0], 2, "--num"),
        (["sample", "--from", "x", "--compare", "friend", "--prompt", "p"], 2, "--compare"),
        (["sample"], 2, "--prompt"),
        (["sample", "--prompt", "p"], 3, "--from"),
        (["sample", "--prompt", "p", "--from", "x.y"], 3, "--from"),
        (["sample", "--prompts", "none.txt"], 3, "--prompts"),
        (["eval", "--suite", "coco10k"], 2, "shapes1k"),
        (["eval", "--limit", 1], 2, "--limit"),
        (["eval", "--fail-below", "beauty=1"], 2, "composition"),
        (["eval", "--fail-below", "frechet"], 2, "METRIC=NUMBER"),
        (["export", "--format", "gif"], 2, "diffusers"),
        (["export"], 3, "--from"),
        (["inspect", "nowhere"], 3, "nowhere"),
        (["recipes", "show", "nothing"], 2, "recipes list"),
        (["recipes", "list", "--json", "--quiet"], 2, "--quiet"),
        (["shapes", "build", "cat", "--out", "x"], 2, "inspector"),
    ],
    ids=str,
)
def test_each_mistake_is_one_line(words, code, said, world):
    fails(run(*words), code, said)
    assert list(world.iterdir()) == []


def test_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("recipes", "list", "--quiet").stdout.split() == list_recipes()
    assert all(row["about"] for row in json.loads(run("recipes", "list", "--json").stdout))
    assert run("recipes", "copy", "shapes-4step").exit_code == 0
    fails(run("recipes", "copy", "shapes-4step"), 2, "--yes")
    assert run("recipes", "copy", "shapes-4step", "--yes", "--quiet").stdout.strip() == "shapes-4step.yaml"


def test_doctor(world):
    document = json.loads(run("doctor", "--json").stdout)
    assert document["ok"] and document["checks"]["shapes-sdxl"]["ok"]


def test_doctor_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "ASSETS", tmp_path)
    result = run("doctor", "--quiet")
    assert (result.exit_code, result.stdout.split()) == (1, ["shapes-sdxl", "shapes-sam", "inspector"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2), (errors.InputError("x"), 3), (errors.NumericalError("x"), 4),
        (errors.ThresholdError("x"), 5), (errors.Interrupted("x", signal_number=15), 143), (KeyboardInterrupt(), 130),
        (FileNotFoundError(errno.ENOENT, "No such file", "f"), 3), (PermissionError(errno.EACCES, "Denied", "f"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 1), (FloatingPointError("nan"), 4), (TypeError("x"), 1),
    ],
)  # fmt: skip
def test_exit_codes(error, code):
    assert exit_code(error) == code
    assert "\n" not in error_line(error)


def test_debug_shows_the_traceback(world):
    result = run("inspect", "nowhere", "--debug")
    assert result.exit_code == 3 and "Traceback" in result.stderr


def test_plain_progress_has_rate_and_eta(capsys, monkeypatch):
    clock = iter(range(0, 100, 10))
    monkeypatch.setattr(output_module.time, "monotonic", lambda: float(next(clock)))
    with Progress(Output()) as progress:
        progress.progress(1, 4, {"dm": 0.5})
        progress.progress(2, 4, {"dm": 0.25})
    out, err = capsys.readouterr()
    assert out == "" and "2/4  0.10 it/s  ETA 0:20  dm 0.25" in err


def test_json_knows_no_nan(capsys):
    Output(as_json=True).result({"a": float("nan"), "b": Path("x")}, "")
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": "x"}


def test_foreign_folders_are_left_alone(world):
    (world / "mine").mkdir()
    (world / "mine" / "thesis.txt").write_text("years of work")
    fails(run("prepare-data", "shapes", "--out", "mine", "--num", 4, "--yes"), 2, "--out mine")
    assert (world / "mine" / "thesis.txt").read_text() == "years of work"
    fails(run("prepare-data", "shapes", "--out", "mine/thesis.txt", "--num", 4), 1, "--out")


def test_prepare_data_is_kept_or_replaced(world):
    assert json.loads(run("prepare-data", "shapes", "--num", 4, "--out", "d", "--json").stdout)["num"] == 4
    before = (world / "d" / "manifest.json").stat().st_mtime_ns
    assert run("prepare-data", "shapes", "--num", 4, "--out", "d", "--quiet").stdout == "d\n"
    assert (world / "d" / "manifest.json").stat().st_mtime_ns == before
    fails(run("prepare-data", "shapes", "--num", 5, "--out", "d"), 2, "--yes")
    assert run("prepare-data", "shapes", "--num", 5, "--out", "d", "--yes").exit_code == 0


SMALL = ["--recipe", "shapes-4step", "--set", "train.batch=2", "--set", "train.micro_batch=2"]


def distilled(iterations: int) -> Result:
    run("prepare-data", "shapes", "--num", 8)
    return run("distill", *SMALL, "--iterations", iterations, "--out", "runs/student")


def test_damaged_input_is_one_line(world):
    run("prepare-data", "shapes", "--num", 8)
    shard = next((world / "runs" / "data-shapes").glob("*.tar"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    assert run("distill", *SMALL).stderr.strip().splitlines()[-1].startswith("--data")
    flipped = bytearray(whole)
    flipped[600] ^= 1
    shard.write_bytes(flipped)
    result = run("distill", *SMALL)
    assert result.exit_code == 3 and result.stderr.strip().splitlines()[-1].startswith("--data")
    assert run("inspect", "runs/data-shapes").exit_code == 3


def test_teacher_without_its_vae_is_one_line(world, shipped):
    teacher = shutil.copytree(shipped / "shapes-sdxl", world / "teacher")
    shutil.rmtree(teacher / "vae")
    fails(run("distill", "--teacher", teacher), 3, "vae/")


def test_from_distillation_to_a_stock_pipeline(world):
    result = distilled(2)
    assert result.exit_code == 0, result.output
    assert "2/2" in result.stderr and "ETA" in result.stderr and "\x1b" not in result.output
    assert run("distill", *SMALL, "--iterations", 2, "--out", "runs/student", "--quiet").stdout == "runs/student\n"
    fails_at = run("distill", *SMALL, "--iterations", 2, "--out", "runs/student", "--ttur", 5)
    assert fails_at.exit_code == 2 and "fake.ttur" in fails_at.stderr
    assert (
        json.loads(run("distill", *SMALL, "--iterations", 3, "--out", "runs/student", "--json").stdout)["iterations"]
        == 3
    )

    shown = run("inspect", "runs/student").stdout
    assert "teacher  shapes-sdxl" in shown and "data-shapes" in shown
    drawn = json.loads(run("sample", "--prompt", "a plain red circle above a dotted blue ring", "--num", 2,
                           "--compare", "teacher", "--json").stdout)  # fmt: skip
    assert len(drawn["files"]) == 2 * 2 + 2 and all(Path(file).is_file() for file in drawn["files"])

    measured = run("eval", "--limit", 4, "--json", "--fail-below", "composition=1.1")
    assert measured.exit_code == 5 and "composition" in measured.stderr
    assert json.loads(measured.stdout)["results"]["student"]["num_pictures"] == 4
    assert "composition" in run("eval", "--limit", 4, "--from", "shapes-sdxl", "--steps", 2).stdout

    assert run("export", "--out", "stock").exit_code == 0
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained("stock")
    pipeline.scheduler.set_timesteps(4)
    assert pipeline.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert "distill  " in run("inspect", "stock").stdout


def test_sigterm_saves_and_the_same_command_resumes(world, shipped):
    run("prepare-data", "shapes", "--num", 8)
    words = [sys.executable, "-m", "flashdmd_cli.cli.app", "distill", "--teacher", str(shipped / "shapes-sdxl"), *SMALL,
             "--set", f"gan.sam={shipped / 'shapes-sam'}", "--out", "run", "--iterations"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(prepare.__file__).parents[2])}
    process = subprocess.Popen([*words, "100000"], stderr=subprocess.PIPE, text=True, env=environment)
    log = world / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.read_text()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    reached = int(re.search(r"interrupted at iteration (\d+) of", said)[1])  # type: ignore[index]
    done = subprocess.run([*words, str(reached + 1)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(log.read_text().splitlines()) == reached + 1


def test_demo(world, monkeypatch):
    from flashdmd_cli.cli import demo

    monkeypatch.setattr(demo, "NUM_PICTURES", 24)
    monkeypatch.setattr(demo, "NUM_CAPTIONS", 8)
    result = run("demo", "--iterations", 1, "--out", "d", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    rows = {"student_4", "teacher_30", "teacher_4_ddim", "teacher_4_stochastic"}
    assert set(document) == rows | {"seconds", "page", "manifest"}
    assert all(list(document[row]) == list(demo.FIGURES) for row in rows)
    page = Path(document["page"]).read_text(encoding="utf-8")
    assert page.count("<img ") == 4 * 8 and Path(document["manifest"]).is_file()
    assert "[1/4]" in result.stderr and "[4/4]" in result.stderr
    assert run("inspect", "d").exit_code == 0

    assert json.loads(run("demo", "--iterations", 1, "--out", "d", "--json").stdout) == document
    fails(run("demo", "--iterations", 2, "--out", "d"), 2, "--iterations 2")
    Path(document["manifest"]).unlink()
    again = run("demo", "--iterations", 1, "--out", "d")
    assert again.exit_code == 0 and "teacher_4_stochastic" in again.stdout
