"""Random numbers of a step belong to a row: whoever holds it, in whatever company, draws the same."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from flashdmd_cli.core.schedules import FlowSchedule, VPSchedule
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.world import World
from flashdmd_cli.training.distill import micro_batches, positions
from flashdmd_cli.training.draws import Draws

CPU = torch.device("cpu")


def draws(rows: range, seed: int = 0, iteration: int = 0) -> Draws:
    return Draws(seed, iteration, rows, CPU)


def everything(d: Draws) -> list[list[object]]:
    """For each row, one of each kind of numbers."""
    return [
        [normal.tolist(), uniform.item(), choice.item(), corner]
        for normal, uniform, choice, corner in zip(
            d.normal("a", (2, 3)), d.uniform("b"), d.choice("c", 10**6), d.corners("d", 999, 999), strict=True
        )
    ]


@pytest.mark.parametrize(("size", "micro_batch"), [(1, 8), (1, 2), (1, 1), (2, 4), (2, 2), (4, 1), (8, 1)])
def test_a_row_draws_the_same_in_any_company(size, micro_batch):
    """Processes and micro-batches, however many, hold each row of the batch once and give it its numbers."""
    wanted = everything(draws(range(8)))
    train = SimpleNamespace(batch=8, micro_batch=micro_batch)
    parts = [rows for rank in range(size) for rows in micro_batches(train, World(rank, size))]
    assert [row for rows in parts for row in rows] == list(range(8)) and set(map(len, parts)) == {micro_batch}
    assert [each for rows in parts for each in everything(draws(rows))] == wanted
    # Parts are equal, for each counts alike, and no larger than asked for.
    assert list(micro_batches(SimpleNamespace(batch=12, micro_batch=4), World(1, 2))) == [
        range(6, 8),
        range(8, 10),
        range(10, 12),
    ]
    with pytest.raises(UsageError, match="train.batch: 8 pictures cannot be shared equally by 3 processes"):
        list(micro_batches(train, World(0, 3)))
    # The pictures of the stream as well: iteration 3 goes on where iteration 2 ends.
    stream = [place for number in (2, 3) for rows in parts for place in positions(number, rows, train)]
    assert stream == list(range(16, 32))


def test_asking_twice_or_in_another_order_changes_nothing():
    d = draws(range(3))
    first, uniform = d.normal("a", (4,)), d.uniform("b")
    torch.manual_seed(1)
    assert torch.equal(d.uniform("b"), uniform) and torch.equal(d.normal("a", (4,)), first)


def test_everything_that_names_a_number_matters():
    seen = [
        tuple(Draws(seed, iteration, range(row, row + 1), CPU).normal(purpose, (4,)).flatten().tolist())
        for seed, iteration, row, purpose in itertools.product(range(3), range(3), range(4), ("z", "dm/t", "dm/noise"))
    ]
    assert len(set(seen)) == 3 * 3 * 4 * 3
    # Rows are no copies of each other within one call, either.
    assert len({tuple(row) for row in draws(range(50)).normal("z", (4,)).tolist()}) == 50


def test_numbers_are_of_their_kind():
    d = draws(range(2000))
    normal, uniform, choice = d.normal("n", (3, 2)), d.uniform("u"), d.choice("c", 5)
    assert normal.shape == (2000, 3, 2) and normal.dtype == torch.float32
    assert normal.mean().abs() < 0.05 and (normal.std() - 1).abs() < 0.05
    # Over rows, too, and between them: a row's seed does not show.
    correlation = torch.corrcoef(torch.stack([normal[:-1, 0, 0], normal[1:, 0, 0]]))[0, 1]
    assert correlation.abs() < 0.1
    assert uniform.shape == (2000,) and 0 <= uniform.min() < 0.01 and 0.99 < uniform.max() < 1
    assert (uniform.mean() - 0.5).abs() < 0.03
    assert choice.dtype == torch.int64 and (choice.bincount() - 400).abs().max() < 90 and len(choice.bincount()) == 5


def test_times_are_uniform_over_their_range_and_its_ends():
    schedule = VPSchedule(torch.linspace(0.99, 0.01, 1000))
    times = schedule.sample(draws(range(3000)).uniform("dm/t"), 20, 29)
    assert sorted(set(times.tolist())) == list(range(20, 30))
    assert ((times - 20).long().bincount() - 300).abs().max() < 80
    # The ends of [0, 1), where rounding could lead outside.
    ends = torch.tensor([0.0, 1 - 2**-24])
    assert schedule.sample(ends, 0, 999).tolist() == [0, 999] and schedule.sample(ends, 20, 980).tolist() == [20, 980]
    assert schedule.sample(ends, 500, 500).tolist() == [500, 500]
    assert 0 <= FlowSchedule(3.0).sample(ends, 0, 1000).min() and FlowSchedule(3.0).sample(ends, 0, 1000).max() <= 1000


def test_corners_are_all_places_and_each_rows_own():
    corners = draws(range(1500)).corners("crop", 2, 4)
    counts = {place: corners.count(place) for place in set(corners)}
    assert counts.keys() == set(itertools.product(range(3), range(5)))
    assert all(60 < count < 140 for count in counts.values())
    assert draws(range(3)).corners("crop", 0, 0) == [(0, 0)] * 3
