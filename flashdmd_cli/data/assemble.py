"""Last stage of a preparation, in one process and constant memory: removes duplicates, moves shards, counts rows."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashdmd_cli.data.chunks import Record, Settings, read_records, sample_key, shard_path, small_jpeg
from flashdmd_cli.data.seen import Seen, SeenNear, scratch
from flashdmd_cli.data.whole import read_tar, whole, write_tar

REJECTED, PROMPTS = "rejected.jsonl", "prompts.jsonl"
MAX_SHOWN = 36
"""Maximum number of rejected pictures in the report."""


class Histogram:
    """Counts of values, rounded to three significant digits, which bounds the number of entries."""

    def __init__(self) -> None:
        self.kept: Counter[float] = Counter()
        self.rejected: Counter[float] = Counter()

    def add(self, value: float, kept: bool) -> None:
        """Count a value of a kept or of a rejected row."""
        (self.kept if kept else self.rejected)[float(f"{value:.3g}")] += 1


@dataclass
class RejectedPicture:
    """A rejected picture for the report."""

    source: str
    reason: str
    jpeg: bytes


@dataclass
class Summary:
    """Statistics of a preparation."""

    seen: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    shards: list[str] = field(default_factory=list)
    content: str = ""
    """SHA-256 over the digests of all kept pictures, which does not depend on the location of the source."""
    histograms: dict[str, Histogram] = field(default_factory=dict)
    rejected_pictures: list[RejectedPicture] = field(default_factory=list)

    def count(self, record: Record) -> None:
        """Add one row."""
        kept = not record.reason
        self.seen += 1
        self.kept += kept
        if not kept:
            self.rejected[record.reason] += 1
        else:
            self.notes.update(record.notes)
        values = dict(record.scores)
        if record.width and record.height:
            values |= {"short side": min(record.width, record.height), "aspect": record.width / record.height}
        if record.caption_length:
            values["caption length"] = record.caption_length
        for name, value in values.items():
            if math.isfinite(value):
                self.histograms.setdefault(name, Histogram()).add(value, kept)
        if record.thumb and len(self.rejected_pictures) < MAX_SHOWN:
            self.rejected_pictures.append(RejectedPicture(record.source, record.reason, base64.b64decode(record.thumb)))


def assemble(num_chunks: int, settings: Settings, work: Path, out: Path) -> Summary:
    """Turn the finished chunks in `work` into shards in `out`, with `rejected.jsonl` and optionally `prompts.jsonl`.

    Of duplicates, the first in the order of the source is kept. All results are recomputed from the records, so an
    interrupted call can be repeated.
    """
    summary, content = Summary(), hashlib.sha256()
    with (
        scratch(work / "seen.sqlite") as connection,
        whole(out / REJECTED, work) as rejected_path,
        whole(out / PROMPTS, work) as prompts_path,
        # Lone surrogates, from names that are not UTF-8, are written as JSON escapes.
        rejected_path.open("w", encoding="utf-8", errors="backslashreplace") as rejected,
        prompts_path.open("w", encoding="utf-8", errors="backslashreplace") as prompts,
    ):
        exact, near = Seen(connection, "digests"), SeenNear(connection)
        for chunk in range(num_chunks):
            records = list(read_records(work, chunk))
            dropped: dict[str, Record] = {}
            for place, record in enumerate(records):
                if not record.reason and (reason := _duplicate(record, settings, exact, near)):
                    record.reason = reason
                    dropped[sample_key(chunk, place)] = record
            kept = [record for record in records if not record.reason]
            if kept:
                summary.shards.append(shard_path(out, chunk).name)
            _publish(chunk, dropped, bool(kept), work, out)
            for record in records:
                summary.count(record)
                if not record.reason:
                    content.update(bytes.fromhex(record.digest))
                else:
                    row = {"source": record.source, "reason": record.reason, "detail": record.detail}
                    rejected.write(_json_line(row))
                # The prompt is kept even if its picture is rejected, because a suite has a fixed number of prompts.
                if record.caption and not record.reason.endswith("duplicate"):
                    prompts.write(_json_line(record.columns | {"source": record.source, "prompt": record.caption}))
    if not settings.keep_prompts:
        (out / PROMPTS).unlink()
    summary.content = content.hexdigest()
    return summary


def _json_line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def _duplicate(record: Record, settings: Settings, exact: Seen, near: SeenNear) -> str:
    """The reason to reject a row as a duplicate; empty if it is none."""
    if settings.duplicates == "keep":
        return ""
    if not exact.add(bytes.fromhex(record.digest)):
        return "duplicate"
    if record.near:
        value = int(record.near, 16)
        if near.near(value):
            return "near_duplicate"
        near.add(value)
    return ""


def _publish(chunk: int, dropped: dict[str, Record], kept: bool, work: Path, out: Path) -> None:
    """Move the shard of a chunk from `work` to `out`, without the dropped samples."""
    made, final = shard_path(work, chunk), shard_path(out, chunk)
    if not made.is_file():
        return  # nothing was kept, or an interrupted call moved it already
    if not dropped:
        os.replace(made, final)
        return
    for key, members in read_tar(made):
        if key in dropped:
            picture = next((data for kind, data in members.items() if kind not in ("txt", "json")), None)
            dropped[key].thumb = small_jpeg(picture) if picture else ""
    if kept:
        with whole(final, work) as temporary:
            write_tar(temporary, (sample for sample in read_tar(made) if sample[0] not in dropped))
    made.unlink()
