"""The plan of a preparation: the listing of a source on disk, split into chunks. Chunk k becomes shard k.

A shard depends only on the rows of its chunk and on the settings. So any process can write it, an interrupted
preparation continues with the missing chunks, and the result does not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from flashdmd_cli.data.items import Row
from flashdmd_cli.data.whole import whole


@dataclass(frozen=True)
class Plan:
    """A file with one line of JSON per chunk."""

    path: Path
    offsets: array[int]
    """Start of each line, in bytes."""
    num_rows: int
    sha256: str
    """Hash of the listing: names, sizes and times of the source's files."""

    def __len__(self) -> int:
        return len(self.offsets)

    def chunk(self, index: int) -> list[Row]:
        """The rows of a chunk."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            rows: list[Row] = json.loads(file.readline())
        return rows


def write_plan(rows: Iterable[Row], path: Path, chunk_size: int, limit: int | None = None) -> Plan:
    """Write the listing of a source, at most `limit` rows, in chunks of `chunk_size`, with one in memory at a time."""
    stream: Iterator[Row] = islice(iter(rows), limit)
    offsets, total, place, digest = array("Q"), 0, 0, hashlib.sha256()
    with whole(path) as temporary, temporary.open("wb") as file:
        while chunk := list(islice(stream, chunk_size)):
            # ASCII preserves file names that are not UTF-8.
            line = json.dumps(chunk, sort_keys=True, ensure_ascii=True).encode() + b"\n"
            offsets.append(place)
            digest.update(line)
            place += file.write(line)
            total += len(chunk)
    return Plan(path, offsets, total, digest.hexdigest())
