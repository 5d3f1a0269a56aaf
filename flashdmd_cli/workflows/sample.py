"""Pictures for prompts on disk, from a student or a teacher, side by side if wanted."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import write_text_atomically, writing
from flashdmd_cli.runs.folder import RUNS, claim
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import (
    MANIFEST,
    FileRecord,
    Kind,
    Manifest,
    hardware,
    parent_record,
    read_manifest,
    write_manifest,
)
from flashdmd_cli.runs.reporter import Reporter, SilentReporter, counted
from flashdmd_cli.workflows.inputs.drawers import Drawer, as_teacher, load_drawer
from flashdmd_cli.workflows.inputs.kinds import is_shapes
from flashdmd_cli.workflows.inputs.teachers import Parts

MAX_COLUMNS = 8
GRID, PROMPTS, ASIDE = "grid.png", "prompts.json", ".drawing"


@dataclass(frozen=True)
class Sample:
    """What `sample` wrote."""

    out: Path
    manifest: Manifest

    @property
    def files(self) -> list[Path]:
        """The pictures in the order of the prompts, for every drawer; then the grid and the file of prompts."""
        return [self.out / record.path for record in self.manifest.files]

    @property
    def pictures(self) -> list[Path]:
        """The pictures alone."""
        return self.files[:-2]

    @property
    def grid(self) -> Path:
        """Side by side: a row for every drawer, a column for each of the first prompts."""
        return self.out / GRID


@releasing()
def sample(
    prompts: Sequence[str],
    source: str | Path | None = None,
    out: Path | str | None = None,
    *,
    num: int = 1,
    compare_teacher: bool = False,
    sampler: str | None = None,
    steps: int | None = None,
    vae: str | None = None,
    teacher_config: str | None = None,
    seed: int = 0,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> Sample:
    """Draw `num` pictures for each prompt; picture i starts from the same noise whatever draws it.

    `source` is the folder of a student, an exported pipeline, or a teacher as `--teacher` names one (None: the newest
    student under ./runs); `compare_teacher` draws the same with a student's teacher too. Writes `NAME/0000.png` ...,
    `grid.png`, `prompts.json` and the manifest into `out` (None: ./runs/sample-NAME), in place of an earlier sample.

    Raises `UsageError` for an option that `source` does not take or an `out` that holds something else, `InputError`
    for what cannot be read.
    """
    reporter = reporter or SilentReporter()
    if num < 1:
        raise UsageError(f"--num {num}: must be at least 1")
    texts = [text for text in prompts for _ in range(num)]
    began = time.monotonic()
    drawer = load_drawer(source, sampler, steps, None, Parts(vae, teacher_config), device, reporter)
    folder = claim(Path(out) if out is not None else RUNS / f"sample-{drawer.name}", "sample")
    drawers = [drawer]
    if compare_teacher and drawer.net != drawer.family.teacher:
        at = Path(drawer.family.source)
        drawers.append(as_teacher(drawer.family, drawer.teacher, at, "ddim", record=drawer.record))
    warn_of_prompts(drawer, texts, reporter)
    files = draw_all(drawers, texts, seed, folder, reporter)
    manifest = write_result(folder, "sample", drawer, files, seed, {"num": num}, time.monotonic() - began)
    return Sample(folder, manifest)


def warn_of_prompts(drawer: Drawer, texts: Sequence[str], reporter: Reporter) -> None:
    """Say where prompts are not what the text encoders can read."""
    from flashdmd_cli.families.tokens import cut_short
    from flashdmd_cli.shapes.captions import beyond_words

    if is_shapes(drawer.family.source) and (told := beyond_words(texts)):
        reporter.say(told)
    tokenizers = drawer.family.tokenizers
    if told := cut_short(tokenizers, dict.fromkeys(texts)):
        reporter.say(told)


def draw_all(drawers: Sequence[Drawer], texts: list[str], seed: int, out: Path, reporter: Reporter) -> list[Path]:
    """Write `NAME/0000.png` ... for every drawer, and `grid.png` with a row for each; returns the files.

    The pictures go to a folder aside as they are drawn, and an earlier sample stays until all of them are there.
    """
    from flashdmd_cli.core.pictures import as_float
    from flashdmd_cli.evaluation.folder import draw_missing, picture_path, read_pictures
    from flashdmd_cli.evaluation.metrics.metric import Row
    from flashdmd_cli.evaluation.pictures import save_grid

    aside, drawn = out / ASIDE, [Row(index, text) for index, text in enumerate(texts)]
    files: list[Path] = []
    rows, labels = [], []
    shutil.rmtree(aside, ignore_errors=True)  # of a sample that was cut
    for drawer in drawers:
        reporter.phase(
            f"drawing {counted(len(texts), 'picture')} with {drawer.name}, {counted(drawer.steps, 'step')}", "step"
        )
        draw = partial(drawer.draw_from, seed, step=drawer.step_counter(len(texts), reporter))
        draw_missing(draw, drawn, aside / drawer.name, SilentReporter(reporter.stop))
        (shown, _), *_ = read_pictures(aside / drawer.name, drawn[:MAX_COLUMNS])
        rows.append(as_float(shown))
        labels.append(f"{drawer.name}\n{drawer.steps} steps")
    if num_old := forget(out):  # not before there is something to take its place
        reporter.say(f"{out}: replaces the {num_old} files of the sample that was there")
    with writing(out):
        for drawer in drawers:
            (out / drawer.name).mkdir(parents=True, exist_ok=True)
            for row in drawn:
                files.append(out / drawer.name / f"{row.index:04d}.png")
                picture_path(aside / drawer.name, row.index).replace(files[-1])
        shutil.rmtree(aside)
        save_grid(rows, labels, out / GRID, texts[:MAX_COLUMNS])
    write_text_atomically(out / PROMPTS, json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
    return [*files, out / GRID, out / PROMPTS]


def forget(folder: Path) -> int:
    """Remove what an earlier `sample` wrote to `folder`, by its manifest, so that no two mix; how many files it was."""
    if not (folder / MANIFEST).is_file() or (manifest := read_manifest(folder)).kind != "sample":
        return 0
    (folder / MANIFEST).unlink()
    for record in manifest.files:
        (folder / record.path).unlink(missing_ok=True)
    return len(manifest.files)


def write_result(
    folder: Path,
    kind: Kind,
    drawer: Drawer,
    files: Sequence[Path],
    seed: int,
    facts: dict[str, object],
    seconds: float,
) -> Manifest:
    """The manifest of what a drawer drew or what was measured on it."""
    parents = [parent_record(drawer.folder, folder)] if (drawer.folder / MANIFEST).is_file() else []
    manifest = Manifest(
        kind=kind,
        family=drawer.family.name,
        teacher=drawer.record,
        parents=parents,
        files=[FileRecord(path=path.relative_to(folder).as_posix()) for path in files],
        recipe={**drawer.facts(), **facts},
        hardware=hardware(drawer.place.device, drawer.place.precision),
        seed=seed,
        wall_seconds=seconds,
    )
    return write_manifest(folder, manifest)
