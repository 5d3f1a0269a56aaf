"""Where things lie: what the libraries say, whatever the environment names, and without a home directory."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flashdmd_cli.families.sdxl.facts import SDXL
from flashdmd_cli.workflows.inputs.teachers import find_teacher

from .fake_hub import FakeHub
from .test_hub import ROOT, hub, repo  # noqa: F401


def test_the_cache_is_where_huggingface_hub_says(hub: FakeHub, tmp_path: Path, repo: Path) -> None:
    """HF_HOME with ~, the older name of the cache's variable, XDG_CACHE_HOME; refs/main and not the newest folder."""
    find_teacher("sdxl")
    snapshots = tmp_path / "cache" / f"models--{SDXL.hub_id.replace('/', '--')}" / "snapshots"
    newer = shutil.copytree(snapshots / hub.commit(SDXL.hub_id), snapshots / ("0" * 40), symlinks=True)
    os.utime(newer)
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "hub").symlink_to(tmp_path / "cache")
    script = "from flashdmd_cli.workflows.inputs.teachers import find_teacher; print(find_teacher('sdxl').name)"
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE", "XDG"))}
    plain |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    for extra in ({}, {"HF_HOME": "~/.cache/huggingface"}, {"HUGGINGFACE_HUB_CACHE": str(tmp_path / "cache")},
                  {"HOME": "/nowhere", "XDG_CACHE_HOME": str(tmp_path / ".cache")}):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", script], env=plain | extra, capture_output=True, text=True)
        assert done.stdout.strip() == hub.commit(SDXL.hub_id), (extra, done.stderr)


NOBODY = """
import os, pwd, sys
def getpwuid(uid): raise KeyError(uid)
pwd.getpwuid = getpwuid
from flashdmd_cli.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["doctor", "--json"], 0, '"ok": true'),
        (["distill", "--teacher", "sdxl"], 3, "HF_HOME=DIR"),
        (["distill", "--teacher", "~/sdxl", "--data", "."], 3, "--teacher ~/sdxl: no such folder"),
        (["prepare-data", "~/pictures", "--out", "o"], 3, "~/pictures"),
        (["distill", "--teacher", "shapes-sdxl", "--set", "gan.sam=vit_b", "--quiet"], 3, "TORCH_HOME=DIR"),
    ],
)
def test_without_a_home(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    """A user id without an entry in passwd, as containers have it, and no HOME."""
    values = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE", "XDG", "TORCH_HOME"))}
    values.pop("HOME", None)
    done = subprocess.run([sys.executable, "-c", NOBODY, *words], cwd=tmp_path, capture_output=True, text=True,
                          env=values | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == []
