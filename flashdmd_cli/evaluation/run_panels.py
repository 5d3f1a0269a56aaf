"""Which metrics of a run are plotted, and in which plot; what no plot names is plotted on its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashdmd_cli.evaluation.envelope import Envelope
from flashdmd_cli.evaluation.plots import Plot
from flashdmd_cli.runs.align_schema import ONLY_A_FALL_COUNTS, Bands


@dataclass(frozen=True)
class Panel:
    """One plot: keys of `metrics.jsonl` or `costs.jsonl` with the names of their curves."""

    title: str
    keys: Mapping[str, str]
    band: str | None = None
    """The field of `Bands` that limits these values."""


def panel_of_probe(name: str, title: str) -> Panel:
    """The relative change of a statistic of the collapse probe, with its band."""
    return Panel(f"Change of {title}", {f"probe_change/{name}": "relative to before training"}, band=name)


LOSSES = (
    Panel("Distribution matching", {"dm": "student"}),
    Panel("Fake score", {"fake": "denoising loss"}),
    Panel("Adversarial", {"gan": "student"}),
    Panel("Discriminator", {"discriminator": "loss"}, band="d_win_loss"),
    Panel("Preference loss", {"preference": "student"}),
    Panel("Pairwise cross-entropy", {"loss": "reward model"}),
)
DISTILLATION = LOSSES[:4]
"""The losses of stage 1."""
ROLES = {name: name.replace("_", " ") for name in ("student", "fake", "discriminator", "preference")}
GROUPS: dict[str, Sequence[Panel]] = {
    "Losses": LOSSES,
    "Gradient norms": (
        Panel("Gradient norm before clipping", {f"grad_norm/{name}": text for name, text in ROLES.items()}),
        Panel("Gradient norm before clipping", {"grad_norm": "reward model"}),
        Panel(
            "Gradient at the student's output", {"output_grad/dm": "distribution matching", "output_grad/gan": "GAN"}
        ),
    ),
    "Reward": (
        Panel("Reward of candidates", {"reward/mean": "mean"}),
        Panel("Spread of the reward", {"reward/spread": "within a prompt", "reward/gap": "winner to loser, softmax"}),
        Panel("Pairs in the right order", {"accuracy": "share"}),
        Panel("Accuracy on held-out pairs", {f"accuracy/{t}": f"t = {t}" for t in (1, 249, 499, 749, 951)}),
        Panel("KL to the stage-1 student, per dimension", {"kl": "step"}),
        Panel("Margin, per dimension", {"margin": "mean"}),
        Panel("Scale of the scores", {"logit_scale": "logit scale"}),
    ),
    "Probe": (
        Panel("Probe: reward", {"probe/reward": "mean"}),
        Panel(
            "Probe: a judge beside the reward model",
            {"probe/held_out": "inspector", "probe/pickscore": "PickScore", "probe/hpsv2": "HPSv2"},
        ),
        *(
            panel_of_probe(name, title)
            for name, title in {
                "held_out": "the inspector's score",
                "pickscore": "PickScore",
                "hpsv2": "HPSv2",
                "diversity": "diversity",
                "brightness": "brightness",
                "saturation": "saturation",
                "contrast": "contrast",
                "colourfulness": "colourfulness",
                "laplacian": "sharpness",
                "high_frequency": "high frequencies",
                "entropy": "entropy",
            }.items()
        ),
        Panel("Probe: values that are black or full", {"probe/clipped": "share"}),
        Panel("Probe: statistics outside their band", {"probe/outside": "now", "probe/streak": "longest streak"}),
    ),
    "Counters": (
        Panel("Updates", {f"updates/{name}": text for name, text in ROLES.items()}),
        Panel("Pairs of an iteration", {"pairs": "number"}),
        Panel("Pairs above the threshold", {"kept_pairs": "share"}),
        Panel("Active tripwires", {"tripwires": "number"}),
        Panel("Brightness at the discriminator", {"brightness/student": "student", "brightness/real": "real"}),
        Panel("Brightness: student minus real", {"brightness/drift": "smoothed"}, band="brightness_drift"),
    ),
    "Cost": (
        Panel("Seconds per thousand pictures", {"seconds_per_kimg": "all iterations"}),
        Panel("Seconds per thousand pairs", {"seconds_per_kpair": "all iterations"}),
        Panel("Peak memory, GB", {"memory_gb": "this process"}),
    ),
}
"""Heading -> plots; `rest` adds the metrics that no plot names."""
HIDDEN = ("step", "probe_outside/", "probe_change/", "probe/")
"""Beginnings of keys that are not plotted on their own."""


def curves(panels: Iterable[Panel], rows: Iterable[Mapping[str, Any]]) -> list[Plot]:
    """The plots of `panels` without bands, from rows of `metrics.jsonl`; those without values are left out."""
    series: dict[str, Envelope] = {}
    for row in rows:
        add_row(series, row)
    return plots(panels, series, None)


def add_row(series: dict[str, Envelope], row: Mapping[str, Any]) -> None:
    """Add the values of a row, under its number of finished iterations."""
    for key, value in row.items():
        if key != "step":
            series.setdefault(key, Envelope()).add(row["step"] + 1, value)


def plots(panels: Iterable[Panel], series: Mapping[str, Envelope], bands: Bands | None) -> list[Plot]:
    """A plot for each panel that has values, with its band in `bands` and the probes outside it."""
    found = []
    for panel in panels:
        shown = {name: series[key] for key, name in panel.keys.items() if key in series}
        plot = Plot(panel.title, shown, allowed(panel, bands), outside(panel, series))
        if plot.shown:
            found.append(plot)
    return found


def allowed(panel: Panel, bands: Bands | None) -> tuple[float, float] | None:
    """The values that a tripwire allows."""
    limit = getattr(bands, panel.band) if bands and panel.band else None
    if limit is None:
        return None
    if panel.band == "d_win_loss":
        return limit, math.inf
    return -limit, math.inf if panel.band in ONLY_A_FALL_COUNTS else limit


def outside(panel: Panel, series: Mapping[str, Envelope]) -> list[float]:
    """Iterations at which the probe found the statistic of this panel outside its band."""
    found = series.get(f"probe_outside/{panel.band}")
    return [column.step for column in found.columns() if column.high > 0] if found else []


def rest(series: Mapping[str, Envelope]) -> list[Panel]:
    """A panel for each metric that no plot of `GROUPS` names."""
    named = {key for panels in GROUPS.values() for panel in panels for key in panel.keys}
    return [Panel(key, {key: "value"}) for key in series if key not in named and not key.startswith(HIDDEN)]
