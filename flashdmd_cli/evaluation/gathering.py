"""What was measured of all pictures: the chunks that `scoring` wrote, without what cannot be part of a value."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from flashdmd_cli.evaluation.intake import Look
from flashdmd_cli.evaluation.metrics.metric import Metric, Row
from flashdmd_cli.evaluation.scoring import CHUNK, chunk_path, num_chunks, read_chunk
from flashdmd_cli.runs.errors import InputError


@dataclass(frozen=True)
class Scored:
    """What was measured of all pictures, in the order of the suite."""

    looks: list[Look]
    numbers: dict[str, Tensor]
    positions: dict[str, list[int]]
    """By metric: the positions of the pictures that it measured."""
    dropped: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """By metric: the positions of pictures that were measured and left out of the value, by the reason."""

    def drop(self, name: str, keep: Sequence[bool], reason: str) -> None:
        """Leave out of a metric the pictures whose place in `keep` is false."""
        if all(keep):
            return
        found, places = self.positions[name], [place for place, kept in enumerate(keep) if kept]
        gone = [i for i, kept in zip(found, keep, strict=True) if not kept]
        self.dropped.setdefault(name, {})[reason] = gone
        self.numbers[name] = self.numbers[name][places]
        self.positions[name] = [found[place] for place in places]

    @property
    def references_sha256(self) -> str:
        """Hash of the contents of all files, whatever their names and order: of the real pictures."""
        hashes = sorted(each.sha256 or "" for each in self.looks)
        return hashlib.sha256("".join(hashes).encode()).hexdigest()


def gather(metrics: Sequence[Metric], rows: Sequence[Row], store: Path) -> Scored:
    """All chunks of `rows` together; InputError if one is missing."""
    looks: list[Look] = []
    parts: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
    positions: dict[str, list[int]] = {metric.name: [] for metric in metrics}
    waiting: dict[str, Tensor] = {}  # pictures of the last group, which may continue in the next chunk
    for number in range(num_chunks(rows)):
        chunk = read_chunk(chunk_path(store, number))
        if chunk is None:
            raise InputError(f"{chunk_path(store, number)}: cannot be read", hint="run the same command again")
        looks += chunk.looks
        for metric in metrics:
            if metric.name in chunk.numbers:
                found, own = chunk.numbers[metric.name], positions[metric.name]
                if metric.name in waiting:
                    found = torch.cat([waiting[metric.name], found])
                own += [number * CHUNK + i for i in chunk.taken[metric.name]]
                last = rows[own[-1]].group
                num_whole = sum(last is None or rows[i].group != last for i in own[len(own) - len(found) :])
                if num_whole:
                    parts[metric.name].append(metric.condense(found[:num_whole]))
                waiting[metric.name] = found[num_whole:].clone()
    for metric in metrics:
        if len(waiting.get(metric.name, ())):
            parts[metric.name].append(metric.condense(waiting[metric.name]))
    whole = {name: torch.cat(each) if each else torch.empty(0) for name, each in parts.items()}
    scored = Scored(looks, whole, positions)
    for metric in metrics:
        drop_not_finite(metric, scored)
        if metric.of_groups:
            drop_broken_groups(metric, rows, scored)
    return scored


def drop_not_finite(metric: Metric, scored: Scored) -> None:
    """Of a metric of whole sets, leave out pictures with features that are not finite: one would make all of it NaN.

    A mean over single pictures leaves them out by itself, and says how many.
    """
    numbers = scored.numbers[metric.name]
    if len(numbers) and numbers.is_floating_point() and metric.scores(numbers) is None:
        scored.drop(metric.name, numbers.flatten(1).isfinite().all(dim=1).tolist() if numbers.ndim > 1
                    else numbers.isfinite().tolist(), "its features are not finite")  # fmt: skip


def drop_broken_groups(metric: Metric, rows: Sequence[Row], scored: Scored) -> None:
    """Of a metric of groups, leave out the groups of which a picture is left out: it needs equally many of each."""
    groups = [rows[i].group for i in scored.positions[metric.name]]
    whole, there = Counter(row.group for row in rows if metric.takes(row)), Counter(groups)
    keep = [there[group] == whole[group] > 1 for group in groups]
    scored.drop(metric.name, keep, "another picture of its prompt is missing")


def num_finite(metric: Metric, numbers: Tensor) -> int:
    """Of how many pictures the value of a metric is made."""
    scores = metric.scores(numbers) if len(numbers) else None
    return len(numbers) if scores is None else int(scores.isfinite().sum())


def why_not(metric: Metric, scored: Scored, num_real: int | None = None) -> str | None:
    """Why a metric has no value of these pictures and `num_real` real ones (None: not known yet); None if it has."""
    numbers = scored.numbers[metric.name]
    if not len(numbers):
        dropped = scored.dropped.get(metric.name, {})
        return f"no picture is left: {'; '.join(dropped)}" if dropped else "no picture that it could measure"
    if not (num := num_finite(metric, numbers)):
        return f"none of {len(numbers)} pictures has a finite value"
    if num < metric.least:
        return f"needs {metric.least} pictures, there are {num}"
    if num_real is not None and num_real < metric.least:
        return f"needs {metric.least} real pictures, there are {num_real}"
    return None
