"""Results side by side: paired differences, win rates, tables, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flashdmd_cli.evaluation.compare import paired, published_rows
from flashdmd_cli.evaluation.metrics.intervals import mean
from flashdmd_cli.evaluation.metrics.registry import METRICS
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.workflows.compare import compare

from .test_cli import fails, run

SUITE = {"name": "coco10k", "version": 1, "sha256": "s", "limit": None, "prompts": 8, "pictures": 8, "published": True}
CLIP = {"direction": "higher", "unit": "cosine", "scale": "cosine", "version": 1, "provenance": {"w": "1"}}
FID = {"direction": "lower", "unit": "d", "scale": "", "version": 1, "provenance": {}}


def result(folder: Path, scores: dict[tuple[str, int], float], **changes: Any) -> Path:
    """The folder of an evaluation with CLIP scores of pictures and an FID."""
    values = torch.tensor(list(scores.values()), dtype=torch.float64)
    found = mean(values)
    document: dict[str, Any] = {
        "schema": 1, "name": folder.name, "suite": SUITE, "steps": 4, "nfe": 8,
        "pictures": {"measured": 10_000},
        "metrics": {"clip": {**CLIP, "value": found.value, "low": found.low, "high": found.high, "n": len(scores)},
                    "fid": {**FID, "value": 20.0 - found.value, "low": 19.0, "high": 21.0, "n": len(scores)}},
    }  # fmt: skip
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if name:
            document[part] = {**document[part], name: {**document[part].get(name, {}), **value}} if isinstance(
                value, dict) else {**document[part], name: value}  # fmt: skip
        else:
            document[part] = value
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(document))
    lines = [{"id": name, "seed": seed, "scores": {"clip": score}} for (name, seed), score in scores.items()]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


BASE = {(str(i), 0): 0.30 + 0.01 * i for i in range(8)}
BETTER = {key: value + (0.02 if int(key[0]) % 4 else -0.01) for key, value in BASE.items()}


def test_differences_are_paired(tmp_path: Path) -> None:
    a, b = result(tmp_path / "a", BASE), result(tmp_path / "b", dict(reversed(BETTER.items())))
    document, text = compare([a, b])
    ours = document["rows"][1]["values"]["clip"]
    expected = mean(torch.tensor([0.02] * 6 + [-0.01] * 2, dtype=torch.float64))
    assert ours["paired"] == pytest.approx({"value": expected.value, "low": expected.low, "high": expected.high})
    assert ours["pairs"] == 8 and ours["wins"]["value"] == 6 / 8 and ours["wins"]["low"] > 0.35
    # Far tighter than the intervals of the two means allow: the prompts differ more than the models.
    assert ours["paired"]["high"] - ours["paired"]["low"] < 0.6 * (ours["high"] - ours["low"])
    fid = document["rows"][1]["values"]["fid"]
    assert "paired" not in fid and fid["difference"] == pytest.approx(-expected.value)
    assert "+0.0125 [" in text and "(not paired)" in text and "clip ↑" in text and "fid ↓" in text
    assert "SDXL-Turbo (published, Table 1) |  | 4 | 0.3302 | -" in text
    assert "SDXL-Turbo" not in compare([a, b], paper=False)[1]


def test_several_seeds_of_a_prompt_are_one_observation() -> None:
    base = {(name, seed): 0.0 for name in "ab" for seed in range(50)}
    found = paired({key: (0.1 if key[0] == "a" else -0.1) for key in base}, base, True)
    assert found.pairs == 100 and found.wins is not None and found.wins.value == 0.5
    assert found.delta is not None and found.delta.low < -0.5 and found.delta.high > 0.5  # two prompts say little
    assert paired(dict(base), base, True).wins == paired(dict(base), base, False).wins  # all ties
    lower = paired({("a", 0): 1.0}, {("a", 0): 2.0}, higher=False)
    assert lower.wins is not None and lower.wins.value == 1
    assert paired({("a", 0): 1.0}, {("b", 0): 1.0}, True).delta is None


@pytest.mark.parametrize(
    "changes",
    [
        {"suite__published": False},
        {"suite": {key: value for key, value in SUITE.items() if key != "published"}},
        {"pictures": {"measured": 9_999}},
        {"suite__name": "own"},
    ],
)
def test_published_rows_stand_beside_results_of_their_pictures_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole, other = result(tmp_path / "a", BASE), result(tmp_path / "b", BETTER, **changes)
    assert any(row["published"] for row in compare([whole, whole])[0]["rows"])
    for results in ([other], [whole, other]):
        document, _ = compare(results)
        assert not any(row["published"] for row in document["rows"])
    assert any(row["published"] for row in compare([other], paper=True)[0]["rows"])


def test_values_of_different_numbers_of_pictures_are_named(tmp_path: Path) -> None:
    a, b = result(tmp_path / "a", BASE), result(tmp_path / "b", dict(list(BETTER.items())[:7]))
    document, text = compare([a, b])
    assert "clip: of 8 pictures in a, 7 pictures in b" in document["warnings"]
    assert "- clip: of 8 pictures in a, 7 pictures in b" in text
    done = run("eval", "compare", a, b, "--format", "csv")
    assert "clip: of 8 pictures in a" in done.stderr and "of 8 pictures" not in done.stdout
    assert compare([a, a])[0]["warnings"] == []


def test_formats(tmp_path: Path) -> None:
    a, b = result(tmp_path / "a_1", BASE), result(tmp_path / "b|2", BETTER)
    printed = run("eval", "compare", a, b, "--metrics", "clip")
    assert printed.exit_code == 0 and "| b\\|2 | 4 | 8 | 0." in printed.stdout and "fid" not in printed.stdout
    rows = run("eval", "compare", a, b, "--format", "csv", "--no-paper").stdout.splitlines()
    assert len(rows) == 1 + 2 * 2 and rows[3].startswith("b|2,0,4,8,clip,0.3475")
    latex = run("eval", "compare", a, b, "--format", "latex").stdout
    assert (
        r"a\_1 & 4 & 8 & 0.3350 $\pm$ " in latex
        and r"Table 1, 6) &  & 100 & 0.3295" in latex
        and latex.count(r"\\") == 27 + 2 + 1
    )
    document = json.loads(run("eval", "compare", a, b, "--json").stdout)
    assert [row["published"] for row in document["rows"][:3]] == [False, False, True]
    assert run("eval", "compare", a, b, "--out", tmp_path / "t.md").stdout == f"written to {tmp_path / 't.md'}\n"
    assert (tmp_path / "t.md").read_text().startswith("Suite coco10k, version 1")
    fails(run("eval", "compare", a, b, "--format", "html"), 2, "--format html")
    fails(run("eval", "compare", a, b, "--metrics", "mps"), 2, "--metrics mps")
    fails(run("eval", "compare", a, tmp_path), 3, "results.json: cannot be read")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"suite__sha256": "other"}, "b of coco10k 1, or of other prompts"),
        ({"suite__pictures": 4}, "a has 8 pictures, b 4"),
        ({"metrics__clip": {"provenance": {"w": "2"}}}, "clip was measured with another provenance"),
        ({"metrics__fid": {"references": {"num": 9, "sha256": "x"}}}, "fid was measured with other real pictures"),
        ({"metrics__clip": {"version": 2}}, "clip was measured with another version"),
        ({"metrics": {"mps": {"value": 1.0, "n": 8, "direction": "higher"}}}, "no metric in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    a, b = result(tmp_path / "a", BASE), result(tmp_path / "b", BETTER, **changes)
    with pytest.raises(UsageError, match=line):
        compare([a, b])


def test_a_file_that_is_no_result(tmp_path: Path) -> None:
    a = result(tmp_path / "a", BASE)
    newer = '{"schema": 9, "metrics": {}}'
    for text, line in (("[]", "is no result"), ("{", "is no result"), (newer, "newer version")):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(InputError, match=line):
            compare([a, tmp_path / "b.json"])


def test_published_rows_are_the_papers() -> None:
    rows = published_rows(["image_reward", "clip", "pickscore", "hpsv2", "mps"])
    assert len(rows) == 27 and all(row["published"] and "2511.20549" in row["source"] for row in rows)
    by_name = {(row["name"], row["nfe"]): row for row in rows}
    ours = by_name["Flash-DMD TTUR1-1k", 4]
    assert {name: each["value"] for name, each in ours["values"].items()} == {
        "image_reward": 0.9509, "clip": 0.3292, "pickscore": 0.2322, "hpsv2": 0.2968, "mps": 12.67
    }  # fmt: skip
    assert by_name["SDXL", 100]["tables"] == [1, 6] and by_name["LPO-SDXL", 40]["tables"] == [3, 7]
    assert by_name["Flash-DMD", 4]["values"]["mps"]["value"] == 12.84
    known = set(METRICS) & {"image_reward", "clip", "pickscore", "hpsv2", "mps"}
    assert known in (set(), {"image_reward", "clip", "pickscore", "hpsv2", "mps"})  # names as in the registry
