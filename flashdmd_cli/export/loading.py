"""Loading of exports and teachers with stock diffusers, as their users do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from flashdmd_cli.export.job import Job
from flashdmd_cli.families.files import read_json, vae_folder
from flashdmd_cli.families.parts import INDEX
from flashdmd_cli.families.storage import DTYPES, store_in


def pipeline_class(job: Job) -> Any:
    """The stock pipeline of the student's family."""
    return getattr(diffusers, job.facts.pipeline_class)


def absent_parts(folder: Path, job: Job) -> dict[str, None]:
    """Arguments of `from_pretrained` for the parts in the index of a pipeline folder that the student's pipeline does
    not have, such as `text_encoder_3=None`.

    Without them, stock pipelines refuse to load a folder without a part that its index lists, as downloads lack T5, or
    without one that their class does not call optional.
    """
    parts, optional = job.networks + job.settings, pipeline_class(job)._optional_components
    return {
        name: None
        for name, kind in read_json(folder / INDEX).items()
        if isinstance(kind, list) and name not in parts and not (kind == [None, None] and name in optional)
    }


def load_stock(folder: Path, job: Job) -> Any:
    """The pipeline in a folder, computing in float32; the denoiser keeps 16 bits if the student is stored in them."""
    dtypes = {"default": torch.float32, job.denoiser: DTYPES[job.check_dtype]}
    absent = absent_parts(folder, job)
    return computing_in_fp32(pipeline_class(job).from_pretrained(folder, dtype=dtypes, **absent), job)


def load_teacher(job: Job) -> Any:
    """The teacher's pipeline with the student's scheduler: what a user puts a LoRA on."""
    source = job.source
    if source.weights.is_file():
        pipeline = load_single_file(source.weights, job)
    else:
        pipeline = load_stock(source.weights, job)
    if source.vae is not None and source.vae.is_dir():
        pipeline.vae = diffusers.AutoencoderKL.from_pretrained(vae_folder(source.vae))
    elif source.vae is not None:
        config = str(source.folder)
        pipeline.vae = diffusers.AutoencoderKL.from_single_file(str(source.vae), config=config, subfolder="vae")
    return pipeline


def load_single_file(path: Path, job: Job) -> Any:
    """The pipeline in one file in the original layout; configurations and tokenizers come from the teacher."""
    config = str(job.source.folder)
    # The pipeline's loader knows one format for all parts. Text encoders and autoencoder are read in float32, in which
    # a denoiser of true size would take 10 GB, so that is read beforehand, in the format of the comparison.
    denoiser = getattr(diffusers, read_json(job.source.folder / INDEX)[job.denoiser][1]).from_single_file(
        str(path), config=config, subfolder=job.denoiser, dtype=DTYPES[job.check_dtype], local_files_only=True
    )
    pipeline = pipeline_class(job).from_single_file(
        str(path),
        config=config,
        dtype=torch.float32,
        local_files_only=True,
        **{job.denoiser: denoiser},
        **absent_parts(job.source.folder, job),
        **encoders_apart(path, job),
    )
    return computing_in_fp32(pipeline, job)


def encoders_apart(path: Path, job: Job) -> dict[str, Any]:
    """The text encoders, where diffusers cannot read them from one file itself.

    It tells the two encoders apart by their width, which is the same in some small models, and takes the projection of
    SD3's first encoder to be the identity, as in the published model. The encoders then come from the teacher's
    family, which reads them strictly.
    """
    parts = ("text_encoder", "text_encoder_2")
    if not set(parts) <= set(job.networks):
        return {}
    widths = {job.config(part)["hidden_size"] for part in parts}
    projection = job.tensors(parts[0]).get("text_projection.weight")  # SDXL's first encoder has none
    if len(widths) == 2 and (projection is None or projection.read().float().equal(torch.eye(projection.shape[0]))):
        return {}
    family: Any = job.facts.module.load(job.source, "fp32", job.check_dtype)
    return {part: getattr(family.pipeline, part) for part in parts}


def with_grid(pipeline: Any, out: Path, job: Job) -> Any:
    """The pipeline with the scheduler in `out`."""
    pipeline.scheduler = getattr(diffusers, job.scheduler).from_pretrained(out, subfolder="scheduler")
    return pipeline


def computing_in_fp32(pipeline: Any, job: Job) -> Any:
    """The pipeline with all parts in float32, except that a denoiser of 16 bits keeps its weights in them."""
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module) and name != job.denoiser:
            part.float()
    net = getattr(pipeline, job.denoiser)
    if job.check_dtype == "fp32":
        net.float()
    else:
        store_in(net, DTYPES[job.check_dtype])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
