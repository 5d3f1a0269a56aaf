"""Suites: fixed captions and everything measured on the pictures drawn for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from flashdmd_cli.evaluation.metrics.composition import composition
from flashdmd_cli.evaluation.metrics.coverage import coverage
from flashdmd_cli.evaluation.metrics.diversity import diversity
from flashdmd_cli.evaluation.metrics.frechet import frechet
from flashdmd_cli.evaluation.metrics.high_frequency import high_frequency
from flashdmd_cli.evaluation.metrics.intervals import Interval, wilson
from flashdmd_cli.shapes.captions import captions as write_captions
from flashdmd_cli.shapes.counting import count_objects
from flashdmd_cli.shapes.inspector import Reading
from flashdmd_cli.shapes.render import render
from flashdmd_cli.shapes.world import ATTRIBUTES, NUM_OBJECTS, PATTERNS, sample_attributes, sample_scenes

SHAPES1K_SEED = 20_251_120
"""Draws the captions of `shapes1k`. Training pictures come from other seeds and never show these combinations; among
those that the embedded reward model learns to call wrong, a tenth do."""
SHAPES_VAL_SEED = 20_251_123
"""Draws the captions of `shapes-val`."""
REFERENCE_SEED = 20_251_121
"""Draws the real pictures that generated ones are measured against."""
CEILING_SEED = 20_251_122
"""Draws a second set of real pictures, which shows what each metric says of perfection."""

NUM_GROUPS = 50
GROUP_SIZE = 4


class Reader(Protocol):
    """What an evaluation needs of an inspector."""

    def read(self, pictures: Tensor) -> Reading: ...


@dataclass(frozen=True)
class Suite:
    """`N` captions, and the first `C` of them again, `K` pictures each, for diversity.

    With `groups_within`, the last `C` x `K` of the N are `C` captions `K` times each already, and count as others do.
    """

    name: str
    attributes: Tensor  # (N, 7) long, what each caption binds
    captions: list[str]
    groups_within: int | None = None

    @property
    def num_groups(self) -> int:
        """`C`, captions of which several pictures are drawn."""
        return self.groups_within or min(NUM_GROUPS, len(self.captions))

    @property
    def all_captions(self) -> list[str]:
        """What to draw, in this order: the N captions, then the C x K repeated ones where they are not among the N."""
        if self.groups_within is not None:
            return self.captions
        return self.captions + [text for text in self.captions[: self.num_groups] for _ in range(GROUP_SIZE)]

    @property
    def all_attributes(self) -> Tensor:
        """Attributes of `all_captions`, (N + C * K, 7) long, or (N, 7)."""
        if self.groups_within is not None:
            return self.attributes
        return torch.cat([self.attributes, self.attributes[: self.num_groups].repeat_interleave(GROUP_SIZE, dim=0)])

    def real_pictures(self, seed: int = REFERENCE_SEED) -> Tensor:
        """Rendered pictures of `all_captions`, (N', 3, 64, 64) on [-1, 1]."""
        generator = torch.Generator().manual_seed(seed)
        parts = [
            render(sample_scenes(len(rows), generator, attributes=rows), generator)
            for rows in self.all_attributes.split(250)
        ]
        return torch.cat(parts)


def _suite(name: str, seed: int, held_out: bool, limit: int | None) -> Suite:
    generator = torch.Generator().manual_seed(seed)
    attributes = sample_attributes(1000, generator, held_out=held_out)
    texts = write_captions(attributes, generator)
    if limit is not None and not 2 <= limit <= len(texts):
        raise ValueError(f"--limit {limit}: {name} takes from 2 to {len(texts)} captions")
    return Suite(name, attributes[:limit], texts[:limit])


def shapes1k(limit: int | None = None) -> Suite:
    """1000 captions of combinations held out of training, always the same; `limit` takes the first, 2 at least."""
    return _suite("shapes1k", SHAPES1K_SEED, True, limit)


def shapes_val(limit: int | None = None) -> Suite:
    """1000 captions of other combinations, to choose settings on, so that `shapes1k` can judge them afterwards."""
    return _suite("shapes-val", SHAPES_VAL_SEED, False, limit)


def shapes_few(num: int, groups: int) -> Suite:
    """`num` pictures of captions of `shapes1k`, the last `groups` of them `GROUP_SIZE` times each: for a demo.

    Every picture counts for every figure, so that few are enough. Intervals take pictures as independent, which those
    of one caption are but nearly.
    """
    single = num - groups * GROUP_SIZE
    if single < 0 or groups < 1:
        raise ValueError(f"{groups} groups of {GROUP_SIZE} do not fit into {num} pictures")
    whole = shapes1k()
    rows = [*range(single), *(single + group for group in range(groups) for _ in range(GROUP_SIZE))]
    return Suite("shapes-few", whole.attributes[rows], [whole.captions[row] for row in rows], groups)


SUITES: dict[str, Callable[[int | None], Suite]] = {"shapes1k": shapes1k, "shapes-val": shapes_val}


@dataclass(frozen=True)
class Metrics:
    """What was measured on one set of pictures."""

    composition: float
    """Share of pictures in which all seven attributes are right."""
    frechet: float
    """Squared Fréchet distance to real pictures on inspector features."""
    high_frequency: float
    """Energy of fine texture over that of real pictures."""
    coverage: float
    """1 minus the mean total-variation distance over what captions leave open."""
    diversity: float
    """Distance between pictures of one caption over that of real ones."""
    pattern_coverage: float
    """The part of `coverage` that is the background pattern."""
    extra_objects: float
    """Share of pictures that show more objects than the two of their caption, a lower bound."""
    exact: float
    """Share of pictures in which all seven attributes are right and nothing is too much."""
    attributes: dict[str, float]
    """Share of pictures in which each attribute is right."""
    intervals: dict[str, tuple[float, float]]
    """95% interval of every figure above, by its name, attributes as `attributes.<name>`."""
    num_pictures: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "intervals": {name: list(bounds) for name, bounds in self.intervals.items()}}


