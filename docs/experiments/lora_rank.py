"""Composition accuracy and Fréchet distance of a student whose weights are its teacher's plus a LoRA, for each rank.

    python docs/experiments/lora_rank.py runs/demo/student --ranks 1 4 16 64 --limit 128

All rows use the same captions and the same noise.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from flashdmd_cli.core.pictures import as_bytes
from flashdmd_cli.evaluation.measuring import Evaluator
from flashdmd_cli.evaluation.suites.spec import read_suite
from flashdmd_cli.export.lora import Kept, truncated_layers, unreachable
from flashdmd_cli.families.base import Base
from flashdmd_cli.runs.manifest import read_manifest
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.workflows.export import new_job
from flashdmd_cli.workflows.inputs.drawers import student_drawer

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("student", type=Path)
arguments.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 16, 64])
arguments.add_argument("--limit", type=int, default=128)
given = arguments.parse_args()
drawer = student_drawer(given.student)
suite = read_suite("shapes-val", given.limit, only=["composition", "frechet"])
rows = [row for row in suite.rows if row.counts]
evaluator = Evaluator(suite)


def measure(net: torch.nn.Module, name: str, share: float | None, megabytes: float | None) -> None:
    """Draw with `net` and print a row of the table."""
    drawn = replace(drawer, net=Base(drawer.family, net.eval().requires_grad_(False)).view())
    pictures = as_bytes(drawn.draw([row.prompt for row in rows], 0, SilentReporter()))
    values = evaluator.evaluate([(pictures, rows)])
    cells = [name, "" if share is None else f"{share:.1%}", "" if megabytes is None else f"{megabytes:.1f}"]
    print("|", " | ".join([*cells, f"{values['composition']:.3f}", f"{values['frechet']:.1f}"]), "|", flush=True)


student = drawer.net.base.net


def in_fp8(net: torch.nn.Module) -> torch.nn.Module:
    """`net` with its matrices rounded as `--dtype fp8` rounds them."""
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    return net


print("| rank | share of the change | MB in fp16 | composition | Fréchet distance |\n|---|---|---|---|---|")
measure(student, "student (all weights)", None, None)
measure(in_fp8(drawer.net.base.copy(trainable=False).net), "student in fp8", None, None)
measure(drawer.family.base.net, "teacher with the student's sampler, no LoRA", None, None)
for rank in given.ranks:
    job = new_job(given.student, read_manifest(given.student), (), rank, SilentReporter())
    kept = Kept()
    net = drawer.family.base.copy(trainable=False).net
    weights = dict(net.named_parameters())
    num_values = 0
    for layer, (down, up) in truncated_layers(job, kept):
        matrices = down.read(), up.read()
        num_values += sum(matrix.numel() for matrix in matrices)
        weight = weights[f"{layer}.weight"]
        weight.data += (matrices[1].flatten(1) @ matrices[0].flatten(1)).view(weight.shape)
    energy = [row[2] for row in kept.layers.values()], [row[3] for row in kept.layers.values()]
    measure(net, str(rank), sum(energy[0]) / (sum(energy[1]) + unreachable(job)), 2 * num_values / 1e6)
