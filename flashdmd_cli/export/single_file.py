"""Export as one file in the layout of the original code, for ComfyUI, A1111 and diffusers' `from_single_file`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flashdmd_cli.export.diffusers import scheduler
from flashdmd_cli.export.job import File, Job, weights_file
from flashdmd_cli.export.loading import load_single_file, with_grid
from flashdmd_cli.export.modelspec import modelspec
from flashdmd_cli.families.files import DENOISER
from flashdmd_cli.families.storage import DTYPES
from flashdmd_cli.families.stored import Stored

FP8 = "fp8"


def files(job: Job) -> list[File]:
    """The whole pipeline in one file, and the scheduler beside it, which such a file cannot contain."""
    parts = {part: job.tensors(part) for part in job.networks}
    configs = {part: job.config(part) for part in job.networks}
    tensors = job.facts.module.single_file(parts, configs, job.scheduler_config)
    stored = {name: value.to(rounded(name, value, dtype(job))) for name, value in tensors.items()}
    return [weights_file(name(job), stored, modelspec(job), "ComfyUI, A1111, diffusers"), scheduler(job)]


def rounded(name: str, value: Stored, dtype: str) -> torch.dtype:
    """The number format of a tensor. With `fp8`, the matrices of the denoiser have 8 bits (1 sign, 4 exponent, 3
    fraction), as ComfyUI reads them, and all else has 16."""
    if dtype != FP8:
        return DTYPES[dtype]
    is_matrix = name.startswith(DENOISER) and len(value.shape) > 1 and not name.endswith("pos_embed")
    return torch.float8_e4m3fn if is_matrix else torch.float16


def name(job: Job) -> str:
    return f"{job.title}.safetensors"


def dtype(job: Job) -> str:
    return job.dtype("fp16")


def is_exact(job: Job) -> bool:
    return True


def load(job: Job, out: Path) -> Any:
    return with_grid(load_single_file(out / name(job), job), out, job)
