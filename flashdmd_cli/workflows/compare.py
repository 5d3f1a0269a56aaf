"""Comparison of finished evaluations, and reading of results that benchmarks wrote in environments of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import plain, write_text_atomically
from flashdmd_cli.runs.folder import RUNS, claim
from flashdmd_cli.runs.lock import releasing
from flashdmd_cli.runs.manifest import FileRecord, Manifest, versions, write_manifest


def compare(
    results: Sequence[Path | str],
    *,
    format: str = "markdown",
    metrics: Sequence[str] | None = None,
    paper: bool | None = None,
    out: Path | str | None = None,
) -> tuple[dict[str, Any], str]:
    """Compare finished evaluations, each given by its folder, with the first of them.

    `paper` adds the rows that the paper prints, marked as published (None: for the whole of `coco10k` alone, the set
    that they are of). Returns the comparison, and its table in `format`, which is also written to the file `out`.

    Raises `UsageError` for results that cannot be compared, `InputError` for what is no result.
    """
    from flashdmd_cli.evaluation.compare import (
        FORMATS,
        Result,
        check_comparable,
        common_metrics,
        compare_results,
        published_rows,
        render,
    )
    from flashdmd_cli.evaluation.results import read_results, read_samples

    if format not in FORMATS:
        raise UsageError(f"--format {format}: unknown", hint=f"one of {', '.join(FORMATS)}")
    paths = [Path(each) for each in results]
    read = [(path, read_results(path)) for path in paths]
    names = [str(document.get("name", path.name)) for path, document in read]
    if len(set(names)) < len(names):  # two runs of one model: tell them apart by their folders
        names = [(path if path.is_dir() else path.parent).name for path in paths]
    found = [Result(name, document, read_samples(path)) for name, (path, document) in zip(names, read, strict=True)]
    check_comparable(found)
    chosen = common_metrics(found, metrics)
    document = compare_results(found, chosen)
    whole = document["suite"]["name"] == "coco10k" and document["suite"].get("limit") is None
    if paper or (paper is None and whole):
        document["rows"] += published_rows(chosen)
    text = render(document, format)
    if out is not None:
        write_text_atomically(Path(out), text + "\n")
    return plain(document), text


@releasing()
def read_benchmark(layout: str, file: Path | str, out: Path | str | None = None) -> dict[str, Any]:
    """Read the file of results of `geneval`, `dpg` or `t2i-compbench` into a result of the form of `evaluate`.

    Written to `out` (None: ./runs/eval-LAYOUT-NAME), so that `compare` takes it. Raises `InputError` for a file that is
    no such result.
    """
    from flashdmd_cli.evaluation.layouts import LAYOUTS, read_bench
    from flashdmd_cli.evaluation.results import RESULTS, SAMPLES

    if layout not in LAYOUTS:
        raise UsageError(f"LAYOUT {layout}: unknown", hint=f"one of {', '.join(LAYOUTS)}")
    path = Path(file)
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
