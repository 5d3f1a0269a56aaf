"""Several processes train one run as one process does: the same draws, metrics and weights, one writer, one stop."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from flashdmd_cli.data.pairs import read_pairs
from flashdmd_cli.data.shards import Batch
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.sdxl.reward import LatentRewardModel, RewardConfig
from flashdmd_cli.families.sdxl.reward_files import new_reward
from flashdmd_cli.runs import world as world_module
from flashdmd_cli.runs.recipe import Recipe, load_recipe, load_reward_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.runs.world import World
from flashdmd_cli.training.align import align
from flashdmd_cli.training.distill import distill
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.loop import Watch
from flashdmd_cli.training.networks import Stage1
from flashdmd_cli.training.reward import train_reward
from flashdmd_cli.training.state import State

from .conftest import RandomData
from .test_distill import QUIET, sam_folder, seeing  # noqa: F401
from .test_reward_training import red_wins

FLAGS = {
    "train.batch": 4, "train.micro_batch": 4, "train.iterations": 3, "train.save_every": 100, "train.log_every": 1,
    "train.preview_every": 3, "gan.decode": "full", "dm.guidance": 2.0, "optim.lr_student": 1e-3,
    "optim.lr_fake": 1e-3, "optim.lr_discriminator": 1e-3, "optim.warmup_images": 0, "model.lora_rank": 2,
}  # fmt: skip
ALIGN = {
    "align.lr": 1e-3, "align.rl_ratio": 1, "align.threshold": [0.1, 0.1], "align.candidates": 2, "align.beta": 50.0,
}  # fmt: skip
CASES = ("pixel", "latent", "align")
STOPPED = "stopped"
STEADY = partial(torch.optim.AdamW, eps=1e-3)
"""With AdamW's own eps a step is nearly as large for a gradient that is but rounding as for any other."""


def reward_of(family: SDXLFamily) -> LatentRewardModel:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = new_reward(family, RewardConfig(resolution=32, guidance=None)).requires_grad_(False)
        model.logit_scale.fill_(math.log(100.0))
    return model


class StopAsked(RandomData):
    """Data that ask for a stop when iteration 1 reads them."""

    def __init__(self, stop: StopFlag) -> None:
        self.stop = stop

    def batch(self, positions: range, seed: int = 0) -> Batch:
        if positions.start >= 4:
            self.stop.request(15)
        return super().batch(positions, seed)


def train(case: str, family: SDXLFamily, sam: Path, out: Path, world: World) -> tuple[State, list[str], StopFlag]:
    """One run, what its watch was told, and the flag that may have stopped it."""
    told: list[str] = []
    stop = StopFlag()
    watch = Watch(lambda *_: told.append("progress"), lambda *_: None, lambda *_: told.append("preview"))
    if case == STOPPED:
        data = RandomData()
        if world.rank == 1:
            data = StopAsked(stop)
        r = load_recipe("shapes-4step-dm-only", flags=FLAGS | {"train.iterations": 6, "model.form": "lora"})
        return distill(r, family, data, out, watch, stop, world), told, stop
    # A process makes two forward passes for four of one process.
    r: Recipe = load_recipe("shapes-4step", flags=FLAGS | {"train.micro_batch": 1})
    if case == "align":
        r = load_recipe("sdxl-4step", flags=FLAGS | ALIGN)
    if case == "latent":
        r = load_recipe(
            "shapes-4step-dmd2", flags=FLAGS | {"model.form": "lora", "fake.ttur": 2, "train.micro_batch": 1}
        )
    r = seeing(sam, r) if r.gan.kind == "pixel" else r
    if case != "align":
        return distill(r, family, RandomData(), out, watch, stop, world), told, stop
    stage1 = Stage1(family.base.copy(trainable=False).view(), None, None, 7)
    return align(r, family, reward_of(family), stage1, RandomData(), out, watch, stop, world=world), told, stop


