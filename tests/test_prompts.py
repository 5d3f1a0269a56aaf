"""Prompt files: one reader for all commands, and prompts that are longer than a teacher reads."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import Item
from flashdmd_cli.data.prompts import read_prompts
from flashdmd_cli.data.sources import Reading, open_source
from flashdmd_cli.data.tables import entries

from .test_cli import run, shipped, world  # noqa: F401
from .test_collections import POINTER, write
from .test_distill import sam_folder  # noqa: F401
from .test_sources import captions, contents

PROMPTS = ["a red ring", "größer, als er denkt", 'a "quoted" sign']


def prompt_files(folder: Path) -> list[Path]:
    """The same three prompts in every kind of file."""
    folder.mkdir()
    for name, key in (("a.jsonl", "prompt"), ("b.jsonl", "text"), ("c.jsonl", "caption")):
        lines = "".join(json.dumps({key: text, "id": i}) + "\n" for i, text in enumerate(PROMPTS))
        write(folder / name, "\ufeff" + lines)
    write(folder / "d.jsonl", "\n".join(map(json.dumps, PROMPTS)))
    write(folder / "e.txt", "\ufeff" + "\r\n\r\n".join(PROMPTS))
    write(
        folder / "f.json", "\ufeff" + json.dumps([PROMPTS[0], {"Prompt": PROMPTS[1]}, {"text": [PROMPTS[2], "more"]}])
    )
    for name, delimiter in (("g.tsv", "\t"), ("h.CSV", ","), ("i.csv", ";")):
        with (folder / name).open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file, delimiter=delimiter).writerows(
                [["Prompt", "Category"], *([text, "People"] for text in PROMPTS), ["", ""]]
            )
    pq.write_table(pa.table({"Prompt": PROMPTS, "seed": [1, 2, 3]}), folder / "j.parquet")
    return sorted(folder.iterdir())


def test_one_reader_for_prompts(tmp_path):
    for path in prompt_files(tmp_path / "in"):
        assert read_prompts(path) == PROMPTS, path
        source = open_source(path, Reading())
        assert source.kind == "prompts" and list(captions(source).values()) == PROMPTS, path
    item = list(contents(open_source(tmp_path / "in" / "g.tsv", Reading())).values())[0]
    assert isinstance(item, Item) and item.columns == {"Prompt": PROMPTS[0], "Category": "People"}


def test_what_is_no_prompt_is_refused_by_name(tmp_path):
    for name, text, said in (
        ("a.tsv", "a cat\thttp://x\na dog\thttp://y\n", ("has no column caption", "columns there: a cat, http://x")),
        ("b.jsonl", '{"prompt": "one"}\n{"x": 1}\n', ("b.jsonl:2: no prompt there", "`text`")),
        ("c.txt", b"one\ncaf\xe9\n", ("c.txt:2: a caption that is not UTF-8", "")),
        ("d.parquet", "PAR1", ("d.parquet: is no parquet table", "")),
        ("e.parquet", POINTER, ("e.parquet: is Git LFS's note", "git lfs pull")),
        ("f.jsonl", "{broken\n", ("f.jsonl:1: a row of a table that cannot be read", "")),
    ):
        path = write(tmp_path / name, text)
        with pytest.raises(DataError) as caught:
            read_prompts(path)
        message = str(caught.value)
        assert message.startswith("--prompts") and said[0] in message and said[1] in caught.value.hint, message
    # prepare-data counts single rows, and refuses the whole alike.
    assert list(captions(open_source(tmp_path / "b.jsonl", Reading())).values()) == ["one", "no_caption"]
    with pytest.raises(DataError, match="^SOURCE"):
        list(open_source(tmp_path / "a.tsv", Reading()).rows())
    named = open_source(write(tmp_path / "g.csv", "alt,x\na cat,1\n"), Reading(caption_column="alt"))
    assert list(captions(named).values()) == ["a cat"]
    assert [number for number, _ in entries(tmp_path / "b.jsonl")] == [1, 2]


def test_prompts_over_the_token_limit_are_counted(world):
    short = "a plain red circle above a striped blue ring"
    write(world / "p.csv", f"prompt,n\n{short},1\n{' and '.join([short] * 4)},2\n{' or '.join([short] * 5)},3\n")
    result = run("sample", "--from", "shapes-sdxl", "--prompts", "p.csv", "--num", 2, "--steps", 1, "--out", "drawn")
    assert result.exit_code == 0 and json.loads((world / "drawn" / "prompts.json").read_text())[0] == short
    told = [line for line in result.stderr.splitlines() if "tokens" in line]
    assert told == ["warning: 2 of 3 prompts exceed the 24 tokens that the teacher reads; their ends do not count"]
    words = ("prepare-data", "p.csv", "--out", "d", "--teacher", "shapes-sdxl", "--cache", "text")
    result = run(*words)
    assert result.exit_code == 0 and told[0] in result.stderr.splitlines()
    write(world / "q.txt", short)
    assert (
        "tokens" not in run("sample", "--from", "shapes-sdxl", "--prompts", "q.txt", "--steps", 1, "--out", "e").stderr
    )
