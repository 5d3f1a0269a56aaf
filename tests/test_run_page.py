"""`page.html` of a run: everything that the run has left, at a bounded cost and size, for all kinds of training."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from flashdmd_cli.evaluation import run_page
from flashdmd_cli.evaluation.preview import Preview, read_previews
from flashdmd_cli.evaluation.run_page import RunPage, chosen_frames
from flashdmd_cli.evaluation.run_panels import GROUPS, Panel, allowed, rest
from flashdmd_cli.runs.align_schema import Bands
from flashdmd_cli.runs.recipe import Recipe, RewardRecipe, load_recipe
from flashdmd_cli.runs.teacher import TeacherRecord

from .test_page import external
from .test_report_page import plain, section

ROLES = ("student", "fake", "discriminator", "preference")


def row(step: int, **more: float | None) -> dict[str, float | None]:
    """A row of `metrics.jsonl` of an alignment, with its probe at every fourth iteration."""
    wave = math.sin(step / 7)
    found: dict[str, float | None] = {"step": step, "fake": 0.3 + 0.1 * wave, "discriminator": 1.5, "kl": 0.01}
    found |= {f"grad_norm/{name}": 1 + 0.5 * wave for name in ROLES} | {f"updates/{name}": step + 1.0 for name in ROLES}
    found |= {"reward/mean": 0.1, "pairs": 4.0, "kept_pairs": 0.5, "accuracy": 0.6, "tripwires": 0.0, "dm": None}
    if step % 4 == 0:
        found |= {"probe/reward": 1.0, "probe_change/diversity": -0.2, "probe_outside/diversity": float(step > 4)}
    return found | more


def append(out: Path, first: int, last: int, **more: float) -> None:
    with (out / "metrics.jsonl").open("a") as metrics, (out / "costs.jsonl").open("a") as costs:
        for step in range(first, last):
            metrics.write(json.dumps(row(step, **more)) + "\n")
            costs.write(json.dumps({"step": step, "seconds_per_kimg": 250.0, "memory_gb": 3.25}) + "\n")


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("align/shapes", flags={"train.iterations": 100, "train.batch": 8, "train.micro_batch": 8})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "teacher.json").write_text(TeacherRecord(id="shapes-sdxl", hash="ab" * 32).model_dump_json())
    return folder


def test_page_shows_what_the_run_has_left(out, recipe, tmp_path):
    append(out, 0, 20, new_metric=7.0)
    (tmp_path / "data").mkdir()
    page = RunPage(recipe, out, [tmp_path / "data"])
    page.write(20, ["collapse at iteration 13: diversity -20%", "<b>bold</b>"])
    text = (out / "page.html").read_text(encoding="utf-8")
    assert external(text) == [] and "<b>bold" not in text and "&lt;b&gt;bold" in section(text, "Tripwires")
    progress = plain(section(text, "Progress"))
    # 250 s per thousand pictures and 8 pictures per iteration: 2 s each, 4 pictures per second, 80 iterations left.
    for value in ("20 of 100", "running", "pictures per second 4", "seconds per iteration 2", "2:40", "3.2 GB"):
        assert value in progress, value
    assert 'style="width:20.0%"' in text and 'data-refresh="30"' in text
    for title in GROUPS:
        assert f"<h2>{title}</h2>" in text
    assert "new_metric" in section(text, "Other metrics")
    diversity = section(text, "Probe").split("<figure")[2]
    assert "Change of diversity" in diversity and diversity.count('class="mark"') == 3 and 'class="band"' in diversity
    assert "  brightness_drift: 0.1\n" in section(text, "Recipe")
    lineage = plain(section(text, "Lineage"))
    assert f"└ {tmp_path / 'data'}" in lineage and "teacher shapes-sdxl (content abababababab)" in lineage
    page.write(20, [], ended=True)
    text = (out / "page.html").read_text()
    assert "stopped; the same command resumes" in text and "data-refresh" not in text and "time left" not in text


def test_new_rows_are_read_once_and_the_page_keeps_its_size(out, recipe, monkeypatch):
    append(out, 0, 600)
    page = RunPage(recipe, out)
    page.write(600, [])
    size = (out / "page.html").stat().st_size
    decoded: list[str] = []
    loads = json.loads
    monkeypatch.setattr(run_page.json, "loads", lambda line: (decoded.append(line), loads(line))[1])
    append(out, 600, 2400)
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 2400, "fa')  # not whole yet
    page.write(2400, [])
    assert len(decoded) == 2 * 1800
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('ke": 0.5}\n')
    page.write(2401, [])
    assert len(decoded) == 2 * 1800 + 1 and page.series["fake"].columns()[-1].last == 0.5
    fresh = RunPage(recipe, out)
    fresh.write(2401, [])
    assert {key: each.columns() for key, each in fresh.series.items()} == {
        key: each.columns() for key, each in page.series.items()
    }
    assert (out / "page.html").stat().st_size < 1.5 * size


def test_page_is_written_at_a_limited_rate(out, recipe, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_page.time, "monotonic", lambda: now[0])
    written: list[int] = []
    cost = 0.1

    def write(path: Path, page: object) -> Path:
        now[0] += cost
        return path

    monkeypatch.setattr(run_page, "write_page", write)
    monkeypatch.setattr(RunPage, "page", lambda self, iteration, *_: written.append(iteration))
    page = RunPage(recipe, out)
    for iteration in range(1, 1001):
        now[0] += 1.0
        page.update(iteration, [])
    assert 1000 / 31 - 2 < len(written) <= 1000 / 30  # INTERVAL
    cost, written[:] = 2.0, []
    for iteration in range(1001, 3001):
        now[0] += 1.0
        page.update(iteration, [])
    assert len(written) * cost <= run_page.SHARE * 2000 + cost  # a slow disk
    page.update(3000, [], True)
    assert written[-1] == 3000


def test_previews_are_kept_and_shown_with_a_slider(out, recipe, tiny_family):
    preview = Preview(recipe, tiny_family, ["a cat", "<i>dog</i>"], out)
    preview(tiny_family.teacher, tiny_family.teacher, 0)
    RunPage(recipe, out).write(0, [])
    first = section((out / "page.html").read_text(), "Pictures")
    assert first.count("<img ") == 3 and "slider" not in first.split("</p>")[1]
    for iteration in (3, 40):
        preview(tiny_family.teacher, tiny_family.teacher, iteration)
    found = read_previews(out)
    assert list(found.fixed) == ["teacher 30 steps", "teacher 4 steps", "student 4 steps iteration 0"]
    assert list(found.frames) == [3, 40] and list(found.captions) == ["a cat", "<i>dog</i>"]
    page = RunPage(recipe, out)
    page.write(40, [])
    text = section((out / "page.html").read_text(), "Pictures")
    assert text.count("<img ") == 5 and "&lt;i&gt;dog" in text and 'max="1" value="1"' in text
    assert text.count('data-name="iteration 3" hidden') == 1 and 'data-name="iteration 40">' in text
    # Resumed from an earlier state, the run has not come to iteration 40 yet.
    page.write(10, [])
    assert "iteration 40" not in section((out / "page.html").read_text(), "Pictures")
    # The next process draws the rows of the teacher again.
    Preview(recipe, tiny_family, ["a cat", "<i>dog</i>"], out)(tiny_family.teacher, tiny_family.teacher, 50)
    assert list(read_previews(out).frames) == [3, 40, 50] and list(read_previews(out).fixed) == list(found.fixed)


def test_of_many_previews_first_and_last_are_shown(tmp_path, monkeypatch):
    frames = {i: tmp_path / str(i) for i in range(0, 2000, 10)}
    for path in frames.values():
        path.write_bytes(b"x" * 1000)
    shown = chosen_frames(frames)
    assert len(shown) == run_page.MAX_FRAMES and shown[0] == 0 and shown[-1] == 1990
    monkeypatch.setattr(run_page, "MAX_FRAMES_BYTES", 5000)
    assert chosen_frames(frames) == [0, 500, 1000, 1490, 1990]
    assert chosen_frames({7: frames[0]}) == [7] and chosen_frames({}) == []


def test_bands_are_those_of_the_recipe():
    bands = Bands(diversity=0.3, contrast=None)
    panels = {panel.band: panel for panels in GROUPS.values() for panel in panels if panel.band}
    assert allowed(panels["diversity"], bands) == (-0.3, math.inf)  # only a fall counts
    assert allowed(panels["saturation"], bands) == (-0.25, 0.25) and allowed(panels["contrast"], bands) is None
    assert allowed(panels["d_win_loss"], bands) == (0.135, math.inf)
    assert set(panels) >= set(Bands.model_fields) - {"clipped", "d_win_streak", "dm_gradient"}
    assert rest({"dm": None, "step": None, "probe/entropy": None, "x": None}) == [Panel("x", {"x": "value"})]  # type: ignore[dict-item]


def test_a_reward_training_has_the_page_too(out):
    recipe = RewardRecipe.model_validate({"name": "r", "train": {"iterations": 10, "batch": 4}})
    (out / "metrics.jsonl").write_text(
        '{"step": 0, "loss": 0.7, "accuracy": 0.5, "accuracy/249": 0.6, "grad_norm": 1.0}\n'
    )
    (out / "costs.jsonl").write_text('{"step": 0, "seconds_per_kpair": 500.0, "memory_gb": 1.0}\n')
    RunPage(recipe, out).write(1, [])
    text = (out / "page.html").read_text()
    assert "Training a reward model: r" in text and "pairs per second 2" in plain(text)
    for title in ("Pairwise cross-entropy", "Pairs in the right order", "Accuracy on held-out pairs"):
        assert title in text


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_slider_and_script_work_in_a_browser(out, recipe, tiny_family):
    """Its script runs in spite of the policy of the page: it shows the slider and reports no error."""
    append(out, 0, 20)
    preview = Preview(recipe, tiny_family, ["a cat"], out)
    for iteration in (3, 7):
        preview(tiny_family.teacher, tiny_family.teacher, iteration)
    RunPage(recipe, out).write(20, [])
    profile = out / "browser"
    command = [chromium() or "", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
               "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom"]  # fmt: skip
    url = (out / "page.html").as_uri() + "#iteration%203"
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=60, check=True)
    assert '<label class="slider">' in done.stdout and "CONSOLE" not in done.stderr
    # The address names the frame at which somebody left the slider.
    assert 'data-name="iteration 7" hidden' in done.stdout and 'data-name="iteration 3" hidden' not in done.stdout


def test_time_of_the_first_page_of_a_long_run(out, recipe):
    """100,000 rows that were logged before a resume are read in seconds, and the page stays small."""
    (out / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i, "fake": math.sin(i), "dm": math.cos(i)}) + "\n" for i in range(100_000))
    )
    began = time.process_time()
    RunPage(recipe, out).write(99, [])
    assert time.process_time() - began < 5 and (out / "page.html").stat().st_size < 200_000