def everything(
    cases: tuple[str, ...], family: SDXLFamily, sam: Path, out: Path, world: World
) -> dict[str, dict[str, Any]]:
    """Runs of all cases: weights, what was drawn by iteration, purpose and row, and what was told."""
    original, found = Draws._generators, {}
    for case in cases:
        drawn: dict[tuple[int, str, int], int] = {}

        def spy(draws: Draws, purpose: str, drawn: dict = drawn) -> list[torch.Generator]:
            generators = original(draws, purpose)
            for row, each in zip(draws.rows, generators, strict=True):
                drawn[draws.iteration, purpose, row] = each.initial_seed()
            return generators

        with patch.object(Draws, "_generators", spy), patch.object(torch.optim, "AdamW", STEADY):
            state, told, stop = train(case, family, sam, out / case, world)
        tensors, meta = state.contents()
        found[case] = {
            "tensors": tensors,
            "drawn": drawn,
            "told": told,
            "iteration": meta["iteration"],
            "stop": stop.requested,
        }
    return found


def exchanged(world: World) -> dict[str, Any]:
    """What becomes of numbers of the processes."""
    mean, alone = torch.full((3, 2), float(world.rank)), torch.tensor([float("nan") if world.rank else 1.0])
    many = [torch.full((size,), float(world.rank + size), dtype=kind) for size in (1, 2, 30, 3)
            for kind in (torch.float32, torch.float64)]  # fmt: skip
    with patch.object(world_module, "BUCKET_BYTES", 64):
        world.mean_([mean, alone, *many])
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.full((2,), 4.0)
    parameters[1].grad = torch.full((2,), 4.0) if world.rank else None
    world.mean_gradients_(parameters)
    return {
        "mean": mean.mean().item(),
        "alone": alone.item(),
        "many": [(tensor - len(tensor)).unique().tolist() for tensor in many],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in parameters],
        "gathered": world.gather({"rank": world.rank}),
        "any": (world.any(world.rank == 1), world.any(False)),
        "from main": world.from_main(lambda: f"of {world.rank}"),
    }


def reward_training(family: SDXLFamily, rows: Path, out: Path, world: World) -> dict[str, Any]:
    """Weights of a reward model after two updates; pairs have different weights, and one is a tie."""
    r = load_reward_recipe("reward/shapes", flags={
        "train.batch": 4, "train.micro_batch": 2, "train.iterations": 2, "train.log_every": 1, "optim.warmup": 1,
        "model.precision": "fp32",
    })  # fmt: skip
    torch.manual_seed(0)
    model = new_reward(family, RewardConfig(resolution=32, guidance=None))
    pairs = read_pairs(rows)
    pairs = [*pairs, replace(pairs[0], label=0.5)]
    with patch.object(torch.optim, "AdamW", STEADY):
        train_reward(r, family, model, pairs, pairs, out, QUIET, StopFlag(), world)
    return {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}


