"""Measures pictures in batches: what metrics keep of each picture, and the values that they make of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flashdmd_cli.evaluation.metrics.intervals import Interval
from flashdmd_cli.evaluation.metrics.metric import Metric, Row
from flashdmd_cli.evaluation.suites.suite import Batch, Suite


@dataclass(frozen=True)
class Measured:
    """The values of one set of pictures."""

    values_by_name: dict[str, Interval]
    """By the metric's name; parts of a metric as `GROUP.NAME`."""
    num_pictures: int
    """How many count, pictures that are drawn for groups alone left out."""

    def __getitem__(self, name: str) -> float:
        """The value of a metric."""
        return self.values_by_name[name].value

    def as_dict(self) -> dict[str, Any]:
        """For JSON: values by name, parts in a table of their group, intervals, and the number of pictures."""
        values: dict[str, Any] = {}
        for name, interval in self.values_by_name.items():
            group, _, part = name.partition(".")
            if part:
                values.setdefault(group, {})[part] = interval.value
            else:
                values[name] = interval.value
        intervals = {name: [interval.low, interval.high] for name, interval in self.values_by_name.items()}
        return {**values, "intervals": intervals, "num_pictures": self.num_pictures}


class Measurements:
    """What metrics measured on the pictures seen so far: a few numbers of each picture, none of its pixels."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = metrics
        self.num_pictures = 0
        self._numbers: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
        self.prompts: dict[str, list[str]] = {metric.name: [] for metric in metrics}
        """By metric: the prompt ids of the pictures that it takes."""

    def update(self, pictures: Tensor, rows: Sequence[Row]) -> None:
        """Measure `B` pictures (B, 3, H, W) uint8, the next ones in the order of the suite."""
        if len(pictures) != len(rows):
            raise ValueError(f"{len(pictures)} pictures for {len(rows)} rows")
        # Metrics that take the same rows get the same tensor, by which a shared network knows it again.
        chosen: dict[tuple[int, ...], Tensor] = {}
        for metric in self.metrics:
            taken = tuple(i for i, row in enumerate(rows) if metric.takes(row))
            if taken:
                part = chosen.setdefault(taken, pictures if len(taken) == len(rows) else pictures[list(taken)])
                self._numbers[metric.name].append(metric.measure(part, [rows[i] for i in taken]))
                self.prompts[metric.name] += [rows[i].prompt_id for i in taken]
        self.num_pictures += sum(row.counts for row in rows)

    def of(self, metric: Metric) -> Tensor:
        """What a metric measured, condensed: (N, ...), a row for each picture that it takes."""
        parts = self._numbers[metric.name]
        return metric.condense(torch.cat(parts)) if parts else torch.empty(0)


def measure(metrics: Sequence[Metric], batches: Iterable[Batch]) -> Measurements:
    """Measure all `batches`, one of which is in memory at a time."""
    found = Measurements(metrics)
    for pictures, rows in batches:
        found.update(pictures, rows)
    return found


class Evaluator:
    """Measures sets of pictures of one suite against its real pictures, which are measured once."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite

    @cached_property
    def real(self) -> Measurements:
        """What the metrics that compare find in the real pictures."""
        return measure([metric for metric in self.suite.metrics if metric.compares], self.suite.references())

    def evaluate(self, batches: Iterable[Batch]) -> Measured:
        """The values of pictures that come in the order of `suite.rows`; ValueError where some lack."""
        found = measure(self.suite.metrics, batches)
        if found.num_pictures != (wanted := sum(row.counts for row in self.suite.rows)):
            raise ValueError(f"{found.num_pictures} pictures where {self.suite.name} has {wanted} that count")
        numbers = {metric.name: found.of(metric) for metric in self.suite.metrics}
        real = {metric.name: self.real.of(metric) for metric in self.suite.metrics if metric.compares}
        return Measured(values_of(self.suite.metrics, numbers, real, found.prompts), found.num_pictures)


def values_of(
    metrics: Sequence[Metric],
    numbers: Mapping[str, Tensor],
    real: Mapping[str, Tensor],
    prompts: Mapping[str, Sequence[str]],
) -> dict[str, Interval]:
    """The values with their intervals, from what was measured of drawn and of real pictures, and the prompt ids of the
    drawn ones, by metric; parts come last."""
    values: dict[str, Interval] = {}
    for metric in metrics:
        compared = real[metric.name] if metric.compares else torch.empty(0)
        values |= metric.result(numbers[metric.name], compared, prompts[metric.name])
    parts = {name: values.pop(name) for name in list(values) if "." in name}
    return values | parts
