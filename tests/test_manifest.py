"""Manifests: written last and whole, damage is found, lineage is recorded, newer schemas are refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from flashdmd_cli.runs import manifest as module
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.folder import MARK
from flashdmd_cli.runs.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    Updates,
    hash_folder,
    newest,
    parent_record,
    read_manifest,
    sha256_file,
    verify,
    write_manifest,
)
from flashdmd_cli.workflows.inputs.kinds import check_teacher

from .test_cli import fails, run


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "student").mkdir(parents=True)
    (folder / "student" / "weights.bin").write_bytes(bytes(range(256)))
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "state").mkdir()
    (folder / "state" / "tensors").write_text("changes later")
    write_manifest(folder, Manifest(kind="distill", step=60, updates=Updates(student=30, fake=60, discriminator=60)))
    return folder


def test_round_trip_lists_hashes_and_leaves_out_the_state(result: Path) -> None:
    manifest = read_manifest(result)
    assert (manifest.kind, manifest.step, manifest.updates.student) == ("distill", 60, 30)
    assert [record.path for record in manifest.files] == ["metrics.jsonl", "student/weights.bin"]
    assert manifest.files[1].size == 256
    assert manifest.files[1].sha256 == hashlib.sha256(bytes(range(256))).hexdigest()
    assert {"flashdmd", "torch", "diffusers", "transformers"} <= manifest.versions.keys()
    assert verify(result) == []


def test_only_files_without_a_hash_are_read(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are not hashed again when caches are added."""
    manifest, hashed = read_manifest(result), []
    monkeypatch.setattr(module, "sha256_file", lambda path: hashed.append(path.name) or sha256_file(path))
    (result / "more.bin").write_bytes(b"1")
    (result / "metrics.jsonl").write_text("longer than before, so it has changed\n" * 9)
    again = write_manifest(
        result, manifest.model_copy(update={"files": [*manifest.files, FileRecord(path="more.bin")]})
    )  # fmt: skip
    assert hashed == ["metrics.jsonl", "more.bin"]
    assert verify(result) == [] and len(again.files) == len(manifest.files) + 1


def test_only_listed_files_when_some_are_listed(result: Path) -> None:
    write_manifest(result, Manifest(kind="distill", files=[FileRecord(path="metrics.jsonl")]))
    assert [record.path for record in read_manifest(result).files] == ["metrics.jsonl"]


def test_a_listed_file_that_is_missing_leaves_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        write_manifest(tmp_path, Manifest(kind="data", files=[FileRecord(path="shard-0.tar")]))
    assert not (tmp_path / MANIFEST).exists()


def test_flipped_byte_truncation_and_loss_are_found(result: Path) -> None:
    path = result / "student" / "weights.bin"
    path.write_bytes(bytes([1]) + bytes(range(1, 256)))
    assert verify(result) == ["student/weights.bin: contents differ from the recorded hash"]
    path.write_bytes(b"short")
    assert verify(result) == ["student/weights.bin: 5 bytes, recorded 256"]
    path.unlink()
    assert verify(result) == ["student/weights.bin: missing"]


def test_parent_is_recorded_and_its_change_is_found(result: Path, tmp_path: Path) -> None:
    child = tmp_path / "export"
    child.mkdir()
    write_manifest(child, Manifest(kind="export", parents=[parent_record(result, child)]))
    parent = read_manifest(child).parents[0]
    assert parent.path == "../run"
    assert parent.sha256 == sha256_file(result / MANIFEST)
    assert verify(child) == []
    write_manifest(result, Manifest(kind="distill", step=61))
    assert verify(child) == ["parent ../run: its manifest has changed since"]


