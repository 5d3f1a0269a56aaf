"""Options of `eval` are checked at once: before torch is loaded and before anything is downloaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashdmd_cli.evaluation.metrics.registry import CLASSES
from flashdmd_cli.evaluation.names import METRIC_NAMES
from flashdmd_cli.runs.download import cache_folder
from flashdmd_cli.runs.reporter import wrapped
from flashdmd_cli.workflows.inputs import suites

from .test_cli import fails, run

PROBE = """
import sys
from flashdmd_cli.cli.app import app
for line in sys.stdin.read().splitlines():
    try:
        app(line.split(), standalone_mode=False)
    except SystemExit:
        pass
    except BaseException as error:
        assert type(error).__name__ == "Exit", error
    heavy = {"torch", "diffusers", "transformers"} & set(sys.modules)
    assert not heavy, f"{line}: {heavy}"
"""
WRONG = [
    (["--suite", "shapes1"], 2, "--suite shapes1: no suite of that name; did you mean shapes1k?"),
    (["--metrics", "clips"], 2, "--metrics clips: no such metric; did you mean clip?"),
    (["--metrics", "clip,clip"], 2, "--metrics clip: is there twice"),
    (["--fail-below", "kidd=1"], 2, "--fail-below kidd: no such metric; did you mean kid?"),
    (["--fail-above", "kid=1", "--generate-only"], 2, "--fail-above: nothing is measured"),
    (["--seeds", "0"], 2, "--seeds 0: must be at least 1"),
    (["--layout", "genevall"], 2, "--layout genevall: unknown; did you mean geneval?"),
    (["--images", "nowhere"], 3, "--images nowhere: no such folder"),
    (["--images", ".", "--prompts", "nowhere.txt"], 3, "--prompts nowhere.txt: no such file"),
    (["--references", "nowhere"], 3, "--references nowhere: no such folder"),
    (["--from", "nowhere"], 3, "--from nowhere: no such folder"),
    (["--model", "nothing"], 2, "--model nothing: "),
]


@pytest.mark.parametrize(("words", "code", "text"), WRONG, ids=[" ".join(each[0]) or "none" for each in WRONG])
def test_wrong_options_are_refused_before_a_download(words, code, text, tmp_path, monkeypatch):
    """The prompts of `coco10k` come in an archive of 253 MB, which was downloaded first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suites, "fetch_file", lambda *_: pytest.fail("downloaded"))
    suite = [] if "--suite" in words else ["--suite", "coco10k"]
    fails(run("eval", *suite, *words), code, text)


def test_wrong_options_are_refused_without_torch(tmp_path):
    lines = [["eval", *words] for words, _, _ in WRONG]
    lines += [
        ["eval", "--suite", "coco10k", "--from", "shapes-sdxl"],
        ["eval", "--suite", "coco10k", "--model", "sdxl"],
    ]
    package = str(Path(suites.__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input="\n".join(" ".join(words) for words in lines), capture_output=True,
        text=True, check=False, cwd=tmp_path,
        env={"PYTHONPATH": package, "HF_HUB_OFFLINE": "1", "TORCH_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "loading torch" not in done.stderr
    assert done.stderr.count("--suite coco10k: its prompts are not prepared") == 2


def test_names_are_those_of_the_registry():
    assert METRIC_NAMES == tuple(metric.name for metric in CLASSES)


@pytest.mark.parametrize("home", [{"TORCH_HOME": "/x/y"}, {"XDG_CACHE_HOME": "/c"}, {"HOME": "/h"}], ids=str)
def test_the_cache_folder_is_that_of_torch_hub(home, monkeypatch):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in home.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(torch.hub.get_dir()) / "checkpoints"


def test_long_messages_are_wrapped_and_no_path_is_broken():
    path = "/very/long" * 12
    lines = wrapped(f"fid: not measured: its weights are not on this machine, they are looked for in {path} first")
    assert all(len(line) <= 80 or path in line for line in lines.splitlines()) and path in lines
