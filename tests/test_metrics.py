"""Each metric against an independent formula or a case whose answer is known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from flashdmd_cli.core.pictures import as_bytes, as_float
from flashdmd_cli.evaluation.measuring import Evaluator, Measured, Measurements, measure
from flashdmd_cli.evaluation.metrics import intervals
from flashdmd_cli.evaluation.metrics.coverage import coverage, pattern_coverage
from flashdmd_cli.evaluation.metrics.diversity import diversity, grouped
from flashdmd_cli.evaluation.metrics.frechet import frechet, frechet_features, frechet_gaussians
from flashdmd_cli.evaluation.metrics.high_frequency import high_frequency_energy, ratio_of_means
from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import bootstrap, wilson
from flashdmd_cli.evaluation.metrics.metric import Row
from flashdmd_cli.evaluation.metrics.registry import METRICS, OF_THE_WORLD
from flashdmd_cli.evaluation.pictures import save_grid
from flashdmd_cli.evaluation.report import check_thresholds, missed, parts_tables, table
from flashdmd_cli.evaluation.suites.shapes import CEILING_SEED, ShapesSuite
from flashdmd_cli.evaluation.suites.spec import read_suite
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.shapes.captions import caption, parse
from flashdmd_cli.shapes.render import render
from flashdmd_cli.shapes.world import ATTRIBUTES, add_object, sample_scenes


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, table I: 81/263, 15/148, 0/20.
    for right, num, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        interval = wilson(right, num)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)
        assert interval.value == right / num
    assert wilson(20, 20).high == 1


def test_bootstrap_of_a_mean_is_its_standard_error() -> None:
    values = gaussian(400).double()
    interval = bootstrap(lambda g, r: float(values[g].mean()), 400, 5, low=-math.inf)
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert interval.value == pytest.approx(float(values.mean()))
    assert interval.high - interval.value == pytest.approx(half, rel=0.15)
    assert interval.value - interval.low == pytest.approx(interval.high - interval.value)


def test_frechet_of_gaussians_with_commuting_covariances() -> None:
    mean_1, mean_2 = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 5.0])
    sd_1, sd_2 = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 1.0, 0.5])
    expected = float((mean_1 - mean_2).square().sum() + (sd_1 - sd_2).square().sum())
    got = frechet_gaussians(mean_1, torch.diag(sd_1**2), mean_2, torch.diag(sd_2**2))
    assert got == pytest.approx(expected, rel=1e-9)


def test_frechet_against_the_eigenvalues_of_the_product() -> None:
    # tr (S1 S2)^1/2 is the sum of the roots of the eigenvalues of the (not symmetric) product.
    a, b = gaussian(300, 6, seed=1).double().numpy(), gaussian(300, 6, seed=2).double().numpy()
    b = b @ np.diag(np.arange(1.0, 7.0)) + a[:, ::-1] * 0.3 + 0.5
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(s1 @ s2).real.clip(0)).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s1 + s2) - 2 * roots
    got = frechet_features(torch.from_numpy(a), torch.from_numpy(b))
    assert got == pytest.approx(expected, rel=1e-9)
    assert frechet_features(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(0, abs=1e-9)


def test_frechet_with_degenerate_covariance_and_interval() -> None:
    flat = gaussian(50, 1).repeat(1, 4)
    assert frechet_features(flat, flat + 1) == pytest.approx(4.0, rel=1e-5)
    near, far = (
        frechet(gaussian(200, 3), gaussian(200, 3, seed=1))[0],
        frechet(gaussian(200, 3) + 1, gaussian(200, 3, seed=1))[0],
    )
    assert near.low <= near.value <= near.high < far.low
    with pytest.raises(ValueError, match="two pictures"):
        frechet_features(flat[:1], flat)


def wave(cycles_per_pixel: float, size: int = 64) -> Tensor:
    """A vertical grating, (1, 3, size, size)."""
    x = torch.arange(size, dtype=torch.float64)
    return torch.cos(2 * math.pi * cycles_per_pixel * x).expand(1, 3, size, size)


def test_high_frequency_of_gratings() -> None:
    # By Parseval the orthonormal spectrum holds size^2 * 1/2 of energy, all of it on one side of the cutoff.
    freq = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    num_fine = int((freq > 0.25).sum())
    assert float(high_frequency_energy(wave(20 / 64))) == pytest.approx(64 * 64 / 2 / num_fine, rel=1e-9)
    assert float(high_frequency_energy(wave(12 / 64))) == pytest.approx(0, abs=1e-12)
    assert float(high_frequency_energy(torch.full((1, 3, 64, 64), 0.7))) == pytest.approx(0, abs=1e-12)


def test_high_frequency_of_noise_is_its_variance_and_ratio_is_square_of_scale() -> None:
    noise = gaussian(64, 1, 64, 64).expand(-1, 3, -1, -1)
    assert float(high_frequency_energy(noise).mean()) == pytest.approx(1.0, rel=0.02)
    ratio = ratio_of_means(high_frequency_energy(noise * 0.5), high_frequency_energy(noise))
    assert ratio.value == pytest.approx(0.25, rel=1e-6)
    assert ratio.low < 0.25 < ratio.high


def seen(pattern: Tensor, layout: Tensor) -> Tensor:
    """As a metric keeps them, (N, 1 + L)."""
    return torch.cat([pattern[:, None], layout], dim=1)


@pytest.mark.usefixtures("quick")
def test_coverage_of_one_distribution_is_one_and_chance_is_small() -> None:
    pattern, layout = torch.arange(1000) % 4, torch.rand(1000, 12, generator=torch.Generator().manual_seed(0))
    real = seen(pattern, layout)
    assert coverage(real, real, 4).value == pytest.approx(1) and pattern_coverage(real, real, 4).value == 1
    other = torch.rand(1000, 12, generator=torch.Generator().manual_seed(1))
    assert 0.93 < coverage(seen(pattern, other), real, 4).value < 1


@pytest.mark.usefixtures("quick")
def test_coverage_drops_by_what_a_dropped_mode_weighs() -> None:
    pattern, layout = torch.arange(1000) % 4, torch.rand(1000, 12, generator=torch.Generator().manual_seed(0))
    real, dropped = seen(pattern, layout), seen(torch.where(pattern == 1, 0, pattern), layout)
    assert pattern_coverage(dropped, real, 4).value == pytest.approx(0.75)
    assert coverage(dropped, real, 4).value == pytest.approx(1 - 0.25 / 2)
    # One layout number shrunk to its lower half misses half of its mass.
    narrow = layout.clone()
    narrow[:, 3] = narrow[:, 3].sort().values[:500].repeat(2)
    assert coverage(seen(pattern, narrow), real, 4).value == pytest.approx(1 - 0.5 / 12 / 2, abs=1e-3)
    assert coverage(seen(pattern, layout + 9), real, 4).value == pytest.approx((1 + 1 / 8) / 2)


def test_diversity_against_a_plain_loop() -> None:
    groups = gaussian(5, 4, 3, seed=3).double()
    real = gaussian(6, 4, 3, seed=4).double() * torch.tensor([1.0, 10.0, 0.1])
    scale = real.reshape(-1, 3).std(dim=0)

    def plain(rows: Tensor) -> float:
        return float(np.mean([np.linalg.norm((a - b) / scale) for row in rows for a, b in combinations(row, 2)]))

    assert diversity(groups, real).value == pytest.approx(plain(groups) / plain(real))
    assert diversity(real, real).value == pytest.approx(1)
    assert diversity(real[:, :1].expand(-1, 4, -1), real).value == 0
    with pytest.raises(ValueError, match="two pictures"):
        diversity(groups[:, :1], real)


def test_groups_come_together_whatever_their_order() -> None:
    numbers = torch.tensor([[1.0, 10], [0, 20], [1, 11], [0, 21]])
    assert [each.tolist() for each in grouped(numbers)] == [[[20], [21]], [[10], [11]]]
    assert [each.tolist() for each in grouped(numbers[:3])] == [[[10], [11]]]  # no distance in a group of one


def test_diversity_of_groups_of_different_sizes() -> None:
    """A caption with more pictures than others is measured too: each caption counts once."""
    groups = [*gaussian(3, 4, 3, seed=3).double(), *gaussian(2, 2, 3, seed=5).double(), *gaussian(1, 4, 3).double()]
    real = gaussian(6, 4, 3, seed=4).double()
    scale = real.reshape(-1, 3).std(dim=0)

    def plain(rows: Sequence[Tensor]) -> float:
        return float(np.mean([np.mean([np.linalg.norm((a - b) / scale) for a, b in combinations(row, 2)])
                              for row in rows]))  # fmt: skip

    assert diversity(groups, real).value == pytest.approx(plain(groups) / plain(real))
    assert diversity(list(real), real).value == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few resamples: values are the same, intervals are rough."""
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", 8)


