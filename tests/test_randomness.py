"""Randomness depends on nothing but (seed, rank, step, role)."""

from __future__ import annotations

import itertools

import torch

from flashdmd_cli.runs.randomness import generator


def _draw(seed: int, rank: int, step: int, role: str) -> tuple[float, ...]:
    return tuple(torch.randn(4, generator=generator(seed, rank, step, role)).tolist())


def test_same_arguments_same_numbers_whatever_the_global_state() -> None:
    torch.manual_seed(1)
    first = _draw(0, 0, 0, "noise")
    torch.manual_seed(2)
    assert _draw(0, 0, 0, "noise") == first


def test_each_argument_matters() -> None:
    draws = {
        _draw(seed, rank, step, role)
        for seed, rank, step, role in itertools.product(range(3), range(3), range(3), ("noise", "time"))
    }
    assert len(draws) == 3 * 3 * 3 * 2


def test_digits_do_not_run_together() -> None:
    assert _draw(1, 11, 1, "noise") != _draw(11, 1, 1, "noise")


def test_numbers_are_the_ones_of_every_version() -> None:
    """A change here breaks the resuming of old runs, so it belongs under `Numerics` in the CHANGELOG."""
    assert generator(0, 0, 0, "noise").initial_seed() == 2499326543
