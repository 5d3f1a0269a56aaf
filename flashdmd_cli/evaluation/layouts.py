"""Benchmarks that need environments of their own: the folders that they read, and the files of results that they write.

GenEval: `00012/metadata.jsonl` and `00012/samples/0003.png`; results as JSON lines with `tag` and `correct`. DPG-Bench:
`ID.png`, four pictures of a prompt as a square; results as text, a line for each picture. T2I-CompBench:
`samples/PROMPT_000012.png`, numbered through; results as a JSON list with `question_id` and `answer`.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.evaluation.metrics.intervals import Z95, Interval, by_prompt, exactly, mean, share
from flashdmd_cli.evaluation.metrics.metric import Row
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import write_text_atomically, writing

GRID = 4
"""Pictures of a prompt that DPG-Bench reads from one file."""
DPG_LINE = re.compile(r"(.*\.(?:png|jpe?g|webp))((?:, [-+.e\d]+)+)$", re.IGNORECASE)
"""`PATH, score, score, ..., mean`."""
MAX_NAME_BYTES = 255 - len("_000000.png")
"""Of a prompt in a file's name; the file systems of most machines allow 255 bytes."""


def write_layout(
    layout: str, rows: Sequence[Row], paths: Sequence[Path | None], out: Path, prompts: Path | None
) -> list[Path]:
    """Write drawn pictures as a benchmark reads them, into `out`, in place of what is there; returns the files.

    `prompts` is the file that the prompts came from: GenEval wants its lines back. Raises `UsageError` where the
    benchmark cannot read such pictures: DPG-Bench takes four of each prompt.
    """
    by_prompt: dict[str, list[tuple[Row, Path]]] = defaultdict(list)
    for row, path in zip(rows, paths, strict=True):
        if path is not None and row.counts:
            by_prompt[row.prompt_id].append((row, path))
    with writing(out):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        if layout == "geneval":
            return _geneval(by_prompt, out, prompts)
        return _dpg(by_prompt, out) if layout == "dpg" else _compbench(by_prompt, out)


def _geneval(by_prompt: Mapping[str, Sequence[tuple[Row, Path]]], out: Path, prompts: Path | None) -> list[Path]:
    about = metadata(prompts)
    files = []
    for number, (name, drawn) in enumerate(by_prompt.items()):
        folder = out / f"{number:05d}"
        (folder / "samples").mkdir(parents=True)
        line = about.get(name) or {"prompt": drawn[0][0].prompt}
        write_text_atomically(folder / "metadata.jsonl", json.dumps(line, ensure_ascii=False) + "\n")
        files.append(folder / "metadata.jsonl")
        for sample, (_, path) in enumerate(drawn):
            files.append(linked(path, folder / "samples" / f"{sample:04d}.png"))
    return files


