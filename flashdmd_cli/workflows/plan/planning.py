"""The plan of a distillation: operations by part, memory by phase, disk, time and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flashdmd_cli.families.registry import has_random_weights
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.workflows.inputs.kinds import is_shapes
from flashdmd_cli.workflows.plan.gpus import LAUNCH_SECONDS, Gpu, needed

if TYPE_CHECKING:
    from flashdmd_cli.workflows.plan.counting import Counts, Sizes

MEASURED_FAMILY = "sdxl"
"""The family whose training the speeds of GPUs were measured with."""


@dataclass(frozen=True)
class Evaluations:
    """Passes of the student for one picture in an iteration, the mean over grid steps."""

    rollout: float
    """Without gradient."""
    student: float
    """At the grid steps that are trained, with gradient if the student is updated."""


@dataclass(frozen=True)
class Plan:
    """What a distillation needs."""

    recipe: str
    family: str
    form: str
    checkpointing: bool
    resolution: int
    batch: int
    micro_batch: int
    """Pictures of a forward pass on each process."""
    processes: int
    gpu: str
    parameters: int
    """Of the denoiser."""
    trainable: int
    """Parameters that the optimizers update; by network in `trainable_by_network`."""
    trainable_by_network: dict[str, int]
    """Student and fake score have as many as each other; the discriminator's are those of its heads."""
    tflop_per_sample: float
    """Of a picture in an iteration, the mean over a cycle of `fake.ttur` iterations."""
    tflop_by_part: dict[str, float]
    """Of the same."""
    peak_gb: float
    """Largest memory of tensors on one device."""
    memory_by_part: dict[str, float]
    """Gigabytes of what is always there, and of what is there in the largest phase."""
    largest_phase: str
    memory_by_phase: dict[str, float]
    """Gigabytes at the peak of each phase of an iteration."""
    needed_gb: float
    """Memory that a device needs for this peak, with fragmentation and the CUDA context."""
    device_gb: float | None
    fits: bool | None
    """Whether `needed_gb` fits the device; None without a device."""
    disk_gb: dict[str, float]
    seconds_per_iteration: float | None
    """None, as are the hours and the cost, without a device, and for a run that does not fit."""
    gpu_hours: float | None
    """Of all devices together."""
    eflop: float
    """Of the whole run."""
    images: int
    """The paper's unit of cost: pictures per iteration times iterations."""
    cost: float | None
    is_measured: bool
    """Whether speeds were measured on such a device; otherwise they are assumed."""

    @property
    def trained(self) -> str:
        """Which weights are trained, in words."""
        return "all weights" if self.form == "full" else "adapters"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def plan(
    recipe: Recipe,
    gpu: Gpu | None = None,
    resolution: int = 1024,
    *,
    processes: int = 1,
    price: float | None = None,
    precision: str | None = None,
    small: bool = False,
    indices: Sequence[int] | None = None,
) -> Plan:
    """What the distillation `recipe` (stage 1) of SDXL or SD3 needs on `processes` devices `gpu`, without running it.

    `price` is that of one device for an hour. `precision`: number format of forward passes; default: the recipe's, or
    bf16. `small` plans for the small network of `bench`. `indices`: grid steps of distribution matching to average
    over, default all. Raises `UsageError` for an alignment and for families without random weights.
    """
    check(recipe)
    precision = precision or ("bf16" if recipe.model.precision == "auto" else recipe.model.precision)
    from flashdmd_cli.workflows.plan import counting  # imports torch, after the recipe was checked

    counts = counting.count(recipe, precision, resolution, small)
    rows = recipe.train.batch // processes
    micro_batch = min(recipe.train.micro_batch, max(1, rows))
    tflop = by_part(recipe, counts, indices)
    fixed, phases = memory(recipe, counts, micro_batch, rows, processes)
    totals = {name: sum(fixed.values()) + sum(parts.values()) for name, parts in phases.items()}
    largest = max(totals, key=lambda name: totals[name])
    peak = totals[largest]
    per_sample = sum(tflop.values())
    fits = None if gpu is None else needed(peak) <= gpu.memory
    seconds = None
    if gpu is not None and fits:
        seconds = seconds_per_iteration(recipe, counts, gpu, micro_batch, rows, indices)
    hours = None if seconds is None else seconds * recipe.train.iterations / 3600 * processes
    trained = counts.sizes
    roles = {"student": trained.student, "fake score": trained.student, "discriminator": trained.heads}
    return Plan(
        recipe=recipe.name,
        family=recipe.family,
        form=recipe.model.form,
        checkpointing=recipe.model.checkpointing,
        resolution=resolution,
        batch=recipe.train.batch,
        micro_batch=micro_batch,
        processes=processes,
        gpu="" if gpu is None else gpu.name,
        parameters=counts.sizes.parameters,
        trainable=trained.trainable,
        trainable_by_network={name: num for name, num in roles.items() if num},
        tflop_per_sample=per_sample,
        tflop_by_part=tflop,
        peak_gb=peak / 1e9,
        memory_by_part={name: size / 1e9 for name, size in (fixed | phases[largest]).items()},
        largest_phase=largest,
        memory_by_phase={name: total / 1e9 for name, total in totals.items()},
        needed_gb=needed(peak) / 1e9,
        device_gb=None if gpu is None else gpu.memory / 1e9,
        fits=fits,
        disk_gb=disk(recipe, counts.sizes),
        seconds_per_iteration=seconds,
        gpu_hours=hours,
        eflop=per_sample * recipe.train.batch * recipe.train.iterations / 1e6,
        images=recipe.train.batch * recipe.train.iterations,
        cost=None if hours is None or price is None else hours * price,
        is_measured=gpu is not None and gpu.is_measured and recipe.family == MEASURED_FAMILY,
    )


