"""Losses of adapters on a base in 32, 16 and 8 bits: the same iterations of the embedded world.

    python docs/experiments/int8.py OUT [--iterations 12]

Prints, for each loss, the mean of the absolute differences from 32 bits, divided by the mean of its absolute values.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.workflows.distill import distill
from flashdmd_cli.workflows.prepare import prepare_shapes

LOSSES = ("dm", "fake", "gan", "discriminator")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--iterations", type=int, default=12)
    options = parser.parse_args()
    prepare_shapes(options.out / "data", num=256)
    rows = {}
    for weights in ("fp32", "bf16", "int8"):
        sets = [f"model.weights={weights}", "model.form=lora", "model.lora_rank=16", "model.precision=fp32",
                "optim.lr_student=1e-4", "optim.lr_fake=5e-5", "optim.warmup_images=0", "train.batch=4",
                "train.micro_batch=4", "train.log_every=1", "train.preview_every=null"]  # fmt: skip
        recipe = load_recipe("shapes-4step", [*sets, f"train.iterations={options.iterations}"])
        distill(recipe, options.out / "data", options.out / weights)
        rows[weights] = read_metrics(options.out / weights)
    for weights in ("bf16", "int8"):
        apart = {}
        for loss in LOSSES:
            pairs = [(row[loss], exact[loss]) for row, exact in zip(rows[weights], rows["fp32"], strict=True)]
            apart[loss] = sum(abs(a - b) for a, b in pairs) / sum(abs(b) for _, b in pairs)
        print(json.dumps({"weights": weights, "relative difference": apart}))


if __name__ == "__main__":
    main()
