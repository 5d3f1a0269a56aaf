"""Comparison of finished evaluations, and reading of results that benchmarks wrote in environments of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import plain, write_text_atomically
from flashdmd_cli.runs.folder import RUNS, claim
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import FileRecord, Manifest, versions, write_manifest
from flashdmd_cli.runs.nearest import unknown

if TYPE_CHECKING:
    from flashdmd_cli.evaluation.compare import Result

SUFFIXES = {"markdown": ".md", "csv": ".csv", "latex": ".tex"}
"""Of the file of a table, by its format."""


def compare(
    results: Sequence[Path | str],
    *,
    format: str = "markdown",
    metrics: Sequence[str] | None = None,
    paper: bool | None = None,
    out: Path | str | None = None,
) -> tuple[dict[str, Any], str]:
    """Compare finished evaluations, each given by its folder, with the first of them.

    `paper` adds the rows that the paper prints, marked as published (None: where they are of the same pictures: all of
    `coco10k`, with its published draw). Returns the comparison, and its table in `format`. `out` is a file for
    the table (`table.md`) or for the page (`page.html`), or a folder for `report.html`, the table and
    `comparison.json`.

    Raises `UsageError` for results that cannot be compared, `InputError` for what is no result.
    """
    if format not in SUFFIXES:
        raise unknown("--format", format, SUFFIXES)
    paths = [Path(each) for each in results]
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such folder", hint="name the folder that flashdmd eval wrote")
    from flashdmd_cli.evaluation.compare import (  # imports torch
        check_comparable,
        common_metrics,
        compare_results,
        has_published,
        published_rows,
    )
    from flashdmd_cli.evaluation.compare_tables import render
    from flashdmd_cli.evaluation.report_page import read_result

    found = [read_result(path) for path in paths]
    folders = [path if path.is_dir() else path.parent for path in paths]
    # Two runs of one model are distinguished by their folders, or by the paths of these.
    for names in ([folder.resolve().name for folder in folders], [str(folder) for folder in folders]):
        if len({each.name for each in found}) < len(found):
            found = [replace(each, name=name) for each, name in zip(found, names, strict=True)]
    check_comparable(found)
    chosen = common_metrics(found, metrics)
    document = compare_results(found, chosen)
    if paper or (paper is None and all(has_published(each.document) for each in found)):
        document["rows"] += published_rows(chosen)
    text = render(document, format)
    if out is not None:
        write_out(Path(out), found, document, text + "\n", SUFFIXES[format])
    return plain(document), text


@releasing()
def write_out(out: Path, results: Sequence[Result], document: Mapping[str, Any], text: str, suffix: str) -> None:
    """Write a comparison: its table or page to a file, by the suffix; page, table and values to a folder."""
    from flashdmd_cli.evaluation.page import write_page
    from flashdmd_cli.evaluation.report_page import comparison_page
    from flashdmd_cli.evaluation.results import REPORT

    if out.suffix == ".html":
        write_page(out, comparison_page(results, document))
    elif out.suffix[1:].isalpha() and not out.is_dir():  # `runs/compare-0.5` is a folder
        write_text_atomically(out, text)
    else:
        folder = claim(out, "comparison")
        values = json.dumps(plain(document), indent=2, ensure_ascii=False)
        write_text_atomically(folder / "comparison.json", values + "\n")
        write_text_atomically(folder / f"table{suffix}", text)
        write_page(folder / REPORT, comparison_page(results, document))


@releasing()
def read_benchmark(layout: str, file: Path | str, out: Path | str | None = None) -> dict[str, Any]:
    """Read the file of results of `geneval`, `dpg` or `t2i-compbench` into a result of the form of `evaluate`.

    Written to `out` (None: ./runs/eval-LAYOUT-NAME), so that `compare` takes it. Raises `InputError` for a file that is
    no such result.
    """
    from flashdmd_cli.evaluation.names import LAYOUTS

    path = Path(file)
    if layout not in LAYOUTS:
        raise unknown("LAYOUT", layout, LAYOUTS)
    if not path.is_file():
        raise InputError(f"FILE {path}: no such file", hint="the file of results that the benchmark wrote")
    from flashdmd_cli.evaluation.layouts import read_bench  # imports torch
    from flashdmd_cli.evaluation.results import RESULTS, SAMPLES

    values, samples = read_bench(layout, path)
    folder = claim(Path(out) if out is not None else RUNS / f"eval-{layout}-{path.resolve().parent.name}", "eval")
    total, num = values[layout], len(samples)
    prompts = sorted({str(each["id"]) for each in samples})
    suite = {"name": layout, "version": 1, "sha256": hashlib.sha256(json.dumps([layout, prompts]).encode()).hexdigest()}
    document = {
        "schema": 1,
        "name": folder.name.removeprefix(f"eval-{layout}-"),
        "suite": {**suite, "prompts": len(prompts), "pictures": num, "limit": None, "seeds": None},
        "out": folder,
        "read_from": path,
        "metrics": {
            layout: {
                "value": total.value, "low": total.low, "high": total.high, "n": num, "direction": "higher",
                "unit": "score of the benchmark", "scale": "", "version": 1, "provenance": {"benchmark": layout},
                "parts": {name.partition(".")[2]: {"value": each.value, "low": each.low, "high": each.high}
                          for name, each in values.items() if "." in name},
            }
        },
        "skipped": {},
        "versions": versions(),
    }  # fmt: skip
    document = plain(document)
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in samples)
    write_text_atomically(folder / SAMPLES, lines)
    write_text_atomically(folder / RESULTS, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    records = [FileRecord(path=RESULTS), FileRecord(path=SAMPLES)]
    write_manifest(folder, Manifest(kind="eval", files=records, recipe={"layout": layout, "file": str(path)}))
    return document
