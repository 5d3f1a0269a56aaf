"""Benchmarks with environments of their own: the folders that they read, and the results that they write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from flashdmd_cli.evaluation.folder import write_picture
from flashdmd_cli.evaluation.layouts import read_bench, safe, write_layout
from flashdmd_cli.evaluation.metrics.metric import Row
from flashdmd_cli.evaluation.suites.prompts import read_prompt_file
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.workflows.compare import compare

from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

LINES = [
    {"tag": "two_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "bus", "color": "red"}], "prompt": "a photo of a red bus"},
]


def pictures(folder: Path, rows: list[Row]) -> list[Path | None]:
    """A picture of its own colour for each row."""
    folder.mkdir()
    paths: list[Path | None] = []
    for row in rows:
        paths.append(folder / f"{row.index:05d}.png")
        write_picture(folder / f"{row.index:05d}.png", torch.full((3, 8, 8), row.index / 10 - 1))
    return paths


def rows_of(texts: list[str], num: int) -> list[Row]:
    return [Row(i * num + k, text, i, True, str(i + 1), k) for i, text in enumerate(texts) for k in range(num)]


def level(path: Path, at: tuple[int, int] = (0, 0)) -> int:
    with Image.open(path) as image:
        return image.getpixel(at)[0]  # type: ignore[index,return-value]


def test_geneval(world: Path) -> None:  # noqa: F811
    Path("metadata.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    done = run("eval", "--from", "shapes-sdxl", "--steps", 1, "--prompts", "metadata.jsonl", "--seeds", 2,
               "--generate-only", "--layout", "geneval", "--out", "e")  # fmt: skip
    assert done.exit_code == 0, done.output
    files = sorted(path.relative_to("e/geneval").as_posix() for path in Path("e/geneval").rglob("*") if path.is_file())
    assert files == [
        f"{i:05d}/{name}" for i in (0, 1) for name in ("metadata.jsonl", "samples/0000.png", "samples/0001.png")
    ]
    assert [json.loads(Path(f"e/geneval/0000{i}/metadata.jsonl").read_text()) for i in (0, 1)] == LINES
    assert (
        Path("e/geneval/00001/samples/0000.png").read_bytes()
        == next(Path("e/pictures").glob("*/00002.png")).read_bytes()
    )


def test_dpg_takes_four_as_a_square(tmp_path: Path) -> None:
    rows = rows_of(["a", "b"], 4)
    files = write_layout("dpg", rows, pictures(tmp_path / "in", rows), tmp_path / "out", None)
    assert [path.name for path in files] == ["1.png", "2.png"]
    with Image.open(files[1]) as image:
        assert image.size == (16, 16)
    levels = [level(files[1], at) for at in ((0, 0), (8, 0), (0, 8), (8, 8))]
    assert levels == [level(tmp_path / "in" / f"0000{i}.png") for i in (4, 5, 6, 7)] and len(set(levels)) == 4
    with pytest.raises(UsageError, match="takes 4 pictures of each prompt, not 2"):
        write_layout("dpg", rows[:2], [Path("a"), Path("b")], tmp_path / "out", None)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "partiprompts0.txt").write_text("A long prompt.\n")
    (tmp_path / "prompts" / "empty.txt").write_text("\n")
    prompts, refused = read_prompt_file(tmp_path / "prompts", "--prompts")
    assert [(each.id, each.text) for each in prompts] == [("partiprompts0", "A long prompt.")]
    assert [each.reason for each in refused] == ["an empty prompt"]


def test_compbench_numbers_its_pictures_through(tmp_path: Path) -> None:
    texts = ["a green bench and a blue bowl", "a/b_c\nd" + "🦊" * 100]
    rows = rows_of(texts, 2)
    files = write_layout("t2i-compbench", rows, pictures(tmp_path / "in", rows), tmp_path / "out", None)
    names = [path.name for path in files]
    assert names[:2] == [f"{texts[0]}_000000.png", f"{texts[0]}_000001.png"] and files[0].parent.name == "samples"
    assert names[2].startswith("a b c d🦊") and names[2].endswith("🦊_000002.png") and len(names[2].encode()) <= 255
    assert [name.split("_")[-1] for name in names] == [f"{i:06d}.png" for i in range(4)]
    assert all(path.is_file() for path in files) and safe("/") == "prompt"


GENEVAL = [("two_object", True), ("two_object", False), ("colors", True), ("colors", True)]


def test_results_of_geneval(tmp_path: Path) -> None:
    lines = [{"filename": f"/out/{i // 2:05d}/samples/{i % 2:04d}.png", "tag": tag, "prompt": "p", "correct": right,
              "reason": ""} for i, (tag, right) in enumerate(GENEVAL)]  # fmt: skip
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    values, samples = read_bench("geneval", tmp_path / "results.jsonl")
    assert values["geneval"].value == 0.75 and values["geneval.colors"].value == 1  # a mean over tasks
    assert values["geneval"].low < 0.75 < values["geneval"].high
    assert [(each["id"], each["seed"]) for each in samples] == [("00000", 0), ("00000", 1), ("00001", 0), ("00001", 1)]
    done = run("eval", "read", "geneval", tmp_path / "results.jsonl", "--out", tmp_path / "a")
    assert done.exit_code == 0 and done.stdout.startswith("geneval: 0.7500 (") and "two_object" in done.stdout
    (tmp_path / "better.jsonl").write_text("\n".join(json.dumps(line | {"correct": True}) for line in lines))
    run("eval", "read", "geneval", tmp_path / "better.jsonl", "--out", tmp_path / "b")
    document, _ = compare([tmp_path / "a", tmp_path / "b"])
    assert document["rows"][1]["values"]["geneval"]["wins"]["value"] == 0.625
    fails(run("eval", "read", "parti", tmp_path / "better.jsonl"), 2, "LAYOUT parti")


def test_four_pictures_of_a_geneval_prompt_are_one_observation(tmp_path: Path) -> None:
    """If they are all right or all wrong, intervals are those of a picture of each prompt, or wider."""
    for num in (1, 4):
        lines = [{"filename": f"/out/{i:05d}/samples/{k:04d}.png", "tag": "colors", "prompt": "p", "correct": i % 2 < 1}
                 for i in range(30) for k in range(num)]  # fmt: skip
        (tmp_path / f"{num}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (one, _), (four, _) = (read_bench("geneval", tmp_path / f"{num}.jsonl") for num in (1, 4))
    assert four["geneval"].low == pytest.approx(one["geneval"].low) and one["geneval"].low > 0.3
    assert 0.25 < four["geneval.colors"].low <= one["geneval.colors"].low


DPG = """/in/partiprompts0.png, 1.0, 0.5, 0.75
/in/a, b.png, 0.5, 0.5, 0.5
Model: in
L1 category scores:
\tentity: 62.5
L2 category scores:
\tentity - whole: 62.5
Image path: /in
Save results to: /in/dpg.txt
DPG-Bench score: 62.5
"""


def test_results_of_dpg_and_compbench(tmp_path: Path) -> None:
    (tmp_path / "dpg.txt").write_text(DPG)
    values, samples = read_bench("dpg", tmp_path / "dpg.txt")
    assert values["dpg"].value == 62.5 and values["dpg.entity"].value == 62.5 == values["dpg.entity - whole"].value
    assert [(each["id"], each["scores"]["dpg"]) for each in samples] == [("partiprompts0", 75), ("a, b", 50)]
    (tmp_path / "dpg.txt").write_text(DPG.replace("/in/partiprompts0.png, 1.0, 0.5, 0.75\n", ""))
    with pytest.raises(InputError, match="62.5 is not the mean of its pictures, 50.0000"):
        read_bench("dpg", tmp_path / "dpg.txt")
    rows = [{"question_id": i, "answer": f"{i / 4:.4f}"} for i in range(5)]
    (tmp_path / "vqa_result.json").write_text(json.dumps(rows))
    values, samples = read_bench("t2i-compbench", tmp_path / "vqa_result.json")
    assert values["t2i-compbench"].value == 0.5 and samples[4]["scores"]["t2i-compbench"] == 1
    for layout, text in (("geneval", "{}"), ("geneval", ""), ("dpg", "hello"), ("t2i-compbench", "[1]"),
                         ("t2i-compbench", "[]")):  # fmt: skip
        (tmp_path / "wrong").write_text(text)
        with pytest.raises(InputError, match=f"is no result of {layout}"):
            read_bench(layout, tmp_path / "wrong")
