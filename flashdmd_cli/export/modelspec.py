"""The metadata of single files: Stability AI's ModelSpec, which model managers and ComfyUI display."""

from __future__ import annotations

import time

from flashdmd_cli.core.grid import FLOW_SCHEDULER
from flashdmd_cli.export.job import Job


def modelspec(job: Job, kind: str = "") -> dict[str, str]:
    """The entries of a file's metadata; `kind` is `lora` for a LoRA."""
    steps = job.steps
    side = job.facts.resolution
    found = {
        "sai_model_spec": "1.0.0",
        "architecture": job.labels.architecture + (f"/{kind}" if kind else ""),
        "implementation": "diffusers" if kind else "https://github.com/Stability-AI/generative-models",
        "title": job.title,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "resolution": f"{side}x{side}",
        "prediction_type": "v" if job.scheduler_config.get("prediction_type") == "v_prediction" else "epsilon",
        "description": f"A student of {steps} steps, distilled from {job.teacher} with Flash-DMD.",
        "usage_hint": f"{steps} steps, guidance scale (CFG) 1, LCM sampler",
        "license": job.license or "",
    }
    if job.scheduler == FLOW_SCHEDULER:
        del found["prediction_type"]
    return {f"modelspec.{key}": value for key, value in found.items() if value}
