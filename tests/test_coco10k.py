"""`coco10k`: DMD2's draw, rebuilt from the user's annotations; here from made ones of the same form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import yaml
from PIL import Image

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.pixels import PIXEL_STATISTICS
from flashdmd_cli.evaluation.suites.names import FOLDER
from flashdmd_cli.evaluation.suites.spec import make_metrics, read_spec, read_suite
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.manifest import damaged_files, read_manifest
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.workflows.inputs import suites
from flashdmd_cli.workflows.prepare import prepare_suite, suite
from flashdmd_cli.workflows.prepare.suite import check, draw

from . import stand_ins
from .fake_hub import FakeHub, serving
from .test_cli import fails, run
from .test_eval_pictures import brightness  # noqa: F401


def annotations(num: int = 60, pictures: Path | None = None) -> dict[str, Any]:
    """Annotations with two to four captions for each image, in an order of their own."""
    generator = np.random.default_rng(0)
    ids = [int(each) for each in generator.permutation(np.arange(100, 100 + num))]
    images = [{"license": 3, "file_name": f"COCO_val2014_{i:012d}.jpg", "height": 4, "width": 4, "id": i} for i in ids]
    captions = [(i, k) for i in ids for k in range(2 + i % 3)]
    order = generator.permutation(len(captions))
    rows = [
        {"image_id": captions[k][0], "id": int(1000 + k), "caption": f"caption {captions[k][1]} of {captions[k][0]}\n"}
        for k in order
    ]
    for image in images if pictures is not None else ():
        pictures.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + image["id"] % 3, 40), (image["id"], 0, 0)).save(pictures / image["file_name"])
    return {"info": {}, "images": images, "annotations": rows, "licenses": []}


def by_hand(document: dict[str, Any], num: int) -> list[tuple[int, str]]:
    """The rule without pandas: image ids and captions in the order of the draw."""
    generator = np.random.RandomState(123)
    joined = [(image["id"], each["caption"]) for image in document["images"] for each in document["annotations"]
              if each["image_id"] == image["id"]]  # fmt: skip
    shuffled = [joined[i] for i in generator.permutation(len(joined))]
    first = list({image: caption for image, caption in reversed(shuffled)}.items())
    once = sorted(first, key=lambda pair: shuffled.index(pair))
    return [once[i] for i in generator.permutation(len(once))[:num]]


def test_the_draw_is_the_rule_computed_by_hand() -> None:
    document = annotations()
    rows = draw(document, 40)
    assert list(zip(rows.image_id, rows.caption, strict=True)) == by_hand(document, 40)
    assert len(set(rows.image_id)) == 40
    assert any(not caption.startswith("caption 0") for caption in rows.caption)  # a random one, not the first
    with pytest.raises(InputError, match="has 60 images, and coco10k takes 61"):
        draw(document, 61)
    assert "this is not COCO's captions_val2014.json" in check(rows)
    for place, image in enumerate(suite.FIRST):
        rows.iloc[place, rows.columns.get_loc("image_id")] = image
    rows.iloc[0, rows.columns.get_loc("caption")] = suite.FIRST_CAPTION
    assert "it is DMD2's COCO-10k" in check(rows)


def test_the_global_generator_of_numpy_gives_the_same() -> None:
    import pandas

    document = annotations()
    np.random.seed(123)  # noqa: NPY002
    images, captions = pandas.DataFrame(document["images"]), pandas.DataFrame(document["annotations"])
    rows = images.merge(captions, how="left", left_on="id", right_on="image_id")
    rows = rows.sample(frac=1).drop_duplicates("file_name").sample(40)
    assert list(rows.caption) == list(draw(document, 40).caption)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working folder where coco10k has 40 prompts."""
    monkeypatch.setattr(suite, "NUM", 40)
    monkeypatch.setattr(draw, "__defaults__", (40,))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_annotations_to_a_suite(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = annotations(pictures=small / "coco" / "val2014")
    folder = small / "coco" / "annotations"
    folder.mkdir()
    (folder / "captions_val2014.json").write_text(json.dumps(document))
    told = ("captions_val2014.json", "annotations_trainval2014.zip (253 MB)", "http://images.cocodataset.org")
    told += ("flashdmd prepare-data annotations_trainval2014.zip --suite coco10k",)
    fails(run("eval", "--suite", "coco10k"), 3, *told)
    done = run("prepare-data", "coco", "--suite", "coco10k")
    assert done.exit_code == 0 and done.stdout.startswith(
        "runs/data-coco10k: 40 prompts (next: flashdmd eval --suite coco10k)\nthis is not COCO's captions_val2014.json"
    )
    written = read_manifest(Path("runs/data-coco10k"))
    assert written.kind == "suite" and damaged_files(Path("runs/data-coco10k"), written) == []
    chosen = read_suite("coco10k", only=["high_frequency"])
    expected = by_hand(document, 40)
    assert [(row.prompt_id, row.prompt) for row in chosen.rows] == [(str(i), text.strip()) for i, text in expected]
    assert chosen.reference_folder == (small / "coco" / "val2014").resolve()
    assert chosen.reference_names == [f"COCO_val2014_{i:012d}.jpg" for i, _ in expected]
    assert len(read_suite("coco-mini", only=["high_frequency"], limit=5).rows) == 5
    with zipfile.ZipFile("annotations_trainval2014.zip", "w") as archive:
        archive.write(folder / "captions_val2014.json", "annotations/captions_val2014.json")
    again = prepare_suite("annotations_trainval2014.zip", "b")
    # Published rows belong to the genuine draw alone, and the mark changes no hash of the suite.
    assert not chosen.published and "published: false" in Path("runs/data-coco10k/coco10k.yaml").read_text()
    monkeypatch.setattr(suite, "FIRST", tuple(i for i, _ in expected[:7]))
    monkeypatch.setattr(suite, "FIRST_CAPTION", expected[0][1].strip())
    assert "it is DMD2's COCO-10k" in prepare_suite("coco", "genuine")["check"]
    found = read_suite("genuine/coco10k.yaml", only=["high_frequency"])
    assert found.published and found.sha256 == chosen.sha256
    assert not read_suite("genuine/coco-mini.yaml", only=["high_frequency"]).published
    assert again["sha256"] == read_manifest(Path("runs/data-coco10k")).files[0].sha256
    prompts = Path("runs/data-coco10k/prompts.jsonl")
    prompts.write_text(prompts.read_text().replace("caption 0", "caption 9"))
    fails(run("eval", "--suite", "coco10k"), 3, "prompts.sha256", "is not the file that the suite was written for")


def test_on_a_machine_with_nothing_the_answer_is_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "flashdmd_cli", "eval", "--suite", "coco10k"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("loading torch")]
    assert (done.returncode, done.stdout, len(lines)) == (3, "", 1), done.stderr
    assert "annotations_trainval2014.zip (253 MB)" in done.stderr and list(tmp_path.iterdir()) == []
    assert "HF_HUB_OFFLINE forbids downloading it" in done.stderr


