"""Pictures for prompts, written to disk: from a student, a teacher or a preset, beside those of other models."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import sha256_file, write_text_atomically, writing
from flashdmd_cli.runs.folder import RUNS, check_out, claim
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
from flashdmd_cli.workflows.inputs.beside import find_beside
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.drawers import find_model, load_all
from flashdmd_cli.workflows.inputs.teachers import Parts

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.metrics.metric import Row

MAX_ROWS, MAX_COLUMNS = 8, 8
"""Prompts, and pictures of each prompt, on the sheet."""
PROMPT_WIDTH = 260
"""Width in pixels of the column of prompts on the sheet."""
GRID, PROMPTS, ASIDE = "grid.png", "prompts.json", ".drawing"


@dataclass(frozen=True)
class Sample:
    """The result of `sample`."""

    out: Path
    manifest: Manifest

    @property
    def files(self) -> list[Path]:
        """For each model the pictures in the order of prompts and seeds; at the end the sheet and the prompts."""
        return [self.out / record.path for record in self.manifest.files]

    @property
    def pictures(self) -> list[Path]:
        """The pictures without the sheet."""
        return self.files[:-2]

    @property
    def grid(self) -> Path:
        """The sheet: a row for each of the first prompts, and in it for each seed the pictures of all models."""
        return self.out / GRID


@releasing()
def sample(
    prompts: Sequence[str],
    source: str | Path | None = None,
    out: Path | str | None = None,
    *,
    num: int = 1,
    seed: int | Sequence[int] = 0,
    compare: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    vae: str | None = None,
    teacher_config: str | None = None,
    compiled: bool = False,
    device: str | None = None,
    reporter: Reporter | None = None,
    model: str | None = None,
) -> Sample:
    """Draw pictures for each prompt; those of one seed start from the same noise, whatever the prompt and the model.

    `source` is the folder of a student, an exported pipeline, or a teacher as in `--teacher` (None: the newest student
    under ./runs); `model` is instead the name of a preset (`evaluation/baselines/`) or the path of its YAML file.
    `seed` lists the seeds of the pictures of each prompt; a single one is the first of `num`. `compare` names models
    that draw the same: `teacher` for that of a student, or anything that `source` can be. `size` is the height and
    width in pixels. `compiled` compiles the denoisers, which pays for many pictures. Writes `NAME/0000.png` ... for
    each model, `grid.png`, `prompts.json` and the manifest into `out` (None: ./runs/sample-NAME), and replaces an
    earlier sample there.

    Raises `UsageError` for an option that does not apply to the model or an `out` with other contents, `InputError`
    for files that cannot be read.
    """
    reporter = reporter or SilentReporter()
    seeds = seeds_of(seed, num)
    began = time.monotonic()
    # All that needs no torch is checked first: its import takes seconds, on a busy machine minutes.
    if out is not None:
        check_out(Path(out), "sample")  # also before a download
    found = find_model(
        source,
        sampler=sampler,
        steps=steps,
        parts=Parts(vae, teacher_config),
        device=device,
        reporter=reporter,
        model=model,
        size=size,
    )
    folder = Path(out) if out is not None else RUNS / f"sample-{found.name}"
    check_out(folder, "sample")
    others = find_beside(found, compare, reporter)
    drawer, *_ = drawers = load_all(found, others, device, reporter)
    claim(folder, "sample")
    if compiled:
        for each in drawers:
            each.compile()
    for warning in prompt_warnings(drawer, prompts):
        reporter.say(warning)
    files = draw_all(drawers, prompts, seeds, folder, reporter)
    facts: dict[str, object] = {"seeds": seeds, "compare": list(compare)}
    manifest = write_result(folder, "sample", drawer, files, seeds[0], facts, time.monotonic() - began)
    return Sample(folder, manifest)


def seeds_of(seed: int | Sequence[int], num: int) -> list[int]:
    """The seeds of the pictures of each prompt; UsageError if there are none, or both a list and a number of them."""
    if num < 1:
        raise UsageError(f"--num {num}: must be at least 1")
    if isinstance(seed, int):
        return list(range(seed, seed + num))
    if num != 1 and len(seed) != 1:
        raise UsageError(f"--num {num}: does not go with a list of seeds", hint="leave it out, or give a single --seed")
    if not seed:
        raise UsageError("--seed: names none", hint="for example --seed 1,5,8-11")
    return list(range(seed[0], seed[0] + num)) if len(seed) == 1 else list(seed)


def prompt_warnings(drawer: Drawer, texts: Sequence[str]) -> list[str]:
    """Warnings of prompts that are too long, or use words that the embedded world does not know."""
    from flashdmd_cli.families.tokens import cut_short
    from flashdmd_cli.shapes.captions import beyond_words

    unknown = beyond_words(texts) if drawer.draws_shapes else None
    return [text for text in (unknown, cut_short(drawer.tokenizers, dict.fromkeys(texts))) if text]


def draw_all(
    drawers: Sequence[Drawer], prompts: Sequence[str], seeds: Sequence[int], out: Path, reporter: Reporter
) -> list[Path]:
    """Write `NAME/0000.png` ... for each model, the sheet and the prompts; returns the files.

    The pictures are drawn into a temporary folder, and an earlier sample is kept until all of them are finished.
    """
    from flashdmd_cli.evaluation.folder import draw_missing, picture_path
    from flashdmd_cli.evaluation.metrics.metric import Row

    rows = [Row(i, prompt, sample=seed) for i, (prompt, seed) in enumerate((p, s) for p in prompts for s in seeds)]
    names = [drawer.name for drawer in drawers]
    names = [name if names.index(name) == i else f"{name}-{i + 1}" for i, name in enumerate(names)]
    aside = out / ASIDE
    shutil.rmtree(aside, ignore_errors=True)  # of an interrupted sample
    for name, drawer in zip(names, drawers, strict=True):
        reporter.phase(f"drawing {counted(len(rows), 'picture')} with {name}, {counted(drawer.steps, 'step')}", "step")
        describe = description(drawer)
        draw_missing(
            drawing(drawer, rows, reporter), rows, aside / name, SilentReporter(reporter.stop), describe=describe
        )
    if num_old := forget(out):  # only when the new pictures are there
        reporter.say(f"{out}: replaces the {num_old} files of the sample that was there")
    files: list[Path] = []
    with writing(out):
        write_sheet(out / GRID, [aside / name for name in names], drawers, rows, len(seeds))
        for name in names:
            (out / name).mkdir(parents=True, exist_ok=True)
            for row in rows:
                files.append(out / name / f"{row.index:04d}.png")
                picture_path(aside / name, row.index).replace(files[-1])
        shutil.rmtree(aside)
    texts = [row.prompt for row in rows]
    write_text_atomically(out / PROMPTS, json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
    return [*files, out / GRID, out / PROMPTS]


def drawing(drawer: Drawer, rows: Sequence[Row], reporter: Reporter) -> Callable[[Sequence[str], int], Tensor]:
    """A function that draws pictures of `rows`, each from the noise of its seed alone, and reports progress."""
    from flashdmd_cli.evaluation.generate import NoiseKey

    step = drawer.step_counter(len(rows), reporter)

    def draw(texts: Sequence[str], first: int) -> Tensor:
        keys = [NoiseKey(row.sample) for row in rows[first : first + len(texts)]]
        return drawer.draw_from(keys[0].seed, texts, first, step=step, keys=keys)

    return draw


def description(drawer: Drawer) -> Callable[[Row], dict[str, str]]:
    """A function that gives the texts in the file of a picture: what it shows, and how it was drawn."""
    facts = drawer.facts()
    shown: tuple[str, ...] = ("sampler", "steps", "guidance")
    how = {key: str(facts[key]) for key in shown if key in facts}
    if (drawer.folder / MANIFEST).is_file():
        how["manifest"] = sha256_file(drawer.folder / MANIFEST)
    how["teacher"] = f"{drawer.record.id} {drawer.record.hash or ''}".strip()
    return lambda row: {"prompt": row.prompt, "seed": str(row.sample), "model": drawer.name, **how}


def write_sheet(
    path: Path, folders: Sequence[Path], drawers: Sequence[Drawer], rows: Sequence[Row], num_seeds: int
) -> None:
    """Write one picture with a row for each of the first prompts: for each seed the pictures of all models."""
    from flashdmd_cli.core.pictures import as_float
    from flashdmd_cli.evaluation.folder import picture_path, read_picture
    from flashdmd_cli.evaluation.pictures import save_grid

    num_shown = min(num_seeds, max(1, MAX_COLUMNS // len(drawers)))
    starts = range(0, len(rows), num_seeds)[:MAX_ROWS]
    cells = [
        [
            as_float(read_picture(picture_path(folder, rows[start + i].index)))
            for i in range(num_shown)
            for folder in folders
        ]
        for start in starts
    ]
    heads = [
        f"{folder.name}\n{counted(drawer.steps, 'step')}, seed {row.sample}"
        for row in rows[:num_shown]
        for folder, drawer in zip(folders, drawers, strict=True)
    ]
    save_grid(cells, [rows[start].prompt for start in starts], path, heads=heads, label_width=PROMPT_WIDTH)


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
