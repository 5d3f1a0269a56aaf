"""Adapters on one shared network train as adapters on networks of their own do, checkpointed or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flashdmd_cli.families.base import View
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.runs.recipe import Recipe, load_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.runs.world import World
from flashdmd_cli.training import state as states
from flashdmd_cli.training.align import align
from flashdmd_cli.training.distill import distill
from flashdmd_cli.training.networks import Networks, Stage1, Stage1Adapters, new_networks
from flashdmd_cli.training.roles import assign
from flashdmd_cli.training.state import State

from .test_align import origin, reward  # noqa: F401
from .test_distill import QUIET, sam_folder, seeing  # noqa: F401

ITERATIONS = 20
FLAGS = {
    "train.batch": 1, "train.micro_batch": 1, "train.iterations": ITERATIONS, "train.save_every": 100,
    "train.preview_every": 100, "train.log_every": 1, "train.average_images": 20, "model.form": "lora",
    "model.lora_rank": 2, "model.lora_alpha": 4, "gan.decode": "full", "dm.guidance": 2.0, "optim.lr_student": 1e-3,
    "optim.lr_fake": 1e-3, "optim.lr_discriminator": 1e-3, "optim.warmup_images": 0, "fake.ttur": 2,
    "grid.steps": 2,
}  # fmt: skip
ALIGN = {"align.lr": 1e-3, "align.rl_ratio": 2, "align.threshold": [0.0, 0.0], "align.candidates": 2}


@pytest.fixture
def family(tiny_family: SDXLFamily, monkeypatch: pytest.MonkeyPatch) -> SDXLFamily:
    """The tiny teacher, its weights copied: products round by how memory is aligned, and a file's need not be."""
    monkeypatch.setattr(tiny_family, "base", tiny_family.base.copy(trainable=False))
    return tiny_family


def recipe(name: str, **flags: object) -> Recipe:
    return load_recipe(name, flags=FLAGS | {key.replace("__", "."): value for key, value in flags.items()})


def apart(view: View) -> View:
    """The view with the same adapters on a network of its own."""
    base = view.base.copy(trainable=False)
    for name in view.adapters:
        config = view.base.net.peft_config[name]
        own = base.add_adapter(name, config.r, config.lora_alpha)
        assign(own.weights(), view.base.view(name).weights())
        for mine, its in zip(own.parameters, view.base.view(name).parameters, strict=True):
            mine.requires_grad_(its.requires_grad)
    return base.view(*view.adapters)


def separate(recipe: Recipe, family: SDXLFamily, stage1: Stage1 | None, world: World) -> Networks:
    """The networks of a run without anything shared."""
    n = new_networks(recipe, family, stage1, world)
    with torch.random.fork_rng(devices=[]):  # the discriminator's heads are drawn next
        student, fake, teacher = apart(n.student), apart(n.fake), apart(n.teacher)
        average, reference = (view and apart(view) for view in (n.average, n.reference))
    return Networks(student, fake, teacher, average, reference)


def bases(state: State) -> list[int]:
    """Which networks the roles are on."""
    views = (state.student.net, state.fake.net, state.teacher, state.average, state.reference)
    return [id(view.base.net) for view in views if view is not None]


def same_run(out: Path, other: Path, one: State, two: State) -> None:
    rows, others = read_metrics(out), read_metrics(other)
    assert len(rows) == len(others) == ITERATIONS
    for row, expected in zip(rows, others, strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-9)
    for mine, its in ((one.student.net, two.student.net), (one.fake.net, two.fake.net), (one.average, two.average)):
        for a, b in zip(mine.parameters, its.parameters, strict=True):
            torch.testing.assert_close(a, b, rtol=0.0, atol=1e-5)
            assert a.detach().any()  # B began as zeros: all of it has been trained


@pytest.mark.parametrize("name", ["shapes-4step", "shapes-4step-dmd2"])
def test_distillation_on_a_shared_network(name, family, sam_folder, tmp_path, random_data, monkeypatch):  # noqa: F811
    """With the pixel discriminator, and with the one that reads features of the fake score, checkpointed as well."""

    def run(out: str, checkpointing: bool = False) -> State:
        r = recipe(name, model__checkpointing=checkpointing)
        r = seeing(sam_folder, r) if r.gan.kind == "pixel" else r
        return distill(r, family, random_data, tmp_path / out, QUIET, StopFlag())

    runs = {"shared": run("shared")}
    if name == "shapes-4step-dmd2":
        runs["checkpointed"] = run("checkpointed", True)
    monkeypatch.setattr(states, "new_networks", separate)
    alone = run("alone")
    assert len(set(bases(runs["shared"]))) == 1 and len(set(bases(alone))) == len(bases(alone)) == 4
    for out, state in runs.items():
        same_run(tmp_path / out, tmp_path / "alone", state, alone)


@pytest.mark.parametrize("form", ["adapters", "all weights"])
def test_alignment_on_a_shared_network(
    form, family, tmp_path, random_data, reward, origin, monkeypatch  # noqa: F811
):  # fmt: skip
    """From a stage 1 that trained adapters, which lie frozen below, checkpointed as well, and from one that trained all
    weights."""
    stage1 = origin
    if form == "adapters":
        generator = torch.Generator().manual_seed(3)
        shapes = family.base.twin().add_adapter("student", 3, 6).weights()
        student, fake = (
            {key: 0.05 * torch.randn(value.shape, generator=generator) for key, value in shapes.items()} for _ in "ab"
        )
        stage1 = Stage1(family.teacher, None, None, 7, Stage1Adapters(student, fake, 3, 6.0))

    def run(out: str, checkpointing: bool = False) -> State:
        r = load_recipe("sdxl-4step-dmd2", flags=FLAGS | ALIGN | {"model.checkpointing": checkpointing})
        return align(r, family, reward, stage1, random_data, tmp_path / out, QUIET, StopFlag())

    runs = {"shared": run("shared")}
    if form == "adapters":
        runs["checkpointed"] = run("checkpointed", True)
    monkeypatch.setattr(states, "new_networks", separate)
    alone = run("alone")
    # Where stage 1 trained all weights, student and fake score begin as two networks, and the teacher is a third.
    assert len(set(bases(runs["shared"]))) == (1 if form == "adapters" else 3)
    assert len(set(bases(alone))) == len(bases(alone)) == 5
    for out, state in runs.items():
        same_run(tmp_path / out, tmp_path / "alone", state, alone)
