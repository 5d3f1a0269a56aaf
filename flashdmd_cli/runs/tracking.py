"""Metrics of a run: one JSON line per logged step, and TensorBoard events if TensorBoard is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from flashdmd_cli.core.parsing import parse_json
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
        self._board: Any = None
        if not writes:
            return
        for path in (folder / METRICS, folder / COSTS):
            kept = [json.dumps(row) + "\n" for row in _rows(path) if row["step"] < start]
            write_text_atomically(path, "".join(kept))
            with writing(path):
                self._files[path] = path.open("a", encoding="utf-8")
        self._board = _tensorboard(folder / "tensorboard", start)

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
            for key, value in (metrics | (costs or {})).items():
                self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Close all files; closing twice is allowed."""
        for file in self._files.values():
            file.close()
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


def _tensorboard(folder: Path, start: int) -> Any:
    """A TensorBoard writer that hides events from `start` on, or None when TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start)
