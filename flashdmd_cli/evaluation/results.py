"""`results.json`: the values of one evaluation with all that is needed to compare them with others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.evaluation.gathering import Scored, num_finite
from flashdmd_cli.evaluation.intake import Look
from flashdmd_cli.evaluation.metrics.intervals import Interval
from flashdmd_cli.evaluation.metrics.metric import Metric, Row
from flashdmd_cli.evaluation.results_schema import ResultDocument, SampleResult
from flashdmd_cli.runs.errors import InputError

SCHEMA = 1
RESULTS, SAMPLES, REPORT = "results.json", "samples.jsonl", "report.html"
SHOWN = 20
"""How many files are named for each reason; all are in `samples.jsonl`."""


def metric_table(
    metrics: Sequence[Metric],
    values: Mapping[str, Interval],
    scored: Scored,
    references: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Value, 95% interval, number of pictures, scale, direction and provenance of each metric.

    `references`: number and hash of the real pictures, of metrics that compare with files. `n` counts the pictures of
    which the value is made.
    """
    table = {}
    for metric in metrics:
        found = values[metric.name]
        parts = {name.partition(".")[2]: each for name, each in values.items() if name.startswith(f"{metric.name}.")}
        # Parts that are named the other way round, and those of `composition`.
        parts |= {name: each for name, each in values.items() if name.endswith(f".{metric.name}")}
        if metric.name == "composition":
            parts |= {name: each for name, each in values.items() if name.startswith("attributes.")}
        table[metric.name] = {
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "n": num_finite(metric, scored.numbers[metric.name]),
            "direction": metric.direction,
            "unit": metric.unit,
            "scale": metric.scale,
            "version": metric.version,
            "backend": metric.backend,
            "provenance": metric.provenance(),
        }
        if metric.name in references:
            table[metric.name]["references"] = dict(references[metric.name])
        if parts:
            table[metric.name]["parts"] = {
                name: {"value": each.value, "low": each.low, "high": each.high} for name, each in parts.items()
            }
    return table


def picture_facts(looks: Sequence[Look], names: Sequence[str | None], rows: Sequence[Row]) -> dict[str, Any]:
    """How many pictures were measured, and which were left out, converted or conspicuous."""
    left_out: dict[str, list[str]] = defaultdict(list)
    notes: dict[str, list[str]] = defaultdict(list)
    for each, file, row in zip(looks, names, rows, strict=True):
        name = file or f"prompt {row.prompt_id}"
        if each.reason:
            left_out[each.reason].append(name)
        for note in each.notes:
            notes[note].append(name)
    measured = sum(not each.reason for each in looks)
    return {
        "num": len(looks),
        "measured": measured,
        "left_out": {why: {"num": len(files), "files": files[:SHOWN]} for why, files in left_out.items()},
        "notes": {what: {"num": len(files), "files": files[:SHOWN]} for what, files in notes.items()},
    }


def warnings_of(
    facts: Mapping[str, Any],
    metrics: Sequence[Metric],
    scored: Scored,
    names: Sequence[str | None] = (),
    real: Mapping[str, int] = MappingProxyType({}),
) -> list[str]:
    """What a reader of the values must know: pictures left out or conspicuous, and metrics with too few pictures.

    `names` of the files; `real`: of each metric that compares, the number of real pictures.
    """
    lines = []
    for why, found in facts["left_out"].items():
        lines.append(f"left out, {why}: {named(found)}")
    for what in ("black", "one colour"):
        if what in facts["notes"]:
            lines.append(f"measured, but {what}: {named(facts['notes'][what])}")
    for metric in metrics:
        for why, positions in scored.dropped.get(metric.name, {}).items():
            files = [str(names[i]) if names else str(i) for i in positions]
            lines.append(f"{metric.name}: left out, {why}: {named({'num': len(files), 'files': files})}")
        num, total = num_finite(metric, scored.numbers[metric.name]), len(scored.numbers[metric.name])
        if num < total:
            lines.append(f"{metric.name}: the values of {total - num} of {total} pictures are not finite and left out")
        if num < metric.min_pictures:
            lines.append(f"{metric.name}: unreliable from {num} pictures, take {metric.min_pictures} or more")
        if real.get(metric.name, metric.min_pictures) < metric.min_pictures:
            lines.append(
                f"{metric.name}: unreliable with {real[metric.name]} real pictures, take {metric.min_pictures} or more"
            )
    return lines


def named(found: Mapping[str, Any]) -> str:
    """`3 pictures (a.png, b.png, c.png)`."""
    names = ", ".join(found["files"][:5]) + (", ..." if found["num"] > 5 else "")
    return f"{found['num']} picture{'' if found['num'] == 1 else 's'} ({names})"


def read_results(path: Path) -> dict[str, Any]:
    """The document of a finished evaluation, from its folder or file; InputError if it is none."""
    file = path / RESULTS if path.is_dir() else path
    try:
        document: dict[str, Any] = parse_json(file.read_text(encoding="utf-8"))
        if isinstance(document, dict) and isinstance(number := document.get("schema"), int) and number > SCHEMA:
            raise InputError(f"{file}: was written by a newer version", hint="update flashdmd")
        ResultDocument.model_validate(document)
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read: {error.strerror}", hint="name the folder that flashdmd eval wrote"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
        raise InputError(f"{file}: is no result of flashdmd eval: {problem}", hint="run flashdmd eval again") from None
    except ValueError as error:
        raise InputError(f"{file}: is no result of flashdmd eval: {error}", hint="run flashdmd eval again") from None
    return document


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The lines of `samples.jsonl` beside a result, up to the first that is not whole; empty where there is none."""
    file = (path if path.is_dir() else path.parent) / SAMPLES
    rows = []
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                row = parse_json(line)
                SampleResult.model_validate(row)
                rows.append(row)
    except (OSError, ValueError):
        pass
    return rows


def pictures_folder(path: Path, document: Mapping[str, Any]) -> Path | None:
    """The folder of the pictures of a result: below its own, which may have been moved, or where they were measured;
    None if it is not on this machine."""
    stated = document.get("pictures_in")
    if not isinstance(stated, str):
        return None
    own = (path if path.is_dir() else path.parent) / "pictures" / Path(stated).name
    return next((each for each in (own, Path(stated)) if each.is_dir()), None)
