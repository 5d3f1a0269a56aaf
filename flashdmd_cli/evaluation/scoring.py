"""Measures picture files in chunks and keeps what was measured, so that nothing is measured twice.

The pictures are cut into chunks of 32 in the order of the suite, whatever the batch in which they were drawn and the
number of processes, and a chunk is measured whole: so a repeated, interrupted or distributed call gives the same bits.
`measured/00012.safetensors` holds the numbers of each metric for chunk 12, with a hash of the files, the prompts and
the metric (its version, options and weights) that they belong to; numbers with another hash are measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flashdmd_cli.evaluation.intake import Look, look
from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import Backend, Metric, Row
from flashdmd_cli.evaluation.metrics.registry import metric_class
from flashdmd_cli.runs.files import replacing, sha256_file, writing
from flashdmd_cli.runs.workers import Stop, Tick

CHUNK = 32
Wanted = Sequence[tuple[str, Mapping[str, Any]]]
"""Metrics by name, with their options."""


@dataclass(frozen=True)
class Chunk:
    """What is known of one chunk of pictures."""

    looks: list[Look]
    numbers: dict[str, Tensor]
    """By metric: what it measured, a row for each picture that it takes."""
    taken: dict[str, list[int]]
    """By metric: the positions of those pictures in the chunk."""
    digests: dict[str, str] = field(default_factory=dict)
    side: int | None = None
    """The only size that was taken."""


def remake(wanted: Wanted, weights_dir: Path | None, device: str, backend: Backend = "inprocess") -> list[Metric]:
    """The metrics in another process, whose weights are on this machine by now."""
    instruments = Instruments(weights_dir, device, download=False)
    return [metric_class(name, backend)(instruments, options) for name, options in wanted]


def identity(metric: Metric) -> dict[str, Any]:
    """What decides the numbers of a metric, beside pictures and prompts."""
    return {"name": metric.name, "version": metric.version, **metric.provenance()}


def digest_of(metric: Metric, taken: Sequence[int], rows: Sequence[Row], looks: Sequence[Look]) -> str:
    """Hash of the metric, and of the pictures and prompts that it measures."""
    pictures = [(looks[i].sha256, rows[i].prompt, rows[i].group) for i in taken]
    text = json.dumps([identity(metric), pictures], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_chunk(path: Path) -> Chunk | None:
    """A chunk that was measured before; None if there is none, or its file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            numbers = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        looks = [Look(each["sha256"], each["reason"], tuple(each["notes"])) for each in json.loads(about["looks"])]
        return Chunk(looks, numbers, json.loads(about["taken"]), json.loads(about["digests"]),
                     json.loads(about["side"]))  # fmt: skip
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def write_chunk(path: Path, chunk: Chunk, metrics: Sequence[Metric]) -> None:
    """Write a chunk whole or not at all."""
    about = {
        "looks": json.dumps([asdict(each) for each in chunk.looks]),
        "taken": json.dumps(chunk.taken),
        "digests": json.dumps(chunk.digests),
        "side": json.dumps(chunk.side),
        "provenance": json.dumps({metric.name: identity(metric) for metric in metrics}, default=str),
    }
    tensors = {name: numbers.contiguous() for name, numbers in chunk.numbers.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, about))


def measure_chunk(
    metrics: Sequence[Metric], rows: Sequence[Row], paths: Sequence[Path | None], at: Path, side: int | None = None
) -> Chunk:
    """Measure the pictures of one chunk; what the file `at` holds of it already is taken from there.

    A picture that cannot be measured is left out, with the reason in its `Look`.
    """
    kept = read_chunk(at)
    looks, pixels = _looks(kept, paths, side)
    taken = {
        metric.name: [i for i, row in enumerate(rows) if not looks[i].reason and metric.takes(row)]
        for metric in metrics
    }
    digests = {metric.name: digest_of(metric, taken[metric.name], rows, looks) for metric in metrics}
    known = kept.digests if kept is not None else {}
    missing = [metric for metric in metrics if taken[metric.name] and known.get(metric.name) != digests[metric.name]]
    if missing and pixels is None:
        looks, pixels = _looks(None, paths, side)
    measured = measure_sizes(missing, rows, pixels or [], taken)
    # What other metrics measured stays for a call that asks for them again.
    old = kept or Chunk([], {}, {})
    numbers = {name: each for name, each in (old.numbers | measured).items() if taken.get(name) != []}
    chunk = Chunk(looks, numbers, old.taken | taken, known | digests, side)
    if missing or chunk.looks != old.looks or chunk.digests != old.digests or side != old.side:
        write_chunk(at, chunk, metrics)
    return chunk


