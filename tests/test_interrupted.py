"""A signal ends every phase where it stands, and the same command afterwards comes to the same bytes."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from flashdmd_cli.cli.output import Output, Progress
from flashdmd_cli.data.pairs import read_pairs
from flashdmd_cli.runs.checkpoint import latest_state, load_state
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.signals import StopFlag, StopSignal
from flashdmd_cli.shapes.inspector import Inspector
from flashdmd_cli.training.align import align
from flashdmd_cli.training.collapse import CollapseProbe
from flashdmd_cli.training.distill import distill
from flashdmd_cli.training.loop import Watch
from flashdmd_cli.training.steps import Objective
from flashdmd_cli.workflows.demo import rows as demo_rows
from flashdmd_cli.workflows.inputs import drawers, found

from . import test_align, test_distill, test_reward_training
from .test_align import origin, reward  # noqa: F401
from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_cli_runs import SMALL
from .test_distill import QUIET, sam_folder, seeing  # noqa: F401

PROMPT = ["--prompt", "a plain red circle above a dotted blue ring"]
Events = Callable[..., Any]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """`with events(n) as passed`: a signal comes in the n-th forward of a UNet or in the middle of an optimizer's step.

    `passed` holds how many of them there were.
    """

    @contextmanager
    def counted(at: int | None = None, number: int = signal.SIGINT) -> Iterator[list[int]]:
        passed = [0]

        def after(original: Any) -> Any:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                passed[0] += 1
                if passed[0] == at:
                    os.kill(os.getpid(), number)
                return result

            return wrapped

        with monkeypatch.context() as patch:
            patch.setattr(UNet2DConditionModel, "forward", after(UNet2DConditionModel.forward))
            patch.setattr(torch.optim.AdamW, "step", after(torch.optim.AdamW.step))
            yield passed

    return counted


def everything(out: Path) -> dict[str, bytes]:
    """The newest state, which ends with the same iteration, and the figures."""
    state = latest_state(out / "state")
    assert state is not None
    meta = load_state(state)[1]
    return {
        "tensors": (state / "tensors.safetensors").read_bytes(),
        "meta": json.dumps(meta | {"seconds": 0.0}).encode(),
        "metrics": (out / "metrics.jsonl").read_bytes(),
    }


def resumes_everywhere(train: Callable[[Path, StopFlag], object], tmp_path: Path, events: Events) -> None:
    """Hold a run that a signal ended in its n-th event, and that went on, against one that none disturbed."""
    with events() as passed:
        train(tmp_path / "whole", StopFlag())
    reached = set()
    for at in range(1, passed[0] + 1, max(1, passed[0] // 4)):
        out = tmp_path / f"{at}"
        with StopFlag() as stop, events(at):
            train(out, stop)
            assert stop.requested == signal.SIGINT
        saved = latest_state(out / "state")
        reached.add(saved.name if saved is not None else "")
        train(out, StopFlag())
        assert everything(out) == everything(tmp_path / "whole"), f"event {at} of {passed[0]}"
    assert reached == {"", "step-00000001"}


def test_distillation_loses_nothing_wherever_it_is_cut(tiny_family, sam_folder, random_data, tmp_path, events):
    r = test_distill.recipe(
        train__batch=2, train__micro_batch=1, train__iterations=2, train__average_images=20, train__log_every=1
    )
    resumes_everywhere(
        lambda out, stop: distill(seeing(sam_folder, r), tiny_family, random_data, out, QUIET, stop), tmp_path, events
    )


def test_alignment_loses_nothing_wherever_it_is_cut(
    tiny_family, sam_folder, reward, origin, random_data, tmp_path, events
):
    r = test_align.recipe(train__iterations=2, align__rl_ratio=1, probe__every=2, probe__num_prompts=2)

    def train(out: Path, stop: StopFlag) -> object:
        probe = CollapseProbe(Objective(r, tiny_family, tiny_family.grid(4)), ["a", "b"])
        return align(seeing(sam_folder, r), tiny_family, reward, origin, random_data, out, QUIET, stop, probe)

    resumes_everywhere(train, tmp_path, events)


def test_a_reward_model_loses_nothing_wherever_its_training_is_cut(tiny_family, tmp_path, events):
    pairs = read_pairs(test_reward_training.red_wins(tmp_path))
    r = test_reward_training.recipe(train__iterations=2, train__save_every=1)

    def train(out: Path, stop: StopFlag) -> object:
        torch.manual_seed(0)
        model = test_reward_training.new_reward(
            tiny_family, test_reward_training.RewardConfig(32, (1, 251), r.model.guidance)
        )
        return test_reward_training.train_reward(r, tiny_family, model, pairs, pairs, out, QUIET, stop)

    resumes_everywhere(train, tmp_path, events)


def test_on_an_accelerator_the_iteration_is_finished_first(
    tiny_family, sam_folder, random_data, tmp_path, events, monkeypatch
):
    """No copy fits beside the networks there; iterations are short."""
    monkeypatch.setattr("flashdmd_cli.training.loop.on_cpu", lambda tensors: False)
    r = test_distill.recipe(train__iterations=3)
    with StopFlag() as stop, events(3):
        state = distill(seeing(sam_folder, r), tiny_family, random_data, tmp_path, QUIET, stop)
    assert state.iteration == 1 and latest_state(tmp_path / "state") == tmp_path / "state" / "step-00000001"


def test_a_second_signal_saves_nothing(tiny_family, sam_folder, random_data, tmp_path, events, monkeypatch):
    """In the middle of what the first one is doing, the state may be torn."""
    from flashdmd_cli.training.state import State

    monkeypatch.setattr(State, "take", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    r = test_distill.recipe(train__iterations=3)
    with StopFlag() as stop, events(3), pytest.raises(KeyboardInterrupt):
        distill(seeing(sam_folder, r), tiny_family, random_data, tmp_path, QUIET, stop)
    assert latest_state(tmp_path / "state") is None


def test_a_preview_that_was_cut_is_drawn_when_the_run_goes_on(
    tiny_family, sam_folder, random_data, tmp_path, monkeypatch
):
    drawn: list[int] = []

    def preview(student: object, start: object, iteration: int, warnings: object) -> None:
        if iteration == 2 and 2 not in cut:
            cut.append(2)
            os.kill(os.getpid(), signal.SIGTERM)
        drawn.append(iteration)

    cut: list[int] = []
    r = test_distill.recipe(train__iterations=2)
    watch = Watch(lambda *_: None, lambda *_: None, preview)
    with StopFlag() as stop:
        distill(seeing(sam_folder, r), tiny_family, random_data, tmp_path, watch, stop)
    assert drawn == [0] and stop.requested == signal.SIGTERM
    distill(seeing(sam_folder, r), tiny_family, random_data, tmp_path, watch, StopFlag())
    assert drawn == [0, 2]


# -- commands -----------------------------------------------------------------------------------------------------


def test_before_the_first_iteration_there_is_nothing_to_save(world, events):
    run("prepare-data", "shapes", "--num", 8)
    words = ["distill", *SMALL, "--iterations", 2, "--out", "o"]
    with events(1):
        result = run(*words)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1] == "interrupted before iteration 1: nothing is trained yet"
    assert not (world / "o" / "state").exists()
    with events(57, signal.SIGTERM):
        result = run(*words)
    assert result.exit_code == 143, result.stderr
    assert result.stderr.splitlines()[-1].startswith("interrupted at iteration 1 of 2; the state is saved in o")
    assert run(*words).exit_code == 0


def test_drawing_and_measuring_end_at_once_and_keep_the_result_before(world, events, monkeypatch):
    few = ["--from", "shapes-sdxl", "--steps", 2, "--out"]
    words = ["sample", *PROMPT, *few, "s"], ["eval", "--limit", 4, *few, "e"]
    for each in words:
        assert run(*each).exit_code == 0
        with events(2, signal.SIGTERM):
            fails(run(*each, "--quiet", "--seed", 1), 143, "interrupted")
        assert run("inspect", each[-1]).exit_code == 0
    assert run(*words[0]).exit_code == 0 and not (world / "s" / ".drawing").exists()
    read = Inspector.read
    monkeypatch.setattr(Inspector, "read", lambda *args: (os.kill(os.getpid(), signal.SIGINT), read(*args))[1])
    fails(run(*words[1], "--quiet"), 130, "interrupted")
    assert run("inspect", "e").exit_code == 0


def test_a_demo_keeps_the_rows_that_are_drawn(world, shipped, monkeypatch):
    at, draw, drawn = demo_rows.Stages(world / "d"), demo_rows.draw, []

    def noted(row: str, *args: Any) -> None:
        if len(drawn) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        draw(row, *args)
        drawn.append(row)

    recipe = load_recipe("shapes-4step", flags={"model.precision": "fp32"})
    student = lambda folder, family: drawers.as_teacher(family, "shapes-sdxl", shipped / "shapes-sdxl", "stochastic")  # noqa: E731
    monkeypatch.setattr(demo_rows, "student_drawer", student)
    monkeypatch.setattr(demo_rows, "draw", noted)
    captions, output = ["a plain red circle above a dotted blue ring"] * 2, Output(quiet=True)
    with output.stop, pytest.raises(StopSignal):
        demo_rows.draw_rows(recipe, captions, 0, at, Progress(output))
    kept = {path.stem: path.stat().st_mtime_ns for path in (world / "d" / "pictures").iterdir()}
    assert set(kept) == set(drawn) and len(drawn) == 2
    monkeypatch.setattr(demo_rows, "draw", draw)
    demo_rows.draw_rows(recipe, captions, 0, at, Progress(Output(quiet=True)))
    after = {path.stem: path.stat().st_mtime_ns for path in (world / "d" / "pictures").iterdir()}
    assert set(after) == set(demo_rows.ROWS) and kept.items() <= after.items()


def test_an_export_that_was_cut_is_no_result(world, events, monkeypatch):
    run("prepare-data", "shapes", "--num", 8)
    assert run("distill", *SMALL, "--iterations", 1, "--out", "o").exit_code == 0
    from flashdmd_cli.workflows import export as module

    written = module.card
    monkeypatch.setattr(module, "card", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    fails(run("export", "--from", "o", "--out", "x", "--quiet"), 130, "interrupted")
    assert not (world / "x" / "manifest.json").exists()
    monkeypatch.setattr(module, "card", written)
    assert run("export", "--from", "o", "--out", "x").exit_code == 0


def test_whatever_a_library_makes_of_it_it_is_the_signal(world, monkeypatch):
    """diffusers' lazy imports turn what goes wrong below them into a RuntimeError; our own loading tells of weights."""
    for lost in (RuntimeError("Failed to import diffusers"), InputError("--teacher: cannot be read"), None):

        def load(*_: Any, lost: Exception | None = lost) -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt:
                if lost is not None:
                    raise lost from None

        monkeypatch.setattr(found, "load_family", load)
        fails(run("sample", *PROMPT, "--from", "shapes-sdxl", "--quiet"), 143, "interrupted")