def process(rank: int, folder: Path, teacher: Path, sam: Path, rows: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    world = World.current()
    assert (world.rank, world.size) == (rank, 2)
    out = folder / f"rank{rank}"
    found: dict[str, Any] = everything((*CASES, STOPPED), SDXLFamily.load(teacher), sam, out, world)
    found["world"] = exchanged(world)
    found["reward"] = reward_training(SDXLFamily.load(teacher), rows, out / "reward", world)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Preference pairs."""
    return red_wins(tmp_path_factory.mktemp("pairs"), 3)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, tiny_folder, sam_folder, rows) -> tuple[Path, list[dict[str, Any]]]:  # noqa: F811
    """The folder in which both processes trained, and what each found."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(process, (folder, tiny_folder, sam_folder, rows), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(case, ranks, tiny_family, sam_folder, tmp_path):  # noqa: F811
    """Pixel discriminator with all weights trained, latent one with adapters, and alignment."""
    folder, found = ranks
    alone = everything((case,), tiny_family, sam_folder, tmp_path, World())[case]
    one, two = (each[case] for each in found)
    # Each row's numbers are drawn by one process alone, and they are those that one process draws for it.
    assert not one["drawn"].keys() & two["drawn"].keys()
    assert one["drawn"] | two["drawn"] == alone["drawn"]
    assert {row for *_, row in one["drawn"]} == {0, 1} and {row for *_, row in two["drawn"]} == {2, 3}
    rows, expected = read_metrics(folder / "rank0" / case), read_metrics(tmp_path / case)
    assert len(rows) == len(expected) == 3
    if case == "align":
        # Some pairs were dropped, so the processes had different numbers of them.
        assert any(0 < row["kept_pairs"] < 1 for row in rows)
    for row, wanted in zip(rows, expected, strict=True):
        for name, value in row.items():
            # Rounding depends on the batch's size, and shows where it is multiplied: a score is 100 times a cosine.
            is_loose = "grad" in name or name.startswith("reward/")
            assert value == pytest.approx(wanted.pop(name), rel=1e-4 if is_loose else 1e-5, abs=1e-6), name
        assert wanted == {}
    assert one["tensors"].keys() == two["tensors"].keys() == alone["tensors"].keys()
    for name, tensor in alone["tensors"].items():
        assert torch.equal(one["tensors"][name], two["tensors"][name]), name
        torch.testing.assert_close(one["tensors"][name], tensor, rtol=1e-4, atol=1e-5)


def test_only_the_main_process_writes_and_tells(ranks):
    folder, found = ranks
    assert {path.name for path in folder.iterdir()} - {"meet"} == {"0.pt", "1.pt", "rank0"}
    for case in CASES:
        assert (folder / "rank0" / case / "state" / "step-00000003" / "tensors.safetensors").is_file()
        assert found[0][case]["told"] == ["preview", "progress", "progress", "progress", "preview"]
        assert found[1][case]["told"] == []


def test_a_stop_that_one_process_is_asked_for_ends_both(ranks):
    """The other one saves, and does not take it for a collapse, of which it would draw a preview."""
    folder, found = ranks
    assert [each[STOPPED]["iteration"] for each in found] == [2, 2]
    assert [each[STOPPED]["stop"] for each in found] == [15, 15]  # so both report it, with its exit code
    assert (folder / "rank0" / STOPPED / "state" / "step-00000002" / "tensors.safetensors").is_file()
    assert found[0][STOPPED]["told"] == ["preview", "progress", "progress"]


def test_a_reward_model_is_trained_alike(ranks, rows, tiny_family, tmp_path):
    folder, found = ranks
    alone = reward_training(tiny_family, rows, tmp_path, World())
    assert alone.keys() == found[0]["reward"].keys() != set()
    for name, value in alone.items():
        assert torch.equal(found[0]["reward"][name], found[1]["reward"][name])
        torch.testing.assert_close(found[0]["reward"][name], value, rtol=1e-4, atol=1e-5)
    for row, wanted in zip(read_metrics(folder / "rank0" / "reward"), read_metrics(tmp_path), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    assert not (folder / "rank1" / "reward" / "metrics.jsonl").exists()


def test_what_processes_tell_each_other(ranks):
    for rank in range(2):
        found = ranks[1][rank]["world"]
        assert found["mean"] == 0.5 and math.isnan(found["alone"])  # a gradient that is not finite is so everywhere
        assert found["many"] == [[0.5]] * 8  # whatever the bucket that a tensor is in
        # A gradient that one process lacks counts as zero; one that all lack stays missing, as in one process.
        assert found["gradients"] == [[4.0, 4.0], [2.0, 2.0], None]
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}] and found["any"] == (True, False)
        assert found["from main"] == "of 0"


def test_one_process_asks_nobody():
    world = World.current()
    tensor = torch.tensor([2.0])
    world.mean_([tensor])
    world.wait()
    assert world == World(0, 1) and world.is_main and tensor.item() == 2.0
    assert world.gather(3) == [3] and world.any(True) and not world.any(False)
    assert world.rows(8) == range(8) and [World(rank, 4).rows(8) for rank in (0, 3)] == [range(0, 2), range(6, 8)]
