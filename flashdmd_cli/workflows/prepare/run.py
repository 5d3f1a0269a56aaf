"""A preparation: list the source, write shards, assemble them, write report and manifest, then the caches."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from flashdmd_cli.data.assemble import PROMPTS, REJECTED, assemble
from flashdmd_cli.data.chunks import ChunkJob, record_path
from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.filters import require_columns
from flashdmd_cli.data.index import INDEX, build_sample_index, sizes_of_files, write_index
from flashdmd_cli.data.items import Row, Source
from flashdmd_cli.data.plan import Plan, write_plan
from flashdmd_cli.data.sources import open_source
from flashdmd_cli.runs.errors import Interrupted, UsageError
from flashdmd_cli.runs.files import size, write_text_atomically
from flashdmd_cli.runs.folder import claim
from flashdmd_cli.runs.lock import hold, is_alone
from flashdmd_cli.runs.manifest import MANIFEST, Collection, FileRecord, Manifest, read_manifest, write_manifest
from flashdmd_cli.runs.signals import StopSignal
from flashdmd_cli.runs.workers import run_tasks
from flashdmd_cli.workflows.prepare.advice import advice, rejection_counts
from flashdmd_cli.workflows.prepare.caches import add_caches, refuse_too_big
from flashdmd_cli.workflows.prepare.page import write_report
from flashdmd_cli.workflows.prepare.request import Request, dimensions_of
from flashdmd_cli.workflows.prepare.workplace import Workplace

REQUEST, PLAN = "request.json", "plan.jsonl"
REPORT = "report.html"
PEEK = 50
"""Number of rows that are read to find the columns of a source."""
MESSAGE_SECONDS = 5.0
"""Interval of progress messages while a source is listed."""
MEMBERS = {"txt": "caption, UTF-8", "json": "source, original_size, crop_top_left, target_size, columns"}


@dataclass
class Preparation:
    """One call of `prepare`."""

    request: Request
    at: Workplace
    began: float = field(default_factory=time.monotonic)

    @property
    def out(self) -> Path:
        return self.at.out

    def run(self, yes: bool = False) -> Manifest | None:
        """Start or resume the preparation; returns the manifest, or None while other shares are unfinished.

        `yes`: delete the contents of `out` first. Raises `Interrupted` after a signal; finished work is kept.
        """
        try:
            return self._run(yes)
        except StopSignal:
            raise Interrupted(
                f"interrupted; finished work in {self.out} is kept",
                hint="run the same command again to resume",
                signal_number=self.at.reporter.stop.requested or signal.SIGINT,
            ) from None

    def _run(self, yes: bool) -> Manifest | None:
        refuse_other_data(self.request, self.out, yes)
        source = open_source(self.request.source, self.request.reading)
        self._look_into(source)
        claim(self.out, "data", yes, shared=not yes)
        with self.at.open():
            plan = self._list(source)
            self._drop_if_incomplete()
            if not (manifest := self._finished(plan)):
                self._make_shards(plan, source)
                if not self.at.others_too(lambda: self._finished(plan) is not None or self._all_made(plan)):
                    return None
                with self.at.alone():
                    manifest = self._finished(plan) or self._assemble(plan, source)
            if self.request.cache:
                if (cached := add_caches(self.request, self.at, manifest)) is None:
                    return None
                manifest = cached
            self.at.complete = True
        return manifest

    # -- listing ------------------------------------------------------------------------------------------------------

    def _look_into(self, source: Source) -> None:
        """Raise `DataError` if a source is empty, or lacks a column that a filter uses. Writes nothing."""
        rows = list(islice(source.rows(), PEEK))
        if not rows:
            raise DataError(
                f"SOURCE {self.request.source}: is empty", "it has to contain pictures with captions, or prompts"
            )
        require_columns(self.request.settings.filters, known_columns(rows, source), str(self.request.source))

    def _list(self, source: Source) -> Plan:
        """List the source; UsageError if options or listing differ from those that this preparation started with."""
        self.at.reporter.phase(f"listing {self.request.source}")
        # Written to a temporary name until it is verified, since other processes read the file PLAN.
        listed = self.at.work / f"{os.getpid()}.{PLAN}"
        plan = write_plan(self._rows(source), listed, self.request.shard_size, self.request.num)
        note = self.at.work / REQUEST
        asked = json.dumps({"request": self.request.identity, "listing": plan.sha256}, sort_keys=True)
        differs = note.is_file() and note.read_text(encoding="utf-8") != asked
        if differs and self._is_fruitless():
            for left in self.at.work.glob("*.jsonl"):
                if left != listed:
                    left.unlink()
            note.unlink()
            hold(self.out, shared=True)
        elif differs:
            begun = json.loads(note.read_text(encoding="utf-8"))
            hint = "--yes starts again, or choose another --out"
            if begun["request"] == self.request.identity:
                raise UsageError(
                    f"SOURCE {self.request.source}: has changed since the preparation of {self.out} was started", hint
                )
            raise UsageError(f"--out {self.out}: was started with other options", hint)
        if not note.is_file() and not (self.out / MANIFEST).is_file():
            write_text_atomically(note, asked)
        os.replace(listed, self.at.work / PLAN)
        return replace(plan, path=self.at.work / PLAN)

    def _is_fruitless(self) -> bool:
        """Whether the unfinished preparation in `out` has no shards yet, and no other process is working on it."""
        shards = (path for folder in (self.at.work, self.out) for path in folder.glob("*.tar"))
        return next(shards, None) is None and is_alone(self.out)

    def _drop_if_incomplete(self) -> None:
        """Delete the manifest of a finished result if a file is missing or truncated, so that it is made again."""
        if not (self.out / MANIFEST).is_file():
            return
        for record in read_manifest(self.out).files:
            path = self.out / record.path
            if not path.is_file() or path.stat().st_size != record.size:
                self.at.reporter.phase(f"{path} is missing or truncated: preparing again")
                (self.out / MANIFEST).unlink(missing_ok=True)
                return

    def _rows(self, source: Source) -> Iterator[Row]:
        """The source's rows, with regular progress messages, since listing may take long."""
        printed = time.monotonic()
        for number, row in enumerate(source.rows()):
            if number % 1000 == 0 and time.monotonic() - printed > MESSAGE_SECONDS:
                printed = time.monotonic()
                self.at.reporter.say(f"  {number} rows so far")
            yield row

    def _finished(self, plan: Plan) -> Manifest | None:
        """The manifest if all shards are finished, else None; UsageError if the source has changed since then."""
        if not (self.out / MANIFEST).is_file():
            return None
        manifest = read_manifest(self.out)
        if manifest.collection is None or manifest.collection.listing != plan.sha256:
            raise UsageError(
                f"SOURCE {self.request.source}: has changed since {self.out} was prepared",
                hint="--yes prepares it again, or choose another --out",
            )
        return manifest

    # -- shards -------------------------------------------------------------------------------------------------------

    def _make_shards(self, plan: Plan, source: Source) -> None:
        if self.request.cache:
            most = plan.num_rows  # an upper bound: rejected rows and repeated prompts are not known yet
            dimensions = dimensions_of(self.request, self.at.reporter)
            needed = refuse_too_big(self.out, dimensions, most, most, self.request.cache)
            self.at.reporter.phase(f"the caches will take at most {size(needed)}")
        mine = [chunk for chunk in self.at.share.of(len(plan)) if not record_path(self.at.work, chunk).is_file()]
        rows = sum(self._rows_of(plan, chunk) for chunk in mine)
        again = len(self.at.share.of(len(plan))) - len(mine)
        known = f", {again} of {again + len(mine)} shards are done already" if again else ""
        if not mine:
            return
        noun = "prompt" if source.prompts_only else "picture"
        self.at.reporter.phase(f"preparing {rows} {noun}s for {self.out}{known}", noun)
        job = ChunkJob(plan, source, self.request.settings, self.at.work)
        run_tasks(job, mine, self.at.num_processes, self.at.counter(rows))

    def _rows_of(self, plan: Plan, chunk: int) -> int:
        size = self.request.shard_size
        return min(size, plan.num_rows - chunk * size)

    def _all_made(self, plan: Plan) -> bool:
        return all(record_path(self.at.work, chunk).is_file() for chunk in range(len(plan)))

    def _assemble(self, plan: Plan, source: Source) -> Manifest:
        """Rename the shards, write report and manifest. Only one process may do this."""
        self.at.reporter.phase("counting rows and dropping duplicates")
        summary = assemble(len(plan), self.request.settings, self.at.work, self.out)
        if not summary.kept:
            raise DataError(
                f"SOURCE {self.request.source}: all {summary.seen} rows were rejected: {rejection_counts(summary)}",
                advice(summary, self.request, source.kind),
            )
        shards = [self.out / name for name in summary.shards]
        write_report(self.out / REPORT, summary, shards, str(self.request.source))
        self.at.reporter.phase("indexing the shards", "shard")
        write_index(self.out / INDEX, sizes_of_files(shards), build_sample_index(shards, self.at.reporter.progress))
        files = [*summary.shards, INDEX, REJECTED, REPORT, *([PROMPTS] if self.request.settings.keep_prompts else [])]
        pictures = not source.prompts_only
        picture = {self.request.settings.encoding: f"picture, RGB, {self.request.settings.side} px square"}
        collection = Collection(
            seen=summary.seen,
            kept=summary.kept,
            pictures=pictures,
            members=(picture if pictures else {}) | MEMBERS,
            rejected=dict(summary.rejected.most_common()),
            converted=dict(summary.notes.most_common()),
            source=f"{source.kind} {self.request.source}",
            listing=plan.sha256,
            content=summary.content,
        )
        manifest = Manifest(
            kind="data",
            files=[FileRecord(path=name) for name in files],
            recipe={"source": str(self.request.source)} | self.request.identity,
            wall_seconds=time.monotonic() - self.began,
            collection=collection,
        )
        return write_manifest(self.out, manifest)


def refuse_other_data(request: Request, out: Path, yes: bool) -> None:
    """Raise `UsageError` if `out` is the finished result of another request, or overlaps with the source."""
    if out.resolve().is_relative_to(request.source.resolve()):
        raise UsageError(f"--out {out}: is inside SOURCE", hint="choose a folder outside it")
    if request.source.resolve().is_relative_to(out.resolve()):  # --yes would empty it
        raise UsageError(f"--out {out}: SOURCE is inside it", hint="choose a folder that does not contain it")
    if yes or not (out / MANIFEST).is_file():
        return
    manifest = read_manifest(out)
    before = {key: value for key, value in manifest.recipe.items() if key != "source"}
    if manifest.kind != "data" or manifest.collection is None or before != request.identity:
        raise UsageError(f"--out {out}: holds other data", hint="--yes replaces it, or choose another folder")


def known_columns(rows: Iterable[Row], source: Source) -> set[str]:
    """Names of all columns in the rows that can be read."""
    found: set[str] = set()
    for row in rows:
        if "reason" not in row:
            try:
                found |= set(source.fetch(row).columns)
            except Exception:  # the row will be rejected later, with its reason
                continue
    return found
