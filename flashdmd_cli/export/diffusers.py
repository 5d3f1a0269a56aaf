"""Export as a stock diffusers pipeline folder, which can be used without this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers

from flashdmd_cli.export.job import File, Job, copy_of, text_file, weights_file
from flashdmd_cli.export.loading import load_stock
from flashdmd_cli.families.files import read_json, stem
from flashdmd_cli.families.parts import INDEX
from flashdmd_cli.families.storage import DTYPES
from flashdmd_cli.families.stored import Stored

MAX_SHARD = 10_000_000_000
"""Bytes of weights per file, as in diffusers; more are divided into several files."""


def files(job: Job) -> list[File]:
    """The student's denoiser, the teacher's other parts, and the few-step scheduler.

    Use: `DiffusionPipeline.from_pretrained(out)(prompt, num_inference_steps=steps, guidance_scale=1)`. Of several
    number formats, the first has the usual file names, and the others are variants: `from_pretrained(out,
    variant="fp16")`.
    """
    found = [text_file(INDEX, _as_json(model_index(job))), scheduler(job)]
    for part in job.networks:
        found.append(text_file(f"{part}/config.json", _as_json(job.config(part))))
        tensors = job.tensors(part)
        for number, name in enumerate(job.dtypes or ("",)):
            stored = {key: value.to(DTYPES[name] if name else None) for key, value in tensors.items()}
            found += shards(part, stored, name if number else "")
    for part in job.settings:
        if part != "scheduler":
            found += settings_files(job.source.folder / part, part)
    return found


def dtype(job: Job) -> str:
    return job.dtype(job.student_dtype)


def is_exact(job: Job) -> bool:
    return True


def load(job: Job, out: Path) -> Any:
    return load_stock(out, job)


def model_index(job: Job) -> dict[str, Any]:
    """The contents of `model_index.json`: the teacher's, with the base pipeline's class and the student's scheduler."""
    index = read_json(job.source.folder / INDEX)
    index = {key: value for key, value in index.items() if key != "_name_or_path"}
    for key, value in index.items():
        if isinstance(value, list) and key not in job.networks + job.settings:
            index[key] = [None, None]
    name = job.facts.pipeline_class
    return index | {
        "_class_name": name,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", job.scheduler],
    }


def scheduler(job: Job) -> File:
    """The scheduler's configuration, which returns the timesteps that the student was trained on."""
    stock = getattr(diffusers, job.scheduler).from_config(job.scheduler_config)
    return text_file("scheduler/scheduler_config.json", stock.to_json_string())


def settings_files(folder: Path, part: str) -> list[File]:
    """Copies of the files of a tokenizer, with a vocabulary for versions before transformers 5 if it has none."""
    found = [
        copy_of(path, f"{part}/{path.name}")
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".")
    ]
    whole = folder / "tokenizer.json"
    kind = read_json(whole).get("model", {}).get("type") if whole.is_file() else None
    if kind == "BPE" and not (folder / "vocab.json").is_file():
        from tokenizers import Tokenizer

        with TemporaryDirectory() as aside:
            paths = Tokenizer.from_file(str(whole)).model.save(aside)
            found += [text_file(f"{part}/{Path(path).name}", Path(path).read_bytes().decode()) for path in paths]
    return found


def shards(part: str, tensors: Mapping[str, Stored], variant: str) -> list[File]:
    """The weight files of a network: one, or several with an index of the tensors in each."""
    start = stem(part)
    ending = f".{variant}" if variant else ""
    groups: list[dict[str, Stored]] = [{}]
    for name, value in tensors.items():
        if groups[-1] and sum(each.nbytes for each in groups[-1].values()) + value.nbytes > MAX_SHARD:
            groups.append({})
        groups[-1][name] = value
    if len(groups) == 1:
        return [weights_file(f"{part}/{start}{ending}.safetensors", tensors)]
    names = [f"{start}{ending}-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    table = {name: file for file, group in zip(names, groups, strict=True) for name in group}
    index = {"metadata": {"total_size": sum(value.nbytes for value in tensors.values())}, "weight_map": table}
    return [
        *(weights_file(f"{part}/{file}", group) for file, group in zip(names, groups, strict=True)),
        text_file(f"{part}/{start}.safetensors.index{ending}.json", _as_json(index)),
    ]


def _as_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
