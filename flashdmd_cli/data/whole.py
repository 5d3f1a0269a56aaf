"""Files that are whole or absent, and tars whose bytes depend on nothing but what is in them."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """A temporary name to write to, which becomes `path` when the block ends well and vanishes when it does not.

    The temporary file lies in `scratch` (the same file system), else beside `path`; its name holds the process's id, so
    two processes that write the same file do not meet.
    """
    temporary = (scratch or path.parent) / f".{path.name}.{os.getpid()}.partial"
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Write samples (key, kind -> bytes) as webdataset members `key.kind`, without owner or time; returns how many.

    webdataset's own writer makes the same file but imports torch, half a gigabyte in every worker.
    """
    count = 0
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for kind, data in members.items():
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
            tar.members = []  # type: ignore[attr-defined]  # the writer would keep them all
            count += 1
    return count


def read_tar(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a tar that `write_tar` wrote, one at a time."""
    key, members = "", dict[str, bytes]()
    with tarfile.open(path, "r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]
            now, _, kind = info.name.partition(".")
            if now != key and members:
                yield key, members
                members = {}
            file = tar.extractfile(info)
            assert file is not None
            key, members[kind] = now, file.read()
    if members:
        yield key, members
