"""Suites: the shipped ones are what they were, and a file that is wrong is one clear line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml

from flashdmd_cli.evaluation.metrics.registry import METRICS
from flashdmd_cli.evaluation.suites.names import FOLDER, list_suites
from flashdmd_cli.evaluation.suites.prompts import Prompt
from flashdmd_cli.evaluation.suites.spec import Groups, read_suite, rows_of
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.shapes.captions import captions, parse
from flashdmd_cli.shapes.world import is_held_out, sample_attributes


@pytest.mark.parametrize(
    ("name", "seed", "held_out"), [("shapes1k", 20_251_120, True), ("shapes-val", 20_251_123, False)]
)
def test_the_captions_are_those_of_their_seed(name: str, seed: int, held_out: bool) -> None:
    suite, generator = read_suite(name), torch.Generator().manual_seed(seed)
    attributes = sample_attributes(1000, generator, held_out=held_out)
    prompts = [row.prompt for row in suite.rows if row.counts]
    assert prompts == captions(attributes, generator) and [parse(text) for text in prompts] == attributes.tolist()
    assert not held_out or is_held_out(attributes).all()
    groups = [row for row in suite.rows if row.group is not None]
    assert len(prompts) == 1000 and [row.prompt for row in groups] == [text for text in prompts[:50] for _ in range(4)]
    assert [row.index for row in suite.rows] == list(range(1200))
    assert [row.prompt for row in read_suite(name, 20).rows] == prompts[:20] + [
        t for t in prompts[:20] for _ in range(4)
    ]
    for wrong in (1, 0, 1001):
        with pytest.raises(UsageError, match=f"--limit {wrong}: {name} takes from 2 to 1000"):
            read_suite(name, wrong)


def test_in_the_demo_every_picture_counts_and_the_last_are_groups() -> None:
    rows, whole = read_suite("shapes-demo").rows, [row.prompt for row in read_suite("shapes1k").rows]
    assert len(rows) == 128 and all(row.counts for row in rows)
    assert [row.prompt for row in rows] == whole[:64] + [text for text in whole[64:80] for _ in range(4)]
    assert [row.group for row in rows] == [None] * 64 + [group for group in range(16) for _ in range(4)]
    prompts = [Prompt("1", "a"), Prompt("2", "b")]
    assert [row.group for row in rows_of(prompts, None)] == [None, None]
    assert len(rows_of(prompts, Groups(num=5, size=2, extra=False))) == 4  # of a shorter list, all


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A suite of one's own, in a folder of its own."""
    (tmp_path / "mine.txt").write_text(
        "\n".join(f"a plain red circle above a {c} blue ring" for c in ("plain", "dotted"))
    )
    values = yaml.safe_load((FOLDER / "shapes1k.yaml").read_text())
    values |= {"name": "mine", "prompts": {"file": "mine.txt"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "mine.yaml"


def test_a_suite_of_ones_own(own: Path) -> None:
    suite = read_suite(str(own))
    assert (suite.name, len(suite.rows), len(suite.metrics)) == ("mine", 2 + 2 * 4, 8)
    values = yaml.safe_load(own.read_text())
    values["prompts"]["sha256"] = hashlib.sha256((own.parent / "mine.txt").read_bytes()).hexdigest()
    own.write_text(yaml.safe_dump(values))
    assert read_suite(str(own)).rows == suite.rows
    (own.parent / "mine.txt").write_text("other")
    with pytest.raises(InputError, match="prompts.sha256: .*mine.txt is not the file"):
        read_suite(str(own))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"metrics": [{"name": "beauty", "direction": "higher"}]}, "metrics.0.name: no metric 'beauty'"),
        ({"metrics": [{"name": "exact", "direction": "lower"}]}, "exact is measured with direction higher here"),
        ({"metrics": [{"name": "exact", "direction": "higher", "version": 9}]}, "measured with version 1 here, not 9"),
        ({"metrics": [{"name": "exact", "direction": "up"}]}, "metrics.0.direction: input should be 'higher'"),
        ({"metrics": [{"name": "exact", "direction": "higher"}] * 2}, "metrics.1.name: exact is there twice"),
        ({"metrics": []}, "metrics: list should have at least 1 item"),
        ({"groups": None}, "diversity: has nothing to measure"),
        ({"groups": {"num": 2, "sise": 4}}, "groups.sise: no such key|groups.size: field required"),
        ({"colour": 1}, "colour: no such key"),
        ({"version": None}, "version: input should be a valid integer"),
        ({"world": "mars"}, "world: input should be 'shapes'"),
        ({"prompts": {"file": "none.txt"}}, "prompts.file: cannot read"),
        ({"prompts": {"file": "mine.txt", "num": 1}}, "has 1 prompts"),
    ],
)
def test_a_wrong_suite_is_one_line(own: Path, change: dict[str, object], line: str) -> None:
    own.write_text(yaml.safe_dump(yaml.safe_load(own.read_text()) | change))
    with pytest.raises((UsageError, InputError), match=line) as told:
        read_suite(str(own))
    assert str(told.value).startswith(f"--suite {own}: ") and "\n" not in str(told.value) and told.value.hint


def test_a_file_that_is_no_suite(own: Path) -> None:
    for text, line in (("a: [", "not YAML"), ("just text", "input should be a valid dict"), ("", "valid dict")):
        own.write_text(text)
        with pytest.raises(UsageError, match=line):
            read_suite(str(own))
    with pytest.raises(InputError, match="no such file"):
        read_suite("nowhere.yaml")
    with pytest.raises(UsageError, match="nothing: no suite of that name") as told:
        read_suite("nothing")
    assert told.value.hint.startswith(f"there is {', '.join(list_suites())}")
    (own.parent / "mine.txt").write_text("a plain red circle above a plain blue ring\na dog\n")
    own.write_text(
        yaml.safe_dump(yaml.safe_load((FOLDER / "shapes1k.yaml").read_text()) | {"prompts": {"file": "mine.txt"}})
    )
    with pytest.raises(InputError, match="mine.txt, line 2: not a caption"):
        read_suite(str(own))
    rows = [{"id": "a", "prompt": "a plain red circle above a plain blue ring"}, {"id": "b", "prompt": " "}]
    for second, line in (
        ({}, "mine.jsonl:2: an empty prompt"),
        ({"id": "a", "prompt": "x"}, "the id a is there twice"),
    ):
        (own.parent / "mine.jsonl").write_text("\n".join(map(json.dumps, [rows[0], rows[1] | second])))
        own.write_text(
            yaml.safe_dump(yaml.safe_load((FOLDER / "shapes1k.yaml").read_text()) | {"prompts": {"file": "mine.jsonl"}})
        )
        with pytest.raises(InputError, match=line):
            read_suite(str(own))


def test_the_suite_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    (tmp_path / "mine.txt").write_text("a plain red circle above a plain blue ring\n" * 3, encoding="utf-8")
    suite = read_suite(str(tmp_path / "mine.yaml"))
    assert len(suite.rows) == 3 + 3 * 4 and [metric.name for metric in suite.metrics] == ["composition", "diversity"]
    assert all(f"| `{name}` |" in page for name in (*METRICS, *list_suites()))
