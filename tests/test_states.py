"""A state that lost, gained or changed a tensor is refused in one line that names it; nothing is changed by it."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashdmd_cli.families.sdxl.reward import RewardConfig
from flashdmd_cli.families.sdxl.reward_files import new_reward
from flashdmd_cli.runs.checkpoint import load_state, save_state, state_folder
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.recipe import load_reward_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.training.reward import train_reward
from flashdmd_cli.training.stage1 import FAKE, HEADS, STUDENT, load_stage1
from flashdmd_cli.training.state import State

from .test_distill import QUIET, recipe, sam_folder, seeing  # noqa: F401
from .test_reward_training import read_pairs, red_wins

STEP = 3
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module", params=["full", "lora"])
def new(request, tiny_family, sam_folder) -> Callable[[], State]:
    """Makes the state of a run before its first iteration, with an average."""

    def make() -> State:
        form = {"model__form": request.param, "model__lora_rank": 2, "model__lora_alpha": 2}
        return State.new(seeing(sam_folder, recipe(**form, train__average_images=20)), tiny_family)

    return make


@pytest.fixture(scope="module")
def saved(new, tmp_path_factory) -> Path:
    """A state after one update of every role."""
    state, folder = new(), state_folder(tmp_path_factory.mktemp("saved"), STEP)
    for role in state.roles:
        for p in role.parameters:
            p.grad = torch.ones_like(p)
        role.update()
    state.iteration = STEP
    save_state(folder, *state.contents())
    return folder


def opened(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a state, all read, and its metadata."""
    tensors, meta = load_state(folder)
    return dict(tensors), meta


def drop(*prefixes: str) -> Callable[[Tensors], Tensors]:
    """Leaves out all tensors under some names; of one that ends in a star only the first."""

    def alter(tensors: Tensors) -> Tensors:
        gone = [k for k in sorted(tensors) if k.startswith(tuple(p.rstrip("*") for p in prefixes))]
        assert gone
        return {k: v for k, v in tensors.items() if k not in (gone[:1] if prefixes[0].endswith("*") else gone)}

    return alter


def change(prefix: str, value: Callable[[Tensor], Tensor], which: str = "") -> Callable[[Tensors], Tensors]:
    """Changes the first tensor under a name that has a value to change."""

    def alter(tensors: Tensors) -> Tensors:
        name = min(k for k, v in tensors.items() if k.startswith(prefix) and k.endswith(which) and v.ndim)
        return tensors | {name: value(tensors[name].clone()).contiguous()}

    return alter


STRUCTURE = {
    "one student weight missing": (drop("student.net.*"), "lacks student.net."),
    "all student weights missing": (drop("student.net."), "lacks student.net."),
    "all of the fake score missing": (drop("fake."), "lacks fake."),
    "the fake score's weights missing": (drop("fake.net."), "lacks fake.net."),
    "the discriminator missing": (drop("discriminator."), "lacks discriminator."),
    "moments missing": (drop("student.optimizer."), "lacks student.optimizer."),
    "one moment missing": (drop("fake.optimizer.*"), "lacks fake.optimizer.0.exp_avg"),
    "moment of another shape": (change("student.optimizer.", lambda v: v[:-1], "exp_avg"), "another student.opt"),
    "an extra tensor": (lambda t: t | {"student.net.extra": torch.zeros(2)}, "unexpected student.net.extra"),
    "int8 weights": (change("student.net.", lambda v: v.to(torch.int8)), "another student.net."),
    "half the precision": (change("fake.net.", lambda v: v.half()), "another fake.net."),
    "weight of another shape": (change("student.net.", lambda v: v[:-1]), "another student.net."),
    "average of another shape": (change("average.", lambda v: v[:-1]), "another average."),
    "average missing": (drop("average.*"), "lacks average.net."),
    "200 tensors missing": (lambda t: dict(list(t.items())[200:]), "lacks "),
}  # fmt: skip
VALUES = {
    "NaN weights": change("student.net.", lambda v: v * float("nan")),
    "one value changed": change("fake.optimizer.", lambda v: v + 1, "exp_avg"),
}


def refused(state: State, folder: Path, said: str) -> None:
    before = {name: value.clone() for name, value in state.contents()[0].items()}
    with pytest.raises(InputError) as caught:
        state.load(folder)
    message = caught.value.message
    assert said in message and str(folder) in message and "\n" not in message
    assert caught.value.exit_code == 3 and caught.value.hint
    after, _ = state.contents()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert state.iteration == 0


def test_a_whole_state_is_taken_back(new, saved):
    """With adapters the frozen weights below them are not in it, and need not be."""
    state = new()
    state.load(saved)
    tensors, _ = load_state(saved)
    again = {name: value for role in state.roles for name, value in role.tensors().items()}
    assert all(torch.equal(value, tensors[name]) for name, value in again.items())
    assert state.iteration == STEP and state.updates == {"student": 1, "fake": 1, "discriminator": 1}
    average = {f"average.net.{name}": value for name, value in state.average.weights().items()}
    assert tensors.keys() - again.keys() == average.keys() != set()
    assert all(torch.equal(value, tensors[name]) for name, value in average.items())


