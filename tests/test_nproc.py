"""Commands with `--nproc 2`: alignment, reward training, and distillation with sharded networks."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from flashdmd_cli.cli.app import app
from flashdmd_cli.runs.checkpoint import latest_state
from flashdmd_cli.runs.manifest import read_manifest
from flashdmd_cli.runs.tracking import read_metrics

from .test_cli import shipped  # noqa: F401
from .test_cli_align import reward  # noqa: F401
from .test_distill import sam_folder  # noqa: F401
from .test_launcher import FLASHDMD, REPOSITORY
from .test_reward_training import red_wins

TWO = ["--nproc", "2", "--quiet", "--device", "cpu"]
SHARDED = ["--set", "model.sharding=fsdp", "--set", "train.async_save=true", "--set", "train.keep_states=3"]


class Made(NamedTuple):
    """A folder with data, and the options of a distillation on them."""

    root: Path
    words: list[str]


def alone(*words: object) -> None:
    """A command in this process."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output


def launched(*words: object) -> None:
    """A command in two processes."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*FLASHDMD, *map(str, words), *TWO], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def options(sets: dict[str, object]) -> list[str]:
    return [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def made(tmp_path_factory, shipped, sam_folder) -> Made:
    root = tmp_path_factory.mktemp("nproc")
    alone("prepare-data", "shapes", "--num", 8, "--out", root / "data")
    sets = {"gan.sam": sam_folder, "train.batch": 4, "train.micro_batch": 4, "train.save_every": 1,
            "train.preview_every": 2, "optim.warmup_images": 0, "model.precision": "fp32"}  # fmt: skip
    words = ["--recipe", "shapes-4step", "--teacher", str(shipped / "shapes-sdxl"), "--data", str(root / "data")]
    return Made(root, words + options(sets))


def same(a: Path, b: Path, num: int, weights: Callable[[Path], Path]) -> None:
    """Both runs have these many rows of metrics and, up to rounding, the same results."""
    rows, wanted = read_metrics(a), read_metrics(b)
    assert len(rows) == len(wanted) == num
    for row, expected in zip(rows, wanted, strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-4)
    one, two = load_file(weights(a)), load_file(weights(b))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-4)


def student(run: Path) -> Path:
    return run / "student" / "diffusion_pytorch_model.safetensors"


def test_align(made, reward):
    alone("distill", *made.words, "--iterations", 1, "--quiet", "--out", made.root / "student")
    words = ["align", "--from", made.root / "student", "--reward", reward, "--iterations", 2]
    sets = {"model.precision": "fp32", "train.batch": 4, "train.micro_batch": 2, "train.preview_every": "null",
            "probe.every": 2, "probe.num_prompts": 2, "probe.num_seeds": 2, "align.threshold": [0, 0]}  # fmt: skip
    words += options(sets)
    launched(*words, "--out", made.root / "two")
    alone(*words, "--quiet", "--device", "cpu", "--out", made.root / "one")
    same(made.root / "two", made.root / "one", 2, student)
    assert read_manifest(made.root / "two").kind == "align"


def test_reward_train(made, shipped):
    pairs = red_wins(made.root, 3)
    words = ["reward", "train", "--recipe", "reward/shapes", "--pairs", pairs, "--teacher", shipped / "shapes-sdxl"]
    words += options({"train.batch": 4, "train.micro_batch": 2, "train.iterations": 2, "train.log_every": 1,
                      "model.precision": "fp32", "pairs.held_out": 0.3})  # fmt: skip
    launched(*words, "--out", made.root / "reward-two")
    alone(*words, "--quiet", "--device", "cpu", "--out", made.root / "reward-one")
    (weights,) = (
        path.relative_to(made.root / "reward-one") for path in (made.root / "reward-one").glob("*.safetensors")
    )
    same(made.root / "reward-two", made.root / "reward-one", 2, lambda run: run / weights)


def test_a_sharded_distillation_is_resumed_by_one_process(made):
    out = made.root / "sharded"
    words = ["distill", *made.words, "--iterations"]
    launched(*words, 2, *SHARDED, "--out", out)
    assert (out / "preview.png").is_file() and (out / "page.html").is_file()
    assert read_manifest(out).step == 2 and len(list((out / "state").glob("step-*"))) == 2
    saved = {path.name for path in latest_state(out / "state").iterdir()}
    assert saved == {"state.json", "tensors.safetensors", "tensors-1.safetensors"}
    alone(*words, 2, "--quiet", "--device", "cpu", "--out", made.root / "whole")
    same(out, made.root / "whole", 2, student)
    for run in (out, made.root / "whole"):  # without the setting, which may change
        alone(*words, 3, "--quiet", "--device", "cpu", "--out", run)
    same(out, made.root / "whole", 3, student)
