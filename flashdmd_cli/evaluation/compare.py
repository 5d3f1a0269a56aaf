"""Results of one suite side by side: values, differences of the same pictures, and the rows that a paper printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from flashdmd_cli.evaluation.metrics.intervals import Interval, mean, share, shown
from flashdmd_cli.runs.errors import UsageError

PUBLISHED = Path(__file__).parent / "published.yaml"
PUBLISHED_PICTURES = 10_000
"""Of which the published rows are."""
ARROWS = {"higher": "↑", "lower": "↓", "one": "→ 1", "none": ""}


@dataclass(frozen=True)
class Result:
    """One evaluation: the contents of its `results.json` and `samples.jsonl`."""

    name: str
    document: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    pictures: Path | None = None
    """The folder of its pictures, if it is on this machine."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What was measured, by name."""
        return self.document["metrics"]

    def scores(self, metric: str) -> dict[tuple[str, int], float]:
        """The value of each picture by (prompt id, seed), where the metric is one of single pictures."""
        return {
            (str(each["id"]), int(each["seed"])): float(each["scores"][metric])
            for each in self.samples
            if each["scores"].get(metric) is not None
        }


@dataclass(frozen=True)
class Difference:
    """A result minus the first one in one metric."""

    delta: Interval | None
    """Mean of the differences of the same prompt and seed, with its interval; None for a metric of whole sets."""
    pairs: int
    wins: Interval | None
    """Share of pairs that the result wins, ties counted half, with its interval."""


def paired(ours: Mapping[tuple[str, int], float], base: Mapping[tuple[str, int], float], higher: bool) -> Difference:
    """The differences `ours - base` of the same prompt and seed.

    Several pictures of one prompt are not independent, so that the interval of the difference is that of the means of
    the prompts, and that of the share of pairs won takes a prompt as one observation.
    """
    common = sorted(ours.keys() & base.keys())
    if not common:
        return Difference(None, 0, None)
    by_prompt: dict[str, list[float]] = {}
    won: list[float] = []
    for key in common:
        difference = ours[key] - base[key]
        by_prompt.setdefault(key[0], []).append(difference)
        won.append(0.5 if difference == 0 else float((difference > 0) == higher))
    means = torch.tensor([sum(each) / len(each) for each in by_prompt.values()], dtype=torch.float64)
    wins = share(torch.tensor(won, dtype=torch.float64), [prompt for prompt, _ in common])
    return Difference(mean(means), len(common), wins)


def check_comparable(results: Sequence[Result]) -> None:
    """UsageError where results are not of the same suite, prompts and real pictures."""
    first = results[0]
    for other in results[1:]:
        ours, theirs = first.document["suite"], other.document["suite"]
        if ours["sha256"] != theirs["sha256"]:
            raise UsageError(
                f"compare: {first.name} is of {ours['name']} {ours['version']}, {other.name} of {theirs['name']}"
                f" {theirs['version']}, or of other prompts",
                hint="only results of one suite and version are compared; evaluate both on the same one",
            )
        for what in ("prompts", "pictures"):
            if ours.get(what) != theirs.get(what):
                raise UsageError(
                    f"compare: {first.name} has {ours.get(what)} {what}, {other.name} {theirs.get(what)}",
                    hint="evaluate both with the same --limit and --seeds",
                )


def common_metrics(results: Sequence[Result], wanted: Sequence[str] | None) -> list[str]:
    """Metrics that all results have; UsageError where one was measured differently, or is not there."""
    names = [name for name in results[0].metrics if all(name in each.metrics for each in results)]
    for name in wanted or ():
        if name not in names:
            raise UsageError(f"--metrics {name}: not all results have it", hint=f"one of {', '.join(names) or 'none'}")
    names = [name for name in names if wanted is None or name in wanted]
    if not names:
        raise UsageError("compare: the results have no metric in common", hint="measure the same ones: --metrics")
    for name in names:
        first = results[0].metrics[name]
        for other in results[1:]:
            theirs = other.metrics[name]
            for key in ("version", "scale", "provenance", "references"):
                if first.get(key) != theirs.get(key):
                    what = "other real pictures" if key == "references" else f"another {key}"
                    raise UsageError(
                        f"compare: {name} was measured with {what} in {results[0].name} and {other.name}",
                        hint="measure both with the same weights, options and version of flashdmd",
                    )
    return names


