"""The authors' packages as a backend: the environment and the lines that are exchanged with it.

That the packages give our numbers is measured by `docs/experiments/parity.py`, which downloads them.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from flashdmd_cli.evaluation.backends import metrics as backend
from flashdmd_cli.evaluation.backends import package, upstream
from flashdmd_cli.evaluation.results import read_results, read_samples
from flashdmd_cli.evaluation.scorers.weights import WeightsMissing
from flashdmd_cli.evaluation.scoring import remake
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.workflows.compare import compare
from flashdmd_cli.workflows.evaluate import evaluate
from tests import stand_ins
from tests.test_cli import fails, run


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
    monkeypatch.setattr(package, "WORKER", tmp_path / "worker.py")
    for module in (upstream, backend):
        monkeypatch.setattr(module, "build", lambda reporter: Path(sys.executable))


@pytest.mark.usefixtures("worker")
def test_scores_come_in_the_order_of_the_pictures(weights: Path) -> None:
    images = [Path("a.png"), Path("b.png"), Path("c.png")]
    found = upstream.upstream_scores("hpsv2", images, ["one", "a\nlonger one 🦄", "bad"], weights, download=False)
    assert found[:2] == [23, 34] and math.isnan(found[2])  # two fields: metric and weights
    assert upstream.upstream_scores("image_reward", images[:1], ["one"], weights, download=False) == [43]


@pytest.mark.usefixtures("worker")
def test_a_package_that_ends_early_is_an_error_of_one_line(weights: Path) -> None:
    with pytest.raises(InputError, match="package of hpsv2 ended after 1 pictures: RuntimeError: out of memory"):
        upstream.upstream_scores("hpsv2", [Path("a"), Path("b")], ["x", "stop"], weights, download=False)


def test_a_package_is_given_absolute_paths() -> None:
    """Its process works in a folder of its own."""
    line = upstream.first_line("image_reward", Path("w/ImageReward.pt"), Path("w/bert"))
    here = Path.cwd()
    assert line["config"] == str(here / "w/med_config.json") and line["vocabulary"] == str(here / "w/bert")


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
    assert caught.value.hint is not None and "nothing was drawn or measured" in caught.value.hint


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with 40 pictures, so two chunks, in `in`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number in range(40):
        Image.new("RGB", (40, 32), (6 * number, 90, 10)).save(tmp_path / "in" / f"{number:02d}.png")
    write_prompts(tmp_path)
    return tmp_path


def write_prompts(folder: Path, **others: str) -> None:
    lines = [{"file": f"{i:02d}.png", "id": f"p{i}", "prompt": others.get(f"p{i}", "x" * (i + 1))} for i in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluated(weights: Path, out: str = "out", names: str = "hpsv2,brightness", **options: object) -> dict[str, float]:
    """Values by metric of the 40 pictures."""
    given = {"backend": "upstream"} | options
    result = evaluate(out=out, images="in", prompts="prompts.jsonl", metrics=names.split(","), weights_dir=weights,
                      device="cpu", **given)  # type: ignore[arg-type]  # fmt: skip
    assert result.metrics is not None
    return {name: result.metrics[name] for name in names.split(",")}


@pytest.mark.usefixtures("worker")
def test_an_evaluation_takes_its_values_from_the_packages_and_says_so(pictures: Path, weights: Path) -> None:
    write_prompts(pictures, p3="bad")
    found = evaluated(weights, names="image_reward,hpsv2,brightness")
    # The stand-in counts letters, plus ten for each field: four for image_reward, two for hpsv2; "bad" has no value.
    mean = (sum(range(1, 41)) - 4) / 39
    assert found["image_reward"] == pytest.approx(40 + mean) and found["hpsv2"] == pytest.approx(20 + mean)
    document = read_results(Path("out"))
    table = document["metrics"]
    assert document["backend"] == "upstream" and document["skipped"] == {}
    assert [table[name]["backend"] for name in found] == ["upstream", "upstream", "inprocess"]
    assert table["hpsv2"]["parts"]["not_finite.hpsv2"]["value"] == 1
    provenance = table["image_reward"]["provenance"]
    assert provenance["backend"] == "upstream" and provenance["versions"]["image-reward"] == "1.5"
    assert provenance["weights"]["zai-org/ImageReward"]["sha256"]
    samples = {line["id"]: line["scores"] for line in read_samples(Path("out"))}
    assert samples["p0"]["hpsv2"] == 21 and samples["p3"]["hpsv2"] is None and samples["p3"]["brightness"] > 0


@pytest.mark.usefixtures("worker")
def test_values_of_the_two_backends_are_never_taken_for_each_other(pictures: Path, weights: Path) -> None:
    ours = evaluated(weights, backend="inprocess")
    theirs = evaluated(weights)  # in the same folder, where the first have been measured
    assert theirs["hpsv2"] == pytest.approx(40.5) and abs(ours["hpsv2"]) <= 1
    assert theirs["brightness"] == ours["brightness"]
    assert evaluated(weights, backend="inprocess") == ours
    evaluated(weights, out="b")
    with pytest.raises(UsageError, match="hpsv2"):
        compare([Path("out"), Path("b")], metrics=["hpsv2"])
    assert compare([Path("out"), Path("b")], metrics=["brightness"])


@pytest.mark.usefixtures("worker")
def test_what_was_measured_before_a_package_ended_is_kept(
    pictures: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(pictures, p35="stop")
    with pytest.raises(InputError, match=r"ended after 35 pictures: RuntimeError: out of memory") as caught:
        evaluated(weights)
    assert caught.value.hint is not None and "are kept" in caught.value.hint
    write_prompts(pictures)
    asked: list[str] = []
    score = package.Package.score
    monkeypatch.setattr(
        package.Package, "score", lambda self, image, prompt: asked.append(prompt) or score(self, image, prompt)
    )  # type: ignore[func-returns-value]  # noqa: E501
    assert evaluated(weights)["hpsv2"] == pytest.approx(40.5)
    assert len(asked) == 8  # of the second chunk


@pytest.mark.usefixtures("worker")
def test_metrics_are_made_again_for_the_same_backend(weights: Path) -> None:
    """As each of several processes does."""
    wanted = [("hpsv2", {}), ("hpsv21", {}), ("brightness", {})]
    stand_ins.write_hps(weights, "v2.1")
    assert [metric.backend for metric in remake(wanted, weights, "cpu", "upstream")] == ["upstream"] * 2 + ["inprocess"]
    assert {metric.backend for metric in remake(wanted, weights, "cpu")} == {"inprocess"}


def test_wrong_uses_are_one_line(pictures: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["eval", "--images", "in", "--prompts", "prompts.jsonl", "--backend", "upstream", "--weights-dir", weights]
    fails(run(*words, "--metrics", "brightness"), 2, "--backend upstream: none of these metrics has a package")
    fails(run("eval", "--suite", "shapes1k", "--backend", "upstream", "--generate-only"), 2, "nothing is measured")
    with pytest.raises(UsageError, match="--backend x: unknown"):
        evaluate(images="in", backend="x")  # type: ignore[arg-type]

    def no_registry(command: list[str]) -> None:
        raise upstream._not_built("ERROR: No matching distribution found for image-reward==1.5")

    monkeypatch.setattr(upstream, "_run", no_registry)
    told = "--backend upstream: its environment cannot be built: ERROR: No matching distribution found for image-reward"
    fails(run(*words, "--metrics", "hpsv2,brightness", "--out", "o", "--quiet"), 3, told)
    assert not Path("o").exists()


@pytest.mark.usefixtures("worker")
def test_a_package_ends_with_what_refers_to_it(weights: Path) -> None:
    made = package.Package(Path(sys.executable), {"metric": "hpsv2"})
    process = made._process
    assert made.score(Path("a.png"), "one") == 13
    del made
    for _ in range(100):
        if process.poll() is not None:
            break
        time.sleep(0.01)
    assert process.returncode is not None
