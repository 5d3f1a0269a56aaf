"""`flashdmd align` on a world with random weights: from a student to an aligned one, killed, damaged, resumed."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

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
from safetensors.torch import load_file
from typer.testing import Result

from flashdmd_cli.cli import prepare
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.sdxl.reward import RewardConfig
from flashdmd_cli.families.sdxl.reward_files import new_reward, save_reward
from flashdmd_cli.runs.checkpoint import latest_state
from flashdmd_cli.shapes.captions import captions
from flashdmd_cli.shapes.render import render
from flashdmd_cli.shapes.world import add_object, sample_scenes
from flashdmd_cli.workflows.judges import held_out_judge

from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_cli_runs import distilled
from .test_distill import sam_folder  # noqa: F401

PROBE = ["--set", "probe.every=2", "--set", "probe.num_prompts=2", "--set", "probe.num_seeds=2"]
LOOSE = ["--set", "align.threshold=[0, 0]"]
SMALL = ["--set", "train.batch=2", "--set", "train.micro_batch=2", "--set", "train.save_every=2"]


@pytest.fixture(scope="module")
def reward(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    model = new_reward(SDXLFamily.load(shipped / "shapes-sdxl"), RewardConfig(resolution=64, guidance=None))
    save_reward(model, folder)
    return folder


@pytest.fixture(scope="module")
def student(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/` with data and a student, made once."""
    root = tmp_path_factory.mktemp("student")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flashdmd_cli.shapes.assets.ASSETS", shipped)
        patch.chdir(root)
        assert distilled(2, "--set", "fake.ttur=2", "--set", "gan.weight=0.2").exit_code == 0
    return root / "runs"


@pytest.fixture
def ready(world: Path, student: Path) -> Path:
    """A working folder with its own copy of the student."""
    shutil.copytree(student, world / "runs")
    return world


def align(reward: Path, iterations: int, *words: object) -> Result:
    return run(
        "align", "--from", "runs/student", "--reward", reward, *SMALL, *LOOSE, "--iterations", iterations, *words
    )


def test_from_a_student_to_an_aligned_one(ready, reward):
    result = align(reward, 3, "--rl-ratio", 2, *PROBE, "--out", "runs/aligned")
    assert result.exit_code == 0, result.output
    assert "3/3" in result.stderr and "data: runs/data-shapes" in result.stderr
    out = ready / "runs" / "aligned"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kind"] == "align" and manifest["step"] == 3
    assert manifest["updates"] == {"student": 2, "fake": 3, "discriminator": 3, "preference": 3}
    assert [parent["path"] for parent in manifest["parents"]] == ["../student", "../data-shapes"]
    assert manifest["recipe"]["align"]["rl_ratio"] == 2 and manifest["recipe"]["gan"]["sam"] == "embedded"
    before, after = (load_file(p / "student" / "diffusion_pytorch_model.safetensors") for p in (out.parent / "student", out))  # fmt: skip # noqa: E501
    assert any(not torch.equal(before[key], after[key]) for key in before)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"preference", "kl", "kept_pairs", "reward/mean"} <= rows[0].keys()
    assert {"probe/reward", "probe/held_out", "probe_change/saturation", "probe/diversity"} <= rows[1].keys()
    page = (out / "page.html").read_text()
    assert "<svg" in page and "data:image/png;base64," in page and "Probe: reward" in page

    shown = run("inspect", "runs/aligned")
    assert shown.exit_code == 0 and "align  runs/aligned" in shown.stdout and "distill  " in shown.stdout
    # The same command again finds it done; whatever takes a student takes this one.
    assert align(reward, 3, "--rl-ratio", 2, *PROBE, "--out", "runs/aligned", "--quiet").stdout == "runs/aligned\n"
    prompt = "a plain red circle above a dotted blue ring"
    assert run("sample", "--from", "runs/aligned", "--prompt", prompt).exit_code == 0
    assert run("export", "--from", "runs/aligned", "--out", "stock").exit_code == 0
    # The newest student is the aligned one.
    assert "from runs/aligned" in run("sample", "--prompt", prompt).stderr
    fails(run("align", "--from", "runs/aligned", "--reward", reward), 3, "is an align folder", "more --iterations")


def test_adapters(ready, reward):
    result = align(reward, 1, "--set", "model.form=lora", "--set", "model.lora_rank=2", "--out", "a")
    assert result.exit_code == 0, result.output
    assert "lora" not in " ".join(load_file(ready / "a/student/diffusion_pytorch_model.safetensors"))


