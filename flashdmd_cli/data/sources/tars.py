"""Webdataset tars, as written by img2dataset: `key.jpg`, `key.txt`, `key.json`. They are read without unpacking."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from flashdmd_cli.data.items import (
    CAPTION_SUFFIXES,
    MAX_CAPTION_BYTES,
    PICTURE_SUFFIXES,
    Item,
    Rejected,
    Row,
    rejected_row,
)
from flashdmd_cli.data.reading import (
    Captions,
    decode_caption,
    is_lfs_pointer,
    parse_object,
    printable,
    read_part,
    scalars,
)
from flashdmd_cli.data.sources.survey import files_below, suffix

MAX_JSON_BYTES = 2**20


@dataclass
class Tars:
    """The samples of one tar, or of all those in a folder and its subfolders, in the order of the files."""

    path: Path
    captions: Captions = Captions()
    kind: str = "webdataset"
    prompts_only: bool = False

    def __post_init__(self) -> None:
        # Links to files are not resolved: in the hub's cache, their targets are named by hashes.
        self.path = self.path.absolute() if self.path.is_file() else self.path.resolve()

    @property
    def files(self) -> list[Path]:
        """The tars, sorted by name."""
        return [self.path] if self.path.is_file() else files_below(self.path, lambda name: suffix(name) == "tar")

    def rows(self) -> Iterator[Row]:
        """One row per sample, with the positions of its members, and one per rejected member."""
        for tar in self.files:
            name = tar.name if self.path.is_file() else tar.relative_to(self.path).as_posix()
            state = tar.stat()
            # In the first row, so that the listing changes with the tar, even if all offsets are the same.
            stamp = {"size": state.st_size, "time": state.st_mtime_ns}
            for row in samples(tar, name):
                yield row | ({"tar": name} if "reason" not in row else {}) | stamp
                stamp = {}

    def fetch(self, row: Row) -> Item:
        """Read the members of a sample."""
        tar = self.path if self.path.is_file() else self.path / row["tar"]
        members: dict[str, list[int]] = row["members"]
        picture = next((members[name] for name in members if name in PICTURE_SUFFIXES), None)
        if picture is None:
            raise Rejected("no_picture", ", ".join(sorted(members)))
        columns = self._columns(tar, members)
        return Item(self._caption(tar, row, columns), scalars(columns), read_part(tar, picture))

    def _columns(self, tar: Path, members: dict[str, list[int]]) -> dict[str, Any]:
        if "json" not in members:
            return {}
        try:
            return parse_object(read_part(tar, members["json"], limit=MAX_JSON_BYTES, too_big="bad_row"))
        except Rejected:
            return {}  # as in a folder: filters reject rows without their column

    def _caption(self, tar: Path, row: Row, columns: dict[str, Any]) -> str:
        members = row["members"]
        text = next((members[name] for name in CAPTION_SUFFIXES if name in members), None)
        if self.captions.column is not None or text is None or text[1] == 0:
            return self.captions.of(columns, row["source"])
        return decode_caption(read_part(tar, text, limit=MAX_CAPTION_BYTES, too_big="caption_too_big"))


def samples(path: Path, tar: str) -> Iterator[Row]:
    """Rows of the tar at `path`, named `tar`: consecutive members with the same key are a sample, as in webdataset."""
    seen: set[str] = set()  # keys of one tar, usually some thousands
    key: str | None = None
    members: dict[str, list[int]] = {}

    def close() -> Iterator[Row]:
        if members:
            source = f"{tar}:{key}"
            if key in seen:
                yield rejected_row(source, "duplicate_key")
            else:
                assert key is not None
                seen.add(key)
                yield {"source": source, "members": dict(members)}

    for info in _headers(path):
        if isinstance(info, Rejected):
            yield from close()
            yield rejected_row(tar, info.reason, info.detail)
            return
        name = printable(info.name)[:1000]
        if reason := _doubt(info):
            if reason != "folder":
                yield rejected_row(f"{tar}:{name}", reason)
            continue
        folder, _, base = name.rpartition("/")
        stem, _, kind = base.partition(".")
        now, kind = (f"{folder}/{stem}" if folder else stem), kind.lower()
        if now != key or kind in members:
            yield from close()
            key, members = now, {}
        members[kind] = [info.offset_data, info.size]
    yield from close()


def _doubt(info: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(info.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in info.name:
        return "unsafe_path"
    if info.issym() or info.islnk():
        return "link"
    if info.isdir():
        return "folder"
    return None if info.isreg() and not info.issparse() else "not_a_file"


def _headers(path: Path) -> Iterator[tarfile.TarInfo | Rejected]:
    """Headers of a tar's members, one at a time, and a `Rejected` at the end if the file is truncated or damaged."""
    size = path.stat().st_size
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # the reader would keep all of them in memory
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if info.isreg() and info.offset_data + info.size > size:
                    break
                yield info
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        yield Rejected("lfs_pointer" if is_lfs_pointer(path) else "tar_truncated", str(error)[:200])
        return
    # tarfile stops silently at a damaged header; in an intact file, an empty block follows the last member.
    with path.open("rb") as file:
        file.seek(min(end, size))
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            yield Rejected("tar_truncated", f"after {min(end, size)} bytes")
