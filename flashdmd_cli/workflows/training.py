"""Shared by `distill` and `align`: callbacks of the training loop, early ends, writing the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.families.registry import FAMILIES
from flashdmd_cli.runs.errors import Interrupted, NumericalError
from flashdmd_cli.runs.files import saving_weights
from flashdmd_cli.runs.manifest import (
    GridRecord,
    Kind,
    Manifest,
    Updates,
    Weights,
    hardware,
    parent_record,
    write_manifest,
)
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.runs.resume import teacher_of
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.workflows.inputs.teachers import license_of

ADAPTER = "lora/pytorch_lora_weights.safetensors"
"""The LoRA of a run that trained adapters on its teacher, with the keys of diffusers."""

if TYPE_CHECKING:
    import torch
    from torch import nn

    from flashdmd_cli.families.base import View
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.runs.world import World
    from flashdmd_cli.training.loop import Watch
    from flashdmd_cli.training.state import State


def watch_run(
    recipe: Recipe, family: Family, captions: Sequence[str], out: Path, reporter: Reporter, shown: Sequence[str],
    world: World, inputs: Sequence[Path] = (),
) -> Watch:  # fmt: skip
    """Callbacks that report progress (with the metrics in `shown`) and warnings, and write previews and run page.

    `inputs` are the result folders that the run reads.
    """
    from flashdmd_cli.evaluation.preview import Preview
    from flashdmd_cli.evaluation.run_page import RunPage
    from flashdmd_cli.training.loop import Watch

    draw, page = Preview(recipe, family, captions, out, world.is_main), RunPage(recipe, out, inputs)

    def preview(student: View, start: View, iteration: int, warnings: Sequence[str]) -> None:
        when = f"at iteration {iteration}" if iteration else "before training"
        with reporter.aside(f"drawing a preview by teacher and student {when}", "evaluation"):
            draw(student, start, iteration, reporter.progress)
        if world.is_main:
            page.write(iteration, warnings)

    def warn(text: str) -> None:
        reporter.say(f"warning: {text}")

    def progress(iteration: int, metrics: dict[str, float]) -> None:
        chosen = {name: metrics[name] for name in shown if name in metrics}
        reporter.progress(iteration, recipe.train.iterations, chosen)

    return Watch(progress, warn, preview, page.update)


def raise_if_stopped(recipe: Recipe, state: State, stop: StopFlag, out: Path) -> None:
    """Raise if a run ended early: `Interrupted` after a stop request, `NumericalError` after a collapse."""
    from flashdmd_cli.training.collapse import remedy

    done, whole = state.iteration, recipe.train.iterations
    collapsed = recipe.probe.stop_on_collapse and "collapsed" in state.probe
    if stop.requested is not None and not collapsed:
        if not done:
            raise Interrupted("interrupted before iteration 1: nothing is trained yet", signal_number=stop.requested)
        raise Interrupted(
            f"interrupted at iteration {done} of {whole}; the state is saved in {out}",
            hint="run the same command again to resume",
            signal_number=stop.requested,
        )
    if not collapsed:
        return
    collapse = state.probe["collapsed"]
    changes = ", ".join(f"{name} {change:+.0%}" for name, change in collapse["changes"].items())
    raise NumericalError(
        f"--stop-on-collapse: stopped at iteration {done} of {whole}, collapsed at {collapse['iteration']}: {changes}; "
        f"the state is saved in {out}",
        hint=f"{remedy(recipe)} in another --out; without --stop-on-collapse the same command resumes",
    )


def write_checkpoint(
    kind: Kind, recipe: Recipe, family: Family, state: State, data: Path, out: Path, parents: Sequence[Path] = ()
) -> Manifest:
    """Write `student/` as a stock diffusers network (adapters merged), adapters on the teacher also as a LoRA in
    `lora/`, then the manifest.

    `parents` are the input folders other than `data`. Every process of the run makes this call; the first writes.
    """
    import torch

    from flashdmd_cli.families.storage import is_stored

    # A network that is stored in 16 bits is too large for a copy in 32, and has no more digits than float16.
    dtype = torch.float16 if is_stored(state.shipped.base.net) else torch.float32
    # Sharded networks are collected from all processes.
    is_needed = state.world.is_main or state.is_sharded
    net: Any = state.shipped.merged(dtype) if is_needed else None
    return state.world.from_main(lambda: _write(kind, recipe, family, state, net, dtype, data, out, parents))


def _write(
    kind: Kind, recipe: Recipe, family: Family, state: State, net: nn.Module, dtype: torch.dtype, data: Path,
    out: Path, parents: Sequence[Path],
) -> Manifest:  # fmt: skip
    """Write the student's network `net` and the manifest."""
    from flashdmd_cli.export.lora import save_factors

    with saving_weights(out / "student"):
        family.save_network(net, out / "student")
        if (factors := state.shipped.low_rank()) and state.shipped.base is state.teacher.base:
            # Adapters on the teacher itself are a LoRA; those on another student are not.
            save_factors(out / ADAPTER, FAMILIES[recipe.family].networks[0], factors)
    grid, parent, teacher = family.grid(recipe.grid.steps), parent_record(data, out), teacher_of(out)
    return write_manifest(
        out,
        Manifest(
            kind=kind,
            family=recipe.family,
            grid=GridRecord(scheduler=grid.scheduler, config=grid.config),
            step=state.iteration,
            images_seen=state.images_seen,
            updates=Updates(**state.updates),
            teacher=teacher,
            parents=[*(parent_record(each, out) for each in parents), parent],
            weights=Weights(
                form="full", dtype=str(dtype).removeprefix("torch."), average="raw" if state.average is None else "ema"
            ),
            recipe=recipe.model_dump(mode="json"),
            hardware=hardware(family.device.type, family.precision),
            data=parent.sha256,
            seed=recipe.train.seed,
            wall_seconds=state.seconds,
            license=license_of(teacher),
            warnings=state.probe.get("warnings", []),
        ),
    )
