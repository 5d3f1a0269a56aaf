"""The whole loop on a graphics card that is not there: fake tensors know their device, and raise where two meet.

Under `FakeTensorMode` nothing is computed, but every operation checks shapes and devices, so a forgotten `.to(device)`
is found on a machine without a card.
"""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from flashdmd_cli.data.pairs import PreferencePair
from flashdmd_cli.evaluation.generate import generate
from flashdmd_cli.evaluation.preview import Preview, Row
from flashdmd_cli.families.base import Base, View
from flashdmd_cli.families.noise import noise_settings
from flashdmd_cli.families.sdxl.facts import SDXL
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.sdxl.reward import LatentRewardModel, RewardConfig
from flashdmd_cli.families.sdxl.reward_files import new_reward
from flashdmd_cli.networks.sam import load_sam_encoder
from flashdmd_cli.runs.checkpoint import kinds
from flashdmd_cli.runs.recipe import load_reward_recipe
from flashdmd_cli.training import networks as training_networks
from flashdmd_cli.training import state as training_state
from flashdmd_cli.training.align import preference_step
from flashdmd_cli.training.collapse import CollapseProbe
from flashdmd_cli.training.distill import iteration
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.networks import Stage1
from flashdmd_cli.training.pairs import PairSampler
from flashdmd_cli.training.reward import PairLatents, _step, accuracy
from flashdmd_cli.training.roles import Role
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective
from flashdmd_cli.workflows.judges import reward_judge

from .test_align import recipe as aligned
from .test_distill import recipe, sam_folder  # noqa: F401


def every(index: Tensor | None) -> Tensor | None:
    """The positions that a mask chooses, as if it chose all along its first side; another index as it is."""
    if index is None or index.dtype != torch.bool:
        return index
    return torch.arange(len(index), device=index.device)


class Answers(TorchDispatchMode):
    """What a program asks of numbers that are not there: any number is 1, anything that may be chosen is chosen."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return {True: 1.0}.get(args[0].dtype.is_floating_point, 1)
        if func is torch.ops.aten.lift_fresh.default:
            # `torch.tensor(0.0)`, of which fake tensors keep the value and then lose count of its memory.
            return torch.empty(args[0].shape, dtype=args[0].dtype, device=args[0].device)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [every(i) for i in args[1]])
        return func(*args, **(kwargs or {}))


def apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` for fake tensors, which the stock one tries to swap and cannot."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, value in table.items():
                if value is not None:
                    new = fn(value)
                    table[name] = nn.Parameter(new, value.requires_grad) if isinstance(value, nn.Parameter) else new
    return module


def fake(module: nn.Module, device: str = "cuda") -> nn.Module:
    """`module` with weights that are fake, in place; within `FakeTensorMode`."""
    return apply(module, lambda value: torch.empty(value.shape, dtype=value.dtype, device=device))


def backward(output: Tensor, gradient: Tensor | None = None) -> None:
    """`Tensor.backward` without the engine, which asks for a real card: every leaf below `output` gets a gradient."""
    assert output.requires_grad
    if gradient is not None:
        assert (gradient.shape, gradient.device) == (output.shape, output.device)
    seen, nodes = set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [below for below, _ in node.next_functions]
            if hasattr(node, "variable"):
                node.variable.grad = torch.empty_like(node.variable)


def gradients(output: Tensor, inputs: Tensor) -> tuple[Tensor]:
    """`torch.autograd.grad` without the engine."""
    assert output.requires_grad and inputs.requires_grad
    return (torch.empty_like(inputs),)


@pytest.fixture
def family(tiny_family, monkeypatch) -> Iterator[SDXLFamily]:
    """The tiny teacher on the card, and the mode in which it is there."""
    parts = {k: copy.deepcopy(v) if k in SDXL.networks else v for k, v in tiny_family.pipeline.components.items()}
    settings = noise_settings(tiny_family.pipeline.scheduler)  # looks at numbers, which there are none of in the mode
    monkeypatch.setattr("flashdmd_cli.families.unet.noise_settings", lambda scheduler: settings)
    monkeypatch.setattr(nn.Module, "_apply", apply)
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", gradients)
    with FakeTensorMode(allow_non_fake_inputs=True), Answers():
        parts |= {name: fake(parts[name]) for name in SDXL.networks}
        yield SDXLFamily(StableDiffusionXLPipeline(**parts, add_watermarker=False), "fake")


# What the fixtures below copy is copied before the mode begins, so they stand before `family` in a test's arguments.


@pytest.fixture
def student(tiny_family) -> nn.Module:
    """A network that `loaded` fakes."""
    return copy.deepcopy(tiny_family.base.net)


def loaded(family: SDXLFamily, net: nn.Module) -> View:
    """A student where a checkpoint is loaded: on the CPU."""
    return Base(family, fake(net, "cpu")).view()


@pytest.fixture
def reward(tiny_family) -> LatentRewardModel:
    return new_reward(tiny_family, RewardConfig(resolution=32, guidance=3.0))


@pytest.fixture
def encoder(sam_folder, monkeypatch) -> None:
    """SAM's encoder where it is loaded: on the CPU."""
    whole = load_sam_encoder(sam_folder)
    monkeypatch.setattr(training_networks, "load_sam_encoder", lambda _: fake(whole, "cpu"))


