"""Checkpoints and metrics: whole or absent, the newest two kept, a full disk loses nothing; and the stop flag."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flashdmd_cli.runs import checkpoint
from flashdmd_cli.runs.checkpoint import latest_state, load_state, save_state, state_folder
from flashdmd_cli.runs.errors import FlashDMDError, InputError, Interrupted
from flashdmd_cli.runs.signals import StopFlag, StopSignal
from flashdmd_cli.runs.tracking import Tracker, read_metrics


def _tensors() -> dict[str, Tensor]:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    return {
        "weight": weight,
        "transposed": weight.T,
        "tied": weight,
        "slice": weight[1:3],
        "half": weight.bfloat16(),
        "step": torch.tensor(7),
        "empty": torch.empty(0),
    }


def test_round_trip_is_bitwise(tmp_path: Path) -> None:
    folder = state_folder(tmp_path, 3)
    meta = {"step": 3, "seconds": 0.1 + 0.2, "updates": {"student": 1}}
    save_state(folder, _tensors(), meta)
    tensors, read = load_state(folder)
    assert read == meta
    assert tensors.keys() == _tensors().keys()
    for name, tensor in _tensors().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_a_state_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    folder = state_folder(tmp_path, 3)
    save_state(folder, _tensors(), {})
    record = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(record | {"sha256": record["sha256"]["tensors.safetensors"]}))
    assert load_state(folder)[0].keys() == _tensors().keys()
    (folder / "state.json").write_text(json.dumps(record | {"sha256": "0" * 64}))
    with pytest.raises(InputError, match=r"tensors.safetensors has other contents"):
        load_state(folder)


def test_newest_two_are_kept(tmp_path: Path) -> None:
    assert latest_state(tmp_path / "none") is None
    for step in (8, 9, 10):
        save_state(state_folder(tmp_path, step), _tensors(), {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000009", "step-00000010"]
    assert latest_state(tmp_path) == state_folder(tmp_path, 10)


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    for value in (1, 2):
        save_state(state_folder(tmp_path, 1), {"x": torch.tensor(value)}, {})
    assert load_state(state_folder(tmp_path, 1))[0]["x"].item() == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_unfinished_folders_do_not_count(tmp_path: Path) -> None:
    save_state(state_folder(tmp_path, 1), _tensors(), {})
    (tmp_path / ".step-00000002.tmp").mkdir()
    (tmp_path / ".step-00000002.tmp" / "state.json").write_text("{}")
    state_folder(tmp_path, 3).mkdir()
    assert latest_state(tmp_path) == state_folder(tmp_path, 1)
    save_state(state_folder(tmp_path, 2), _tensors(), {})
    assert not (tmp_path / ".step-00000002.tmp").exists()


@pytest.mark.parametrize("lost", ["tensors.safetensors", "state.json"])
def test_a_kill_while_old_states_go_leaves_nothing(lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save_state(state_folder(tmp_path, step), _tensors(), {})

    def killed(folder: Path, **_: object) -> None:
        if folder.is_dir():
            (folder / lost).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save_state(state_folder(tmp_path, 3), _tensors(), {})
    # What is half gone is not taken for a state, and the next save sweeps it; so too what an earlier version left.
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000003"]
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "tensors.safetensors").write_text("")
    save_state(state_folder(tmp_path, 4), _tensors(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("damage", ["truncate", "delete", "meta"])
def test_damaged_state_is_told_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = state_folder(tmp_path, 1)
    save_state(folder, _tensors(), {})
    path = folder / "tensors.safetensors"
    if damage == "truncate":
        os.truncate(path, path.stat().st_size - 5)
    elif damage == "delete":
        path.unlink()
    else:
        (folder / "state.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_state(folder)
    assert str(folder) in caught.value.hint


def test_full_disk_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(state_folder(tmp_path, 1), _tensors(), {"step": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(FlashDMDError, match="the disk is full") as caught:
        save_state(state_folder(tmp_path, 2), _tensors(), {"step": 2})
    assert caught.value.exit_code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_state(state_folder(tmp_path, 1))[1] == {"step": 1}


def test_a_write_that_the_system_refuses_half_way_keeps_the_state_before(tmp_path: Path) -> None:
    save_state(state_folder(tmp_path, 1), {"x": torch.zeros(10)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(FlashDMDError, match="larger than the system allows"):
            save_state(state_folder(tmp_path, 2), {"x": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_state_appears_in_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(state_folder(tmp_path, 1), _tensors(), {})

    def interrupted(source: Path, target: Path) -> None:
        assert (source / "state.json").exists() and not target.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_state(state_folder(tmp_path, 2), _tensors(), {})
    assert latest_state(tmp_path) == state_folder(tmp_path, 1)


def test_a_file_in_the_way_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(FlashDMDError, match="a file stands where a folder is needed"):
        save_state(state_folder(tmp_path / "out", 1), _tensors(), {})


def test_metrics_of_a_resumed_run_equal_those_of_an_uninterrupted_one(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        for step in range(5):
            tracker.log(step, {"loss": step / 3, "bad": float("nan")})
    whole = (tmp_path / "metrics.jsonl").read_text()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "lo')
    with Tracker(tmp_path, start=3) as tracker:
        for step in (3, 4):
            tracker.log(step, {"loss": step / 3, "bad": float("nan")})
    assert (tmp_path / "metrics.jsonl").read_text() == whole
    assert read_metrics(tmp_path)[4] == {"step": 4, "loss": 4 / 3, "bad": None}
    Tracker(tmp_path).close()
    assert read_metrics(tmp_path) == []


def test_a_signal_raises_where_the_program_stands_and_the_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag() as stop:
        with pytest.raises(StopSignal):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        with pytest.raises(StopSignal):  # a library may have swallowed the first
            stop.check()
        with pytest.raises(KeyboardInterrupt) as second:
            os.kill(os.getpid(), signal.SIGINT)
        assert not isinstance(second.value, StopSignal)  # which would save first
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_postponed_signal_is_answered_in_the_next_stretch_that_answers() -> None:
    said: list[str] = []
    with StopFlag(said.append) as stop:
        with stop.postponed():
            with stop.answering():
                pass
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested == signal.SIGTERM and len(said) == 1
            stop.check()
            with pytest.raises(StopSignal), stop.answering():
                raise AssertionError("not reached")
            stop.check()
        with pytest.raises(StopSignal):
            stop.check()


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopFlag() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)
    assert Interrupted("stopped", signal_number=signal.SIGTERM).exit_code == 143


def test_recipes_and_manifests_need_no_torch() -> None:
    code = (
        "import sys; from flashdmd_cli.runs import errors, files, manifest, recipe, signals; "
        "recipe.load_recipe('sdxl-4step'); manifest.versions(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
