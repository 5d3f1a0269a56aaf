"""Shards: deterministic bytes, the reading order, and every kind of damage."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.prompts import read_prompts
from flashdmd_cli.data.shards import ShardDataset, write_shards
from flashdmd_cli.runs.recipe_schema import Train
from flashdmd_cli.runs.world import World
from flashdmd_cli.shapes.captions import parse
from flashdmd_cli.shapes.samples import shapes_samples
from flashdmd_cli.shapes.world import is_held_out
from flashdmd_cli.training.distill import micro_batches, positions

NUM = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    written = write_shards(shapes_samples(NUM, seed=3), out, shard_size=5)
    assert [path.name for path in written.files] == [f"shapes-{i:06d}.tar" for i in range(3)]
    assert written.num_samples == NUM
    return out


def listing(folder: Path) -> list[dict[str, Any]]:
    return [
        {"path": p.name, "size": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in sorted(folder.glob("*.tar"))
    ]


def copy_of(folder: Path, to: Path) -> Path:
    for path in folder.glob("*.tar"):
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_same_samples_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_shards(shapes_samples(NUM, seed=3), tmp_path, shard_size=5)
    assert listing(tmp_path) == listing(folder)
    assert not list(tmp_path.glob("*.partial"))


def test_a_shorter_writing_removes_the_longer_one(folder: Path, tmp_path: Path) -> None:
    copy_of(folder, tmp_path)
    write_shards(shapes_samples(3, seed=3), tmp_path, shard_size=5)
    assert len(ShardDataset(tmp_path)) == 3


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Any:
        yield from shapes_samples(2, seed=0)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_shards(broken(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_webdataset_reads_the_shards(folder: Path) -> None:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    dataset = ShardDataset(folder)
    assert [sample["txt"].decode() for sample in read] == [dataset.sample(i).caption for i in range(NUM)]
    assert json.loads(read[4]["json"]) == dataset.sample(4).facts


def test_captions_and_attributes_agree_and_are_not_held_out(folder: Path) -> None:
    dataset = ShardDataset(folder, listing(folder))
    assert len(dataset) == NUM and dataset.picture_shape == (3, 64, 64)
    for i in range(NUM):
        sample = dataset.sample(i)
        assert parse(sample.caption) == sample.facts["attributes"]
        assert len(sample.facts["layout"]) == 12
    attributes = torch.tensor([dataset.sample(i).facts["attributes"] for i in range(NUM)])
    assert not is_held_out(attributes).any()
    held = torch.tensor([s["json"]["attributes"] for s in shapes_samples(3, seed=0, held_out=True)])
    assert is_held_out(held).all()


def test_a_longer_set_begins_with_the_shorter(folder: Path) -> None:
    longer = shapes_samples(NUM + 1, seed=3)
    assert [s["png"] for s in shapes_samples(NUM, seed=3)] == [next(longer)["png"] for _ in range(NUM)]


def test_batches_are_functions_of_their_arguments(folder: Path) -> None:
    first, again = ShardDataset(folder), ShardDataset(folder)
    for step in range(5):
        first.batch(range(4 * step, 4 * step + 4), seed=1)
    batch = first.batch(range(20, 24), seed=1)
    assert torch.equal(batch.pixels, again.batch(range(20, 24), seed=1).pixels)
    assert batch.pixels.shape == (4, 3, 64, 64) and batch.pixels.dtype == torch.float32
    assert -1 <= batch.pixels.min() < batch.pixels.max() <= 1
    assert len(batch.captions) == 4


def test_every_epoch_reads_everything_once_in_another_order(folder: Path) -> None:
    dataset = ShardDataset(folder)
    read = [i for step in range(6) for i in dataset.indices(range(4 * step, 4 * step + 4), seed=7)]
    epochs = read[:NUM], read[NUM:]
    assert all(Counter(epoch) == Counter(range(NUM)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert read[:NUM] != dataset.indices(range(NUM), seed=8)


def test_two_ranks_read_what_one_would(folder: Path) -> None:
    """And whatever the micro-batch; batches lie one after the other in the stream, across the ends of epochs too."""
    dataset, read = ShardDataset(folder), []
    for step in range(4):
        for rank, micro_batch in ((0, 3), (1, 1)):
            train = Train(batch=6, micro_batch=micro_batch)
            for rows in micro_batches(train, World(rank, 2)):
                read += dataset.indices(positions(step, rows, train))
    assert read == dataset.indices(range(24))


def test_a_small_cache_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ShardDataset(folder)
    monkeypatch.setattr("flashdmd_cli.data.shards.CACHE_BYTES", 3 * 64 * 64 * 2)
    small = ShardDataset(folder)
    for step in range(4):
        place = range(4 * step, 4 * step + 4)
        assert torch.equal(whole.batch(place).pixels, small.batch(place).pixels)
    assert len(small._cache) == 2


@pytest.mark.parametrize("length", [0, 100, 512, 1536, 5000, 10240, -1024, -2048])
def test_a_truncated_shard_is_found_with_and_without_a_manifest(folder: Path, tmp_path: Path, length: int) -> None:
    expected = listing(copy_of(folder, tmp_path))
    shard = tmp_path / "shapes-000001.tar"
    raw = shard.read_bytes()
    end = len(raw.rstrip(b"\0"))
    shard.write_bytes(raw[:length] if length >= 0 else raw[: end + length])
    with pytest.raises(DataError, match="bytes, but .* in the manifest"):
        ShardDataset(tmp_path, expected)
    with pytest.raises(DataError):
        ShardDataset(tmp_path)


def test_a_damaged_header_is_found_without_a_manifest(folder: Path, tmp_path: Path) -> None:
    shard = copy_of(folder, tmp_path) / "shapes-000000.tar"
    raw = bytearray(shard.read_bytes())
    raw[raw.index(b"00000003.png")] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DataError, match="damaged"):
        ShardDataset(tmp_path)


def test_missing_things_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shard"):
        ShardDataset(tmp_path)
    with pytest.raises(DataError, match="is missing"):
        ShardDataset(tmp_path, listing(folder))
    with pytest.raises(DataError, match="outside of"):
        ShardDataset(tmp_path, [{"path": "../x.tar", "size": 0, "sha256": ""}])


def test_doubtful_keys_and_pictures_are_refused(tmp_path: Path) -> None:
    sample = next(shapes_samples(1, seed=0))
    for samples in ([sample, sample], [{**sample, "__key__": "a.b"}], []):
        with pytest.raises(DataError):
            write_shards(samples, tmp_path)
    write_shards([{**sample, "png": b"no picture"}], tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        ShardDataset(tmp_path)


def test_prompts(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("a cat\n\n a dog \na bird\n", encoding="utf-8")
    assert read_prompts(text) == ["a cat", "a dog", "a bird"]
    assert read_prompts(text, limit=1) == ["a cat"]
    as_json = tmp_path / "prompts.json"
    as_json.write_text('["one", "two"]')
    assert read_prompts(as_json) == ["one", "two"]
    for name, content in (("bad.json", "{"), ("dict.json", "{}"), ("empty.txt", "\n"), ("coco.pkl", "x")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError) as caught:
            read_prompts(tmp_path / name)
        assert caught.value.hint and "\n" not in str(caught.value)
    with pytest.raises(DataError):
        read_prompts(tmp_path / "absent.txt")
