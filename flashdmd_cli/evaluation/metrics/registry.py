"""Every metric by its name, and by the backend that computes it."""

from __future__ import annotations

from flashdmd_cli.evaluation.backends.metrics import UPSTREAM
from flashdmd_cli.evaluation.metrics.clip_score import ClipScore
from flashdmd_cli.evaluation.metrics.composition import Composition, Exact
from flashdmd_cli.evaluation.metrics.coverage import Coverage, PatternCoverage
from flashdmd_cli.evaluation.metrics.diversity import Diversity
from flashdmd_cli.evaluation.metrics.fd_dinov2 import FdDinoV2
from flashdmd_cli.evaluation.metrics.fid import Fid, PatchFid
from flashdmd_cli.evaluation.metrics.frechet import Frechet
from flashdmd_cli.evaluation.metrics.high_frequency import HighFrequency
from flashdmd_cli.evaluation.metrics.hps import HpsV2, HpsV21
from flashdmd_cli.evaluation.metrics.image_reward import ImageReward
from flashdmd_cli.evaluation.metrics.kid import Kid
from flashdmd_cli.evaluation.metrics.metric import Backend, Metric
from flashdmd_cli.evaluation.metrics.mps import MpsScore
from flashdmd_cli.evaluation.metrics.objects import ExtraObjects
from flashdmd_cli.evaluation.metrics.pick_score import PickScore
from flashdmd_cli.evaluation.metrics.pixels import PIXEL_STATISTICS
from flashdmd_cli.evaluation.metrics.precision_recall import Precision, Recall
from flashdmd_cli.evaluation.metrics.seed_diversity import LpipsDiversity, Vendi

OF_THE_WORLD: tuple[type[Metric], ...] = (
    Composition,
    Exact,
    ExtraObjects,
    Frechet,
    HighFrequency,
    Coverage,
    PatternCoverage,
    Diversity,
)
"""Metrics of the embedded world: they need nothing that the package does not bring."""
OF_PROMPTS: tuple[type[Metric], ...] = (ImageReward, ClipScore, PickScore, HpsV2, HpsV21, MpsScore)
"""Networks that score a picture for its prompt, in the order of the paper's tables."""
OF_SETS: tuple[type[Metric], ...] = (Fid, PatchFid, Kid, FdDinoV2, Precision, Recall, Vendi, LpipsDiversity)
CLASSES: tuple[type[Metric], ...] = (*OF_THE_WORLD, *OF_PROMPTS, *OF_SETS, *PIXEL_STATISTICS)
METRICS: dict[str, type[Metric]] = {each.name: each for each in CLASSES}


def metric_class(name: str, backend: Backend) -> type[Metric]:
    """The class of a known metric: of the authors' package, if that backend is requested and has one."""
    return UPSTREAM.get(name, METRICS[name]) if backend == "upstream" else METRICS[name]
