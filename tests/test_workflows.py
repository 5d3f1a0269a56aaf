"""The verbs as Python functions: no command line, nothing printed, progress and stops through a reporter."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from flashdmd_cli.runs.checkpoint import latest_state
from flashdmd_cli.runs.errors import Interrupted, UsageError
from flashdmd_cli.runs.manifest import read_manifest
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.runs.results import stage1_checkpoint
from flashdmd_cli.workflows.align import align
from flashdmd_cli.workflows.distill import distill
from flashdmd_cli.workflows.evaluate import evaluate
from flashdmd_cli.workflows.export import export
from flashdmd_cli.workflows.prepare.world import prepare_shapes
from flashdmd_cli.workflows.recipes import align_recipe, distill_recipe, reward_recipe
from flashdmd_cli.workflows.sample import sample

from .test_cli import shipped, world  # noqa: F401
from .test_cli_align import LOOSE, reward  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

SMALL = ["train.batch=2", "train.micro_batch=2"]


class Listener(SilentReporter):
    """Remembers what it was told; asks for a stop after so many iterations."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.counts: list[tuple[int, int]] = []
        self.counts_aside: list[tuple[int, int]] = []
        self.stop_after = stop_after

    def say(self, text: str) -> None:
        self.lines.append(text)

    def phase(self, text: str, unit: str = "it") -> None:
        super().phase(text, unit)
        self.lines.append(text)

    @contextmanager
    def aside(self, text: str, unit: str = "it") -> Iterator[None]:
        counts, self.counts = self.counts, self.counts_aside
        with super().aside(text, unit):
            yield
        self.counts = counts

    def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        super().progress(done, total, metrics)
        self.counts.append((done, total))
        if done == self.stop_after and self.counts is not self.counts_aside:
            self.stop.request(15)


def test_all_verbs_without_a_command_line(world: Path, reward: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = prepare_shapes("data", num=8)
    recipe = distill_recipe("shapes-4step", SMALL, iterations=1)
    told = Listener()
    made = distill(recipe, "data", "student", reporter=told)
    assert (made.kind, made.step, data.kind) == ("distill", 1, "data") and made == read_manifest(Path("student"))
    assert told.counts[-1] == (1, 1) and told.counts_aside[-1][0] == told.counts_aside[-1][1] > 1  # previews
    assert any("distilling into 4 steps" in line for line in told.lines)
    assert distill(recipe, "data", "student") == made  # finished already

    student = stage1_checkpoint("student")
    sets = [*SMALL, *(word for word in LOOSE if word != "--set")]
    stage2 = align_recipe(student, "align/shapes", sets, reward=str(reward), iterations=1)
    told = Listener()
    assert align(stage2, student, "aligned", reporter=told).kind == "align"
    assert "data: data" in told.lines  # what the student was distilled on
    with pytest.raises(UsageError, match="is for alignment"):
        distill(stage2, "data", "other")
    with pytest.raises(UsageError, match="no section `align`"):
        align(recipe, student, "other")

    drawn = sample(["a plain red circle above a dotted blue ring"], "aligned", num=2, compare=["teacher"])
    assert len(drawn.pictures) == 4 and all(path.is_file() for path in (*drawn.files, drawn.grid))
    measured = evaluate("aligned", "measured", limit=2)
    assert measured.document["metrics"]["composition"]["value"] == measured.metrics["composition"]
    stock = export("aligned", "stock")
    assert stock.steps == 4 and (Path("stock") / "model_index.json").is_file() and stock.manifest.kind == "export"
    assert capfd.readouterr() == ("", "")


def test_a_reporter_ends_a_training(world: Path) -> None:
    prepare_shapes("data", num=8)
    recipe = distill_recipe("shapes-4step", SMALL, iterations=3)
    with pytest.raises(Interrupted, match="iteration 1 of 3; the state is saved") as stopped:
        distill(recipe, "data", "student", reporter=Listener(stop_after=1))
    assert stopped.value.exit_code == 143 and latest_state(Path("student") / "state") is not None
    told = Listener()
    assert distill(recipe, "data", "student", reporter=told).step == 3
    assert any(line.startswith("resuming from") for line in told.lines)


def test_default_recipes(world: Path) -> None:
    assert distill_recipe().name == distill_recipe("sdxl-4step").name
    assert distill_recipe(steps=8).name == distill_recipe("sdxl-8step").name
    assert distill_recipe(teacher="shapes-sdxl", steps=2) == distill_recipe("shapes-4step", ["grid.steps=2"])
    assert reward_recipe(teacher="shapes-sdxl") == reward_recipe("reward/shapes")
    assert reward_recipe() == reward_recipe("reward/sdxl")
    assert (
        distill_recipe(teacher="sd3").name == "sd3-4step" and distill_recipe(teacher="sd3", steps=8).name == "sd3-8step"
    )
    medium = distill_recipe(teacher="stabilityai/stable-diffusion-3.5-medium", steps=1)
    assert (medium.name, medium.family, medium.grid.steps) == ("sd3-4step", "sd3", 1)
    assert distill_recipe(teacher="shapes-sd3", steps=2) == distill_recipe("shapes-sd3-4step", ["grid.steps=2"])
    names = [reward_recipe(teacher=name).name for name in ("shapes-sd3", "sd3", "shapes-sdxl", "sdxl")]
    assert names == ["reward-shapes-sd3", "reward-sd3", "reward-shapes", "reward-sdxl"]
