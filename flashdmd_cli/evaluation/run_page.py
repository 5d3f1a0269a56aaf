"""`page.html` of a run: progress, pictures, curves, warnings, recipe and lineage; rewritten during the run.

The page is made from the files that the run writes. Metrics are read as they are appended and kept as envelopes
(`envelope.py`), so that neither memory nor time nor the size of the page grow with the length of the run.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from flashdmd_cli.evaluation.envelope import Envelope
from flashdmd_cli.evaluation.exhibits import Facts, Folded, Frames, Preformatted, file_uri
from flashdmd_cli.evaluation.page import Exhibit, Page, Section, write_page
from flashdmd_cli.evaluation.plots import Plots
from flashdmd_cli.evaluation.preview import read_previews
from flashdmd_cli.evaluation.run_panels import GROUPS, add_row, plots, rest
from flashdmd_cli.runs.align_schema import Bands
from flashdmd_cli.runs.lineage import lineage_of_run
from flashdmd_cli.runs.recipe import Recipe, RewardRecipe, dump_recipe
from flashdmd_cli.runs.reporter import duration
from flashdmd_cli.runs.resume import TEACHER, teacher_of
from flashdmd_cli.runs.tracking import COSTS, METRICS

PAGE = "page.html"
INTERVAL = 30
"""Seconds between versions of the page, and after which a browser loads it again."""
SHARE = 0.005
"""Largest share of a run's time that is spent on making its page, previews aside."""
RECENT = 100
"""Logged iterations from whose median the speed is computed: previews and saved states do not count."""
MAX_FRAMES, MAX_FRAMES_BYTES = 40, 1_500_000
"""Previews on the page, and their size together; of more, evenly spaced ones are shown."""
PICTURES = (
    "Each row is one sampler, each column one caption and one initial noise. The slider goes through the previews of "
    "this run (every `train.preview_every` iterations, and at the end)."
)
CURVES = (
    "Lines are means, areas the range from minimum to maximum where several iterations share a column. Point at a plot "
    "for its values. Green: what a tripwire allows. Losses do not measure quality: look at the pictures, and at what "
    "`flashdmd eval` measures."
)
CURVES_OF_STAGE_2 = (
    "The reward rises by design: compare it with what the probe measures on pictures, and with the second judge, if "
    "there is one. Red: probes in which a statistic was outside its band."
)


