"""States that a thread writes while training goes on: the same bytes, one at a time, and no error is lost."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from flashdmd_cli.runs import state_writer
from flashdmd_cli.runs.checkpoint import load_state, state_folder, write_state
from flashdmd_cli.runs.errors import NumericalError, WriteError
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.state_writer import StateWriter
from flashdmd_cli.runs.world import World
from flashdmd_cli.training.distill import distill
from flashdmd_cli.training.loop import Watch

from .test_distill import QUIET, recipe, sam_folder, seeing  # noqa: F401

SECONDS = 30
"""Longest wait of a test for another thread."""


def test_states_of_the_background_are_the_same_bytes(tiny_family, sam_folder, tmp_path, random_data):
    """All of them, though training changed the tensors while they were written; as many are kept as the recipe says."""
    for name, background in (("a", False), ("b", True)):
        sets = {"train__save_every": 1, "train__keep_states": 3, "train__async_save": background}
        r = seeing(sam_folder, recipe(**sets, train__average_images=20, fake__ttur=2))
        distill(r, tiny_family, random_data, tmp_path / name, QUIET, StopFlag())
    states = [sorted((tmp_path / name / "state").iterdir()) for name in "ab"]
    assert [[path.name for path in each] for each in states] == [[f"step-{n:08d}" for n in (2, 3, 4)]] * 2
    for one, two in zip(*states, strict=True):
        assert (one / "tensors.safetensors").read_bytes() == (two / "tensors.safetensors").read_bytes()


def test_training_goes_on_while_a_state_is_written(tiny_family, random_data, tmp_path, monkeypatch):
    """The first state is written only after the third iteration; the second save waits for it."""
    went_on, order = threading.Event(), []

    def slow(folder: Path, *rest: object) -> None:
        assert went_on.wait(SECONDS) and threading.current_thread() is not threading.main_thread()
        order.append(folder.name)
        write_state(folder, *rest)

    def progress(done: int, metrics: dict[str, float]) -> None:
        order.append(done)
        if done == 3:
            went_on.set()

    monkeypatch.setattr(state_writer, "write_state", slow)
    r = recipe(train__async_save=True, gan__kind="none")
    distill(r, tiny_family, random_data, tmp_path, Watch(progress, lambda *_: None, lambda *_: None), StopFlag())
    assert order[:3] == [1, 2, 3] and order[3:].count("step-00000002") == 1 and order[-1] == "step-00000004"
    assert load_state(state_folder(tmp_path / "state", 4))[1]["iteration"] == 4


def test_a_failure_in_the_background_ends_the_run_and_keeps_the_state_before(
    tiny_family, random_data, tmp_path, monkeypatch
):  # fmt: skip
    def failing(folder: Path, *rest: object) -> None:
        if folder.name == "step-00000002":
            raise WriteError("--out: cannot write x: the disk is full")
        write_state(folder, *rest)

    monkeypatch.setattr(state_writer, "write_state", failing)
    r, done = recipe(train__async_save=True, train__save_every=1, gan__kind="none"), []
    watch = Watch(lambda number, _: done.append(number), lambda *_: None, lambda *_: None)
    with pytest.raises(WriteError, match="the disk is full"):
        distill(r, tiny_family, random_data, tmp_path, watch, StopFlag())
    assert done == [1, 2, 3]  # the save after iteration 3 raises it
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000001"]
    with pytest.raises(WriteError), StateWriter(World(), 2, background=True) as states:
        states.save(state_folder(tmp_path / "state", 2), {"x": torch.zeros(1)}, {})  # the last one: at the end


def test_an_error_of_the_run_is_reported_after_the_state_is_written(tmp_path):
    with pytest.raises(NumericalError), StateWriter(World(), 2, background=True) as states:
        states.save(state_folder(tmp_path, 1), {"x": torch.zeros(10**6)}, {})
        raise NumericalError("optim.lr: not finite")
    assert load_state(state_folder(tmp_path, 1))[0]["x"].shape == (10**6,)
