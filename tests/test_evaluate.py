"""Pictures go to disk as they are drawn, a drawing that was cut goes on, and nothing holds them all."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flashdmd_cli.core.pictures import as_bytes
from flashdmd_cli.evaluation.folder import draw_missing, missing_parts, picture_path, read_picture, read_pictures
from flashdmd_cli.evaluation.intake import look
from flashdmd_cli.evaluation.measuring import measure
from flashdmd_cli.evaluation.metrics.high_frequency import HighFrequency
from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import Row
from flashdmd_cli.evaluation.metrics.objects import ExtraObjects
from flashdmd_cli.runs.errors import InputError, NumericalError, UsageError
from flashdmd_cli.runs.manifest import damaged_files, read_manifest
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.workflows.drawing import DrawJob
from flashdmd_cli.workflows.evaluate import evaluate

from .test_cli import shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

ROWS = [Row(i, f"picture {i}") for i in range(20)]
SIZE = 16


class Drawer:
    """Draws what depends on the index, and in its last bit on the batch, as networks do; may stop on the way."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.drawn = stop_after, list[int]()

    def __call__(self, prompts: Sequence[str], first: int) -> Tensor:
        if len(self.drawn) == self.stop_after:
            raise KeyboardInterrupt
        self.drawn += range(first, first + len(prompts))
        rows = [
            torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(first + i)) for i in range(len(prompts))
        ]
        return torch.stack(rows) * 2 - 1 + len(prompts) * 0.02


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_drawing_that_was_cut_goes_on_to_the_same_files(tmp_path: Path) -> None:
    whole, cut, quiet = tmp_path / "whole", tmp_path / "cut", SilentReporter()
    assert draw_missing(Drawer(), ROWS, whole, quiet, batch=8) == 0 and len(contents(whole)) == 20
    with pytest.raises(KeyboardInterrupt):
        draw_missing(Drawer(stop_after=8), ROWS, cut, quiet, batch=8)
    assert len(contents(cut)) == 8
    assert draw_missing(again := Drawer(), ROWS, cut, quiet, batch=8) == 8
    assert again.drawn == list(range(8, 20)) and contents(cut) == contents(whole)
    picture_path(cut, 17).unlink()
    assert draw_missing(last := Drawer(), ROWS, cut, quiet, batch=8) == 16
    assert last.drawn == [16, 17, 18, 19] and contents(cut) == contents(whole)
    assert draw_missing(none := Drawer(), ROWS, cut, quiet, batch=8) == 20 and none.drawn == []


def test_pictures_that_are_not_finite_are_named_and_end_no_drawing(tmp_path: Path) -> None:
    """One in a batch is left out; where none is finite the weights are no use."""
    bad = {"1", "4", "5"}

    class Some:
        place = SimpleNamespace(device="cpu")

        def draw_from(self, seed: int, prompts: list[str], first: int, *_: Any, **__: Any) -> torch.Tensor:
            calls.append(prompts)
            if bad & set(prompts):
                raise NumericalError("not finite")
            return torch.full((len(prompts), 3, 8, 8), 0.5)

    calls: list[list[str]] = []
    rows = [Row(i, str(i), prompt_id=str(i)) for i in range(6)]
    parts = [rows[:2], rows[2:4], rows[4:]]
    job = DrawJob(Some, "s", 0, parts, tmp_path, 1)  # type: ignore[arg-type]
    job.drawer = Some()  # type: ignore[assignment]
    missing_parts(rows, tmp_path, 2)
    with pytest.raises(NumericalError, match="not finite"):
        job.run(2, lambda _: None, None)  # type: ignore[arg-type]
    for task in range(3):
        job.run(task, lambda _: None, None)  # type: ignore[arg-type]
    assert missing_parts(rows, tmp_path, 2) == []  # a resumed call does not meet them again
    reasons = [look(picture_path(tmp_path, i))[0].reason for i in range(6)]
    assert [i for i, reason in enumerate(reasons) if reason == "the model drew values that are not finite"] == [1, 4, 5]
    assert sum(not reason for reason in reasons) == 3


