"""Requests for pictures, drawn one after the other by the thread that loaded the networks."""

from __future__ import annotations

import base64
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from flashdmd_cli.runs.errors import FlashDMDError, UsageError
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.workflows.inputs.drawer import Drawer

MAX_WAITING = 32
"""Requests that wait; more are refused."""
MAX_SEED = 2**53 - 1
"""The largest integer that JavaScript represents exactly."""
POLL_SECONDS = 0.2
"""How often the waiting thread looks for a request to stop."""


class Busy(FlashDMDError):
    """Too many requests wait, or the server has been stopped."""


@dataclass
class Job:
    """A picture to draw."""

    ticket: str
    """Chosen by the browser, to recognise its request in `Studio.state`."""
    number: int
    """Which of the models."""
    drawer: Drawer
    """The model, with the number of steps that was asked for."""
    prompt: str
    seed: int
    done: int = 0
    """Steps that are finished."""
    answer: Future[dict[str, Any]] = field(default_factory=Future)


class Studio:
    """Draws with several loaded models, one picture at a time, so that memory and measured times are those of one."""

    def __init__(self, drawers: Sequence[Drawer], reporter: Reporter) -> None:
        self.drawers, self.reporter = drawers, reporter
        self._jobs: queue.Queue[Job] = queue.Queue(MAX_WAITING)
        self._current: Job | None = None
        self._is_stopped = False

    def draw(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request: the picture as PNG (base64), its seconds and its settings. Waits for its turn.

        Raises `UsageError` for a wrong value, `Busy` if too many wait or the studio is stopped, and the errors of
        drawing.
        """
        job = self.parse(values)
        try:
            if self._is_stopped:
                raise queue.Full
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy("busy: too many requests are waiting", hint="try again later") from None
        return job.answer.result()

    def parse(self, values: Mapping[str, Any]) -> Job:
        """The job of a request; UsageError, in one line that starts with the field, for a wrong value."""
        from flashdmd_cli.data.items import Rejected, meaning
        from flashdmd_cli.data.reading import check_caption

        number, seed = _integer(values, "model", len(self.drawers) - 1), _integer(values, "seed", MAX_SEED)
        try:
            prompt = check_caption(values.get("prompt"))
        except Rejected as rejected:
            reason = "is empty" if rejected.reason == "no_caption" else f"is {meaning(rejected.reason)}"
            raise UsageError(f"prompt: {reason}", hint="type what to draw") from None
        drawer = self.drawers[number]
        if values.get("steps") is not None:
            steps = _integer(values, "steps", 1000)
            try:
                drawer = drawer.with_steps(steps)
            except UsageError as error:  # of `sample --steps`
                raise UsageError(error.message.replace(f"--steps {steps}", "steps", 1)) from None
        return Job(str(values.get("ticket", ""))[:64], number, drawer, prompt, seed)

    def state(self) -> dict[str, Any]:
        """What is being drawn, and the tickets of what waits, in order."""
        current, waiting = self._current, [job.ticket for job in list(self._jobs.queue)]
        drawing = current and {"ticket": current.ticket, "done": current.done, "steps": current.drawer.steps}
        return {"drawing": drawing, "waiting": waiting}

    def work(self) -> None:
        """Draw what is requested until a stop is requested, which raises `StopSignal` here."""
        try:
            while True:
                self.reporter.stop.check()
                try:
                    self._current = self._jobs.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    continue
                self._answer(self._current)
                self._current = None
        finally:
            self._is_stopped = True
            left = [] if self._current is None else [self._current]
            while not self._jobs.empty():
                left.append(self._jobs.get_nowait())
            for job in left:
                _fail(job, Busy("stopped: the program that draws has ended", hint="start it again in its terminal"))

    def _answer(self, job: Job) -> None:
        """Draw one picture. An error belongs to the request and does not end the server."""
        try:
            job.answer.set_result(self._draw(job))
        except Exception as error:
            _fail(job, error)
            self.reporter.stop.check()  # of a library that caught the signal
            self.reporter.say(f"{job.drawer.name}, seed {job.seed}: {error}")

    def _draw(self, job: Job) -> dict[str, Any]:
        import torch

        from flashdmd_cli.evaluation.generate import NoiseKey
        from flashdmd_cli.evaluation.metrics.metric import Row
        from flashdmd_cli.evaluation.pictures import png
        from flashdmd_cli.runs.device import seconds_of
        from flashdmd_cli.workflows.sample import description, prompt_warnings

        def count(num: int) -> None:
            job.done += num
            self.reporter.stop.check()

        drawer, device = job.drawer, torch.device(job.drawer.place.device)
        began = seconds_of(device)
        (picture,) = drawer.draw_from(job.seed, [job.prompt], 0, step=count, keys=[NoiseKey(job.seed)])
        seconds = seconds_of(device) - began
        data = png(picture, description(drawer)(Row(0, job.prompt, sample=job.seed)))
        self.reporter.say(f"{drawer.name}, seed {job.seed}, {drawer.steps} steps: {seconds:.3g} s")
        return {
            "png": base64.b64encode(data).decode("ascii"),
            "seconds": seconds,
            "steps": drawer.steps,
            "seed": job.seed,
            "warnings": prompt_warnings(drawer, [job.prompt]),
        }


def _fail(job: Job, error: Exception) -> None:
    try:
        job.answer.set_exception(error)
    except InvalidStateError:
        pass  # answered before


def _integer(values: Mapping[str, Any], name: str, most: int) -> int:
    """The integer from 0 to `most` in a field of a request; UsageError for anything else."""
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise UsageError(f"{name}: must be an integer from 0 to {most}")
    return value
