"""The second judge of the collapse probe: which one a run takes, that a run keeps it, that training does not see it."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from flashdmd_cli.evaluation.run_panels import GROUPS, curves
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.training.align import align
from flashdmd_cli.training.collapse import CollapseProbe
from flashdmd_cli.training.steps import Objective
from flashdmd_cli.workflows.judges import NOTE, SecondJudge, second_judge
from tests import stand_ins

from .test_align import origin, recipe, reward  # noqa: F401
from .test_distill import QUIET, sam_folder, seeing, weights  # noqa: F401

HPS = "xswu/HPSv2/HPS_v2_compressed.pt"


class Notes(SilentReporter):
    """Keeps what it is given to say."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache: a folder for each repository, none at first; nothing can be downloaded."""
    folder = tmp_path / "cache"
    folder.mkdir()

    def cached(hub_id: str, revision: str | None) -> Path | None:
        return folder / hub_id if (folder / hub_id).is_dir() else None

    def fetch(wanted: object, choose: object, *rest: object) -> Path:
        found = cached(wanted.hub_id, None)  # type: ignore[attr-defined]
        if found is None:
            raise InputError(f"{wanted.option}: is not on this machine")  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr("flashdmd_cli.evaluation.scorers.weights.cached", cached)
    monkeypatch.setattr("flashdmd_cli.evaluation.scorers.weights.fetch", fetch)
    return folder


def found(out: Path, judge: str = "auto", teacher: str = "sdxl", notes: Notes | None = None, every: int | None = 1):
    flags = {"probe.judge": judge} | ({} if every is None else {"probe.every": every})
    recipe = load_recipe("align/sdxl", ["probe.every=null"] if every is None else [], flags)
    out.mkdir(exist_ok=True)
    return second_judge(recipe, teacher, ["a cat"], out, "cpu", notes or Notes())


def begun(out: Path) -> Path:
    """As if a state had been saved."""
    (out / "state" / "step-00000002").mkdir(parents=True)
    (out / "state" / "step-00000002" / "state.json").write_text("{}")
    return out


def test_the_judge_is_hpsv2_or_pickscore_whichever_is_on_this_machine(hub: Path, tmp_path: Path) -> None:
    out, notes = tmp_path / "out", Notes()
    assert found(out, notes=notes) == SecondJudge("none")
    assert notes.said == [
        "the probe has no second judge: neither hpsv2 nor pickscore is on this machine (--set probe.judge=hpsv2 "
        "downloads it)"
    ]
    with pytest.raises(InputError, match="probe.judge: hpsv2"):
        found(out, "hpsv2")
    stand_ins.write_pick_score(hub)
    assert found(out).name == "pickscore"
    stand_ins.write_hps(hub)
    assert found(out, notes=notes).name == "hpsv2" and notes.said[-1] == "second judge of the probe: hpsv2"
    assert found(out, "pickscore").name == "pickscore"
    assert json.loads((out / NOTE).read_text())["weights"]["yuvalkirstain/PickScore_v1"]["sha256"]
    assert found(out, "none") == SecondJudge("none") == found(out, every=None)
    assert found(out, teacher="shapes-sdxl").name == "none"  # `a cat` is no caption of that world


def test_a_judge_scores_pictures_for_their_captions_and_draws_no_random_number(hub: Path, tmp_path: Path) -> None:
    stand_ins.write_pick_score(hub)
    stand_ins.write_hps(hub)
    pictures = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = torch.get_rng_state()
    for name in ("pickscore", "hpsv2"):
        judge = found(tmp_path / "out", name)
        assert judge.score is not None
        scores = judge.score(pictures, ["a cat", "a dog", "a cat"])
        assert scores.shape == (3,) and scores.dtype == torch.float64 and scores.abs().max() <= 1
        assert not torch.equal(scores, judge.score(pictures, ["a dog", "a cat", "a red house"]))
        assert judge.score(pictures[:1], ["a cat"]).item() == pytest.approx(scores[0].item(), abs=1e-5)
    assert torch.equal(before, torch.get_rng_state())


def test_a_resumed_run_keeps_its_judge(hub: Path, tmp_path: Path) -> None:
    old = begun(tmp_path / "old")  # of a version without such judges
    out, without = tmp_path / "out", tmp_path / "without"
    assert found(without).name == "none"
    begun(without)
    stand_ins.write_pick_score(hub)
    stand_ins.write_hps(hub)
    assert found(old).name == "none" == found(without).name
    assert found(out).name == "hpsv2"
    begun(out)
    assert found(out).name == "hpsv2"
    weights = torch.load(hub / HPS)
    weights["state_dict"]["text_projection"] += 1
    torch.save(weights, hub / HPS)
    with pytest.raises(InputError, match="probe.judge: hpsv2 has other weights than the run in .*out began with"):
        found(out)
    shutil.rmtree(hub / "xswu")
    with pytest.raises(InputError, match="probe.judge: hpsv2, with which the run in .*out began, is not on this"):
        found(out)
    (out / NOTE).write_text("{")
    with pytest.raises(InputError, match=NOTE):
        found(out)


def test_training_does_not_see_the_judge(hub, tmp_path, tiny_family, sam_folder, random_data, origin, reward):
    stand_ins.write_hps(hub)
    runs = {}
    for name, judge in (("with", found(tmp_path / "note", "hpsv2")), ("without", SecondJudge("none"))):
        for iterations in (1, 2) if judge.score else (2,):  # the second call resumes
            r = recipe(train__iterations=iterations, train__save_every=1, probe__every=1, probe__num_prompts=2,
                       probe__num_seeds=2)  # fmt: skip
            o = Objective(r, tiny_family, tiny_family.grid(4))
            probe = CollapseProbe(o, ["a cat", "a dog"], None, judge.score, judge.name)
            stage2 = seeing(sam_folder, r), tiny_family, reward, origin, random_data, tmp_path / name
            state = align(*stage2, QUIET, StopFlag(), probe)
        runs[name] = weights(state.student.net), read_metrics(tmp_path / name)
        if judge.score is not None:  # a score that has halved is a collapse, one that has doubled is none
            for factor, outside in ((2.0, 1), (0.5, 0)):
                state.probe["before"]["hpsv2"] = [1.0 * factor] * 2
                probe.judge = lambda pictures, captions: torch.ones(len(captions))
                assert probe.check(state)[0]["probe_outside/hpsv2"] == outside
    (after, rows), (expected, others) = runs["with"], runs["without"]
    assert all(torch.equal(*pair) for pair in zip(after, expected, strict=True))
    judged = {"probe/hpsv2", "probe_change/hpsv2", "probe_outside/hpsv2"}
    assert len(rows) == 2 and all(judged <= row.keys() for row in rows)
    assert not any("hpsv2" in name or "none" in name for row in others for name in row)
    plots = {plot.title: plot for plot in curves(GROUPS["Probe"], rows)}
    assert len(plots["Probe: a judge beside the reward model"].shown["HPSv2"]) == 2 and "Change of HPSv2" in plots