def test_with_a_network_the_annotations_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(suite, "NUM", 20)
    monkeypatch.setattr(suite.draw, "__defaults__", (20,))
    (tmp_path / "at").mkdir()
    with serving(FakeHub({"x/coco": tmp_path / "at"})) as hub:
        monkeypatch.setattr(suites, "ANNOTATIONS", f"{hub.url}/x/coco/resolve/main/annotations_trainval2014.zip")
        with pytest.raises(InputError, match="prompts are not prepared .*cannot be reached: Not Found"):
            suites.find_suite("coco-mini", SilentReporter())
        assert not (tmp_path / "runs").exists()
        with zipfile.ZipFile(tmp_path / "at" / "annotations_trainval2014.zip", "w") as archive:
            archive.writestr("annotations/captions_val2014.json", json.dumps(annotations()))
        path = suites.find_suite("coco10k", SilentReporter())
        hub.asked.clear()
        assert suites.find_suite("coco-mini", SilentReporter()).parent == path.parent and hub.asked == []
    rows = [json.loads(line)["image_id"] for line in (path.parent / "prompts.jsonl").read_text().splitlines()]
    assert rows == [image for image, _ in by_hand(annotations(), 20)]


def test_sources_that_are_none(small: Path) -> None:
    (small / "a.json").write_text('{"images": []}')
    (small / "b.zip").write_bytes(b"no archive")
    with zipfile.ZipFile("c.zip", "w") as archive:
        archive.writestr("other.json", "{}")
    for source, line in (
        ("none.json", "no such file"),
        ("a.json", "is no caption annotation file"),
        ("b.zip", "is no caption annotation file"),
        ("c.zip", "holds no captions_val2014.json"),
    ):
        with pytest.raises(InputError, match=line):
            prepare_suite(source, "out")
    (small / "d.json").write_text(json.dumps(annotations(20)))
    with pytest.raises(InputError, match="has 20 images"):
        prepare_suite("d.json", "out")
    (small / "out").mkdir(exist_ok=True)
    (small / "out" / "mine.txt").write_text("mine")
    (small / "e.json").write_text(json.dumps(annotations(50)))
    with pytest.raises(UsageError, match="--out out: is not empty"):
        prepare_suite("e.json", "out")