@pytest.fixture(scope="module")
def suite() -> ShapesSuite:
    return read_suite("shapes1k", limit=60)


@pytest.fixture(scope="module")
def evaluator(suite: ShapesSuite) -> Evaluator:
    return Evaluator(suite)


def real_pictures(suite: ShapesSuite, seed: int | None = None) -> Tensor:
    """All real pictures, (N, 3, 64, 64) uint8."""
    return torch.cat([pictures for pictures, _ in suite.references(seed)])


def test_composition_compares_with_the_prompt(suite: ShapesSuite) -> None:
    """Five pictures are right; of the sixth the prompt says something else in one attribute."""
    pictures = real_pictures(suite)[:6]
    metric = METRICS["composition"](Instruments())
    read = metric.inspector.read(pictures).attributes  # type: ignore[attr-defined]
    told = [Row(i, caption(row)) for i, row in enumerate(read)]
    color = list(ATTRIBUTES).index("color_1")
    other = read[5].clone()
    other[color] = (other[color] + 1) % 6
    told[5] = Row(5, caption(other))
    figures = metric.result(metric.measure(pictures, told), torch.empty(0))
    assert figures["composition"].value == figures["attributes.color_1"].value == pytest.approx(5 / 6)
    assert figures["attributes.relation"].value == 1
    with pytest.raises(ValueError, match="not a caption"):
        metric.measure(pictures, [Row(i, "a dog") for i in range(6)])


