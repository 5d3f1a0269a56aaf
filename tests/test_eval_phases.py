"""The two phases: pictures depend on suite, prompt id and seed alone, and an evaluation goes on where it ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from flashdmd_cli.evaluation.metrics.metric import Row
from flashdmd_cli.evaluation.suites.prompts import Prompt
from flashdmd_cli.evaluation.suites.spec import rows_of
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.manifest import damaged_files, read_manifest
from flashdmd_cli.runs.workers import run_tasks
from flashdmd_cli.shapes import assets
from flashdmd_cli.workflows import drawing
from flashdmd_cli.workflows.evaluate import Evaluation, evaluate
from flashdmd_cli.workflows.inputs.drawers import FamilyDrawer as Drawer

from .test_cli import shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401
from .test_workflows import Listener

CAPTIONS = [f"a plain {a} circle above a plain {b} ring" for a in ("red", "blue") for b in ("green", "cyan", "white")]


@pytest.fixture
def prompts(world: Path) -> Path:  # noqa: F811
    path = world / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"p{i}", "prompt": text}) for i, text in enumerate(CAPTIONS)))
    return path


def drawn(out: str, **options: object) -> Evaluation:
    """Draw with the embedded teacher, re-noising at each of two steps."""
    given = {"sampler": "stochastic", "steps": 2, "generate_only": True} | options
    return evaluate("shapes-sdxl", out, **given)  # type: ignore[arg-type]


def by_name(result: Evaluation) -> dict[tuple[str, int], bytes]:
    """The files of the pictures by (prompt id, seed)."""
    lines = [json.loads(line) for line in (result.pictures / "prompts.jsonl").read_text().splitlines()]
    return {(each["id"], each["seed"]): (result.pictures / each["file"]).read_bytes() for each in lines}


def test_a_picture_depends_on_suite_prompt_id_and_seed_alone(prompts: Path) -> None:
    whole = by_name(drawn("a", prompts=prompts, batch=4))
    assert len(set(whole.values())) == 6
    lines = prompts.read_text().splitlines()
    prompts.write_text("\n".join([lines[4], lines[0], lines[2]]))  # fewer, in another order
    assert by_name(drawn("b", prompts=prompts, batch=1)) == {
        key: whole[key] for key in [("p4", 0), ("p0", 0), ("p2", 0)]
    }
    several = by_name(drawn("c", prompts=prompts, seeds=3, batch=7))
    assert len(several) == 9 and all(several[key] == whole[key] for key in [("p4", 0), ("p0", 0), ("p2", 0)])
    assert by_name(drawn("d", prompts=prompts, seed=2))["p0", 2] == several["p0", 2] != several["p0", 1]
    prompts.rename(prompts.with_name("other.jsonl"))  # another suite's pictures are others
    assert by_name(drawn("e", prompts=prompts.with_name("other.jsonl")))["p0", 0] != whole["p0", 0]


def test_noise_of_every_step_is_the_pictures_own(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flashdmd_cli.evaluation import generate

    keys: set[tuple[object, ...]] = set()
    noise = generate.picture_noise

    def noted(shape: object, *key: object) -> torch.Tensor:
        keys.add(key)
        return noise(shape, *key)  # type: ignore[arg-type]

    monkeypatch.setattr(generate, "picture_noise", noted)
    drawn("a", prompts=prompts, seed=5, batch=3)
    assert keys == {(5, 0, step, f"mine/p{i}") for i in range(6) for step in (0, 1)}


def test_rows_of_several_seeds() -> None:
    rows = rows_of([Prompt("x", "a"), Prompt("y", "b")], None, 2)
    assert rows == [Row(0, "a", 0, True, "x", 0), Row(1, "a", 0, True, "x", 1), Row(2, "b", 1, True, "y", 0),
                    Row(3, "b", 1, True, "y", 1)]  # fmt: skip


def test_batch_and_interruption_change_no_value(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    few = {"limit": 4, "sampler": "stochastic", "steps": 1}
    first = evaluate("shapes-sdxl", "a", batch=7, **few)  # type: ignore[arg-type]
    assert evaluate("shapes-sdxl", "b", batch=64, **few).document["metrics"] == first.document["metrics"]  # type: ignore[arg-type]
    draw, calls = Drawer.draw_from, 0

    def dies(self: Drawer, *args: object, **kwargs: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return draw(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Drawer, "draw_from", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate("shapes-sdxl", "c", batch=5, **few)  # type: ignore[arg-type]
    again = evaluate("shapes-sdxl", "c", batch=1, **few)  # type: ignore[arg-type]
    assert calls == 3 + 20 - 10 and again.document["metrics"] == first.document["metrics"]
    assert Path("c/samples.jsonl").read_bytes() == Path("a/samples.jsonl").read_bytes()
    drawing = again.document["drawing"]
    assert drawing["pictures_timed"] == 20 and drawing["seconds_per_picture"] > 0 < drawing["peak_memory_bytes"]


def test_processes_change_no_value(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    # Worker processes find the shipped assets, so this process must draw with them too.
    monkeypatch.setattr(assets, "ASSETS", Path(assets.__file__).parent / "assets")
    few = {"limit": 7, "sampler": "stochastic", "steps": 1, "metrics": ["exact", "high_frequency"]}
    one = evaluate("shapes-sdxl", "a", **few)  # type: ignore[arg-type]
    two = evaluate("shapes-sdxl", "b", num_processes=2, batch=18, **few)  # type: ignore[arg-type]
    assert by_name(one) == by_name(two) and one.document["metrics"] == two.document["metrics"]
    assert Path("a/samples.jsonl").read_bytes() == Path("b/samples.jsonl").read_bytes()
    with pytest.raises(UsageError, match="--nproc 0"):
        evaluate("shapes-sdxl", "b", num_processes=0)


def test_progress_counts_single_pictures_from_the_first_one_on(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    few = {"limit": 2, "sampler": "stochastic", "steps": 1, "generate_only": True, "batch": 7}
    told = Listener()
    evaluate("shapes-sdxl", "a", reporter=told, **few)  # type: ignore[arg-type]
    assert told.counts == [(done, 10) for done in range(11)]

    def slow_start(job: Any, tasks: Any, num: int, done: Any) -> None:
        assert num == 2
        done(0)
        done(0)
        run_tasks(job, tasks, 1, done)

    monkeypatch.setattr(drawing, "run_tasks", slow_start)
    told = Listener()
    evaluate("shapes-sdxl", "b", reporter=told, num_processes=2, **few)  # type: ignore[arg-type]
    # The clock of the speed starts with the first report, which is not before a picture is drawn.
    assert told.counts[0] == (1, 10) and told.counts[-1] == (10, 10)
    assert any(line.startswith("starting 2 processes") for line in told.lines)


def test_pictures_of_a_suite_are_measured_where_they_lie(world: Path) -> None:  # noqa: F811
    few = {"limit": 4, "sampler": "stochastic", "steps": 1}
    only = evaluate("shapes-sdxl", "a", generate_only=True, **few)  # type: ignore[arg-type]
    assert (
        only.metrics is None
        and not Path("a/samples.jsonl").exists()
        and damaged_files(Path("a"), read_manifest(Path("a"))) == []
    )
    assert only.suite.metrics == [] and "metrics" not in only.document
    whole = evaluate("shapes-sdxl", "b", **few)  # type: ignore[arg-type]
    scored = evaluate(out="c", suite="shapes1k", limit=4, images=only.pictures)
    assert scored.document["metrics"] == whole.document["metrics"]
    assert scored.document["suite"]["sha256"] == whole.document["suite"]["sha256"]
    shutil.copytree(only.pictures, "copy")
    (Path("copy") / "00001.png").unlink()
    (Path("copy") / "00006.png").write_bytes(b"no picture")  # the third of four pictures of a prompt
    left = evaluate(out="d", suite="shapes1k", limit=4, images="copy").document
    assert left["metrics"]["composition"]["n"] == 3 and left["metrics"]["diversity"]["n"] == 12
    assert {name for each in left["pictures"]["left_out"].values() for name in each["files"]} == {
        "prompt 2",
        "00006.png",
    }
    with pytest.raises(InputError, match="prompt 1 is not that of the suite shapes-val"):
        evaluate(out="e", suite="shapes-val", limit=4, images=only.pictures)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"images": "x", "source": "y"}, "--images: are pictures that are there already"),
        ({"images": "x", "generate_only": True}, "--generate-only: nothing is drawn"),
        ({"generate_only": True, "fail_above": {"frechet": 1}}, "--fail-above: nothing is measured"),
        ({"images": "x", "layout": "dpg"}, "--layout: nothing is drawn"),
        ({"layout": "parti"}, "--layout parti: unknown"),
        ({"seeds": 0}, "--seeds 0: must be at least 1"),
        ({"batch": 0}, "--batch 0"),
        ({"num_processes": 0}, "--nproc 0"),
        ({"suite": "shapes1k", "prompts": "p.txt"}, "--prompts: the suite has its prompts"),
        ({"metrics": ["exact", "exact"]}, "--metrics exact: is there twice"),
    ],
)
def test_options_that_exclude_each_other(tmp_path: Path, options: dict[str, object], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        evaluate(out=tmp_path / "e", **options)  # type: ignore[arg-type]
