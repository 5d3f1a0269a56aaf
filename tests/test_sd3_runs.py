"""The commands with `shapes-sd3`: distil, sample, export, and the stock pipeline that the export is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from flashdmd_cli.evaluation.generate import picture_noise
from flashdmd_cli.runs.manifest import read_manifest
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.workflows.training import ADAPTER
from tests.test_cli import fails, run, sam_folder, shipped, world  # noqa: F401

SMALL = ["--set", "train.batch=2", "--set", "train.micro_batch=2", "--set", "model.lora_rank=2"]
CAPTION = "a striped red ring above a plain blue square"
SHAPE = (4, 16, 16)


@pytest.mark.parametrize(("form", "steps"), [("full", 4), ("lora", 2)])
def test_the_stock_pipeline_draws_what_sample_draws(form, steps, world, monkeypatch):  # noqa: F811
    """Called with the number of steps and without guidance, from the same noise: the same picture to one grey level."""
    assert run("prepare-data", "shapes", "--num", 4).exit_code == 0
    words = [
        "distill",
        "--teacher",
        "shapes-sd3",
        *SMALL,
        "--set",
        f"model.form={form}",
        "--set",
        "optim.lr_student=0.01",
    ]
    result = run(*words, "--steps", steps, "--iterations", 2, "--out", "student")
    assert result.exit_code == 0, result.output
    made = read_manifest(Path("student"))
    assert (made.family, made.license, made.updates.student) == ("sd3", "Apache-2.0", 1)
    assert read_metrics(Path("student"))[0]["grad_norm/student"] > 0
    assert run("sample", "--from", "student", "--prompt", CAPTION, "--out", "drawn").exit_code == 0
    assert (Path("student") / ADAPTER).is_file() == (form == "lora")
    rank = ["--rank", 8] if form == "full" else []  # adapters keep theirs
    said = run("export", "--from", "student", "--out", "pipeline", "--format", "diffusers,lora", *rank)
    assert "text_encoder_3=None, tokenizer_3=None" in said.stdout and f"num_inference_steps={steps}" in said.stdout
    card = Path("pipeline/README.md").read_text()
    assert 'from_pretrained(".", text_encoder_3=None, tokenizer_3=None)' in card
    assert "do not read files of this small one" in card
    assert "need flashdmd installed" in card
    pipeline = StableDiffusion3Pipeline.from_pretrained("pipeline", text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    fresh = iter([picture_noise(SHAPE, 0, 0, step)[None] for step in range(1, steps + 1)])  # the last one times 0
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_flow_match_lcm.randn_tensor", lambda *args, **kwargs: next(fresh)
    )
    picture = pipeline(
        CAPTION, num_inference_steps=steps, guidance_scale=0.0, latents=picture_noise(SHAPE, 0, 0)[None]
    ).images[0]
    (path,) = Path("drawn").rglob("0000.png")
    difference = np.asarray(picture, int) - np.asarray(Image.open(path), int)
    assert abs(difference).max() <= 1 and next(fresh, None) is None
    # The exported folder is drawn from as the checkpoint is.
    assert run("sample", "--from", "pipeline", "--prompt", CAPTION, "--out", "again").exit_code == 0
    (other,) = Path("again").rglob("0000.png")
    assert abs(np.asarray(Image.open(other), int) - np.asarray(Image.open(path), int)).max() <= 1
