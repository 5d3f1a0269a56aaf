"""Export as a LoRA on the teacher, with the keys of diffusers and peft.

The adapters of a run are written as they are. A student whose weights were all trained is approximated: the difference
of each weight matrix to the teacher's by its largest singular values (Eckart and Young 1936).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashdmd_cli.export.diffusers import scheduler
from flashdmd_cli.export.job import File, Job
from flashdmd_cli.export.loading import load_teacher, with_grid
from flashdmd_cli.export.modelspec import modelspec
from flashdmd_cli.families.parts import stored_network
from flashdmd_cli.families.storage import DTYPES
from flashdmd_cli.families.stored import Stored, constant, file_size, read_stored, write_stored

NAME = "pytorch_lora_weights.safetensors"
"""The name that `load_lora_weights` looks for in a folder or repository."""
TABLE = "lora_layers.csv"
"""The share of each layer's change that an approximation keeps."""
Factors = Mapping[str, tuple[Stored, Stored]]
"""Layer -> matrices down (r, inputs, ...) and up (outputs, r, ...), whose product is the change of its weight."""
OVERSAMPLING, POWER_STEPS = 16, 4
"""Of the randomised decomposition of large matrices (Halko et al. 2011): further columns, and power iterations."""


@dataclass
class Kept:
    """How much of the difference between student and teacher an approximation keeps, in squared Frobenius norms."""

    layers: dict[str, tuple[tuple[int, ...], int, float, float]] = field(default_factory=dict)
    """Layer -> (shape, rank, kept, whole)."""
    rest: float = 0.0
    """Difference of the tensors that a LoRA cannot change: biases and norms."""

    def write(self, path: Path) -> None:
        """One row per layer; the last is for all tensors that a LoRA cannot change."""
        with path.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(("layer", "shape", "rank", "energy", "energy_kept"))
            for layer, (shape, rank, kept, whole) in self.layers.items():
                share = kept / whole if whole else 1.0
                rows.writerow((layer, "x".join(map(str, shape)), rank, f"{whole:.6g}", f"{share:.4f}"))
            rows.writerow(("biases and norms", "", 0, f"{self.rest:.6g}", "0.0000"))


def share_kept(table: Path) -> float:
    """The share of the difference of all weights that the approximation of a table keeps; 1 if there is none."""
    with table.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    whole = sum(float(row["energy"]) for row in rows)
    return sum(float(row["energy"]) * float(row["energy_kept"]) for row in rows) / whole if whole else 1.0


def files(job: Job) -> list[File]:
    """The LoRA, the scheduler beside it, and for an approximation the table of what it keeps."""
    kept = Kept()
    factors = diffusers_keys(job, lora_factors(job, kept))
    metadata = modelspec(job, "lora")

    def write(at: Path) -> None:
        write_stored(at, factors, metadata)
        write_table(job, kept, at.with_name(TABLE))

    # ComfyUI reads LoRAs by diffusers' names where there are no others, as of SD3.
    readers = "diffusers" if job.labels.kohya else "diffusers, ComfyUI"
    return [File(NAME, file_size(factors, metadata), write, readers=readers), scheduler(job), *table(job)]


def table(job: Job) -> list[File]:
    """The table of an approximation, which is written together with it; none for adapters."""
    return [] if job.adapter is not None else [File(TABLE, None, lambda at: None)]


def write_table(job: Job, kept: Kept, path: Path) -> None:
    """Write what an approximation keeps of each layer; nothing for adapters."""
    if job.adapter is None:
        kept.rest = unreachable(job)
        kept.write(path)


def dtype(job: Job) -> str:
    return job.dtype("fp32" if job.adapter is not None else "fp16")


def is_exact(job: Job) -> bool:
    return job.adapter is not None and not job.is_base_rounded


def load(job: Job, out: Path) -> Any:
    pipeline = with_grid(load_teacher(job), out, job)
    pipeline.load_lora_weights(out, weight_name=NAME)
    return pipeline


