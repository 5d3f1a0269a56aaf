"""A frozen base in 8 bits: the same answers as its rounded weights, adapters that train on it, students without it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from flashdmd_cli.families import storage
from flashdmd_cli.families.sd3.family import SD3Family
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.sdxl.true_size import random_family, random_text
from flashdmd_cli.families.storage import store, stored_in_fp32
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.training.distill import distill
from flashdmd_cli.training.state import State
from flashdmd_cli.workflows.plan.planning import plan

from .test_distill import QUIET, sam_folder, seeing  # noqa: F401

CPU = torch.device("cpu")
FLAGS = {
    "train.batch": 2, "train.micro_batch": 1, "train.save_every": 2, "train.preview_every": 100, "train.log_every": 1,
    "train.average_images": 20, "model.form": "lora", "model.lora_rank": 2, "gan.decode": "full",
    "optim.lr_student": 1e-3, "optim.lr_fake": 1e-3, "optim.lr_discriminator": 1e-3, "optim.warmup_images": 0,
}  # fmt: skip


def nbytes(net: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_are_those_of_the_rounded_weights(precision: str) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(96, 40)).requires_grad_(False)
    exact = layer[0].weight.bfloat16().float()
    rounded = stored_in_fp32(copy.deepcopy(store(layer, "int8", ("0",))))
    assert layer[0].weight.dtype == torch.int8 and type(rounded[0]) is nn.Linear
    error = (rounded[0].weight - exact).abs() / exact.abs().amax(dim=1, keepdim=True)
    assert 1 / 500 < error.max() < 1 / 250
    found = []
    for net in (layer, rounded):
        x = torch.linspace(-1, 1, 5 * 96).view(5, 96).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y = net(x)
        y.float().square().sum().backward()
        found.append((y, x.grad))
    for one, other in zip(*found, strict=True):
        near = {"rtol": 1e-5, "atol": 1e-5} if precision == "fp32" else {"rtol": 2**-7, "atol": 2**-7}
        torch.testing.assert_close(one, other, **near)
    assert found[0][0].dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)


def test_nothing_expanded_is_kept_for_the_backward_pass() -> None:
    layer, kept = store(nn.Sequential(nn.Linear(64, 64)).requires_grad_(False), "int8", ("0",)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(3, 64, requires_grad=True))
    assert {t.dtype for t in kept if t.numel() >= 64 * 64} == {torch.int8}


def test_roles_on_one_base_in_8_bits() -> None:
    family = random_family(64, "fp32", "int8", CPU, small=True)
    in_16 = random_family(64, "fp32", "bf16", CPU, small=True).base.net
    linear = sum(m.weight.numel() for m in family.base.net.modules() if isinstance(m, storage._Int8Linear))
    assert nbytes(in_16) - nbytes(family.base.net) == pytest.approx(linear, rel=0.05) and linear > 0
    cond, x = family.conditioning(random_text(family, 2)), torch.randn(2, *family.latent_shape)
    t = torch.tensor([999.0, 249.0])
    plain = family.teacher.x0(x, t, cond)
    twin = family.base.twin()
    student = twin.add_adapter("student", 4, 4.0)
    assert {p.dtype for p in student.parameters} == {torch.float32}
    assert not any(".base_layer." in name or name.endswith("scale") for name in student.weights())
    assert torch.equal(student.x0(x, t, cond), plain)
    shared = {id(p) for p in twin.net.parameters()}
    assert all(id(p) in shared for p in family.base.net.parameters())  # one copy of the base
    with torch.no_grad():
        for parameter in student.parameters:
            parameter.normal_(std=0.05)
    for dtype in (torch.float32, torch.float16):
        merged = student.merged(dtype)
        assert {p.dtype for p in merged.parameters()} == {dtype} and not hasattr(merged, "scale")
        assert not any(isinstance(m, storage._Int8Linear) for m in merged.modules())
    torch.testing.assert_close(student.plain().x0(x, t, cond), student.x0(x, t, cond), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(family.base.copy().view().x0(x, t, cond), plain, rtol=1e-4, atol=1e-4)


def test_a_run_on_a_base_in_8_bits(
    tiny_folder: Path, sam_folder: Path, tmp_path: Path, random_data  # noqa: F811
) -> None:  # fmt: skip
    """Losses near those of 16 bits; the same with recomputation; resumed bit for bit; a state without the base."""

    def run(out: str, weights: str, iterations: int = 4, checkpointing: bool = False) -> State:
        flags = FLAGS | {"model.weights": weights, "train.iterations": iterations, "model.checkpointing": checkpointing}
        recipe = seeing(sam_folder, load_recipe("shapes-4step", flags=flags))
        family = SDXLFamily.load(tiny_folder, "fp32", recipe.model.storage("fp32"))
        return distill(recipe, family, random_data, tmp_path / out, QUIET, StopFlag())

    whole, checkpointed = run("whole", "int8"), run("checkpointed", "int8", checkpointing=True)
    run("resumed", "int8", 2)
    resumed = run("resumed", "int8")
    run("16", "bf16")
    rows, others, recomputed = (read_metrics(tmp_path / name) for name in ("whole", "16", "checkpointed"))
    for row, other, again in zip(rows, others, recomputed, strict=True):
        for loss in ("dm", "fake", "gan", "discriminator"):
            assert row[loss] == pytest.approx(other[loss], rel=0.05) and row[loss] == pytest.approx(
                again[loss], rel=1e-4
            )
    assert any(row["fake"] != other["fake"] for row, other in zip(rows, others, strict=True))
    for one, two in zip(whole.roles, resumed.roles, strict=True):
        a, b = one.tensors(), two.tensors()
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert not any(t.dtype == torch.int8 for role in checkpointed.roles for t in role.tensors().values())


def test_it_is_planned() -> None:
    sets = ["gan.crop_px=64", "model.lora_rank=4", "train.batch=1", "train.micro_batch=1", "train.preview_every=null"]
    in_16, in_8 = (plan(load_recipe("sdxl-4step-24gb", [*sets, f"model.weights={name}"]), None, 64, small=True)
                   for name in ("bf16", "int8"))  # fmt: skip
    nets = [random_family(64, "bf16", name, CPU, small=True).base.net for name in ("bf16", "int8")]
    saved = (nbytes(nets[0]) - nbytes(nets[1])) / 1e9
    assert in_16.memory_by_part["weights"] - in_8.memory_by_part["weights"] == pytest.approx(saved)
    assert in_8.tflop_per_sample == pytest.approx(in_16.tflop_per_sample, rel=1e-3)
    assert in_8.peak_gb < in_16.peak_gb


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_another_familys_network_in_fewer_bits(weights: str, tiny_sd3_folder: Path) -> None:
    """With float32 arithmetic; in 8 bits are all layers of a transformer that get adapters."""
    exact, stored = (SD3Family.load(tiny_sd3_folder, "fp32", name) for name in ("fp32", weights))
    torch.manual_seed(0)
    x, t, cond = torch.randn(2, *exact.latent_shape), torch.tensor([999.0, 249.0]), exact.encode(["a ring", "a star"])
    expected, answer = (family.teacher.x0(x, t, cond) for family in (exact, stored))
    assert 0 < (answer - expected).square().mean() < 1e-3 * expected.square().mean()
    student = stored.base.twin().add_adapter("student", 2, 2.0)
    layers = [layer.get_base_layer() for layer in student.base._layers]
    assert all(isinstance(layer, storage._Int8Linear) == (weights == "int8") for layer in layers) and layers
