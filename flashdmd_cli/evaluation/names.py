"""Names of metrics, layouts and samplers, so that options can be checked before torch is loaded (it takes seconds)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

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
Sampler = Literal["few_step", "ddim", "stochastic"]
"""`few_step`: the student on its grid. `ddim`: the teacher with guidance and its deterministic sampler (DDIM, for flows
Euler). `stochastic`: the teacher with guidance, sampled as the student is."""


def known_metrics() -> Sequence[str]:
    """`METRIC_NAMES`; once the registry is loaded, its names, to which a program may have added some."""
    registry = sys.modules.get("flashdmd_cli.evaluation.metrics.registry")
    return METRIC_NAMES if registry is None else tuple(registry.METRICS)


def check_metric_names(names: Sequence[str], flag: str = "--metrics") -> None:
    """UsageError for a name that is unknown or there twice."""
    known = known_metrics()
    for name in names:
        if name not in known:
            problem = f"{flag} {name}: no such metric{nearest(name, known)}"
            raise UsageError(problem, hint=f"one of {', '.join(known)}")
        if list(names).count(name) > 1:
            raise UsageError(f"{flag} {name}: is there twice", hint="name it once")
