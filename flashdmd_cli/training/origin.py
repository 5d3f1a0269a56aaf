"""What stage 1 left for stage 2: the student from the checkpoint, fake score and discriminator from its last state."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from flashdmd_cli.models.adapters import add_lora, merge_lora
from flashdmd_cli.models.sdxl import SDXLFamily
from flashdmd_cli.runs.checkpoint import load_state, state_folder
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.training.state import Origin, fill, trainable

FAKE, HEADS = "fake.net.", "discriminator.net."


def load_origin(folder: Path, iteration: int, stage1: Recipe, recipe: Recipe, family: SDXLFamily) -> Origin:
    """The networks of the checkpoint in `folder`, which was trained for `iteration` iterations by `stage1`, on the CPU.

    Its last state is not part of the manifest and may be gone; then the fake score begins as the student, and the
    discriminator anew. Raises OSError or ValueError when `student/` cannot be read, InputError for a damaged state.
    """
    student = family.load_network(folder / "student")
    saved = state_folder(folder / "state", iteration)
    if not saved.is_dir():
        return Origin(student, student, None, iteration)
    try:
        tensors, _ = load_state(saved, "--from")
        heads = _part(tensors, HEADS) if _same_discriminator(stage1, recipe) else None
        return Origin(student, _fake(tensors, stage1, family, saved), heads, iteration, saved)
    except InputError as error:
        raise InputError(error.message, hint=f"delete {saved} and the fake score begins as the student") from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _fake(tensors: dict[str, Tensor], stage1: Recipe, family: SDXLFamily, saved: Path) -> nn.Module:
    """Stage 1's fake score as a plain network, its adapters merged."""
    net = trainable(family.teacher).cpu()
    if stage1.model.form == "lora":
        net = add_lora(net, stage1.model.lora_rank, stage1.model.lora_alpha)  # type: ignore[arg-type]
    fill(net, _part(tensors, FAKE), saved)
    return merge_lora(net).requires_grad_(False)


def _same_discriminator(one: Recipe, two: Recipe) -> bool:
    return one.gan.kind != "none" and (one.gan.kind, one.gan.sam) == (two.gan.kind, two.gan.sam)
