"""Webdataset shards: tar files of `key.png` (or jpg, webp), `key.txt` and `key.json`; writing and random access."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from webdataset import TarWriter

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.data.caches import CacheReader
from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.index import (
    INDEX,
    PICTURES,
    REBUILD,
    SampleIndex,
    Spare,
    Tick,
    build_sample_index,
    indexed,
    no_tick,
)
from flashdmd_cli.data.whole import whole

SCHEMA = {"png": "picture, RGB, 8 bits", "txt": "caption, UTF-8", "json": "what else is known of the picture"}
"""Files of one sample."""

CACHE_BYTES = 512 * 2**20
"""Size of the cache of decoded pictures; smaller data sets are decoded only once."""


@dataclass(frozen=True)
class WrittenShards:
    """Result of `write_shards`."""

    files: list[Path]
    num_samples: int
    schema: dict[str, str] = field(default_factory=lambda: dict(SCHEMA))


@dataclass(frozen=True)
class Sample:
    """One captioned picture."""

    key: str
    picture: Tensor  # (3, H, W) uint8; (3, 0, 0) for a prompt without picture
    caption: str
    facts: dict[str, Any]  # the sample's JSON, empty if it has none


@dataclass(frozen=True)
class Batch:
    """A batch of `B` captioned pictures for training."""

    pixels: Tensor  # (B, 3, H, W) float32 on [-1, 1]; (B, 3, 0, 0) for prompts without pictures
    captions: list[str]
    latents: Tensor | None = None
    """Cached latents (B, C, h, w), float32."""
    text: dict[str, Tensor] | None = None
    """Cached embeddings of the captions by name, (B, ...) float32."""
    sizes: Tensor | None = None
    """(B, 6) float32 in pixels, if requested: original height and width, crop top and left in the resized picture,
    height and width of the crop (SDXL's micro-conditioning)."""


def write_shards(
    samples: Iterable[Mapping[str, Any]], out: Path, shard_size: int = 1000, prefix: str = "shapes"
) -> WrittenShards:
    """Write samples (`__key__`, `png` bytes, `txt` str, optional `json` dict) as `<prefix>-000000.tar`, ...

    Deterministic: the same samples give the same bytes. Shards are written under a temporary name and renamed; old
    shards of the same prefix are deleted at the end. Raises `DataError` for an invalid or repeated key.
    """
    out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    seen: set[str] = set()
    stream = iter(samples)
    while (first := next(stream, None)) is not None:
        path = out / f"{prefix}-{len(files):06d}.tar"
        with whole(path) as temporary, temporary.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in chain([first], islice(stream, shard_size - 1)):
                tar.write(_members(sample, seen))
        files.append(path)
    if not files:
        raise DataError("the source holds no sample", "ask for at least one picture")
    for stale in set(out.glob(f"{prefix}-[0-9][0-9][0-9][0-9][0-9][0-9].tar")) - set(files):
        stale.unlink()
    return WrittenShards(files, len(seen))


def _members(sample: Mapping[str, Any], seen: set[str]) -> dict[str, Any]:
    key = sample["__key__"]
    if key in seen or not key or "." in key:
        raise DataError(f"key {key!r} is repeated, empty or has a dot", "give every sample a key of its own")
    seen.add(key)
    members = {"__key__": key, "png": sample["png"], "txt": sample["txt"].encode()}
    if "json" in sample:
        members["json"] = json.dumps(sample["json"], sort_keys=True).encode()
    return members


class ShardDataset:
    """Random access to the samples of a folder of shards.

    `expected` is the list of files in the folder's manifest (`path`, `size`): the sizes of all are checked on opening,
    and only listed shards are read. Their contents are not, which `inspect` does. `cached` is which of `latents` and
    `text` to load from the caches into batches, `sized` whether to add `sizes` (not for data without pictures).

    A missing index is built once, from the headers of all shards, and kept beside the shards, or if that folder cannot
    be written to, in the folder that `spare` returns; `tick` is called with the numbers of files read and of all.
    Without `expected` it is always built, and not kept. Raises `DataError` for missing or damaged files.
    """

    def __init__(
        self,
        folder: Path,
        expected: Sequence[Mapping[str, Any]] | None = None,
        cached: Sequence[str] = (),
        sized: bool = False,
        spare: Spare = lambda: None,
        tick: Tick = no_tick,
    ) -> None:
        self.folder = folder
        sizes = None if expected is None else check_sizes(folder, expected)
        listed = sorted(folder.glob("*.tar") if sizes is None else (path for path in sizes if path.suffix == ".tar"))
        if not listed:
            raise DataError(f"--data {folder} holds no shard (*.tar)", REBUILD)
        if sizes is None:
            arrays = build_sample_index(listed, tick)
        else:
            shards = {path: sizes[path] for path in listed}
            arrays = indexed(INDEX, shards, folder, spare, lambda: build_sample_index(listed, tick))
        self._index = SampleIndex(listed, arrays)
        if not len(self._index):
            raise DataError(f"--data {folder} holds no sample", REBUILD)
        self._cache: OrderedDict[int, Sample] = OrderedDict()
        self._orders: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self.caches = CacheReader(folder, listed, sizes or {}, cached, spare, tick)
        self.picture_shape = tuple(self._decode(0).picture.shape)
        """(3, H, W), the same for every picture; (3, 0, 0) for prompts without pictures."""
        self._capacity = max(1, CACHE_BYTES // max(1000, int(np.prod(self.picture_shape))))
        self._sized = sized and self.picture_shape[-2:] != (0, 0)
        if self._sized:
            sizes_of(self.sample(0))

    def __len__(self) -> int:
        return len(self._index)

    def sample(self, index: int) -> Sample:
        """Sample `index` in the order of the shards."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        sample = self._decode(index)
        if tuple(sample.picture.shape) != self.picture_shape:
            raise DataError(
                f"--data: picture {sample.key} is {_size(sample.picture.shape)}, others {_size(self.picture_shape)}",
                "prepare all pictures at one size",
            )
        self._cache[index] = sample
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return sample

    def indices(self, positions: range, seed: int = 0) -> list[int]:
        """Indices of the samples at `positions` of an endless shuffled stream.

        Every epoch has its own permutation, which depends only on (seed, epoch).
        """
        return [self._at(position, seed) for position in positions]

    def batch(self, positions: range, seed: int = 0) -> Batch:
        """The batch of the samples at `positions` of the shuffled stream (see `indices`)."""
        chosen = self.indices(positions, seed)
        samples = [self.sample(index) for index in chosen]
        pixels = torch.stack([sample.picture for sample in samples]).float() / 127.5 - 1
        latents = text = None
        if self.caches.latents:
            latents = torch.stack([self.caches.latent(*self._index.place(index)) for index in chosen])
        if self.caches.text:
            rows = [self.caches.embedding(sample.caption) for sample in samples]
            text = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        sizes = torch.tensor([sizes_of(sample) for sample in samples]) if self._sized else None
        return Batch(pixels, [sample.caption for sample in samples], latents, text, sizes)

    def _at(self, position: int, seed: int) -> int:
        epoch, place = divmod(position, len(self))
        if (seed, epoch) not in self._orders:
            digest = hashlib.sha256(f"reading order {seed} {epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            if len(self._orders) == 2:
                self._orders.popitem(last=False)
            # The order is the same for both formats, and takes half the memory in 32 bits.
            dtype = torch.int32 if len(self) < 2**31 else torch.int64
            self._orders[seed, epoch] = torch.randperm(len(self), generator=generator, dtype=dtype)
        return int(self._orders[seed, epoch][place])

    def _decode(self, index: int) -> Sample:
        picture = torch.empty((3, 0, 0), dtype=torch.uint8)
        try:
            key, members = self._index.read(index)
            kind = next((kind for kind in PICTURES if kind in members), None)
            if kind is not None:
                with Image.open(io.BytesIO(members[kind])) as image:
                    picture = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
            caption = members["txt"].decode()
            facts = parse_json(members["json"]) if "json" in members else {}
        except (OSError, ValueError, SyntaxError, KeyError, tarfile.TarError) as error:
            shard, place = self._index.shard(index), self._index.place(index)[1]
            raise DataError(f"--data: sample {place} of {shard} cannot be read: {error}", REBUILD) from None
        return Sample(key, picture, caption, facts)


def sizes_of(sample: Sample) -> list[float]:
    """Original height and width, crop top and left, height and width of a sample's picture; `DataError` if missing."""
    numbers = []
    for name in ("original_size", "crop_top_left"):
        pair = sample.facts.get(name)
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n >= 0 for n in pair)):
            raise DataError(
                f"--data: sample {sample.key} has no {name} (two numbers of pixels) for model.micro_conditioning=data",
                "prepare-data notes it for pictures; --set model.micro_conditioning=square goes without",
            )
        numbers += pair
    return [float(number) for number in (*numbers, *sample.picture.shape[-2:])]


