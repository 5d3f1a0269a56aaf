"""The first phase of an evaluation: the pictures of a suite on disk, from any number of processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.runs.errors import NumericalError, UsageError
from flashdmd_cli.runs.files import write_text_atomically, writing
from flashdmd_cli.runs.reporter import Reporter, counted
from flashdmd_cli.runs.workers import Stop, Tick, run_tasks
from flashdmd_cli.workflows.inputs.drawer import Drawer

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.generate import NoiseKey
    from flashdmd_cli.evaluation.metrics.metric import Row
    from flashdmd_cli.evaluation.suites.suite import Suite

PROMPTS, TIMES = "prompts.jsonl", "times.jsonl"
CPU_PART = 4
"""Pictures that are drawn on a CPU before they are written: at most so many are lost by an interruption."""


@dataclass
class DrawJob:
    """Draws parts of a suite, in this process or in a worker process.

    On a CPU each picture goes through the network alone: the last bits of a matrix product depend on its shape, so that
    a picture is the same whatever the batch and the processes only if its shape never changes. On an accelerator that
    would be several times slower; there the whole part is one batch.
    """

    load: Callable[[], Drawer]
    suite: str
    seed: int
    parts: Sequence[Sequence[Row]]
    folder: Path
    threads: int

    def start(self, number: int) -> None:
        import torch

        torch.set_num_threads(self.threads)
        self.drawer = self.load()

    def run(self, task: int, tick: Tick, stop: Stop) -> None:
        import torch

        from flashdmd_cli.evaluation.folder import write_part
        from flashdmd_cli.evaluation.generate import NoiseKey
        from flashdmd_cli.runs.device import peak_memory, seconds_of

        part, device = self.parts[task], torch.device(self.drawer.place.device)
        keys = [NoiseKey(self.seed + row.sample, purpose=f"{self.suite}/{row.prompt_id}") for row in part]
        began = seconds_of(device)
        prompts, batch = [row.prompt for row in part], 1 if device.type == "cpu" else len(part)
        reported = 0

        def progress(done: int, _: int) -> None:
            nonlocal reported
            tick(done - reported)
            reported = done

        try:
            pictures = self.drawer.draw_from(self.seed, prompts, part[0].index, progress, keys=keys, batch=batch)
        except NumericalError:
            pictures = self.draw_singly(part, keys)
        seconds = seconds_of(device) - began
        write_part(part, pictures, self.folder)
        note = {"pictures": len(part), "seconds": round(seconds, 6), "memory": peak_memory(device)}
        with writing(self.folder), (self.folder / TIMES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")
        if reported < len(part):  # some were not finite, and drawn again
            tick(len(part) - reported)

    def draw_singly(self, part: Sequence[Row], keys: Sequence[NoiseKey]) -> Tensor:
        """The pictures of a part, each by itself, NaN in place of those that are not finite.

        The error of the last one where no picture of this part, and none before it, is finite: such weights are no use,
        and drawing on would only take time.
        """
        import torch

        from flashdmd_cli.evaluation.folder import picture_path

        drawn: dict[int, Tensor] = {}
        failure: NumericalError | None = None
        for i, (row, key) in enumerate(zip(part, keys, strict=True)):
            try:
                drawn[i] = self.drawer.draw_from(self.seed, [row.prompt], row.index, keys=[key], batch=1)[0]
            except NumericalError as error:
                failure = error
        if failure is None:
            return torch.stack(list(drawn.values()))
        if not drawn:
            if next(self.folder.glob(f"*{picture_path(Path(), 0).suffix}"), None) is None:
                raise failure
            return torch.full((len(part), 3, 1, 1), float("nan"))
        empty = torch.full_like(next(iter(drawn.values())), float("nan"))
        return torch.stack([drawn.get(i, empty) for i in range(len(part))])


def draw_suite(
    suite: Suite,
    drawer: Drawer,
    load: Callable[[], Drawer],
    folder: Path,
    seed: int,
    batch: int | None,
    num_processes: int,
    reporter: Reporter,
) -> Path:
    """Draw the pictures of a suite that are not there yet; returns their folder below `folder`.

    `load` loads the same drawer in another process. Raises `UsageError` for several processes on an accelerator.
    """
    import torch

    from flashdmd_cli.evaluation.folder import missing_parts

    on_cpu = drawer.place.device == "cpu"
    if num_processes > 1 and not on_cpu:
        raise UsageError(
            f"--nproc {num_processes}: the pictures are drawn on {drawer.place.device}, by one process",
            hint="leave it out, or give --device cpu",
        )
    size = batch or (CPU_PART if on_cpu else drawer.batch)
    pictures = begin_pictures(folder, suite, drawer, seed, None if on_cpu else size)
    parts = missing_parts(suite.rows, pictures, size)
    kept = len(suite.rows) - sum(map(len, parts))
    extra = sum(not row.counts for row in suite.rows)
    number = f"{len(suite.rows) - extra} pictures" + (f", and {extra} more for diversity," if extra else "")
    reporter.phase(f"drawing {number} with {drawer.name}, {counted(drawer.steps, 'step')} each", "picture")
    if kept:
        reporter.say(f"{kept} of {len(suite.rows)} pictures are in {pictures} already")
    processes = min(num_processes, max(1, len(parts)))
    done = kept

    def tick(num: int) -> None:
        nonlocal done
        done += num
        if processes > 1 and done == kept:  # they still load the networks, which is no part of the speed
            reporter.stop.check()
        else:
            reporter.progress(done, len(suite.rows))

    if processes > 1:
        reporter.say(f"starting {processes} processes, each of which loads the networks")
    tick(0)
    job = DrawJob((lambda: drawer) if processes == 1 else load, suite.name, seed, parts, pictures,
                  torch.get_num_threads())  # fmt: skip
    run_tasks(job, range(len(parts)), processes, tick)
    return pictures


def begin_pictures(folder: Path, suite: Suite, drawer: Drawer, seed: int, batch: int | None) -> Path:
    """The folder of the pictures of this suite, drawer and seed, named by all that decides them, with their prompts.

    So pictures of another drawer are never taken for these, and those of a result stay until there is another.
    """
    import torch

    from flashdmd_cli.evaluation.folder import picture_path

    rows = [
        {
            "file": picture_path(Path(), row.index).name,
            "prompt": row.prompt,
            "id": row.prompt_id,
            "seed": seed + row.sample,
            "group": row.group,
            "counts": row.counts,
        }
        for row in suite.rows
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    shape = {"threads": torch.get_num_threads()} if batch is None else {"batch": batch}
    decides = {
        "suite": suite.name,
        "seed": seed,
        **shape,
        **drawer.identity(),
        "prompts": hashlib.sha256(lines.encode()).hexdigest(),
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    pictures = folder / "pictures" / digest
    if not (pictures / PROMPTS).is_file():
        write_text_atomically(pictures / PROMPTS, lines)
    return pictures


def cost(pictures: Path) -> dict[str, Any]:
    """Seconds for each picture and peak memory while drawing, from the notes of all calls that drew them."""
    found: list[dict[str, float]] = []
    try:
        for line in (pictures / TIMES).read_text(encoding="utf-8").splitlines():
            found.append(parse_json(line))
    except (OSError, ValueError):
        pass
    num = sum(each["pictures"] for each in found)
    if not num:
        return {}
    return {
        "pictures_timed": int(num),
        "seconds_per_picture": sum(each["seconds"] for each in found) / num,
        "peak_memory_bytes": int(max(each["memory"] for each in found)),
        "cores": os.cpu_count() or 0,
    }
