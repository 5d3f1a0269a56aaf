"""Each metric against an independent formula or a case whose answer is known."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from flashdmd_cli.evaluation.metrics.composition import composition
from flashdmd_cli.evaluation.metrics.coverage import coverage
from flashdmd_cli.evaluation.metrics.diversity import diversity
from flashdmd_cli.evaluation.metrics.frechet import frechet, frechet_features, frechet_gaussians
from flashdmd_cli.evaluation.metrics.high_frequency import high_frequency, high_frequency_energy
from flashdmd_cli.evaluation.metrics.intervals import bootstrap, wilson
from flashdmd_cli.evaluation.pictures import save_grid
from flashdmd_cli.evaluation.report import attribute_table, missed, report, table
from flashdmd_cli.evaluation.suites import GROUP_SIZE, Metrics, Reference, Suite, evaluate, look, shapes1k, shapes_few
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.shapes.captions import parse
from flashdmd_cli.shapes.inspector import Reading, load_inspector
from flashdmd_cli.shapes.render import render
from flashdmd_cli.shapes.world import add_object, is_held_out, sample_scenes


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
        frechet(gaussian(200, 3), gaussian(200, 3, seed=1)),
        frechet(gaussian(200, 3) + 1, gaussian(200, 3, seed=1)),
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
    ratio = high_frequency(noise * 0.5, noise)
    assert ratio.value == pytest.approx(0.25, rel=1e-6)
    assert ratio.low < 0.25 < ratio.high


def test_coverage_of_one_distribution_is_one_and_chance_is_small() -> None:
    pattern, layout = torch.arange(1000) % 4, torch.rand(1000, 12, generator=torch.Generator().manual_seed(0))
    same = coverage(pattern, layout, pattern, layout, 4)
    assert same.whole.value == pytest.approx(1) and same.pattern.value == pytest.approx(1)
    other = torch.rand(1000, 12, generator=torch.Generator().manual_seed(1))
    assert 0.93 < coverage(pattern, other, pattern, layout, 4).whole.value < 1


def test_coverage_drops_by_what_a_dropped_mode_weighs() -> None:
    pattern, layout = torch.arange(1000) % 4, torch.rand(1000, 12, generator=torch.Generator().manual_seed(0))
    plain = coverage(torch.where(pattern == 1, 0, pattern), layout, pattern, layout, 4)
    assert plain.pattern.value == pytest.approx(0.75)
    assert plain.whole.value == pytest.approx(1 - 0.25 / 2)
    # One layout number shrunk to its lower half misses half of its mass.
    narrow = layout.clone()
    narrow[:, 3] = narrow[:, 3].sort().values[:500].repeat(2)
    assert coverage(pattern, narrow, pattern, layout, 4).whole.value == pytest.approx(1 - 0.5 / 12 / 2, abs=1e-3)
    outside = coverage(pattern, layout + 9, pattern, layout, 4)
    assert outside.whole.value == pytest.approx((1 + 1 / 8) / 2)


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


class FakeInspector:
    """Reads from a table of what is true, in the order in which pictures come."""

    def __init__(self, suite: Suite) -> None:
        num = len(suite.captions)
        self.truth = {num: suite.attributes, suite.num_groups * GROUP_SIZE: suite.all_attributes[num:]}

    def read(self, pictures: Tensor) -> Reading:
        num = len(pictures)
        layout = torch.nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)
        features = torch.nn.functional.adaptive_avg_pool2d(pictures, 4).flatten(1)
        return Reading(self.truth[num], torch.arange(num) // GROUP_SIZE % 4, layout, features)


def test_composition_counts_whole_and_single_attributes() -> None:
    wanted = torch.zeros(10, 3, dtype=torch.long)
    read = wanted.clone()
    read[0, 0], read[1, 0], read[1, 2] = 1, 1, 1
    got = composition(read, wanted, ["a", "b", "c"])
    assert got.whole.value == 0.8
    assert {name: share.value for name, share in got.attributes.items()} == {"a": 0.8, "b": 1.0, "c": 0.9}
    with pytest.raises(ValueError):
        composition(read[:5], wanted, ["a", "b", "c"])


def test_shapes1k_is_fixed_held_out_and_begins_with_its_limit() -> None:
    suite = shapes1k(None)
    assert len(suite.captions) == 1000 and is_held_out(suite.attributes).all()
    assert [parse(text) for text in suite.captions] == suite.attributes.tolist()
    assert suite.captions == shapes1k(None).captions
    assert shapes1k(20).captions == suite.captions[:20]
    assert len(suite.all_captions) == len(suite.all_attributes) == 1000 + 50 * GROUP_SIZE
    assert [parse(text) for text in suite.all_captions] == suite.all_attributes.tolist()
    for wrong in (1, 0, 1001):
        with pytest.raises(ValueError, match="--limit"):
            shapes1k(wrong)


@pytest.fixture(scope="module")
def reference() -> Reference:
    suite = shapes1k(60)
    return Reference(suite, FakeInspector(suite))


def test_few_pictures_all_count_and_the_last_are_groups():
    suite = shapes_few(20, 3)
    assert suite.all_captions == suite.captions and len(suite.captions) == 20
    assert len(set(suite.captions)) == 8 + 3 and suite.captions[:11] == [
        *shapes1k(9).captions,
        *[suite.captions[8]] * 2,
    ]
    assert [parse(text) for text in suite.captions] == suite.attributes.tolist()
    real = suite.real_pictures()
    seen = look(real, suite, load_inspector(asset("inspector")))
    assert len(seen.pictures) == 20 and seen.group_free.shape[:2] == (3, GROUP_SIZE)
    assert torch.equal(seen.group_free.flatten(0, 1)[:, :-4], seen.reading.layout[-12:])
    with pytest.raises(ValueError, match="3 groups of 4 do not fit into 8 pictures"):
        shapes_few(8, 3)


def test_real_pictures_score_as_real_ones(reference: Reference) -> None:
    metrics = reference.ceiling()
    assert metrics.composition == 1 and set(metrics.attributes.values()) == {1.0}
    assert metrics.pattern_coverage == 1
    assert metrics.extra_objects == 0 and metrics.exact == 1
    assert metrics.coverage > 0.8
    assert metrics.high_frequency == pytest.approx(1, abs=0.3)
    assert metrics.diversity == pytest.approx(1, abs=0.2)
    itself = evaluate(reference.suite.real_pictures(), reference)
    assert itself.frechet == pytest.approx(0, abs=1e-6) and itself.frechet < metrics.frechet
    assert itself.coverage == itself.diversity == itself.high_frequency == 1


def test_smooth_collapsed_pictures_score_worse(reference: Reference) -> None:
    blurred = torch.nn.functional.avg_pool2d(reference.suite.real_pictures(), 5, 1, 2)
    num = len(reference.suite.captions)
    blurred[num:] = blurred[num:].unflatten(0, (-1, GROUP_SIZE))[:, :1].expand(-1, GROUP_SIZE, -1, -1, -1).flatten(0, 1)
    metrics = evaluate(blurred, reference)
    assert metrics.high_frequency < 0.2
    assert metrics.diversity == pytest.approx(0, abs=1e-9)
    assert metrics.frechet > 0
    with pytest.raises(ValueError, match="captions of shapes1k"):
        evaluate(blurred[:-1], reference)


def test_a_third_object_is_seen_where_the_inspector_sees_two(reference: Reference) -> None:
    suite, generator = reference.suite, torch.Generator().manual_seed(3)
    scenes = add_object(sample_scenes(260, generator, attributes=suite.all_attributes), generator)
    metrics = evaluate(render(scenes, generator), reference)
    assert metrics.extra_objects > 0.75 and metrics.composition == 1
    assert metrics.exact == pytest.approx(1 - metrics.extra_objects)
    assert metrics.intervals["extra_objects"][1] <= 1


def test_report_is_json_and_a_table(reference: Reference) -> None:
    rows: dict[str, Metrics] = {"real": reference.ceiling()}
    document = json.loads(json.dumps(report(rows, suite="shapes1k", seed=0)))
    figures = document["results"]["real"]
    assert {"composition", "frechet", "high_frequency", "coverage", "diversity"} <= figures.keys()
    assert set(figures["intervals"]) == {
        *(name for name, value in figures.items() if isinstance(value, float)),
        *(f"attributes.{name}" for name in figures["attributes"]),
    }
    for low, high in figures["intervals"].values():
        assert low <= high
    console = Console(width=200, record=True)
    console.print(table(rows), attribute_table(rows))
    assert "Fréchet" in console.export_text()
    assert missed(rows["real"], {"composition": 0.5}, {"frechet": 1e3}) == []
    assert missed(rows["real"], {"composition": 2}, {}) == ["--fail-below: composition is 1, below 2"]
    assert missed(rows["real"], {}, {"coverage": 0})[0].startswith("--fail-above: coverage is ")


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
