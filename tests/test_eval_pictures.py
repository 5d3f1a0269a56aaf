"""Pictures that something else drew: matched with prompts, and what is wrong with them counted and named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flashdmd_cli.evaluation.collection import read_collection
from flashdmd_cli.evaluation.gathering import Scored, why_not
from flashdmd_cli.evaluation.intake import Look, look, natural
from flashdmd_cli.evaluation.metrics.diversity import Diversity
from flashdmd_cli.evaluation.metrics.fd_dinov2 import FdDinoV2
from flashdmd_cli.evaluation.metrics.fid import Fid
from flashdmd_cli.evaluation.metrics.frechet import Frechet
from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import Interval, exactly
from flashdmd_cli.evaluation.metrics.kid import Kid
from flashdmd_cli.evaluation.metrics.metric import Metric, PictureMean, Row
from flashdmd_cli.evaluation.metrics.precision_recall import Precision, Recall
from flashdmd_cli.evaluation.metrics.registry import METRICS
from flashdmd_cli.evaluation.metrics.seed_diversity import Vendi
from flashdmd_cli.evaluation.scorers.weights import WeightsMissing
from flashdmd_cli.evaluation.suites.prompts import read_prompt_file
from flashdmd_cli.evaluation.suites.spec import rows_of
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.workflows.evaluate import evaluate
from flashdmd_cli.workflows.picking import Request, suite_of_prompts

LONG, EMOJI, LINES = "very " * 2000 + "long", "a 🦊 with a 🧢, café", "a cat\non two\nlines"


class Brightness(PictureMean):
    """Mean of all pixels on [0, 1]; notes what it measured."""

    name, heading, direction, unit = "brightness", "brightness", "higher", "mean of pixels"
    measured: list[str]

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        type(self).measured += [row.prompt for row in rows]
        return pictures.double().mean(dim=(1, 2, 3)) / 255


class Absent(PictureMean):
    """A metric whose weights are nowhere."""

    name, heading, direction, unit = "absent", "absent", "higher", "cosine"

    def prepare(self, instruments: Instruments) -> None:
        raise WeightsMissing("absent: w.pt of owner/name (1 GB) is not on this machine", hint="--weights-dir DIR")

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        raise AssertionError


@pytest.fixture
def brightness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Brightness]:
    """Two metrics of any picture alone, one of which cannot be had."""
    Brightness.measured = []
    for name in [name for name in METRICS if name not in ("composition", "frechet")]:
        monkeypatch.delitem(METRICS, name)
    monkeypatch.setitem(METRICS, "brightness", Brightness)
    monkeypatch.setitem(METRICS, "absent", Absent)
    plain = tmp_path.with_name(f"{tmp_path.name}-plain")  # pictures of no suite are measured by every metric there is
    plain.with_suffix(".yaml").write_text("name: plain\nversion: 1\nprompts: {file: p.txt}\n")
    monkeypatch.setattr("flashdmd_cli.workflows.picking.PLAIN_SUITE", str(plain))
    monkeypatch.chdir(tmp_path)
    return Brightness


def save(path: Path, values: np.ndarray | None = None, size: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.name))
    values = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8) if values is None else values
    Image.fromarray(values).save(path)
    return path


def test_bad_pictures_are_named_and_never_silently_scored(brightness: type[Brightness], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder / "good.png")
    save(folder / "larger.jpg", size=48)
    save(folder / "black.png", np.zeros((32, 32, 3), np.uint8))
    save(folder / "pixel.png", np.zeros((1, 1, 3), np.uint8))
    save(folder / "grey.png", np.full((32, 32), 51, np.uint8))
    save(
        folder / "deep.png", np.full((32, 32), 13107, np.uint16)
    )  # a fifth of white, of which clipping would make white
    whole = save(folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((32, 32), np.nan, np.float32), "F").save(folder / "nan.tiff")
    (folder / "text.png").write_text("no picture")
    save(folder / "unnamed.png")
    names = ["good.png", "larger.jpg", "black.png", "pixel.png", "grey.png", "deep.png", "cut.png", "nan.tiff",
             "text.png", "gone.png"]  # fmt: skip
    texts = [LONG, EMOJI, LINES, *"abcdefg"]
    lines = [json.dumps({"file": name, "prompt": text}) for name, text in zip(names, texts, strict=True)]
    (tmp_path / "prompts.jsonl").write_text("\n".join([*lines, json.dumps({"file": "good.png", "prompt": " "})]))
    result = evaluate(out="e", images=folder, prompts=tmp_path / "prompts.jsonl", metrics=["brightness"])
    pictures, found = result.document["pictures"], result.document["metrics"]["brightness"]
    assert found["n"] == 5 == pictures["measured"] and brightness.measured[0] == LONG
    assert set(brightness.measured) == {LONG, EMOJI, LINES, "b", "c"}
    left = {name: why for why, each in pictures["left_out"].items() for name in each["files"]}
    assert left.keys() == {
        "pixel.png",
        "cut.png",
        "nan.tiff",
        "text.png",
        "prompt 10",
        "prompts.jsonl:11",
        "unnamed.png",
    }
    assert left["pixel.png"] == "1 x 1 pixels: under 8" and left["prompt 10"] == "missing"
    assert "floating-point" in left["nan.tiff"] and left["cut.png"] == "the end of the picture is missing"
    assert left["prompts.jsonl:11"] == "not a prompt, an empty prompt"
    assert {note: each["files"] for note, each in pictures["notes"].items()} == {
        "black": ["black.png"], "greyscale": ["grey.png", "deep.png"], "16 bit": ["deep.png"],
        "one colour": ["grey.png", "deep.png"],
    }  # fmt: skip
    samples = [json.loads(line) for line in Path("e/samples.jsonl").read_text().splitlines()]
    scores = {each["file"]: each["scores"] for each in samples}
    assert scores["deep.png"]["brightness"] == pytest.approx(0.2) == scores["grey.png"]["brightness"]
    assert scores["cut.png"] == {} and [each["prompt"] for each in samples] == texts
    assert any("measured, but black: 1 picture (black.png)" in line for line in result.document["warnings"])


def test_nothing_that_could_be_measured_is_an_error(brightness: type[Brightness], tmp_path: Path) -> None:
    save(tmp_path / "in" / "1.png", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "p.txt").write_text("a cat\n")
    with pytest.raises(InputError, match="none of 1 pictures could be measured: 2 x 2 pixels"):
        evaluate(out="e", images="in", prompts="p.txt", metrics=["brightness"])
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    with pytest.raises(InputError, match="1 pictures, but 2 prompts"):
        evaluate(out="e", images="in", prompts="p.txt", metrics=["brightness"])
    for images, prompts, line in (
        ("none", "p.txt", "--images none: no such folder"),
        ("in", None, "--images in: has no prompts.jsonl"),
        ("in", "gone.txt", "--prompts: cannot read gone.txt|--prompts gone.txt"),
    ):
        with pytest.raises((InputError, FileNotFoundError), match=line):
            evaluate(out="e", images=images, prompts=prompts, metrics=["brightness"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="--images empty: holds no picture"):
        evaluate(out="e", images="empty", prompts="p.txt", metrics=["brightness"])


def test_weights_that_are_missing_skip_a_metric_unless_it_was_named(
    brightness: type[Brightness], tmp_path: Path
) -> None:
    save(tmp_path / "in" / "1.png")
    (tmp_path / "p.txt").write_text("a cat\n")
    result = evaluate(out="e", images="in", prompts="p.txt")
    assert list(result.document["metrics"]) == ["brightness"]
    assert result.document["skipped"] == {
        "absent": "w.pt of owner/name (1 GB) is not on this machine (--weights-dir DIR)"
    }
    with pytest.raises(InputError, match="--fail-below absent: cannot be measured: w.pt of owner/name"):
        evaluate(out="f", images="in", prompts="p.txt", fail_below={"absent": 0.3})
    with pytest.raises(WeightsMissing, match="w.pt of owner/name") as missing:
        evaluate(out="f", images="in", prompts="p.txt", metrics=["absent"])
    assert missing.value.exit_code == 3 and not Path("f").exists()
    with pytest.raises(UsageError, match="--metrics beauty: no such metric"):
        evaluate(out="f", images="in", prompts="p.txt", metrics=["beauty"])
    with pytest.raises(UsageError, match="composition: is for the embedded world"):
        evaluate(out="f", images="in", prompts="p.txt", metrics=["composition"])


def test_what_was_measured_is_not_measured_again(brightness: type[Brightness], tmp_path: Path) -> None:
    for i in range(40):
        save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "p.txt").write_text("".join(f"prompt {i}\n" for i in range(40)))

    def measure() -> dict[str, object]:
        brightness.measured = []
        return evaluate(out="e", images="in", prompts="p.txt", metrics=["brightness"]).document["metrics"]

    first = measure()
    assert len(brightness.measured) == 40
    samples = Path("e/samples.jsonl").read_bytes()
    assert measure() == first and brightness.measured == []
    assert Path("e/samples.jsonl").read_bytes() == samples
    save(tmp_path / "in" / "35.png", np.full((32, 32, 3), 7, np.uint8))
    changed = measure()
    assert brightness.measured == [f"prompt {i}" for i in range(32, 40)] and changed != first  # its chunk alone
    (Path("e") / "measured" / "00000.safetensors").write_bytes(b"torn")
    assert measure() == changed and brightness.measured == [f"prompt {i}" for i in range(32)]


def test_an_interrupted_measurement_goes_on(
    brightness: type[Brightness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(70):
        save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "p.txt").write_text("".join(f"prompt {i}\n" for i in range(70)))
    whole = evaluate(out="whole", images="in", prompts="p.txt", metrics=["brightness"]).document["metrics"]
    measure = brightness.measure

    def dies(self: Brightness, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        if rows[0].index >= 32:
            raise KeyboardInterrupt
        return measure(self, pictures, rows)

    monkeypatch.setattr(brightness, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(out="e", images="in", prompts="p.txt", metrics=["brightness"])
    assert len(Path("e/samples.jsonl").read_text().splitlines()) == 32 and not Path("e/results.json").exists()
    monkeypatch.setattr(brightness, "measure", measure)
    brightness.measured = []
    assert evaluate(out="e", images="in", prompts="p.txt", metrics=["brightness"]).document["metrics"] == whole
    assert len(brightness.measured) == 38
    assert Path("e/samples.jsonl").read_bytes() == Path("whole/samples.jsonl").read_bytes()


def test_files_belong_to_prompts_by_name_id_or_order(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a_0.png", "a_1.png", "b.png", "c/0.png", "x.png"):
        save(folder / name)
    rows = [{"id": name, "prompt": f"the {name}"} for name in "abcd"]
    (tmp_path / "ids.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_collection(folder, tmp_path / "ids.jsonl")
    shown = [(row.prompt_id, row.sample, row.group, None if path is None else path.name)
             for row, path in zip(found.rows, found.paths, strict=True)]  # fmt: skip
    assert shown == [("a", 0, 0, "a_0.png"), ("a", 1, 0, "a_1.png"), ("b", 0, None, "b.png"), ("c", 0, None, "0.png"),
                     ("d", 0, None, None)]  # fmt: skip
    assert [path.name for path in found.unused] == ["x.png"]
    (tmp_path / "files.csv").write_text("file_name,prompt\nsub/b.png,the b\n../../secret.png,out\n")
    found = read_collection(folder, tmp_path / "files.csv")
    assert [path and path.name for path in found.paths] == ["b.png", None] and len(found.unused) == 4
    (tmp_path / "plain.txt").write_text("\n".join("12345"))
    found = read_collection(folder, tmp_path / "plain.txt")
    assert [(row.prompt, path and path.name) for row, path in zip(found.rows, found.paths, strict=True)] == [
        ("1", "a_0.png"), ("2", "a_1.png"), ("3", "b.png"), ("4", "0.png"), ("5", "x.png")
    ]  # fmt: skip
    assert sorted(["a10.png", "a2.png", "a1.png"], key=lambda name: natural([name])) == ["a1.png", "a2.png", "a10.png"]


def test_prompts_with_names_are_never_matched_by_order(brightness: type[Brightness], tmp_path: Path) -> None:
    rows = [{"id": name, "prompt": f"the {name}", "file_name": f"COCO_{i}.png"} for i, name in enumerate("cab")]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own.yaml").write_text("name: own\nversion: 1\nprompts: {file: p.jsonl}\n")
    for folder, names in (("files", ["COCO_0", "COCO_1", "COCO_2"]), ("ids", "abc"), ("order", "012")):
        for name in names:
            save(tmp_path / folder / f"{name}.png")
    for folder, expected in (("files", [f"COCO_{i}.png" for i in range(3)]), ("ids", ["c.png", "a.png", "b.png"])):
        evaluate(out=f"e-{folder}", suite="own.yaml", images=folder, metrics=["brightness"])
        samples = [json.loads(line) for line in Path(f"e-{folder}/samples.jsonl").read_text().splitlines()]
        assert [(each["id"], each["file"]) for each in samples] == list(zip("cab", expected, strict=True))
    for options in ({"suite": "own.yaml"}, {"prompts": "p.jsonl"}):
        with pytest.raises(InputError, match="--images order: no picture has the file name or the id of a prompt"):
            evaluate(out="f", images="order", metrics=["brightness"], **options)  # type: ignore[arg-type]
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    told: list[str] = []
    reporter = SilentReporter()
    reporter.say = told.append  # type: ignore[method-assign]
    evaluate(out="g", images="order", prompts="p.txt", metrics=["brightness"], reporter=reporter)
    assert any("the n-th picture by name belongs to the n-th prompt" in line for line in told)


class Spread(Metric):
    """Of sets: the standard deviation of brightness, NaN for a picture whose prompt says so; needs three pictures."""

    name, heading, direction, unit = "spread", "spread", "none", "standard deviation"
    least = 3

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        bright = pictures.double().mean(dim=(1, 2, 3))
        return torch.stack([value * float("nan") if "NaN" in row.prompt else value
                            for value, row in zip(bright, rows, strict=True)])[:, None]  # fmt: skip

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> dict[str, Interval]:
        assert drawn.isfinite().all()
        return {self.name: exactly(float(drawn.std()))}


class Grouped(Spread):
    """The same of pictures of one prompt."""

    name, of_groups, least = "grouped", True, 2

    def takes(self, row: Row) -> bool:
        return row.group is not None


class Single(PictureMean):
    """The numbers of `Spread` as a metric of single pictures."""

    name, heading, direction, unit = "single", "single", "none", "mean"

    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        return Spread.measure(self, pictures, rows)[:, 0]  # type: ignore[arg-type]


def test_what_is_missing_or_not_finite_is_left_out_of_the_metrics_that_need_it_and_counted(
    brightness: type[Brightness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for metric in (Spread, Grouped, Single):
        monkeypatch.setitem(METRICS, metric.name, metric)
    for name in "abcd":
        for i in range(2):
            save(tmp_path / "in" / f"{name}_{i}.png")
    (tmp_path / "in" / "b_1.png").write_bytes(b"torn")
    rows = [{"id": name, "prompt": "gives NaN" if name == "c" else "fine"} for name in "abcd"]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = ["brightness", "single", "spread", "grouped"]
    document = evaluate(out="e", images="in", prompts="p.jsonl", metrics=names).document
    assert {name: found["n"] for name, found in document["metrics"].items()} == {
        "brightness": 7, "single": 5, "spread": 5, "grouped": 4}  # fmt: skip
    warnings = document["warnings"]
    assert "single: the values of 2 of 7 pictures are not finite and left out" in warnings
    assert "spread: left out, its features are not finite: 2 pictures (c_0.png, c_1.png)" in warnings
    assert "grouped: left out, another picture of its prompt is missing: 1 picture (b_0.png)" in warnings
    assert not any(line.startswith("brightness") for line in warnings)
    # Too few pictures skip a metric; the others keep their values.
    (tmp_path / "q.jsonl").write_text(json.dumps({"file": "a_0.png", "prompt": "fine"}))
    few = evaluate(out="f", images="in", prompts="q.jsonl", metrics=["brightness", "spread"]).document
    assert list(few["metrics"]) == ["brightness"] and few["skipped"] == {"spread": "needs 3 pictures, there are 1"}
    (tmp_path / "q.jsonl").write_text(json.dumps({"file": "a_0.png", "prompt": "NaN"}))
    few = evaluate(out="f", images="in", prompts="q.jsonl", metrics=names[:3]).document
    assert few["skipped"]["single"] == "none of 1 pictures has a finite value"
    assert few["skipped"]["spread"] == "no picture is left: its features are not finite"


def test_real_pictures_are_counted_and_named_by_their_contents(
    brightness: type[Brightness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brightness, "compares", True)
    monkeypatch.setattr(brightness, "min_pictures", 2)
    for i in range(2):
        save(tmp_path / "in" / f"{i}.png")
        save(tmp_path / "real" / f"r{i}.png")
    (tmp_path / "p.txt").write_text("a\nb\n")

    def measured(folder: str, **changes: int) -> dict[str, Any]:
        monkeypatch.setattr(brightness, "least", changes.get("least", 1))
        return evaluate(out="e", images="in", prompts="p.txt", references=folder).document

    first = measured("real")
    assert first["metrics"]["brightness"]["references"]["num"] == 2 and first["warnings"] == []
    (tmp_path / "real").rename(tmp_path / "moved")
    (tmp_path / "moved" / "r0.png").rename(tmp_path / "moved" / "r9.png")
    assert measured("moved")["metrics"] == first["metrics"]
    (tmp_path / "moved" / "r1.png").unlink()
    fewer = measured("moved")
    assert fewer["metrics"]["brightness"]["references"] != first["metrics"]["brightness"]["references"]
    assert fewer["warnings"] == ["brightness: unreliable with 1 real pictures, take 2 or more"]
    with pytest.raises(InputError, match="brightness: needs 2 real pictures, there are 1"):
        measured("moved", least=2)


@pytest.mark.parametrize("metric", [Fid, Kid, Precision, Recall, FdDinoV2, Frechet, Diversity, Vendi])
def test_a_metric_has_a_value_of_as_few_pictures_as_it_says(metric: type[Metric]) -> None:
    made = metric.__new__(metric)
    made.options = metric.Options()
    rows = [Row(i, "", group=0) for i in range(made.least)]
    numbers = torch.randn(made.least, 18, generator=torch.Generator().manual_seed(0))
    numbers[:, 0] = 0  # the number of the group
    assert made.least > 1 and made.result(numbers, numbers.roll(1, 0) + 0.1)[made.name].value is not None
    scored = Scored([Look("a")] * (len(rows) - 1), {made.name: numbers[:-1]}, {made.name: list(range(len(rows) - 1))})
    assert why_not(made, scored) == f"needs {made.least} pictures, there are {made.least - 1}"


def test_drawn_pictures_have_the_hash_of_their_file_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    prompts, _ = read_prompt_file(tmp_path / "p.txt", "--prompts")
    rows = rows_of(prompts, None, 2)
    lines = []
    for row in rows:
        lines.append(json.dumps({"file": save(tmp_path / f"{row.index}.png").name, "id": row.prompt_id,
                                 "prompt": row.prompt, "group": row.group}))  # fmt: skip
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    request = Request(None, None, tmp_path / "p.txt", None, 2, None, None, None, "cpu", measures=False)
    assert suite_of_prompts(request, Instruments()).sha256 == read_collection(tmp_path, None).sha256


def test_a_suite_of_any_prompts_takes_no_metric_of_the_embedded_world(
    brightness: type[Brightness], tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    (tmp_path / "own.yaml").write_text("name: own\nversion: 1\nprompts: {file: p.txt}\n")
    for i in range(2):
        save(tmp_path / "in" / "sub" / f"{i}.png", size=4 + 28 * i)
    result = evaluate(out="e", suite="own.yaml", images="in")
    assert list(result.document["metrics"]) == ["brightness"] and list(result.document["skipped"]) == ["absent"]
    assert result.document["pictures"]["left_out"] == {"4 x 4 pixels: under 8": {"num": 1, "files": ["sub/0.png"]}}
    with pytest.raises(UsageError, match="--metrics composition: is for the embedded world, and the prompt 1"):
        evaluate(out="f", suite="own.yaml", images="in", metrics=["composition"])
    with pytest.raises(InputError, match="frechet: there are no real pictures to compare with"):
        evaluate(out="f", suite="own.yaml", images="in", metrics=["frechet"])


def test_prompts_of_any_content(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in (LONG, EMOJI, LINES, "", "x" * 70_000)))
    prompts, refused = read_prompt_file(path, "--prompts")
    assert [(each.id, each.text) for each in prompts] == [("1", LONG), ("2", EMOJI), ("3", LINES)]
    assert [(each.source, each.reason) for each in refused] == [
        ("p.jsonl:4", "an empty prompt"), ("p.jsonl:5", "a caption over 64 KiB")
    ]  # fmt: skip


def test_look_at_a_missing_file(tmp_path: Path) -> None:
    for path in (None, tmp_path / "gone.png"):
        found, pixels = look(path)
        assert (found.reason, pixels) == ("missing", None)
