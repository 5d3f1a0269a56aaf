"""Export as a LoRA with the keys of kohya's scripts, which ComfyUI and A1111 read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flashdmd_cli.export import lora
from flashdmd_cli.export.diffusers import scheduler
from flashdmd_cli.export.job import File, Job
from flashdmd_cli.export.loading import load_teacher, with_grid
from flashdmd_cli.export.lora import dtype, is_exact
from flashdmd_cli.export.modelspec import modelspec
from flashdmd_cli.families.storage import DTYPES
from flashdmd_cli.families.stored import Stored, constant, file_size, write_stored

__all__ = ["dtype", "files", "is_exact", "load"]


def files(job: Job) -> list[File]:
    """The LoRA, named after the student, since ComfyUI and A1111 list LoRAs by their file names."""
    kept = lora.Kept()
    tensors = kohya_keys(job, lora.lora_factors(job, kept))
    ranks = {str(value.shape[0]) for key, value in tensors.items() if key.endswith("lora_down.weight")}
    metadata = {
        **modelspec(job, "lora"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": max(ranks, key=int),
        "ss_network_alpha": max(ranks, key=int),
        **job.labels.kohya,
    }

    def write(at: Path) -> None:
        # An approximation is computed only once if it is exported with both kinds of keys.
        if (done := at.with_name(lora.NAME)).is_file():
            write_stored(at, kohya_keys(job, lora.read_factors(done, job.denoiser)), metadata)
        else:
            write_stored(at, tensors, metadata)
            lora.write_table(job, kept, at.with_name(lora.TABLE))

    file = File(name(job), file_size(tensors, metadata), write, readers="ComfyUI, A1111")
    return [file, scheduler(job), *lora.table(job)]


def name(job: Job) -> str:
    return f"{job.title}-lora.safetensors"


def kohya_keys(job: Job, factors: lora.Factors) -> dict[str, Stored]:
    """`lora_unet_LAYER.lora_down.weight`, `.lora_up.weight` and `.alpha` (the rank, for a scale of 1)."""
    to, config = DTYPES[dtype(job)], job.config(job.denoiser)
    found = {}
    for layer, (down, up) in factors.items():
        module = job.facts.module.kohya_name(layer, config)
        found[f"{module}.alpha"] = constant(torch.tensor(float(down.shape[0]))).to(to)
        found[f"{module}.lora_down.weight"] = down.to(to)
        found[f"{module}.lora_up.weight"] = up.to(to)
    return found


def load(job: Job, out: Path) -> Any:
    pipeline = with_grid(load_teacher(job), out, job)
    pipeline.load_lora_weights(out, weight_name=name(job))
    return pipeline
