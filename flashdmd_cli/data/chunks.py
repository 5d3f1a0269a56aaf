"""Conversion of one chunk of a source to one shard: fetch, filter, decode, resize and crop, encode, write."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from flashdmd_cli.data.filters import Filter, as_number
from flashdmd_cli.data.items import Item, Rejected, Row, Source
from flashdmd_cli.data.pictures import Encoding, Opened, decode, encode, fit, open_picture, thumbnail
from flashdmd_cli.data.plan import Plan
from flashdmd_cli.data.reading import printable
from flashdmd_cli.data.whole import whole, write_tar

Duplicates = Literal["keep", "exact", "near"]
SHOWN_PER_REASON = 2
"""Maximum number of thumbnails of rejected pictures per chunk and reason, for the report."""
MAX_SHARD_SIZE = 1_000_000
"""Limit of the six-digit sample numbers."""
MAX_SCORES = 12
"""Maximum number of numerical columns with a histogram in the report."""


class Stopped(Exception):
    """A stop was requested during a chunk; its partial files are deleted."""


@dataclass(frozen=True)
class Settings:
    """All settings that affect the bytes of a shard; with its rows, they determine them."""

    side: int  # side of the square pictures, in pixels
    encoding: Encoding
    filters: tuple[Filter, ...] = ()
    duplicates: Duplicates = "exact"
    keep_prompts: bool = False  # store captions in the records, for a list of prompts

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "resolution": self.side,
            "encoding": self.encoding,
            "filters": [str(each) for each in self.filters],
            "duplicates": self.duplicates,
        }


@dataclass
class Record:
    """Information about one row, kept or rejected. Fields are empty if the row was rejected before they were known."""

    source: str
    reason: str = ""
    detail: str = ""
    width: int = 0
    height: int = 0
    caption_length: int = 0
    digest: str = ""
    """SHA-256 of the picture file, or of the prompt if there is no picture."""
    near: str = ""
    """Perceptual hash of the cropped picture, 64 bits in hexadecimal."""
    scores: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    caption: str = ""
    columns: dict[str, Any] = field(default_factory=dict)
    thumb: str = ""
    """Small JPEG of a rejected picture, in base64."""

    def line(self) -> str:
        """As a line of JSON, without empty fields."""
        return json.dumps({key: value for key, value in asdict(self).items() if value}, sort_keys=True)


Members = Mapping[str, bytes]
Wanted = Callable[[str], bool]


def shard_path(folder: Path, chunk: int) -> Path:
    """Path of the shard of a chunk."""
    return folder / f"pictures-{chunk:06d}.tar"


def sample_key(chunk: int, place: int) -> str:
    """Unique name of a sample; its name in the source is the field `source` of its JSON."""
    return f"{chunk:06d}-{place:06d}"


def record_path(folder: Path, chunk: int) -> Path:
    """Path of the records of a chunk. They are written last, so a chunk with records is finished."""
    return folder / f"records-{chunk:06d}.jsonl"


def read_records(folder: Path, chunk: int) -> Iterator[Record]:
    """The records of a finished chunk, one per row."""
    with record_path(folder, chunk).open(encoding="utf-8") as file:
        for line in file:
            yield Record(**json.loads(line))


def process_chunk(
    chunk: int, rows: list[Row], source: Source, settings: Settings, folder: Path,
    tick: Callable[[int], None] = lambda num: None, stop: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Write the shard (unless it is empty) and the records of a chunk into `folder`.

    `tick` is called for every finished row. Raises `Stopped` between two rows once `stop` returns true.
    """
    records: list[Record] = []
    shown: Counter[str] = Counter()

    def wanted(reason: str) -> bool:
        shown[reason] += 1
        return shown[reason] <= SHOWN_PER_REASON

    def kept() -> Iterator[tuple[str, Members]]:
        for place, row in enumerate(rows):
            if stop():
                raise Stopped
            record, members = examine(row, source, settings, wanted)
            records.append(record)
            tick(1)
            if members is not None:
                yield sample_key(chunk, place), members

    shard = shard_path(folder, chunk)
    with whole(shard) as temporary:
        count = write_tar(temporary, kept())
    if not count:
        shard.unlink()
    with whole(record_path(folder, chunk)) as temporary:
        temporary.write_text("".join(record.line() + "\n" for record in records), encoding="utf-8")