def test_a_run_goes_on_with_what_it_was_started_with_or_not_at_all(ready, reward):
    """Adapters lie on weights of stage 1's state, and a reward model of the published kind has no manifest."""
    lora = ["--set", "model.form=lora", "--set", "model.lora_rank=2"]
    judge = shutil.copytree(reward, ready / "judge")
    assert align(judge, 1, *lora, "--out", "a").exit_code == align(judge, 1, "--out", "b").exit_code == 0
    shutil.rmtree(ready / "runs" / "student" / "state")
    quiet = ["--quiet"]
    fails(align(judge, 2, *lora, *quiet, "--out", "a"), 2, "--from runs/student: is not what the run in a was")
    on = align(judge, 2, "--out", "b")  # whose own state has all of it
    assert on.exit_code == 0 and "the fake score is initialised" not in on.stderr
    edit(judge / "unet" / "config.json", sample_size=99)
    fails(align(judge, 3, *quiet, "--out", "b"), 2, f"--reward {judge}: is not what")


def test_recipe_is_the_students_with_the_alignment_on_top(ready):
    recipe = yaml.safe_load(run("align", "--from", "runs/student", "--rl-ratio", 5, "--dry-run").stdout)
    assert (recipe["align"]["rl_ratio"], recipe["name"], recipe["gan"]["weight"]) == (5, "align-shapes", 0.2)
    assert recipe["fake"]["ttur"] is None  # not the student's own
    row = run("align", "--from", "runs/student", "--recipe", "align/shapes-post-training", "--dry-run").stdout
    assert yaml.safe_load(row)["align"]["rl_ratio"] is None
    fails(run("align", "--from", "runs/student", "--set", "grid.steps=8", "--dry-run"), 2, "grid.steps: is 8", "4")
    fails(run("align", "--from", "runs/student", "--recipe", "shapes-4step", "--dry-run"), 2, "--recipe shapes-4step")


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "manifest.json").unlink(), "has no manifest.json"),
        (lambda f: edit(f / "manifest.json", kind="eval"), "is an eval folder, not a distill one"),
        (lambda f: edit(f / "manifest.json", schema_version=99), "schema 99 is newer"),
        (lambda f: (f / "manifest.json").write_text("{"), "not a manifest"),
        (lambda f: edit(f / "manifest.json", recipe={"grid": {"steps": 5}}), "its recipe cannot be read: grid.steps"),
        (lambda f: (f / "student" / "config.json").unlink(), "student/config.json: missing"),
        (lambda f: flip(f / "student" / "diffusion_pytorch_model.safetensors"), "contents differ"),
        (lambda f: shutil.rmtree(f), "no such folder"),
    ],
    ids=["no manifest", "eval", "newer", "torn", "recipe", "missing file", "flipped byte", "gone"],
)
def test_a_wrong_checkpoint_is_one_line(damage, said, ready, reward):
    damage(ready / "runs" / "student")
    fails(run("align", "--from", "runs/student", "--reward", reward), 3, "--from", said)
    assert not (ready / "runs" / "align-shapes").exists()


def test_a_damaged_state_is_one_line(ready, reward):
    state = latest_state(ready / "runs" / "student" / "state")
    (state / "tensors.safetensors").write_bytes(b"torn")
    result = align(reward, 1)
    assert result.exit_code == 3 and "state" in result.stderr.strip().splitlines()[-1]
    shutil.rmtree(state.parent)
    assert "the fake score is initialised from the student" in align(reward, 1).stderr


