"""Write a run's result with a student like one of which all weights were trained, at a teacher's own size.

    python docs/experiments/true_size_student.py TEACHER OUT [--rank 16] [--share 0.5]

TEACHER is a pipeline folder of SDXL or SD3, such as that of true_size.py. Every weight of its denoiser is moved by a
matrix of low rank and by noise: `share` of the squared norm of the change is of low rank, and the change is 5% of the
weight. Exports of OUT can then be measured without a training. Works one tensor at a time.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor

from flashdmd_cli.families.files import Source
from flashdmd_cli.families.parts import stored_network
from flashdmd_cli.families.registry import family_at
from flashdmd_cli.families.stored import write_stored
from flashdmd_cli.runs.manifest import GridRecord, Manifest, write_manifest
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.workflows.inputs.teachers import teacher_record

CHANGE = 0.05
"""Standard deviation of the change of a weight, in standard deviations of the weights."""

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("teacher", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--rank", type=int, default=16)
parser.add_argument("--share", type=float, default=0.5)
given = parser.parse_args()
generator = torch.Generator().manual_seed(0)


def moved(weight: Tensor) -> Tensor:
    """A weight of the student from the teacher's; a meta tensor, which asks for the shape, is returned as it is."""
    if weight.is_meta:
        return weight
    wide = weight.float()
    change = torch.randn(wide.shape, generator=generator) * (1 - given.share) ** 0.5
    if wide.ndim > 1:
        up = torch.randn(len(wide), given.rank, generator=generator)
        down = torch.randn(given.rank, wide[0].numel(), generator=generator)
        change += (up @ down).reshape(wide.shape) * (given.share / given.rank) ** 0.5
    scale = wide.std() if wide.numel() > 1 and wide.std() > 0 else torch.tensor(1e-2)
    return (wide + CHANGE * scale * change).to(weight.dtype)


source = Source(given.teacher)
student = given.out / "student"
student.mkdir(parents=True)
facts = family_at(given.teacher)
denoiser = facts.networks[0]
tensors = {name: value.changed(moved) for name, value in stored_network(facts, source, denoiser).items()}
write_stored(student / "diffusion_pytorch_model.safetensors", tensors, {})
shutil.copy(given.teacher / denoiser / "config.json", student / "config.json")
recipe = load_recipe(f"{facts.name}-4step", flags={"teacher": str(given.teacher)})
grid = facts.module.grid(recipe.grid.steps)
write_manifest(
    given.out,
    Manifest(
        kind="distill",
        family=facts.name,
        grid=GridRecord(scheduler=grid.scheduler, config=grid.config),
        teacher=teacher_record(str(given.teacher), source),
        recipe=recipe.model_dump(mode="json"),
    ),
)
