"""How much a student's pictures change if the weights of a network are rounded to 16 bits, for each network.

    python docs/experiments/rounding.py runs/student

Everything computes in float32, and all rows use the same captions and the same noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashdmd_cli.core.rollout import rollout
from flashdmd_cli.export.check import compare
from flashdmd_cli.runs.manifest import read_manifest
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.workflows.export import new_job

CAPTIONS = (
    "a plain red circle above a dotted blue ring",
    "a striped green square left of a plain blue circle",
    "a dotted red ring below a striped blue square",
    "a plain blue square right of a plain green ring",
)

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("student", type=Path)
given = arguments.parse_args()
job = new_job(given.student, read_manifest(given.student), (), 64, SilentReporter())
family: Any = job.facts.module.load(job.source, "fp32", "fp32")
encoders = [name for name in job.networks if name.startswith("text_encoder")]
nets = {name: family.base.net if name == job.denoiser else getattr(family.pipeline, name) for name in job.networks}


def pictures() -> list[Tensor]:
    """A picture for each caption, (1, 3, H, W) on [0, 1]."""
    found = []
    for number, caption in enumerate(CAPTIONS):
        cond = family.encode([caption])
        first = torch.randn(1, *family.latent_shape, generator=torch.Generator().manual_seed(10 * number))
        later = torch.Generator().manual_seed(10 * number + 1)
        with torch.no_grad():
            latents = rollout(
                lambda x, t, cond=cond: family.teacher.x0(x, t, cond),
                family.schedule,
                family.grid(job.steps).timesteps,
                first,
                lambda _, first=first, later=later: torch.randn(first.shape, generator=later),
            )
            found.append(family.decode(latents).clamp(-1, 1) / 2 + 0.5)
    return found


wanted = pictures()
for name in ("float16", "bfloat16"):
    for parts in ([job.denoiser], ["vae"], encoders, list(nets)):
        kept = {part: {key: value.clone() for key, value in nets[part].state_dict().items()} for part in parts}
        for part in parts:
            nets[part].load_state_dict({key: value.to(getattr(torch, name)) for key, value in kept[part].items()})
        differences = [compare(one, other) for one, other in zip(pictures(), wanted, strict=True)]
        largest = [f"{each.largest:.2g}" for each in differences]
        mean = sum(each.mean for each in differences) / len(differences)
        print(f"| {name} | {', '.join(parts)} | {', '.join(largest)} | {mean:.2g} |", flush=True)
        for part in parts:
            nets[part].load_state_dict(kept[part])