def test_real_pictures_are_those_of_the_prompts_and_measured_once(
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    brightness: type[Any],  # noqa: F811
) -> None:
    from flashdmd_cli.workflows.evaluate import evaluate

    (small / "coco").mkdir()
    document = annotations(pictures=small / "coco" / "val2014")
    (small / "coco" / "captions_val2014.json").write_text(json.dumps(document))
    prepare_suite("coco", "runs/data-coco10k")
    path = Path("runs/data-coco10k/coco10k.yaml")  # every metric there is, which here is one
    path.write_text(
        yaml.safe_dump({key: each for key, each in yaml.safe_load(path.read_text()).items() if key != "metrics"})
    )
    monkeypatch.setattr(brightness, "compares", True)
    monkeypatch.setattr(
        brightness, "result", lambda self, drawn, real, prompts=(): seen.append(real) or real_mean(self, real)
    )
    seen: list[Any] = []
    real_mean = lambda self, real: {"brightness": self.interval(self.scores(real), ())}  # noqa: E731
    found = read_suite("coco10k", 40, only=["brightness"])
    for row in found.rows:
        path = small / "in" / f"{row.prompt_id}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), "white").save(path)
    result = evaluate(out="e", suite="coco10k", images="in", metrics=["brightness"])
    expected = np.array([i / 3 / 255 for i, _ in by_hand(document, 40)])
    assert len(brightness.measured) == 80 and np.allclose(seen[-1].numpy(), expected, atol=0.01)
    assert result.document["metrics"]["brightness"]["n"] == 40
    brightness.measured = []
    evaluate(out="f", suite="coco10k", images="in", metrics=["brightness"])
    assert len(brightness.measured) == 40  # the drawn ones of the other folder
    (small / "coco" / "val2014" / found.reference_names[3]).unlink()  # type: ignore[index]
    with pytest.raises(InputError, match="--references: .*jpg: missing"):
        evaluate(out="f", suite="coco10k", images="in", metrics=["brightness"])


def test_the_metrics_are_those_of_the_published_tables(tmp_path: Path) -> None:
    """And a metric whose weights or real pictures are missing is left out with the reason."""
    prompts = ["image_reward", "clip", "pickscore", "hpsv2", "hpsv21", "mps"]
    statistics = [each.name for each in PIXEL_STATISTICS]
    specs = {name: read_spec(FOLDER / f"{name}.yaml", name) for name in ("coco10k", "coco-mini")}
    listed = {name: [each.name for each in spec.metrics or ()] for name, spec in specs.items()}
    assert listed["coco10k"] == [*prompts, "fid", "patch_fid", *statistics]
    assert listed["coco-mini"] == [*prompts, "kid", *statistics]
    stand_ins.write_hps(tmp_path)
    instruments = Instruments(tmp_path, download=False)
    made, skipped = make_metrics(specs["coco10k"], instruments, "--suite coco10k", real=False)
    assert [metric.name for metric in made] == ["hpsv2", *statistics]
    assert list(skipped) == ["image_reward", "clip", "pickscore", "hpsv21", "mps", "fid", "patch_fid"]
    assert skipped["fid"].startswith("there are no real pictures to compare with (--references DIR")
    assert "yuvalkirstain/PickScore_v1 (3.94 GB) is not on this machine" in skipped["pickscore"]
