"""Our ImageReward and HPSv2 against the authors' packages, on the same small random weights and 64 pictures.

From the top of the repository: `python docs/experiments/parity.py`. Builds the environment of `--backend upstream`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, ".")
from flashdmd_cli.evaluation.backends.upstream import METRICS as UPSTREAM  # noqa: E402
from flashdmd_cli.evaluation.backends.upstream import build, upstream_scores  # noqa: E402
from flashdmd_cli.evaluation.metrics.instruments import Instruments  # noqa: E402
from flashdmd_cli.evaluation.metrics.registry import METRICS  # noqa: E402
from flashdmd_cli.runs.reporter import SilentReporter  # noqa: E402
from tests import stand_ins  # noqa: E402
from tests.test_scorers import pictures_of, rows_of  # noqa: E402

NUM = 64


def main() -> None:
    """A line for each metric and size of pictures."""
    folder = Path(tempfile.mkdtemp())
    weights = stand_ins.write_all(folder / "weights")
    started = time.perf_counter()
    print(build(SilentReporter()), f"{time.perf_counter() - started:.0f} s")
    print(f"{'metric':14} {'pictures':>10} {'spread':>10} {'largest difference':>20} {'ours':>8} {'upstream':>9}")
    for size in ((64, 64), (48, 75), (256, 256), (300, 200)):
        pictures, rows = pictures_of(NUM, *size), rows_of(NUM)
        paths = [folder / f"{i}-{size[0]}-{size[1]}.png" for i in range(NUM)]
        for path, picture in zip(paths, pictures.permute(0, 2, 3, 1).numpy(), strict=True):
            Image.fromarray(picture).save(path)
        for name in UPSTREAM:
            metric = METRICS[name](Instruments(weights, download=False))
            started = time.perf_counter()
            ours = torch.cat([metric.measure(pictures[i : i + 16], rows[i : i + 16]) for i in range(0, NUM, 16)])
            middle = time.perf_counter()
            theirs = torch.tensor(upstream_scores(name, paths, [row.prompt for row in rows], weights))
            ended = time.perf_counter()
            print(
                f"{name:14} {size[0]:>4} x {size[1]:<4} {ours.std():10.4f} {(ours - theirs).abs().max():20.2e}"
                f" {middle - started:6.1f} s {ended - middle:7.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
