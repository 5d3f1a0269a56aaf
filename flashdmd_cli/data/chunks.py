"""One chunk of a source becomes one shard: fetch, filter, decode, fit, encode, write. The heart of `prepare-data`."""

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
"""Rejected pictures of a chunk that are kept small for the report, for each reason."""
MAX_SHARD_SIZE = 1_000_000
"""A sample's number in its chunk has six digits."""
MAX_SCORES = 12
"""Columns of numbers whose distribution the report draws."""


class Stopped(Exception):
    """A stop was asked for in the middle of a chunk; what was written of it is gone."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides about the bytes of a shard, beside the rows."""

    side: int  # of the square pictures, in pixels
    encoding: Encoding
    filters: tuple[Filter, ...] = ()
    duplicates: Duplicates = "exact"
    keep_prompts: bool = False  # note captions in the records: a list of prompts is wanted

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
    """What is known of one row, kept or not. Fields stay empty where the row did not come so far."""

    source: str
    reason: str = ""
    detail: str = ""
    width: int = 0
    height: int = 0
    caption_length: int = 0
    digest: str = ""
    """SHA-256 of the picture file, or of the prompt where it stands alone."""
    near: str = ""
    """Perceptual hash of the fitted picture, 64 bits in hexadecimal."""
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
    """Where a chunk's samples lie."""
    return folder / f"pictures-{chunk:06d}.tar"


def sample_key(chunk: int, place: int) -> str:
    """Name of a sample: safe and unique whatever the source calls it; `source` in its JSON tells that."""
    return f"{chunk:06d}-{place:06d}"


def record_path(folder: Path, chunk: int) -> Path:
    """Where a chunk's records lie. They are written last: a chunk with records is finished."""
    return folder / f"records-{chunk:06d}.jsonl"


def read_records(folder: Path, chunk: int) -> Iterator[Record]:
    """The records of a finished chunk, row by row."""
    with record_path(folder, chunk).open(encoding="utf-8") as file:
        for line in file:
            yield Record(**json.loads(line))


def process_chunk(
    chunk: int, rows: list[Row], source: Source, settings: Settings, folder: Path,
    tick: Callable[[int], None] = lambda num: None, stop: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Write a chunk's shard (if anything is kept) and its records into `folder`.

    `tick` is told of every finished row. Raises `Stopped` between two rows once `stop` says so.
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
    """Chunk k of the plan becomes shard k: a `Job` of `runs.workers`, which travels to worker processes."""

    plan: Plan
    source: Source
    settings: Settings
    folder: Path

    def start(self, number: int) -> None:
        """Nothing to load."""

    def run(self, task: int, tick: Callable[[int], None], stop: Callable[[], bool]) -> None:
        """Make shard `task`, or nothing of it when `stop` says so."""
        with suppress(Stopped):
            process_chunk(task, self.plan.chunk(task), self.source, self.settings, self.folder, tick, stop)


def examine(row: Row, source: Source, settings: Settings, wanted: Wanted) -> tuple[Record, Members | None]:
    """What becomes of one row: its record, and its members unless it was rejected."""
    record = Record(printable(str(row["source"])))
    item: Item | None = None
    try:
        if "reason" in row:
            raise Rejected(row["reason"], row.get("detail", ""))
        item = source.fetch(row)
        return record, _members(item, settings, record)
    except Exception as error:  # no row ends a preparation, whatever a decoder or a plug-in of Pillow does
        rejected = (
            error if isinstance(error, Rejected) else Rejected("failed", f"{type(error).__name__}: {error}"[:200])
        )
        record.reason, record.detail = rejected.reason, rejected.detail
        if item is not None and item.picture is not None and wanted(rejected.reason):
            record.thumb = small_jpeg(item.picture)
        return record, None


def _members(item: Item, settings: Settings, record: Record) -> Members:
    """The pipeline of one item; notes in `record` what it learns on the way. Cheap questions are asked first."""
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
    """Numbers for the report's histograms: what the filters look at, then whatever else is a fraction."""
    asked = {each.column for each in filters if each.foreign}
    names = sorted(asked) + sorted(
        name for name, value in columns.items() if isinstance(value, float) and name not in asked
    )
    found = {name: as_number(columns.get(name)) for name in names[:MAX_SCORES]}
    return {name: value for name, value in found.items() if value is not None}


def _original(opened: Opened, columns: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width before anyone resized it: img2dataset notes them; else those of the file."""
    height, width = columns.get("original_height"), columns.get("original_width")
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return opened.height, opened.width


def small_jpeg(data: bytes) -> str:
    """For the report only, so whatever goes wrong here is no matter."""
    try:
        return base64.b64encode(thumbnail(decode(open_picture(data), 64)[0])).decode()
    except Exception:
        return ""