def compare_results(results: Sequence[Result], names: Sequence[str]) -> dict[str, Any]:
    """Values of all results, and for all but the first the paired differences from it."""
    rows = []
    for number, result in enumerate(results):
        values = {}
        for name in names:
            found = result.metrics[name]
            entry = {key: found.get(key) for key in ("value", "low", "high", "n")}
            if number:
                higher = found["direction"] != "lower"
                difference = paired(result.scores(name), results[0].scores(name), higher)
                first = results[0].metrics[name]["value"]
                known = first is not None and found["value"] is not None
                entry |= {"difference": found["value"] - first if known else None, "pairs": difference.pairs}
                # Of a ratio that should be 1, and of a mere description, a higher value is no win.
                wins = difference.wins if found["direction"] in ("higher", "lower") else None
                for key, interval in (("paired", difference.delta), ("wins", wins)):
                    if interval is not None:
                        entry[key] = {"value": interval.value, "low": interval.low, "high": interval.high}
            values[name] = entry
        rows.append({"name": result.name, "published": False, "steps": result.document.get("steps"),
                     "nfe": result.document.get("nfe"), "values": values})  # fmt: skip
    return {
        "suite": results[0].document["suite"],
        "warnings": measured_differently(results, names),
        "metrics": {name: {key: results[0].metrics[name].get(key) for key in ("direction", "scale", "unit")}
                    for name in names},
        "rows": rows,
    }  # fmt: skip


def measured_differently(results: Sequence[Result], names: Sequence[str]) -> list[str]:
    """A line for each metric whose values are of different numbers of pictures, some of which were left out."""
    lines = []
    for name in names:
        counts = {result.name: result.metrics[name].get("n") for result in results}
        if len(set(counts.values())) > 1:
            lines.append(f"{name}: of {', '.join(f'{num} pictures in {each}' for each, num in counts.items())}")
    return lines


def has_published(result: Mapping[str, Any]) -> bool:
    """Whether the paper's rows are of the pictures of a result: all of `coco10k`, whose draw was found to be the
    published one when its prompts were prepared, and every picture measured."""
    suite, measured = result["suite"], (result.get("pictures") or {}).get("measured")
    return suite["name"] == "coco10k" and bool(suite.get("published")) and measured == PUBLISHED_PICTURES


def published_rows(names: Sequence[str]) -> list[dict[str, Any]]:
    """The paper's rows with those of the metrics that it prints; a row of several tables once."""
    document = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    order = list(document["metrics"])
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, found in document["tables"].items():
        for row in found["rows"]:
            key = (row["method"], row["nfe"], *row["values"])
            if key in rows:
                rows[key]["tables"].append(number)
                continue
            values = dict(zip(order, row["values"], strict=True))
            rows[key] = {
                "name": row["method"],
                "published": True,
                "source": document["source"],
                "tables": [number],
                "steps": None,
                "nfe": row["nfe"],
                "values": {name: {"value": values[name]} for name in names if name in values},
            }
    return list(rows.values())


def number(value: float, digits: int = 4) -> str:
    """A value with the digits that tables of these metrics have: fewer above 10."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.{digits if abs(value) < 10 else 2}f}"


def cell(entry: Mapping[str, Any] | None) -> str:
    """`0.3301 ± 0.0012`, or with both ends of an interval that is not symmetric; of a published row the value alone."""
    if entry is None or entry.get("value") is None:
        return "-"
    if entry.get("low") is None or entry.get("high") is None:
        return number(entry["value"])
    return shown(entry["value"], entry["low"], entry["high"], number)


def title(row: Mapping[str, Any]) -> str:
    """The name of a row, with its table if it is a paper's."""
    if not row["published"]:
        return str(row["name"])
    return f"{row['name']} (published, Table {', '.join(map(str, row['tables']))})"


def difference_cell(entry: Mapping[str, Any]) -> str:
    """`+0.0031 [+0.0012, +0.0050]`; of a metric of whole sets the difference alone."""
    if "paired" in entry:
        found = entry["paired"]
        return f"{found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
    return f"{entry['difference']:+.4f} (not paired)" if entry.get("difference") is not None else "-"


def win_cell(entry: Mapping[str, Any]) -> str:
    """`0.61 [0.57, 0.64]`."""
    if "wins" not in entry:
        return "-"
    found = entry["wins"]
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def effort(row: Mapping[str, Any]) -> list[str]:
    """Sampling steps and evaluations of the network for each picture (NFE), which guidance doubles; empty where one is
    not known: the paper prints NFE alone."""
    return [str(row.get(key) or "") for key in ("steps", "nfe")]