def diffusers_keys(job: Job, factors: Factors) -> dict[str, Stored]:
    """`unet.LAYER.lora_A.weight` and `unet.LAYER.lora_B.weight`, in the job's number format."""
    to = DTYPES[dtype(job)]
    return {
        f"{job.denoiser}.{layer}.lora_{side}.weight": matrix.to(to)
        for layer, pair in factors.items()
        for side, matrix in zip("AB", pair, strict=True)
    }


def lora_factors(job: Job, kept: Kept) -> Factors:
    """The adapters of the run, or an approximation of rank `job.rank`, which is computed when it is read."""
    if job.adapter is not None:
        return read_factors(job.adapter, job.denoiser)
    return dict(truncated_layers(job, kept))


def read_factors(path: Path, denoiser: str) -> Factors:
    """The matrices in a LoRA file with the keys of diffusers."""
    tensors = read_stored([path])
    layers = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        layer.removeprefix(f"{denoiser}."): (tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"])
        for layer in layers
    }


def save_factors(path: Path, denoiser: str, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Write matrices that are in memory, in float32, with the keys of diffusers."""
    tensors = {
        f"{denoiser}.{layer}.lora_{side}.weight": constant(matrix.float().cpu())
        for layer, pair in factors.items()
        for side, matrix in zip("AB", pair, strict=True)
    }
    write_stored(path, tensors, {})


def _teacher(job: Job) -> dict[str, Stored]:
    """The tensors of the teacher's denoiser."""
    return stored_network(job.facts, replace(job.source, denoiser=None), job.denoiser)


def truncated_layers(job: Job, kept: Kept) -> Iterator[tuple[str, tuple[Stored, Stored]]]:
    """Each layer with a weight matrix (or convolution) and the two matrices that approximate its change."""
    teacher = _teacher(job)
    for name, student in job.tensors(job.denoiser).items():
        if not name.endswith(".weight") or len(student.shape) not in (2, 4):
            continue
        layer, shape = name.removesuffix(".weight"), student.shape
        flat = (shape[0], student.nbytes // student.dtype.itemsize // shape[0])
        rank = min(job.rank, *flat)

        # The file takes first one and then the other matrix of a layer; both come from one decomposition.
        @lru_cache(maxsize=1)
        def pair(
            student: Stored = student, before: Stored = teacher[name], layer: str = layer, rank: int = rank
        ) -> Any:
            change = student.read().float() - before.read().float()
            down, up, energy = truncated(change.flatten(1), rank)
            kept.layers[layer] = (tuple(change.shape), rank, energy, change.square().sum().item())
            spread = (1,) * (change.ndim - 2)
            return down.reshape(rank, *change.shape[1:]), up.reshape(-1, rank, *spread)

        def down(pair: Any = pair) -> Tensor:
            found: Tensor = pair()[0]
            return found

        def up(pair: Any = pair) -> Tensor:
            found: Tensor = pair()[1]
            pair.cache_clear()
            return found

        yield (
            layer,
            (
                Stored((rank, *shape[1:]), torch.float32, down),
                Stored((shape[0], rank, *(1,) * (len(shape) - 2)), torch.float32, up),
            ),
        )


def truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best approximation of `matrix` (m, n) of a rank: down (rank, n), up (m, rank), and its squared norm.

    The singular values are divided evenly between the two. Large matrices are decomposed by a randomised method, which
    finds leading singular vectors to several digits.
    """
    if min(matrix.shape) <= 4 * (rank + OVERSAMPLING):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=rank + OVERSAMPLING, niter=POWER_STEPS)
        vh = v.T
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root, s[:rank].square().sum().item()


def unreachable(job: Job) -> float:
    """Squared norm of the change of all tensors that a LoRA cannot change."""
    teacher = _teacher(job)
    total = 0.0
    for name, student in job.tensors(job.denoiser).items():
        if not (name.endswith(".weight") and len(student.shape) in (2, 4)):
            total += (student.read().float() - teacher[name].read().float()).square().sum().item()
    return total