def metadata(prompts: Path | None) -> dict[str, Any]:
    """The objects of a JSON-lines file, by `id` or number of the line; nothing for other files."""
    if prompts is None or prompts.suffix.lower() != ".jsonl":
        return {}
    found = {}
    for number, line in enumerate(prompts.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip() and isinstance(values := parse_json(line), dict):
            found[str(values.get("id", number))] = values
    return found


def _dpg(by_prompt: Mapping[str, Sequence[tuple[Row, Path]]], out: Path) -> list[Path]:
    files = []
    for name, drawn in by_prompt.items():
        if len(drawn) != GRID:
            raise UsageError(f"--layout dpg: takes {GRID} pictures of each prompt, not {len(drawn)}", hint="--seeds 4")
        images = [Image.open(path).convert("RGB") for _, path in drawn]
        width, height = images[0].size
        sheet = Image.new("RGB", (2 * width, 2 * height))
        for i, image in enumerate(images):
            sheet.paste(image, (i % 2 * width, i // 2 * height))
        files.append(out / f"{safe(name)}.png")
        with writing(files[-1]):
            sheet.save(files[-1])
    return files


def _compbench(by_prompt: Mapping[str, Sequence[tuple[Row, Path]]], out: Path) -> list[Path]:
    files: list[Path] = []
    (out / "samples").mkdir()
    for drawn in by_prompt.values():
        for row, path in drawn:
            files.append(linked(path, out / "samples" / f"{safe(row.prompt)}_{len(files):06d}.png"))
    return files


def safe(text: str) -> str:
    """A prompt as a file's name: without separators, line breaks and underscores, which end the prompt there."""
    name = "".join(" " if letter in "/\\_\0" or not letter.isprintable() else letter for letter in text)
    return name.encode("utf-8", "replace")[:MAX_NAME_BYTES].decode("utf-8", "ignore").strip(" .") or "prompt"


def linked(path: Path, to: Path) -> Path:
    """The file `path` under another name too; a copy on file systems without links."""
    try:
        os.link(path, to)
    except OSError:
        with writing(to):
            shutil.copyfile(path, to)
    return to


def read_bench(layout: str, path: Path) -> tuple[dict[str, Interval], list[dict[str, Any]]]:
    """The values of a benchmark's own result file with their intervals, and a line for each picture.

    Raises `InputError` for a file that is no result of this benchmark.
    """
    reader = {"geneval": _read_geneval, "dpg": _read_dpg}.get(layout, _read_compbench)
    try:
        values, samples = reader(path.read_text(encoding="utf-8"))
        if not all(math.isfinite(each.value) for each in values.values()):
            raise ValueError("a score in it is no finite number")
        return values, samples
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError, ArithmeticError, AttributeError) as error:
        raise InputError(
            f"{path}: is no result of {layout}: {type(error).__name__} {error}", hint="name the file that it wrote"
        ) from None


def _read_geneval(text: str) -> tuple[dict[str, Interval], list[dict[str, Any]]]:
    """The overall score is the mean over the six tasks; its interval from the standard errors of the tasks. The four
    pictures of a prompt are one observation."""
    rows = [parse_json(line) for line in text.splitlines() if line.strip()]
    tasks: dict[str, list[bool]] = defaultdict(list)
    prompts: dict[str, list[str]] = defaultdict(list)
    samples = []
    for row in rows:
        tasks[row["tag"]].append(bool(row["correct"]))
        parts = Path(row["filename"]).parts
        prompts[row["tag"]].append(parts[-3] if len(parts) > 2 else row["filename"])
        samples.append({"id": prompts[row["tag"]][-1], "seed": int(Path(row["filename"]).stem),
                        "prompt": row["prompt"], "scores": {"geneval": float(bool(row["correct"]))}})  # fmt: skip
    if not rows:
        raise ValueError("it is empty")
    shares = {tag: share(torch.tensor(right), prompts[tag]) for tag, right in tasks.items()}
    overall = sum(each.value for each in shares.values()) / len(shares)
    variance = 0.0
    for tag, right in tasks.items():
        each, value = by_prompt(torch.tensor(right), prompts[tag]), shares[tag].value
        spread = float(each.var(correction=0)) if len(each) > 1 else value * (1 - value)
        variance += spread / len(each) / len(tasks) ** 2
    half = Z95 * variance**0.5
    total = Interval(overall, max(0.0, overall - half), min(1.0, overall + half))
    return {"geneval": total, **{f"geneval.{tag}": each for tag, each in shares.items()}}, samples


def _read_dpg(text: str) -> tuple[dict[str, Interval], list[dict[str, Any]]]:
    """Scores of pictures on 0 to 1, the benchmark's total on 0 to 100 (`DPG-Bench score`), and its categories."""
    samples: list[dict[str, Any]] = []
    categories: dict[str, float] = {}
    stated: float | None = None
    for line in text.splitlines():
        if scored := DPG_LINE.match(line):
            stem = Path(scored[1]).name.split(".")[0]
            score = float(scored[2].rpartition(", ")[2])
            samples.append({"id": stem, "seed": 0, "prompt": "", "scores": {"dpg": 100 * score}})
        elif line.startswith("DPG-Bench score:"):
            stated = float(line.partition(":")[2])
        elif line.startswith("\t"):
            category, _, value = line.strip().rpartition(":")
            categories[category] = float(value)
    if not samples:
        raise ValueError("no scores of pictures in it")
    total = mean(torch.tensor([each["scores"]["dpg"] for each in samples], dtype=torch.float64))
    if stated is not None and abs(stated - total.value) > 0.01:
        raise ValueError(f"its total {stated} is not the mean of its pictures, {total.value:.4f}: is the file whole?")
    return {"dpg": total, **{f"dpg.{name}": exactly(value) for name, value in categories.items()}}, samples


def _read_compbench(text: str) -> tuple[dict[str, Interval], list[dict[str, Any]]]:
    """`answer` is the score of a picture on 0 to 1, `question_id` its number."""
    rows = parse_json(text)
    samples: list[dict[str, Any]] = [
        {"id": str(row["question_id"]), "seed": 0, "prompt": "", "scores": {"t2i-compbench": float(row["answer"])}}
        for row in rows
    ]
    if not samples:
        raise ValueError("it is empty")
    scores = torch.tensor([each["scores"]["t2i-compbench"] for each in samples], dtype=torch.float64)
    return {"t2i-compbench": mean(scores)}, samples
