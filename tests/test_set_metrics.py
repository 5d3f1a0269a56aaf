"""Metrics of sets of pictures against clean-fid's own functions, brute force and known values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from cleanfid import fid as cleanfid
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image
from torch import Tensor
from torchvision.models import alexnet

from flashdmd_cli.core.pictures import as_float, contrast
from flashdmd_cli.evaluation.gathering import Scored
from flashdmd_cli.evaluation.measuring import Measured
from flashdmd_cli.evaluation.metrics.frechet import expand, frechet, frechet_features, frechet_gaussians
from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import mean, paired_difference
from flashdmd_cli.evaluation.metrics.kid import kernel_distance
from flashdmd_cli.evaluation.metrics.metric import Row
from flashdmd_cli.evaluation.metrics.precision_recall import inside
from flashdmd_cli.evaluation.metrics.registry import METRICS
from flashdmd_cli.evaluation.metrics.seed_diversity import vendi
from flashdmd_cli.evaluation.report import parts_tables, table
from flashdmd_cli.evaluation.results import metric_table
from flashdmd_cli.evaluation.scorers.lpips import load_lpips
from tests import stand_ins
from tests.test_scorers import pictures_of, rows_of


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for write in (stand_ins.write_inception, stand_ins.write_dino, stand_ins.write_lpips):
        write(folder)
    return folder


@pytest.fixture(scope="session")
def instruments(weights: Path) -> Instruments:
    return Instruments(weights, download=False)


def write_folder(folder: Path, pictures: Tensor) -> str:
    folder.mkdir()
    for i, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(picture).save(folder / f"{i:04d}.png")
    return str(folder)


def features_of_cleanfid(folder: str, weights: Path, prepare: object) -> np.ndarray:
    """clean-fid's own reading, resizing and network."""
    net = InceptionV3W(str(weights), download=False).eval()
    found: np.ndarray = cleanfid.get_folder_features(
        folder, model=net, num_workers=0, device=torch.device("cpu"), verbose=False, custom_image_tranform=prepare
    )
    return found


