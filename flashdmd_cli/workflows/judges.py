"""Scores of pictures for the collapse probe: by the reward model, and by a judge that training does not use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.runs.checkpoint import latest_state
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import write_text_atomically
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.workflows.inputs.kinds import is_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.metrics.metric import Metric
    from flashdmd_cli.training.collapse import Judge
    from flashdmd_cli.training.pairs import PairSampler

NOTE = "judge.json"
"""In a run's folder: the second judge that it began with, and the hash of its weights."""
INSPECTOR, NONE = "held_out", "none"
SCORERS = ("hpsv2", "pickscore")
"""In the order of `probe.judge: auto`. PickScore is trained on the same choices as LRM, so it comes second."""


@dataclass(frozen=True)
class SecondJudge:
    """The judge of a run beside its reward model."""

    name: str
    """Of its metric: `held_out` (the inspector), `hpsv2`, `pickscore`; `none`."""
    score: Judge | None = None


def second_judge(
    recipe: Recipe, teacher: str, captions: Sequence[str], out: Path, device: str, reporter: Reporter
) -> SecondJudge:
    """The judge that `probe.judge` names, or with which the run in `out` began.

    Weights are found now and loaded at the first probe. InputError if a judge that is named cannot be had, or if that
    of a resumed run is not on this machine or has other weights.
    """
    if recipe.probe.every is None:
        return SecondJudge(NONE)
    if latest_state(out / "state") is not None:
        return _same_judge(recipe, teacher, captions, out, device, reporter)
    wanted = recipe.probe.judge
    judge, weights = SecondJudge(NONE), None
    if wanted == "auto" and is_shapes(teacher):
        judge = _inspector(teacher, captions)
    else:
        for name in SCORERS if wanted == "auto" else () if wanted == NONE else (wanted,):
            metric = _scorer(name, device, reporter, download=wanted != "auto")
            if metric is not None:
                judge, weights = SecondJudge(name, scorer_judge(metric)), metric.provenance()["weights"]
                break
        if judge.name != NONE:
            reporter.say(f"second judge of the probe: {judge.name}")
        elif wanted == "auto":
            reporter.say(
                f"the probe has no second judge: neither {' nor '.join(SCORERS)} is on this machine "
                f"(--set probe.judge={SCORERS[0]} downloads it)"
            )
    write_text_atomically(out / NOTE, json.dumps({"judge": judge.name, "weights": weights}) + "\n")
    return judge


def _same_judge(
    recipe: Recipe, teacher: str, captions: Sequence[str], out: Path, device: str, reporter: Reporter
) -> SecondJudge:
    """The judge of a resumed run. Runs without a recorded judge are older and had only the inspector."""
    note = {"judge": INSPECTOR if is_shapes(teacher) else NONE, "weights": None}
    if (out / NOTE).is_file():
        try:
            note |= parse_json((out / NOTE).read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise InputError(f"{out / NOTE}: cannot be read: {error}", "restore it, or choose another --out") from None
    name = str(note["judge"])
    if name == INSPECTOR:
        return _inspector(teacher, captions)
    if name not in SCORERS:
        return SecondJudge(NONE)
    metric = _scorer(name, device, reporter, download=recipe.probe.judge == name)
    hint = "its weights have to be those, from the hub's cache; or choose another --out"
    if metric is None:
        raise InputError(f"probe.judge: {name}, with which the run in {out} began, is not on this machine", hint)
    if metric.provenance()["weights"] != note["weights"]:
        raise InputError(f"probe.judge: {name} has other weights than the run in {out} began with", hint)
    return SecondJudge(name, scorer_judge(metric))


def _inspector(teacher: str, captions: Sequence[str]) -> SecondJudge:
    judge = held_out_judge(teacher, captions)
    return SecondJudge(NONE) if judge is None else SecondJudge(INSPECTOR, judge)


def _scorer(name: str, device: str, reporter: Reporter, download: bool) -> Metric | None:
    """A scorer of the evaluation; None if its weights are not here and not to be downloaded, else InputError."""
    from flashdmd_cli.evaluation.metrics.instruments import Instruments
    from flashdmd_cli.evaluation.metrics.registry import METRICS
    from flashdmd_cli.evaluation.scorers.weights import WeightsMissing

    try:
        return METRICS[name](Instruments(None, device, reporter, download))
    except WeightsMissing as error:
        if not download:
            return None
        raise InputError(f"probe.judge: {error.message}", "--set probe.judge=none aligns without") from None


def scorer_judge(metric: Metric) -> Judge:
    """Scores of pictures for their captions by a metric of single pictures, of what a file of 8 bits would hold."""
    import torch

    from flashdmd_cli.core.pictures import as_bytes
    from flashdmd_cli.evaluation.metrics.metric import Row

    def score(pictures: Tensor, captions: Sequence[str]) -> Tensor:
        rows = [Row(i, caption) for i, caption in enumerate(captions)]
        with torch.random.fork_rng(devices=[]):  # building a network draws random numbers, on the CPU
            return metric.measure(as_bytes(pictures), rows).double()

    return score


def reward_judge(sampler: PairSampler) -> Judge:
    """Scores of finished latents by the reward model.

    Noise is added at each level at which training scores candidates; the score is the mean over the levels.
    """
    from flashdmd_cli.core.rollout import at
    from flashdmd_cli.core.schedules import add_noise
    from flashdmd_cli.evaluation.generate import picture_noise

    def score(latents: Tensor, captions: Sequence[str]) -> Tensor:
        import torch

        rows = [picture_noise(latents.shape[1:], sampler.o.recipe.train.seed, i) for i in range(len(latents))]
        noise, text = torch.stack(rows).to(latents.device), sampler.reward.encode(captions)

        def score_at(level: float, timestep: float) -> Tensor:
            noisy = add_noise(sampler.o.family.schedule, latents, noise, at(level, latents))
            return sampler.score(noisy, timestep, text)

        return torch.stack([score_at(*each) for each in sampler.levels()]).mean(dim=0)

    return score


def held_out_judge(teacher: str, captions: Sequence[str]) -> Judge | None:
    """A judge that training does not use: on the embedded world, 1 for a picture that shows its caption, else 0.

    The inspector has to predict every attribute, and the counter no third object, which the inspector cannot detect.
    None for other teachers, or if a caption is not of the embedded world.
    """
    if not is_shapes(teacher):
        return None
    from flashdmd_cli.shapes.assets import asset
    from flashdmd_cli.shapes.captions import parse
    from flashdmd_cli.shapes.counting import count_objects
    from flashdmd_cli.shapes.inspector import load_inspector
    from flashdmd_cli.shapes.world import NUM_OBJECTS

    try:
        inspector: Any = load_inspector(asset("inspector"))
        for caption in captions:
            parse(caption)
    except (FileNotFoundError, ValueError):
        return None

    def score(pictures: Tensor, captions: Sequence[str]) -> Tensor:
        import torch

        wanted = torch.tensor([parse(caption) for caption in captions])
        right = (inspector.read(pictures.cpu()).attributes == wanted).all(dim=1)
        return (right & (count_objects(pictures) <= NUM_OBJECTS)).double()

    return score
