"""Every metric by its name."""

from __future__ import annotations

from flashdmd_cli.evaluation.metrics.composition import Composition, Exact
from flashdmd_cli.evaluation.metrics.coverage import Coverage, PatternCoverage
from flashdmd_cli.evaluation.metrics.diversity import Diversity
from flashdmd_cli.evaluation.metrics.frechet import Frechet
from flashdmd_cli.evaluation.metrics.high_frequency import HighFrequency
from flashdmd_cli.evaluation.metrics.metric import Metric
from flashdmd_cli.evaluation.metrics.objects import ExtraObjects

CLASSES: tuple[type[Metric], ...] = (
    Composition,
    Exact,
    ExtraObjects,
    Frechet,
    HighFrequency,
    Coverage,
    PatternCoverage,
    Diversity,
)
METRICS: dict[str, type[Metric]] = {each.name: each for each in CLASSES}