def _size(shape: Sequence[int]) -> str:
    return f"{shape[2]} x {shape[1]} px"


def check_sizes(folder: Path, expected: Iterable[Mapping[str, Any]]) -> dict[Path, int]:
    """The files of `folder` that are `expected` (`path`, `size` in bytes), with their sizes.

    Raises `DataError` for the first that is missing, lies outside of `folder`, or has another size.
    """
    sizes: dict[Path, int] = {}
    root = folder.resolve()
    for entry in expected:
        path = folder / entry["path"]
        try:
            status = path.lstat()
            may_lead_out = os.sep in entry["path"] or stat.S_ISLNK(status.st_mode)
        except OSError:
            status, may_lead_out = None, True
        # Resolving takes long; only a path with a folder or a link in it can lead out of `folder`.
        if may_lead_out:
            if not path.resolve().is_relative_to(root):
                raise DataError(f"--data: the manifest names {entry['path']}, outside of {folder}", REBUILD)
            status = path.stat() if path.exists() else None
        if status is None or not stat.S_ISREG(status.st_mode):
            raise DataError(f"--data: {path} is missing", REBUILD)
        if status.st_size != entry["size"]:
            raise DataError(f"--data: {path} has {status.st_size} bytes, but {entry['size']} in the manifest", REBUILD)
        sizes[path] = entry["size"]
    return sizes