class RunPage:
    """Writes the page of the run in `out`; one object serves a whole process."""

    def __init__(self, recipe: Recipe | RewardRecipe, out: Path, inputs: Sequence[Path] = ()) -> None:
        """`inputs` are the result folders that the run reads, for its lineage."""
        self.recipe, self.out, self.inputs = recipe, out, inputs
        self.series: dict[str, Envelope] = {}
        self.costs: deque[Mapping[str, Any]] = deque(maxlen=RECENT)
        self._read: dict[str, int] = {METRICS: 0, COSTS: 0}  # bytes of each file
        self._due = time.monotonic() + INTERVAL

    def update(self, iteration: int, warnings: Sequence[str], ended: bool = False) -> None:
        """Write the page if `INTERVAL` and `SHARE` allow it, or if the run has ended."""
        if ended or time.monotonic() >= self._due:
            self.write(iteration, warnings, ended)

    def write(self, iteration: int, warnings: Sequence[str], ended: bool = False) -> None:
        """Write the page after `iteration` iterations; while the run goes on, a browser loads it again by itself."""
        began = time.monotonic()
        for row in self._new_rows(METRICS):
            add_row(self.series, row)
        for row in self._new_rows(COSTS):
            add_row(self.series, row)
            self.costs.append(row)
        write_page(self.out / PAGE, self.page(iteration, warnings, ended))
        now = time.monotonic()
        self._due = now + max(INTERVAL, (now - began) / SHARE)

    def page(self, iteration: int, warnings: Sequence[str], ended: bool) -> Page:
        """The contents, from what has been read."""
        recipe = self.recipe
        sections = [Section("Progress", (), [self._progress(iteration, ended)])]
        if previews := self._previews(iteration):
            sections.append(Section("Pictures", [PICTURES], [previews]))
        sections.append(Section("Tripwires", list(warnings) or ["None has fired."]))
        sections += self._curves()
        sections.append(Section("Recipe", (), [Folded("All settings", [Preformatted(dump_recipe(recipe))])]))
        if (self.out / TEACHER).is_file():
            lines = lineage_of_run(kind(recipe), self.out, self.inputs, teacher_of(self.out))
            sections.append(Section("Lineage", (), [Preformatted("\n".join(lines))]))
        title = {"distill": "Distilling", "align": "Aligning", "reward": "Training a reward model"}[kind(recipe)]
        refresh = None if ended else INTERVAL
        return Page(f"{title}: {recipe.name}", lead(recipe, iteration), sections, interactive=True, refresh=refresh)

    def _new_rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The rows that were appended to a file since the last call, without a last line that is not whole."""
        path = self.out / name
        if not path.is_file():
            return
        with path.open("rb") as stream:
            stream.seek(self._read[name])
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._read[name] += len(line)
                yield json.loads(line)

    def _progress(self, iteration: int, ended: bool) -> Facts:
        total = self.recipe.train.iterations
        finished = iteration >= total
        state = "finished" if finished else "stopped; the same command resumes" if ended else "running"
        facts = {"iterations": f"{iteration:,} of {total:,}", "state": state}
        if seconds := self._seconds_per_iteration():
            what = "pairs" if isinstance(self.recipe, RewardRecipe) else "pictures"
            facts[f"{what} per second"] = f"{self.recipe.train.batch / seconds:.3g}"
            facts["seconds per iteration"] = f"{seconds:.3g}"
            if not ended and not finished:
                left = (total - iteration) * seconds
                end = datetime.now().astimezone() + timedelta(seconds=left)
                facts |= {"time left, without previews": duration(left), "end": f"{end:%Y-%m-%d %H:%M}"}
        if memory := [row["memory_gb"] for row in self.costs if row.get("memory_gb")]:
            facts["peak memory"] = f"{max(memory):.1f} GB"
        facts["page written"] = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"
        return Facts(facts, iteration / total)

    def _seconds_per_iteration(self) -> float:
        """Median of the last logged iterations; 0 before the first."""
        per_thousand = [row.get("seconds_per_kimg", row.get("seconds_per_kpair")) for row in self.costs]
        known = [each for each in per_thousand if each is not None]
        return statistics.median(known) * self.recipe.train.batch / 1000 if known else 0.0

    def _previews(self, iteration: int) -> Frames | None:
        """The previews up to this iteration: a run that was resumed from an earlier state may have later ones."""
        found = read_previews(self.out)
        frames = {number: path for number, path in found.frames.items() if number <= iteration}
        if not found.fixed:
            return None
        return Frames(
            {label: file_uri(path) for label, path in found.fixed.items()},
            {f"iteration {number:,}": file_uri(frames[number]) for number in chosen_frames(frames)},
            found.captions,
        )

    def _curves(self) -> list[Section]:
        bands = self.recipe.bands if isinstance(self.recipe, Recipe) else Bands()
        notes = [CURVES, *([CURVES_OF_STAGE_2] if kind(self.recipe) == "align" else [])]
        sections: list[Section] = []
        for title, panels in [*GROUPS.items(), ("Other metrics", rest(self.series))]:
            if drawn := plots(panels, self.series, bands):
                exhibits: list[Exhibit] = [Plots(drawn)]
                sections.append(Section(title, () if sections else notes, exhibits))
        return sections


def kind(recipe: Recipe | RewardRecipe) -> str:
    """The kind of result that a recipe makes."""
    if isinstance(recipe, RewardRecipe):
        return "reward"
    return "distill" if recipe.align is None else "align"


def lead(recipe: Recipe | RewardRecipe, iteration: int) -> str:
    """What is trained, and how far it is."""
    text = (
        f"Iteration {iteration:,} of {recipe.train.iterations:,}, seed {recipe.train.seed}, teacher {recipe.teacher}."
    )
    if isinstance(recipe, RewardRecipe):
        return text
    text += f" {recipe.grid.steps} steps."
    if (table := recipe.align) is not None:
        beside = "preference steps alone" if table.rl_ratio is None else f"ratio {table.rl_ratio}:1"
        text += f" Reward model {table.reward}, {beside}."
    return text


def chosen_frames(frames: Mapping[int, Path]) -> list[int]:
    """The iterations to show: all, or as many evenly spaced ones as the page has room for; always first and last."""
    numbers = sorted(frames)
    if not numbers:
        return []
    mean = sum(frames[number].stat().st_size for number in numbers) / len(numbers)
    num = min(len(numbers), MAX_FRAMES, max(2, int(MAX_FRAMES_BYTES / max(mean, 1))))
    if num == 1:
        return numbers
    return sorted({numbers[round(i * (len(numbers) - 1) / (num - 1))] for i in range(num)})
