"""Atomic writing of files, and deterministic tar files."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Context with a temporary path to write to; it is renamed to `path` at the end, or deleted after an exception,
    and an OSError names `path`.

    The temporary file is in `scratch` (on the same file system), or beside `path`; its name contains the process id, so
    that several processes may write the same file.
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
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Write samples (key, kind -> bytes) as webdataset members `key.kind`, without owner and time; returns the count.

    webdataset's writer gives the same file, but imports torch, which takes half a gigabyte per worker.
    """
    count = 0
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for kind, data in members.items():
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
            tar.members = []  # type: ignore[attr-defined]  # the writer would keep all of them in memory
            count += 1
    return count


def read_tar(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a tar written by `write_tar`, one at a time."""
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
