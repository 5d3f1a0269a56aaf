"""`bench` on the small network: counted operations, parts, DMD2 beside it; weights in 16 bits; compiled blocks."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from flashdmd_cli.families.sd3 import true_size as sd3
from flashdmd_cli.families.sdxl.true_size import SMALL_UNET, TOKENS, UNET, random_family, random_text
from flashdmd_cli.families.storage import is_stored, store_in, stored_in_fp32
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.training.distill import iteration
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective
from flashdmd_cli.workflows import bench as module
from flashdmd_cli.workflows.bench import RandomData, bench
from tests.test_cli import run

SMALL = ["train.batch=2", "gan.crop_px=64", "model.device=cpu", "model.precision=fp32", "model.lora_rank=4"]


def forward_tflop(family) -> float:
    """Operations of one forward pass of the denoiser on one picture, counted on its own."""
    text = random_text(family, 1)
    x, t = torch.randn(1, *family.latent_shape), torch.full((1,), 500.0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        family.teacher.x0(x, t, family.conditioning(text))
    return counter.get_total_flops() / 1e12


def test_operations_are_those_of_the_evaluations_of_algorithm_1():
    found = bench(load_recipe("sdxl-4step", [*SMALL, "train.micro_batch=2"]), 64, 1, small=True)
    one = forward_tflop(random_family(64, "fp32", "fp32", torch.device("cpu"), small=True))
    parts = {name: part.tflop / found.batch / one for name, part in found.parts.items()}
    # For each picture: a rollout to the drawn step and on to the last but one is two evaluations in all, the student is
    # asked at both ends, teacher (twice, for guidance) and fake score once, and the fake score once more in its loss.
    assert parts["rollout"] == pytest.approx(2, rel=1e-3)
    assert parts["student"] == pytest.approx(2, rel=1e-3)
    assert parts["teacher and fake score"] == pytest.approx(3, rel=1e-3)
    assert parts["fake score's loss"] == pytest.approx(1, rel=1e-3)
    # Backward passes of three evaluations for all weights: twice an evaluation each; the rest is VAE, SAM and heads.
    assert parts["backward passes"] > 6
    assert found.tflop == pytest.approx(sum(part.tflop for part in found.parts.values()))
    assert found.samples_per_second == pytest.approx(found.batch / found.seconds)
    assert found.trainable > 2 * found.parameters  # student, fake score, heads


def test_the_command_measures_dmd2_beside(monkeypatch):
    # The ceiling takes seconds to measure and is another test's.
    monkeypatch.setattr(module, "matrix_tflops", lambda place: 0.5)
    sets = [text for each in SMALL[1:] for text in ("--set", each)]
    result = run("bench", "--size", "small", "--batch", 1, "--cycles", 1, "--against", "dmd2",
                 "--json", *sets)  # fmt: skip
    assert result.exit_code == 0, result.output
    ours, dmd2 = json.loads(result.stdout)["rows"]
    assert (ours["recipe"], dmd2["recipe"]) == ("sdxl-4step-lora", "sdxl-4step-dmd2")
    assert ours["trainable"] < ours["parameters"] < dmd2["trainable"]
    assert dmd2["precision"] == "as DMD2"
    assert ours["utilisation"] == pytest.approx(ours["tflops"] / 0.5)
    with pytest.raises(UsageError, match="only distillations of SDXL"):
        bench(load_recipe("align/sdxl"))


def test_true_size_is_sdxl():
    with torch.device("meta"):
        net = UNet2DConditionModel.from_config(UNET)
    assert sum(p.numel() for p in net.parameters()) == 2_567_463_684
    assert set(SMALL_UNET) <= set(UNET)


def test_true_size_of_sd3():
    """As published, 2.08 B with the table of positions; the table itself is computed, not random."""
    with torch.device("meta"):
        net = SD3Transformer2DModel.from_config(sd3.TRANSFORMER)
    assert sum(p.numel() for p in net.parameters()) == 2_028_328_000
    assert set(sd3.SMALL_TRANSFORMER) <= set(sd3.TRANSFORMER)
    family = sd3.random_family(64, "fp32", "fp32", torch.device("cpu"), small=True)
    stock = SD3Transformer2DModel.from_config(family.base.net.config)
    assert torch.equal(family.base.net.pos_embed.pos_embed, stock.pos_embed.pos_embed)
    cond = family.conditioning(sd3.random_text(family, 2))
    x = torch.randn(2, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        guided = family.teacher.guided_x0(x, torch.tensor([900.0, 100.0]), cond, 7.0)
    assert guided.isfinite().all() and guided.std() > 0.1


def test_weights_in_16_bits_answer_as_the_rounded_weights_in_32():
    family = random_family(64, "fp32", "fp32", torch.device("cpu"), small=True)
    cond, x = family.conditioning(random_text(family, 2)), torch.randn(2, *family.latent_shape)
    t = torch.tensor([999.0, 249.0])
    net = family.base.net
    for parameter in net.parameters():
        parameter.data = parameter.data.bfloat16().float()
    plain = family.teacher.x0(x, t, cond)
    size = sum(p.numel() * p.element_size() for p in net.parameters())
    store_in(net, torch.bfloat16)
    assert is_stored(net)
    assert sum(p.numel() * p.element_size() for p in net.parameters()) == size / 2
    torch.testing.assert_close(family.teacher.x0(x, t, cond), plain, rtol=1e-5, atol=1e-5)
    student = family.base.twin().add_adapter("student", 4, 4.0)
    assert {p.dtype for p in student.parameters} == {torch.float32}
    with torch.no_grad():
        for parameter in student.parameters:
            parameter.normal_(std=0.05)
    merged = student.merged()
    assert not is_stored(merged)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    torch.testing.assert_close(student.plain().x0(x, t, cond), student.x0(x, t, cond), rtol=1e-4, atol=1e-4)
    assert not is_stored(stored_in_fp32(net))
    torch.testing.assert_close(family.teacher.x0(x, t, cond), plain)
    assert random_text(family, 1)["context"].shape == (1, TOKENS, 64)


def test_compiled_blocks_train_alike(monkeypatch):
    """With a compiler that does nothing: what is under test is which blocks are compiled, and that roles still switch
    adapters inside them, with recomputation."""
    compiled = []

    def compile_alike(block, *args, **kwargs):
        compiled.append(block)
        block._compiled_call_impl = torch.compile(block._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_alike)
    found = []
    for compiles in (False, True):
        sets = [*SMALL, "train.micro_batch=1", "optim.warmup_images=0", "model.checkpointing=true",
                f"gan.sam={asset('shapes-sam')}", f"model.compile={compiles}"]  # fmt: skip
        recipe = load_recipe("sdxl-4step-lora", sets)
        torch.manual_seed(0)
        family = random_family(64, "fp32", "fp32", torch.device("cpu"), small=True)
        state = State.new(recipe, family)
        objective, data = Objective(recipe, family, family.grid(4)), RandomData(family, 1)
        found.append([iteration(recipe, objective, state, data, number) for number in range(2)])
    blocks = [m for m in family.base.net.modules() if type(m).__name__ == "BasicTransformerBlock"]
    assert len({id(block) for block in compiled}) == len(blocks)
    for plain, other in zip(*found, strict=True):
        assert other == pytest.approx(plain, rel=1e-4)