def test_files_hold_the_pictures_in_8_bits(tmp_path: Path) -> None:
    draw_missing(Drawer(), ROWS, tmp_path, SilentReporter(), batch=8)
    drawn = as_bytes(torch.cat([Drawer()([""] * n, first) for first, n in ((0, 8), (8, 8), (16, 4))]))
    read = list(read_pictures(tmp_path, ROWS, batch=6))
    assert torch.equal(torch.cat([pictures for pictures, _ in read]), drawn) and read[0][0].dtype == torch.uint8
    assert [row for _, rows in read for row in rows] == ROWS
    path = picture_path(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:60])
    for missing in (path, picture_path(tmp_path, 99)):
        with pytest.raises(InputError, match=f"{missing.name}: cannot be read") as told:
            read_picture(missing)
        assert "draws it again" in told.value.hint


def live_bytes(tmp_path: Path, num: int) -> int:
    """The most that tensors held at any batch while `num` pictures were drawn, read and measured."""
    seen, rows, drawer = [], [Row(i, "") for i in range(num)], Drawer()

    def held() -> int:
        gc.collect()
        return sum(each.numel() * each.element_size() for each in gc.get_objects() if type(each) is Tensor)

    def draw(prompts: Sequence[str], first: int) -> Tensor:
        seen.append(held())
        return drawer(prompts, first)

    def read() -> object:
        for pictures, part in read_pictures(tmp_path, rows, batch=8):
            seen.append(held())
            yield pictures, part

    gc.freeze()  # what was there before is not looked at
    try:
        draw_missing(draw, rows, tmp_path, SilentReporter(), batch=8)
        measure([HighFrequency(Instruments()), ExtraObjects(Instruments())], read())  # type: ignore[arg-type]
    finally:
        gc.unfreeze()
    return max(seen)


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    few, many = live_bytes(tmp_path / "few", 24), live_bytes(tmp_path / "many", 120)
    assert few >= 8 * 3 * SIZE**2  # a batch, or nothing was looked at
    assert many - few < 96 * 3 * SIZE**2 / 10  # 96 pictures more; of each, nine bytes of numbers are kept


def test_an_evaluation_draws_once_and_keeps_drawers_apart(world: Path) -> None:  # noqa: F811
    told = Told()
    first = evaluate("shapes-sdxl", "e", limit=2, steps=1, reporter=told)
    files = contents(first.pictures)
    rows = [json.loads(line) for line in (first.pictures / "prompts.jsonl").read_text().splitlines()]
    assert len(files) == 10 + 2 and [row["prompt"] for row in rows] == [row.prompt for row in first.suite.rows]
    assert [row["file"] for row in rows] == sorted(files)[:10]
    assert not any("already" in line for line in told.lines)
    times = {path: path.stat().st_mtime_ns for path in first.pictures.iterdir()}
    again = evaluate("shapes-sdxl", "e", limit=2, steps=1, reporter=told)
    assert again.document["metrics"] == first.document["metrics"]
    assert f"10 of 10 pictures are in {first.pictures} already" in told.lines
    assert {path: path.stat().st_mtime_ns for path in again.pictures.iterdir()} == times
    other = evaluate("shapes-sdxl", "e", limit=2, steps=1, seed=1)
    assert other.pictures != first.pictures and not first.pictures.exists()
    manifest = read_manifest(Path("e"))
    assert damaged_files(Path("e"), manifest) == [] and len(manifest.files) == 14
    assert manifest.recipe["suite"]["version"] == 1 and first.document["metrics"]["frechet"]["version"] == 1


def test_thresholds_are_held_against_the_suite_before_anything_is_drawn(world: Path) -> None:  # noqa: F811
    with pytest.raises(UsageError, match="--fail-below frechet: lower is better"):
        evaluate("shapes-sdxl", "e", limit=2, steps=1, fail_below={"frechet": 1})
    assert not Path("e").exists()
    assert evaluate(
        "shapes-sdxl", "e", limit=2, steps=1, fail_below={"exact": 2}, fail_above={"frechet": 1e9}
    ).missed == ["--fail-below: exact is 0, below 2"]


class Told(SilentReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def phase(self, text: str, unit: str = "it") -> None:
        super().phase(text, unit)
        self.lines.append(text)
