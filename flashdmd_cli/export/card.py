"""The model card: `README.md` of an export, as the hub displays it, rendered from `card.md.j2`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flashdmd_cli.export import kohya, lora, single_file
from flashdmd_cli.export.job import Job
from flashdmd_cli.export.loading import absent_parts

HUB_LICENSES = {"apache-2.0", "mit", "openrail", "openrail++", "creativeml-openrail-m", "cc-by-nc-4.0"}
"""Identifiers that the hub knows; others are `other` with a name."""


@dataclass(frozen=True)
class Use:
    """How one format is used."""

    format: str
    about: str
    code: str
    """Lines of Python; empty for formats that other programs read."""


@dataclass(frozen=True)
class TeacherName:
    """How the teacher is named in a text, and in lines of Python."""

    name: str
    code: str
    """Expression for its path or its repository on the hub."""
    imports: str = ""
    """Line that the expression needs before it."""
    note: str = ""
    """What to know about the name, in brackets."""


def uses(formats: Iterable[str], job: Job, place: str, on_hub: bool, base: TeacherName, prompt: str) -> list[Use]:
    """For each format the lines of Python that load it and draw a picture.

    `place` is the path of the export's folder from where they run, or its repository if it is `on_hub`; `base` the
    teacher.
    """
    kind = job.facts.pipeline_class
    absent = "".join(f", {name}=None" for name in absent_parts(job.source.folder, job))
    draw = (
        f'picture = pipeline("{prompt}", num_inference_steps={job.steps}, guidance_scale=1.0).images[0]\n'
        'picture.save("picture.png")'
    )
    scheduler = f'pipeline.scheduler = {job.scheduler}.from_pretrained("{place}", subfolder="scheduler")'
    imports = f"from diffusers import {', '.join(sorted((kind, job.scheduler)))}\n{base.imports}"
    on = f"{base.name} ({base.note})" if base.note else base.name
    teacher = "from_single_file" if base.name.endswith(".safetensors") else "from_pretrained"
    found = []
    for name in formats:
        if name == "diffusers":
            lines = [
                "from diffusers import DiffusionPipeline\n",
                f'pipeline = DiffusionPipeline.from_pretrained("{place}"{absent})',
                draw,
            ]
            found.append(Use(name, "As a pipeline of diffusers:", "\n".join(lines)))
        elif name == "lora":
            lines = [
                imports,
                f"pipeline = {kind}.{teacher}({base.code}{absent})",
                f'pipeline.load_lora_weights("{place}", weight_name="{lora.NAME}")',
                scheduler,
                draw,
            ]
            found.append(Use(name, f"As a LoRA on {on}:", "\n".join(lines)))
        elif name == "lora-kohya":
            about = f"As a LoRA for ComfyUI (in `models/loras/`) and A1111 (in `models/Lora/`): `{kohya.name(job)}`."
            found.append(Use(name, about, ""))
        elif name == "single-file":
            file = single_file.name(job)
            path = f"https://huggingface.co/{place}/blob/main/{file}" if on_hub else f"{place}/{file}"
            lines = [
                imports,
                f'pipeline = {kind}.from_single_file("{path}", config={base.code}{absent})',
                scheduler,
                draw,
            ]
            about = f"As one file for ComfyUI and A1111 (`{file}`), read by diffusers with the configuration of {on}:"
            found.append(Use(name, about, "\n".join(lines)))
        elif name == "onnx":
            if on_hub:  # a file with a second one for its weights, so both are downloaded
                lines = [
                    "import onnxruntime\nfrom huggingface_hub import snapshot_download\n",
                    f'folder = snapshot_download("{place}", allow_patterns="{job.denoiser}/*")',
                ]
            else:
                lines = ["import onnxruntime\n", f'folder = "{place}"']
            lines += [
                f'session = onnxruntime.InferenceSession(f"{{folder}}/{job.denoiser}/model.onnx")',
                "print([each.name for each in session.get_inputs()])",
            ]
            found.append(Use(name, "Without PyTorch, with onnxruntime:", "\n".join(lines)))
    return found


def license_facts(name: str | None) -> dict[str, Any]:
    """The licence as the hub writes it, and whether the hub knows it."""
    return {"name": name or "", "id": (name or "").lower(), "known": (name or "").lower() in HUB_LICENSES}


def render(facts: Mapping[str, Any]) -> str:
    """The text of a model card; a missing fact is an error."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("card.md.j2").render(facts)
