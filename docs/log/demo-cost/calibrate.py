"""What an iteration costs in passes of the denoiser, for the demo's forecast.   calibrate.py fp32|bf16 [BATCH]

Seconds of the processor, so that work beside it hardly counts: run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from flashdmd_cli.cli.training_run import find_sam
from flashdmd_cli.models.sdxl import SDXLFamily
from flops import CAPTION, Rows

from flashdmd_cli.core.rollout import at
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.training.distill import iteration
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective


def seconds(call: Callable[[], object], rounds: int = 3) -> float:
    seen = []
    for _ in range(rounds + 1):
        began = time.process_time()
        call()
        seen.append(time.process_time() - began)
    return statistics.median(seen[1:])


def main() -> None:
    precision, n = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 16
    recipe = load_recipe("shapes-4step", [f"train.batch={n}", f"train.micro_batch={n}"])
    family = SDXLFamily.load(asset("shapes-sdxl"), precision)
    state = State.new(recipe, family, find_sam(recipe))
    o, data = Objective(recipe, family, family.grid(4)), Rows()
    x, cond = torch.randn(n, *family.latent_shape), family.encode([CAPTION] * n)
    t = at(500, x)

    def forward() -> object:
        with torch.no_grad():
            return family.predict_x0(family.teacher, x, t, cond)

    def decode() -> object:
        leaf = x.detach().requires_grad_()
        with family.autocast():
            return family.decode(leaf).float().mean().backward()

    def draw() -> object:
        with torch.no_grad():
            return family.decode(x)

    d, v, w = seconds(forward), seconds(decode), seconds(draw)
    turns = [seconds(lambda number=number: iteration(recipe, o, state, data, number), 1) for number in range(6)]
    mean = statistics.mean(turns)
    print(
        f"{precision} {torch.backends.cpu.get_cpu_capability()} batch {n}: forward {d:.3f}  decode and back {v:.3f}  "
        f"decode {w:.3f}  iteration {mean:.3f} = {mean / d:.1f} forward = decode + {(mean - v) / d:.1f} forward"
    )


if __name__ == "__main__":
    main()
