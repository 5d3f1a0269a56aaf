"""Two processes, data parallel and with sharded networks (FSDP2), train as one does; states of sharded networks."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from flashdmd_cli.core.shards import is_sharded, local
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.runs import checkpoint
from flashdmd_cli.runs.checkpoint import latest_state, load_state, save_state, state_folder
from flashdmd_cli.runs.errors import UsageError, WriteError
from flashdmd_cli.runs.recipe import Recipe, load_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.runs.world import World
from flashdmd_cli.training.align import align
from flashdmd_cli.training.distill import distill
from flashdmd_cli.training.networks import Stage1
from flashdmd_cli.training.state import State

from .conftest import RandomData
from .test_distill import QUIET, sam_folder, seeing  # noqa: F401
from .test_ranks import ALIGN, STEADY, reward_of

STEPS, MORE = 20, 22
FLAGS = {
    "train.batch": 8, "train.micro_batch": 8, "train.save_every": 100, "train.preview_every": None, "grid.steps": 2,
    "gan.decode": "full", "dm.guidance": 2.0, "optim.lr_student": 1e-4, "optim.lr_fake": 1e-4,
    "optim.lr_discriminator": 1e-4, "optim.warmup_images": 0, "train.average_images": 20, "model.precision": "fp32",
}  # fmt: skip
LOSSES = {"distill": {"dm", "gan", "fake", "discriminator"}, "align": {"dm", "fake", "preference"}}
STAGES, SHARDINGS = tuple(LOSSES), ("none", "fsdp")


def recipe(stage: str, sam: Path, **sets: object) -> Recipe:
    flags = FLAGS | {key.replace("__", "."): value for key, value in sets.items()}
    if stage == "align":
        return load_recipe("shapes-4step-dm-only", flags=flags | ALIGN | {"align.lr": 1e-4, "align.beta": 5.0})
    return seeing(sam, load_recipe("shapes-4step", flags=flags))


def train(stage: str, r: Recipe, teacher: Path, out: Path, world: World | None = None) -> State:
    family, end = SDXLFamily.load(teacher), (QUIET, StopFlag())
    with patch.object(torch.optim, "AdamW", STEADY):
        if stage == "distill":
            return distill(r, family, RandomData(), out, *end, world)
        stage1 = Stage1(family.base.copy(trainable=False).view(), None, None, 7)
        return align(r, family, reward_of(family), stage1, RandomData(), out, *end, world=world)


def shares(state: State) -> dict[str, float]:
    """The part of its networks' parameters that a process has in memory, by role."""
    views = {"student": state.student.net, "fake": state.fake.net, "average": state.average, "teacher": state.teacher}
    found = {}
    for name, view in views.items():
        tensors = list(view.weights().values())
        found[name] = sum(local(x).untyped_storage().nbytes() for x in tensors) / sum(4 * x.numel() for x in tensors)
    moments = [x for key, x in state.student.tensors().items() if key.endswith("exp_avg")]
    return found | {"moments": sum(local(x).numel() for x in moments) / sum(x.numel() for x in moments)}


def failed_write(state: State, folder: Path, rank: int) -> tuple[str, list[str]]:
    """The error in this process of a state that process 1 cannot write, and what is in the folder afterwards."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with patch.object(checkpoint, "save_file", full if rank == 1 else checkpoint.save_file):
        try:
            save_state(state_folder(folder, MORE), *state.contents(), state.world)
        except WriteError as error:
            state.world.wait()  # until process 0 has cleared up
            return error.message, sorted(path.name for path in folder.iterdir())
    return "", []


def process(rank: int, folder: Path, teacher: Path, sam: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    world, found = World.current(), {}
    for stage in STAGES:
        for sharding in SHARDINGS:
            out = folder / f"{stage}-{sharding}"
            state = train(
                stage, recipe(stage, sam, train__iterations=STEPS, model__sharding=sharding), teacher, out, world
            )
            found[stage, sharding] = shares(state)
    # A state of whole networks, resumed with sharded ones that are checkpointed and saved by a thread.
    sets = {
        "train__iterations": MORE,
        "model__sharding": "fsdp",
        "model__checkpointing": True,
        "train__async_save": True,
    }
    state = train("distill", recipe("distill", sam, **sets), teacher, folder / "distill-none", world)
    found["error"] = failed_write(state, folder / "distill-none" / "state", rank)
    found["tensors"] = {key: local(x).clone() for key, x in state.contents()[0].items() if is_sharded(x)}
    net = state.shipped.merged()
    found["exported"] = {key: x for key, x in net.state_dict().items() if not x.is_meta}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_folder, sam_folder) -> tuple[Path, list[dict[Any, Any]]]:
    """The folder in which two processes trained, and what each found."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(process, (folder, tiny_folder, sam_folder), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory, tiny_folder, sam_folder) -> Path:
    """The folder in which one process trained."""
    folder = tmp_path_factory.mktemp("one")
    for stage in STAGES:
        train(stage, recipe(stage, sam_folder, train__iterations=MORE), tiny_folder, folder / stage)
    return folder


