"""Which prompts a report shows: evenly spaced ones, the best and worst of one result, the most changed of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest

Key = tuple[str, int]
"""A picture: id of its prompt, and seed."""


@dataclass(frozen=True)
class Change:
    """A prompt whose pictures differ between two results."""

    key: Key
    """The picture of the prompt that changed most in this direction."""
    difference: float
    """Mean over the seeds of the prompt."""


@dataclass(frozen=True)
class Changes:
    """The most changed prompts, largest change first, and how many changed at all."""

    better: list[Change]
    worse: list[Change]
    num_better: int
    num_worse: int
    num_equal: int


def spread(keys: Sequence[Key], num: int) -> list[Key]:
    """At most `num` of `keys`, evenly spaced, the first among them: a choice that looks at no score."""
    return [keys[len(keys) * i // num] for i in range(num)] if len(keys) > num else list(keys)


def extremes(scores: Mapping[Key, float], num: int, higher: bool) -> tuple[list[Key], list[Key]]:
    """The best and the worst at most `num` pictures, the most extreme first; of equal ones the first of the suite.

    A picture with the worst value is never among the best, nor one with the best value among the worst: where all
    values are equal there are neither.
    """
    if not scores or len(set(scores.values())) == 1:
        return [], []
    low, high = min(scores.values()), max(scores.values())
    upper = nsmallest(num, (key for key in scores if scores[key] > low), key=lambda key: -scores[key])
    lower = nsmallest(num, (key for key in scores if scores[key] < high), key=lambda key: scores[key])
    return (upper, lower) if higher else (lower, upper)


def changed(ours: Mapping[Key, float], base: Mapping[Key, float], num: int, higher: bool) -> Changes:
    """The prompts for which `ours` is most above and most below `base`, at most `num` each; of equal ones the first."""
    by_prompt: dict[str, dict[Key, float]] = {}
    for key in base:
        if key in ours:
            by_prompt.setdefault(key[0], {})[key] = (ours[key] - base[key]) * (1 if higher else -1)
    gains = {prompt: sum(each.values()) / len(each) for prompt, each in by_prompt.items()}

    def shown(prompt: str, sign: int) -> Change:
        pictures = by_prompt[prompt]
        key = max(pictures, key=lambda each: sign * pictures[each])
        return Change(key, gains[prompt] * (1 if higher else -1))

    better = [prompt for prompt, gain in gains.items() if gain > 0]
    worse = [prompt for prompt, gain in gains.items() if gain < 0]
    return Changes(
        [shown(prompt, 1) for prompt in nsmallest(num, better, key=lambda prompt: -gains[prompt])],
        [shown(prompt, -1) for prompt in nsmallest(num, worse, key=lambda prompt: gains[prompt])],
        len(better),
        len(worse),
        len(gains) - len(better) - len(worse),
    )
