"""The training loop of both stages: resume, iterate, log metrics, check tripwires, save states, render previews."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from flashdmd_cli.data.shards import Batch
from flashdmd_cli.families.base import View
from flashdmd_cli.runs.checkpoint import latest_state, state_folder
from flashdmd_cli.runs.device import peak_memory
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.signals import StopFlag, StopSignal
from flashdmd_cli.runs.state_writer import StateWriter
from flashdmd_cli.runs.tracking import Tracker
from flashdmd_cli.runs.world import World
from flashdmd_cli.training.collapse import CollapseProbe
from flashdmd_cli.training.probe import Probe
from flashdmd_cli.training.state import State


class Data(Protocol):
    """Captioned pictures in an endless shuffled stream."""

    def batch(self, positions: range, seed: int = 0) -> Batch:
        """The pictures at `positions` of the stream; each depends only on its position and the seed."""


@dataclass(frozen=True)
class Watch:
    """Callbacks of a run."""

    progress: Callable[[int, dict[str, float]], None]
    """(finished iterations, metrics)."""
    warn: Callable[[str], None]
    preview: Callable[[View, View, int, Sequence[str]], None]
    """(student, student before training, finished iterations, all warnings so far); called in the main process, and in
    all if the networks are sharded: the others have to compute the same, and to write nothing."""
    """(student, student before training, finished iterations, all warnings so far)."""
    page: Callable[[int, Sequence[str], bool], None] = lambda *_: None
    """(finished iterations, all warnings so far, whether the run has ended); after every iteration, and at the end."""


def on_cpu(tensors: dict[str, Tensor]) -> bool:
    """Whether all tensors are in main memory."""
    return all(tensor.device.type == "cpu" for tensor in tensors.values())


class Undo:
    """Lets a signal interrupt a training iteration on a CPU, where one may take a minute.

    All that an iteration changes is copied before, into memory that is reused, and restored after a signal. On an
    accelerator iterations are short and memory is scarce, so there a signal takes effect after the iteration.
    """

    def __init__(
        self,
        stop: StopFlag,
        contents: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]],
        take: Callable[[dict[str, Tensor], dict[str, Any]], None],
        alone: bool = True,
    ) -> None:
        """`contents` returns the live tensors and the JSON-serialisable counters of a run, `take` restores them.

        `alone` is false in a run of several processes: there an iteration is never interrupted, because the other
        processes would wait for this one.
        """
        self.stop, self.contents, self.take, self.alone = stop, contents, take, alone
        self.backup: dict[str, Tensor] = {}

    @contextmanager
    def round(self) -> Iterator[None]:
        """Context of one iteration, inside `stop.postponed()`; after a `StopSignal` the run is as it was before."""
        tensors, meta = self.contents()
        can_restore = self.alone and on_cpu(tensors)
        if can_restore:
            # Names may be new: the optimizers have no moments before their first step.
            self.backup = {name: self.backup.get(name, torch.empty_like(tensor)) for name, tensor in tensors.items()}
            for name, tensor in tensors.items():
                self.backup[name].copy_(tensor)
            meta = deepcopy(meta)
        try:
            with self.stop.answering(can_restore):
                yield
        except StopSignal:
            self.take(self.backup, meta)
            raise


def run(
    recipe: Recipe,
    state: State,
    iteration: Callable[[], dict[str, float]],
    out: Path,
    watch: Watch,
    stop: StopFlag,
    collapse: CollapseProbe | None = None,
) -> State:
    """Call `iteration`, which changes `state` and returns metrics, until `recipe.train.iterations` are done.

    Resumes from the latest state in `out`. Ends early if `stop` was requested, or on a collapse with
    `probe.stop_on_collapse`; the state is then saved, unless no iteration was finished. Random numbers depend only on
    counters in the state, so no generator has to be restored.
    """
    train, world, saved = recipe.train, state.world, latest_state(out / "state")
    require_same(world, saved, out)
    if saved is not None:
        state.load(saved)
    began, seconds = time.monotonic(), state.seconds
    states = StateWriter(world, train.keep_states, train.async_save)

    def ended() -> bool:
        # Asked of all processes: rounding may let one see a collapse, or a signal reach one alone.
        collapsed = recipe.probe.stop_on_collapse and "collapsed" in state.probe
        return share_stop(world, stop, collapsed) or state.iteration >= train.iterations

    def save() -> None:
        states.save(state_folder(out / "state", state.iteration), *state.contents())

    def preview() -> None:
        if not (world.is_main or state.is_sharded):
            return
        # An interrupted preview is drawn when the run is resumed; the loop ends at its next check. Of sharded networks,
        # all processes draw, so none may stop alone.
        with suppress(StopSignal), stop.answering(not state.is_sharded):
            watch.preview(state.shipped, state.start, state.iteration, state.probe.get("warnings", []))

    def preview_is_due() -> bool:
        if train.preview_every is None:
            return False
        return state.iteration % train.preview_every == 0 or state.iteration == train.iterations

    with world.contact(), stop.postponed(), states:
        with Tracker(out, state.iteration, world.is_main) as tracker, suppress(StopSignal):
            if preview_is_due():  # at iteration 0, and in a run that was interrupted during a preview
                preview()
            if state.iteration == 0 and collapse is not None:
                with stop.answering(world.size == 1):
                    collapse.begin(state)
            probe = Probe(state.probe, recipe.bands, train.batch)
            undo = Undo(stop, state.contents, state.take, world.size == 1)
            while not ended():
                with undo.round():
                    metrics = iteration()
                    state.follow_average(recipe)
                    state.iteration += 1
                    state.images_seen += train.batch
                    before, state.seconds = state.seconds, seconds + time.monotonic() - began
                    costs = {
                        "seconds_per_kimg": (state.seconds - before) / train.batch * 1000,
                        "memory_gb": peak_memory(state.student.net.base.device) / 1e9,
                    }
                    warnings = probe.check(metrics)
                    probed = collapse is not None and collapse.is_due(state.iteration, train.iterations)
                    if collapse is not None and probed:
                        probe_metrics, warning = collapse.check(state)
                        metrics |= probe_metrics
                        warnings += [warning] if warning else []
                for warning in warnings if world.is_main else ():
                    watch.warn(warning)
                # Counted from the first iteration, which updates the student for any TTUR.
                if probed or (state.iteration - 1) % train.log_every == 0:
                    tracker.log(state.iteration - 1, metrics, costs)
                if world.is_main:
                    watch.progress(state.iteration, metrics)
                    watch.page(state.iteration, state.probe.get("warnings", []), False)
                if state.iteration % train.save_every == 0 or state.iteration == train.iterations:
                    save()
                if preview_is_due():
                    preview()
        if 0 < state.iteration < train.iterations:
            save()
            if not share_stop(world, stop):
                # A collapse: what one wants to see now.
                preview()
        if world.is_main and state.iteration:
            watch.page(state.iteration, state.probe.get("warnings", []), True)
    share_stop(world, stop)  # all end alike, after the main process has saved
    return state


def require_same(world: World, state: Path | None, out: Path) -> None:
    """Raise InputError if the processes would resume from different states. A collective call."""
    if len(set(world.gather(state and state.name))) > 1:
        raise InputError(f"--out {out}: the processes found different states", hint="use a folder that all of them see")


def share_stop(world: World, stop: StopFlag, ends: bool = False) -> bool:
    """Whether a stop was requested of any process, or one of them `ends`; a stop is then requested of all.

    A collective call.
    """
    found = world.gather((stop.requested, ends))
    number = next((number for number, _ in found if number is not None), None)
    if number is not None and stop.requested is None:
        stop.request(number)
    return number is not None or any(each for _, each in found)
