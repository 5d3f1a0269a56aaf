"""Metrics of a run: one JSON line per logged step, and TensorBoard events if TensorBoard is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from flashdmd_cli.runs.files import write_text_atomically, writing

METRICS = "metrics.jsonl"


class Tracker:
    """Appends metrics to `folder/metrics.jsonl` and `folder/tensorboard`.

    `start` is the first step that this process will log (0: a new run). Rows from that step on, and a line truncated by
    a crash, are deleted on opening, so that a resumed run writes the same file as an uninterrupted one.
    """

    def __init__(self, folder: Path, start: int = 0, writes: bool = True) -> None:
        """`writes` is false if another process writes the metrics."""
        self._stream: TextIO | None = None
        self._board: Any = None
        if not writes:
            return
        self.path = folder / METRICS
        kept = [json.dumps(row) + "\n" for row in read_metrics(folder) if row["step"] < start]
        write_text_atomically(self.path, "".join(kept))
        with writing(self.path):
            self._stream = self.path.open("a", encoding="utf-8")
        self._board = _tensorboard(folder / "tensorboard", start)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of `step`. Non-finite values are written as null, because JSON has no NaN."""
        if self._stream is None:
            return
        row = {"step": step} | {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        with writing(self.path):
            self._stream.write(json.dumps(row) + "\n")
            self._stream.flush()
        if self._board is not None:
            for key, value in metrics.items():
                self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Close both files; closing twice is allowed."""
        if self._stream is not None:
            self._stream.close()
        if self._board is not None:
            self._board.close()
            self._board = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `folder/metrics.jsonl`, oldest first, up to the first incomplete line."""
    path = folder / METRICS
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def _tensorboard(folder: Path, start: int) -> Any:
    """A TensorBoard writer that hides events from `start` on, or None when TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start)
