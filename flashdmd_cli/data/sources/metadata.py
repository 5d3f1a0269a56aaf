"""The ImageFolder convention: `metadata.jsonl` or `metadata.csv` beside the pictures names each in `file_name`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import Item, Rejected, Row, rejected_row
from flashdmd_cli.data.reading import (
    MAX_LINE_BYTES,
    caption_of,
    inside,
    lines,
    parse_object,
    printable,
    read_file,
    scalars,
)
from flashdmd_cli.data.seen import Seen, scratch

NAMES = ("metadata.jsonl", "metadata.csv")


@dataclass
class ImageFolder:
    """The rows of the metadata files of a folder and of its subfolders; a path counts from its metadata file."""

    path: Path
    caption_column: str | None = None
    kind: str = "imagefolder"
    prompts_only: bool = False

    def __post_init__(self) -> None:
        self.path = self.path.resolve()

    def tables(self) -> list[Path]:
        """The metadata files, sorted."""
        return sorted(path for name in NAMES for path in self.path.rglob(name) if path.is_file())

    def rows(self) -> Iterator[Row]:
        """One row per line of the tables, with caption and scalars inside. A repeated file is rejected."""
        import tempfile

        with tempfile.TemporaryDirectory() as folder, scratch(Path(folder) / "names") as connection:
            seen = Seen(connection, "names")
            for table in self.tables():
                base = table.parent.relative_to(self.path).as_posix()
                for number, values in _read(table):
                    source = f"{table.relative_to(self.path).as_posix()}:{number}"
                    yield self._row(source, base, values, seen)

    def _row(self, source: str, base: str, values: dict[str, Any] | Rejected, seen: Seen) -> Row:
        try:
            if isinstance(values, Rejected):
                raise values
            name = values.get("file_name")
            if not isinstance(name, str) or not name:
                raise Rejected("bad_row", "no file_name")
            name = name if base == "." else f"{base}/{name}"
            path = inside(self.path, name)
            if not seen.add(str(path).encode("utf-8", "surrogatepass")):
                raise Rejected("duplicate_key", name)
            caption = caption_of(values, self.caption_column)
            state = path.stat() if path.exists() else None
        except Rejected as rejected:
            return rejected_row(source, rejected.reason, rejected.detail[:200])
        except (OSError, ValueError) as error:
            return rejected_row(source, "unreadable", str(error)[:200])
        if state is None:
            return rejected_row(source, "missing_file", name[:200])
        return {"source": printable(name)[:1000], "file": name, "caption": caption, "columns": scalars(values),
                "size": state.st_size, "time": state.st_mtime_ns}  # fmt: skip

    def fetch(self, row: Row) -> Item:
        """The picture a row names."""
        columns = {key: value for key, value in row["columns"].items() if key != "file_name"}
        return Item(row["caption"], columns, read_file(inside(self.path, row["file"])))


def _read(table: Path) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    """Numbered rows of a metadata file; a row that cannot be read comes as the reason."""
    yield from (_read_csv if table.suffix == ".csv" else _read_jsonl)(table)


def _read_jsonl(table: Path) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    for number, line in lines(table):
        if line is None:
            yield number, Rejected("bad_row", f"a line over {MAX_LINE_BYTES // 2**20} MiB")
        elif line.strip():
            try:
                yield number, parse_object(line)
            except Rejected as rejected:
                yield number, rejected


def _read_csv(table: Path) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    # Python's own limit is 128 KiB; a longer caption is to be told as such, not as a fault of the table.
    csv.field_size_limit(MAX_LINE_BYTES)
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        try:
            header = reader.fieldnames or ()
        except csv.Error as error:
            raise DataError(
                f"SOURCE: {table} is not a CSV table: {error}", "its first line names the columns"
            ) from None
        if "file_name" not in header:
            raise DataError(
                f"SOURCE: {table} has no column file_name", f"columns there: {', '.join(header)[:300] or 'none'}"
            )
        number = 1
        while True:
            number += 1
            try:
                values = next(reader, None)
            except csv.Error as error:
                yield number, Rejected("bad_row", str(error))
                continue
            if values is None:
                return
            yield number, {key: value for key, value in values.items() if key}
