"""Pictures that something else drew: which file of a folder belongs to which prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flashdmd_cli.data.items import Rejected
from flashdmd_cli.data.reading import inside
from flashdmd_cli.evaluation.intake import picture_files
from flashdmd_cli.evaluation.metrics.metric import Row
from flashdmd_cli.evaluation.suites.prompts import Prompt, Refused, prompts_digest, read_prompt_file
from flashdmd_cli.runs.errors import InputError

FILE_COLUMNS = ("file", "file_name", "image", "image_path", "path", "filename")
PROMPTS = "prompts.jsonl"
"""The file in a folder of pictures that `flashdmd eval` drew."""


@dataclass(frozen=True)
class Collection:
    """Rows with the file of each, None where it is missing."""

    rows: list[Row]
    paths: list[Path | None]
    unused: list[Path] = field(default_factory=list)
    """Pictures of the folder that belong to no prompt."""
    refused: list[Refused] = field(default_factory=list)
    """Entries of the prompt file that are no prompts, and whose pictures are therefore not measured."""
    matched: Literal["file", "id", "order"] = "file"
    """By what the pictures were matched with the prompts."""

    @property
    def sha256(self) -> str:
        """Hash of the prompts and their ids: that of the file of prompts from which the pictures were drawn."""
        return prompts_digest([(row.prompt_id, row.prompt) for row in self.rows])


def read_collection(folder: Path, prompt_file: Path | None, prompts: Sequence[Prompt] | None = None) -> Collection:
    """The pictures of `folder` with the prompts of `prompt_file`, of its own `prompts.jsonl`, or with `prompts`.

    A file belongs to a prompt by the column `file` (or `file_name`, `image`, `path`) of the prompt file; else by the
    prompt's id, which is the file's name, or begins it before `_`, or is the name of its folder. Only prompts with
    neither such a column nor an id belong to files by order, if there are as many files as prompts: names and ids that
    fit no file are an error, since their order says nothing about the files. InputError if none of these fits.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"--images {folder}: {what}", hint="a folder of pictures")
    option, refused = "--prompts", list[Refused]()
    own = folder / PROMPTS
    if prompt_file is None and own.is_file():
        prompt_file, option = own, "--images"
    if prompt_file is not None:
        prompts, refused = read_prompt_file(prompt_file, option)
    if prompts is None:
        raise InputError(
            f"--images {folder}: has no {PROMPTS}", hint="--prompts FILE says what the pictures should show"
        )
    files = picture_files(folder)
    if not files:
        raise InputError(f"--images {folder}: holds no picture", hint="png, jpg, webp and others are read")
    if not prompts:
        raise InputError(f"{option} {prompt_file}: holds no prompt", hint="a prompt on each line, or JSONL")
    has_files = any(prompt.columns.get(column) for prompt in prompts for column in FILE_COLUMNS)
    has_ids = any(prompt.named for prompt in prompts)
    if has_files:
        found = by_file(folder, files, prompts, refused)
        if len(found.unused) < len(files):
            return found
    ids = {prompt.id for prompt in prompts}
    if has_ids and any(id_of(path, folder, ids) for path in files):
        return by_id(folder, files, prompts, refused)
    if has_files or has_ids:
        raise InputError(
            f"--images {folder}: no picture has the file name or the id of a prompt; the first is {files[0].name}",
            hint='name them ID.png, or give --prompts FILE with lines {"file": "a.png", "id": "...", "prompt": "..."}',
        )
    return by_order(folder, files, prompts, refused)


def by_file(folder: Path, files: list[Path], prompts: Sequence[Prompt], refused: list[Refused]) -> Collection:
    """Files are named by the prompt file, relative to the folder or by their last part."""
    rows, paths, seen = list[Row](), list[Path | None](), dict[str, int]()
    names = {path.name: path for path in files}
    for prompt in prompts:
        named = next((str(prompt.columns[key]) for key in FILE_COLUMNS if prompt.columns.get(key)), "")
        path: Path | None = None
        try:
            path = inside(folder.resolve(), named) if named else None
        except Rejected:
            path = None
        if path is None or not path.is_file():
            path = names.get(named.replace("\\", "/").rpartition("/")[2])
        group, sample = prompt.columns.get("group"), seen.get(prompt.id, 0)
        seen[prompt.id] = sample + 1
        counts = bool(prompt.columns.get("counts", True))
        rows.append(Row(len(rows), prompt.text, int(group) if group is not None else None, counts, prompt.id, sample))
        paths.append(path)
    used = {path.resolve() for path in paths if path is not None}
    return Collection(rows, paths, [path for path in files if path.resolve() not in used], refused)


def id_of(path: Path, folder: Path, ids: set[str]) -> str | None:
    """Which prompt a file belongs to by its name: `ID.png`, `ID_0.png`, or a file in a folder `ID`."""
    parts = path.relative_to(folder).parts
    stem = path.stem
    for name in (stem, stem.rpartition("_")[0], *reversed(parts[:-1])):
        if name in ids:
            return name
    return None


def by_id(folder: Path, files: list[Path], prompts: Sequence[Prompt], refused: list[Refused]) -> Collection:
    """Files are named by the ids of the prompts; a prompt may have several."""
    ids = {prompt.id for prompt in prompts}
    of: dict[str | None, list[Path]] = defaultdict(list)
    for path in files:
        of[id_of(path, folder, ids)].append(path)
    rows, paths = list[Row](), list[Path | None]()
    for number, prompt in enumerate(prompts):
        own = of.get(prompt.id, [])
        for sample, file in enumerate(own or [None]):
            rows.append(Row(len(rows), prompt.text, number if len(own) > 1 else None, True, prompt.id, sample))
            paths.append(file)
    return Collection(rows, paths, of.get(None, []), refused, "id")


def by_order(folder: Path, files: list[Path], prompts: Sequence[Prompt], refused: list[Refused]) -> Collection:
    """The n-th file shows the n-th entry of the prompt file; entries that are no prompts count."""
    both: list[Prompt | Refused] = [*prompts, *refused]
    entries = sorted(both, key=lambda each: each.number)
    if len(entries) != len(files):
        raise InputError(
            f"--images {folder}: {len(files)} pictures, but {len(entries)} prompts",
            hint='name the files: JSON lines of {"file": "a.png", "prompt": "..."}, or an `id` that names begin with',
        )
    pairs = [(entry, path) for entry, path in zip(entries, files, strict=True) if isinstance(entry, Prompt)]
    unused = [path for entry, path in zip(entries, files, strict=True) if isinstance(entry, Refused)]
    rows = [Row(i, entry.text, None, True, entry.id) for i, (entry, _) in enumerate(pairs)]
    return Collection(rows, [path for _, path in pairs], unused, refused, "order")


def left_out_of(found: Collection, folder: Path) -> dict[str, dict[str, object]]:
    """Pictures without a prompt, and prompts that are none, as `results.json` counts them."""
    problems: dict[str, list[str]] = defaultdict(list)
    for refused in found.refused:
        problems[f"not a prompt, {refused.reason}"].append(refused.source)
    if found.unused:
        problems["no prompt belongs to the picture"] = [path.relative_to(folder).as_posix() for path in found.unused]
    return {why: {"num": len(names), "files": names[:20]} for why, names in problems.items()}
