"""Hugging Face's ImageFolder format: `metadata.jsonl`, `.csv` or `.parquet` with a column `file_name`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import Item, Rejected, Row, rejected_row
from flashdmd_cli.data.reading import Captions, inside, named, printable, read_file, scalars
from flashdmd_cli.data.seen import Seen, scratch
from flashdmd_cli.data.sources.survey import METADATA, files_below
from flashdmd_cli.data.tables import entries, header


@dataclass
class ImageFolder:
    """The rows of the metadata files in a folder and its subfolders; paths are relative to the metadata file."""

    path: Path
    captions: Captions = Captions()
    kind: str = "imagefolder"
    prompts_only: bool = False

    def __post_init__(self) -> None:
        self.path = self.path.resolve()

    def tables(self) -> list[Path]:
        """The metadata files, sorted."""
        return files_below(self.path, METADATA.__contains__)

    def rows(self) -> Iterator[Row]:
        """One row per row of the tables, with caption and scalars. Repeated files are rejected."""
        import tempfile

        with tempfile.TemporaryDirectory() as folder, scratch(Path(folder) / "names") as connection:
            seen = Seen(connection, "names")
            for table in self.tables():
                base = table.parent.relative_to(self.path).as_posix()
                names = header(table)
                if names is not None and "file_name" not in names:
                    raise DataError(
                        f"SOURCE: {table} has no column file_name", f"columns there: {', '.join(names)[:300] or 'none'}"
                    )
                for number, values in entries(table):
                    source = f"{table.relative_to(self.path).as_posix()}:{number}"
                    yield self._row(source, base, values, seen)

    def _row(self, source: str, base: str, values: Any, seen: Seen) -> Row:
        try:
            if isinstance(values, Rejected):
                raise values
            if not isinstance(values, dict):
                raise Rejected("bad_row", "not a JSON object")
            name = values.get("file_name")
            if not isinstance(name, str) or not name:
                raise Rejected("bad_row", "no file_name")
            name = name if base == "." else f"{base}/{name}"
            path, name = named(self.path, name)
            if not seen.add(str(path).encode("utf-8", "surrogatepass")):
                raise Rejected("duplicate_key", name)
            caption = self.captions.of(values, printable(name))
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
        """Read the picture of a row."""
        columns = {key: value for key, value in row["columns"].items() if key != "file_name"}
        return Item(row["caption"], columns, read_file(inside(self.path, row["file"])))