@dataclass(frozen=True)
class Seen:
    """Pictures of a suite with what the inspector reads in them, the repeated captions apart."""

    pictures: Tensor  # (N, 3, 64, 64)
    reading: Reading
    group_free: Tensor  # (C, K, 16) layout and one-hot pattern


def look(pictures: Tensor, suite: Suite, inspector: Reader) -> Seen:
    """Read pictures of `suite.all_captions` (N', 3, 64, 64) on [-1, 1], rounded to the 8 bits of a file."""
    if pictures.shape[0] != len(suite.all_captions):
        raise ValueError(f"{len(pictures)} pictures for the {len(suite.all_captions)} captions of {suite.name}")
    pictures = ((pictures.float().cpu() + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    num = len(suite.captions)
    first, repeated = inspector.read(pictures[:num]), inspector.read(pictures[-suite.num_groups * GROUP_SIZE :])
    # The background pattern beside the layout: a sampler that ties it to the caption keeps its share overall.
    free = torch.cat([repeated.layout, one_hot(repeated.pattern, len(PATTERNS)).float()], dim=1)
    return Seen(pictures[:num], first, free.unflatten(0, (suite.num_groups, GROUP_SIZE)))


class Reference:
    """The real pictures of a suite as the inspector sees them, rendered and read once."""

    def __init__(self, suite: Suite, inspector: Reader) -> None:
        self.suite, self.inspector = suite, inspector

    @cached_property
    def seen(self) -> Seen:
        """Real pictures with the captions' attributes."""
        return look(self.suite.real_pictures(), self.suite, self.inspector)

    def ceiling(self) -> Metrics:
        """What the metrics say of a second set of real pictures: the best a model can do, chance included."""
        return evaluate(self.suite.real_pictures(CEILING_SEED), self)


def evaluate(pictures: Tensor, reference: Reference) -> Metrics:
    """Measure pictures drawn for `reference.suite.all_captions` (N', 3, 64, 64) on [-1, 1]."""
    suite, real = reference.suite, reference.seen
    drawn = look(pictures, suite, reference.inspector)
    right = composition(drawn.reading.attributes, suite.attributes, list(ATTRIBUTES))
    spread = coverage(
        drawn.reading.pattern, drawn.reading.layout, real.reading.pattern, real.reading.layout, len(PATTERNS)
    )
    right_all = (drawn.reading.attributes == suite.attributes).all(dim=1)
    too_many = count_objects(drawn.pictures) > NUM_OBJECTS
    figures: dict[str, Interval] = {
        "composition": right.whole,
        "frechet": frechet(drawn.reading.features, real.reading.features),
        "high_frequency": high_frequency(drawn.pictures, real.pictures),
        "coverage": spread.whole,
        "diversity": diversity(drawn.group_free, real.group_free),
        "pattern_coverage": spread.pattern,
        "extra_objects": wilson(int(too_many.sum()), len(too_many)),
        "exact": wilson(int((right_all & ~too_many).sum()), len(too_many)),
    }
    named = figures | {f"attributes.{name}": interval for name, interval in right.attributes.items()}
    return Metrics(
        **{name: interval.value for name, interval in figures.items()},
        attributes={name: interval.value for name, interval in right.attributes.items()},
        intervals={name: (interval.low, interval.high) for name, interval in named.items()},
        num_pictures=len(suite.captions),
    )