def test_newer_schema_is_refused_with_the_version_that_reads_it(result: Path) -> None:
    values = json.loads((result / MANIFEST).read_text())
    values |= {"schema_version": 99, "versions": {"flashdmd": "7.1.0"}, "unheard_of": 1}
    (result / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(InputError, match="schema 99 is newer") as caught:
        read_manifest(result)
    assert "flashdmd>=7.1.0" in caught.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{", '{"kind": "distill"}', '{"schema_version": 1, "kind": "x"}', "\x00"])
def test_damaged_manifests_are_told_in_one_line(result: Path, text: str) -> None:
    (result / MANIFEST).write_text(text)
    with pytest.raises(InputError, match="not a manifest") as caught:
        read_manifest(result)
    assert "\n" not in caught.value.message


def test_missing_manifest_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no manifest.json"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(tmp_path / "nowhere")


def test_files_outside_the_folder_are_refused() -> None:
    for path in ("../secret", "/etc/passwd"):
        with pytest.raises(ValueError, match="outside"):
            FileRecord(path=path)


def test_newest_goes_by_kind_and_time(tmp_path: Path) -> None:
    for age, (name, kind) in enumerate([("c", "eval"), ("b", "distill"), ("a", "distill")]):
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name, Manifest.model_validate({"kind": kind}))
        os.utime(tmp_path / name / MANIFEST, (1000 - age, 1000 - age))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MANIFEST).write_text("{")
    assert newest(tmp_path, "distill") == tmp_path / "b"
    assert newest(tmp_path, "distill", "eval") == tmp_path / "c"
    with pytest.raises(InputError, match="--from: no align result"):
        newest(tmp_path, "align")


def test_hash_folder_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = hash_folder(tmp_path)
    (tmp_path / ".cache").write_text("hidden")
    assert hash_folder(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    second = hash_folder(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, hash_folder(tmp_path)}) == 3


def test_a_file_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "00.png").write_bytes(b"")
    with pytest.raises(InputError, match="00.png: is a file"):
        read_manifest(tmp_path / "00.png")


def test_inspect_names_what_no_manifest_lists(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(result.parent)
    (result / "state" / "tensors").unlink()
    assert "not in the manifest" not in run("inspect", "run").stdout
    for name in ("step-00000008", ".step-00000009.tmp"):
        (result / "state" / name).mkdir(parents=True)
        (result / "state" / name / "tensors.safetensors").write_bytes(b"")
    (result / "note.txt").write_text("mine")
    for name in ("finished", "interrupted", "foreign"):
        (result / name).mkdir()
        (result / name / "a").write_text("")
    write_manifest(result / "finished", Manifest(kind="data"))  # as in the folder of `demo`
    (result / "foreign" / MANIFEST).write_text('{"short_name": "an app"}')
    shown = run("inspect", "run")
    assert shown.exit_code == 0
    (line,) = (line for line in shown.stdout.splitlines() if line.startswith("not in the manifest"))
    assert line.endswith(
        "verified: foreign, interrupted, note.txt, state/.step-00000009.tmp (left by a process that was killed), "
        "state/step-00000008"
    ), line


def test_a_part_of_a_result_is_no_result(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results within results, finished or not, are results; a `manifest.json` of another program makes none."""
    monkeypatch.chdir(result.parent)
    part = "is a part of run, a result of flashdmd distill (name the whole folder: run)"
    unfinished = "has no manifest.json, so it is not a finished result (if a flashdmd command was interrupted there, "
    fails(run("inspect", "run/student"), 3, f"run/student: {part}")
    fails(run("export", "--from", "run/student"), 3, f"--from run/student: {part}")
    fails(run("inspect", "run/student/nowhere"), 3, "run/student/nowhere: does not exist")
    Path("whole").mkdir()
    write_manifest(Path("whole"), Manifest(kind="demo"))
    fails(
        run("export", "--from", "whole"),
        3,
        "is a demo folder, not a distill or align one (flashdmd distill writes one)",
    )
    shutil.copytree(result, "whole/student")
    fails(run("export", "--from", "whole"), 3, "is a demo folder, not a distill or align one (name whole/student)")
    (result / "again").mkdir()
    (result / "again" / MARK).write_text("distill\n")
    fails(run("inspect", "run/again"), 3, f"run/again: {unfinished}")
    fails(run("export", "--from", "run/again"), 3, f"--from run/again: {unfinished}")
    (result / MARK).write_text("distill\n")
    (result / MANIFEST).unlink()
    fails(run("inspect", "run/student"), 3, f"run/student: {part}")
    (result / MARK).unlink()
    (result / MANIFEST).write_text('{"short_name": "an app"}')
    fails(run("inspect", "run/student"), 3, f"run/student: {unfinished}")
    with pytest.raises(InputError) as caught:
        check_teacher(Path("run/student"), "--teacher run/student")
    assert "part of" not in caught.value.message
