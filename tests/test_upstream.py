"""The authors' packages as a backend: the environment and the lines that are exchanged with it.

That the packages give our numbers is measured by `docs/experiments/parity.py`, which downloads them.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from flashdmd_cli.evaluation.backends import upstream
from flashdmd_cli.evaluation.scorers.weights import WeightsMissing
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.reporter import SilentReporter
from tests import stand_ins


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in which no environment is built."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(
        "huggingface_hub.cached_assets_path",
        lambda library, namespace, subfolder: tmp_path / "assets" / library / namespace / subfolder,
    )
    return tmp_path / "assets"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    stand_ins.write_hps(tmp_path / "weights")
    stand_ins.write_image_reward(tmp_path / "weights")
    return tmp_path / "weights"


ECHO = """
import json, sys
first = json.loads(sys.stdin.readline())
print("loading", file=sys.stderr)
for line in sys.stdin:
    pair = json.loads(line)
    if pair["prompt"] == "stop":
        sys.exit("RuntimeError: out of memory")
    score = float("nan") if pair["prompt"] == "bad" else len(pair["prompt"]) + 10 * len(first)
    print(json.dumps({"score": score}), flush=True)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python in place of the environment's, and a worker that counts letters and fields."""
    (tmp_path / "worker.py").write_text(ECHO)
    monkeypatch.setattr(upstream, "WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(upstream, "build", lambda reporter: Path(sys.executable))


@pytest.mark.usefixtures("worker")
def test_scores_come_in_the_order_of_the_pictures(weights: Path) -> None:
    images = [Path("a.png"), Path("b.png"), Path("c.png")]
    found = upstream.upstream_scores("hpsv2", images, ["one", "a\nlonger one 🦄", "bad"], weights, download=False)
    assert found[:2] == [23, 34] and math.isnan(found[2])  # two fields: metric and weights
    assert upstream.upstream_scores("image_reward", images[:1], ["one"], weights, download=False) == [43]


@pytest.mark.usefixtures("worker")
def test_a_package_that_ends_early_is_an_error_of_one_line(weights: Path) -> None:
    with pytest.raises(InputError, match="ended after 1 of 2 pictures: RuntimeError: out of memory"):
        upstream.upstream_scores("hpsv2", [Path("a"), Path("b")], ["x", "stop"], weights, download=False)


def test_what_it_cannot_score_is_said_before_anything_is_built(weights: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InputError, match="clip has no package of its authors"):
        upstream.upstream_scores("clip", [], [], weights)
    with pytest.raises(WeightsMissing, match=r"hpsv21: HPS_v2.1_compressed.pt of xswu/HPSv2 \(1.97 GB\)"):
        upstream.upstream_scores("hpsv21", [Path("a")], ["x"], weights, download=False)
    assert not cache.exists()


def test_the_environment_is_built_once_and_sees_this_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> None:
        commands.append(command)
        if "venv" in command:
            (Path(command[-1]) / "lib" / "python3" / "site-packages" / "hpsv2" / "src" / "open_clip").mkdir(
                parents=True
            )

    monkeypatch.setattr(upstream, "_run", run)
    assert "are installed when --backend upstream first asks" in upstream.status()
    python = upstream.build(SilentReporter())
    assert python == upstream.build(SilentReporter()) and len(commands) == 2
    assert commands[1][0] == str(python) and "--no-deps" in commands[1] and "image-reward==1.5" in commands[1]
    [site] = cache.rglob("site-packages")
    assert any(Path(line, "torch").is_dir() for line in (site / "zz_parent.pth").read_text().splitlines())
    assert (site / "hpsv2" / "src" / "open_clip" / "bpe_simple_vocab_16e6.txt.gz").stat().st_size > 1e6
    assert "hpsv2==1.2.0 in " in upstream.status()


def test_an_environment_that_cannot_be_built_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself, without an index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError) as caught:
        upstream._run([sys.executable, "-m", "pip", "install", "--no-deps", "no-such-package-of-flashdmd==1"])
    assert caught.value.message.startswith("--backend upstream: its environment cannot be built: ERROR: ")
    assert "\n" not in caught.value.message and not upstream.is_built(upstream.environment())
