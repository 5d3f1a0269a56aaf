"""The plan of a preparation: a source's listing on disk, cut into chunks. Chunk k becomes shard k.

A chunk's shard is a function of its rows and of the settings alone. That is why any process can make it, why a run that
was killed goes on with the chunks that are missing, and why one process and a hundred write the same bytes.
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
    """Lines of JSON, one chunk each."""

    path: Path
    offsets: array[int]
    """Where each line begins, in bytes."""
    num_rows: int
    sha256: str
    """Fingerprint of the listing: names, sizes and times of the source's files."""

    def __len__(self) -> int:
        return len(self.offsets)

    def chunk(self, index: int) -> list[Row]:
        """The rows of a chunk."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            rows: list[Row] = json.loads(file.readline())
        return rows


def write_plan(rows: Iterable[Row], path: Path, chunk_size: int, limit: int | None = None) -> Plan:
    """List a source, at most `limit` rows of it, in chunks of `chunk_size`; one chunk is in memory at a time."""
    stream: Iterator[Row] = islice(iter(rows), limit)
    offsets, total, place, digest = array("Q"), 0, 0, hashlib.sha256()
    with whole(path) as temporary, temporary.open("wb") as file:
        while chunk := list(islice(stream, chunk_size)):
            # ASCII, so that also file names that are no UTF-8 survive.
            line = json.dumps(chunk, sort_keys=True, ensure_ascii=True).encode() + b"\n"
            offsets.append(place)
            digest.update(line)
            place += file.write(line)
            total += len(chunk)
    return Plan(path, offsets, total, digest.hexdigest())
