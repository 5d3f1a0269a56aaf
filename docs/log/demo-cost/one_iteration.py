"""Where the seconds of one iteration of the demo go.   one_iteration.py fp32|bf16 [--ops]"""

from __future__ import annotations

import sys
import time

import torch
from flashdmd_cli.cli.training_run import find_sam
from flashdmd_cli.models.sdxl import SDXLFamily
from flops import Rows
from torch.profiler import ProfilerActivity, profile

from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.training.distill import iteration
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective


def main() -> None:
    precision = sys.argv[1]
    recipe = load_recipe("shapes-4step", [f"model.precision={precision}"])
    family = SDXLFamily.load(asset("shapes-sdxl"), precision)
    state = State.new(recipe, family, find_sam(recipe))
    o, data = Objective(recipe, family, family.grid(recipe.grid.steps)), Rows()

    def one(number: int) -> float:
        began = time.perf_counter()
        iteration(recipe, o, state, data, number)
        return time.perf_counter() - began

    one(0)
    print(precision, torch.backends.cpu.get_cpu_capability(), "seconds:", *(f"{one(n):.2f}" for n in range(1, 6)))
    if "--ops" in sys.argv:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            one(0)
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=28, max_name_column_width=60))


if __name__ == "__main__":
    main()