def test_a_wrong_reward_model_is_one_line(ready, reward, student):
    def last(result: Result, code: int) -> str:
        assert (result.exit_code, result.stdout) == (code, "")
        return result.stderr.strip().splitlines()[-1]

    assert "casiatao/LRM" in last(align(ready / "none", 1), 3)
    assert "shapes build reward" in last(run("align", "--from", "runs/student", *SMALL), 3)
    assert last(align(ready / "runs" / "student", 1), 3).startswith("--reward")
    broken = shutil.copytree(reward, ready / "broken")
    (broken / "projections.safetensors").unlink()
    assert "has neither projections.safetensors" in last(align(broken, 1), 3)
    torn = shutil.copytree(reward, ready / "torn")
    (torn / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    assert last(align(torn, 1), 3).startswith("--reward")
    # Another family's: SD1.5's layout has one text encoder and no sizes.
    sd15 = shutil.copytree(reward, ready / "sd15")
    shutil.rmtree(sd15 / "text_encoder_2")
    assert last(align(sd15, 1), 3).startswith("--reward")
    wide = shutil.copytree(reward, ready / "wide")
    edit(wide / "unet" / "config.json", in_channels=8)
    assert last(align(wide, 1), 3).startswith("--reward")
    # A level that it never saw is refused before anything runs.
    current = ["--set", "align.reward_timestep=current"]
    assert "999" in last(align(reward, 1, *current), 2)
    assert align(reward, 1, *current, "--set", "align.reward_outside=clamp").exit_code == 0


def test_collapse_stops_the_run_and_marks_what_goes_on(ready, reward):
    """A band so narrow that any change counts, and a learning rate that makes one."""
    words = ["--set", "align.lr=0.05", "--set", "probe.excuse_when_reward_falls=false", "--set", "probe.every=1",
             "--set", "probe.num_prompts=2", "--set", "probe.num_seeds=2", "--out", "c"]  # fmt: skip
    words += [word for name in ("contrast", "saturation", "colourfulness") for word in ("--set", f"bands.{name}=1e-6")]
    stopped = align(reward, 8, *words, "--stop-on-collapse")
    assert (stopped.exit_code, stopped.stdout) == (4, "")
    assert stopped.stderr.strip().splitlines()[-1].startswith("--stop-on-collapse: stopped at iteration")
    assert not (ready / "c" / "manifest.json").exists() and latest_state(ready / "c" / "state") is not None
    page, iteration = (
        (ready / "c" / "page.html").read_text(),
        re.search(r"stopped at iteration (\d+)", stopped.stderr)[1],
    )
    assert f"Iteration {iteration} of 8" in page and "collapse at iteration" in page
    again = align(reward, 8, *words, "--stop-on-collapse")
    assert again.exit_code == 4  # it is still collapsed
    on = align(reward, 8, *words)
    assert on.exit_code == 0, on.output
    assert "warning: collapse at iteration" in on.stdout
    manifest = json.loads((ready / "c" / "manifest.json").read_text())
    assert any(warning.startswith("collapse at iteration") for warning in manifest["warnings"])
    # Found by the look after the last iteration, it is a collapse all the same.
    words[words.index("c")] = "d"
    assert align(reward, 2, *words, "--stop-on-collapse").exit_code == 4
    assert not (ready / "d" / "manifest.json").exists() and align(reward, 2, *words).exit_code == 0
    assert "collapse at iteration" in (ready / "c" / "page.html").read_text()


def test_sigkill_and_the_same_command_again_give_the_uninterrupted_run(ready, reward, shipped):
    # Another process has no patched assets, nor fp32 for whatever is `auto`.
    script = (
        f"import pathlib; from flashdmd_cli.shapes import assets; assets.ASSETS = pathlib.Path({str(shipped)!r}); "
        "from flashdmd_cli.__main__ import main; main()"
    )
    words = ["align", "--from", "runs/student", "--reward", str(reward), "--recipe", "align/shapes", *SMALL, *LOOSE,
             *PROBE, "--set", "model.precision=fp32", "--rl-ratio", "2", "--iterations"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(prepare.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", script, *words, "100000", "--out", "killed"],
                               stderr=subprocess.PIPE, env=environment)  # fmt: skip
    deadline = time.monotonic() + 240
    while latest_state(ready / "killed" / "state") is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert latest_state(ready / "killed" / "state") is not None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not (ready / "killed" / "manifest.json").exists()
    # Beyond whatever was reached, by an odd number so that a probe and a round of stage 1 lie in between.
    last = str(int(latest_state(ready / "killed" / "state").name.removeprefix("step-")) + 3)
    for out in ("killed", "whole"):
        done = run(*words, last, "--out", out)
        assert done.exit_code == 0, done.output
    one, two = ready / "killed", ready / "whole"
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()
    for path in ("student/diffusion_pytorch_model.safetensors", f"state/step-{int(last):08d}/tensors.safetensors"):
        assert (one / path).read_bytes() == (two / path).read_bytes()


def test_the_probes_judge_reads_the_caption_and_counts():
    generator = torch.Generator().manual_seed(0)
    scenes = sample_scenes(40, generator)
    texts = captions(scenes.attributes)
    judge = held_out_judge("shapes-sdxl", texts)
    assert judge is not None
    assert judge(render(scenes, generator), texts).mean() > 0.85
    assert judge(render(scenes, generator), texts[::-1]).mean() < 0.1
    assert judge(render(add_object(scenes, generator), generator), texts).mean() < 0.3
    assert held_out_judge("shapes-sdxl", ["a cat"]) is None and held_out_judge("my-shapes-xl", texts) is None
