"""Intervals of repeated prompts, of win rates, of precision and recall, and how they are printed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flashdmd_cli.evaluation.compare import cell, paired
from flashdmd_cli.evaluation.gathering import gather
from flashdmd_cli.evaluation.intake import Look
from flashdmd_cli.evaluation.measuring import Measured, values_of
from flashdmd_cli.evaluation.metrics.frechet import frechet
from flashdmd_cli.evaluation.metrics.high_frequency import ratio_of_means
from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import Interval, by_prompt, mean, share, shown, wilson
from flashdmd_cli.evaluation.metrics.kid import kernel_distance
from flashdmd_cli.evaluation.metrics.metric import Row
from flashdmd_cli.evaluation.metrics.precision_recall import Precision, share_inside
from flashdmd_cli.evaluation.metrics.registry import METRICS
from flashdmd_cli.evaluation.metrics.seed_diversity import LpipsDiversity
from flashdmd_cli.evaluation.report import _cell
from flashdmd_cli.evaluation.scoring import Chunk, chunk_path, write_chunk

PROMPTS = [str(i) for i in range(60) for _ in range(4)]


def draws(generator: torch.Generator, *dims: int) -> Tensor:
    """Four pictures of each of 60 prompts, (240, ...): alike within a prompt (1) more than they differ (0.5)."""
    prompts = torch.randn(60, 1, *dims, generator=generator)
    return (prompts + 0.5 * torch.randn(60, 4, *dims, generator=generator)).flatten(0, 1).double()


def covered(draw: Callable[[], Interval], num: int) -> float:
    """Share of `num` intervals that hold the mean of the values."""
    found = [draw() for _ in range(num)]
    center = sum(each.value for each in found) / num
    return sum(each.low <= center <= each.high for each in found) / num


def test_intervals_of_several_seeds_take_a_prompt_as_one_observation() -> None:
    """Each function covers with prompt ids, and far less without; the standard error of a share of 150 is 1.8%."""
    generator = torch.Generator().manual_seed(0)

    def shifted() -> Tensor:
        return torch.randn(240, 4, generator=generator).double() + 0.5

    for interval, num in (
        (lambda ids: mean(draws(generator), ids), 150),
        (lambda ids: share((draws(generator) > -0.5).double(), ids), 150),
        (lambda ids: frechet(draws(generator, 4), shifted(), 1, ids)[0], 60),
        (lambda ids: kernel_distance(draws(generator, 4), shifted(), ids), 60),
    ):
        assert covered(lambda interval=interval: interval(PROMPTS), num) >= 0.88  # type: ignore[misc]
        assert covered(lambda interval=interval: interval(()), num) < 0.88  # type: ignore[misc]
    values = draws(generator).exp()
    wide, narrow = (ratio_of_means(values, values[:100], ids) for ids in (PROMPTS, ()))
    assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low) and wide.value == narrow.value


def test_one_picture_of_a_prompt_gives_the_bits_of_before_and_values_never_move() -> None:
    generator = torch.Generator().manual_seed(1)
    values, real = draws(generator, 3), draws(generator, 3)
    own = [str(i) for i in range(240)]
    hits = values[:, 0] > 0
    assert share(hits, own) == share(hits) == wilson(int(hits.sum()), 240)
    assert mean(values[:, 0], own) == mean(values[:, 0], [""] * 240) == mean(values[:, 0])
    assert frechet(values, real, prompts=own) == frechet(values, real)
    assert kernel_distance(values, real, own) == kernel_distance(values, real)
    assert by_prompt(values[:, 0], PROMPTS).tolist() == pytest.approx(values[:, 0].view(60, 4).mean(1).tolist())
    uneven = mean(values[:5, 0], ["a", "a", "a", "b", "c"])
    assert uneven.value == mean(values[:5, 0]).value and math.isfinite(uneven.high)
    assert mean(values[:4, 0], ["a"] * 4).high == math.inf and share(hits[:4], ["a"] * 4).high == 1
    all_right = share(torch.ones(240), PROMPTS)
    assert wilson(240, 240).low > wilson(60, 60).low > all_right.low > 0.9 and all_right.high == 1


def test_metrics_get_the_prompts_of_their_pictures() -> None:
    """Also where a picture has no finite value: its prompt id is left out with it."""
    generator = torch.Generator().manual_seed(2)
    numbers = draws(generator)
    numbers[7] = math.nan
    metric = METRICS["brightness"](Instruments())
    found = values_of([metric], {"brightness": numbers}, {}, {"brightness": PROMPTS})["brightness"]
    kept = [i for i in range(240) if i != 7]
    assert found == mean(numbers[kept], [PROMPTS[i] for i in kept])
    assert found.high - found.low > 1.5 * (mean(numbers[kept]).high - mean(numbers[kept]).low)


def test_groups_are_condensed_whole_also_across_chunks(tmp_path: Path) -> None:
    """Groups of 3 in chunks of 32: no group is condensed in two pieces, and no picture is lost."""

    class Groups(LpipsDiversity):
        def __init__(self) -> None:
            self.calls: list[list[float]] = []

        def condense(self, numbers: Tensor) -> Tensor:
            self.calls.append(numbers.tolist())
            return numbers[:, None]

    metric, rows = Groups(), [Row(i, "a", group=i // 3) for i in range(69)]
    for number in range(3):
        own = list(range(number * 32, min(69, number * 32 + 32)))
        chunk = Chunk(
            [Look("a", None, ()) for _ in own], {"lpips": torch.tensor(own) / 1}, {"lpips": [*range(len(own))]}
        )
        write_chunk(chunk_path(tmp_path, number), chunk, [])
    scored = gather([metric], rows, tmp_path)
    assert scored.numbers["lpips"][:, 0].tolist() == scored.positions["lpips"] == list(range(69))
    assert len(metric.calls) == 4 and all(len(each) % 3 == 0 for each in metric.calls)


def test_win_rates_cover_with_several_seeds() -> None:
    generator = torch.Generator().manual_seed(3)
    keys = [(prompt, i % 4) for i, prompt in enumerate(PROMPTS)]

    def wins() -> Interval:
        ours = dict(zip(keys, draws(generator).tolist(), strict=True))
        found = paired(ours, dict.fromkeys(keys, -0.3), True).wins
        assert found is not None
        return found

    assert covered(wins, 100) >= 0.9
    tie = paired({("a", 0): 1.0, ("b", 0): 2.0, ("c", 0): 0.0}, dict.fromkeys([(x, 0) for x in "abc"], 1.0), True).wins
    assert tie is not None and tie == wilson(1.5, 3) and tie.high - 0.5 == pytest.approx(0.5 - tie.low)


def test_intervals_that_are_not_symmetric_are_printed_with_both_ends() -> None:
    assert shown(0.5, 0.4, 0.6, "{:.2f}".format) == "0.50 ± 0.10"
    clipped = Interval(0.98, 0.90, 1.0)
    assert _cell(Measured({"a": clipped}, 9), "a", 2) == "0.98 [0.90, 1.00]"
    assert cell({"value": 0.0, "low": 0.0, "high": 0.07}) == "0.0000 [0.0000, 0.0700]"


def test_a_distance_without_bias_has_an_interval_only_where_the_correction_is_small() -> None:
    generator = torch.Generator().manual_seed(4)
    few, many = (frechet(*torch.randn(2, 400, dims, generator=generator)) for dims in (3, 64))
    assert all(math.isfinite(each.high) for each in (*few, many[0]))
    assert many[1].value < many[0].value / 2 and (many[1].low, many[1].high) == (-math.inf, math.inf)


def test_the_intervals_of_precision_and_recall_hold_the_error_of_both_sets() -> None:
    """With the neighbourhoods taken as fixed they cover less."""
    generator = torch.Generator().manual_seed(5)

    def one(**ids: list[str]) -> Interval:
        drawn, real = draws(generator, 4), torch.randn(240, 4, generator=generator).double()
        return share_inside(real, drawn, 3, **ids)

    assert covered(lambda: one(manifold_prompts=PROMPTS), 20) >= 0.9
    fixed = one()
    assert fixed.high - fixed.low > 1.1 * (wilson(240 * fixed.value, 240).high - wilson(240 * fixed.value, 240).low)
    assert Precision.min_pictures >= 1000
    assert share_inside(torch.randn(9, 2), torch.randn(5, 2), 3).high <= 1  # too few for halves: one neighbourhood