CROP = {"gan__decode": "crop", "gan__crop_px": 16, "gan__crop_margin_latents": 1}
RUNS = {
    "pixels": {"gan__soft_weights": True, "gan__steps": "all", "dm__steps": "all"},
    "crops": CROP
    | {"gan__input": "renoise", "model__form": "lora", "model__lora_rank": 2, "train__average_images": 20},
    "latents": {"gan__kind": "latent", "gan__steps": "all", "gan__loss": "softplus"},
}


def all_on_card(state: State) -> bool:
    tensors = [t for role in state.roles for n, t in role.tensors().items() if not n.endswith(".step")]
    views = [view for view in (state.teacher, state.average, state.reference) if view is not None]
    return {t.device.type for t in [*tensors, *(t for view in views for t in view.weights().values())]} == {"cuda"}


@pytest.mark.parametrize("kind", RUNS)
def test_an_iteration(kind, encoder, family, random_data):
    r = recipe(**RUNS[kind])
    o, state = Objective(r, family, family.grid(4)), State.new(r, family)
    iteration(r, o, state, random_data)
    assert set(state.updates.values()) == {1} and all_on_card(state)


def test_draws_lie_on_the_card(family):
    draws = Draws(0, 0, range(2), family.device)
    drawn = (draws.normal("z", (4,)), draws.uniform("t"), draws.choice("c", 9))
    assert {x.device.type for x in drawn} == {"cuda"}


def test_an_iteration_on_cached_latents_and_text(encoder, family, random_data):
    batch, cond = random_data.batch(range(2)), family.encode(["a", "b"])
    text = {name: cond[name].cpu() for name in ("context", "pooled")}
    batch = replace(batch, latents=torch.zeros(2, 4, 8, 8), text=text)
    r = recipe(**CROP, gan__real="vae_roundtrip", dm__guidance=1.0)
    o, state = Objective(r, family, family.grid(4)), State.new(r, family)
    iteration(r, o, state, SimpleNamespace(batch=lambda *_, **__: batch))
    assert all_on_card(state)


@pytest.mark.parametrize(("pairs", "form"), [("noisy", "lora"), ("clean", "full")])
def test_a_preference_step(pairs, form, student, reward, encoder, family, random_data):
    r = aligned(align__pairs=pairs, align__candidates=2, model__form=form, model__lora_rank=2, gan__kind="none")
    stage1 = Stage1(loaded(family, student), None, None, 3)
    state = State.new(r, family, stage1)
    sampler = PairSampler(Objective(r, family, family.grid(4)), fake(reward.requires_grad_(False)))
    metrics = preference_step(r, sampler.o, sampler, state, random_data, stage1)
    assert metrics["pairs"] > 0 and state.updates["preference"] == 1 and all_on_card(state)


def test_the_probe(reward, family):
    r = aligned(align__pairs="noisy", probe__every=1, probe__num_prompts=2, probe__num_seeds=2, gan__kind="none")
    state = State.new(r, family)
    sampler = PairSampler(Objective(r, family, family.grid(4)), fake(reward.requires_grad_(False)))
    probe = CollapseProbe(sampler.o, ["a", "b"], reward_judge(sampler))
    probe.begin(state)
    probe.check(state)
    assert all_on_card(state)


def test_a_reward_model(reward, family, monkeypatch):
    monkeypatch.setattr("flashdmd_cli.training.reward.load_picture", lambda *_: torch.zeros(3, 32, 32))
    r = load_reward_recipe("reward/shapes", flags={"train.batch": 2, "train.micro_batch": 1})
    model = fake(reward)
    model.set_trainable(r.model.layers, r.model.text_encoders)
    role = Role("reward", model, 1e-3, r.optim, "optim.lr")
    data = PairLatents([PreferencePair("a", b"", b"", label, {}) for label in (0.0, 1.0)], family)
    _step(r, family, model, role, data, 0)
    assert role.updates == 1
    accuracy(model, data, 0)


def test_pictures(family):
    for sampler, guidance in (("few_step", 1.0), ("stochastic", 2.0), ("ddim", 2.0)):
        pictures = generate(family, family.teacher, ["a", "b"], 0, sampler, 2, guidance)
        assert (pictures.device.type, pictures.shape) == ("cpu", (2, 3, 32, 32))


@pytest.mark.parametrize("form", ["full", "lora"])
def test_a_preview_of_a_student_that_was_loaded_on_the_cpu(form, student, family, tmp_path):
    r = aligned(model__form=form, model__lora_rank=2, gan__kind="none")
    state = State.new(r, family, Stage1(loaded(family, student), None, None, 3))
    preview = Preview(r, family, ["a"], tmp_path)
    for view in (state.start, state.shipped):
        assert preview._draw([Row("", view, "few_step", 2)], None)[""].shape == (1, 3, 32, 32)


class Saved(dict):
    """The tensors of a state, without a file."""

    def kinds(self):
        return kinds(self)


def test_a_state_goes_back_to_the_card(encoder, family, monkeypatch):
    state = State.new(recipe(train__average_images=20), family)
    for role in state.roles:
        for p in role.parameters:
            p.grad = torch.empty_like(p)
        role.update()
    held = {name: value for role in state.roles for name, value in role.tensors().items()}
    held |= {f"average.net.{name}": value for name, value in state.average.weights().items()}
    saved = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in held.items()}
    meta = {"iteration": 1, "images_seen": 2, "seconds": 0.0, "probe": {}, "updates": state.updates}
    meta["bad_updates"] = dict.fromkeys(state.updates, 0)
    monkeypatch.setattr(training_state, "load_state", lambda *_, **__: (Saved(saved), meta))
    state.load(Path("state"))
    assert all_on_card(state)
