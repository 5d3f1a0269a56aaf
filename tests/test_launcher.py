"""Training commands in several processes: `--nproc` and torchrun, signals, a process that dies, resuming on fewer."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from typer.testing import CliRunner

from flashdmd_cli.cli import ranks
from flashdmd_cli.cli.app import app
from flashdmd_cli.cli.output import interruption
from flashdmd_cli.runs import launcher
from flashdmd_cli.runs.checkpoint import latest_state
from flashdmd_cli.runs.device import Place
from flashdmd_cli.runs.errors import InputError, Interrupted, LostContact, UsageError
from flashdmd_cli.runs.launcher import launch
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.runs.world import World
from flashdmd_cli.workflows.distill import distill

from .test_cli import shipped  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

REPOSITORY = Path(__file__).parents[1]
FLASHDMD = [sys.executable, "-m", "flashdmd_cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
MANY = 1000


class Ended(NamedTuple):
    """How a command in two processes ended."""

    code: int
    said: str
    seconds: float
    iteration: int
    """That of the newest state."""


class Runs(NamedTuple):
    """The folder of one run, and how it was ended twice."""

    out: Path
    words: list[str]
    stopped: Ended
    killed: Ended


def end(command: list[str], out: Path, after: int, act: Callable[[int], None]) -> Ended:
    """Start a command, `act` on its process when a state later than `after` is saved, and wait for it to end."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while iteration(out) <= after:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    began = time.monotonic()
    act(process.pid)
    _, said = process.communicate(timeout=60)
    return Ended(process.returncode, said, time.monotonic() - began, iteration(out))


def iteration(out: Path) -> int:
    saved = latest_state(out / "state")
    return int(saved.name[-8:]) if saved is not None else 0


def kill_one(parent: int) -> None:
    """SIGKILL to one of the processes that `parent` started."""
    children = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True, check=True).stdout.split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shipped, sam_folder) -> Runs:
    """A run of two processes that SIGTERM stops, that torchrun resumes, and in which then one process is killed."""
    root = tmp_path_factory.mktemp("launched")
    assert CliRunner().invoke(app, ["prepare-data", "shapes", "--num", "8", "--out", str(root / "data")]).exit_code == 0
    sets = {"gan.sam": sam_folder, "train.batch": 4, "train.micro_batch": 4, "train.save_every": 1,
            "train.preview_every": "null", "optim.warmup_images": 0, "model.precision": "fp32"}  # fmt: skip
    words = ["distill", "--recipe", "shapes-4step", "--teacher", str(shipped / "shapes-sdxl"), "--device", "cpu",
             "--data", str(root / "data"), "--quiet"]  # fmt: skip
    words += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    out = root / "two"
    long = [*words, "--out", str(out), "--iterations", str(MANY)]
    stopped = end([*FLASHDMD, *long, "--nproc", "2"], out, 0, lambda pid: os.kill(pid, signal.SIGTERM))
    killed = end([*TORCHRUN, "flashdmd_cli", *long], out, stopped.iteration, kill_one)
    return Runs(out, words, stopped, killed)


def test_a_signal_to_the_launcher_saves_a_state(runs):
    ended = runs.stopped
    assert ended.code == 143 and ended.seconds < 10
    assert ended.said.count("interrupted at") == 1
    assert f"interrupted at iteration {ended.iteration} of {MANY}; the state is saved in {runs.out}" in ended.said
    assert not (runs.out / "manifest.json").exists()


def test_a_killed_process_ends_the_other(runs):
    """Under torchrun, which prints lines of its own."""
    ended = runs.killed
    assert ended.code == 1 and ended.seconds < 10
    assert ended.said.count("another process of this run has ended") <= 1  # torchrun may be faster
    assert ended.iteration > runs.stopped.iteration


def test_one_process_resumes_what_two_began(runs, tmp_path):
    """Commands, from the state of the killed run: the result is that of a run of one process."""
    last = str(runs.killed.iteration + 1)
    for out in (runs.out, tmp_path / "one"):
        result = CliRunner().invoke(app, [*runs.words, "--out", str(out), "--iterations", last])
        assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.output
    rows, wanted = read_metrics(runs.out), read_metrics(tmp_path / "one")
    assert len(rows) == len(wanted) == int(last)
    for row, expected in zip(rows, wanted, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
    weights = "student/diffusion_pytorch_model.safetensors"
    one, two = load_file(tmp_path / "one" / weights), load_file(runs.out / weights)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-4)


# -- the launcher -------------------------------------------------------------------------------------------------


