"""`flashdmd sample`: pictures for prompts, from a student or a teacher, side by side if wanted."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashdmd_cli.cli.kinds import is_shapes
from flashdmd_cli.cli.options import AsJson, Debug, Device, From, Out, Quiet, Seed, TeacherConfig, Vae
from flashdmd_cli.cli.output import Progress, command
from flashdmd_cli.cli.teachers import Parts
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.folder import RUNS, claim

if TYPE_CHECKING:
    from flashdmd_cli.cli.drawing import Drawer

MAX_COLUMNS = 8


def gather_prompts(prompts: Sequence[str], file: Path | None, num: int) -> list[str]:
    """Every prompt, from both options, `num` times in a row."""
    if num < 1:
        raise UsageError(f"--num {num}: must be at least 1")
    texts = list(prompts)
    if file is not None:
        from flashdmd_cli.data.prompts import read_prompts

        texts += read_prompts(file)
    if not texts:
        example = '--prompt "a striped red ring left of a plain blue square"'
        raise UsageError("--prompt: nothing to draw", hint=f"{example}, or --prompts FILE")
    for text in texts:
        if any(
            "\ud800" <= letter <= "\udfff" for letter in text
        ):  # bytes of another encoding, or half of a JSON escape
            raise UsageError(f"--prompt {text}: is not UTF-8 text", hint="write it in a UTF-8 file, --prompts FILE")
    return [text for text in texts for _ in range(num)]


def forget(folder: Path) -> int:
    """Remove what an earlier `sample` wrote to `folder`, by its manifest, so that no two mix; how many files it was."""
    from flashdmd_cli.runs.manifest import MANIFEST, read_manifest

    if not (folder / MANIFEST).is_file() or (manifest := read_manifest(folder)).kind != "sample":
        return 0
    (folder / MANIFEST).unlink()
    for record in manifest.files:
        (folder / record.path).unlink(missing_ok=True)
    return len(manifest.files)


def draw_all(drawers: Sequence[Drawer], texts: list[str], seed: int, out: Path, observer: Progress) -> list[Path]:
    """Write `NAME/0000.png` ... for every drawer, and `grid.png` with a row for each; returns the files."""
    from flashdmd_cli.evaluation.pictures import save_grid, to_image
    from flashdmd_cli.runs.files import write_text_atomically, writing

    files: list[Path] = []
    rows, labels = [], []
    for drawer in drawers:
        observer.phase(f"drawing {len(texts)} pictures with {drawer.name}, {drawer.steps} steps", "picture")
        pictures = drawer.draw(texts, seed, observer)
        if not files and (num_old := forget(out)):  # not before there is something to take its place
            observer.output.say(f"{out}: replaces the {num_old} files of the sample that was there")
        folder = out / drawer.name
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for index, picture in enumerate(pictures):
                files.append(folder / f"{index:04d}.png")
                to_image(picture).save(files[-1])
        rows.append(pictures[:MAX_COLUMNS])
        labels.append(f"{drawer.name}\n{drawer.steps} steps")
    with writing(out):
        save_grid(rows, labels, out / "grid.png", texts[:MAX_COLUMNS])
    write_text_atomically(out / "prompts.json", json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
    return [*files, out / "grid.png", out / "prompts.json"]


def sample(
    source: From = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; may be repeated.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts: text, JSON, JSON lines, CSV, TSV or parquet.", show_default=False),
    ] = None,
    num: Annotated[int, typer.Option("--num", help="Pictures per prompt.")] = 1,
    compare: Annotated[
        str | None, typer.Option(help="`teacher`: draw the same with the teacher too.", show_default=False)
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Of a teacher: ddim or stochastic (default: ddim).", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps (student: its grid; teacher: 30).", show_default=False)
    ] = None,
    vae: Vae = None,
    teacher_config: TeacherConfig = None,
    seed: Seed = 0,
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw pictures for prompts.

    Picture i starts from the same noise whatever draws it.
    """
    with command(as_json, quiet, debug) as output, Progress(output) as observer:
        if compare not in (None, "teacher"):
            raise UsageError(f"--compare {compare}: unknown", hint="--compare teacher")
        texts = gather_prompts(prompt or [], prompts, num)
        from flashdmd_cli.cli.drawing import as_teacher, beyond_words, load_drawer
        from flashdmd_cli.models.tokens import cut_short

        began = time.monotonic()
        drawer = load_drawer(source, sampler, steps, parts=Parts(vae, teacher_config), device=device)
        if source is None:
            output.say(f"from {drawer.folder}")
        output.say(str(drawer.place))
        folder = out or RUNS / f"sample-{drawer.name}"
        claim(folder, "sample")
        drawers = [drawer]
        if compare and drawer.net is not drawer.family.teacher:
            at = Path(drawer.family.source)
            drawers.append(as_teacher(drawer.family, drawer.teacher, at, "ddim", record=drawer.record))
        if is_shapes(drawer.family.source) and (told := beyond_words(texts)):
            output.say(told)
        if told := cut_short(
            [drawer.family.pipeline.tokenizer, drawer.family.pipeline.tokenizer_2], dict.fromkeys(texts)
        ):
            output.say(told)
        files = draw_all(drawers, texts, seed, folder, observer)
        write_result(folder, "sample", drawer, files, seed, {"num": num}, time.monotonic() - began)
        document = {"out": folder, "manifest": folder / "manifest.json", "grid": folder / "grid.png", "files": files}
        output.result(
            document, f"{folder}: {len(files) - 2} pictures, side by side in {folder / 'grid.png'}", str(folder)
        )


def write_result(
    folder: Path,
    kind: str,
    drawer: Drawer,
    files: Sequence[Path],
    seed: int,
    facts: dict[str, object],
    seconds: float,
) -> None:
    """The manifest of what a drawer drew or what was measured on it."""
    from flashdmd_cli.runs.manifest import MANIFEST, FileRecord, Manifest, hardware, parent_record, write_manifest

    parents = [parent_record(drawer.folder, folder)] if (drawer.folder / MANIFEST).is_file() else []
    manifest = Manifest(
        kind=kind,
        family="sdxl",
        teacher=drawer.record,
        parents=parents,
        files=[FileRecord(path=path.relative_to(folder).as_posix()) for path in files],
        recipe={**drawer.facts(), **facts},
        hardware=hardware(drawer.place.device, drawer.place.precision),
        seed=seed,
        wall_seconds=seconds,
    )
    write_manifest(folder, manifest)
