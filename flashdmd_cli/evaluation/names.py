"""Names of metrics and layouts, so that options can be checked before torch is loaded, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence

from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.nearest import nearest

METRIC_NAMES = (
    "composition", "exact", "extra_objects", "frechet", "high_frequency", "coverage", "pattern_coverage", "diversity",
    "image_reward", "clip", "pickscore", "hpsv2", "hpsv21", "mps",
    "fid", "patch_fid", "kid", "fd_dinov2", "precision", "recall", "vendi", "lpips",
    "brightness", "saturation", "contrast", "colourfulness", "clipped", "laplacian", "entropy",
)  # fmt: skip
"""Every metric, in the order of `metrics/registry.py`."""
LAYOUTS = ("geneval", "dpg", "t2i-compbench")
"""Benchmarks in whose layout pictures can be written."""


def check_metric_names(names: Sequence[str], flag: str = "--metrics") -> None:
    """UsageError for a name that is unknown or there twice."""
    for name in names:
        if name not in METRIC_NAMES:
            problem = f"{flag} {name}: no such metric{nearest(name, METRIC_NAMES)}"
            raise UsageError(problem, hint=f"one of {', '.join(METRIC_NAMES)}")
        if list(names).count(name) > 1:
            raise UsageError(f"{flag} {name}: is there twice", hint="name it once")