@pytest.mark.usefixtures("quick")
def test_every_metric_fits_the_protocol_whatever_the_batches(suite: ShapesSuite) -> None:
    """Batches of 1, of 7 and all at once come to the same figures; a picture's numbers are its own."""
    metrics = [each(Instruments()) for each in OF_THE_WORLD]
    pictures, rows = real_pictures(suite, CEILING_SEED)[40:80], suite.rows[40:80]  # 20 that count, 5 groups of 4

    def figures(batch: int) -> dict[str, float]:
        found = measure(metrics, ((pictures[i : i + batch], rows[i : i + batch]) for i in range(0, 40, batch)))
        assert found.num_pictures == 20
        values = {}
        for metric in metrics:
            numbers = found.of(metric)
            assert len(numbers) == 20 and numbers.numel() < 20 * 200
            results = metric.result(numbers, numbers if metric.compares else torch.empty(0))
            assert metric.name in results and all("." in name for name in results.keys() - {metric.name})
            values |= {name: each.value for name, each in results.items()}
        return values

    one, seven, everything = figures(1), figures(7), figures(40)
    assert one == pytest.approx(everything, abs=1e-5) and seven == pytest.approx(everything, abs=1e-5)
    for name, metric in METRICS.items():
        assert metric.name == name and metric.direction in ("higher", "lower", "one", "none")
        assert metric.version >= 1 and metric.unit and metric.heading
    with pytest.raises(ValueError, match="2 pictures for 1 rows"):
        Measurements(metrics).update(pictures[:2], rows[:1])


def test_metrics_that_look_at_the_same_pictures_read_them_once(suite: ShapesSuite) -> None:
    calls: list[int] = []
    instruments = Instruments()
    reader = instruments.inspector.reader
    read = reader.read

    class Counting:
        def read(self, pictures: Tensor) -> object:
            calls.append(len(pictures))
            return read(pictures)

    instruments.inspector.reader = Counting()  # type: ignore[assignment]
    metrics = [each(instruments) for each in OF_THE_WORLD]
    measure(metrics, [(real_pictures(suite)[:8], suite.rows[:8])])
    assert calls == [8]


@pytest.mark.usefixtures("quick")
def test_real_pictures_score_as_real_ones(suite: ShapesSuite, evaluator: Evaluator) -> None:
    metrics = evaluator.evaluate(suite.references(CEILING_SEED))
    assert metrics["composition"] > 0.95 and metrics["attributes.relation"] > 0.95 and metrics.num_pictures == 60
    assert metrics["pattern_coverage"] > 0.8 and metrics["coverage"] > 0.75
    assert metrics["extra_objects"] == 0 and metrics["exact"] == metrics["composition"]
    assert metrics["high_frequency"] == pytest.approx(1, abs=0.3)
    assert metrics["diversity"] == pytest.approx(1, abs=0.2)
    itself = evaluator.evaluate(suite.references())
    assert itself["frechet"] == pytest.approx(0, abs=1e-4) and itself["frechet"] < metrics["frechet"]
    assert all(itself[name] == pytest.approx(1) for name in ("coverage", "diversity", "high_frequency"))