def check(recipe: Recipe) -> None:
    """Raise `UsageError` unless `can_plan(recipe)`."""
    if not can_plan(recipe):
        raise UsageError(f"--recipe {recipe.name}: only distillations of SDXL and SD3 can be planned")


def can_plan(recipe: Recipe) -> bool:
    """Whether the recipe is a distillation of a teacher of true size, of a family that has random weights."""
    return recipe.align is None and has_random_weights(recipe.family) and not is_shapes(recipe.teacher)


def evaluations(recipe: Recipe, indices: Sequence[int] | None = None) -> Evaluations:
    """The student's passes in `training.distill.iteration`, the mean over the grid steps `indices`."""
    indices, last, gan = indices or recipe.dm_step_indices, recipe.grid.steps - 1, recipe.gan
    rollout = student = 0
    for index in indices:
        rollout, student = rollout + index, student + 1
        shares = gan.steps == "all" or (index == last and gan.input == "last_step")
        if gan.kind != "none" and not shares:
            student += 1
            rollout += last - index - (gan.input == "last_step")
    return Evaluations(rollout / len(indices), student / len(indices))


def by_part(recipe: Recipe, counts: Counts, indices: Sequence[int] | None = None) -> dict[str, float]:
    """TFLOP of one picture in an iteration, by part, the mean over `fake.ttur` iterations."""
    passes, share, forward = evaluations(recipe, indices), 1 / recipe.ttur, counts.forward.flop
    idle = (1 - share) * counts.views.flop
    decoding = counts.decoder.flop
    judged = counts.adversarial.flop - decoding
    parts = {
        "rollout": passes.rollout * forward,
        "student": passes.student * (forward + share * counts.backward.flop),
        "teacher": share * (counts.scores.flop - forward),
        "fake score": share * forward + forward + counts.backward.flop,
        "VAE": share * decoding,
        "discriminator, for the student": share * judged + idle,
        "discriminator": float(counts.discriminator.flop),
    }
    return {name: flop / 1e12 for name, flop in parts.items() if flop}


