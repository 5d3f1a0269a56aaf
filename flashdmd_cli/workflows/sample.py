"""Pictures for prompts, written to disk: from a student, a teacher or a preset, side by side if wanted."""

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
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.drawers import FamilyDrawer, as_teacher, load_drawer
from flashdmd_cli.workflows.inputs.teachers import Parts

MAX_COLUMNS = 8
GRID, PROMPTS, ASIDE = "grid.png", "prompts.json", ".drawing"


@dataclass(frozen=True)
class Sample:
    """The result of `sample`."""

    out: Path
    manifest: Manifest

    @property
    def files(self) -> list[Path]:
        """For each drawer the pictures in the order of the prompts; at the end the grid and the file of prompts."""
        return [self.out / record.path for record in self.manifest.files]

    @property
    def pictures(self) -> list[Path]:
        """The pictures without the grid."""
        return self.files[:-2]

    @property
    def grid(self) -> Path:
        """One picture with a row for each drawer and a column for each of the first prompts."""
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
    model: str | None = None,
) -> Sample:
    """Draw `num` pictures for each prompt; picture i starts from the same noise for every model.

    `source` is the folder of a student, an exported pipeline, or a teacher as in `--teacher` (None: the newest student
    under ./runs); `model` is instead the name of a preset (`evaluation/baselines/`) or the path of its YAML file.
    `compare_teacher` also draws with the teacher of a student. Writes `NAME/0000.png` ..., `grid.png`, `prompts.json`
    and the manifest into `out` (None: ./runs/sample-NAME), and replaces an earlier sample there.

    Raises `UsageError` for an option that does not apply to the model or an `out` with other contents, `InputError`
    for files that cannot be read.
    """
    reporter = reporter or SilentReporter()
    if num < 1:
        raise UsageError(f"--num {num}: must be at least 1")
    texts = [text for text in prompts for _ in range(num)]
    if model is not None and compare_teacher:
        raise UsageError(f"--compare teacher: {model} is a preset", hint="sample the teacher on its own: --from sdxl")
    began = time.monotonic()
    drawer = load_drawer(source, sampler, steps, None, Parts(vae, teacher_config), device, reporter, model)
    folder = claim(Path(out) if out is not None else RUNS / f"sample-{drawer.name}", "sample")
    drawers = [drawer]
    if compare_teacher and isinstance(drawer, FamilyDrawer) and drawer.net != drawer.family.teacher:
        at = Path(drawer.family.source)
        drawers.append(as_teacher(drawer.family, drawer.teacher, at, "ddim", record=drawer.record))
    warn_of_prompts(drawer, texts, reporter)
    files = draw_all(drawers, texts, seed, folder, reporter)
    manifest = write_result(folder, "sample", drawer, files, seed, {"num": num}, time.monotonic() - began)
    return Sample(folder, manifest)


def warn_of_prompts(drawer: Drawer, texts: Sequence[str], reporter: Reporter) -> None:
    """Warn of prompts that are too long, or use words that the embedded world does not know."""
    from flashdmd_cli.families.tokens import cut_short
    from flashdmd_cli.shapes.captions import beyond_words

    if drawer.draws_shapes and (warning := beyond_words(texts)):
        reporter.say(warning)
    if warning := cut_short(drawer.tokenizers, dict.fromkeys(texts)):
        reporter.say(warning)


def draw_all(drawers: Sequence[Drawer], texts: list[str], seed: int, out: Path, reporter: Reporter) -> list[Path]:
    """Write `NAME/0000.png` ... for each drawer, and `grid.png` with a row for each; returns the files.

    The pictures are drawn into a temporary folder, and an earlier sample is kept until all of them are finished.
    """
    from flashdmd_cli.core.pictures import as_float
    from flashdmd_cli.evaluation.folder import draw_missing, picture_path, read_pictures
    from flashdmd_cli.evaluation.metrics.metric import Row
    from flashdmd_cli.evaluation.pictures import save_grid

    aside, drawn = out / ASIDE, [Row(index, text) for index, text in enumerate(texts)]
    files: list[Path] = []
    rows, labels = [], []
    shutil.rmtree(aside, ignore_errors=True)  # of an interrupted sample
    for drawer in drawers:
        reporter.phase(
            f"drawing {counted(len(texts), 'picture')} with {drawer.name}, {counted(drawer.steps, 'step')}", "step"
        )
        draw = partial(drawer.draw_from, seed, step=drawer.step_counter(len(texts), reporter))
        draw_missing(draw, drawn, aside / drawer.name, SilentReporter(reporter.stop))
        (shown, _), *_ = read_pictures(aside / drawer.name, drawn[:MAX_COLUMNS])
        rows.append(as_float(shown))
        labels.append(f"{drawer.name}\n{drawer.steps} steps")
    if num_old := forget(out):  # only when the new pictures are there
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
    """Delete the files of an earlier `sample` in `folder`, as listed in its manifest; returns their number."""
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
    """Write the manifest of a sample or an evaluation."""
    parents = [parent_record(drawer.folder, folder)] if (drawer.folder / MANIFEST).is_file() else []
    manifest = Manifest(
        kind=kind,
        family=drawer.family_name,
        teacher=drawer.record,
        parents=parents,
        files=[FileRecord(path=path.relative_to(folder).as_posix()) for path in files],
        recipe={**drawer.facts(), **facts},
        hardware=hardware(drawer.place.device, drawer.place.precision),
        seed=seed,
        wall_seconds=seconds,
    )
    return write_manifest(folder, manifest)
