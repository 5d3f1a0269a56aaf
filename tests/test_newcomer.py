"""What a newcomer on a slow machine sees: words while something lasts, and refusals that say what to do."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flashdmd_cli.cli import loading
from flashdmd_cli.cli import output as output_module
from flashdmd_cli.cli.loading import ImportNotice
from flashdmd_cli.cli.output import Output, Progress
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.lock import LOCK, hold, release
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.runs.world import World
from flashdmd_cli.workflows import training
from flashdmd_cli.workflows.inputs.drawers import FamilyDrawer

from .messy import encoded, picture
from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

ROOT = Path(output_module.__file__).parents[2]
PROMPT = ["--prompt", "a plain red circle above a dotted blue ring", "--from", "shapes-sdxl", "--steps", 1]


# -- words while something lasts ------------------------------------------------------------------------------------


def test_a_first_line_before_heavy_imports(tmp_path, monkeypatch, capsys):
    """In a process of its own, whose torch is a stand-in that says when its import begins."""
    (tmp_path / "torch.py").write_text("import sys; print('importing torch', file=sys.stderr); sys.exit(7)")
    words = ["sample", "--prompt", "p", "--from", "shapes-sdxl"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for flag, said in ([], ["loading torch and diffusers ..."]), (["--json"], ["loading torch and diffusers ..."]), (
        ["--quiet"], []
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "flashdmd_cli", *words, *flag],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stderr.splitlines() == [*said, "importing torch"] and done.stdout == ""
    lines: list[str] = []
    here = ImportNotice(lines.append)
    here.enter()  # torch is there already: nothing will last
    assert here not in sys.meta_path
    monkeypatch.setattr(loading, "HEAVY", ("no_such_library",))
    here.enter()
    for _ in range(2):
        with pytest.raises(ImportError):
            __import__("no_such_library")
    assert len(lines) == 1 and here not in sys.meta_path


class Listener(SilentReporter):
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    def phase(self, text: str, unit: str = "it") -> None:
        self.told.append(text)

    def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.told.append((done, total))


def test_a_preview_counts_while_it_is_drawn(tiny_family, tmp_path, monkeypatch):
    """In evaluations of the network on one picture: steps with guidance take two, those of a student one."""
    monkeypatch.setattr("flashdmd_cli.evaluation.run_page.RunPage.write", lambda *_: None)
    recipe, told = load_recipe("shapes-4step", flags={"dm.guidance": 2.0}), Listener()
    watch = training.watch_run(recipe, tiny_family, ["a", "b"], tmp_path, told, (), World())
    watch.preview(tiny_family.teacher, tiny_family.teacher, 0, [])
    counts = told.told[1:]
    assert "before training" in told.told[0] and len(counts) == 1 + 30 + 4 + 4
    assert counts[:2] == [(0, 144), (4, 144)] and counts[-1] == (144, 144)
    assert (tmp_path / "preview.png").is_file()
    told.told.clear()
    watch.preview(tiny_family.teacher, tiny_family.teacher, 80, [])
    assert told.told[1:] == [(0, 8), (2, 8), (4, 8), (6, 8), (8, 8)]


def test_one_picture_counts_its_steps(tiny_family):
    told = Listener()
    args = ("d", tiny_family, tiny_family.teacher, "t", "stochastic", 4, 2.0, Path(), None, None)
    drawer = FamilyDrawer(*args)  # type: ignore[arg-type]
    drawer.draw_from(0, ["a", "b"], 0, step=drawer.step_counter(2, told))
    assert told.told == [(done, 8) for done in range(9)]  # a CPU draws one picture at a time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time as the progress sees it; the test sets it."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(output_module.time, "monotonic", lambda: now.seconds)
    return now


def test_one_unit_per_phase(clock, capsys):
    """The first speed that is measured decides; a phase that slows down or speeds up keeps it."""
    with Progress(Output(), every=0) as progress:
        for first, later in (5, 5 + 995), (100, 100.02):  # seconds for 10 and for 20 after the first 5
            progress.phase("training")
            for done, seconds in (0, -99), (5, 0), (15, first), (25, later):
                clock.seconds = seconds
                progress.progress(done, 40)
    said = [
        line.split("  ")[2] for line in capsys.readouterr().err.splitlines() if "s  ETA" in line or "it  ETA" in line
    ]
    assert said == ["2 it/s", "0.02 it/s", "10 s/it", "5 s/it"]


def test_a_preview_does_not_slow_the_speed_and_counts_in_the_eta(clock, capsys):
    with Progress(Output(), every=0) as progress:
        progress.phase("training")
        progress.progress(0, 110)
        progress.progress(10, 110)
        clock.seconds = 20
        progress.progress(20, 110)
        with progress.aside("drawing", "evaluation"):
            progress.progress(0, 4)
            clock.seconds = 100
            progress.progress(4, 4)
        clock.seconds = 120
        progress.progress(30, 110)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "training", "  10/110", "  20/110  2 s/it  ETA 3:00", "drawing", "  4/4  20 s/evaluation  ETA 0:00",
        "  30/110  2 s/it  ETA 8:00",
    ]  # fmt: skip


def test_the_first_unit_predicts_nothing_since_it_includes_loading(clock, capsys):
    with Progress(Output(), every=0) as progress:
        progress.phase("drawing", "picture")
        for done, seconds in (0, 0), (1, 600), (2, 601), (3, 602):
            clock.seconds = seconds
            progress.progress(done, 100)
    said = capsys.readouterr().err.splitlines()
    assert said == ["drawing", "  1/100", "  2/100  1 picture/s  ETA 1:38", "  3/100  1 picture/s  ETA 1:37"]


@pytest.mark.parametrize("count", [1, 2])
def test_words_fit_the_number_of_pictures(count, world):
    done = run("sample", *PROMPT, "--num", count, "--out", "s")
    if count == 2:
        assert "drawing 2 pictures with" in done.stderr and "s: 2 pictures, side by side in s/grid.png" in done.stdout
        return
    assert "drawing 1 picture with shapes-sdxl-ddim-1, 1 step\n" in done.stderr
    assert done.stdout == "s/shapes-sdxl-ddim-1/0000.png: the picture\n" and Path(done.stdout.split(":")[0]).is_file()


# -- what is said when it ends --------------------------------------------------------------------------------------


def test_only_what_keeps_something_says_so(world, monkeypatch):
    def interrupt(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("flashdmd_cli.workflows.doctor.check_all", interrupt)
    monkeypatch.setattr(FamilyDrawer, "draw_from", interrupt)
    for words in ["doctor"], ["sample", *PROMPT]:
        result = run(*words, "--quiet")
        assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")
    monkeypatch.setattr("flashdmd_cli.workflows.prepare.prepare_shapes", interrupt)
    fails(run("prepare-data", "shapes", "-q"), 130, "interrupted; finished work is kept (run the same command again)")


def test_a_folder_in_use_names_the_process(tmp_path):
    code = "import pathlib, sys; from flashdmd_cli.runs.lock import hold; hold(pathlib.Path('.')); print(flush=True); "
    other = subprocess.Popen(
        [sys.executable, "-c", code + "sys.stdin.read()"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout is not None and other.stdout.readline() == b"\n"
    with pytest.raises(UsageError, match=rf"another process \(pid {other.pid}\) is writing to it"):
        hold(tmp_path)
    (tmp_path / LOCK).write_text("12 elsewhere\n")  # on a shared file system
    with pytest.raises(UsageError, match=r"another process \(pid 12 on elsewhere\) is writing"):
        hold(tmp_path)
    for unknown in "", "no pid\n", f"{2**22 + 1} {os.uname().nodename}\n":  # the last one cannot be running
        (tmp_path / LOCK).write_text(unknown)
        with pytest.raises(UsageError, match="another process is writing to it"):
            hold(tmp_path)
    other.communicate()
    hold(tmp_path)
    assert (tmp_path / LOCK).read_text().split()[0] == str(os.getpid())
    release()


# -- preparing data -------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(world: Path) -> Path:
    """Two captioned pictures of 24 x 20 pixels or so."""
    (world / "in").mkdir()
    for index in range(2):
        (world / "in" / f"{index}.png").write_bytes(encoded(picture(index)))
        (world / "in" / f"{index}.txt").write_text(f"caption {index}")
    return world / "in"


def test_where_nothing_was_kept_the_corrected_command_works(pictures):
    words = ["prepare-data", "in", "--out", "o", "--quiet"]
    fails(run(*words, "--resolution", 512), 3, "all 2 rows were rejected")
    fails(run(*words, "--resolution", 512), 3, "all 2 rows were rejected")
    assert run(*words, "--resolution", 8).exit_code == 0
    assert run("inspect", "o").exit_code == 0
    # What has shards is another matter, finished or not.
    fails(run(*words, "--resolution", 16), 2, "--yes")
    (pictures.parent / "o" / "manifest.json").unlink()
    (pictures.parent / "o" / ".work").mkdir()
    (pictures.parent / "o" / ".work" / "request.json").write_text('{"request": {}, "listing": ""}')
    fails(run(*words, "--resolution", 16), 2, "--yes")


def test_a_refused_source_leaves_no_folder(pictures):
    (pictures.parent / "empty").mkdir()
    fails(run("prepare-data", "empty", "--out", "o", "--resolution", 8, "-q"), 3, "SOURCE empty: is empty")
    words = ["prepare-data", "in", "--out", "o", "--resolution", 8, "--filter", "beauty>=1", "-q"]
    fails(run(*words), 3, "has no column beauty")
    assert not (pictures.parent / "o").exists()


# -- what is meant --------------------------------------------------------------------------------------------------


def test_a_teacher_is_no_student(world, shipped):
    for name in "shapes-sdxl", "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", str(shipped / "shapes-sdxl"):
        for words in ["align"], ["export"]:
            said = f"--from {name}: is a teacher, not a student (flashdmd distill --teacher {name} makes a student"
            fails(run(*words, "--from", name), 3, said)


def test_words_of_other_programs():
    for word, meant in ("train", "Did you mean 'distill' or 'align'?"), ("generate", "Did you mean 'sample'?"):
        result = run(word)
        assert result.exit_code == 2 and f"No such command '{word}'. {meant}" in result.stderr
    assert "Did you mean 'distill'?" in run("distil").stderr
