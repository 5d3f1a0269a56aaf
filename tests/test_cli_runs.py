"""Commands at work on a world with random weights: from data to an exported pipeline, interrupted, damaged, resumed."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from typer.testing import Result

from flashdmd_cli.cli import prepare
from flashdmd_cli.runs.checkpoint import latest_state, load_state
from flashdmd_cli.runs.manifest import read_manifest

from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

RAW = Path(__file__).parents[1] / "docs" / "experiments" / "raw.py"
SMALL = ["--recipe", "shapes-4step", "--set", "train.batch=2", "--set", "train.micro_batch=2"]


def distilled(iterations: int, *words: object) -> Result:
    run("prepare-data", "shapes", "--num", 8)
    return run("distill", *SMALL, "--iterations", iterations, "--out", "runs/student", *words)


def test_damaged_input_is_one_line(world):
    run("prepare-data", "shapes", "--num", 8)
    shard = next((world / "runs" / "data-shapes").glob("*.tar"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    assert run("distill", *SMALL).stderr.strip().splitlines()[-1].startswith("--data")
    flipped = bytearray(whole)
    flipped[600] ^= 1
    shard.write_bytes(flipped)
    # Training compares sizes, since hashing terabytes would take hours; `inspect` compares hashes.
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
    assert measured.exit_code == 5 and "--fail-below: composition" in measured.stderr
    above = run("eval", "--limit", 4, "--fail-above", "frechet=0", "--quiet")
    assert above.exit_code == 5 and "--fail-above: frechet" in above.stderr
    assert run("eval", "--limit", 4, "--fail-above", "frechet=1e9").exit_code == 0
    assert json.loads(measured.stdout)["num_pictures"] == 4
    assert "composition" in run("eval", "--limit", 4, "--from", "shapes-sdxl", "--steps", 2).stdout

    assert run("export", "--out", "stock").exit_code == 0
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained("stock")
    pipeline.scheduler.set_timesteps(4)
    assert pipeline.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert "distill  " in run("inspect", "stock").stdout
    few = ["sample", "--prompt", "a plain red circle above a dotted blue ring", "--quiet"]
    assert run(*few, "--from", "stock", "--out", "a").stdout == "a\n"
    run(*few, "--from", "runs/student", "--out", "b")
    assert run("eval", "--limit", 4, "--from", "stock", "--out", "e").exit_code == 0
    one, two = (Image.open(world / folder / "0000.png") for folder in ("a/stock", "b/student"))
    assert one.tobytes() == two.tobytes()


def test_students_of_earlier_versions_are_drawn(world):
    assert distilled(1).exit_code == 0
    path = world / "runs" / "student" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["recipe"]["train"] |= {"resolution": 64, "generator_ema": 0.9}
    manifest["recipe"]["optim"]["warmup"] = 5
    path.write_text(json.dumps(manifest))
    prompt = ["sample", "--prompt", "a plain red circle above a dotted blue ring", "--out"]
    assert run(*prompt, "a").exit_code == 0
    manifest["recipe"]["train"]["batches"] = 3
    path.write_text(json.dumps(manifest))
    fails(run(*prompt, "b"), 3, "its recipe cannot be read", "batches")


def test_damaged_students_are_not_drawn_with(world):
    assert distilled(1).exit_code == 0
    weights = world / "runs" / "student" / "student" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    prompt = ["--prompt", "a plain red circle above a dotted blue ring"]
    for words in (["sample", *prompt], ["eval", "--limit", 4], ["export"]):
        fails(
            run(*words, "--from", "runs/student", "--out", "o"), 3, "--from runs/student: student/", "contents differ"
        )
    assert not (world / "o").exists()


def test_a_run_that_lacks_something_makes_no_folder(world):
    fails(run("distill", *SMALL, "--data", "none", "--out", "o"), 3, "--data none")
    run("prepare-data", "shapes", "--num", 8)
    fails(run("distill", *SMALL, "--set", "gan.sam=none.pth", "--out", "o"), 3, "gan.sam: no file none.pth")
    next((world / "runs" / "data-shapes").glob("*.tar")).write_bytes(b"")
    fails(run("distill", *SMALL, "--data", "runs/data-shapes", "--out", "o"), 3, "--data")
    assert not (world / "o").exists()


def test_a_finished_student_is_not_touched(world):
    assert distilled(2).exit_code == 0
    # Nothing to do, no way back, another one: in each case every file stays what the manifest says.
    assert distilled(2, "--set", "train.log_every=2").exit_code == 0
    fails(distilled(1, "--quiet"), 2, "has 2 already")
    fails(distilled(2, "--seed", 5, "--quiet"), 2, "train.seed: is 5")
    assert run("inspect", "runs/student").exit_code == 0
    assert (world / "runs/student/student/diffusion_pytorch_model.safetensors").stat().st_mode & 0o044


def test_two_trainings_do_not_share_a_folder(world):
    run("prepare-data", "shapes", "--num", 8)
    (world / "o").mkdir()
    (world / "o" / ".flashdmd").write_text("distill\n")
    with (world / "o" / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        busy = run("distill", *SMALL, "--iterations", 1, "--data", "runs/data-shapes", "--out", "o")
        fails(busy, 2, "--out o: another process is writing to it")
    assert run("distill", *SMALL, "--iterations", 1, "--out", "o").exit_code == 0


def test_a_sample_replaces_all_of_the_one_before(world):
    prompt = [
        "--prompt",
        "a plain red circle above a dotted blue ring",
        "--from",
        "shapes-sdxl",
        "--steps",
        1,
        "--out",
        "o",
    ]
    assert run("sample", *prompt, "--num", 2).exit_code == 0
    again = run("sample", *prompt, "--sampler", "stochastic")
    assert again.exit_code == 0 and "replaces the 4 files" in again.stderr
    assert len(list((world / "o").rglob("*.png"))) == 2  # one picture and the grid


def test_what_cannot_be_written_is_one_line(world):
    fails(run("prepare-data", "shapes", "--out", "/proc/nowhere", "--num", 2), 3, "--out")
    run("prepare-data", "shapes", "--num", 8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        result = run("distill", *SMALL, "--iterations", 1, "--out", "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.strip().splitlines()[-1].startswith("--out")
    assert run("distill", *SMALL, "--iterations", 1, "--out", "s").exit_code == 0


def test_a_part_of_the_world_is_built(world):
    result = run("shapes", "build", "text", "--out", "o", "--work", "w", "--steps", 1, "--json")
    assert json.loads(result.stdout)["part"] == "text"
    assert "steps_per_s" in result.stderr and (world / "o" / "text_encoder_2").is_dir()


def test_sigterm_saves_and_the_same_command_resumes(world, shipped):
    run("prepare-data", "shapes", "--num", 8)
    words = [sys.executable, "-m", "flashdmd_cli", "distill", "--teacher", str(shipped / "shapes-sdxl"), *SMALL,
             "--set", f"gan.sam={shipped / 'shapes-sam'}", "--set", "model.precision=fp32",
             "--out", "run", "--iterations"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(prepare.__file__).parents[2])}
    process = subprocess.Popen([*words, "100000"], stderr=subprocess.PIPE, text=True, env=environment)
    log = world / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (log.is_file() and log.read_text()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    reached = int(re.search(r"interrupted at iteration (\d+) of", said)[1])  # type: ignore[index]
    fails(run("sample", "--from", "run", "--prompt", "x"), 3, "run: is a run that is not finished")
    done = subprocess.run([*words, str(reached + 1)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(log.read_text().splitlines()) == reached + 1


def test_demo(world, monkeypatch):
    from flashdmd_cli.evaluation.suites.spec import suite_path
    from flashdmd_cli.workflows.demo import forecast as demo_time
    from flashdmd_cli.workflows.demo import rows as demo_rows
    from flashdmd_cli.workflows.demo import run as demo

    monkeypatch.setattr(demo, "NUM_PICTURES", 24)
    values = yaml.safe_load(suite_path(demo_rows.SUITE).read_text(encoding="utf-8"))
    values["prompts"] = {"file": str(suite_path("shapes1k").with_suffix(".txt")), "num": 5}
    values["groups"]["num"] = 1  # 4 pictures, and 4 of the fifth caption
    Path("few.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    monkeypatch.setattr(demo_rows, "SUITE", str(Path("few.yaml").absolute()))
    monkeypatch.setattr(demo_time, "PROBE_SECONDS", 0.0)
    result = run("demo", "--iterations", 1, "--out", "d", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    rows = {"student_4", "teacher_30", "teacher_4_ddim", "teacher_4_stochastic"}
    assert set(document) == rows | {"seconds", "page", "manifest"}
    assert all(list(document[row]) == list(demo.METRICS) for row in rows)
    page = Path(document["page"]).read_text(encoding="utf-8")
    assert page.count("<img ") == 4 * 8 and Path(document["manifest"]).is_file()
    assert re.search(
        r"On this machine it will take about \d+ minutes?, \d+ minutes? of it for part 2\.\n", result.stderr
    )
    assert "[1/4]" in result.stderr and "[4/4]" in result.stderr
    assert run("inspect", "d").exit_code == 0

    assert json.loads(run("demo", "--iterations", 1, "--out", "d", "--json").stdout) == document
    fails(run("demo", "--iterations", 2, "--out", "d"), 2, "--iterations 2")
    Path(document["manifest"]).unlink()
    again = run("demo", "--iterations", 1, "--out", "d")
    assert again.exit_code == 0 and "teacher_4_stochastic" in again.stdout
    fails(run("demo", "--family", "sd3", "--iterations", 1, "--out", "d"), 2, "--family sd3", "holds a demo with sdxl")
    fails(run("demo", "--family", "flux"), 2, "--family flux: unknown")


@pytest.mark.parametrize("form", ["full", "lora"])
def test_the_raw_student_of_a_run_that_ships_an_average(form, world):
    """`docs/experiments/raw.py`: what the state holds of the student, with adapters merged, measured as any other."""
    sets = ("train.average_images=20", f"model.form={form}", "model.lora_rank=2", "optim.lr_student=0.01")
    result = distilled(2, *(word for key in sets for word in ("--set", key)))
    assert result.exit_code == 0, result.output
    runpy.run_path(str(RAW))["main"](world / "runs" / "student", world / "raw")
    manifest = read_manifest(world / "raw")
    assert manifest.weights.average == "raw" and read_manifest(world / "runs" / "student").weights.average == "ema"
    file = "student/diffusion_pytorch_model.safetensors"
    raw, shipped = load_file(world / "raw" / file), load_file(world / "runs" / "student" / file)
    assert raw.keys() == shipped.keys() and any(not raw[name].equal(shipped[name]) for name in raw)
    if form == "full":
        state = dict(load_state(latest_state(world / "runs" / "student" / "state"))[0])
        assert all(value.equal(state[f"student.net.{name}"]) for name, value in raw.items())
    assert run("eval", "--limit", 2, "--from", "raw").exit_code == 0