@dataclass
class ChunkJob:
    """The `Job` (see `runs.workers`) that converts chunk k of the plan to shard k; it is sent to worker processes."""

    plan: Plan
    source: Source
    settings: Settings
    folder: Path

    def start(self, number: int) -> None:
        """Nothing to load."""

    def run(self, task: int, tick: Callable[[int], None], stop: Callable[[], bool]) -> None:
        """Write shard `task`, or nothing if `stop` returns true."""
        with suppress(Stopped):
            process_chunk(task, self.plan.chunk(task), self.source, self.settings, self.folder, tick, stop)


def examine(row: Row, source: Source, settings: Settings, wanted: Wanted) -> tuple[Record, Members | None]:
    """Process one row; returns its record, and the files of its sample (None if it is rejected)."""
    record = Record(printable(str(row["source"])))
    item: Item | None = None
    try:
        if "reason" in row:
            raise Rejected(row["reason"], row.get("detail", ""))
        item = source.fetch(row)
        return record, _members(item, settings, record)
    except Exception as error:  # one row must not end a preparation, whatever a decoder or Pillow plug-in raises
        rejected = (
            error if isinstance(error, Rejected) else Rejected("failed", f"{type(error).__name__}: {error}"[:200])
        )
        record.reason, record.detail = rejected.reason, rejected.detail
        if item is not None and item.picture is not None and wanted(rejected.reason):
            record.thumb = small_jpeg(item.picture)
        return record, None


def _members(item: Item, settings: Settings, record: Record) -> Members:
    """The files of a sample; fills in `record`. Raises `Rejected`; cheap checks come first."""
    record.caption_length = len(item.caption)
    record.scores = _scores(item.columns, settings.filters)
    columns = {**item.columns, "caption_length": len(item.caption)}
    for each in settings.filters:
        if not each.measured_on_pictures:
            each.check(columns)
    if settings.keep_prompts:
        record.caption, record.columns = item.caption, item.columns
    facts: dict[str, Any] = {"source": record.source, "columns": item.columns}
    members: dict[str, bytes] = {}
    if item.picture is None:
        record.digest = hashlib.sha256(item.caption.encode()).hexdigest()
    else:
        opened = open_picture(item.picture)
        record.width, record.height = opened.width, opened.height
        for each in settings.filters:
            if each.measured_on_pictures:
                each.check(opened.columns)
        picture, record.notes = decode(opened, settings.side)
        fitted = fit(picture, settings.side, _original(opened, item.columns))
        if min(opened.width, opened.height) < settings.side:
            record.notes.append("enlarged")
        members[settings.encoding] = encode(fitted.picture, settings.encoding)
        facts |= {
            "original_size": list(fitted.original),
            "crop_top_left": list(fitted.corner),
            "target_size": [settings.side, settings.side],
        }
        record.digest = hashlib.sha256(item.picture).hexdigest()
        if settings.duplicates == "near":
            import imagehash

            record.near = str(imagehash.phash(fitted.picture))
    members["txt"] = item.caption.encode()
    members["json"] = json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()
    return members


def _scores(columns: Mapping[str, Any], filters: tuple[Filter, ...]) -> dict[str, float]:
    """Numbers for the report's histograms: the columns of the filters, then other columns with floats."""
    filtered = {each.column for each in filters if each.foreign}
    names = sorted(filtered) + sorted(
        name for name, value in columns.items() if isinstance(value, float) and name not in filtered
    )
    scores = {name: as_number(columns.get(name)) for name in names[:MAX_SCORES]}
    return {name: value for name, value in scores.items() if value is not None}


def _original(opened: Opened, columns: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width before any resizing: those recorded by img2dataset, else those of the file."""
    height, width = columns.get("original_height"), columns.get("original_width")
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return opened.height, opened.width


def small_jpeg(data: bytes) -> str:
    """A thumbnail in base64; empty if the picture cannot be decoded, since it is only for the report."""
    try:
        return base64.b64encode(thumbnail(decode(open_picture(data), 64)[0])).decode()
    except Exception:
        return ""