def dmd2(picture: np.ndarray) -> np.ndarray:
    """The centre square, 512 x 512."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(picture[top : top + side, left : left + side])
    return np.array(square.resize((512, 512), Image.Resampling.LANCZOS))


def test_fid_has_the_features_of_cleanfid(instruments: Instruments, weights: Path, tmp_path: Path) -> None:
    """On wide pictures, prepared as DMD2 does, from the file to the number."""
    drawn, real = pictures_of(40, 40, 56, seed=1), pictures_of(40, 40, 56, seed=2)
    theirs = [features_of_cleanfid(write_folder(tmp_path / name, each), weights, dmd2)
              for name, each in (("drawn", drawn), ("real", real))]  # fmt: skip
    metric = METRICS["fid"](instruments)
    ours = [metric.measure(each, rows_of(40)) for each in (drawn, real)]
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(one.numpy() - other).max() < 1e-5 and one.std(dim=0).max() > 1e-3
    assert metric.result(*ours)["fid"].value == pytest.approx(frechet_features(*ours), abs=1e-3)


def test_fid_and_kid_of_500_pictures_are_those_of_cleanfid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same features on both sides, of which there are fewer than pictures, and a distance far from zero."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(64, 64, generator=generator)
    first = torch.randn(500, 64, generator=generator) @ mix
    second = torch.randn(500, 64, generator=generator) @ mix * 1.1 + 0.2
    theirs = first.double().numpy(), second.double().numpy()
    root = scipy.linalg.sqrtm  # whose argument `disp`, which clean-fid gives, is gone in SciPy 1.18
    monkeypatch.setattr("scipy.linalg.sqrtm", lambda matrix, disp: (root(matrix), None))
    wanted = cleanfid.fid_from_feats(*theirs)
    assert frechet(first, second)[0].value == pytest.approx(wanted, abs=1e-3) and wanted > 10
    kernel = cleanfid.kernel_distance(*theirs, num_subsets=1)
    assert kernel_distance(first, second).value == pytest.approx(kernel, rel=1e-9) and kernel > 1


@pytest.mark.parametrize(("height", "width"), [(330, 420), (100, 420)])
def test_patch_fid_cuts_the_middle_and_does_not_resize(
    instruments: Instruments, weights: Path, height: int, width: int
) -> None:
    pictures = pictures_of(2, height, width)
    if height >= 299:
        top, left = round((height - 299) / 2), round((width - 299) / 2)
        middle = pictures[..., top : top + 299, left : left + 299].float()
    else:  # too small to cut: resized as a whole
        from cleanfid.resize import build_resizer

        resized = [build_resizer("clean")(picture) for picture in pictures.permute(0, 2, 3, 1).numpy()]
        middle = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    wanted = InceptionV3W(str(weights), download=False)(middle)
    assert (METRICS["patch_fid"](instruments).measure(pictures, rows_of(2)) - wanted).abs().max() < 1e-5


def test_inception_sees_a_batch_once_though_four_metrics_ask(
    instruments: Instruments, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, rows = pictures_of(3), rows_of(3)
    METRICS["fid"](instruments).measure(pictures, rows)
    net = instruments.network(instruments.weights_dir / "inception-2015-12-05.pt", lambda: None)  # type: ignore
    monkeypatch.setattr(net, "features", lambda pictures: pytest.fail("computed again"))
    found = [METRICS[name](instruments).measure(pictures, rows) for name in ("fid", "kid", "precision", "recall")]
    assert all(each is found[0] for each in found)
    with pytest.raises(pytest.fail.Exception):
        METRICS["fid"](instruments).measure(pictures.clone(), rows)


def test_the_moves_of_pictures_are_the_derivative_of_the_distance() -> None:
    """Pictures that count twice move the distance by their moves, to first order."""
    generator = torch.Generator().manual_seed(3)
    generated = torch.randn(4000, 4, generator=generator).double() * torch.tensor([1.0, 2, 0.5, 1])
    real = torch.randn(3000, 4, generator=generator).double() @ torch.randn(4, 4, generator=generator).double() + 0.5
    found, few = expand(generated, real), torch.arange(40)
    assert found.value == pytest.approx(frechet_features(generated, real), rel=1e-9)
    for moves, more in (
        (found.moves, (torch.cat([generated, generated[few]]), real)),
        (found.moves_real, (generated, torch.cat([real, real[few]]))),
    ):
        total = len(moves) + len(few)
        wanted = frechet_features(*more) - found.value
        assert float(moves[few].sum() / total) == pytest.approx(wanted, rel=0.05, abs=2e-4)
        assert float(moves.mean()) == pytest.approx(0, abs=1e-9)


def test_unbiased_distance_is_closer_to_the_truth() -> None:
    """In 16 dimensions with 200 pictures the plain distance lies far outside of its own error from the truth."""
    generator = torch.Generator().manual_seed(4)
    mix = torch.randn(16, 16, generator=generator).double() / 4
    truth = frechet_gaussians(torch.zeros(16), mix @ mix.T, torch.full((16,), 0.1), 1.5 * mix @ mix.T)
    found = [
        frechet(
            torch.randn(200, 16, generator=generator).double() @ mix,
            torch.randn(200, 16, generator=generator).double() @ mix * math.sqrt(1.5) + 0.1,
        )
        for _ in range(30)
    ]
    plain, unbiased = (torch.tensor([pair[i].value for pair in found]).mean().item() for i in (0, 1))
    assert plain - truth > 0.1 and abs(unbiased - truth) < 0.04


def coverage_of(num: int) -> dict[str, float]:
    """How many of `num` simulated evaluations have the truth in their interval. `docs/experiments/` has a script with a
    thousand of each."""
    generator = torch.Generator().manual_seed(7)
    mix, shift = torch.randn(6, 6, generator=generator).double() / 2, 0.3
    truth = frechet_gaussians(torch.zeros(6), mix @ mix.T, torch.full((6,), shift), 1.3 * mix @ mix.T)
    hits = {"mean": 0, "paired": 0, "frechet": 0}
    for _ in range(num):
        prompts = torch.randn(300, generator=generator).double().exp()  # difficulty of a prompt, skewed
        first = prompts + torch.randn(300, generator=generator) * 0.3
        second = prompts + 0.1 + torch.randn(300, generator=generator) * 0.3
        generated = torch.randn(300, 6, generator=generator).double() @ mix
        real = torch.randn(300, 6, generator=generator).double() @ mix * math.sqrt(1.3) + shift
        for name, interval, value in (
            ("mean", mean(first), math.exp(0.5)),
            ("paired", paired_difference(first, second), -0.1),
            ("frechet", frechet(generated, real)[1], truth),
        ):
            hits[name] += interval.low <= value <= interval.high
    return {name: count / num for name, count in hits.items()}


def test_intervals_cover_the_truth() -> None:
    """In about 95% of evaluations; with 150 of them the share itself has a standard error of 1.8%."""
    assert all(0.90 <= share <= 1.0 for share in coverage_of(150).values()), coverage_of(150)


def test_the_first_order_correction_is_in_results_and_in_no_table(instruments: Instruments) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 40, 6, generator=generator)
    metric = METRICS["fid"](instruments)
    values = metric.result(*features)
    assert set(values) == {"fid", "unbiased.fid"}
    scored = Scored([], {"fid": features[0]}, {})
    assert list(metric_table([metric], values, scored)["fid"]["parts"]) == ["unbiased.fid"]
    rows = {"a": Measured(dict(values) | {"attributes.colour": values["fid"]}, 40)}
    assert [list(each.columns[0].cells) for each in parts_tables(rows)] == [["colour"]]
    assert list(table(rows, [metric]).columns[0].cells) == ["FID ↓"]


def test_kernel_distance_is_unbiased_and_its_interval_covers_zero() -> None:
    generator = torch.Generator().manual_seed(5)
    found = [
        kernel_distance(torch.randn(60, 8, generator=generator), torch.randn(50, 8, generator=generator))
        for _ in range(60)
    ]
    values = torch.tensor([each.value for each in found])
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(60) and values.min() < 0
    far = kernel_distance(torch.randn(60, 8, generator=generator), torch.randn(50, 8, generator=generator) + 1)
    assert far.low > 0 and sum(each.low <= 0 <= each.high for each in found) >= 54


def test_precision_and_recall(instruments: Instruments) -> None:
    """By brute force; drawn pictures that repeat one mode are precise and do not recall."""
    generator = torch.Generator().manual_seed(6)
    real, drawn = torch.randn(40, 3, generator=generator), torch.randn(30, 3, generator=generator) * 1.5
    radii = [sorted((one - other).norm().item() for other in real)[3] for one in real]
    wanted = [any((q - r).norm() <= radius for r, radius in zip(real, radii, strict=True)) for q in drawn]
    assert inside(drawn.double(), real.double(), 3).tolist() == wanted and 0 < sum(wanted) < 30
    narrow = real[:1] + torch.randn(40, 3, generator=generator) * 0.01
    figures = {name: METRICS[name](instruments).result(narrow, real)[name] for name in ("precision", "recall")}
    assert figures["precision"].value == 1 and figures["recall"].value < 0.1
    assert figures["precision"].low < 1 == figures["precision"].high


def test_vendi_counts_different_pictures(instruments: Instruments) -> None:
    assert vendi(torch.eye(4)) == pytest.approx(4) and vendi(torch.ones(4, 3)) == pytest.approx(1)
    assert vendi(torch.eye(2)[[0, 0, 1, 1]]) == pytest.approx(2)
    metric = METRICS["vendi"](instruments)
    one = pictures_of(4, seed=1)
    rows = [Row(i, "a", group=i // 4) for i in range(8)]
    numbers = metric.measure(torch.cat([one, one[:1].expand(4, -1, -1, -1)]), rows)
    found = metric.result(numbers, torch.empty(0))["vendi"]
    features = numbers[:4, 1:]
    assert found.value == pytest.approx((vendi(features) + 1) / 2, rel=1e-5) and found.value > 1
    assert not metric.takes(Row(0, "a")) and metric.takes(rows[0])


def test_lpips_is_the_published_distance(instruments: Instruments, weights: Path) -> None:
    """From the definition: features of each rectifier at unit length, squared differences, weights, means of places."""
    linear, trunk = weights / "lpips" / "alex.pth", weights / "alexnet-owt-7be5be79.pth"
    net, features = load_lpips(linear, trunk, torch.device("cpu")), alexnet(weights=None).features.eval()
    features.load_state_dict({k.removeprefix("features."): v for k, v in torch.load(trunk).items()})
    lines = list(torch.load(linear).values())
    pixels = as_float(pictures_of(3, 96, 96))
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def layers(picture: Tensor) -> list[Tensor]:
        x, found = (picture - shift.view(3, 1, 1)) / scale.view(3, 1, 1), []
        for layer in features:
            x = layer(x[None])[0]
            if isinstance(layer, torch.nn.ReLU):
                found.append(x / (x.square().sum(0).sqrt() + 1e-10))
        return found

    with torch.no_grad():
        seen = [layers(each) for each in pixels]
        pairs = [
            sum(float(((a - b).square() * w[0]).sum(0).mean()) for a, b, w in zip(seen[i], seen[j], lines, strict=True))
            for i, j in ((0, 1), (0, 2), (1, 2))
        ]
    assert float(net.between(pixels)) == pytest.approx(sum(pairs) / 3, rel=1e-5)
    metric = METRICS["lpips"](instruments)
    rows = [Row(i, "a", group=[300, 300, 7, 7][i]) for i in range(4)]
    numbers = metric.measure(pictures_of(4), rows)
    small = metric.condense(torch.cat([numbers[1:], numbers[:1]]))
    assert small.shape == (4, 2)  # of the pictures nothing is kept
    found = metric.result(small, torch.empty(0))["lpips"]
    apart = [float(net.between(as_float(numbers[i : i + 2, 4:].unflatten(1, (3, 512, 512))))) for i in (0, 2)]
    assert found.value == pytest.approx(sum(apart) / 2, rel=1e-5) and found.low < found.value


def test_pixel_statistics_are_means_of_pictures(instruments: Instruments) -> None:
    pictures = pictures_of(5)
    metric = METRICS["contrast"](instruments)
    numbers = metric.measure(pictures, rows_of(5))
    assert numbers.tolist() == contrast(as_float(pictures)).tolist()
    assert metric.result(numbers, torch.empty(0))["contrast"].value == pytest.approx(float(numbers.mean()))
    assert metric.direction == "none" and metric.scores(numbers) is not None
    black = METRICS["brightness"](instruments).measure(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), rows_of(1))
    assert black.tolist() == [0]
