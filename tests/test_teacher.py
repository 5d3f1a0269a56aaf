"""Which teacher: found again from anywhere, known by what it is and not by what it is called."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from flashdmd_cli.families.sdxl.facts import SDXL
from flashdmd_cli.runs import teacher as teacher_module
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.manifest import Manifest, read_manifest, write_manifest
from flashdmd_cli.runs.recipe_schema import Model
from flashdmd_cli.runs.teacher import TeacherRecord, content, difference, sha256_remembered
from flashdmd_cli.runs.teacher import record as recorded
from flashdmd_cli.workflows.inputs.teachers import find_source_again, teacher_record

from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_cli_runs import SMALL
from .test_distill import sam_folder  # noqa: F401

MODEL = Model()
UNET = Path("unet") / "diffusion_pytorch_model.safetensors"
PROMPT = ["--prompt", "a plain red circle above a dotted blue ring", "--quiet"]


def change(weights: Path) -> None:
    """Other weights in the same place, of the same size."""
    tensors = load_file(weights)
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first] + 1}, weights, {"format": "pt"})


@pytest.fixture
def student(world: Path, shipped: Path) -> Path:
    """A student of a teacher that was named by a relative path, one iteration old."""
    shutil.copytree(shipped / "shapes-sdxl", world / "mine" / "shapes-teacher")
    run("prepare-data", "shapes", "--num", 8)
    result = run("distill", *SMALL, "--iterations", 1, "--teacher", "mine/shapes-teacher", "--out", "student")
    assert result.exit_code == 0, result.output
    return world / "student"


def resumed(world: Path, teacher: object, iterations: int) -> list[object]:
    data = world / "runs" / "data-shapes"
    return [
        "distill",
        *SMALL,
        "--iterations",
        iterations,
        "--teacher",
        teacher,
        "--data",
        data,
        "--out",
        world / "student",
    ]


def test_a_relative_teacher_is_found_from_anywhere(student: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = read_manifest(student).teacher
    assert teacher is not None
    assert (teacher.id, teacher.path) == ("mine/shapes-teacher", str(world / "mine" / "shapes-teacher"))
    assert set(teacher.parts) == {"model_index.json", "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer",
                                  "tokenizer_2", "scheduler"}  # fmt: skip
    (world / "elsewhere").mkdir()
    monkeypatch.chdir(world / "elsewhere")
    drawn = run("sample", "--from", student, *PROMPT, "--out", "s")
    assert drawn.exit_code == 0, drawn.output
    assert read_manifest(Path("s")).teacher == teacher
    # Resumed by its absolute path: the recipe's text differs, the teacher does not.
    again = run(*resumed(world, world / "mine" / "shapes-teacher", 2))
    assert again.exit_code == 0 and read_manifest(student).step == 2, again.output
    # Run and teacher moved together: what was typed leads to it again.
    (world / "new").mkdir()
    for name in ("mine", "student"):
        shutil.move(world / name, world / "new" / name)
    monkeypatch.chdir(world / "new")
    manifest = read_manifest(Path("student"))
    before = manifest.teacher.model_copy(update={"id": "mine/shapes-teacher"})  # type: ignore[union-attr]
    assert find_source_again(before, MODEL, "--from student").weights == Path("mine/shapes-teacher")
    shutil.rmtree("mine")
    fails(run("sample", "--from", "student", *PROMPT), 3, "--from student: its teacher", "no such folder",
          f"at {world / 'mine' / 'shapes-teacher'}")  # fmt: skip


def test_another_teacher_under_the_same_path_is_refused(student: Path, world: Path) -> None:
    change(world / "mine" / "shapes-teacher" / UNET)
    kept = {path: path.read_bytes() for path in student.rglob("*") if path.is_file()}
    for words in (["sample", *PROMPT], ["eval", "--limit", 4], ["export"], ["align", "--data", "runs/data-shapes"]):
        fails(run(*words, "--from", "student", "--out", "o"), 3, "--from student: its teacher ", "has changed: unet")
    fails(
        run(*resumed(world, "mine/shapes-teacher", 2), "--quiet"),
        3,
        "--teacher mine/shapes-teacher: is not",
        "other unet",
    )
    assert {path: path.read_bytes() for path in student.rglob("*") if path.is_file()} == kept
    assert not (world / "o").exists()


def test_content_says_which_part_differs(tiny_folder: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(tiny_folder, tmp_path / "mine")

    def record(name, place, **beside):
        return recorded(name, place, SDXL.networks, SDXL.settings, **beside)

    before = record(str(mine), mine)
    assert difference(before, record("anything", shutil.copytree(mine, tmp_path / "copy"))) == ""
    # What no pipeline is loaded from does not count.
    (mine / "README.md").write_text("text")
    (mine / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    assert difference(before, record("x", mine)) == ""
    change(mine / "vae" / "diffusion_pytorch_model.safetensors")
    (mine / "scheduler" / "scheduler_config.json").write_text("{}")
    assert difference(before, record("x", mine)) == "vae and scheduler"
    # What is read beside it counts too.
    beside = [record("x", mine, beside={"--vae": mine / "vae"})]
    change(mine / "vae" / "diffusion_pytorch_model.safetensors")
    beside.append(record("x", mine, beside={"--vae": mine / "vae"}))
    assert difference(*beside) == "vae and --vae"
    single = tmp_path / "model.safetensors"
    single.write_bytes(b"1")
    assert content(single, SDXL.networks, SDXL.settings) == {"checkpoint": hashlib.sha256(b"1").hexdigest()}
    # One commit of the hub is one teacher, whichever precision was fetched.
    one = TeacherRecord(id="sdxl", hub="a/b", revision="c", parts={"unet": "1"})
    assert difference(one, one.model_copy(update={"parts": {"unet": "2"}})) == ""
    assert difference(one, one.model_copy(update={"parts": {"unet": "2"}, "revision": "d"})) == "unet"


def test_hashes_of_large_files_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(teacher_module, "WORTH_REMEMBERING", 4)
    read: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, kind: read.append(stream.name) or digest(stream, kind))
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(b"12345")
    small.write_bytes(b"123")
    for _ in range(2):
        assert sha256_remembered(large) == hashlib.sha256(b"12345").hexdigest()
        sha256_remembered(small)
    assert read == [str(large), str(small), str(small)]
    # The same size and time do not deceive: the system's own time of change cannot be set.
    status = large.stat()
    large.write_bytes(b"54321")
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert sha256_remembered(large) == hashlib.sha256(b"54321").hexdigest()
    # A damaged note is read over.
    for note in (tmp_path / "assets").rglob("*.json"):
        note.write_text("{")
    assert sha256_remembered(large) == hashlib.sha256(b"54321").hexdigest()
    # A large file in huggingface_hub's cache is named by its hash: nothing is read.
    blob = tmp_path / "blobs" / hashlib.sha256(b"x").hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(b"x" * 9)
    (tmp_path / "link").symlink_to(Path("blobs") / blob.name)
    read.clear()
    assert sha256_remembered(tmp_path / "link") == blob.name and read == []


def test_records_of_an_earlier_version_are_read(tiny_folder: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(kind="distill", teacher=TeacherRecord(id=str(tiny_folder), hash="0" * 64)))
    values = json.loads((tmp_path / "manifest.json").read_text())
    values |= {"schema_version": 1, "teacher": {"id": str(tiny_folder), "hash": "0" * 64}}
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    before = read_manifest(tmp_path).teacher
    assert before is not None and find_source_again(before, MODEL, "--from x").weights == tiny_folder
    assert teacher_record(str(tiny_folder), tiny_folder).path == str(tiny_folder)
    with pytest.raises(InputError, match="--from x: its teacher gone/at/all: no such folder"):
        find_source_again(TeacherRecord(id="gone/at/all"), MODEL, "--from x")