def script(text: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time\nrank = int(os.environ['RANK'])\n{text}"]


def test_the_exit_code_is_that_of_the_process_that_failed(monkeypatch, capfd):
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.2)
    began = time.monotonic()
    assert launch(2, script("sys.exit(3) if rank else time.sleep(60)")) == 3
    assert time.monotonic() - began < 10  # the one that waits is killed
    assert launch(2, script("pass")) == 0
    assert launch(2, script("os.kill(os.getpid(), 9) if rank == 0 else time.sleep(60)")) == 1
    assert capfd.readouterr().err.startswith("--nproc: process 0 was ended by signal 9")


def test_processes_know_each_other_and_their_share_of_the_processor(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "MASTER_PORT"]
    assert launch(2, script(f"open(f'{tmp_path}/{{rank}}', 'w').write(' '.join(os.environ[n] for n in {names}))")) == 0
    first, second = ((tmp_path / str(rank)).read_text().split() for rank in range(2))
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    assert first[:-1] == ["0", "0", "2", "2", "127.0.0.1", threads]
    assert second == ["1", "1", *first[2:]]


def test_processes_end_with_the_launcher(tmp_path):
    """Even if it was killed: each watches for that, and stops as after SIGTERM."""
    child = f"from flashdmd_cli.runs.launcher import *\nend_with(os.environ[LAUNCHER])\nopen(r'{tmp_path}/' + str(os.getpid()), 'w')\ntime.sleep(60)"  # noqa: E501
    parent = f"from flashdmd_cli.runs.launcher import launch\nimport sys\nlaunch(2, {script(child)!r})"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", parent], env=environment)
    end = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.wait()
    children = [int(path.name) for path in tmp_path.iterdir()]
    assert len(children) == 2
    while any(alive(pid) for pid in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in children)


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


# -- the world ----------------------------------------------------------------------------------------------------


def test_one_process_reports_for_all():
    """The first that fails, with its own exit code; those that lose contact with it take that code."""
    store = dist.HashStore()
    zero, one, two = (World(rank, 3, store) for rank in range(3))
    assert one.report_failure(InputError("x"), 3) == (True, 3)
    assert zero.report_failure(LostContact("y"), 1) == (False, 3)
    assert two.report_failure(UsageError("z"), 2) == (False, 2)
    stop = StopFlag()
    stop.request(15)  # which a launcher sends after that
    assert isinstance(interruption(LostContact("y"), stop, True), LostContact)


def test_an_error_of_the_connection_is_told_from_others():
    closed = "[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:23434"
    for error, wanted in (
        (RuntimeError(closed), LostContact),
        (dist.DistBackendError("NCCL error"), LostContact),
        (RuntimeError("shapes differ"), RuntimeError),
    ):
        with pytest.raises(wanted), World(0, 2).contact():
            raise error
    with pytest.raises(RuntimeError), World().contact():
        raise RuntimeError(closed)


def test_the_main_process_reports_an_interruption(monkeypatch):
    monkeypatch.setattr("flashdmd_cli.runs.world.REPORT_SECONDS", 0.1)
    store = dist.HashStore()
    zero, one = (World(rank, 2, store) for rank in range(2))
    began = time.monotonic()
    assert one.report_failure(Interrupted("x"), 143) == (True, 143)  # of a main process that says nothing
    assert time.monotonic() - began >= 0.1
    assert zero.report_failure(Interrupted("x"), 143) == (False, 143)


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="train.batch: 24 pictures cannot be shared equally by 5 processes"):
        distill(load_recipe("shapes-4step"), tmp_path, tmp_path / "out", world=World(0, 5))
    assert list(tmp_path.iterdir()) == []


def test_devices_that_processes_cannot_share_are_refused(monkeypatch):
    world = World(0, 2)
    world.check(Place("cpu"))
    World().check(Place("mps"))
    with pytest.raises(UsageError, match="--device mps: supports one process only"):
        world.check(Place("mps"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="--nproc: 2 processes, but this machine has 1 GPUs"):
        world.check(Place("cuda"))


def test_processes_that_torchrun_started_are_not_started_again(monkeypatch):
    monkeypatch.setattr(ranks, "launch", lambda *_: pytest.fail("started"))
    ranks.run_processes(1, None)
    ranks.run_processes(1, World(0, 2))
    ranks.run_processes(2, World(0, 2))
    with pytest.raises(UsageError, match="--nproc 3: 2 processes were started already"):
        ranks.run_processes(3, World(0, 2))
