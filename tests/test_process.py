"""What shell, terminal and file system do to a command: early signals, closed or full streams, folders in use."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flashdmd_cli.cli import prepare
from flashdmd_cli.runs.lock import LOCK, hold, release

from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

ROOT = Path(prepare.__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
PROMPT = ["--prompt", "a plain red circle above a dotted blue ring", "--steps", 1, "--from", "shapes-sdxl"]
AT_IMPORT = """
import importlib.abc, os, signal, sys

class Interrupts(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == WANTED:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

WANTED = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupts())
from flashdmd_cli.__main__ import main
main()
"""


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`flashdmd LINE`, with the redirections in it."""
    command = f"{sys.executable} -m flashdmd_cli {line}"
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, capture_output=True, text=True, env=ENVIRONMENT | environment, check=False
    )


@pytest.mark.parametrize("module", ["typer", "diffusers.models"])
def test_ctrl_c_during_imports_is_one_line(module, tmp_path):
    """Before a command begins, and in the lazy imports of diffusers, which make a RuntimeError of what they catch."""
    words = ["sample", *map(str, PROMPT), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, module, *words], cwd=tmp_path, env=ENVIRONMENT, capture_output=True,
        text=True, check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr.startswith("interrupted") and done.stderr.count("\n") == 1


def test_a_signal_ends_drawing_within_seconds(tmp_path):
    """As a process, in its own time: thousands of pictures are asked for."""
    words = [sys.executable, "-m", "flashdmd_cli", "sample", *map(str, PROMPT[:2]), "--from", "shapes-sdxl",
             "--num", "5000", "--out", "o"]  # fmt: skip
    process = subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "drawing" not in process.stderr.readline():
        assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and said.splitlines()[-1].startswith("interrupted")
    # Ten seconds are what is promised; a machine that does ten other things may take longer, all pictures take minutes.
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, tmp_path):
    done = shell(f"recipes copy sdxl-4step mine.yaml {closed}", tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == ("" if ">&- " in closed or closed == ">&-" else done.stdout)
    # A file that takes the number of a closed stream would be given what is printed.
    assert (tmp_path / "mine.yaml").read_bytes() == (ROOT / "recipes" / "sdxl-4step.yaml").read_bytes()
    wrong = shell(f"recipes show nothing {closed}", tmp_path)
    assert wrong.returncode == 2 and wrong.stdout == ""


def test_full_streams(tmp_path):
    for line in ("recipes list", "--version", "--help"):
        done = shell(f"{line} >/dev/full", tmp_path)
        assert done.returncode == 3 and done.stderr.startswith("stdout: cannot be written: No space left"), done.stderr
        assert done.stderr.count("\n") == 1
    silent = shell("recipes show nothing 2>/dev/full", tmp_path)
    assert (silent.returncode, silent.stdout, silent.stderr) == (2, "", "")


def test_narrow_encodings_and_terminals(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: sdxl-4step\nname: 名\n", encoding="utf-8")
    done = shell("recipes show mine.yaml -q", tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "\\u540d\n")
    for environment in ({"COLUMNS": "1"}, {"COLUMNS": "wide", "TERM": ""}):
        done = shell("distill --help", tmp_path, **environment)
        assert done.returncode == 0 and "--teacher" in done.stdout


def test_a_prompt_in_another_encoding_is_refused(world):
    (world / "half.json").write_text('["\\ud800"]')
    fails(run("sample", "--prompts", "half.json", "--from", "shapes-sdxl"), 3, "--prompts half.json", "UTF-8")


def test_a_current_folder_that_is_gone_is_told(world):
    (world / "gone").mkdir()
    os.chdir(world / "gone")
    shutil.rmtree(world / "gone")
    try:
        result = run("doctor")
    finally:
        os.chdir(world)
    assert result.exit_code == 1 and "the current folder has been deleted" in result.stdout


# -- folders in use -----------------------------------------------------------------------------------------------


def test_every_command_that_writes_a_folder_keeps_others_out(world):
    run("prepare-data", "shapes", "--num", 8)
    small = ["--recipe", "shapes-4step", "--set", "train.batch=2", "--set", "train.micro_batch=2", "--iterations", 1]
    assert run("distill", *small, "--out", "student", "--quiet").exit_code == 0
    (world / "pictures").mkdir()
    shutil.copy(run("sample", *PROMPT, "--out", "s", "-q").stdout.strip() + "/grid.png", world / "pictures" / "a.png")
    commands = {
        "sample": ["sample", *PROMPT],
        "eval": ["eval", "--limit", 2, "--from", "shapes-sdxl", "--steps", 1],
        "export": ["export", "--from", "student"],
        "data": ["prepare-data", "shapes", "--num", 2],
        "demo": ["demo"],
        "distill": ["distill", *small],
    }
    commands["data "] = ["prepare-data", "pictures", "--resolution", 8, "--captions-from-names"]
    for kind, words in commands.items():
        out = world / f"out-{kind}".strip()
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / ".flashdmd").write_text(kind.strip() + "\n")
        with (out / LOCK).open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            fails(run(*words, "--out", out, "--quiet"), 2, f"--out {out}: another process is writing to it")
            assert {path.name for path in out.iterdir()} == {LOCK, ".flashdmd"}


def test_processes_that_share_a_preparation_do_not_empty_it_under_each_other(world):
    (world / "pictures").mkdir()
    shutil.copy(run("sample", *PROMPT, "--out", "s", "-q").stdout.strip() + "/grid.png", world / "pictures" / "a.png")
    words = ["prepare-data", "pictures", "--resolution", 8, "--captions-from-names", "--out", "o", "--quiet"]
    assert run(*words).exit_code == 0
    before = sorted(path.name for path in (world / "o").iterdir())
    with (world / "o" / LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert run(*words).exit_code == 0
        fails(run(*words, "--yes"), 2, "another process is writing to it")
        assert sorted(path.name for path in (world / "o").iterdir() if path.name != ".work") == before
    assert run(*words, "--yes").exit_code == 0


def test_a_lock_survives_neither_its_folder_nor_its_process(tmp_path):
    folder = tmp_path / "o"
    folder.mkdir()
    hold(folder)
    hold(folder)  # a command may ask twice
    shutil.rmtree(folder)
    folder.mkdir()
    hold(folder)  # the old file says nothing of the new folder
    with (folder / LOCK).open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    release()
    with (folder / LOCK).open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    killed = (
        f"from flashdmd_cli.runs.lock import hold; import os, pathlib; hold(pathlib.Path({str(folder)!r})); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", killed], env=ENVIRONMENT, check=False).returncode == 9
    hold(folder)
    release()


def test_a_new_result_replaces_the_old_one_only_when_it_is_there(world, monkeypatch):
    assert run("sample", *PROMPT, "--num", 2, "--out", "s").exit_code == 0
    monkeypatch.setattr("flashdmd_cli.workflows.inputs.drawers.FamilyDrawer.draw_from", lambda *_, **__: 1 / 0)
    assert run("sample", *PROMPT, "--out", "s").exit_code == 1
    assert run("inspect", "s").exit_code == 0
    assert len(json.loads(Path("s/prompts.json").read_text())) == 2


def test_a_full_disk_without_a_name_is_told_with_the_folder(world, monkeypatch):
    """Most of what the system says of a full disk does not say which file it was."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("flashdmd_cli.workflows.inputs.drawers.FamilyDrawer.draw_from", full)
    fails(run("sample", *PROMPT, "--out", "s", "--quiet"), 3, f"--out: cannot write {world / 's'}: the disk is full")


def test_what_to_do_next_fits(world):
    for name, next_command in (
        ("sdxl-4step", "flashdmd distill --recipe"),
        ("align/sdxl", "flashdmd align --from CKPT --recipe"),
        ("reward/sdxl", "flashdmd reward train --pairs FILE --recipe"),
    ):
        assert next_command in run("recipes", "copy", name, f"{name.replace('/', '-')}.yaml").stdout
    fails(run("recipes", "copy", "sdxl-4step", "/proc/x"), 3, "TO: cannot write /proc/x", "choose another TO")
    (world / "prompts.txt").write_text("a cat\n")
    made = run("prepare-data", "prompts.txt", "--out", "p", "--teacher", "sdxl")
    assert "flashdmd distill --teacher sdxl --data p --set gan.kind=none" in made.stdout
    fails(run("inspect", "p/none"), 3, "does not exist")
