"""Opening a data folder: what is read, where its index is kept, and that samples and their order stay the same."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flashdmd_cli.data import index
from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.index import INDEX, PromptIndex, build_prompt_index, key_of
from flashdmd_cli.data.shards import ShardDataset
from flashdmd_cli.runs.manifest import read_manifest, verify
from flashdmd_cli.workflows.inputs.shards import open_data
from flashdmd_cli.workflows.prepare.world import prepare_shapes

from .test_cli import run

NUM, SIZE = 12, 5


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three shards of the embedded world, with manifest and index."""
    from flashdmd_cli.data import shards

    monkeypatch.setattr(shards.write_shards, "__defaults__", (SIZE, "shapes"))
    prepare_shapes(tmp_path / "data", num=NUM, seed=3)
    return tmp_path / "data"


def expected(folder: Path) -> list[dict[str, Any]]:
    return [each.model_dump() for each in read_manifest(folder).files]


def bytes_read() -> int:
    """Bytes that this process has read so far by system calls; 0 where the system does not count them."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().split()[1]) if counts.exists() else 0


def test_opening_reads_sizes_an_index_and_one_sample(folder: Path) -> None:
    shards = sorted(folder.glob("*.tar"))
    for shard in shards[1:]:  # whoever reads these, finds zeros
        size = shard.stat().st_size
        shard.write_bytes(b"")
        os.truncate(shard, size)
    files, before = expected(folder), bytes_read()
    data = ShardDataset(folder, files)
    assert bytes_read() - before < shards[0].stat().st_size / 2
    assert len(data) == NUM and data.sample(4).key == "00000004"
    with pytest.raises(DataError, match="sample 0 of .*shapes-000001.tar cannot be read"):
        data.sample(SIZE)
    assert len(verify(folder)) == 2  # `inspect` compares the hashes


def test_a_flipped_byte_is_found_by_inspect(folder: Path) -> None:
    shard = folder / "shapes-000001.tar"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    assert len(ShardDataset(folder, expected(folder))) == NUM
    result = run("inspect", folder)
    assert result.exit_code == 3 and "shapes-000001.tar: contents differ" in result.stderr


def test_samples_are_the_same_with_any_index(folder: Path) -> None:
    listed, built = ShardDataset(folder, expected(folder)), ShardDataset(folder)
    for number in range(NUM):
        one, other = listed.sample(number), built.sample(number)
        assert one.key == other.key == f"{number:08d}" and one.facts == other.facts
        assert torch.equal(one.picture, other.picture) and one.caption == other.caption


def test_the_reading_order_is_that_of_64_bits() -> None:
    """Orders are kept in 32 bits, and have to be those that runs began with."""
    for seed, epoch in ((0, 0), (7, 3)):
        digest = hashlib.sha256(f"reading order {seed} {epoch}".encode()).digest()
        start = int.from_bytes(digest[:8], "big") >> 1
        for num in (5, 1000, 300_000):
            data = ShardDataset.__new__(ShardDataset)
            data._index, data._orders = range(num), {}  # type: ignore[assignment]
            order = torch.randperm(num, generator=torch.Generator().manual_seed(start))
            positions = range(epoch * num, epoch * num + 5)
            assert data.indices(positions, seed) == order[:5].tolist()
            assert torch.equal(data._orders[seed, epoch].long(), order)


def test_a_missing_index_is_built_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the shards; in the other folder if they cannot be written to; in memory if nothing can be."""
    (folder / INDEX).unlink()
    files = [each for each in expected(folder) if each["path"] != INDEX]
    spare, ticks = tmp_path / "spare", []
    spare.mkdir()
    real = index.write_index

    def refuse(path: Path, *rest: Any) -> None:
        if path.parent == folder:
            raise PermissionError(13, "Permission denied")
        real(path, *rest)

    def opened() -> ShardDataset:
        ticks.clear()
        return ShardDataset(folder, files, spare=lambda: spare, tick=lambda *counts: ticks.append(counts))

    monkeypatch.setattr(index, "write_index", refuse)
    data = opened()
    assert ticks == [(0, 3), (1, 3), (2, 3), (3, 3)] and (spare / INDEX).is_file() and not (folder / INDEX).exists()
    assert opened().sample(NUM - 1).caption == data.sample(NUM - 1).caption and ticks == []

    (spare / INDEX).write_bytes(b"damaged")
    assert len(opened()) == NUM and ticks and len(opened()) == NUM and not ticks
    (spare / INDEX).unlink()
    spare.rmdir()
    assert len(opened()) == NUM and len(opened()) == NUM and ticks  # in memory, each time anew

    monkeypatch.setattr(index, "write_index", real)
    assert len(opened()) == NUM and (folder / INDEX).is_file() and len(opened()) == NUM and ticks == []
    with (folder / "shapes-000002.tar").open("ab") as file:  # other shards: the index is not used
        file.write(bytes(10240))
    files[2]["size"] += 10240
    assert len(opened()) == NUM and ticks


def test_a_run_says_that_it_builds_an_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that cannot be written to, it goes to the hub's cache of assets, under the hash of the manifest."""
    from flashdmd_cli.runs.reporter import SilentReporter

    class Loud(SilentReporter):
        phases: list[str] = []

        def phase(self, text: str, unit: str = "it") -> None:
            self.phases.append(text)

    manifest = read_manifest(folder)
    monkeypatch.setattr(manifest, "files", [each for each in manifest.files if each.path != INDEX])
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    (folder / INDEX).rename(folder / "shown")
    monkeypatch.setenv("HF_HOME", str(folder.parent / "hub"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(folder.parent / "hub"))
    real = index.whole
    monkeypatch.setattr(
        index, "whole", lambda path: real(folder / "absent" / "x") if path.parent == folder else real(path)
    )
    for _ in range(2):
        assert len(open_data(folder, reporter=Loud())[0]) == NUM
    assert Loud.phases == [f"reading the headers of 3 files of {folder} for an index, once"]
    assert [path.name for path in (folder.parent / "hub").rglob("*.safetensors")] == [INDEX]


def test_prompts_whose_digests_begin_alike_are_told_apart() -> None:
    random = np.random.default_rng(0)
    digests = random.integers(0, 256, (2, 50, 16), dtype=np.uint8)
    digests[1, 7, :8] = digests[0, 30, :8]
    files = [Path("0"), Path("1")]
    prompts = PromptIndex(build_prompt_index(files, lambda path: digests[int(path.name)]))
    assert list(prompts.places(digests[1, 7].tobytes())) == [(0, 30), (1, 7)]
    assert all((f, r) in list(prompts.places(digests[f, r].tobytes())) for f in range(2) for r in range(50))
    assert list(prompts.places(bytes(16))) == [] and key_of(digests[0]).shape == (50,)