@pytest.mark.parametrize("kind", [*STRUCTURE, *VALUES])
def test_an_altered_file_is_refused(kind, new, saved, tmp_path):
    alter, said = STRUCTURE[kind] if kind in STRUCTURE else (VALUES[kind], "has other contents")
    folder = state_folder(tmp_path, STEP)
    folder.mkdir()
    (folder / "state.json").write_bytes((saved / "state.json").read_bytes())
    save_file(alter(load_file(saved / "tensors.safetensors")), folder / "tensors.safetensors")
    refused(new(), folder, said)


@pytest.mark.parametrize("kind", STRUCTURE)
def test_a_whole_file_of_another_run_is_refused(kind, new, saved, tmp_path):
    """Its record agrees with it, but it is not what this run's networks have."""
    alter, said = STRUCTURE[kind]
    tensors, meta = opened(saved)
    save_state(state_folder(tmp_path, STEP), alter(tensors), meta)
    refused(new(), state_folder(tmp_path, STEP), said)


def test_a_record_without_its_parts_is_refused(new, saved, tmp_path):
    record, folder = json.loads((saved / "state.json").read_text()), state_folder(tmp_path, STEP)
    folder.mkdir()
    (folder / "tensors.safetensors").write_bytes((saved / "tensors.safetensors").read_bytes())
    for key in record:
        (folder / "state.json").write_text(json.dumps({k: v for k, v in record.items() if k != key}))
        refused(new(), folder, f"lacks '{key}'")
    for key in record["meta"]:
        meta = {k: v for k, v in record["meta"].items() if k != key}
        (folder / "state.json").write_text(json.dumps(record | {"meta": meta}))
        refused(new(), folder, f"lacks '{key}'")
    one = {"student": 1, "fake": 1}
    (folder / "state.json").write_text(json.dumps(record | {"meta": record["meta"] | {"updates": one}}))
    refused(new(), folder, "lacks 'discriminator'")


@pytest.mark.parametrize("prefix", [FAKE, HEADS, STUDENT])
@pytest.mark.parametrize("aligned_form", ["full", "lora"])
@pytest.mark.parametrize("form", ["full", "lora"])
def test_an_alignment_refuses_a_state_that_lost_a_tensor(
    form, aligned_form, prefix, tiny_family, sam_folder, tmp_path
):  # fmt: skip
    if (form, prefix) == ("full", STUDENT):
        pytest.skip("read from the checkpoint's student/")
    stage1 = seeing(sam_folder, recipe(model__form=form, model__lora_rank=2))
    state = State.new(stage1, tiny_family)
    tiny_family.save_network(state.shipped.merged(), tmp_path / "student")
    folder = state_folder(tmp_path / "state", STEP)
    save_state(folder, *state.contents())
    aligned = stage1.model_copy(update={"model": recipe(model__form=aligned_form, model__lora_rank=3).model})
    State.new(aligned, tiny_family, load_stage1(tmp_path, STEP, stage1, aligned, tiny_family))  # whole, it is taken
    tensors, meta = opened(folder)
    gone = min(name for name in tensors if name.startswith(prefix))
    save_state(folder, {k: v for k, v in tensors.items() if k != gone}, meta)
    with pytest.raises(InputError, match="^--from: the saved state") as caught:
        State.new(aligned, tiny_family, load_stage1(tmp_path, STEP, stage1, aligned, tiny_family))
    assert f"lacks {gone.removeprefix(prefix)}" in caught.value.message and str(folder) in caught.value.message


@pytest.mark.parametrize("form", ["full", "lora"])
def test_a_fake_score_of_another_shape_is_refused(form, tiny_family, sam_folder, tmp_path):
    """Adapters of another rank, or a network with another layer."""
    stage1 = seeing(sam_folder, recipe(model__form=form, model__lora_rank=2))
    state, folder = State.new(stage1, tiny_family), state_folder(tmp_path / "state", STEP)
    tiny_family.save_network(state.shipped.merged(), tmp_path / "student")
    save_state(folder, *state.contents())
    tensors, meta = opened(folder)
    name = min(key for key in tensors if key.startswith(FAKE))
    save_state(folder, tensors | {name: tensors[name][:1].clone()}, meta)
    with pytest.raises(InputError, match=f"another {name.removeprefix(FAKE)}"):
        load_stage1(tmp_path, STEP, stage1, recipe(), tiny_family)


def test_a_reward_model_refuses_a_state_that_lost_a_tensor(tiny_family, tmp_path):
    pairs = read_pairs(red_wins(tmp_path, 4))
    r = load_reward_recipe("reward/shapes", flags={"train.batch": 2, "train.micro_batch": 2, "train.iterations": 1,
                                                   "model.precision": "fp32"})  # fmt: skip

    def go() -> tuple[int, float]:
        model = new_reward(tiny_family, RewardConfig(resolution=32, guidance=None))
        return train_reward(r, tiny_family, model, pairs, [], tmp_path, QUIET, StopFlag())

    assert go()[0] == 1
    assert go()[0] == 1  # taken back as it is
    folder = state_folder(tmp_path / "state", 1)
    tensors, meta = opened(folder)
    for gone in ("reward.net.visual_projection.weight", "reward.optimizer.0.exp_avg"):
        save_state(folder, {k: v for k, v in tensors.items() if k != gone}, meta)
        with pytest.raises(InputError, match=f"lacks {gone}"):
            go()
    save_state(folder, tensors, {k: v for k, v in meta.items() if k != "updates"})
    with pytest.raises(InputError, match="lacks 'updates'"):
        go()
