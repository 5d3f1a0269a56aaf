"""`page.html` of a run: its pictures, its curves, warnings of the tripwires; rewritten during the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.evaluation.preview import PREVIEW

if TYPE_CHECKING:
    from flashdmd_cli.runs.recipe import Recipe

PAGE = "page.html"
PANELS: dict[str, dict[str, str]] = {
    "Distribution matching": {"dm": "student"},
    "Fake score": {"fake": "denoising loss"},
    "Adversarial": {"gan": "student", "discriminator": "discriminator"},
    "Preference loss": {"preference": "student"},
    "Reward of what was drawn": {"reward/mean": "mean"},
    "Pairs": {"kept_pairs": "kept", "accuracy": "winner likelier than under the reference"},
    "KL to the stage-1 student, per dimension": {"kl": "step"},
    "Probe: reward": {"probe/reward": "mean"},
    "Probe: a judge beside the reward model": {
        "probe/held_out": "inspector",
        "probe/pickscore": "PickScore",
        "probe/hpsv2": "HPSv2",
    },
    "Probe: change of light and colour": {
        f"probe_change/{name}": name for name in ("brightness", "saturation", "contrast", "colourfulness")
    },
    "Probe: change of detail and variety": {
        f"probe_change/{name}": name for name in ("laplacian", "high_frequency", "entropy", "diversity")
    },
    "Probe: values that are black or full": {"probe/clipped": "share"},
}
"""Title -> key in metrics.jsonl -> name of the line; what a run does not log is left out."""
PICTURES = (
    "Each row is one sampler, each column one caption and one noise to start from: the teacher, the student before "
    "this run, the student at the last preview (every `train.preview_every` iterations, and at the end).",
)
CURVES = "Losses are not a measure of quality: look at the pictures, and at what `flashdmd eval` measures."
CURVES_OF_STAGE_2 = (
    "The reward rises by design: look at what the probe says of pictures, and of the judge beside the reward, where "
    "there is one."
)


def write_run_page(recipe: Recipe, out: Path, iteration: int, warnings: Sequence[str] = ()) -> None:
    """Write `out/page.html` from what the run has left in `out` so far."""
    from flashdmd_cli.evaluation import page
    from flashdmd_cli.runs.files import writing
    from flashdmd_cli.runs.tracking import read_metrics

    what = "Distilling" if recipe.align is None else "Aligning"
    sections = []
    if (out / PREVIEW).is_file():
        sections.append(page.Section("Pictures", PICTURES, page.picture_file(out / PREVIEW, "preview")))
    if drawn := page.curves(panels(read_metrics(out)), "Each point is one logged iteration."):
        notes = [CURVES, *([] if recipe.align is None else [CURVES_OF_STAGE_2])]
        sections.append(page.Section("Curves", notes, drawn))
    sections.append(page.Section("Tripwires", list(warnings) or ["None has fired."]))
    lead = f"Iteration {iteration} of {recipe.train.iterations}, {recipe.grid.steps} steps, seed {recipe.train.seed}."
    if (table := recipe.align) is not None:
        beside = "preference steps alone" if table.rl_ratio is None else f"ratio {table.rl_ratio}:1"
        lead += f" Reward model {table.reward}, {beside}."
    with writing(out / PAGE):
        page.write_page(out / PAGE, page.Page(f"{what}: {recipe.name}", lead, sections))


def panels(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The points of every line."""
    return {
        title: {
            name: [(row["step"] + 1, row[key]) for row in rows if row.get(key) is not None]
            for key, name in lines.items()
        }
        for title, lines in PANELS.items()
    }
