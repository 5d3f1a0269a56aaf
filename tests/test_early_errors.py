"""Mistakes on the command line that need no torch are reported before its import, which takes up to minutes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flashdmd_cli
from flashdmd_cli.runs.manifest import GridRecord, Manifest, write_manifest
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.shapes.assets import asset

PROBE = """
import sys
from flashdmd_cli.cli.app import app
for line in sys.stdin.read().splitlines():
    code = 0
    try:
        code = app(line.split(), standalone_mode=False)
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        code = getattr(error, "exit_code", error)
    heavy = {"torch", "diffusers", "transformers"} & set(sys.modules)
    assert not heavy, f"{line}: {heavy}"
    print("code", code, file=sys.stderr)
"""
DRAW = "sample --prompt x --from shapes-sdxl"
WRONG = [
    ("export --format lroa", 2, "--format lroa: unknown; did you mean lora?"),
    ("export --format lora --dtype fp61", 2, "--dtype fp61: unknown; did you mean fp16?"),
    ("export --dtype int8", 2, '--dtype int8: no format is written in integers (write --format diffusers'),
    ("export --dtype fp8", 2, 'torchao quantizes the folder while it is loaded (docs/export.md, "8 bits"))'),
    ("export --format lora --dtype fp8", 2, "--dtype fp8: is for --format single-file alone (export the other"),
    ("export --format lora --dtype fp32,fp16", 2, "--dtype fp32,fp16: only --format diffusers is written in several"),
    ("export --rank 8", 2, "--rank 8: is the rank of a LoRA (add --format lora, or leave it out)"),
    ("export --from adapters --format lora --rank 8", 2, "--rank 8: adapters was trained with adapters, which keep"),
    ("export --from adapters --out taken", 2, "--out taken: is not empty, and holds no export result"),
    ("export --from adapters/student", 3, "--from adapters/student: is a part of adapters, a result of"),
    ("export --from adapters", 3, "--teacher gone: no such folder"),
    ("export --from no-grid", 3, "--from no-grid: its manifest has no grid"),
    ("export --from data", 3, "--from data: is a data folder, not a distill or align one"),
    ("export --from nowhere", 3, "--from nowhere: no such folder"),
    ("export --from shapes-sdxl", 3, "--from shapes-sdxl: is a teacher, not a student"),
    ("export", 3, "--from: nothing given, and no finished distill folder under ./runs"),
    (f"{DRAW} --size 71x71", 2, "--size 71x71: both must be multiples of 32 (the nearest is 64x64)"),
    (f"{DRAW} --steps 0", 2, "--steps 0: must be from 1 to 1000"),
    (f"{DRAW} --sampler dim", 2, "--sampler dim: unknown; did you mean ddim?"),
    (f"{DRAW} --sampler few_step", 2, "--sampler few_step: is for students"),
    (f"{DRAW} --device gpu", 2, "--device gpu: no such device"),
    (f"{DRAW} --compare teacher", 2, "--compare teacher: shapes-sdxl-ddim-30 is no student"),
    (f"{DRAW} --compare nowhere", 3, "--compare nowhere: no such folder (--compare takes sdxl,"),
    (f"{DRAW} --compare adapters/student", 3, "--compare adapters/student: is a part of adapters, a result of flashdm"),
    (f"{DRAW} --out taken", 2, "--out taken: is not empty, and holds no sample result"),
    ("sample --prompt x --from adapters/student", 3, "a result of flashdmd distill (name the whole folder: adapters)"),
    ("sample --prompt x --model sdxl-lightnin-4step", 2, "no such preset; did you mean sdxl-lightning-4step?"),
    ("sample --prompt x --model sdxl --compare teacher", 2, "--compare teacher: sdxl is no student"),
    ("sample --serve --port 0 --from nowhere", 3, "--from nowhere: no such folder"),
    ("sample --serve --port 0 --from shapes-sdxl --size 71x71", 2, "--size 71x71: both must be multiples of 32"),
    ("plan --gpu 4080", 2, "--gpu 4080: unknown; did you mean 4090?"),
    ("plan --recipe sdxl-4stepp", 2, "--recipe: no recipe 'sdxl-4stepp'; did you mean sdxl-4step?"),
    ("plan --recipe shapes-4step", 2, "--recipe shapes-4step: only distillations of SDXL and SD3"),
    ("plan --set train.batc=4", 2, "train.batc"),
    ("bench --recipe sdxl-4stepp", 2, "did you mean sdxl-4step?"),
    ("distill --recipe sdxl-4stepp", 2, "did you mean sdxl-4step?"),
    ("distill --teacher nowhere", 3, "--teacher nowhere: no such folder"),
    ("distill --teacher adapters/student", 3, "--teacher adapters/student: is a part of adapters, a result of"),
    ("distill --teacher adapters", 3, "--teacher adapters: is a student that flashdmd distill made"),
    ("demo --family sdx", 2, "--family sdx: unknown; did you mean sdxl?"),
    ("eval --from shapes-sdxl --steps 0", 2, "--steps 0: must be from 1 to 1000"),
    ("eval --from shapes-sdxl --sampler dim", 2, "--sampler dim: unknown; did you mean ddim?"),
    ("eval --from shapes-sdxl --sampler few_step", 2, "--sampler few_step: is for students"),
    ("eval --from shapes-sdxl --device gpu", 2, "--device gpu: no such device"),
    ("eval --from exported --steps 3", 2, "--steps 3: must be one of 1, 2, 4, 8"),
    ("eval --from exported --sampler ddim", 2, "--sampler ddim: is for teachers"),
    ("eval --from exported --guidance 3", 2, "--guidance 3: a student has its guidance built in"),
    ("eval --from nowhere", 3, "--from nowhere: no such folder"),
    ("eval --from adapters", 3, "--teacher gone: no such folder"),
    ("eval --from data", 3, "--from data: is a data folder"),
    ("eval --model sdxl --steps 2", 2, "--steps: does not go with --model"),
    ("eval --model sdxl-lightnin-4step", 2, "no such preset; did you mean sdxl-lightning-4step?"),
    ("eval read geneva x", 2, "LAYOUT geneva: unknown; did you mean geneval?"),
    ("eval read geneval nowhere", 3, "FILE nowhere: no such file"),
    ("eval compare adapters data --format htm", 2, "--format htm: unknown"),
    ("eval compare adapters nowhere", 3, "nowhere: no such folder (name the folder that flashdmd eval wrote)"),
    ("inspect adapters/student", 3, "adapters/student: is a part of adapters, a result of"),
    ("inspect nowhere", 3, "nowhere: does not exist"),
]  # fmt: skip


def write_student(out: Path, grid: GridRecord | None = None) -> None:
    """A finished result of `distill` whose teacher is not on this machine; its weights are not needed here."""
    for file in ("student/config.json", "lora/pytorch_lora_weights.safetensors"):
        (out / file).parent.mkdir(parents=True)
        (out / file).write_text("{}")
    recipe = load_recipe("shapes-4step", flags={"teacher": "gone"}).model_dump(mode="json")
    write_manifest(out, Manifest(kind="distill", family="sdxl", grid=grid, recipe=recipe))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    write_student(tmp_path / "adapters", GridRecord(scheduler="LCMScheduler", config={}))
    write_student(tmp_path / "no-grid")
    (tmp_path / "data").mkdir()
    write_manifest(tmp_path / "data", Manifest(kind="data"))
    (tmp_path / "taken").mkdir()
    shutil.copytree(asset("shapes-sdxl"), tmp_path / "exported")
    write_manifest(tmp_path / "exported", Manifest(kind="export", family="sdxl", recipe={"grid": {"steps": 4}}))
    (tmp_path / "taken" / "novel.txt").write_text("of somebody else")
    return tmp_path


def test_wrong_options_are_refused_without_torch(folders: Path) -> None:
    """All in one process: what is imported for one of them would show at the next."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input="\n".join(line for line, _, _ in WRONG), capture_output=True, text=True,
        check=False, cwd=folders,
        env={"PYTHONPATH": str(Path(flashdmd_cli.__file__).parents[1]), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "loading torch" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(WRONG), done.stderr  # one for each mistake, and its code
    for (words, code, said), line, found in zip(WRONG, lines[::2], lines[1::2], strict=True):
        assert said in line and found == f"code {code}", (words, line, found)
    assert not (folders / "runs").exists() and (folders / "taken" / "novel.txt").is_file()