def static_memory(recipe: Recipe, of: Sizes, processes: int = 1) -> dict[str, float]:
    """Bytes that are the same for any micro-batch: weights and moments."""
    share = share_of(recipe, processes)
    denoisers = 3 * 4 * of.parameters + of.averages if recipe.model.form == "full" else 0
    moments = 8 * (of.heads + share * (of.trainable - of.heads))
    return {"weights": of.weights - (1 - share) * denoisers, "moments of the optimizers": moments}


def share_of(recipe: Recipe, processes: int) -> float:
    """The part of each denoiser, its gradients and its moments that one process stores."""
    return 1 / processes if recipe.model.sharding == "fsdp" else 1.0


def memory(
    recipe: Recipe, counts: Counts, micro_batch: int, rows: int, processes: int = 1
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """(bytes always allocated, by part; those that each phase adds at its peak, by part).

    `rows` are the pictures of an iteration on one device. If the networks are sharded, the one block at a time that is
    gathered is not counted (below 0.5 GB for SDXL).
    """
    fixed: dict[str, float] = static_memory(recipe, counts.sizes, processes)
    share = share_of(recipe, processes)
    fixed["pictures of the iteration"] = rows * counts.output
    forward, backward, gan = counts.forward, counts.backward, recipe.gan
    is_first = rows == micro_batch  # no micro-batch before has left gradients

    def phase(gradients: float, activations: int, copies: int) -> dict[str, float]:
        return {
            "gradients": 4.0 * gradients,
            "activations": float(micro_batch * activations),
            "weights in 16 bits": float(copies)
            if share == 1.0
            else 0.0,  # a sharded block is freed when it is computed
        }

    # A backward pass frees what was kept while it needs more: at most both.
    update = (
        max(forward.peak, forward.kept + backward.peak),
        max(forward.peak_weights, forward.kept_weights + backward.peak_weights),
    )
    student, heads = share * counts.sizes.student, counts.sizes.heads
    scores, adversarial, discriminator = counts.scores, counts.adversarial, counts.discriminator
    phases = {
        "student": phase(student, *update),
        "teacher and fake score": phase(
            0 if is_first else student, forward.kept + scores.peak, forward.kept_weights + scores.peak_weights
        ),
        "fake score": phase(student, *update),
    }
    if gan.kind != "none":
        phases["adversarial loss"] = phase(
            0 if is_first and gan.steps == "all" else student,
            forward.kept + adversarial.peak,
            forward.kept_weights + adversarial.peak_weights,
        )
        phases["discriminator"] = phase(student + heads, discriminator.peak, discriminator.peak_weights)
    if recipe.train.preview_every is not None:  # one picture after another
        phases["preview"] = {"activations": float(counts.preview.peak)}
    return fixed, phases


def seconds_per_iteration(
    recipe: Recipe, counts: Counts, gpu: Gpu, micro_batch: int, rows: int, indices: Sequence[int] | None = None
) -> float:
    """Seconds of an iteration with `rows` pictures on a device: of its arithmetic, or of starting the kernels."""
    passes, share = evaluations(recipe, indices), 1 / recipe.ttur
    forward, backward = LAUNCH_SECONDS[recipe.model.form, recipe.model.checkpointing]
    forwards = passes.rollout + passes.student + 2 * share + 1
    backwards = passes.student * share + 1
    launching = forwards * forward + backwards * backward
    computing = sum(by_part(recipe, counts, indices).values()) * micro_batch / (gpu.tflops * gpu.share)
    return rows / micro_batch * max(launching, computing)


def disk(recipe: Recipe, of: Sizes) -> dict[str, float]:
    """Gigabytes on disk, by what they are for."""
    state = 12 * of.trainable + of.averages
    return {
        "states": recipe.train.keep_states * state / 1e9,
        "student": 4 * of.parameters / 1e9,
        "caches of 1000 pictures": 1000 * of.cached / 1e9,
    }
