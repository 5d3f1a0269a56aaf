"""Entries of tables and lists: JSON, JSON lines, CSV, TSV, parquet or text.

The suffix of a file determines its format; files with any other suffix are text with one entry per line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import Rejected
from flashdmd_cli.data.reading import MAX_LINE_BYTES, decode_caption, is_lfs_pointer, lines

_BATCH = 16
"""Rows of a parquet table decoded at a time."""
Entry = tuple[int, Any]
"""Number in the file, and a dictionary of columns, a text, or a `Rejected` for an unreadable entry."""


def entries(path: Path, option: str = "SOURCE", pictures: bool = False) -> Iterator[Entry]:
    """The entries of a file, one at a time, without empty lines and byte-order mark. Picture columns of parquet tables
    are included only with `pictures`.

    Raises `DataError`, with a message that starts with `option`, if the file does not have the format of its suffix.
    """
    match path.suffix.lower():
        case ".json":
            yield from enumerate(_json_list(path, option), start=1)
        case ".jsonl":
            yield from _by_line(path, parse_json)
        case ".csv" | ".tsv":
            yield from _csv_rows(path, option)
        case ".parquet":
            yield from _parquet_rows(path, option, pictures)
        case _:
            yield from _by_line(path, decode_caption)


def header(path: Path, option: str = "SOURCE") -> list[str] | None:
    """Column names of a CSV, TSV or parquet table; None for other formats."""
    match path.suffix.lower():
        case ".csv" | ".tsv":
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                return list(_reader(path, file, option).fieldnames or ())
        case ".parquet":
            with open_parquet(path, option) as table:
                return list(table.schema_arrow.names)
    return None


def _by_line(path: Path, parse: Any) -> Iterator[Entry]:
    for number, line in lines(path):
        if line is None:
            yield number, Rejected("bad_row", f"a line over {MAX_LINE_BYTES // 2**20} MiB")
        elif line.strip():
            try:
                yield number, parse(line)
            except Rejected as rejected:
                yield number, rejected
            except ValueError as error:
                yield number, Rejected("bad_row", str(error))


def _json_list(path: Path, option: str) -> list[Any]:
    try:
        values = parse_json(path.read_bytes())
    except ValueError as error:
        raise DataError(
            f"{option} {path}: is not JSON: {error}", "give a list, or lines of JSON in a .jsonl file"
        ) from None
    if not isinstance(values, list):
        raise DataError(f"{option} {path}: is not a JSON list", 'write it as ["first prompt", "second"]')
    return values


def _reader(path: Path, file: Any, option: str) -> csv.DictReader[str]:
    """A reader of an open CSV or TSV table, with the header read."""
    # Python's default is 128 KiB; too long captions are to be rejected as such, not as errors of the table.
    csv.field_size_limit(MAX_LINE_BYTES)
    first = file.readline(MAX_LINE_BYTES)
    file.seek(0)
    # Spreadsheets separate by ";" in locales with "," as decimal point.
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.DictReader(file, delimiter=delimiter)
    try:
        reader.fieldnames  # noqa: B018 (reads the first line)
    except csv.Error as error:
        raise DataError(f"{option} {path}: is not a CSV table: {error}", "its first line names the columns") from None
    return reader


def _csv_rows(path: Path, option: str) -> Iterator[Entry]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = _reader(path, file, option)
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
            if any(values.values()):  # spreadsheets write empty rows
                yield number, {key: value for key, value in values.items() if key}


def open_parquet(path: Path, option: str = "SOURCE") -> Any:
    """Open a parquet table; `DataError` if it is none. `pre_buffer=False` reads columns on demand instead of whole row
    groups."""
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    except (OSError, ValueError) as error:
        if is_lfs_pointer(path):
            raise DataError(f"{option} {path}: is Git LFS's note in place of the file", "git lfs pull") from None
        raise DataError(f"{option} {path}: is no parquet table: {str(error)[:200]}", "download it again") from None


def picture_columns(schema: Any) -> list[str]:
    """Columns of an Arrow schema that may contain pictures: bytes, or `{bytes, path}` as in Hugging Face datasets."""
    import pyarrow.types as kinds

    def is_binary(kind: Any) -> bool:
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    return [
        field.name
        for field in schema
        if is_binary(field.type)
        or (kinds.is_struct(field.type) and any(part.name == "bytes" and is_binary(part.type) for part in field.type))
    ]


def _parquet_rows(path: Path, option: str, pictures: bool) -> Iterator[Entry]:
    with open_parquet(path, option) as table:
        skipped = [] if pictures else picture_columns(table.schema_arrow)
        names = [name for name in table.schema_arrow.names if name not in skipped]
        number = 0
        try:
            for batch in table.iter_batches(_BATCH, columns=names):
                for values in decoded(batch):
                    yield number, Rejected("bad_row", str(values)) if isinstance(values, ValueError) else values
                    number += 1
        except (OSError, ValueError) as error:
            yield number, Rejected("bad_row", f"the table cannot be read from here on: {error}")


def decoded(batch: Any) -> list[dict[str, Any] | ValueError]:
    """The rows of a batch of a table; for a row that cannot be decoded, for example with invalid UTF-8, the error."""
    try:
        whole: list[dict[str, Any] | ValueError] = batch.to_pylist()
        return whole
    except ValueError:
        pass
    rows: list[dict[str, Any] | ValueError] = []
    for number in range(batch.num_rows):
        try:
            rows += batch.slice(number, 1).to_pylist()
        except ValueError as error:
            rows.append(error)
    return rows