@pytest.mark.usefixtures("quick")
def test_smooth_collapsed_pictures_score_worse(suite: ShapesSuite, evaluator: Evaluator) -> None:
    blurred = torch.nn.functional.avg_pool2d(as_float(real_pictures(suite)), 5, 1, 2)
    blurred[60:] = blurred[60:].unflatten(0, (-1, 4))[:, :1].expand(-1, 4, -1, -1, -1).flatten(0, 1)
    metrics = evaluator.evaluate([(as_bytes(blurred), suite.rows)])
    assert metrics["high_frequency"] < 0.2
    assert metrics["diversity"] == pytest.approx(0, abs=1e-5)
    assert metrics["frechet"] > 1
    with pytest.raises(ValueError, match="59 pictures where shapes1k has 60"):
        evaluator.evaluate([(as_bytes(blurred[1:]), suite.rows[1:])])


@pytest.mark.usefixtures("quick")
def test_a_third_object_is_seen_where_the_inspector_sees_two(suite: ShapesSuite, evaluator: Evaluator) -> None:
    generator = torch.Generator().manual_seed(3)
    wanted = torch.tensor([parse(row.prompt) for row in suite.rows])
    scenes = add_object(sample_scenes(260, generator, attributes=wanted), generator)
    metrics = evaluator.evaluate([(as_bytes(render(scenes, generator)), suite.rows)])
    assert metrics["extra_objects"] > 0.75 and metrics["composition"] > 0.5  # it may cover one of the two
    assert metrics["exact"] < min(metrics["composition"], 1 - metrics["extra_objects"] + 1e-9)
    assert metrics.values_by_name["extra_objects"].high <= 1


@pytest.mark.usefixtures("quick")
def test_values_are_json_and_a_table(suite: ShapesSuite, evaluator: Evaluator) -> None:
    rows: dict[str, Measured] = {"real": evaluator.evaluate(suite.references(CEILING_SEED))}
    figures = json.loads(json.dumps(rows["real"].as_dict()))
    names = {metric.name for metric in suite.metrics}
    assert figures.keys() == {*names, "attributes", "intervals", "num_pictures"}
    assert set(figures["intervals"]) == {*names, *(f"attributes.{name}" for name in ATTRIBUTES)}
    assert figures["attributes"].keys() == ATTRIBUTES.keys()
    for low, high in figures["intervals"].values():
        assert low <= high
    console = Console(width=80, record=True)
    console.print(table(rows, suite.metrics), *parts_tables(rows))
    text = console.export_text()
    assert "Fréchet ↓" in text and "diversity → 1" in text and "color_1" in text and "third objects" not in text
    assert "…" not in text and all(len(line) <= 80 for line in text.splitlines())
    assert missed(rows["real"], {"composition": 0.5}, {"frechet": 1e3}) == []
    assert missed(rows["real"], {"exact": 2}, {})[0].endswith("below 2")
    assert missed(rows["real"], {}, {"extra_objects": -1}) == ["--fail-above: extra_objects is 0, above -1"]
    assert len(missed(rows["real"], {"coverage": math.nan}, {})) == 1


def test_thresholds_follow_the_direction(suite: ShapesSuite) -> None:
    check_thresholds(suite.metrics, {"composition": 1, "diversity": 1}, {"frechet": 1, "diversity": 1})
    for below, above, line in (
        ({"frechet": 1}, {}, "--fail-below frechet: lower is better"),
        ({}, {"exact": 1}, "--fail-above exact: higher is better"),
        ({"beauty": 1}, {}, "--fail-below beauty: no such metric"),
    ):
        with pytest.raises(UsageError, match=line):
            check_thresholds(suite.metrics, below, above)


def test_grid_of_pictures(tmp_path: Path) -> None:
    path = tmp_path / "new" / "grid.png"
    save_grid([torch.ones(3, 3, 64, 64), -torch.ones(2, 3, 64, 64)], ["teacher, 30 steps", "student"], path)
    with Image.open(path) as image:
        assert image.size == (150 + 3 * 134 + 6, 2 * 134 + 6)
        assert image.getpixel((160, 20)) == (255, 255, 255)
        assert image.getpixel((160, 160)) == (0, 0, 0)
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]
    save_grid([torch.ones(2, 3, 64, 64)], ["student"], path, ["a blue circle above a red one", "word " * 60])
    with Image.open(path) as image:
        assert image.size == (150 + 2 * 134 + 6, 134 + 6 + 6 * 18)  # of a long caption six lines
        columns = [image.crop((156 + 134 * j, 140, 284 + 134 * j, image.height)) for j in (0, 1)]
        assert all(min(column.convert("L").getdata()) < 128 for column in columns)
    with pytest.raises(ValueError):
        save_grid([], [], path)
