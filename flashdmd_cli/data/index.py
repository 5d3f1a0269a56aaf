"""Index files: where each sample is in its shard, and where each prompt is in the caches.

With them, opening a data folder reads no shard and holds nothing in memory: their arrays are memory-mapped.

`index.safetensors` has `firsts` (S + 1), the number of the first sample of each of S shards and the number of all
samples, and `offsets` (N + S), for each shard the position in bytes of each of its samples and of the end of the last.
`prompts.safetensors` has, for each of M prompts, `keys` (M), the first eight bytes of its digest, in ascending order,
`files` (M), the number of the cache file, and `rows` (M), the row in it. All are integers.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.whole import whole

INDEX, PROMPT_INDEX = "index.safetensors", "prompts.safetensors"
FILES = "files"
"""Metadata of an index: a hash over names and sizes of the files that it was made from."""
PICTURES = ("png", "jpg", "jpeg", "webp")
"""Types of the pictures in shards."""
REBUILD = "write the data again: `flashdmd prepare-data` with --yes"

Arrays = dict[str, NDArray[Any]]
Tick = Callable[[int, int], None]
"""Called with the numbers of finished files and of all files."""
Spare = Callable[[], Path | None]


def no_tick(done: int, total: int) -> None:
    """Report nothing."""


def indexed(
    name: str, files: Mapping[Path, int], folder: Path, spare: Spare, build: Callable[[], Arrays]
) -> Arrays:  # fmt: skip
    """The arrays of the index `name` of `files` (path -> size in bytes), memory-mapped.

    It is read from `folder`, or else from the folder that `spare` returns. If neither has one of these files, it is
    built and written to the first of them that can be written to; if none can be, it is only in memory.
    """
    if (found := _load(folder / name, files)) is not None:
        return found
    other = spare()
    if other is not None and (found := _load(other / name, files)) is not None:
        return found
    arrays = build()
    for place in (folder, other):
        if place is None:
            continue
        try:
            write_index(place / name, files, arrays)
        except (OSError, SafetensorError):  # read-only, or full
            continue
        return _load(place / name, files) or arrays
    return arrays


def write_index(path: Path, files: Mapping[Path, int], arrays: Arrays) -> None:
    """Write an index of `files` (path -> size in bytes) atomically."""
    with whole(path) as temporary:
        save_file(arrays, temporary, {FILES: _identity(files)})
        temporary.chmod(0o644)  # the library makes it readable by its owner only


def sizes_of_files(paths: Sequence[Path]) -> dict[Path, int]:
    """Paths with their sizes in bytes."""
    return {path: path.stat().st_size for path in paths}


def _identity(files: Mapping[Path, int]) -> str:
    rows = "".join(f"{path.name} {size}\n" for path, size in files.items())
    return hashlib.sha256(rows.encode("utf-8", "surrogateescape")).hexdigest()


def _load(path: Path, files: Mapping[Path, int]) -> Arrays | None:
    """The arrays of an index; None if there is none, or if it is damaged or was made from other files."""
    if not path.is_file():
        return None
    try:
        # Only as tensors of torch are the arrays views of the mapped file; as arrays of numpy they would be copies.
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get(FILES) != _identity(files):
                return None
            return {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
    except Exception:  # of the library, for damaged files
        return None


# -- samples ----------------------------------------------------------------------------------------------------------


def build_sample_index(shards: Sequence[Path], tick: Tick = no_tick) -> Arrays:
    """The arrays of `index.safetensors`; DataError for a damaged shard or an incomplete sample. Reads only headers."""
    parts: list[NDArray[np.int64]] = []
    for number, shard in enumerate(shards):
        tick(number, len(shards))
        parts.append(np.array(_positions(shard), dtype=np.int64))
    tick(len(shards), len(shards))
    firsts = np.cumsum([0, *(len(part) - 1 for part in parts)], dtype=np.int64)
    return {"firsts": firsts, "offsets": np.concatenate(parts)}


def _positions(shard: Path) -> list[int]:
    """Position in bytes of each sample of a shard, and of the end of the last one.

    A sample is a group of successive files with the same name up to the first dot, as in webdataset.
    """
    positions: list[int] = []
    samples: list[tuple[str, set[str]]] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in _files(tar):
                key, kind = _split(info.name)
                if not samples or samples[-1][0] != key:
                    samples.append((key, set()))
                    positions.append(info.offset)
                samples[-1][1].add(kind)
            end = tar.offset
    except tarfile.TarError as error:
        raise DataError(f"--data: {shard} is not a whole tar file: {error}", REBUILD) from None
    # tarfile stops silently at a damaged header; in an intact file, an empty block follows the last member.
    if read_range(shard, end, end + tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"--data: {shard} is cut off or damaged after {len(samples)} samples", REBUILD)
    has_pictures = any(kind in PICTURES for _, kinds in samples for kind in kinds)
    for key, kinds in samples:
        missing = [] if "txt" in kinds else ["txt"]
        if has_pictures and not any(kind in PICTURES for kind in kinds):
            missing.append("its picture")
        if missing:
            raise DataError(f"--data: sample {key} of {shard} lacks {', '.join(missing)}", REBUILD)
    return [*positions, end]


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members that are regular files."""
    while (info := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # the library would keep all of them in memory
        if info.isfile():
            yield info


def _split(name: str) -> tuple[str, str]:
    """`folder/a.seg.png` -> (`folder/a`, `seg.png`)."""
    folder, slash, last = name.rpartition("/")
    stem, _, kind = last.partition(".")
    return folder + slash + stem, kind


def read_range(path: Path, start: int, end: int) -> bytes:
    """The bytes of a file from `start` to `end`."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


class SampleIndex:
    """Random access to the samples of shards."""

    def __init__(self, shards: Sequence[Path], arrays: Arrays) -> None:
        """`arrays` as returned by `build_sample_index`."""
        self._shards, self._firsts, self._offsets = shards, arrays["firsts"], arrays["offsets"]

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def place(self, index: int) -> tuple[int, int]:
        """(number of the shard, number of the sample in it) of sample `index`."""
        shard = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return shard, index - int(self._firsts[shard])

    def shard(self, index: int) -> Path:
        """The shard of sample `index`."""
        return self._shards[self.place(index)[0]]

    def read(self, index: int) -> tuple[str, dict[str, bytes]]:
        """(key, file type -> contents) of sample `index`. Raises OSError or TarError."""
        shard = self.place(index)[0]
        at = index + shard
        data = read_range(self._shards[shard], int(self._offsets[at]), int(self._offsets[at + 1]))
        key, members = "", dict[str, bytes]()
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in _files(tar):
                key, kind = _split(info.name)
                file = tar.extractfile(info)
                assert file is not None
                members[kind] = file.read()
        return key, members


# -- prompts ----------------------------------------------------------------------------------------------------------


def build_prompt_index(
    digests: Sequence[Path], read: Callable[[Path], NDArray[np.uint8]], tick: Tick = no_tick
) -> Arrays:
    """The arrays of `prompts.safetensors`; `read` returns the digests (M, 16) of the prompts in one of the files."""
    empty = np.empty(0, dtype=np.int64)
    keys, files, rows = [empty], [empty], [empty]
    for number, path in enumerate(digests):
        tick(number, len(digests))
        found = key_of(read(path))
        keys.append(found)
        files.append(np.full(len(found), number))
        rows.append(np.arange(len(found)))
    tick(len(digests), len(digests))
    all_keys = np.concatenate(keys)
    order = np.argsort(all_keys, kind="stable")
    return {
        "keys": all_keys[order],
        "files": np.concatenate(files)[order].astype(np.int32),
        "rows": np.concatenate(rows)[order].astype(np.int32),
    }


def key_of(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The first eight bytes of digests (M, 16) as integers (M,)."""
    return np.ascontiguousarray(digests[:, :8]).view("<i8")[:, 0]


class PromptIndex:
    """Where prompts are in the cache files."""

    def __init__(self, arrays: Arrays) -> None:
        """`arrays` as returned by `build_prompt_index`."""
        self._keys, self._files, self._rows = arrays["keys"], arrays["files"], arrays["rows"]

    def places(self, digest: bytes) -> Iterator[tuple[int, int]]:
        """(number of the cache file, row in it) of each prompt whose digest may be this one: in practice at most one,
        since they agree in eight bytes."""
        key = key_of(np.frombuffer(digest, dtype=np.uint8)[None])[0]
        at = int(np.searchsorted(self._keys, key))
        while at < len(self._keys) and self._keys[at] == key:
            yield int(self._files[at]), int(self._rows[at])
            at += 1
