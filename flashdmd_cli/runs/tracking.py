"""Metrics of a run: one JSON line per logged step, and TensorBoard events if TensorBoard is installed."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.runs.errors import WriteError
from flashdmd_cli.runs.files import write_text_atomically, writing

METRICS, COSTS = "metrics.jsonl", "costs.jsonl"


class Tracker:
    """Appends metrics to `folder/metrics.jsonl`, costs to `folder/costs.jsonl`, and both to `folder/tensorboard`.

    `start` is the first step that this process will log (0: a new run). Rows at or after it, and a line cut short by
    a crash, are dropped when the tracker opens, so a resumed run leaves the same metrics as an uninterrupted one. Costs
    (seconds, memory) differ from run to run, which is why they have a file of their own.
    """

    def __init__(self, folder: Path, start: int = 0, writes: bool = True) -> None:
        """`writes` is false in a process that leaves it to another."""
        self._files: dict[Path, TextIO] = {}
        self._board: _Board | None = None
        if not writes:
            return
        for path in (folder / METRICS, folder / COSTS):
            kept = [json.dumps(row) + "\n" for row in _rows(path) if row["step"] < start]
            write_text_atomically(path, "".join(kept))
            with writing(path):
                self._files[path] = path.open("a", encoding="utf-8")
        self._board = _board(folder / "tensorboard", start)

    def log(self, step: int, metrics: dict[str, float], costs: dict[str, float] | None = None) -> None:
        """Write the metrics and costs of `step`. A number that is not finite is null, for JSON knows no NaN."""
        for (path, file), values in zip(self._files.items(), (metrics, costs), strict=False):
            if values is None:
                continue
            row = {"step": step} | {key: value if math.isfinite(value) else None for key, value in values.items()}
            with writing(path):
                file.write(json.dumps(row) + "\n")
                file.flush()
        if self._board is not None:
            self._board.log(step, metrics | (costs or {}))

    def close(self) -> None:
        """Close all files; closing twice is allowed. Raises `WriteError` if the last rows cannot be written."""
        with ExitStack() as stack:
            for path, file in self._files.items():
                stack.enter_context(writing(path))
                stack.callback(file.close)
            if self._board is not None:
                stack.callback(self._board.close)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(WriteError) if error is not None else nullcontext():  # what ended the run is reported
            self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `folder/metrics.jsonl`, oldest first; reading ends at the first line that is not whole."""
    return _rows(folder / METRICS)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(parse_json(line))
            except ValueError:
                break
    return rows


class _Board:
    """Writes scalars for TensorBoard, in this thread.

    torch's `SummaryWriter` writes in a thread of its own, which prints a traceback when the disk is full. Raises
    ImportError if TensorBoard is not installed, `WriteError` if its file cannot be written.
    """

    def __init__(self, folder: Path, start: int) -> None:
        """`start`: the first step to be logged; TensorBoard hides events of earlier processes from there on."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(self.path.open("wb"))
        self._write(step=start, file_version="brain.Event:2")
        self._write(step=start, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the values of one step by name."""
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=self._summary(value=scalars))

    def _write(self, **fields: Any) -> None:
        with writing(self.path):
            self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
            self._records.flush()

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        with writing(self.path):
            self._records.close()


def _board(folder: Path, start: int) -> _Board | None:
    """The writer for TensorBoard in `folder`; None if TensorBoard is not installed."""
    try:
        return _Board(folder, start)
    except ImportError:
        return None
