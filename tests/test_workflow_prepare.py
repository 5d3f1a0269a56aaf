"""Preparing data from Python: no command line, progress through a reporter, nothing printed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from flashdmd_cli.data.chunks import ChunkJob, Settings, record_path, shard_path
from flashdmd_cli.data.plan import write_plan
from flashdmd_cli.data.shards import ShardDataset
from flashdmd_cli.data.sources import Reading, open_source
from flashdmd_cli.runs.errors import Interrupted, UsageError
from flashdmd_cli.runs.lock import release
from flashdmd_cli.runs.manifest import read_manifest, verify
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.runs.share import Share
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.workflows.prepare import prepare, prepare_shapes

from .messy import encoded, picture

SMALL = {"resolution": 16, "shard_size": 2}


class Recorder(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[str] = []
        self.counts: list[tuple[int, int]] = []

    def phase(self, text: str, unit: str = "it") -> None:
        super().phase(text, unit)
        self.phases.append(text)

    def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        super().progress(done, total, metrics)
        self.counts.append((done, total))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Five captioned pictures."""
    (tmp_path / "in").mkdir()
    for index in range(5):
        (tmp_path / "in" / f"{index}.png").write_bytes(encoded(picture(index)))
        (tmp_path / "in" / f"{index}.txt").write_text(f"caption {index}")
    yield tmp_path / "in"
    release()


def test_a_collection_from_python(folder, tmp_path, capfd):
    out, reporter = tmp_path / "out", Recorder()
    manifest = prepare(folder, out, **SMALL, filters=["caption_length<=9"], reporter=reporter)
    assert manifest == read_manifest(out) and verify(out) == []
    assert (manifest.collection.seen, manifest.collection.kept) == (5, 5)
    assert [ShardDataset(out).sample(i).caption for i in range(5)] == [f"caption {i}" for i in range(5)]
    num_shards = len(list(out.glob("*.tar")))
    assert reporter.counts == [(done, total) for total in (5, num_shards) for done in range(total + 1)]
    assert reporter.phases[0] == f"listing {folder}" and len(reporter.phases) == 4
    assert prepare(str(folder), str(out), **SMALL, filters=["caption_length<=9"]) == manifest
    with pytest.raises(UsageError, match="other data"):
        prepare(folder, out, **SMALL)
    assert prepare(folder, out, **SMALL, num=3, replace=True).collection.kept == 3
    assert capfd.readouterr() == ("", "")


def test_shares_from_python(folder, tmp_path):
    out = tmp_path / "out"
    assert prepare(folder, out, **SMALL, share=Share(1, 2)) is None
    assert prepare(folder, out, **SMALL, share=Share(0, 2)).collection.kept == 5
    with pytest.raises(UsageError, match="delete each other's files"):
        prepare(folder, out, **SMALL, share=Share(0, 2), replace=True)
    with pytest.raises(UsageError, match="--nproc 0"):
        prepare(folder, out, **SMALL, num_processes=0)


def test_a_stop_that_is_asked_for_in_python(folder, tmp_path):
    class Impatient(Recorder):
        def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
            if done == 3:
                self.stop.request(15)
            super().progress(done, total, metrics)

    with pytest.raises(Interrupted, match="finished work") as raised:
        prepare(folder, tmp_path / "out", **SMALL, reporter=Impatient())
    assert raised.value.exit_code == 143
    reporter = Recorder()
    assert prepare(folder, tmp_path / "out", **SMALL, reporter=reporter).collection.kept == 5
    assert reporter.counts[0] == (0, 3)  # the first shard of two was done


def test_the_embedded_world_from_python(tmp_path, capfd):
    out, reporter = tmp_path / "out", Recorder()
    manifest = prepare_shapes(out, num=4, seed=1, reporter=reporter)
    assert manifest == read_manifest(out) and verify(out) == [] and len(ShardDataset(out)) == 4
    assert reporter.counts[-1] == (4, 4)
    assert prepare_shapes(out, num=4, seed=1) == manifest
    with pytest.raises(UsageError, match="other data"):
        prepare_shapes(out, num=5, seed=1)
    assert prepare_shapes(out, num=5, seed=1, replace=True).recipe["num"] == 5
    with pytest.raises(UsageError, match="--num 0"):
        prepare_shapes(out, num=0)
    release()
    assert capfd.readouterr() == ("", "")


def test_a_chunk_that_is_halted_leaves_nothing(folder, tmp_path):
    source = open_source(folder, Reading())
    job = ChunkJob(write_plan(source.rows(), tmp_path / "plan", 5, None), source, Settings(16, "png"), tmp_path)
    stop, done = StopFlag(), []
    job.run(0, lambda num: (done.append(num), stop.request(2)), lambda: stop.requested is not None)
    assert done == [1] and not shard_path(tmp_path, 0).exists() and not record_path(tmp_path, 0).exists()


def test_neither_torch_nor_a_model_is_loaded_for_pictures_alone():
    heavy = "{'torch', 'diffusers', 'transformers', 'pyarrow'}"
    code = f"import sys, flashdmd_cli.workflows.prepare; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
