"""Composition accuracy: how often everything that the caption bound is right, as GenEval counts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flashdmd_cli.evaluation.metrics.intervals import Interval, wilson


@dataclass(frozen=True)
class Composition:
    """Shares of pictures, on [0, 1]."""

    whole: Interval
    """All attributes of a picture right."""
    attributes: dict[str, Interval]
    """Each attribute by itself."""


def composition(read: Tensor, wanted: Tensor, names: Sequence[str]) -> Composition:
    """Compare attributes read from `N` pictures (N, A) with those of their captions (N, A); `names`: the columns."""
    if read.shape != wanted.shape:
        raise ValueError(f"{tuple(read.shape)} attributes were read where {tuple(wanted.shape)} were asked for")
    right, num = read == wanted, len(read)
    single = {name: wilson(int(right[:, column].sum()), num) for column, name in enumerate(names)}
    return Composition(wilson(int(right.all(dim=1).sum()), num), single)