def assert_same_losses(out: Path, wanted: Path, stage: str, num: int) -> None:
    rows, expected = read_metrics(out), read_metrics(wanted)[:num]
    assert len(rows) == len(expected) == num
    for row, each in zip(rows, expected, strict=True):
        for name in LOSSES[stage] & each.keys():
            assert row[name] == pytest.approx(each[name], rel=1e-5, abs=1e-6), (row["step"], name)
    assert set.union(*map(set, expected)) >= LOSSES[stage]
    return rows


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_have_the_losses_of_one(stage, sharding, one, two):
    """1 process with 8 pictures, 2 processes with 4 each."""
    num = MORE if (stage, sharding) == ("distill", "none") else STEPS
    rows = assert_same_losses(two[0] / f"{stage}-{sharding}", one / stage, stage, num)
    if stage == "align":  # one process had fewer pairs, so that it made a pass without weight
        assert any(row["pairs"] % 2 for row in rows)


def test_each_process_stores_its_part(two):
    """Of weights, moments, averages and the frozen teacher; at most one row of each tensor is between them."""
    for rank in range(2):
        found = two[1][rank]
        assert all(share == 1.0 for share in found["distill", "none"].values())
        for share in found["distill", "fsdp"].values():
            assert share == pytest.approx(0.5, abs=0.02)


def test_a_state_of_two_processes_is_resumed_by_one(one, two, tiny_folder, sam_folder):
    out = two[0] / "distill-fsdp"
    files = sorted(path.name for path in latest_state(out / "state").iterdir())
    assert files == ["state.json", "tensors-1.safetensors", "tensors.safetensors"]
    train("distill", recipe("distill", sam_folder, train__iterations=MORE), tiny_folder, out)
    assert_same_losses(out, one / "distill", "distill", MORE)


def test_the_files_of_a_state_have_what_the_processes_had(two):
    folder, found = two
    state = latest_state(folder / "distill-none" / "state")
    assert state.name == f"step-{MORE:08d}"  # resumed with sharded networks, and saved by a thread
    tensors, _ = load_state(state)
    for key in found[0]["tensors"]:
        whole = torch.cat([each["tensors"][key] for each in found])
        assert torch.equal(tensors[key], whole), key
        rows = slice(1, len(whole) - 1) if len(whole) > 2 else slice(0, 1)
        assert torch.equal(tensors.rows(key, rows), whole[rows])
    own = [load_file(state / name) for name in ("tensors.safetensors", "tensors-1.safetensors")]
    assert sum(x.nbytes for x in own[1].values()) < 0.55 * sum(x.nbytes for x in own[0].values()) * 2
    assert set(own[1]) == set(found[1]["tensors"])


def test_a_sharded_student_is_exported_whole(two):
    folder, found = two
    tensors, _ = load_state(latest_state(folder / "distill-none" / "state"))
    exported = found[0]["exported"]
    assert found[1]["exported"] == {}
    assert {f"average.net.{key}" for key in exported} == {key for key in tensors if key.startswith("average.net.")}
    assert all(torch.equal(tensors[f"average.net.{key}"], value) for key, value in exported.items())


def test_a_process_that_cannot_write_ends_all_and_leaves_the_state_before(two):
    for rank in range(2):
        message, names = two[1][rank]["error"]
        assert "tensors-1.safetensors: the disk is full" in message
        assert names == [f"step-{number:08d}" for number in (STEPS, MORE)]


def test_adapters_are_not_sharded():
    with pytest.raises(UsageError, match="sharding should be none where form is lora"):
        load_recipe("sdxl-4step-lora", ["model.sharding=fsdp"])
