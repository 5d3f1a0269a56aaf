"""The groups of pictures in a report: which prompts, which results side by side, and what is written below each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flashdmd_cli.evaluation.chosen import Change, Key, changed, extremes, spread
from flashdmd_cli.evaluation.compare import Result, number
from flashdmd_cli.evaluation.exhibits import Card, Cards, Heading
from flashdmd_cli.evaluation.page import Exhibit
from flashdmd_cli.evaluation.thumbnails import Thumbnails

EVENLY = 12
"""Prompts that are shown whatever their scores."""
EXTREMES = 6
"""Best and worst pictures of each metric."""
CHANGED = 3
"""Most changed prompts of each metric and result, in each direction."""
MAX_CHANGED = 160
"""Pictures of most changed prompts on one page; with many results fewer are shown of each."""
MAX_SIDE_BY_SIDE = 96


@dataclass(frozen=True)
class Source:
    """A result, with its lines of `samples.jsonl` by picture."""

    result: Result

    @cached_property
    def samples(self) -> dict[Key, Mapping[str, Any]]:
        """The pictures that were measured, in the order of the suite, those with scores if any has some."""
        whole = [each for each in self.result.samples if not each.get("left_out")]
        found: dict[Key, Mapping[str, Any]] = {}
        for each in [each for each in whole if each["scores"]] or whole:
            found.setdefault((str(each["id"]), int(each["seed"])), each)
        return found

    @cached_property
    def ranked(self) -> dict[str, dict[Key, float]]:
        """By metric of which more or less is better: the scores of single pictures."""
        names = [name for name, each in self.result.metrics.items() if each["direction"] in ("higher", "lower")]
        return {name: scores for name in names if (scores := self.result.scores(name))}

    def higher(self, metric: str) -> bool:
        """Whether more of a metric is better."""
        return self.result.metrics[metric]["direction"] == "higher"


@dataclass(frozen=True)
class Shot:
    """One picture, and what is written below it."""

    source: Source
    key: Key
    caption: str


@dataclass(frozen=True)
class Group:
    """Prompts below one heading, each with its pictures side by side."""

    title: str
    prompts: Sequence[Sequence[Shot]]

    def exhibits(self, thumbnails: Thumbnails) -> list[Exhibit]:
        """The heading and the pictures."""

        def card(shots: Sequence[Shot]) -> Card:
            lines = [shot.source.samples.get(shot.key, {}) for shot in shots]
            prompt = next((str(line["prompt"]) for line in lines if line.get("prompt")), f"prompt {shots[0].key[0]}")
            return Card(prompt, [(shot.caption, thumbnails.of(shot.source.result.pictures, line))
                                 for shot, line in zip(shots, lines, strict=True)])  # fmt: skip

        cards = Cards([card(shots) for shots in self.prompts])
        return [Heading(self.title), cards] if self.title else [cards]


@dataclass
class Gallery:
    """All groups of a page, which share its budget of bytes: first all are chosen, then the pictures are read."""

    groups: list[Group] = field(default_factory=list)

    def add(self, groups: Sequence[Group]) -> Callable[[Thumbnails], list[Exhibit]]:
        """Remember groups; returns what reads their pictures."""
        self.groups += groups
        return lambda thumbnails: [each for group in groups for each in group.exhibits(thumbnails)]

    def thumbnails(self) -> Thumbnails:
        """For the pictures of all groups."""
        return Thumbnails(sum(len(shots) for group in self.groups for shots in group.prompts))


def evenly(sources: Sequence[Source]) -> list[Group]:
    """The same prompts and seeds of all results, evenly spaced over the suite."""
    common = [key for key in sources[0].samples if all(key in each.samples for each in sources)]
    keys = spread(common, max(2, min(EVENLY, MAX_SIDE_BY_SIDE // len(sources))))
    several = len(sources) > 1
    shots = [[Shot(each, key, each.result.name if several else "") for each in sources] for key in keys]
    return [Group("", shots)] if shots else []


def best_and_worst(source: Source) -> list[Group]:
    """For each metric of single pictures its best and its worst pictures; of a share those that it counts as wrong."""
    groups = []
    for name, scores in source.ranked.items():
        higher = source.higher(name)
        best, worst = extremes(scores, EXTREMES, higher)
        if set(scores.values()) <= {0.0, 1.0}:  # all that are right are equally good
            num = sum(value != higher for value in scores.values())
            titled = {f"{name}: wrong in {num:,} of {len(scores):,} pictures": worst}
        else:
            titled = {f"{name}: best": best, f"{name}: worst": worst}
        for title, keys in titled.items():
            if keys:
                groups.append(Group(title, [[Shot(source, key, f"{name} {number(scores[key])}")] for key in keys]))
    return groups


def most_changed(sources: Sequence[Source], names: Sequence[str]) -> list[Group]:
    """For each metric of single pictures, and each result but the first, the prompts most changed from the first."""
    base, *others = sources
    ranked = [name for name in names if name in base.ranked]
    num = max(1, min(CHANGED, MAX_CHANGED // max(1, 4 * len(ranked) * len(others))))
    groups = []
    for other in others:
        for name in ranked:
            both = base.ranked[name], other.ranked.get(name, {})
            found = changed(both[1], both[0], num, base.higher(name))

            def shots(change: Change, other: Source = other, both: Any = both) -> list[Shot]:
                before, after = (number(scores[change.key]) for scores in both)
                after = f"{after} ({change.difference:+.4g})"
                return [
                    Shot(source, change.key, f"{source.result.name}: {text}")
                    for source, text in ((base, before), (other, after))
                ]

            total = found.num_better + found.num_worse + found.num_equal
            for what, count, changes in (
                ("better", found.num_better, found.better),
                ("worse", found.num_worse, found.worse),
            ):
                if changes:
                    title = f"{name}: {other.result.name} is {what} for {count:,} of {total:,} prompts"
                    groups.append(Group(title, [shots(each) for each in changes]))
    return groups