def _looks(
    kept: Chunk | None, paths: Sequence[Path | None], side: int | None
) -> tuple[list[Look], list[Tensor | None] | None]:
    """What is known of each file, and its pixels; without pixels if the files are those that were looked at before."""
    if kept is not None and len(kept.looks) == len(paths) and kept.side == side:
        hashes = [sha256_file(path) if path is not None and path.is_file() else None for path in paths]
        if hashes == [each.sha256 for each in kept.looks]:
            return kept.looks, None
    both = [look(path, side) for path in paths]
    return [each for each, _ in both], [pixels for _, pixels in both]


def measure_sizes(
    metrics: Sequence[Metric],
    rows: Sequence[Row],
    pixels: Sequence[Tensor | None],
    taken: Mapping[str, Sequence[int]],
) -> dict[str, Tensor]:
    """What each metric measures of the pictures that it takes, in their order; pictures of one size at a time."""
    sizes = dict.fromkeys(tuple(each.shape) for each in pixels if each is not None)
    found: dict[str, dict[int, Tensor]] = {metric.name: {} for metric in metrics}
    for size in sizes:
        # Metrics that take the same pictures get the same tensor, by which a shared network knows it again.
        chosen: dict[tuple[int, ...], Tensor] = {}
        for metric in metrics:
            which = tuple(
                i for i in taken[metric.name] if (each := pixels[i]) is not None and tuple(each.shape) == size
            )
            if which:
                part = chosen.setdefault(which, torch.stack([each for i in which if (each := pixels[i]) is not None]))
                numbers = metric.measure(part, [rows[i] for i in which])
                found[metric.name] |= dict(zip(which, numbers, strict=True))
    return {name: torch.stack([numbers[i] for i in taken[name]]) for name, numbers in found.items() if len(numbers) > 0}


@dataclass
class ScoreJob:
    """Measures chunks, in this process or in a worker process, and notes each picture in `samples.jsonl`."""

    load: Callable[[], Sequence[Metric]]
    rows: Sequence[Row]
    paths: Sequence[Path | None]
    store: Path
    threads: int
    names: Sequence[str | None] = ()
    """Of the files, for people."""
    samples: Path | None = None
    seed: int = 0
    side: int | None = None
    """Of the only pictures that the metrics take, in pixels; None: any."""

    def start(self, number: int) -> None:
        torch.set_num_threads(self.threads)
        self.metrics = self.load()

    def run(self, task: int, tick: Tick, stop: Stop) -> None:
        part = slice(task * CHUNK, (task + 1) * CHUNK)
        rows, paths = self.rows[part], self.paths[part]
        chunk = measure_chunk(self.metrics, rows, paths, chunk_path(self.store, task), self.side)
        if self.samples is not None:
            lines = sample_lines(self.metrics, rows, self.names[part], chunk, self.seed)
            with writing(self.samples), self.samples.open("a", encoding="utf-8") as file:
                file.write("".join(lines))  # one write, so that lines of two processes do not mix
        tick(len(rows))


def chunk_path(store: Path, number: int) -> Path:
    """The file of a chunk."""
    return store / f"{number:05d}.safetensors"


def sample_lines(
    metrics: Sequence[Metric], rows: Sequence[Row], names: Sequence[str | None], chunk: Chunk, seed: int
) -> list[str]:
    """A JSON line for each picture: id of the prompt, seed, file and hash, the values of the metrics of single
    pictures, and why it was left out."""
    values: list[dict[str, float | None]] = [{} for _ in rows]
    for metric in metrics:
        scores = metric.scores(chunk.numbers[metric.name]) if metric.name in chunk.numbers else None
        if scores is not None:
            for i, score in zip(chunk.taken[metric.name], scores.tolist(), strict=True):
                values[i][metric.name] = score if abs(score) < float("inf") else None
    lines = []
    for row, name, each, scored in zip(rows, names, chunk.looks, values, strict=True):
        facts = {
            "id": row.prompt_id,
            "seed": seed + row.sample,
            "file": name,
            "sha256": each.sha256,
            "prompt": row.prompt,
            "group": row.group,
            "scores": scored,
        }
        if each.reason:
            facts["left_out"] = each.reason
        if each.notes:
            facts["notes"] = list(each.notes)
        lines.append(json.dumps(facts, ensure_ascii=False) + "\n")
    return lines


def num_chunks(rows: Sequence[Row]) -> int:
    """Into how many chunks `rows` are cut."""
    return -(-len(rows) // CHUNK)
