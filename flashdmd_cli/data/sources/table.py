"""Parquet tables with pictures as bytes: a binary column, or the `{bytes, path}` of Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import MAX_FILE_BYTES, Item, Rejected, Row, rejected_row
from flashdmd_cli.data.reading import Captions, find_column, is_lfs_pointer, scalars
from flashdmd_cli.data.sources.survey import METADATA, files_below, suffix
from flashdmd_cli.data.tables import decoded, open_parquet, picture_columns

IMAGE_COLUMNS = ("image", "jpg", "png", "webp", "img", "image_bytes", "bytes", "content")
_BATCH = 16
"""Rows decoded at a time."""


@dataclass
class _Cursor:
    """Position of the last row; rows are read in order, so the next one is usually in the same batch."""

    place: tuple[str, int] = ("", -1)
    batches: Any = None
    rows: list[dict[str, Any] | ValueError] = field(default_factory=list)
    start: int = 0  # row number of rows[0] in its group


@dataclass
class Parquet:
    """The rows of one parquet file, or of all those in a folder and its subfolders, in the order of the files."""

    path: Path
    image_column: str | None = None
    captions: Captions = Captions()
    kind: str = "parquet"
    prompts_only: bool = False
    _cursor: _Cursor = field(default_factory=_Cursor, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Links to files are not resolved: in the hub's cache, their targets are named by hashes.
        self.path = self.path.absolute() if self.path.is_file() else self.path.resolve()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cursor": _Cursor()}  # open files cannot be pickled

    @property
    def files(self) -> list[Path]:
        """The tables, sorted by name."""
        if self.path.is_file():
            return [self.path]
        return files_below(self.path, lambda name: suffix(name) == "parquet" and name not in METADATA)

    def rows(self) -> Iterator[Row]:
        """File, row group and number of every row. `DataError` if a required column is missing."""
        for path in self.files:
            file = path.name if self.path.is_file() else path.relative_to(self.path).as_posix()
            try:
                groups = self._checked(path)
            except DataError:
                raise
            except (OSError, ValueError) as error:
                yield rejected_row(file, "lfs_pointer" if is_lfs_pointer(path) else "bad_row", str(error)[:200])
                continue
            state = path.stat()
            stamp = {"size": state.st_size, "time": state.st_mtime_ns}
            number = 0
            for group, count in enumerate(groups):
                for row in range(count):
                    yield {"source": f"{file}#{number}", "file": file, "group": group, "row": row} | stamp
                    number, stamp = number + 1, {}

    def _checked(self, path: Path) -> list[int]:
        """Number of rows of each row group; `DataError` if a required column is missing."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            columns = f"columns there: {', '.join(names)}"
            wanted, column = self.image_column, self.captions.column
            if not (wanted in names if wanted else any(name in names for name in IMAGE_COLUMNS)):
                prompts = (
                    "" if picture_columns(table.schema_arrow) else "; prompts alone: name the file, --format prompts"
                )
                raise DataError(f"--image-column {wanted or ''}".rstrip() + f": {path.name} has no such column",
                                columns + prompts)  # fmt: skip
            if find_column(names, column) is None:
                raise DataError(
                    f"--caption-column {column or ''}".rstrip() + f": {path.name} has no such column", columns
                )
            return [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]

    def fetch(self, row: Row) -> Item:
        """A row's picture, caption and scalars."""
        try:
            values = self._values(row)
        except (OSError, ValueError) as error:
            raise Rejected("bad_row", str(error)[:200]) from None
        names = (self.image_column,) if self.image_column else IMAGE_COLUMNS
        image = next((values[name] for name in names if values.get(name) is not None), None)
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            raise Rejected("no_picture", "the image column holds no bytes")
        if len(data) > MAX_FILE_BYTES:
            raise Rejected("file_too_big")
        return Item(self.captions.of(values, row["source"]), scalars(values), data)

    def _values(self, row: Row) -> dict[str, Any]:
        cursor, place, number = self._cursor, (row["file"], row["group"]), row["row"]
        if cursor.place != place or number < cursor.start:
            path = self.path if self.path.is_file() else self.path / row["file"]
            batches = open_parquet(path).iter_batches(_BATCH, row_groups=[row["group"]])
            cursor.place, cursor.batches, cursor.rows, cursor.start = place, batches, [], 0
        while number >= cursor.start + len(cursor.rows):
            try:
                batch = next(cursor.batches, None)
            except (OSError, ValueError):
                self._cursor = _Cursor()  # the position of the reader is unknown after an error
                raise
            if batch is None:
                raise ValueError("the row group ends before")
            cursor.start, cursor.rows = cursor.start + len(cursor.rows), decoded(batch)
        values = cursor.rows[number - cursor.start]
        if isinstance(values, ValueError):
            raise values
        return values
