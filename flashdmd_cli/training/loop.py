"""What both stages do around an iteration: go on from the newest state, log, watch for trouble, save, preview."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from flashdmd_cli.data.shards import Batch
from flashdmd_cli.runs.checkpoint import latest_state, state_folder
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import Tracker
from flashdmd_cli.training.collapse import CollapseProbe
from flashdmd_cli.training.probe import Probe
from flashdmd_cli.training.state import State


class Data(Protocol):
    """Captioned pictures in an order that is a function of (seed, step)."""

    def batch(self, step: int, rank: int = 0, world: int = 1, batch: int = 1, seed: int = 0) -> Batch: ...


@dataclass(frozen=True)
class Watch:
    """What a run tells the outside: figures, a warning, a student to preview with all warnings so far."""

    progress: Callable[[int, dict[str, float]], None]
    warn: Callable[[str], None]
    preview: Callable[[nn.Module, int, Sequence[str]], None]


def run(
    recipe: Recipe,
    state: State,
    iteration: Callable[[], dict[str, float]],
    out: Path,
    watch: Watch,
    stop: StopFlag,
    collapse: CollapseProbe | None = None,
) -> State:
    """Repeat `iteration`, which changes `state` and returns figures, until the recipe's number of them is done.

    Begins where the newest state in `out` ends. Returns early, with the state saved, if `stop` was requested or a
    collapse is to end the run. The state's random draws depend on its counters alone, so nothing else is restored.
    """
    saved = latest_state(out / "state")
    if saved is not None:
        state.load(saved)
    train, began, seconds = recipe.train, time.monotonic(), state.seconds

    def ended() -> bool:
        collapsed = recipe.probe.stop_on_collapse and "collapsed" in state.probe
        return state.iteration >= train.iterations or stop.requested is not None or collapsed

    with Tracker(out, start=state.iteration) as tracker:
        probe = Probe(state.probe, recipe.bands)
        if state.iteration == 0:
            watch.preview(state.shipped_student(), 0, [])
            if collapse is not None:
                collapse.begin(state)
        while not ended():
            figures = iteration()
            state.follow_average(recipe)
            state.iteration += 1
            state.images_seen += train.batch
            state.seconds = seconds + time.monotonic() - began
            warnings = probe.check(figures)
            probed = collapse is not None and collapse.is_due(state.iteration, train.iterations)
            if collapse is not None and probed:
                told, warning = collapse.look(state)
                figures |= told
                warnings += [warning] if warning else []
            for warning in warnings:
                watch.warn(warning)
            # Counted from the first iteration, which is a student's turn whatever the TTUR.
            if probed or (state.iteration - 1) % train.log_every == 0:
                tracker.log(state.iteration - 1, figures)
            watch.progress(state.iteration, figures)
            if state.iteration % train.save_every == 0 or state.iteration == train.iterations:
                state.save(state_folder(out / "state", state.iteration))
            if state.iteration % train.preview_every == 0 or state.iteration == train.iterations:
                watch.preview(state.shipped_student(), state.iteration, state.probe.get("warnings", []))
    if state.iteration < train.iterations:
        state.save(state_folder(out / "state", state.iteration))
        if stop.requested is None:
            # A collapse: what one wants to see now.
            watch.preview(state.shipped_student(), state.iteration, state.probe.get("warnings", []))
    return state
